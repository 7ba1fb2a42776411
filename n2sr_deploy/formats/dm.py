"""DigitalMicrograph's DM3 and DM4, by ncempy."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.errors import FileFormatError
from n2sr_deploy.formats.base import (
    Axis,
    Format,
    FrameFile,
    choose_signal,
    distinct,
    required,
)
from n2sr_deploy.formats.metadata import acquired, plain_values, sought
from n2sr_deploy.formats.units import one_unit
from n2sr_deploy.frame import FrameInfo, Intensity

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.formats.metadata import Table
    from n2sr_deploy.sampling import AnyArray

# DM's number of a type of pixels; colours, complex and packed ones are no frames.
_TYPES = {
    1: "<i2",
    2: "<f4",
    3: "<c8",
    6: "u1",
    7: "<i4",
    9: "i1",
    10: "<u2",
    11: "<u4",
    12: "<f8",
    13: "<c16",
    14: "u1",
    39: "<i8",
    40: "<u8",
}
_INFO = "ImageTags/Microscope Info/"
_ACQUISITION: Table = {
    "microscope": _INFO + "Name",
    "detector": "ImageTags/DataBar/Device Name",
    "mode": _INFO + "Illumination Mode",
    "date_time": "ImageTags/DataBar/Acquisition Date",
    "beam_energy_kev": (_INFO + "Voltage", 1e-3),
    "beam_current_na": (_INFO + "Probe Current (nA)", 1.0),
    "magnification": (_INFO + "Indicated Magnification", 1.0),
    "camera_length_mm": (_INFO + "STEM Camera Length", 1.0),
    "exposure_s": ("ImageTags/Acquisition/Parameters/High Level/Exposure (s)", 1.0),
    "dwell_time_s": ("ImageTags/DigiScan/Sample Time", 1e-6),
    "stage_x_mm": (_INFO + "Stage Position/Stage X", 1e-3),
    "stage_y_mm": (_INFO + "Stage Position/Stage Y", 1e-3),
    "stage_z_mm": (_INFO + "Stage Position/Stage Z", 1e-3),
    "stage_tilt_alpha_deg": (_INFO + "Stage Position/Stage Alpha", 1.0),
    "stage_tilt_beta_deg": (_INFO + "Stage Position/Stage Beta", 1.0),
}
_FRAME_AXES = {"deg": "tilt", "°": "tilt", "s": "time", "ms": "time"}


def _open(path: Path, signal: str | None) -> FrameFile:
    dm = required("ncempy.io.dm", "reading DM3 and DM4 files", "ncempy", "formats")
    try:
        with np.errstate(all="ignore"), dm.fileDM(path) as file:  # it counts tags in 8 bits
            tags = _nested(file.allTags)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold on to the file's memory
        raise
    images = {name: image for name, image in _images(tags) if _is_image(image)}
    signal = choose_signal(path, tuple(images), signal)
    return _opened(path, images, signal)


def _opened(path: Path, images: dict[str, dict[str, Any]], signal: str) -> FrameFile:
    image = images[signal]
    whole = _shape(image)
    dtype = np.dtype(_TYPES[int(sought(image, "ImageData/DataType"))])
    offset = int(sought(image, "ImageData/Data.arrayOffset"))
    n_bytes = int(np.prod(whole, dtype=object)) * dtype.itemsize
    if offset + n_bytes > path.stat().st_size:
        raise FileFormatError(
            f"{path} is truncated: image {signal!r} of shape {whole} ends at byte "
            f"{offset + n_bytes}, but the file has {path.stat().st_size}"
        )
    axes = [_axis(image, whole, number) for number in range(len(whole), 0, -1)]
    size, unit = one_unit((axes[-2].scale, axes[-2].unit), (axes[-1].scale, axes[-1].unit))
    pixels = np.memmap(path, dtype, mode="r", offset=offset, shape=whole)
    stack = pixels.reshape(-1, *whole[-2:])

    def read(index: int) -> AnyArray:
        return np.array(stack[index])

    return FrameFile(
        path,
        shape=whole[-2:],
        dtype=dtype,
        pixels=read,
        axes=tuple(axes[:-2]),
        info=FrameInfo(
            pixel_size=size if unit else None,
            unit=unit or None,
            origin=(axes[-2].offset, axes[-1].offset) if size and unit else (0.0, 0.0),
            intensity=_intensity(image),
            acquisition=_acquisition(image),
            metadata=plain_values({"DM": image}),
        ),
        signal=signal,
        signals=tuple(images),
    )


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """``.ImageList.2.Name`` as mappings in mappings; where data lies stays one name."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.strip(".").split(".")
        if last in ("arrayOffset", "arraySize", "arrayType") and parents:
            last = f"{parents.pop()}.{last}"
        branch: Any = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                break
        else:
            branch[last] = value
    return tree


def _images(tags: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each image's name, made distinct, and its tags."""
    found = [image for image in (tags.get("ImageList") or {}).values() if isinstance(image, dict)]
    names = [str(image.get("Name") or f"image {i}") for i, image in enumerate(found)]
    return list(zip(distinct(names), found, strict=True))


def _is_image(image: dict[str, Any]) -> bool:
    data = image.get("ImageData")
    return (
        isinstance(data, dict)
        and data.get("DataType") in _TYPES
        and "Data.arrayOffset" in data
        and len(_shape(image)) >= 2
    )


def _shape(image: dict[str, Any]) -> tuple[int, ...]:
    """The slowest axis first; DM names the fastest first."""
    sizes = sought(image, "ImageData/Dimensions") or {}
    return tuple(int(sizes[str(i)]) for i in range(len(sizes), 0, -1))


def _axis(image: dict[str, Any], whole: tuple[int, ...], number: int) -> Axis:
    """DM's axis `number`, from 1; its origin is told in pixels."""
    known = sought(image, f"ImageData/Calibrations/Dimension/{number}") or {}
    scale = float(known.get("Scale", 1.0))
    unit = str(known.get("Units", "")).strip() or None
    return Axis(
        name=_FRAME_AXES.get(unit or "", "z"),
        size=whole[-number],
        scale=scale,
        offset=-float(known.get("Origin", 0.0)) * scale + 0.0,
        unit=unit,
    )


def _acquisition(image: dict[str, Any]) -> dict[str, float | str]:
    found = acquired(image, _ACQUISITION)
    time = sought(image, "ImageTags/DataBar/Acquisition Time")
    if "date_time" in found and isinstance(time, str):
        found["date_time"] = f"{found['date_time']} {time}"
    return found


def _intensity(image: dict[str, Any]) -> Intensity | None:
    known = sought(image, "ImageData/Calibrations/Brightness")
    if not isinstance(known, dict):
        return None
    return Intensity(
        scale=float(known.get("Scale", 1.0)),
        offset=float(known.get("Origin", 0.0)),
        unit=str(known.get("Units", "")).strip() or None,
    )


def _recognises(_: Path, head: bytes) -> bool:
    """A version, a length of 4 or 8 bytes, and whether the numbers are little-endian."""
    is_dm3 = head[:4] == b"\0\0\0\x03" and head[8:11] == b"\0\0\0"
    is_dm4 = head[:4] == b"\0\0\0\x04" and head[12:15] == b"\0\0\0"
    return is_dm3 or is_dm4


FORMAT = Format(
    name="DigitalMicrograph",
    extensions=(".dm3", ".dm4"),
    recognises=_recognises,
    open=_open,
)
