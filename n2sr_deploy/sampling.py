"""The random sub-sampler: which pixels a draw keeps, the draws of a frame, their merging.

`draw` cuts M sub-sampled frames from one noisy frame, `merge` turns the M full-size outputs of
the network into the MMSE estimate (their mean) and their standard deviation. What is drawn is
defined in `n2sr_deploy.reference`; the compiled kernels are used wherever they were built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from n2sr_deploy.errors import FrameError, SettingError
from n2sr_deploy.kernels import kernels, usable_threads
from n2sr_deploy.pattern import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.pattern import SamplingPattern, Shape

AnyArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

PIXEL_TYPES = tuple(
    np.dtype(name) for name in ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
)
SUMMED_EXACTLY = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16"))
MAX_CELLS = 2**16  # along an axis: row and column of a cell share one 32-bit counter word
MAX_SAMPLES = 1024  # far beyond where more draws help
LIVE_SAMPLES = 4  # one draw for each pixel of a cell of 2 x 2
DRAWS_AT_ONCE = 4  # for the network; on a CPU it is no faster with more


def draw(
    frame: AnyArray,
    pattern: SamplingPattern,
    n_samples: int,
    *,
    seed: int = 0,
    frame_index: int = 0,
    first_sample: int = 0,
    mean: float = 0.0,
    scale: float = 1.0,
    window: Window | None = None,
    out: FloatArray | None = None,
    n_threads: int = 0,
) -> FloatArray:
    """Draw sub-sampled frames from one noisy frame.

    Parameters
    ----------
    frame
        (H, W), one of `PIXEL_TYPES`. Never written to.
    pattern
        Which pixels compete to be kept.
    n_samples
        M, the number of draws.
    seed, frame_index
        0 to 2**64 - 1. The same pair draws the same pixels, whatever else differs.
    first_sample
        The number of the first draw; draw m depends on nothing but its own number.
    mean, scale
        The result is (frame - mean) / scale; in counts.
    window
        The cells to draw; all by default. May reach past the frame, which is mirrored there.
    out
        (M, height, width) float32, C-contiguous, to fill instead of a new array.
    n_threads
        0: as many as OpenMP wants.

    Returns
    -------
    (M, height, width) float32; draw m is in orientation (first_sample + m) mod 4. Bit for bit the
    same for any thread count, window or M.

    Raises
    ------
    FrameError
        When the frame is not two-dimensional, of another type, or too large.
    SettingError
        When a number is out of range or `out` does not fit.
    """
    _check_frame(frame)
    if window is None:
        window = Window(0, 0, *pattern.cells((frame.shape[0], frame.shape[1])))
    _check_window(window, pattern, frame)
    seed, frame_index = checked_key(seed, frame_index)
    _check_samples(n_samples, first_sample)
    if not scale > 0:
        raise SettingError(f"scale is {scale}, but must be above 0")
    shape = n_samples, window.height, window.width
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.carray:
        raise SettingError(
            f"out is {out.dtype} {out.shape}, but must be C-contiguous writable float32 {shape}"
        )
    if frame.strides[1] != frame.itemsize:
        frame = np.ascontiguousarray(frame)
    n_threads = usable_threads(n_threads)
    kernels().draw(
        frame, pattern, window, first_sample, mean, scale, seed, frame_index, out, n_threads
    )
    return out


def merge(
    outputs: FloatArray,
    *,
    first_sample: int = 0,
    top: int = 0,
    left: int = 0,
    offset: float = 0.0,
    scale: float = 1.0,
    mean: FloatArray,
    std: FloatArray | None = None,
    n_threads: int = 0,
) -> None:
    """Merge the network's outputs into their mean and standard deviation, in counts.

    Parameters
    ----------
    outputs
        (M, H, W) float32, C-contiguous, output m in orientation (first_sample + m) mod 4.
    first_sample
        The number of the first draw.
    top, left
        Where, in the outputs turned back, the part that is wanted begins.
    offset, scale
        Mean and scale of the standardisation, undone here.
    mean
        (h, w) float32, filled with the MMSE estimate; its rows are contiguous.
    std
        (h, w) float32, filled with the standard deviation of the M outputs (divided by M - 1;
        zero for M = 1), or None.
    n_threads
        0: as many as OpenMP wants.

    Raises
    ------
    SettingError
        When the arrays do not fit each other.
    """
    if outputs.ndim != 3 or outputs.dtype != np.float32 or not outputs.flags.c_contiguous:
        raise SettingError(
            f"outputs is {outputs.dtype} {outputs.shape}, "
            "but must be C-contiguous float32 (M, H, W)"
        )
    _check_samples(len(outputs), first_sample)
    for result in (mean,) if std is None else (mean, std):
        fits = result.ndim == 2 and result.dtype == np.float32 and result.size > 0
        fits = fits and result.shape == mean.shape and result.strides[1] == result.itemsize
        if not (fits and result.flags.writeable):
            raise SettingError(
                "mean and std must be writable float32 (h, w) of one shape, rows contiguous"
            )
    bottom, right = top + mean.shape[0], left + mean.shape[1]
    if top < 0 or left < 0 or bottom > outputs.shape[1] or right > outputs.shape[2]:
        raise SettingError(
            f"rows {top} to {bottom} and columns {left} to {right} reach past outputs of shape "
            f"{outputs.shape[1:]}"
        )
    n_threads = usable_threads(n_threads)
    kernels().merge(outputs, first_sample, top, left, offset, scale, mean, std, n_threads)


def alike_draws(n_samples: int, at_once: int, group_size: int) -> Iterator[tuple[int, int, bool]]:
    """Draws that lie alike before the network, where every second group of them is transposed.

    Parameters
    ----------
    n_samples
        M, the number of draws.
    at_once
        How many are given to the network at most.
    group_size
        Draws in a group; M where none are transposed.

    Yields
    ------
    The first draw, how many there are from it on, and whether they are transposed.
    """
    for group in range(0, n_samples, group_size):
        end = min(group + group_size, n_samples)
        for first in range(group, end, at_once):
            yield first, min(at_once, end - first), group // group_size % 2 == 1


def exact_sums(frame: AnyArray) -> tuple[int, int]:
    """The sum of all pixels and of their squares, exactly.

    Parameters
    ----------
    frame
        (H, W) of one of `SUMMED_EXACTLY`, fewer than 2**31 pixels, rows contiguous.

    Raises
    ------
    SettingError
        When the frame is none of these.
    """
    fits = frame.ndim == 2 and frame.dtype in SUMMED_EXACTLY and 0 < frame.size < 2**31
    if not fits or frame.strides[1] != frame.itemsize:
        raise SettingError(
            f"frame is {frame.dtype} {frame.shape} with strides {frame.strides}, but must be "
            "uint8, uint16 or int16 (H, W), rows contiguous, fewer than 2**31 pixels"
        )
    sums: tuple[int, int] = kernels().sums(frame, usable_threads(0))
    return sums


def held_out(
    pattern: SamplingPattern,
    shape: Shape,
    *,
    sample: int = 0,
    seed: int = 0,
    frame_index: int = 0,
    n_threads: int = 0,
) -> BoolArray:
    """Tell which pixels of a frame a draw does not keep.

    Parameters
    ----------
    pattern
        Which pixels compete to be kept.
    shape
        (H, W) of the frame, in whole cells: in a cell that is cut off, the pixel a draw keeps may
        be the mirror image of another.
    sample, seed, frame_index, n_threads
        As for `draw`.

    Returns
    -------
    (H, W) bool in the frame's own orientation, true where the pixel is held out.

    Raises
    ------
    SettingError
        When the shape is not in whole cells, or a number is out of range.
    FrameError
        When the frame is too large.
    """
    seed, frame_index = checked_key(seed, frame_index)
    _check_samples(1, sample)
    if min(shape) < 1 or shape[0] % pattern.stride_y or shape[1] % pattern.stride_x:
        raise SettingError(
            f"shape is {shape}, but must be a multiple of the stride {pattern.stride}"
        )
    rows, columns = pattern.cells(shape)
    window = Window(0, 0, rows, columns)
    _check_cells(window, pattern)
    place = kernels().kept(pattern, window, sample, seed, frame_index, usable_threads(n_threads))
    mask = np.empty((rows, pattern.stride_y, columns, pattern.stride_x), np.bool_)
    for number, (y, x) in enumerate(np.ndindex(pattern.stride)):
        np.not_equal(place, number, out=mask[:, y, :, x])
    return mask.reshape(shape)


def _check_frame(frame: AnyArray) -> None:
    if frame.ndim != 2 or frame.size == 0:
        raise FrameError(f"frame has shape {frame.shape}, but a draw takes one frame (H, W)")
    if frame.dtype not in PIXEL_TYPES:
        names = ", ".join(str(dtype) for dtype in PIXEL_TYPES)
        raise FrameError(
            f"frame has type {frame.dtype}, but a draw takes {names}; convert it first"
        )


def _check_window(window: Window, pattern: SamplingPattern, frame: AnyArray) -> None:
    bottom, right = window.top + window.height, window.left + window.width
    reach = bottom * pattern.stride_y, right * pattern.stride_x
    if min(window) < 0 or window.height == 0 or window.width == 0:
        raise SettingError(f"{window} is empty or begins before the frame")
    _check_cells(window, pattern)
    if reach[0] > 2 * frame.shape[0] - 1 or reach[1] > 2 * frame.shape[1] - 1:
        raise FrameError(
            f"{window} reaches {reach[0]} rows and {reach[1]} columns, too far past a frame of "
            f"{frame.shape[0]} x {frame.shape[1]} pixels to mirror it there"
        )


def _check_cells(window: Window, pattern: SamplingPattern) -> None:
    bottom = 0 if pattern.shared == "column" else window.top + window.height
    right = 0 if pattern.shared == "row" else window.left + window.width
    if max(bottom, right) > MAX_CELLS:
        raise FrameError(
            f"{window} is of a frame too large to draw from with pattern {pattern}: at most "
            f"{MAX_CELLS * pattern.stride_y} rows and {MAX_CELLS * pattern.stride_x} columns; "
            "denoise it in parts"
        )


def checked_key(seed: int, frame_index: int) -> tuple[int, int]:
    """Both as Python's integers; SettingError unless they are 0 to 2**64 - 1."""
    for name, value in (("seed", seed), ("frame_index", frame_index)):
        if not (isinstance(value, (int, np.integer)) and 0 <= value < 2**64):
            raise SettingError(f"{name} is {value}, but must be an integer, 0 to 2**64 - 1")
    return int(seed), int(frame_index)


def _check_samples(n_samples: int, first_sample: int) -> None:
    if n_samples < 1:
        raise SettingError(f"n_samples is {n_samples}, but at least one draw is needed")
    if not 0 <= first_sample <= 2**31 - n_samples:
        raise SettingError(f"draw number {first_sample} is out of range")
