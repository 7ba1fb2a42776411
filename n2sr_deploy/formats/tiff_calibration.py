"""What TIFF's tags tell of pixel size, axes and counts: ImageJ's, OME's and microscopes'."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.formats.base import Axis
from n2sr_deploy.formats.metadata import sought
from n2sr_deploy.formats.tiff_writing import (
    CENTIMETRE,
    DM_COUNT_OFFSET,
    DM_COUNT_SCALE,
    DM_COUNT_UNIT,
    DM_ORIGIN,
    DM_SCALE,
    DM_UNIT,
)
from n2sr_deploy.formats.units import is_no_unit, one_unit
from n2sr_deploy.frame import Intensity

if TYPE_CHECKING:
    from collections.abc import Mapping

    import tifffile

    PixelSize = tuple[tuple[float, float] | None, str | None]

_AXIS_NAMES = {"T": "time", "Z": "z", "C": "channel", "Q": "frame", "I": "frame"}
_PRINTED = 2e-3  # cm: dots of 1270 an inch, as programs write that know no pixel size
# Of microscopes' own tags: where height and width of a pixel are told, and the factor to nm.
_MAKERS = (
    ("fei/Scan/PixelHeight", "fei/Scan/PixelWidth", 1e9),
    ("sis/pixelsizey", "sis/pixelsizex", 1e9),
    ("tvips/PixelSizeY", "tvips/PixelSizeX", 1.0),
)


def pixel_size(
    file: tifffile.TiffFile, series: tifffile.TiffPageSeries, metadata: dict[str, Any]
) -> PixelSize:
    """Height and width of a pixel and their unit, from the tags that tell it best."""
    page = series.keyframe
    if file.ome_metadata:
        return _ome_pixel_size(_ome_pixels(file, series))
    width, height = (tag(page, code) for code in DM_SCALE[:2])
    if width is not None and height is not None:
        units = [str(tag(page, code) or "") or None for code in DM_UNIT[:2]]
        return one_unit((float(height), units[1]), (float(width), units[0]))
    size, unit = _makers_pixel_size(metadata)
    return (size, unit) if size is not None else _resolution(file, page)


def _makers_pixel_size(metadata: dict[str, Any]) -> PixelSize:
    """In nanometres, of FEI's, Olympus's and TVIPS's tags; as Zeiss's tells it."""
    for *where, nm in _MAKERS:
        height, width = (_number(sought(metadata, path)) for path in where)
        if min(height, width) > 0:
            return (height * nm, width * nm), "nm"
    told = sought(metadata, "sem/ap_image_pixel_size")  # a name, a number and its unit
    if isinstance(told, list) and len(told) == 3 and _number(told[1]) > 0:
        return (_number(told[1]), _number(told[1])), str(told[2])
    return None, None


def _resolution(file: tifffile.TiffFile, page: Any) -> PixelSize:
    """As ImageJ and plain files tell it."""
    per_unit = [_ratio(page.tags.get(name)) for name in ("YResolution", "XResolution")]
    if per_unit[0] is None or per_unit[1] is None:
        return None, None
    size = 1 / per_unit[0], 1 / per_unit[1]
    if file.imagej_metadata:
        unit = _unescaped(str(file.imagej_metadata.get("unit", "pixel")))
        return (None, None) if is_no_unit(unit) or unit == "inch" else (size, unit)
    if tag(page, "ResolutionUnit") == CENTIMETRE and max(size) < _PRINTED:
        return size, "cm"
    return None, None  # dots per inch say nothing about the specimen


def _ratio(tag: Any) -> float | None:
    numerator, denominator = tag.value if tag is not None else (0, 0)
    return numerator / denominator if numerator and denominator else None


def _ome_pixels(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Mapping[str, str]:
    """What OME tells of the image of a series; of the first where there are fewer."""
    if not file.ome_metadata:
        return {}
    images = [
        element.attrib
        for element in ElementTree.fromstring(file.ome_metadata).iter()
        if element.tag.endswith("}Pixels")
    ]
    index = file.series.index(series)
    return images[index if index < len(images) else 0] if images else {}


def _ome_pixel_size(told: Mapping[str, str]) -> PixelSize:
    unit = told.get("PhysicalSizeXUnit", "µm")
    if "PhysicalSizeX" not in told or is_no_unit(unit):
        return None, None
    width = float(told["PhysicalSizeX"])
    height = float(told.get("PhysicalSizeY", width))
    return one_unit((height, told.get("PhysicalSizeYUnit", unit)), (width, unit))


def _ome_axis(told: Mapping[str, str], letter: str) -> dict[str, Any]:
    """Scale and unit of time or depth, where OME tells them."""
    key, unit = {"T": ("TimeIncrement", "s"), "Z": ("PhysicalSizeZ", "µm")}.get(letter, ("", ""))
    scale = _number(told.get(key))
    unit = told.get(f"{key}Unit", unit)
    return {"scale": scale, "unit": unit} if scale > 0 and not is_no_unit(unit) else {}


def leading_axes(
    file: tifffile.TiffFile, series: tifffile.TiffPageSeries, axes: str, shape: tuple[int, ...]
) -> tuple[Axis, ...]:
    """The axes of a stack, calibrated as far as ImageJ, OME or DigitalMicrograph tells."""
    imagej, ome = file.imagej_metadata or {}, _ome_pixels(file, series)
    page = series.keyframe
    found = tuple(
        Axis(
            name=_AXIS_NAMES.get(letter, letter.lower()),
            size=int(size),
            **(_ome_axis(ome, letter) or _imagej_axis(imagej, letter)),
        )
        for letter, size in zip(axes[:-2], shape[:-2], strict=True)
    )
    scale = tag(page, DM_SCALE[2])
    if len(found) != 1 or scale is None:
        return found
    offset, unit = float(tag(page, DM_ORIGIN[2]) or 0), str(tag(page, DM_UNIT[2]) or "") or None
    return (replace(found[0], scale=float(scale), offset=offset, unit=unit),)


def _imagej_axis(imagej: Mapping[str, Any], letter: str) -> dict[str, Any]:
    """Scale, offset and unit of time or depth, where ImageJ tells them."""
    key = {"T": "finterval", "Z": "spacing"}.get(letter, "")
    scale = _number(imagej.get(key))
    if scale <= 0:
        return {}
    if letter == "T":
        unit = str(imagej.get("tunit", "s"))
        return {"scale": scale, "unit": "s" if unit == "sec" else unit}
    unit = _unescaped(str(imagej.get("unit", "")))
    offset = -_number(imagej.get("zorigin")) * scale
    return {"scale": scale, "offset": offset + 0.0, "unit": unit or None}


def _number(value: Any) -> float:
    """Of ImageJ's or OME's description; 0 where there is none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return 0.0
    return found if np.isfinite(found) else 0.0


