"""EMD, by h5py: NCEM's (Berkeley), read and written; Velox's is read by `emd_velox`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.formats import record
from n2sr_deploy.formats.base import (
    Axis,
    Format,
    FrameFile,
    Output,
    choose_signal,
)
from n2sr_deploy.formats.emd_velox import open_velox
from n2sr_deploy.formats.hdf5_file import (
    Hdf5File,
    created,
    kind,
)
from n2sr_deploy.formats.hdf5_frames import (
    calibrated,
    falling,
    frame_dataset,
    frame_reader,
    image_axes,
    kept_axes,
    named,
    placed,
    same_sizes,
)
from n2sr_deploy.formats.hdf5_nodes import (
    attributes,
    is_dataset,
    is_group,
    is_numeric,
    small,
    steps,
    text,
)
from n2sr_deploy.formats.metadata import acquired, date_time_of
from n2sr_deploy.formats.units import plain_unit
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from n2sr_deploy.formats.base import ByFrame
    from n2sr_deploy.formats.metadata import Table

_OURS = "n2sr"  # the root's attribute that holds a record
_FRAME_AXES = {"frame", "frames", "n", "t", "time", "tilt", "tilt_angle", "angle", "slice", "z"}
_UNITS = {"pm": "[p_m]", "nm": "[n_m]", "µm": "[u_m]", "mm": "[m_m]", "m": "[m]", "s": "[s]"}
_GROUPS = ("microscope", "user", "sample", "comments")

_NCEM: Table = {
    "microscope": "microscope/name",
    "detector": "microscope/detector",
    "mode": "microscope/mode",
    "date_time": "microscope/date time",
    "beam_energy_kev": ("microscope/high tension", 1e-3),
    "beam_current_na": ("microscope/beam current", 1e9),
    "convergence_mrad": ("microscope/convergence angle", 1e3),
    "magnification": ("microscope/magnification", 1.0),
    "camera_length_mm": ("microscope/camera length", 1e3),
    "exposure_s": ("microscope/exposure time", 1.0),
    "dwell_time_s": ("microscope/dwell time", 1.0),
    "stage_x_mm": ("microscope/stage x", 1e3),
    "stage_y_mm": ("microscope/stage y", 1e3),
    "stage_z_mm": ("microscope/stage z", 1e3),
    "stage_tilt_alpha_deg": ("microscope/stage alpha", 180 / np.pi),
    "stage_tilt_beta_deg": ("microscope/stage beta", 180 / np.pi),
}


def _open(path: Path, signal: str | None) -> FrameFile:
    opened = Hdf5File(path)
    try:
        velox = opened.at("Data/Image")
        if is_group(velox):
            return open_velox(opened, velox, signal)
        return _open_ncem(opened, signal)
    except BaseException:
        opened.close()
        raise


def _open_ncem(opened: Hdf5File, signal: str | None) -> FrameFile:
    found = named(_ncem_signals(opened))
    name = choose_signal(opened.path, tuple(found), signal)
    where, group, dataset = found[name]
    dims = _dims(opened, group, dataset)
    rows, columns, leading = _order(dims, is_reversed=where.startswith("/signals/"))
    shape = dims[rows].size, dims[columns].size
    opened.check(dataset, where, shape)
    axes = tuple(replace(dims[i], name=dims[i].name or f"axis {i}") for i in leading)
    info = _ncem_info(opened, where, group, dims[rows], dims[columns])
    kept = record.from_json(text(attributes(opened.root).get(_OURS)), info)
    by_frame: ByFrame = {}
    if kept is not None:
        info, axes = kept.info, kept_axes(axes, kept.axes)
        by_frame = kept.by_frame if same_sizes(axes, kept.axes) else {}
    return FrameFile(
        opened.path,
        shape=shape,
        dtype=dataset.dtype,
        pixels=frame_reader(dataset, rows, columns, leading, falling(dims[rows], dims[columns])),
        axes=axes,
        info=info,
        by_frame=by_frame,
        signal=name,
        signals=tuple(found),
        closing=opened.close,
    )


def _ncem_signals(opened: Hdf5File) -> Iterator[tuple[str, tuple[str, Any, Any]]]:
    """A name, the path of the pixels, their group and the dataset, of each image."""
    for where, group in opened.walk():
        if not is_group(group) or "emd_group_type" not in group.attrs:
            continue
        dataset: Any = dict(opened.members(group)).get("data")
        if is_numeric(dataset) and len(dataset.shape) >= 2 and dataset.dtype.kind != "c":
            yield where.rsplit("/", 1)[-1], (f"{where}/data", group, dataset)


def _dims(opened: Hdf5File, group: Any, dataset: Any) -> list[Axis]:
    members = dict(opened.members(group))
    first = 0 if "dim0" in members else 1
    dims = []
    for axis, size in enumerate(dataset.shape):
        dim = members.get(f"dim{axis + first}")
        places = steps(dim)
        offset, scale = places or (0.0, 1.0)
        told = attributes(dim) if is_dataset(dim) else {}
        unit = plain_unit(text(told.get("units"))) if places else None
        name = text(told.get("name"))
        dims.append(Axis(name=name, size=int(size), scale=scale, offset=offset, unit=unit))
    return dims


def _order(dims: list[Axis], *, is_reversed: bool) -> tuple[int, int, tuple[int, ...]]:
    """Which axes are the rows, the columns and the frames.

    The names tell; without names the last two are rows and columns, but in the files of
    HyperSpy, whose axes are reversed, the first two are columns and rows.
    """
    names = [dim.name.lower() for dim in dims]
    n = len(dims)
    if names.count("x") == 1 and names.count("y") == 1:
        rows, columns = names.index("y"), names.index("x")
    elif is_reversed:
        rows, columns = 1, 0
    elif n == 3 and names[2] in _FRAME_AXES and names[0] not in _FRAME_AXES:
        rows, columns = 0, 1
    else:
        rows, columns = n - 2, n - 1
    leading = tuple(axis for axis in range(n) if axis not in (rows, columns))
    return rows, columns, leading[::-1] if columns < rows else leading


def _ncem_info(opened: Hdf5File, where: str, group: Any, row: Axis, column: Axis) -> FrameInfo:
    metadata = attributes(opened.root)
    metadata.pop(_OURS, None)
    for name, node in opened.members(opened.root):
        if is_group(node) and where.startswith(f"/{name}/"):
            metadata[name] = attributes(node)
        elif is_group(node):
            metadata[name] = opened.values(node)
    own = attributes(group)
    own |= {
        name: small(node)
        for name, node in opened.members(group)
        if is_dataset(node) and name != "data" and not name.startswith("dim")
    }
    own.pop("emd_group_type", None)
    metadata = {name: value for name, value in metadata.items() if value not in ({}, None)}
    if own:
        metadata[where.split("/")[-2]] = own
    acquisition = acquired(metadata, _NCEM)
    began = own.get("acquisition times")
    if "date_time" not in acquisition and isinstance(began, float):
        acquisition |= date_time_of(began)
    return FrameInfo(acquisition=acquisition, metadata=metadata, **calibrated(row, column))


def _write(path: Path, output: Output) -> None:
    """NCEM's EMD 0.2, x first: HyperSpy takes every such file for that, whatever its axes say."""
    info = output.info
    with created(path, "writing EMD files") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        file.attrs[_OURS] = record.to_json(output).replace("\0", "")
        for name in _GROUPS:
            told = info.metadata.get(name)
            _tell(file.create_group(name), told if isinstance(told, dict) else {})
        _tell(file["microscope"], _as_ncem(info))
        _tell(file["comments"], {f"n2sr {i}": line for i, line in enumerate(info.history, 1)})
        group = file.create_group("data/frames" if output.axes else "data/frame")
        group.attrs["emd_group_type"] = 1
        dataset = frame_dataset(group, output, is_reversed=True)
        for at, pixels in placed(path, output):
            dataset[(..., *at[::-1])] = pixels.T
        axes = *output.axes, *image_axes(output)
        for i, (axis, name) in enumerate(zip(axes[::-1], _names(output)[::-1], strict=True), 1):
            n = max(axis.size, 2)  # one place alone would tell no scale
            dim = group.create_dataset(f"dim{i}", data=axis.offset + axis.scale * np.arange(n))
            dim.attrs["name"] = name
            dim.attrs["units"] = _UNITS.get(axis.unit or "", axis.unit or "")


def _names(output: Output) -> tuple[str, ...]:
    """Of all axes; only those of the image are y and x, by which readers find them."""
    names = (axis.name for axis in output.axes)
    return *(f"scan {name}" if name.lower() in ("y", "x") else name for name in names), "y", "x"


def _as_ncem(info: FrameInfo) -> dict[str, Any]:
    """Of the microscope, by NCEM's names."""
    told: dict[str, Any] = {}
    for name, value in info.acquisition.items():
        where = _NCEM.get(name)
        if isinstance(where, tuple) and not isinstance(value, str):
            told[where[0].split("/")[-1]] = value / where[1]
        elif isinstance(where, str):
            told[where.split("/")[-1]] = str(value)
    return told


def _tell(group: Any, values: dict[str, Any]) -> None:
    """Write attributes; what is no number or text as JSON."""
    for name, value in values.items():
        if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**63):
            group.attrs[name] = value
        else:
            told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            group.attrs[name] = told.replace("\0", "")


FORMAT = Format(
    name="EMD",
    extensions=(".emd",),
    recognises=lambda path, head: kind(path, head) == "emd",
    open=_open,
    write=_write,
)
