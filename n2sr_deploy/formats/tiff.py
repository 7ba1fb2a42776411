"""TIFF: plain, ImageJ, OME, and with tags of microscopes' makers, read by tifffile."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from n2sr_deploy.errors import FileFormatError, FrameError
from n2sr_deploy.formats import record
from n2sr_deploy.formats.base import (
    Format,
    FrameFile,
    choose_signal,
    distinct,
    n_places,
    only_signal,
)
from n2sr_deploy.formats.metadata import acquired, plain_values
from n2sr_deploy.formats.tiff_calibration import (
    intensity,
    leading_axes,
    origin,
    pixel_size,
    tag,
)
from n2sr_deploy.formats.tiff_writing import write
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from n2sr_deploy.formats.base import ByFrame
    from n2sr_deploy.formats.metadata import Table
    from n2sr_deploy.sampling import AnyArray

_log = logging.getLogger("n2sr")
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# What tifffile reads of other makers' tags, by the name of its attribute.
_MAKERS = ("imagej", "fei", "sem", "sis", "tvips", "fluoview", "nih", "mdgel", "andor", "ome")
_FEI: Table = {
    "beam_energy_kev": ("fei/Beam/HV", 1e-3),
    "microscope": "fei/System/SystemType",
    "detector": "fei/Detectors/Name",
    "dwell_time_s": ("fei/Scan/Dwelltime", 1.0),
    "stage_x_mm": ("fei/Stage/StageX", 1e3),
    "stage_y_mm": ("fei/Stage/StageY", 1e3),
    "stage_z_mm": ("fei/Stage/StageZ", 1e3),
    "stage_tilt_alpha_deg": ("fei/Stage/StageTa", 180 / np.pi),
    "stage_tilt_beta_deg": ("fei/Stage/StageTb", 180 / np.pi),
}


def _open(path: Path, signal: str | None) -> FrameFile:
    with ExitStack() as opened, _cut_off() as cut:
        # OME's headers may name other files, anywhere
        file = opened.enter_context(tifffile.TiffFile(path, _multifile=False))
        frames = _opened(path, file, signal)
        if cut:
            raise FileFormatError(f"{path} is truncated: {cut[0]}")
        opened.pop_all()
    return frames


@contextmanager
def _cut_off() -> Iterator[list[str]]:
    """Pages and descriptions that tifffile misses and only logs, as it comes upon them."""
    cut: list[str] = []

    class Listener(logging.Handler):
        def emit(self, logged: logging.LogRecord) -> None:
            message = logged.getMessage()
            if "invalid page offset" in message or "TiffTag 270 " in message:  # ImageDescription
                cut.append(message)

    listener, logger = Listener(logging.ERROR), logging.getLogger("tifffile")
    logger.addHandler(listener)
    try:
        yield cut
    finally:
        logger.removeHandler(listener)


def _opened(path: Path, file: tifffile.TiffFile, signal: str | None) -> FrameFile:
    images = _images(path, file)
    signals = tuple(images) if len(images) > 1 else ()
    if not signals:
        only_signal(path, signal)
    name = choose_signal(path, tuple(images), signal)
    series = images[name]
    axes, shape = _layout(path, series)
    n_frames = int(np.prod(shape[:-2], dtype=np.int64))
    said = (file.imagej_metadata or {}).get("images", 1)
    if not signals and "S" not in str(series.axes) and said > n_frames:
        raise FileFormatError(
            f"{path} is truncated: it says it holds {said} frames, but not all are there"
        )
    if series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        _log.warning(
            "%s shows high counts dark (WhiteIsZero); they stay as they are, so results look "
            "inverted beside it",
            path,
        )
    info = _info(file, series)
    leading = leading_axes(file, series, axes, shape)
    by_frame: ByFrame = {}
    kept = record.from_json(_own(file, series.keyframe), info)
    if kept is not None:
        info = kept.info
        if n_places(kept.axes) == n_frames:
            leading, by_frame = kept.axes, kept.by_frame
    return FrameFile(
        path,
        shape=shape[-2:],
        dtype=series.dtype,
        pixels=lambda index: _pixels(path, series, index, n_frames),
        axes=leading,
        info=info,
        info_of=_own_of_pages(file, series, info, n_frames),
        by_frame=by_frame,
        signal=name if signals else None,
        signals=signals,
        closing=file.close,
    )


def _images(path: Path, file: tifffile.TiffFile) -> dict[str, tifffile.TiffPageSeries]:
    """The grey images by their names; the first image where all are coloured."""
    if not file.series:
        raise FileFormatError(f"{path} holds no image")
    if any(series.is_multifile for series in file.series):
        raise FileFormatError(f"{path} keeps frames in other files; save them as one file")
    if file.ome_metadata and file.series[0].kind != "ome":
        _log.warning("%s names other files in its header; only its own frames are read", path)
    grey = [
        (f"image {i}" if not series.name else str(series.name), series)
        for i, series in enumerate(file.series)
        if not series.keyframe.is_reduced and _is_grey(series)
    ] or [("image 0", file.series[0])]
    names = distinct([name for name, _ in grey])
    return dict(zip(names, (series for _, series in grey), strict=True))


def _is_grey(series: tifffile.TiffPageSeries) -> bool:
    axes = _axes(series)
    return "S" not in axes and axes.endswith("YX")


def _axes(series: tifffile.TiffPageSeries) -> str:
    """A letter an axis; a stack of three is no colour, which microscopes' images have in 8 bits."""
    axes = str(series.axes)
    if axes.startswith("S") and axes.endswith("YX") and series.dtype != np.uint8:
        return axes.replace("S", "I")
    return axes


