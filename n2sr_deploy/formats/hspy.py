"""HyperSpy's files, read: .hspy (HDF5, by h5py) and .zspy (a folder, by zarr)."""

from __future__ import annotations

import re
import warnings
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from n2sr_deploy.files import is_folder_store
from n2sr_deploy.formats import record
from n2sr_deploy.formats.base import (
    DAMAGE,
    MAX_PIXELS,
    Axis,
    Format,
    FrameFile,
    choose_signal,
    damaged,
    required,
    whole_image,
)
from n2sr_deploy.formats.hdf5_file import (
    Hdf5File,
    could_hold,
    kind,
    too_little,
)
from n2sr_deploy.formats.hdf5_frames import (
    calibrated,
    falling,
    frame_reader,
    same_sizes,
)
from n2sr_deploy.formats.hdf5_nodes import (
    attributes,
    is_dataset,
    is_group,
    is_numeric,
    number,
    small,
    steps,
    text,
)
from n2sr_deploy.formats.hspy_writing import NOISE, NONE, OURS, write
from n2sr_deploy.formats.metadata import hyperspy_acquisition, sought
from n2sr_deploy.frame import FrameInfo, Intensity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Members = Callable[[Any], Iterator[tuple[str, Any]]]

_DEEPEST, _MOST_MEMBERS = 32, 5000


def _open(path: Path, signal: str | None) -> FrameFile:
    if path.is_dir() or not _is_hdf5(path):
        return _open_zarr(path, signal)
    opened = Hdf5File(path)
    try:
        experiments = opened.at("Experiments")
        return _opened(path, experiments, signal, opened.members, opened.check, opened.close)
    except BaseException:
        opened.close()
        raise


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) != b"PK" or path.suffix.lower() != ".zspy"


def _open_zarr(path: Path, signal: str | None) -> FrameFile:
    zarr = required("zarr", "reading .zspy folders", "zarr", "formats")
    stack = ExitStack()
    try:
        store = path
        if path.is_file():
            store = stack.enter_context(zarr.storage.ZipStore(path, mode="r"))
        root = zarr.open_group(store, mode="r")
        experiments = dict(_zarr_members(root)).get("Experiments")
        return _opened(path, experiments, signal, _zarr_members, _checked_by(path), stack.close)
    except DAMAGE as error:
        stack.close()
        raise damaged(path, error) from error
    except BaseException:
        stack.close()
        raise


