"""Velox's EMD, read: images (H, W, N), each frame with metadata in JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from n2sr_deploy.formats.base import DAMAGE, Axis, FrameFile, choose_signal
from n2sr_deploy.formats.hdf5_frames import calibrated, frame_reader, named
from n2sr_deploy.formats.hdf5_nodes import is_group, is_numeric, n_bytes, number, small, text
from n2sr_deploy.formats.metadata import acquired, date_time_of, plain_values, sought
from n2sr_deploy.formats.units import plain_unit
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.formats.hdf5_file import Hdf5File
    from n2sr_deploy.formats.metadata import Table

_LARGEST_JSON = 2**24  # bytes
_TOLD: Table = {
    "microscope": "Instrument/InstrumentClass",
    "detector": "BinaryResult/Detector",
    "beam_energy_kev": ("Optics/AccelerationVoltage", 1e-3),
    "beam_current_na": ("Optics/LastMeasuredScreenCurrent", 1e9),
    "convergence_mrad": ("Optics/BeamConvergence", 1e3),
    "magnification": ("CustomProperties/StemMagnification/value", 1.0),
    "camera_length_mm": ("Optics/CameraLength", 1e3),
    "dwell_time_s": ("Scan/DwellTime", 1.0),
    "stage_x_mm": ("Stage/Position/x", 1e3),
    "stage_y_mm": ("Stage/Position/y", 1e3),
    "stage_z_mm": ("Stage/Position/z", 1e3),
    "stage_tilt_alpha_deg": ("Stage/AlphaTilt", 180 / np.pi),
    "stage_tilt_beta_deg": ("Stage/BetaTilt", 180 / np.pi),
}


def open_velox(opened: Hdf5File, images: Any, signal: str | None) -> FrameFile:
    """An opened file that has images of Velox; closed with what is returned."""
    found = named(_signals(opened, images))
    name = choose_signal(opened.path, tuple(found), signal)
    where, dataset, told = found[name]
    shape, n_frames = dataset.shape[:2], int(dataset.shape[2])
    opened.check(dataset, where, shape)
    info = _info(_json_of(told, 0))

    def info_of(index: int) -> FrameInfo:
        return info if index == 0 else _info(_json_of(told, index))

    return FrameFile(
        opened.path,
        shape=shape,
        dtype=dataset.dtype,
        pixels=frame_reader(dataset, 0, 1, (2,)),
        axes=(_time(info, n_frames),) if n_frames > 1 else (),
        info=info,
        info_of=info_of,
        signal=name,
        signals=tuple(found),
        closing=opened.close,
    )


def _signals(opened: Hdf5File, images: Any) -> Iterator[tuple[str, tuple[str, Any, Any]]]:
    """A name, path, pixels (H, W, N) and metadata of each image; not of spectra or transforms."""
    labels = _labels(opened)
    for uuid, group in opened.members(images):
        parts = dict(opened.members(group)) if is_group(group) else {}
        dataset, told = parts.get("Data"), parts.get("Metadata")
        if dataset is None or not is_numeric(dataset) or dataset.dtype.kind == "c":
            continue
        if len(dataset.shape) != 3:
            continue
        where = f"/Data/Image/{uuid}"
        detector = text(sought(_json_of(told, 0), "BinaryResult/Detector"))
        yield labels.get(where) or detector or uuid, (f"{where}/Data", dataset, told)


def _labels(opened: Hdf5File) -> dict[str, str]:
    """What Velox shows above each image, by the path of its data."""
    labels: dict[str, str] = {}
    displays = opened.at("Presentation/Displays/ImageDisplay")
    for _, display in opened.members(displays) if is_group(displays) else ():
        told = _parsed(small(display))
        label, where = text(sought(told, "display/label")), text(sought(told, "dataPath"))
        if label and where:
            labels.setdefault(where, unquote(label))
    return labels


def _json_of(told: Any, index: int) -> dict[str, Any]:
    """Velox's metadata of one frame: JSON, its bytes in a column."""
    if not is_numeric(told) or len(told.shape) != 2 or 0 in told.shape:
        return {}
    try:
        sizes = told.shape[0], n_bytes(told.chunks or (), told.dtype)
        if told.dtype != np.uint8 or max(sizes) > _LARGEST_JSON:
            return {}
        column = told[:, min(index, told.shape[1] - 1)]
    except DAMAGE:
        return {}
    return _parsed(bytes(column).split(b"\0", 1)[0].decode("utf-8", "replace"))


def _parsed(found: Any) -> dict[str, Any]:
    try:
        values = json.loads(found) if isinstance(found, str) else None
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _info(told: dict[str, Any]) -> FrameInfo:
    sizes = [_number_in(told, f"BinaryResult/PixelSize/{side}") for side in ("height", "width")]
    row, column = (
        Axis(
            name=axis,
            size=1,
            scale=size,
            offset=_number_in(told, f"BinaryResult/Offset/{axis}"),
            unit=plain_unit(text(sought(told, f"BinaryResult/PixelUnit{axis.upper()}"))),
        )
        for axis, size in zip("yx", sizes, strict=True)
    )
    return FrameInfo(
        acquisition=_acquisition(told),
        metadata=plain_values(told),
        **(calibrated(row, column) if all(sizes) else {}),
    )


def _number_in(told: dict[str, Any], path: str) -> float:
    """Velox writes numbers as texts; 0 where there is none."""
    found = sought(told, path)
    try:
        return number(float(found), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _acquisition(told: dict[str, Any]) -> dict[str, float | str]:
    acquisition = acquired(told, _TOLD)
    detector = f"Detectors/Detector-{sought(told, 'BinaryResult/DetectorIndex')}"
    is_scanned = sought(told, f"{detector}/DetectorType") == "ScanningDetector"
    if sought(told, f"{detector}/DetectorType"):
        acquisition["mode"] = "STEM" if is_scanned else "TEM"
    if not is_scanned:
        acquisition.pop("dwell_time_s", None)
    table: Table = {
        "exposure_s": (f"{detector}/ExposureTime", 1.0),
        "magnification": ("Optics/NominalMagnification", 1.0),
    }
    acquisition = acquired(told, table) | acquisition
    began = _number_in(told, "Acquisition/AcquisitionStartDatetime/DateTime")
    return acquisition | date_time_of(began)


def _time(info: FrameInfo, n_frames: int) -> Axis:
    """From frame to frame, as far as it is told."""
    is_scanned = info.acquisition.get("mode") == "STEM"
    seconds = _number_in(dict(info.metadata), "Scan/FrameTime") if is_scanned else 0.0
    if seconds > 0:
        return Axis(name="time", size=n_frames, scale=seconds, unit="s")
    return Axis(name="frame", size=n_frames)
