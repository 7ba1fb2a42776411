"""NumPy .npy: bare pixels, (H, W) or stacks (..., H, W)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.errors import FileFormatError
from n2sr_deploy.formats.base import (
    Axis,
    Format,
    FrameFile,
    Output,
    only_signal,
    whole_image,
)

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.sampling import AnyArray

_log = logging.getLogger("n2sr")


def _open(path: Path, signal: str | None) -> FrameFile:
    only_signal(path, signal)
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise FileFormatError(
            f"{path} is no whole NumPy array of numbers: it is truncated, holds Python objects or "
            "is another kind of file; save it again with numpy.save"
        ) from error
    if not isinstance(pixels, np.ndarray):
        pixels.close()
        raise FileFormatError(f"{path} is an .npz archive; save the one array as .npy")
    if pixels.ndim > 2 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]  # of one grey channel, as machine learning lays images
    whole_image(path, pixels.shape)
    leading = pixels.shape[:-2]
    if pixels.shape[-1] in (3, 4) and pixels.ndim == 3:
        leading = ()  # refused as a colour image

    def read(index: int) -> AnyArray:
        return np.array(pixels[np.unravel_index(index, leading)])

    return FrameFile(
        path,
        shape=pixels.shape[-2:],
        dtype=pixels.dtype,
        pixels=read,
        axes=tuple(Axis(name=f"axis {i}", size=size) for i, size in enumerate(leading)),
    )


def _write(path: Path, output: Output) -> None:
    if output.info.pixel_size is not None and output.tells:
        _log.warning(".npy keeps no pixel size; write .tif or .mrc to keep it")
    header = {
        "descr": np.lib.format.dtype_to_descr(output.dtype),
        "fortran_order": False,
        "shape": output.whole_shape,
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in output.pixels:
            file.write(np.ascontiguousarray(pixels, output.dtype).data)


FORMAT = Format(
    name="NumPy",
    extensions=(".npy",),
    recognises=lambda _, head: head.startswith(b"\x93NUMPY"),
    open=_open,
    write=_write,
)
