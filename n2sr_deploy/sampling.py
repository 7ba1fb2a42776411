"""The random sub-sampler: which pixels a draw keeps, the draws of a frame, their merging.

`draw` cuts M sub-sampled frames from one noisy frame, `merge` turns the M full-size outputs of
the network into the MMSE estimate (their mean) and their standard deviation. What is drawn is
defined in `n2sr_deploy.reference`; the compiled kernels are used wherever they were built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from n2sr_deploy.errors import FrameError, SettingError
from n2sr_deploy.kernels import kernels

AnyArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Shape = tuple[int, int]
PatternName = Literal["cell", "row", "column"]

PATTERN_NAMES: tuple[PatternName, ...] = ("cell", "row", "column")
PIXEL_TYPES = tuple(
    np.dtype(name) for name in ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
)
SUMMED_EXACTLY = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16"))
MAX_STRIDE = 4
MAX_CELLS = 2**16  # along an axis: row and column of a cell share one 32-bit counter word
MAX_SAMPLES = 1024  # far beyond where more draws help
LIVE_SAMPLES = 4  # one draw for each pixel of a cell of 2 x 2
DRAWS_AT_ONCE = 4  # for the network; on a CPU it is no faster with more


class Window(NamedTuple):
    """A rectangle of cells."""

    top: int
    left: int
    height: int
    width: int


def _check_stride(stride: Shape) -> None:
    if not all(1 <= pixels <= MAX_STRIDE for pixels in stride):
        raise SettingError(
            f"stride is {_told(stride)}, but must be 1 to {MAX_STRIDE} along each axis"
        )


def _told(stride: Shape) -> str:
    """As `--stride` takes it: 2, or 2,3."""
    return ",".join(map(str, stride if stride[0] != stride[1] else stride[:1]))


@dataclass(frozen=True, kw_only=True)
class SamplingPattern:
    """Which pixels compete to be kept, and who shares the choice.

    Raises
    ------
    SettingError
        When a stride is outside 1 to 4, no pixel would be held out, or a choice shared along
        an axis would also thin out that axis.
    """

    stride_y: int
    """Rows in a cell, 1 to 4."""
    stride_x: int
    """Columns in a cell, 1 to 4."""
    shared: Literal["row", "column"] | None = None
    """Cells along this axis keep the same place: whole rows or columns are kept or held out."""

    def __post_init__(self) -> None:
        _check_stride(self.stride)
        if self.group_size == 1:
            raise SettingError(
                f"stride is 1, which holds out no pixel; choose 2 to {MAX_STRIDE} along an axis"
            )
        along = {"row": self.stride_x, "column": self.stride_y, None: 1}[self.shared]
        if along != 1:
            raise SettingError(
                f"a choice shared along each {self.shared} needs stride 1 along it, not {along}"
            )

    @classmethod
    def named(cls, name: str, stride: int | Shape = 2) -> SamplingPattern:
        """The pattern `cell`, `row` or `column` with a stride of 2 to 4.

        Parameters
        ----------
        name
            ``cell``: one pixel of every cell, each cell on its own (white noise). ``row``: one
            row of every `stride` rows (noise correlated along rows). ``column``: likewise.
        stride
            Along the thinned axes; a pair (stride_y, stride_x) for unequal cells, or as the pattern
            has it: (2, 1) of every second row.

        Returns
        -------
        The pattern.

        Raises
        ------
        SettingError
            When there is no pattern of that name, the stride is out of range, or strides along
            both axes are given to a pattern that thins one.
        """
        sizes = (stride, stride) if isinstance(stride, int) else stride
        _check_stride(sizes)
        if name == "cell":
            return cls(stride_y=sizes[0], stride_x=sizes[1])
        if name not in ("row", "column"):
            raise SettingError(
                f"pattern is {name!r}, but must be one of {', '.join(PATTERN_NAMES)}"
            )
        thinned, other = sizes if name == "row" else sizes[::-1]
        if other not in (1, thinned):
            raise SettingError(
                f"stride is {_told(sizes)}, but pattern {name} thins one axis; give one number"
            )
        if name == "row":
            return cls(stride_y=thinned, stride_x=1, shared="row")
        return cls(stride_y=1, stride_x=thinned, shared="column")

    @property
    def name(self) -> PatternName:
        """``cell``, ``row`` or ``column``."""
        return self.shared or "cell"

    @property
    def stride(self) -> Shape:
        """(stride_y, stride_x)."""
        return self.stride_y, self.stride_x

    @property
    def group_size(self) -> int:
        """Pixels in a cell, and draws in a group that keeps each of them once."""
        return self.stride_y * self.stride_x

    @property
    def shift(self) -> Shape | None:
        """By how many pixels, (y, x), the cells of half of the draws are laid elsewhere.

        None where all lie alike. Of two lines that are whole kept or held out, a network cannot
        tell which was kept, and was taught the other only: what it says of a kept one is of a
        neighbour, always the same (docs/decisions/0016-cycle-spinning.md).
        """
        if self.shared is None or self.group_size != 2:
            return None
        return (1, 0) if self.shared == "row" else (0, 1)

    def independent(self, shape: Shape) -> Shape:
        """(rows, columns) of a shape with the axis along which a choice is shared as one."""
        return {"cell": shape, "row": (shape[0], 1), "column": (1, shape[1])}[self.name]

    def cells(self, shape: Shape) -> Shape:
        """The number of cells (rows, columns) that cover a frame of this shape."""
        return -(-shape[0] // self.stride_y), -(-shape[1] // self.stride_x)

    def __str__(self) -> str:
        return f"{self.name}, stride {self.stride_y} x {self.stride_x}"


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
    kernels().merge(outputs, first_sample, top, left, offset, scale, mean, std, n_threads)


def exact_sums(frame: AnyArray, *, n_threads: int = 0) -> tuple[int, int]:
    """The sum of all pixels and of their squares, exactly.

    Parameters
    ----------
    frame
        (H, W) of one of `SUMMED_EXACTLY`, fewer than 2**31 pixels, rows contiguous.
    n_threads
        0: one for each core.

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
    sums: tuple[int, int] = kernels().sums(frame, n_threads)
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
    place = kernels().kept(pattern, window, sample, seed, frame_index, n_threads)
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
