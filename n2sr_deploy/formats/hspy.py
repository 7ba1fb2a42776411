"""HyperSpy's files: .hspy (HDF5, by h5py) and .zspy (a folder, by zarr)."""

from __future__ import annotations

import re
import warnings
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from n2sr_deploy.files import is_folder_store
from n2sr_deploy.formats import record
from n2sr_deploy.formats.base import (
    DAMAGE,
    MAX_PIXELS,
    Axis,
    Format,
    FrameFile,
    Output,
    choose_signal,
    damaged,
    required,
    whole_image,
)
from n2sr_deploy.formats.hdf5_file import (
    Hdf5File,
    could_hold,
    created,
    kind,
    too_little,
)
from n2sr_deploy.formats.hdf5_frames import (
    calibrated,
    falling,
    frame_dataset,
    frame_reader,
    image_axes,
    placed,
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
from n2sr_deploy.formats.metadata import HYPERSPY, hyperspy_acquisition, sought
from n2sr_deploy.frame import FrameInfo, Intensity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Members = Callable[[Any], Iterator[tuple[str, Any]]]

_VERSION = "3.1"  # of the layout; later ones differ only in what n2sr does not write
_OURS = "n2sr"  # the group of `metadata` that holds a record
_NONE = "_None_"  # how the layout spells None
_UNNAMED = "__unnamed__"
_DEEPEST, _MOST_MEMBERS = 32, 5000
_TEM = "Acquisition_instrument/TEM"
_NOISE = "Signal/Noise_properties/Variance_linear_model"


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
    info, kept = _info(parts, calibrated(row, column), members)
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
            told["offset"], told["scale"] = steps(places)
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
    return Axis(
        name=text(told.get("name")) or otherwise,
        size=size,
        scale=number(told.get("scale"), 1.0),
        offset=number(told.get("offset"), 0.0),
        unit=text(told.get("units")) or None,
    )


def _plain(value: Any) -> Any:
    """None as the layout spells it, or an undefined trait of old versions."""
    return None if value in (_NONE, "<undefined>") else value


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
    own = metadata["metadata"].pop(_OURS, {})
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
    told = sought(metadata, _NOISE)
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


def _write(path: Path, output: Output) -> None:
    if path.suffix.lower() == ".zspy":
        _write_zarr(path, output)
        return
    with created(path, "writing HyperSpy files") as file:
        file.attrs["file_format"], file.attrs["file_format_version"] = "HyperSpy", _VERSION
        group = file.create_group(f"Experiments/{_title(output.info)}")
        _describe(group, output)
        dataset = frame_dataset(group, output)
        for at, pixels in placed(path, output):
            dataset[at] = pixels


def _write_zarr(path: Path, output: Output) -> None:
    zarr = required("zarr", "writing .zspy folders", "zarr", "formats")
    root = zarr.open_group(path, mode="w", zarr_format=2)  # which all of HyperSpy's readers know
    root.attrs.update({"file_format": "ZSpy", "file_format_version": _VERSION})
    group = root.create_group(f"Experiments/{_title(output.info)}")
    _describe(group, output)
    array = group.create_array(
        "data",
        shape=output.whole_shape,
        dtype=output.dtype,
        chunks=(*(1 for _ in output.axes), *output.shape),
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    for at, pixels in placed(path, output):
        array[(*at, ...)] = pixels


def _title(info: FrameInfo) -> str:
    title = text(sought(dict(info.metadata), "metadata/General/title"))
    return title.replace("/", "-") if title.strip(".") else _UNNAMED


def _describe(group: Any, output: Output) -> None:
    """All but the pixels."""
    info = output.info
    for i, axis in enumerate((*output.axes, *image_axes(output))):
        store(
            group.create_group(f"axis-{i}"),
            {
                "_type": "UniformDataAxis",
                "name": axis.name,
                "units": axis.unit,
                "navigate": i < len(output.axes),
                "is_binned": False,
                "size": axis.size,
                "scale": axis.scale,
                "offset": axis.offset,
            },
        )
    metadata, original = _metadata(info)
    metadata[_OURS] = {"record": record.to_json(output), "history": list(info.history)}
    store(group.create_group("metadata"), metadata)
    store(group.create_group("original_metadata"), original)
    group.create_group("learning_results")


def _metadata(info: FrameInfo) -> tuple[dict[str, Any], dict[str, Any]]:
    """HyperSpy's, and the file's own before HyperSpy."""
    told = info.metadata
    metadata: dict[str, Any] = {"General": {"title": ""}, "Signal": {"signal_type": ""}}
    original = dict(told)
    if isinstance(told.get("metadata"), dict) and isinstance(told.get("original_metadata"), dict):
        metadata, original = _copied(told["metadata"]), told["original_metadata"]
    for name, value in info.acquisition.items():
        where = HYPERSPY.get(name)
        if where is not None:
            _put(metadata, f"{_TEM}/{where if isinstance(where, str) else where[0]}", value)
    date, is_split, time = str(info.acquisition.get("date_time", "")).partition("T")
    if is_split and _is_time(f"{date}T{time}"):
        _put(metadata, "General/date", date)
        _put(metadata, "General/time", time)
    if info.intensity is not None:
        _put(metadata, f"{_NOISE}/gain_factor", info.intensity.scale)
        _put(metadata, f"{_NOISE}/gain_offset", info.intensity.offset)
        if info.intensity.unit:
            _put(metadata, "Signal/quantity", f"Intensity ({info.intensity.unit})")
    return metadata, original


def _is_time(spelled: str) -> bool:
    try:
        datetime.fromisoformat(spelled)
    except ValueError:
        return False
    return True


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _copied(value) if isinstance(value, dict) else value for key, value in values.items()
    }


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *groups, key = path.split("/")
    for name in groups:
        inner = values.get(name)
        if not isinstance(inner, dict):
            inner = values[name] = {}
        values = inner
    values[key] = value


def store(group: Any, values: dict[str, Any]) -> None:
    """Keep a dictionary as the layout does: groups, attributes, lists of one kind as arrays."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        key = str(name).replace("/", "-").replace("\0", "")
        if not key.strip("."):
            key = f"_{key}"
        if isinstance(value, dict):
            store(group.require_group(key), value)
        elif isinstance(value, (list, tuple)):
            _store_list(group, key, value)
        else:
            plain[key] = _storable(value)
    group.attrs.update(plain)


def _store_list(group: Any, key: str, values: Sequence[Any]) -> None:
    if not values:
        group.attrs[f"_list_empty_{key}"] = _NONE
    else:
        inner = {str(i): value for i, value in enumerate(values)}
        store(group.require_group(f"_list_{len(values)}_{key}"), inner)


def _storable(value: Any) -> Any:
    if value is None:
        return _NONE
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return str(value).replace("\0", "")


def _recognises(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return is_folder_store(path)
    return kind(path, head) == "hspy"


FORMAT = Format(
    name="HyperSpy",
    extensions=(".hspy", ".zspy"),
    recognises=_recognises,
    open=_open,
    write=_write,
)
