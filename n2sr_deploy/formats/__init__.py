"""Reading and writing frames.

A format is one file of this package that defines a `Format`; adding one is adding that file and
its name below. Files are recognised by content first, then by extension.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from n2sr_deploy import files
from n2sr_deploy.errors import FileFormatError, OutputError
from n2sr_deploy.formats import mrc, npy, tiff

if TYPE_CHECKING:
    from collections.abc import Iterable

    from n2sr_deploy.formats.base import Format
    from n2sr_deploy.frame import Frame

FORMATS: tuple[Format, ...] = (tiff.FORMAT, mrc.FORMAT, npy.FORMAT)


def read_frame(path: str | Path, index: int | None = None) -> Frame:
    """Read one frame of a file.

    Parameters
    ----------
    path
        A file in one of `FORMATS`.
    index
        Which frame of a stack, from 0; needed when there is more than one.

    Raises
    ------
    InputFileError
        When there is no readable file.
    FileFormatError
        When it is no image n2sr reads, is damaged, or has no such frame.
    FrameError
        When what it holds is not one real-valued, finite frame.
    """
    path = Path(path)
    files.check_input(path)
    found = _of_file(path)
    if found is None:
        raise FileFormatError(f"{path} is not an image n2sr reads; it reads {_names()}")
    return found.read(path, index)


def is_frame_file(path: Path) -> bool:
    """Tell whether the file's content or extension is that of a format n2sr reads."""
    return _of_file(path) is not None


def check_writable(path: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise what `write_frame` would raise about the path itself, before there is a frame.

    Raises
    ------
    OutputError
        When the extension is of no format n2sr writes, or the path cannot become a new file or
        is one of the inputs.
    """
    _of_output(path)
    files.check_output(path, overwrite=overwrite, inputs=inputs)


def write_frame(path: str | Path, frame: Frame, *, overwrite: bool = False) -> None:
    """Write a frame, its pixel size, unit and history, in the format the extension names.

    The file appears whole or not at all.

    Raises
    ------
    OutputError
        When the extension is of no format n2sr writes, the file exists and may not be replaced,
        or the system refuses the writing.
    """
    path = Path(path)
    written_by = _of_output(path)
    with files.replacing(path, overwrite=overwrite) as temporary:
        try:
            written_by.write(temporary, frame)
        except (ValueError, struct.error) as error:  # the format cannot hold it
            raise OutputError(
                f"{path} cannot hold this frame as {written_by.name}: {error}"
            ) from error


def _of_file(path: Path) -> Format | None:
    with path.open("rb") as file:
        head = file.read(512)
    for candidate in FORMATS:
        if candidate.recognises(head):
            return candidate
    return next((known for known in FORMATS if path.suffix.lower() in known.extensions), None)


def _of_output(path: Path) -> Format:
    for known in FORMATS:
        if path.suffix.lower() in known.extensions:
            return known
    raise OutputError(
        f"{path} has the extension {path.suffix!r}, which n2sr does not write; it writes {_names()}"
    )


def _names() -> str:
    return ", ".join(f"{known.name} ({' '.join(known.extensions)})" for known in FORMATS)
