"""HyperSpy's files, written: .hspy (HDF5, by h5py) and .zspy (a folder, by zarr)."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from n2sr_deploy.formats import record
from n2sr_deploy.formats.base import required
from n2sr_deploy.formats.hdf5_file import created
from n2sr_deploy.formats.hdf5_frames import frame_dataset, image_axes, placed
from n2sr_deploy.formats.hdf5_nodes import text
from n2sr_deploy.formats.metadata import HYPERSPY, sought

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from n2sr_deploy.formats.base import Output
    from n2sr_deploy.frame import FrameInfo

OURS = "n2sr"  # the group of `metadata` that holds a record
NONE = "_None_"  # how the layout spells None
NOISE = "Signal/Noise_properties/Variance_linear_model"
_UNNAMED = "__unnamed__"
_TEM = "Acquisition_instrument/TEM"
_VERSION = "3.1"  # of the layout; later ones differ only in what n2sr does not write


def write(path: Path, output: Output) -> None:
    """Write frames as HyperSpy lays them out."""
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
    metadata[OURS] = {"record": record.to_json(output), "history": list(info.history)}
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
        _put(metadata, f"{NOISE}/gain_factor", info.intensity.scale)
        _put(metadata, f"{NOISE}/gain_offset", info.intensity.offset)
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
    if plain:
        at_once = getattr(group, "update_attributes", group.attrs.update)
        at_once(plain)  # zarr's `attrs.update` writes its file anew for each of them


def _store_list(group: Any, key: str, values: Sequence[Any]) -> None:
    if not values:
        group.attrs[f"_list_empty_{key}"] = NONE
    else:
        inner = {str(i): value for i, value in enumerate(values)}
        store(group.require_group(f"_list_{len(values)}_{key}"), inner)


def _storable(value: Any) -> Any:
    if value is None:
        return NONE
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return str(value).replace("\0", "")
