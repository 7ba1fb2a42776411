"""Groups, datasets and attributes of HDF5 and zarr, of which anything may be damaged or odd."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.formats.base import DAMAGE
from n2sr_deploy.formats.metadata import LARGEST, plain_values

if TYPE_CHECKING:
    from collections.abc import Sequence


CACHE = 2**26  # bytes of unpacked chunks that are kept, so that frames of one chunk unpack it once
_LARGEST_ATTRIBUTE = 2**20  # bytes
_NUMBERS = "biufc"


def n_bytes(shape: Sequence[int], dtype: Any) -> int:
    """Of an array."""
    return math.prod(int(n) for n in shape) * int(np.dtype(dtype).itemsize)


def is_group(node: Any) -> bool:
    """Of HDF5 or zarr."""
    return hasattr(node, "keys") and hasattr(node, "attrs")


def is_dataset(node: Any) -> bool:
    """Of HDF5 or zarr."""
    return hasattr(node, "shape") and hasattr(node, "attrs")


def is_numeric(node: Any) -> bool:
    """Whether it is a dataset of numbers."""
    if not is_dataset(node):
        return False
    try:
        return node.shape is not None and np.dtype(node.dtype).kind in _NUMBERS
    except DAMAGE:
        return False


def attributes(node: Any) -> dict[str, Any]:
    """Of a group or dataset, as JSON can keep them; without those that cannot be read."""
    found: dict[str, Any] = {}
    try:
        names = list(node.attrs)
    except DAMAGE:
        return found
    for name in names:
        try:
            if _fits(node.attrs, name):
                found[str(name)] = plain_values(unwrapped(node.attrs[name]))
        except DAMAGE:
            continue
    return found


def _fits(attrs: Any, name: str) -> bool:
    if not hasattr(attrs, "get_id"):  # zarr's are JSON
        return True
    attribute = attrs.get_id(name)
    return attribute.get_storage_size() <= _LARGEST_ATTRIBUTE and _is_plain(attribute.dtype)


def _is_plain(dtype: Any) -> bool:
    """Numbers or texts: libhdf5 crashes on damaged references and lists of lists."""
    h5py = import_module("h5py")
    return not dtype.hasobject or h5py.check_string_dtype(dtype) is not None


def small(dataset: Any) -> Any:
    """A dataset's value where it counts as metadata, as JSON can keep it; else None."""
    try:
        if getattr(dataset, "is_virtual", False) or getattr(dataset, "external", None):
            return None
        sizes = n_bytes(dataset.shape, dataset.dtype), n_bytes(dataset.chunks or (), dataset.dtype)
        if hasattr(dataset, "id") and not _is_plain(dataset.dtype):
            return None
        if math.prod(dataset.shape) > LARGEST or max(sizes) > _LARGEST_ATTRIBUTE:
            return None
        return plain_values(unwrapped(dataset[()]))
    except DAMAGE:
        return None


def unwrapped(value: Any) -> Any:
    """The one element of an array of one, which some writers put around each value."""
    if isinstance(value, np.ndarray) and value.shape == (1,):
        return value[0]
    return value


def text(value: Any) -> str:
    """Of an attribute; empty where it is none."""
    return value.strip() if isinstance(value, str) else ""


def number(value: Any, otherwise: float) -> float:
    """Of an attribute; `otherwise` where it is none, or not finite."""
    if isinstance(value, (bool, str)):
        return otherwise
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return found if np.isfinite(found) else otherwise


def steps(values: Any) -> tuple[float, float] | None:
    """Offset and scale of an axis whose places are all written down; None where they are not."""
    shape = getattr(values, "shape", None)
    if not is_numeric(values) or shape is None or len(shape) != 1 or shape[0] < 2:
        return None
    try:
        if n_bytes(values.chunks or (), values.dtype) > CACHE:
            return None
        first, last = float(values[0]), float(values[shape[0] - 1])
    except DAMAGE:
        return None
    scale = (last - first) / (shape[0] - 1)
    return (first, scale) if np.isfinite([first, scale]).all() and scale else None
