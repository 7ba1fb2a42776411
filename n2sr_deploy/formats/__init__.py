"""Reading and writing frames.

A format is one file of this package that defines a `Format`; adding one is adding that file and
its name below. Files are recognised by content first, then by extension.
"""

from __future__ import annotations

import itertools
import logging
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy import files
from n2sr_deploy.errors import FileFormatError, FrameError, InputFileError, N2SRError, OutputError
from n2sr_deploy.formats import dm, em, emd, hdf5, hspy, mib, mrc, npy, record, ser, tiff
from n2sr_deploy.formats.base import (
    Axis,
    FrameFile,
    Output,
    damaged,
    misnamed,
    n_places,
)
from n2sr_deploy.frame import Frame
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from n2sr_deploy.formats.base import (
        ByFrame,
        Format,
    )
    from n2sr_deploy.sampling import AnyArray

_log = logging.getLogger("n2sr")

FORMATS: tuple[Format, ...] = (
    tiff.FORMAT,
    mrc.FORMAT,
    dm.FORMAT,
    ser.FORMAT,
    emd.FORMAT,
    hspy.FORMAT,
    hdf5.FORMAT,
    mib.FORMAT,
    npy.FORMAT,
    em.FORMAT,
)


def open_frames(path: str | Path, signal: str | None = None) -> FrameFile:
    """Open a file to read its frames one at a time.

    Parameters
    ----------
    path
        A file in one of `FORMATS`.
    signal
        Which of several signals in the file; in HDF5, the path of a dataset.

    Raises
    ------
    InputFileError
        When there is no readable file.
    FileFormatError
        When it is no image n2sr reads, is damaged, or has no such signal.
    FrameError
        When what it holds are no images.
    MissingExtraError
        When the library that reads it is not installed.
    """
    path = files.path_of(path, InputFileError)
    files.check_input(path, stores=True)
    if path.is_file() and not path.stat().st_size:
        raise FileFormatError(
            f"{path} is empty (0 bytes): it was never written, or is being written"
        )
    found = _of_file(path)
    if found is None:
        mib.refuse_hdr(path)
        raise FileFormatError(f"{path} is not an image n2sr reads; it reads {names()}")
    try:
        return found.open(path, signal)
    except Exception as error:  # libraries raise whatever on damaged files
        if not isinstance(error, (N2SRError, MemoryError)) and not _is_by_content(found, path):
            raise misnamed(path, found.name) from error
        raise damaged(path, error) from error


def read_frame(path: str | Path, index: int | None = None, signal: str | None = None) -> Frame:
    """Read one frame of a file.

    Parameters
    ----------
    path
        A file in one of `FORMATS`.
    index
        Which frame of a stack, from 0; needed when there is more than one.
    signal
        Which of several signals in the file.

    Raises
    ------
    InputFileError, FileFormatError, MissingExtraError
        As `open_frames` does, and when there is no such frame.
    FrameError
        When what it holds is not one real-valued, finite frame.
    """
    with open_frames(path, signal) as opened:
        return opened.read(index)


def is_frame_file(path: Path, *, is_named: bool = True) -> bool:
    """Tell whether the file's content or extension is that of a format n2sr reads.

    Where nobody named the file, an extension that many other programs use is not enough.
    """
    found = _of_file(path)
    return found is not None and (is_named or path.suffix.lower() not in found.ambiguous)


def is_written(path: Path) -> bool:
    """Tell whether the extension is that of a format n2sr writes."""
    return _writing(path) is not None


