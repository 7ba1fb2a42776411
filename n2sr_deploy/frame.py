"""One microscope frame: its pixels, their size, and what is known about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from n2sr_deploy.errors import FrameError, SettingError
from n2sr_deploy.sampling import PIXEL_TYPES, SUMMED_EXACTLY, AnyArray, exact_sums
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("n2sr")
_AT_ONCE = 2**16  # pixels whose sums stay in a processor's cache
_LARGEST = float(np.finfo(np.float32).max)
_RESOLVED = 1e-6  # of the mean; about ten steps of float32

# Types the kernels do not take, and the smallest type they take that holds every value
# (64-bit integers: exact up to 2**53).
_WIDENED = {
    "bool": "uint8",
    "int8": "int16",
    "float16": "float32",
    "int64": "float64",
    "uint64": "float64",
}


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """What a count means: ``(count - offset) * scale``, in `unit`."""

    scale: float = 1.0
    offset: float = 0.0
    unit: str | None = None

    def of_spread(self) -> Intensity:
        """What a count of a spread or an error means: these have no offset."""
        return replace(self, offset=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameInfo:
    """What is known of a frame, or of all frames of a file, beside their pixels."""

    pixel_size: tuple[float, float] | None = None
    """Height and width of a pixel in `unit`, or None when unknown."""
    unit: str | None = None
    """The unit of `pixel_size`, as the file spelled it."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Where the first row and column lie, in `unit`."""
    axis_names: tuple[str, str] = ("y", "x")
    """Of the axis along which rows follow each other, and of that of the columns."""
    intensity: Intensity | None = None
    """What a count means, where the file says so. Pixels stay in counts."""
    acquisition: Mapping[str, float | str] = field(default_factory=dict)
    """Of the microscope, in the units the names end in: microscope, detector, mode, date_time,
    beam_energy_kev, beam_current_na, convergence_mrad, magnification, camera_length_mm, exposure_s,
    dwell_time_s, stage_x_mm, stage_y_mm, stage_z_mm, stage_tilt_alpha_deg, stage_tilt_beta_deg."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else the file said, by its own names."""
    history: tuple[str, ...] = ()
    """What was done to the pixels since the microscope, one sentence each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame(FrameInfo):
    """One frame (H, W) and what is known about it.

    Raises
    ------
    FrameError
        When the pixels are not one real-valued, finite, two-dimensional image, or larger than
        float32 has.
    SettingError
        When the pixel size is not two numbers.
    """

    pixels: AnyArray
    """(H, W), rows and columns, in counts; C-contiguous, of a native type the kernels take. Not to
    be written to."""
    index: int = 0
    """Its place in the file or stack it came from."""
    n_frames: int = 1
    """How many frames that file or stack holds."""

    def __post_init__(self) -> None:
        if np.ma.is_masked(self.pixels):
            n_masked = int(np.ma.getmaskarray(self.pixels).sum())
            raise FrameError(
                f"frame has {counted(n_masked, 'masked pixel')} of {self.pixels.size}; replace "
                "each (for example by the median of its neighbours), or crop them off, first"
            )
        object.__setattr__(self, "pixels", _checked(_as_array(self.pixels)))
        size = self.pixel_size
        if size is not None and np.shape(size) != (2,):
            raise SettingError(
                f"pixel_size is {size!r}, but must be two numbers, along rows and columns"
            )
        if size is not None and not all(np.isfinite(side) and side > 0 for side in size):
            _log.warning("the pixel size %s makes no sense and is taken as unknown", size)
            object.__setattr__(self, "pixel_size", None)
            object.__setattr__(self, "unit", None)
            object.__setattr__(self, "origin", (0.0, 0.0))

    @classmethod
    def of(cls, given: Frame | AnyArray) -> Frame:
        """A frame as it is; of an array (H, W) one of which nothing else is known."""
        return given if isinstance(given, Frame) else cls(pixels=given)

    @property
    def info(self) -> FrameInfo:
        """What is known of it beside its pixels."""
        return FrameInfo(**{known.name: getattr(self, known.name) for known in fields(FrameInfo)})

    @property
    def is_denoised(self) -> bool:
        """Whether it says that n2sr made it."""
        return "n2sr" in self.metadata

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.pixels.shape
        return height, width

    @property
    def is_constant(self) -> bool:
        """Whether all pixels are equal."""
        return bool(self.pixels.min() == self.pixels.max())

    def check_varies(self) -> None:
        """Refuse a constant frame, and load no kernels for it: PyTorch should be loaded first.

        Raises
        ------
        FrameError
            When all pixels are equal.
        """
        if self.is_constant:
            raise _constant(float(self.pixels.min()))

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and standard deviation of the pixels, by which networks see them standardised.

        Exactly for counts of up to 16 bits, else in float64, some rows at a time, so that a large
        frame is not copied.

        Raises
        ------
        FrameError
            When all pixels are equal, or too large for float32 results.
        """
        n = self.pixels.size
        if self.pixels.dtype in SUMMED_EXACTLY and n < 2**31:
            total, squares = exact_sums(self.pixels)
            mean, std = total / n, ((n * squares - total**2) / n**2) ** 0.5
        else:
            mean, std = self._mean_and_std_in_float64()
        if not _is_representable(mean, std):
            raise FrameError(
                f"frame has values too large for float32 results (mean {mean:g}, standard "
                f"deviation {std:g}); divide it by a constant first"
            )
        if std and std < abs(mean) * _RESOLVED and self.pixels.min() < self.pixels.max():
            raise FrameError(
                f"frame varies by {std:g} around {mean:g}, too little for float32 results; "
                f"subtract {mean:g} first"
            )
        if not std > abs(mean) * _RESOLVED:
            raise _constant(mean)
        return mean, std

    def _mean_and_std_in_float64(self) -> tuple[float, float]:
        height, width = self.shape
        with np.errstate(over="ignore", invalid="ignore"):  # told by who asks
            rows = max(1, _AT_ONCE // width)
            parts = [self.pixels[top : top + rows] for top in range(0, height, rows)]
            mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / (height * width)
            apart = (np.subtract(part, mean, dtype=np.float64) for part in parts)
            squares = sum(float(np.square(each, out=each).sum()) for each in apart)
        return mean, (squares / (height * width)) ** 0.5

    def with_pixels(self, pixels: AnyArray, what_was_done: str) -> Self:
        """The same frame with other pixels and one more line of history."""
        return replace(self, pixels=pixels, history=(*self.history, what_was_done))

    def cropped(self, rows: slice, columns: slice) -> Self:
        """A part of the frame, which lies where it lay."""
        height, width = self.pixel_size or (0.0, 0.0)
        origin = (
            self.origin[0] + (rows.start or 0) * height,
            self.origin[1] + (columns.start or 0) * width,
        )
        return replace(self, pixels=self.pixels[rows, columns], origin=origin)

    def rounded_to(self, dtype: np.dtype[Any]) -> Self:
        """The same frame in another type; to integers by rounding and clipping, never rescaled."""
        if dtype.kind not in "iu":
            return replace(self, pixels=self.pixels.astype(dtype))
        limits = np.iinfo(dtype)
        rounded = np.rint(self.pixels, dtype=np.float64)
        return replace(self, pixels=np.clip(rounded, limits.min, limits.max).astype(dtype))

    def describe(self) -> str:
        """Shape, type, range and pixel size in words."""
        size = "pixel size unknown"
        if self.pixel_size is not None:
            height, width = self.pixel_size
            size = f"pixel {height:.4g} x {width:.4g} {self.unit or '(no unit)'}"
        which = f"frame {self.index} of {self.n_frames}, " if self.n_frames > 1 else ""
        return (
            f"{which}{self.shape[0]} x {self.shape[1]} {self.pixels.dtype}, {size}, "
            f"values {self.pixels.min():.6g} to {self.pixels.max():.6g}, "
            f"mean {self.pixels.mean(dtype=np.float64):.6g}"
        )


def is_resolved(mean: float, std: float) -> bool:
    """Whether a frame of these can be standardised; if not, `Frame.mean_and_std` tells why."""
    return _is_representable(mean, std) and std > abs(mean) * _RESOLVED


def _is_representable(mean: float, std: float) -> bool:
    return abs(mean) + 100 * std < _LARGEST


def _constant(value: float) -> FrameError:
    return FrameError(
        f"frame is constant (every pixel is {value:g}): there is nothing to learn from it, and "
        "nothing to denoise"
    )


def _as_array(given: Any) -> AnyArray:
    """What a program gives as an array; refused where it is none, as a path or a generator."""
    try:
        pixels = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU
        raise FrameError(
            f"frame is {type(given).__name__} that NumPy makes no array of ({error}); give an "
            "array (H, W)"
        ) from error
    if not pixels.ndim and pixels.dtype.kind in "OUS":
        raise FrameError(
            f"frame is {given!r:.200}, but must be an array (H, W), or a Frame, as "
            "read_frame(path) gives"
        )
    return pixels


def _checked(pixels: AnyArray) -> AnyArray:
    """The pixels in a native type the kernels take."""
    if pixels.dtype.kind == "c":
        raise FrameError(
            f"frame is complex ({pixels.dtype}), but n2sr takes real values; "
            "save its magnitude (or real part) and take that"
        )
    if pixels.dtype.names is not None:
        raise FrameError(
            f"frame's pixels have several parts ({', '.join(pixels.dtype.names)}), like a colour "
            "image's; convert it to one grey channel (H, W) first"
        )
    if pixels.dtype.kind not in "biuf":
        raise FrameError(f"frame has type {pixels.dtype}, but n2sr takes numbers")
    if pixels.size == 0:
        raise FrameError(f"frame is empty (shape {pixels.shape})")
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        raise FrameError(
            f"frame has shape {pixels.shape}, which looks like a colour image; "
            "convert it to one grey channel (H, W) first"
        )
    if pixels.ndim != 2:
        hint = ". Choose one of its frames" if pixels.ndim > 2 else ""
        raise FrameError(f"frame has shape {pixels.shape}, but n2sr takes one frame (H, W){hint}")
    native = pixels.dtype.newbyteorder("=")
    kept = np.dtype(_WIDENED.get(native.name, native))
    if kept not in PIXEL_TYPES:  # longdouble
        kept = np.dtype(np.float64)
    pixels = np.ascontiguousarray(pixels, dtype=kept)
    if kept.kind == "f":
        _check_values(pixels)
    return pixels


def _check_values(pixels: AnyArray) -> None:
    """Refuse what is no number, and what would overflow in whatever looks at the frame."""
    is_number = np.isfinite(pixels)
    n_bad = int(pixels.size - np.count_nonzero(is_number))
    if n_bad == pixels.size:
        raise FrameError(
            "frame has nothing but NaN or infinite pixels, so there is nothing to learn or "
            "denoise; take another frame, or save it again where it was made"
        )
    if n_bad:
        raise FrameError(
            f"frame has {counted(n_bad, 'NaN or infinite pixel')} of {pixels.size}; "
            f"{_way_out(is_number)} first"
        )
    largest = max(-float(pixels.min()), float(pixels.max())) if pixels.itemsize > 4 else 0.0
    if largest > _LARGEST:
        raise FrameError(
            f"frame has values too large for float32 results (up to {largest:g}); divide it by a "
            "constant first"
        )


def _way_out(is_number: AnyArray) -> str:
    """What to do about the pixels that are none: a border, as alignment leaves, is cropped off."""
    (top, bottom), (left, right) = (
        np.flatnonzero(is_number.any(axis=axis))[[0, -1]] for axis in (1, 0)
    )
    if is_number[top : bottom + 1, left : right + 1].all():
        return f"crop it to rows {top} to {bottom} and columns {left} to {right}, which are whole,"
    return "replace each (for example by the median of its neighbours), or crop them off,"
