"""What a file format gives n2sr, and what formats share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from n2sr_deploy.errors import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from n2sr_deploy.frame import Frame

# One of each in nanometres, by the spellings found in files.
_NANOMETRES = {
    "pm": 1e-3,
    "å": 0.1,
    "angstrom": 0.1,
    "a": 0.1,
    "nm": 1.0,
    "µm": 1e3,
    "μm": 1e3,
    "um": 1e3,
    "micron": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format."""

    name: str
    """As in a sentence: ``TIFF``."""
    extensions: tuple[str, ...]
    """Lower case, with the dot; the first is the usual one."""
    recognises: Callable[[bytes], bool]
    """Tells from the file's first 512 bytes whether it is of this format."""
    read: Callable[[Path, int | None], Frame]
    """Reads frame `index` (None: the only one) of a file that exists."""
    write: Callable[[Path, Frame], None]
    """Writes a frame to a path that may be overwritten."""


def nanometres(unit: str | None) -> float | None:
    """How many nanometres one `unit` is; None when it is no length n2sr knows."""
    return _NANOMETRES.get(unit.strip().lower()) if unit else None


def choose(path: Path, n_frames: int, index: int | None) -> int:
    """Check `index` against the number of frames; None means the only one.

    Raises
    ------
    FileFormatError
        When there are several frames and none was chosen, or no such frame.
    """
    if n_frames == 0:
        raise FileFormatError(f"{path} holds no frame")
    if index is None and n_frames > 1:
        raise FileFormatError(
            f"{path} holds {n_frames} frames, but n2sr takes one. "
            f"Choose it with --frame 0 to --frame {n_frames - 1}"
        )
    if index is not None and not 0 <= index < n_frames:
        raise FileFormatError(f"{path} has no frame {index}; it holds {n_frames}, counted from 0")
    return index or 0