def check_writable(path: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise what `write_frame` would raise about the path itself, before there is a frame.

    Raises
    ------
    OutputError
        When the extension is of no format n2sr writes, or the path cannot become a new file or
        is one of the inputs.
    MissingExtraError
        When the library that writes it is not installed.
    """
    _of_output(path)
    files.check_output(path, overwrite=overwrite, inputs=inputs)


def write_frame(
    path: str | Path, frame: Frame | AnyArray, *, overwrite: bool = False, tells: bool = True
) -> None:
    """Write a frame and all that is known of it, in the format the extension names.

    The file appears whole or not at all. `tells`: whether to warn of what the format cannot keep.

    Raises
    ------
    OutputError
        When the extension is of no format n2sr writes, the file exists and may not be replaced,
        or the system refuses the writing.
    MissingExtraError
        When the library that writes it is not installed.
    """
    write_frames(path, [Frame.of(frame)], overwrite=overwrite, tells=tells)


def write_frames(
    path: str | Path,
    frames: Iterable[Frame | AnyArray],
    axes: tuple[Axis, ...] = (),
    *,
    dtype: np.dtype[Any] | None = None,
    acquisitions: Iterable[Mapping[str, float | str]] | None = None,
    overwrite: bool = False,
    tells: bool = True,
) -> None:
    """Write frames into one file, as they come; no more than one is held in memory.

    Parameters
    ----------
    path
        The new file; its extension names the format.
    frames
        As many as `axes` have places, or arrays (H, W), all of one shape and type. What is known
        of the first is told of all, beside their acquisitions.
    axes
        Along which they lie, the slowest first; none for a single image.
    dtype
        The type that their pixels get in the file; None: the first frame's, or where the format has
        no such pixels one that it has.
    acquisitions
        Of each frame; None: the frames' own where they are a list or an opened file, else the
        first's, because what comes later is not known when a file begins.
    overwrite
        Whether a file that is there may be replaced.
    tells
        Whether to warn of what the format cannot keep.

    Raises
    ------
    OutputError
        As `write_frame` does, when the format has no pixels of `dtype`, and when there are more or
        fewer frames than the axes have places.
    FrameError
        When a frame has another shape than the first, or an array is no frame.
    MissingExtraError
        When the library that writes it is not installed.
    """
    path = files.path_of(path, OutputError)
    written_by = _of_output(path)
    if written_by.write is None:
        raise AssertionError(written_by)
    if dtype is not None:
        check_type(path, dtype)
    if acquisitions is None:
        acquisitions = _acquisitions(frames)
    coming = map(Frame.of, frames)
    with files.replacing(path, overwrite=overwrite) as temporary:
        first = next(coming, None)
        if first is None:
            raise OutputError(f"{path} cannot be written: there is no frame")
        if dtype is None:
            dtype = _held(first.pixels.dtype, written_by.types)
            if tells and first.pixels.dtype.kind in "iu" and dtype.kind == "f":
                _log.warning(
                    "%s has no %s pixels, so %s has %s: counts above 2^24 lose their last digits",
                    written_by.name,
                    first.pixels.dtype,
                    path,
                    dtype,
                )
        output = Output(
            info=first,
            axes=axes,
            shape=first.shape,
            dtype=dtype,
            pixels=_pixels(path, first, coming, dtype, n_places(axes)),
            by_frame=_by_frame(acquisitions, axes),
            tells=tells,
        )
        try:
            written_by.write(temporary, output)
        except (ValueError, struct.error) as error:  # the format cannot hold it
            if isinstance(error, N2SRError):  # of a frame that was still to be read or denoised
                raise
            raise OutputError(
                f"{path} cannot hold this frame as {written_by.name}: {error}"
            ) from error


def _acquisitions(frames: Iterable[Frame | AnyArray]) -> Iterable[Mapping[str, float | str]]:
    """Of each frame, where they need not be computed for it."""
    if isinstance(frames, FrameFile):
        return frames.acquisitions()
    known = frames if isinstance(frames, (list, tuple)) else []
    return [frame.acquisition if isinstance(frame, Frame) else {} for frame in known]


def _by_frame(acquisitions: Iterable[Mapping[str, float | str]], axes: tuple[Axis, ...]) -> ByFrame:
    """What differs from frame to frame, where there is one for each place of the axes."""
    n_frames = n_places(axes)
    found = record.differing(acquisitions) if n_frames > 1 else {}
    return {name: values for name, values in found.items() if len(values) == n_frames}


def _pixels(
    path: Path,
    first: Frame,
    others: Iterator[Frame],
    dtype: np.dtype[Any],
    n_frames: int,
) -> Iterator[AnyArray]:
    """Of exactly so many frames."""
    n_written = 0
    for frame in itertools.chain([first], others):
        if n_written == n_frames:
            raise OutputError(
                f"{path} is for {counted(n_frames, 'frame')}, but more came; give axes that have a "
                "place for each"
            )
        if frame.shape != first.shape:
            raise FrameError(
                f"frame {n_written} is {frame.shape[0]} x {frame.shape[1]} pixels, but the first "
                f"is {first.shape[0]} x {first.shape[1]}; one file holds frames of one size"
            )
        yield frame.pixels.astype(dtype, copy=False)
        n_written += 1
    if n_written < n_frames:
        raise OutputError(f"{path} is for {counted(n_frames, 'frame')}, but only {n_written} came")


def check_type(path: Path, dtype: np.dtype[Any]) -> None:
    """Raise OutputError unless the format that the extension names has pixels of this type."""
    written_by = _of_output(path)
    if written_by.types and dtype.name not in written_by.types:
        raise OutputError(
            f"{path} cannot hold {dtype.name} pixels: {written_by.name} has "
            f"{', '.join(written_by.types)}. Write another format, or float32 (leave out --dtype)"
        )


def _held(dtype: np.dtype[Any], types: tuple[str, ...]) -> np.dtype[Any]:
    """The first of the types a format has that holds every value; else float32."""
    if not types or dtype.name in types:
        return dtype
    return np.dtype(next((held for held in types if np.can_cast(dtype, held)), np.float32))


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(512)


def _is_by_content(found: Format, path: Path) -> bool:
    if path.is_dir() or found is em.FORMAT:  # of whose files nothing is known
        return True
    return found.recognises(path, _head(path))


def _of_file(path: Path) -> Format | None:
    head = _head(path)
    for candidate in FORMATS:
        if candidate.recognises(path, head):
            return candidate
    return next((known for known in FORMATS if path.suffix.lower() in known.extensions), None)


def _writing(path: Path) -> Format | None:
    """The format that the extension names, if n2sr writes it."""
    written = (known for known in FORMATS if known.write is not None)
    return next((known for known in written if path.suffix.lower() in known.extensions), None)


def _of_output(path: Path) -> Format:
    known = _writing(path)
    if known is not None:
        return known
    if not path.suffix:
        raise OutputError(f"{path} has no extension to tell its format: {names(written=True)}")
    raise OutputError(
        f"{path} has the extension {path.suffix!r}, which n2sr does not write; "
        f"it writes {names(written=True)}"
    )


def extensions(*, written: bool = False) -> tuple[str, ...]:
    """Of the formats n2sr reads, or writes, with the dot; a format's usual one first."""
    return tuple(
        extension
        for known in FORMATS
        if not written or known.write is not None
        for extension in known.extensions
    )


def names(*, written: bool = False) -> str:
    """The formats n2sr reads, or writes, with their extensions."""
    return ", ".join(
        f"{known.name} ({' '.join(known.extensions)})"
        for known in FORMATS
        if not written or known.write is not None
    )