def origin(file: tifffile.TiffFile, page: Any, size: tuple[float, float]) -> tuple[float, float]:
    """As DigitalMicrograph tells it, else as ImageJ does: which pixel lies at 0."""
    x, y = (tag(page, code) for code in DM_ORIGIN[:2])
    if x is not None and y is not None:
        return float(y), float(x)
    imagej = file.imagej_metadata or {}
    top, left = (
        -_number(imagej.get(key)) * side + 0.0
        for key, side in zip(("yorigin", "xorigin"), size, strict=True)
    )
    return top, left


def intensity(file: tifffile.TiffFile, page: Any) -> Intensity | None:
    """As DigitalMicrograph or ImageJ tells it, which keeps signed counts as unsigned ones."""
    scale = tag(page, DM_COUNT_SCALE)
    if scale is not None:
        unit = str(tag(page, DM_COUNT_UNIT) or "") or None
        return Intensity(
            scale=float(scale), offset=float(tag(page, DM_COUNT_OFFSET) or 0), unit=unit
        )
    imagej = file.imagej_metadata or {}
    factor = _number(imagej.get("c1"))
    if imagej.get("cf") != 0 or factor == 0:  # 0: a straight line
        return None
    unit = _unescaped(str(imagej.get("vunit") or "")) or None
    return Intensity(scale=factor, offset=-_number(imagej.get("c0")) / factor + 0.0, unit=unit)


def tag(page: Any, code: int | str) -> Any:
    """A tag's value; None where there is none."""
    found = page.tags.get(code)
    return None if found is None else found.value


def _unescaped(unit: str) -> str:
    """ImageJ writes µ and Å as escapes."""
    return unit.replace("\\u00B5", "µ").replace("\\u00C5", "Å")