def _layout(path: Path, series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Axes and shape of a series of frames (H, W)."""
    axes, shape = _axes(series), tuple(series.shape)
    if "S" in axes:
        raise FrameError(
            f"{path} is a colour image (shape {shape}); convert it to one grey channel (H, W) first"
        )
    if len(shape) < 2 or axes[-2:] != "YX":
        raise FrameError(f"{path} has axes {axes}, but n2sr takes rows and columns (YX)")
    return axes, shape


def _pixels(path: Path, series: tifffile.TiffPageSeries, index: int, n_frames: int) -> AnyArray:
    """One frame of a series, without reading the others."""
    if series.dataoffset is not None:  # one block, as ImageJ writes stacks
        dtype = series.dtype.newbyteorder(series.keyframe.parent.byteorder)
        shape = n_frames, *series.shape[-2:]
        whole = np.memmap(path, dtype, mode="r", offset=series.dataoffset, shape=shape)
        return np.array(whole[index])
    if len(series.pages) == n_frames:
        page = series.pages[index]
        if page is None:
            raise FileFormatError(f"{path} has no pixels for frame {index}")
        return np.asarray(page.asarray())
    return np.asarray(series.asarray().reshape(n_frames, *series.shape[-2:])[index])


def _info(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> FrameInfo:
    page = series.keyframe
    metadata: dict[str, Any] = {}
    for maker in _MAKERS:
        found = getattr(file, f"{maker}_metadata", None)
        if found:
            metadata[maker] = plain_values(found)
    if record.from_json(str(metadata.get("imagej", {}).get("Info", "")), FrameInfo()):
        del metadata["imagej"]  # n2sr's own
    for name in ("Software", "DateTime", "Artist", "ImageDescription"):
        value = tag(page, name)
        if value and not (name == "ImageDescription" and metadata) and not _own(file, page):
            metadata[name] = plain_values(value)
    size, unit = pixel_size(file, series, metadata)
    return FrameInfo(
        pixel_size=size,
        unit=unit,
        origin=origin(file, page, size) if size is not None else (0.0, 0.0),
        intensity=intensity(file, page),
        acquisition=acquired(metadata, _FEI),
        metadata=metadata,
    )


def _own(file: tifffile.TiffFile, page: Any) -> str:
    """Where `record` was put: ImageJ's Info, or the description of a plain file."""
    if file.imagej_metadata:
        return str(file.imagej_metadata.get("Info", ""))
    description = str(tag(page, "ImageDescription") or "")
    return description if description.startswith('{"n2sr"') else ""


def _own_of_pages(
    file: tifffile.TiffFile, series: tifffile.TiffPageSeries, info: FrameInfo, n_frames: int
) -> Callable[[int], FrameInfo] | None:
    """Reads what is told of a frame alone, where each page has a record: a stream's stack."""
    first = series.keyframe.index

    def info_of(index: int) -> FrameInfo:
        page = file.pages.get(first + index, aspage=True)
        kept = record.from_json(_own(file, page), info)
        return info if kept is None else kept.info

    if len(series.pages) != n_frames or n_frames == 1 or file.imagej_metadata:
        return None
    return info_of if _own(file, file.pages.get(first + 1, aspage=True)) else None


FORMAT = Format(
    name="TIFF",
    extensions=(".tif", ".tiff"),
    recognises=lambda _, head: head[:4] in _MAGIC,
    open=_open,
    write=write,
    types=(
        *("uint8", "uint16", "float32", "int8", "int16", "uint32", "int32"),
        *("float64", "uint64", "int64"),
    ),
)
