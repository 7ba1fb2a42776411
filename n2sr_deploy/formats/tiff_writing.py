"""TIFF as ImageJ and DigitalMicrograph open it calibrated, by tifffile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tifffile

from n2sr_deploy.formats import record
from n2sr_deploy.formats.units import ascii_unit, nanometres, seconds

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.formats.base import Axis, Output
    from n2sr_deploy.frame import FrameInfo

CENTIMETRE = 3  # TIFF's ResolutionUnit
_FINEST = 1.0 / (2**32 - 2)  # of a pixel, in the unit that a file tells its resolution in
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")
_IMAGEJ_BYTES = 2**32 - 2**20  # what a classic TIFF file can hold
_IMAGEJ_AXES = {0: "YX", 1: "ZYX", 2: "TZYX", 3: "TZCYX"}

# DigitalMicrograph's tags, of x, y and z each, and of the intensity.
DM_UNIT, DM_ORIGIN, DM_SCALE = (
    (65003, 65004, 65005),
    (65006, 65007, 65008),
    (65009, 65010, 65011),
)
DM_COUNT_UNIT, DM_COUNT_OFFSET, DM_COUNT_SCALE = 65022, 65024, 65025


def write(path: Path, output: Output) -> None:
    """As ImageJ and DigitalMicrograph open it calibrated; as plain TIFF what ImageJ cannot hold."""
    own = record.to_json(output)
    n_bytes = output.n_frames * output.shape[0] * output.shape[1] * output.dtype.itemsize
    options: dict[str, Any] = {"extratags": _dm_tags(output)}
    shape: tuple[int, ...] = (output.n_frames, *output.shape)
    is_line = min(output.shape) == 1  # which tifffile takes for an axis that is not there
    if output.dtype.name in _IMAGEJ_TYPES and n_bytes < _IMAGEJ_BYTES and not is_line:
        options |= _as_imagej(output, own)
        if len(options["metadata"]["axes"]) == len(output.whole_shape):
            shape = output.whole_shape
    else:
        options |= _as_plain(output.info, own) | {"bigtiff": n_bytes >= _IMAGEJ_BYTES}
    if not output.axes:
        tifffile.imwrite(path, next(output.pixels), **options)
        next(output.pixels, None)
        return
    tifffile.imwrite(path, output.pixels, shape=shape, dtype=output.dtype, **options)


def _as_imagej(output: Output, own: str) -> dict[str, Any]:
    """How tifffile writes what ImageJ can hold."""
    info = output.info
    letters = _IMAGEJ_AXES.get(len(output.axes), "ZYX")
    if len(output.axes) == 1 and (
        output.axes[0].name == "time" or seconds(output.axes[0].unit) is not None
    ):
        letters = "TYX"
    metadata: dict[str, Any] = {"axes": letters, "Info": own}
    options: dict[str, Any] = {"imagej": True, "metadata": metadata}
    unit = None
    if info.pixel_size is not None:
        size, unit = _in_range(info.pixel_size, info.unit)
        options |= _resolution(size)
        metadata["unit"] = ascii_unit(unit or "pixel")
    if len(letters) == len(output.whole_shape):
        for letter, axis in zip(letters, output.axes, strict=False):
            metadata |= _imagej_step(letter, axis, unit)
    return options


def _imagej_step(letter: str, axis: Axis, unit: str | None) -> dict[str, float]:
    """From frame to frame, in seconds or in the image's unit; nothing where it is in neither."""
    if axis.scale <= 0:
        return {}
    if letter == "T":
        factor = seconds(axis.unit)
        return {} if factor is None else {"finterval": axis.scale * factor}
    nm = nanometres(axis.unit), nanometres(unit)
    if letter != "Z" or nm[0] is None or nm[1] is None:
        return {}
    step = {"spacing": axis.scale * nm[0] / nm[1]}
    return step | {"zorigin": -axis.offset / axis.scale} if axis.offset else step


def _as_plain(info: FrameInfo, own: str) -> dict[str, Any]:
    """How tifffile writes a TIFF that is nobody's."""
    options: dict[str, Any] = {"description": own, "metadata": None, "photometric": "minisblack"}
    return options | pixels_per_centimetre(info)


def pixels_per_centimetre(info: FrameInfo) -> dict[str, Any]:
    """How tifffile is told the pixel size, where it is a length and TIFF can hold it."""
    nm = nanometres(info.unit)
    if info.pixel_size is None or nm is None:
        return {}
    height, width = info.pixel_size
    told = _resolution((height * nm * 1e-7, width * nm * 1e-7))
    return told and {**told, "resolutionunit": CENTIMETRE}


def _resolution(size: tuple[float, float]) -> dict[str, Any]:
    """Of pixels (height, width), where TIFF's ratios of 32-bit integers reach so far."""
    if not _FINEST < min(size) <= max(size) < 1 / _FINEST:
        return {}
    return {"resolution": (1 / size[1], 1 / size[0])}


def _dm_tags(output: Output) -> list[tuple[int, str, int, Any, bool]]:
    info = output.info
    tags: list[tuple[int, str, int, Any, bool]] = []

    def texts(codes: tuple[int, ...], value: str) -> None:
        tags.extend((code, "s", 0, value, True) for code in codes)

    if info.pixel_size is not None:
        unit = ascii_unit(info.unit)
        texts(DM_UNIT[:2], unit)
        for codes, (of_y, of_x) in ((DM_ORIGIN, info.origin), (DM_SCALE, info.pixel_size)):
            tags += [(codes[0], "d", 1, of_x, True), (codes[1], "d", 1, of_y, True)]
    if output.axes:
        axis = output.axes[-1]
        texts((DM_UNIT[2],), ascii_unit(axis.unit))
        tags += [
            (DM_ORIGIN[2], "d", 1, axis.offset, True),
            (DM_SCALE[2], "d", 1, axis.scale, True),
        ]
    if info.intensity is not None:
        texts((DM_COUNT_UNIT,), ascii_unit(info.intensity.unit))
        tags += [
            (DM_COUNT_OFFSET, "d", 1, info.intensity.offset, True),
            (DM_COUNT_SCALE, "d", 1, info.intensity.scale, True),
        ]
    return tags


def _in_range(
    size: tuple[float, float], unit: str | None
) -> tuple[tuple[float, float], str | None]:
    """In nanometres where TIFF's ratios of 32-bit integers would lose digits (metres, say)."""
    nm = nanometres(unit)
    if nm is None or 1e-4 < min(size) <= max(size) < 1e4:
        return size, unit
    return (size[0] * nm, size[1] * nm), "nm"
