"""TIFF: plain, ImageJ and OME, by tifffile."""

from __future__ import annotations

import json
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from n2sr_deploy.errors import FileFormatError, FrameError
from n2sr_deploy.formats.base import Format, choose, nanometres
from n2sr_deploy.frame import Frame

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.sampling import AnyArray

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CENTIMETRE = 3  # TIFF's ResolutionUnit
_DAMAGE = (
    tifffile.TiffFileError,
    ValueError,
    OSError,
    IndexError,
    KeyError,
    ElementTree.ParseError,
    struct.error,
    zlib.error,
)
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")

PixelSize = tuple[tuple[float, float] | None, str | None]


def _read(path: Path, index: int | None) -> Frame:
    try:
        with tifffile.TiffFile(path) as file:
            pixels, chosen, n_frames = _pixels(file, path, index)
            size, unit = _pixel_size(file)
            metadata = dict(file.imagej_metadata or {})
    except _DAMAGE as error:
        if isinstance(error, (FileFormatError, FrameError)):
            raise
        if "imagecodecs" in str(error):
            raise FileFormatError(
                f"{path} is compressed in a way that needs another package; "
                "pip install imagecodecs, or save it uncompressed"
            ) from error
        raise FileFormatError(f"{path} is truncated or no TIFF file: {error}") from error
    history = _history(str(metadata.get("Info", "")))
    if history:
        del metadata["Info"]  # it was n2sr's own
    return Frame(
        pixels=pixels,
        pixel_size=size,
        unit=unit,
        index=chosen,
        n_frames=n_frames,
        metadata=metadata,
        history=history,
    )


def _pixels(file: tifffile.TiffFile, path: Path, index: int | None) -> tuple[AnyArray, int, int]:
    """One frame of the first series, without reading the others; its index; how many there are."""
    if not file.series:
        raise FileFormatError(f"{path} holds no image")
    series = file.series[0]
    if "S" in series.axes:
        raise FrameError(
            f"{path} is a colour image (shape {series.shape}); "
            "convert it to one grey channel (H, W) first"
        )
    if len(series.shape) < 2 or series.axes[-2:] != "YX":
        raise FrameError(f"{path} has axes {series.axes}, but n2sr takes rows and columns (YX)")
    n_frames = int(np.prod(series.shape[:-2]))
    chosen = choose(path, n_frames, index)
    if series.dataoffset is not None:  # one block, as ImageJ writes stacks
        dtype = series.dtype.newbyteorder(file.byteorder)
        shape = n_frames, *series.shape[-2:]
        pixels = np.memmap(path, dtype, mode="r", offset=series.dataoffset, shape=shape)[chosen]
    elif len(series.pages) == n_frames:
        page = series.pages[chosen]
        if page is None:
            raise FileFormatError(f"{path} has no pixels for frame {chosen}")
        pixels = page.asarray()
    else:
        pixels = series.asarray().reshape(n_frames, *series.shape[-2:])[chosen]
    return np.asarray(pixels), chosen, n_frames


def _pixel_size(file: tifffile.TiffFile) -> PixelSize:
    """Height and width of a pixel and their unit, from OME, ImageJ or the plain tags."""
    if file.ome_metadata:
        return _ome_pixel_size(file.ome_metadata)
    tags = file.pages.first.tags
    per_unit = [_ratio(tags.get(name)) for name in ("YResolution", "XResolution")]
    if per_unit[0] is None or per_unit[1] is None:
        return None, None
    size = 1 / per_unit[0], 1 / per_unit[1]
    if file.imagej_metadata:
        unit = _unescaped(str(file.imagej_metadata.get("unit", "pixel")))
        return (None, None) if unit in ("pixel", "pixels", "inch") else (size, unit)
    resolution_unit = tags.get("ResolutionUnit")
    if resolution_unit is not None and resolution_unit.value == _CENTIMETRE:
        return size, "cm"
    return None, None  # dots per inch say nothing about the specimen


def _ratio(tag: Any) -> float | None:
    numerator, denominator = tag.value if tag is not None else (0, 0)
    return numerator / denominator if numerator and denominator else None


def _ome_pixel_size(xml: str) -> PixelSize:
    for element in ElementTree.fromstring(xml).iter():
        if element.tag.endswith("}Pixels") and "PhysicalSizeX" in element.attrib:
            width = float(element.attrib["PhysicalSizeX"])
            height = float(element.attrib.get("PhysicalSizeY", width))
            unit = element.attrib.get("PhysicalSizeXUnit", "µm")
            nm = nanometres(unit), nanometres(element.attrib.get("PhysicalSizeYUnit", unit))
            if nm[0] is not None and nm[1] is not None:
                height *= nm[1] / nm[0]
            return (height, width), unit
    return None, None


def _unescaped(unit: str) -> str:
    """ImageJ writes µ and Å as escapes."""
    return unit.replace("\\u00B5", "µ").replace("\\u00C5", "Å")


def _escaped(unit: str) -> str:
    return unit.replace("µ", "\\u00B5").replace("μ", "\\u00B5").replace("Å", "\\u00C5")


def _history(info: str) -> tuple[str, ...]:
    try:
        record = json.loads(info)
    except ValueError:
        return ()
    lines = record.get("n2sr", []) if isinstance(record, dict) else []
    return tuple(str(line) for line in lines)


def _write(path: Path, frame: Frame) -> None:
    pixels = frame.pixels
    if pixels.dtype not in _IMAGEJ_TYPES:
        pixels = pixels.astype(np.float32)
    metadata: dict[str, Any] = {"axes": "YX"}
    if frame.history:
        metadata["Info"] = json.dumps({"n2sr": frame.history})
    resolution = None
    if frame.pixel_size is not None:
        (height, width), unit = _in_range(frame.pixel_size, frame.unit or "pixel")
        resolution = 1 / width, 1 / height
        metadata["unit"] = _escaped(unit)
    tifffile.imwrite(path, pixels, imagej=True, resolution=resolution, metadata=metadata)


def _in_range(size: tuple[float, float], unit: str) -> tuple[tuple[float, float], str]:
    """In nanometres where TIFF's ratios of 32-bit integers would lose digits (metres, say)."""
    nm = nanometres(unit)
    if nm is None or 1e-4 < min(size) <= max(size) < 1e4:
        return size, unit
    return (size[0] * nm, size[1] * nm), "nm"


FORMAT = Format(
    name="TIFF",
    extensions=(".tif", ".tiff"),
    recognises=lambda head: head[:4] in _MAGIC,
    read=_read,
    write=_write,
)