def _zarr_members(group: Any) -> Iterator[tuple[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files that are no part of the store are common
        found = group.members()
    return iter(sorted(found, key=lambda member: str(member[0])))


def _checked_by(path: Path) -> Callable[[Any, str, tuple[int, ...]], None]:
    """As `Hdf5File.check` does, of an array of zarr."""

    def check(array: Any, name: str, shape: tuple[int, ...]) -> None:
        whole_image(path, array.shape)
        if shape[0] * shape[1] <= MAX_PIXELS:  # else told by FrameFile
            stored = array.nbytes_stored()
            if not could_hold(shape, array, stored, array.nchunks_initialized):
                raise too_little(path, array, name, stored)

    return check


def _opened(
    path: Path,
    experiments: Any,
    signal: str | None,
    members: Members,
    check: Callable[[Any, str, tuple[int, ...]], None],
    closing: Callable[[], object],
) -> FrameFile:
    found: dict[str, tuple[Any, list[dict[str, Any]]]] = {}
    for name, group in members(experiments) if is_group(experiments) else ():
        parts = dict(members(group)) if is_group(group) else {}
        dataset = parts.get("data")
        if dataset is not None and is_numeric(dataset) and len(dataset.shape) >= 2:
            described = _axes(parts, len(dataset.shape), members)
            if _is_image(described):
                found[name] = parts, described
    name = choose_signal(path, tuple(found), signal)
    parts, described = found[name]
    dataset = parts["data"]
    rows, columns, leading = _order(described)
    shape = int(dataset.shape[rows]), int(dataset.shape[columns])
    check(dataset, f"/Experiments/{name}/data", shape)
    axes = tuple(_axis(described[i], int(dataset.shape[i]), f"axis {i}") for i in leading)
    row, column = _axis(described[rows], shape[0], "y"), _axis(described[columns], shape[1], "x")
    calibration = {**calibrated(row, column), "axis_names": (row.name, column.name)}
    info, kept = _info(parts, calibration, members)
    return FrameFile(
        path,
        shape=shape,
        dtype=dataset.dtype,
        pixels=frame_reader(dataset, rows, columns, leading, falling(row, column)),
        axes=axes,
        info=info,
        by_frame=kept.by_frame if kept is not None and same_sizes(axes, kept.axes) else None,
        signal=name,
        signals=tuple(found),
        closing=closing,
    )


def _axes(parts: dict[str, Any], n_axes: int, members: Members) -> list[dict[str, Any]]:
    """What is told of each axis of the array, in its order."""
    found = []
    for axis in range(n_axes):
        group = parts.get(f"axis-{axis}")
        told: dict[str, Any] = {}
        if is_group(group):
            told = {key: _plain(value) for key, value in attributes(group).items()}
        places = dict(members(group)).get("axis") if is_group(group) else None
        if places is not None:  # they are not equally far apart
            told["offset"], told["scale"] = steps(places) or (0.0, 0.0)
        found.append(told)
    return found


def _is_image(axes: list[dict[str, Any]]) -> bool:
    """Spectra have one axis that is not navigated."""
    return _n_signal(axes) != 1


def _n_signal(axes: list[dict[str, Any]]) -> int:
    return sum(not axis.get("navigate", True) for axis in axes)


def _order(axes: list[dict[str, Any]]) -> tuple[int, int, tuple[int, ...]]:
    """Which axes are the rows, the columns and the frames."""
    signal = [i for i, axis in enumerate(axes) if not axis.get("navigate", True)]
    if len(signal) < 2:
        signal = list(range(len(axes)))
    rows, columns = signal[-2:]
    names = [text(axes[i].get("name")).lower() for i in (rows, columns)]
    if names == ["x", "y"]:
        rows, columns = columns, rows
    return rows, columns, tuple(i for i in range(len(axes)) if i not in (rows, columns))


def _axis(told: dict[str, Any], size: int, otherwise: str) -> Axis:
    axis = Axis(name=text(told.get("name")) or otherwise, size=size)
    scale = number(told.get("scale", 1.0), 0.0)
    if scale == 0:  # or no number: nothing is known of its places
        return axis
    offset, unit = number(told.get("offset"), 0.0), text(told.get("units")) or None
    return replace(axis, scale=scale, offset=offset, unit=unit)


def _plain(value: Any) -> Any:
    """None as the layout spells it, or an undefined trait of old versions."""
    return None if value in (NONE, "<undefined>") else value


def _info(
    parts: dict[str, Any], calibration: dict[str, Any], members: Members
) -> tuple[FrameInfo, record.Kept | None]:
    metadata = {}
    for name, old in (
        ("metadata", "mapped_parameters"),
        ("original_metadata", "original_parameters"),
    ):
        group = parts.get(name, parts.get(old))
        metadata[name] = tree(group, members) if is_group(group) else {}
    own = metadata["metadata"].pop(OURS, {})
    info = FrameInfo(
        intensity=_intensity(metadata["metadata"]),
        acquisition=hyperspy_acquisition(metadata["metadata"]),
        metadata=metadata,
        **calibration,
    )
    kept = record.from_json(text(own.get("record")) if isinstance(own, dict) else "", info)
    if kept is None:
        return info, None
    told = {key: value for key, value in info.acquisition.items() if key != "date_time"}
    info = replace(
        kept.info,
        intensity=info.intensity or kept.info.intensity,
        acquisition=dict(kept.info.acquisition) | told,
        **calibration,
    )
    return info, kept


def _intensity(metadata: dict[str, Any]) -> Intensity | None:
    """HyperSpy keeps DigitalMicrograph's calibration of the counts as a model of the noise."""
    told = sought(metadata, NOISE)
    if not isinstance(told, dict):
        return None
    quantity = re.fullmatch(r"[^()]*\((.+)\)", text(sought(metadata, "Signal/quantity")))
    found = Intensity(
        scale=number(told.get("gain_factor"), 1.0),
        offset=number(told.get("gain_offset"), 0.0),
        unit=quantity[1] if quantity else None,
    )
    return None if found == Intensity() else found


def tree(group: Any, members: Members, deepest: int = _DEEPEST) -> dict[str, Any]:
    """A dictionary as the layout keeps it: groups, attributes and small arrays."""
    found: dict[str, Any] = {}
    for name, value in attributes(group).items():
        key, empty = _key(name)
        if not key.startswith("_bs_"):
            found[key] = [] if empty else _plain(value)
    for name, node in members(group):
        key, _ = _key(name)
        if is_dataset(node):
            value = small(node)
            found[key] = value if value is not None else f"array of shape {node.shape}, left out"
        elif deepest and not name.startswith("_sig_"):
            inner = tree(node, members, deepest - 1)
            found[key] = list(_numbered(inner)) if key != name else inner
        if len(found) > _MOST_MEMBERS:
            break
    return found


def _key(name: str) -> tuple[str, bool]:
    """A key without what tells that a list or tuple lies under it, and whether it is empty."""
    told = re.fullmatch(r"_(?:list|tuple)_(empty_|\d+_)?(.+)", name)
    return (name, False) if told is None else (told[2], told[1] == "empty_")


def _numbered(values: dict[str, Any]) -> Iterator[Any]:
    for key in sorted(values, key=lambda key: int(key) if key.isdecimal() else -1):
        yield values[key]


def _recognises(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return is_folder_store(path)
    return kind(path, head) == "hspy"


FORMAT = Format(
    name="HyperSpy",
    extensions=(".hspy", ".zspy"),
    recognises=_recognises,
    open=_open,
    write=write,
)
