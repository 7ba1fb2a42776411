"""NumPy .npy: bare pixels, (H, W) or a stack (N, H, W)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.errors import FileFormatError
from n2sr_deploy.formats.base import Format, choose
from n2sr_deploy.frame import Frame

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("n2sr")


def _read(path: Path, index: int | None) -> Frame:
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise FileFormatError(f"{path} is no whole NumPy array of numbers: {error}") from error
    if not isinstance(pixels, np.ndarray):
        pixels.close()
        raise FileFormatError(f"{path} is an .npz archive; save the one array as .npy")
    is_stack = pixels.ndim == 3 and pixels.shape[-1] not in (3, 4)
    n_frames = len(pixels) if is_stack else 1
    chosen = choose(path, n_frames, index)
    frame = pixels[chosen] if is_stack else pixels
    return Frame(pixels=np.array(frame), index=chosen, n_frames=n_frames)


def _write(path: Path, frame: Frame) -> None:
    if frame.pixel_size is not None:
        _log.warning(".npy keeps no pixel size; write .tif or .mrc to keep it")
    with path.open("wb") as file:
        np.save(file, frame.pixels, allow_pickle=False)


FORMAT = Format(
    name="NumPy",
    extensions=(".npy",),
    recognises=lambda head: head.startswith(b"\x93NUMPY"),
    read=_read,
    write=_write,
)
