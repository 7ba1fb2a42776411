"""Whatever else RosettaSciIO reads; it is GPL-3 and only used where the user has installed it."""

from __future__ import annotations

import contextlib
import inspect
import struct
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.formats.base import (
    DAMAGE,
    Axis,
    Format,
    FrameFile,
    choose_signal,
    damaged,
    distinct,
    required,
)
from n2sr_deploy.formats.metadata import hyperspy_acquisition, plain_values
from n2sr_deploy.formats.units import one_unit
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.sampling import AnyArray


@dataclass(frozen=True)
class _Signal:
    """One of a file's signals, its axes the slowest first."""

    data: Any
    axes: tuple[Axis, ...]
    metadata: dict[str, Any]
    original: dict[str, Any]


def _open(path: Path, signal: str | None) -> FrameFile:
    rsciio = required("rsciio", f"reading {path.suffix} files", "rosettasciio", "em")
    images = [one for one in _read(rsciio, path) if len(one.axes) >= 2]
    titles = [str(one.metadata.get("General", {}).get("title") or path.stem) for one in images]
    named = dict(zip(distinct(titles), images, strict=True))
    signal = choose_signal(path, tuple(named), signal)
    chosen = named[signal]
    *leading, rows, columns = chosen.axes
    size, unit = one_unit((rows.scale, rows.unit), (columns.scale, columns.unit))
    known = size is not None and unit is not None and min(size) > 0
    stack = chosen.data.reshape((-1, *chosen.data.shape[-2:]))

    def read(index: int) -> AnyArray:
        pixels = stack[index]
        if hasattr(pixels, "compute"):  # a Dask array
            pixels = pixels.compute(scheduler="synchronous")
        return np.array(pixels)

    return FrameFile(
        path,
        shape=stack.shape[1:],
        dtype=stack.dtype,
        pixels=read,
        axes=tuple(leading),
        info=FrameInfo(
            pixel_size=size if known else None,
            unit=unit if known else None,
            origin=(rows.offset, columns.offset) if known else (0.0, 0.0),
            acquisition=hyperspy_acquisition(chosen.metadata),
            metadata=plain_values(chosen.original or chosen.metadata),
        ),
        signal=signal,
        signals=tuple(named),
    )


def _read(rsciio: Any, path: Path) -> list[_Signal]:
    """By the readers of the extension, the first that finds an image; lazily, where it can."""
    ending = path.suffix.lower().removeprefix(".")
    failures: list[str] = []
    found: list[_Signal] = []
    for plugin in rsciio.IO_PLUGINS:
        if ending not in (known.lower() for known in plugin["file_extensions"]):
            continue
        try:
            found = [_signal(values) for values in _read_by(plugin["api"], path)]
        except (*DAMAGE, ImportError, SyntaxError, struct.error) as error:
            failures.append(f"{error or type(error).__name__} ({plugin['name']})")
            continue
        if any(len(one.axes) >= 2 for one in found):
            return found
    if found or not failures:
        return found
    raise damaged(path, ValueError("; ".join(failures)))


def _read_by(module: str, path: Path) -> list[dict[str, Any]]:
    reader = import_module(module).file_reader
    signals: list[dict[str, Any]]
    if "lazy" in inspect.signature(reader).parameters:
        with contextlib.suppress(*DAMAGE):  # not all that say so can
            signals = reader(str(path), lazy=True)
            return signals
    signals = reader(str(path))
    return signals


def _signal(values: dict[str, Any]) -> _Signal:
    """With frames along the leading axes; spectra have fewer than two axes of the signal."""
    metadata = values.get("metadata", {})
    original = values.get("original_metadata", {})
    _apply(values.get("mapping", {}), original, metadata)
    axes = [_axis(axis, i) for i, axis in enumerate(values["axes"])]
    order = [
        *(i for i, axis in enumerate(values["axes"]) if axis.get("navigate")),
        *(i for i, axis in enumerate(values["axes"]) if not axis.get("navigate")),
    ]
    n_signal = sum(not axis.get("navigate") for axis in values["axes"])
    if n_signal < 2:
        return _Signal(values["data"], (), metadata, original)
    return _Signal(
        values["data"].transpose(order), tuple(axes[i] for i in order), metadata, original
    )


def _axis(axis: dict[str, Any], place: int) -> Axis:
    unit = axis.get("units")
    return Axis(
        name=str(axis.get("name") or f"axis {place}"),
        size=int(axis["size"]),
        scale=float(axis.get("scale", 1.0)),
        offset=float(axis.get("offset", 0.0)),
        unit=str(unit) if unit else None,
    )


def _apply(mapping: dict[str, Any], original: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Put what RosettaSciIO leaves in the file's own metadata where HyperSpy looks for it."""
    for source, (target, convert) in mapping.items():
        found: Any = original
        for name in source.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            continue
        *parents, last = target.split(".")
        branch = metadata
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = convert(found) if convert else found


FORMAT = Format(
    name="RosettaSciIO",
    extensions=(
        *(".app5", ".asw", ".bcf", ".blo", ".bmp", ".elid", ".img", ".jpeg", ".jpg", ".mrcz"),
        *(".png", ".prz", ".rpl", ".sur", ".tvips", ".unf", ".wdf", ".xml"),
    ),
    ambiguous=(".img", ".png", ".xml"),
    recognises=lambda _path, _head: False,
    open=_open,
)
