"""The noise of a frame, measured from the frame itself, and the pattern it asks for."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.defects import NOISELESS, Repaired, repair
from n2sr_deploy.errors import FrameError
from n2sr_deploy.frame import Frame
from n2sr_deploy.hits import without_hits
from n2sr_deploy.limits import at_limits, left_out
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.spectrum import WHITE, Spectrum, VarianceModel, box_mean, variance_model
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from n2sr_deploy.limits import LeftOut
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray

_log = logging.getLogger("n2sr")
Correlation = tuple[float, ...]
_UNCORRELATED: Correlation = (0.0, 0.0, 0.0)
SMALLEST = 48  # rows and columns below which a spectrum says too little
_LARGEST = 1024  # rows and columns that are enough; more would take longer
_CORRELATION_ERROR = 4.5  # standard, times the root of the pixels: benchmarks/noise.py
_BELIEVED = 2.5  # standard errors from which a correlation is believed
_DETAIL = 25  # pixels: what changes over more lies between no lines
LITTLE = 0.15  # of the detail, up to which lines far apart lose more than is kept away
_FARTHER = 0.3  # correlation with the nearest kept line from which too much of the noise is seen
_DARKEST = 0.3  # share of the noise at the mean intensity below which none is expected
_FEW_COUNTS = 5  # a pixel
_EQUALS = 0.1  # of the mean: the variance of few counts is known to 5 %
_DIFFERS = 0.001  # share of the pixels that another exposure has otherwise, at least
_THE_SAME = (
    "the second frame has the very pixels of the first, so their difference tells nothing of the "
    "noise, for which another exposure of the area is needed; give one, or leave the second out "
    "and have the first measured alone"
)
_NEXT_TO_NONE = (
    "there is next to no noise at the finest details (where some is to be seen, the frame was "
    "smoothed or enlarged after it was taken: n2sr needs it as the detector gave it)"
)
_OFFSET = (
    "the detector's offset is too low: their noise is lost, and their mean is too high; or it "
    "suppresses what is below a pulse"
)
_CHANGED = 0.1  # share of a difference's power that is not noise, where two frames do not match


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What was measured; intensities and deviations in counts of the frame."""

    std: float
    """Standard deviation of the noise, over the frame."""
    along_rows: Correlation
    """Correlation of the noise between pixels of a row, at distances 1, 2, 3."""
    along_columns: Correlation
    """Correlation between pixels of a column."""
    correlation_error: float
    """Standard error of the correlations; the smaller the frame, the larger."""
    gain: float | None
    """Variance = gain * x + read_noise ** 2; None where the intensities vary too little to tell
    the two apart."""
    read_noise: float | None
    """Standard deviation at intensity 0; 0 where it cannot be told from none."""
    hot_pixels: int
    """Hot or dead pixels and x-ray spikes."""
    row_offsets: float
    """Standard deviation of the offsets of rows; 0: none found."""
    column_offsets: float
    """Likewise of columns."""
    saturated: float
    """Share of the pixels that pile up at the upper limit; 0: none found."""
    is_integer: bool
    """Whether all values are whole numbers."""
    counts_events: bool
    """Whether they count single events: whole numbers, their variance equal to their mean."""
    cut_off: float = 0.0
    """Share of the pixels that pile up at the lower limit, and are no counts; 0: none found."""
    of_detail: float | None = None
    """The noise's share of the variance within 25 pixels; None where it was not noted yet."""

    @property
    def is_negligible(self) -> bool:
        """Whether there is next to none: below the rounding, of which no correlation is told."""
        return self.along_rows == self.along_columns == _UNCORRELATED

    @property
    def strongest(self) -> tuple[float, float]:
        """The correlation along rows and along columns at the distance where it is strongest.

        Neighbours of interlaced lines, or of a scan that rings, may have none.
        """
        return max(map(abs, self.along_rows)), max(map(abs, self.along_columns))

    def std_at(self, intensity: AnyArray, mean: float | None = None) -> AnyArray:
        """The noise's standard deviation over a denoised frame (H, W), in counts, float64.

        It follows the gain from `std` at the frame's mean, so that a detector's offset does not
        matter; where no gain is told it is the same everywhere. At least 0.3 of `std`, since the
        model is not known to hold in the dark. Of a part of a frame, `mean` is the whole frame's.
        """
        if self.gain is None:
            return np.full(intensity.shape, self.std)
        values = intensity.astype(np.float64)
        mean = values.mean() if mean is None else mean
        variance = self.std**2 + self.gain * (values - mean)
        return np.asarray(np.sqrt(np.maximum(variance, (_DARKEST * self.std) ** 2)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        values = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Noise:
        """From what JSON kept."""
        lists = {key: tuple(values[key]) for key in ("along_rows", "along_columns")}
        return cls(**{**values, **lists})

    def describe(self) -> str:
        """In words."""
        strength, error = f"std {self.std:.3g}", self.correlation_error
        if self.gain is not None:
            strength += f" (gain {self.gain:.3g}, read noise {self.read_noise:.3g})"
        elif not self.is_negligible:
            strength += " (its gain is not known: too few pixels, or intensities too alike)"
        farther = [
            f", {max(lags, key=abs):.2f} farther along {name}"
            for name, lags in (("rows", self.along_rows), ("columns", self.along_columns))
            if abs(lags[0]) <= WHITE < max(map(abs, lags))
        ]
        correlation = (
            f"noise of {strength}, correlation of neighbours {self.along_rows[0]:z.2f} along rows "
            f"and {self.along_columns[0]:z.2f} along columns{''.join(farther)}"
            + (f" (give or take {error:.2f})" if error > WHITE / 2 else "")
        )
        found = [
            f"next to no noise at the finest details (std {self.std:.2g})"
            if self.is_negligible
            else correlation,
            counted(self.hot_pixels, "hot pixel") if self.hot_pixels else "",
            f"row offsets of std {self.row_offsets:.3g}" if self.row_offsets else "",
            f"column offsets of std {self.column_offsets:.3g}" if self.column_offsets else "",
            f"{self.saturated:.2%} of the pixels saturated" if self.saturated else "",
            f"{self.cut_off:.2%} of the pixels cut off at the lowest value ({_OFFSET})"
            if self.cut_off
            else "",
            "values count single events" if self.counts_events else "",
        ]
        return ", ".join(filter(None, found))


def measure_noise(
    frame: Frame | AnyArray,
    second: Frame | AnyArray | None = None,
    repaired: Repaired | None = None,
) -> Noise:
    """Measure the noise of one frame.

    Parameters
    ----------
    frame
        (H, W) in counts, at least 48 x 48; of larger frames the middle 1024 x 1024.
    second
        Another exposure of the same area, registered: the noise is then that of their
        difference, and need not be told from specimen.
    repaired
        What `repair` made of `frame`, if it is at hand.

    Returns
    -------
    The noise. Deterministic.

    Raises
    ------
    FrameError
        When the frame is constant or too small, or the second has another shape or the same
        pixels.
    """
    frame, second = Frame.of(frame), None if second is None else Frame.of(second)
    height, width = frame.shape
    if min(height, width) < SMALLEST:
        raise FrameError(
            f"frame is {height} x {width} pixels, but its noise can be measured from "
            f"{SMALLEST} x {SMALLEST} on"
        )
    contrast = frame.mean_and_std()[1]  # refuses a constant frame
    if second is not None:
        _check_second(frame, second)
    repaired = repaired or repair(frame)
    other = None if second is None else repair(second)
    limits = at_limits(frame.pixels, repaired.hot)
    clipped = middle_of(limits.either) > 0
    if second is not None and other is not None:
        clipped |= middle_of(at_limits(second.pixels, other.hot).either) > 0
    passed_over = left_out(clipped)
    std, of_detail, along_rows, along_columns, model = _measured(
        repaired.frame, other.frame if other else None, NOISELESS * contrast, passed_over
    )
    n_measured = clipped.size if passed_over is None else float(passed_over.weight.sum())
    is_integer = bool(np.all(frame.pixels == np.round(frame.pixels)))
    is_poisson = model is not None and abs(model.gain - 1) < 0.15
    return Noise(
        std=std,
        along_rows=along_rows,
        along_columns=along_columns,
        correlation_error=_CORRELATION_ERROR / math.sqrt(n_measured),
        gain=model.gain if model else None,
        read_noise=model.read_noise if model else None,
        hot_pixels=int(repaired.hot.sum()),
        row_offsets=float(repaired.row_offsets.std()),
        column_offsets=float(repaired.column_offsets.std()),
        saturated=float(limits.highest.mean()),
        cut_off=float(limits.lowest.mean()),
        of_detail=of_detail,
        is_integer=is_integer,
        counts_events=is_integer and is_poisson and bool(frame.pixels.min() >= 0),
    )


def _measured(
    frame: Frame, second: Frame | None, rounding: float, passed_over: LeftOut | None
) -> tuple[float, float, Correlation, Correlation, VarianceModel | None]:
    """Standard deviation, share of the detail, correlation along rows and columns, model.

    Of mended frames, without hits. Noise below `rounding` is that: its correlation would ask for a
    pattern that wastes pixels.
    """
    given = middle_of(frame.pixels)
    middle = without_hits(given)
    if middle.std() < rounding:
        return float(middle.std()), 1.0, _UNCORRELATED, _UNCORRELATED, None
    if second is None:
        spectrum, intensity = Spectrum(middle, passed_over), None
    else:
        other = without_hits(middle_of(second.pixels))
        spectrum, intensity = _pair(middle, other, passed_over)
    if spectrum.noise_std < rounding:
        return spectrum.noise_std, 0.0, _UNCORRELATED, _UNCORRELATED, None
    model = _poisson_of_few(given, spectrum) or variance_model(spectrum, intensity)
    of_hits = float((given - middle).mean())
    std = of_middle = spectrum.noise_std
    if model:
        std = model.std(float(frame.pixels.mean(dtype=np.float64)) - of_hits)
        of_middle = model.std(float(middle.mean()))
    of_detail = of_middle**2 / detail_power(middle)
    return std, of_detail, spectrum.correlation(1), spectrum.correlation(0), model


def detail_power(pixels: AnyArray) -> float:
    """Variance within `_DETAIL` pixels, which lines far apart may lose."""
    reach = _DETAIL // 2
    detail = (pixels - box_mean(pixels, _DETAIL))[reach:-reach, reach:-reach]
    return max(float(detail.var()), 1e-30)


def _poisson_of_few(pixels: AnyArray, spectrum: Spectrum) -> VarianceModel | None:
    """Gain 1 where whole numbers, few on average, have a variance equal to their mean.

    Noise of few counts is so skewed that a regression on the intensity tells too high a gain.
    """
    if pixels.min() < 0 or np.any(pixels != np.round(pixels)):
        return None
    weight = np.square(spectrum.window)
    mean = float((pixels * weight).sum() / weight.sum())
    is_poisson = abs(float(spectrum.levelled_floor().mean()) - mean) < _EQUALS * mean
    return VarianceModel(1.0, 0.0) if mean < _FEW_COUNTS and is_poisson else None


def middle_of(pixels: AnyArray) -> AnyArray:
    """The middle (h, w) of a frame (H, W), as much of it as is enough, float64."""
    return np.asarray(pixels[where_the_middle_is(pixels.shape)], np.float64)


def where_the_middle_is(shape: Shape) -> tuple[slice, slice]:
    """The rows and columns of `middle_of` a frame of this shape."""
    rows, columns = (slice((n - min(n, _LARGEST)) // 2, (n + min(n, _LARGEST)) // 2) for n in shape)
    return rows, columns


def _check_second(first: Frame, second: Frame) -> None:
    """Refuse what is no other exposure of the first's area."""
    if second.shape != first.shape:
        raise FrameError(
            f"the second frame is {second.shape[0]} x {second.shape[1]} pixels, but the first "
            f"{first.shape[0]} x {first.shape[1]}; give two exposures of one area"
        )
    if np.array_equal(middle_of(first.pixels), middle_of(second.pixels)):
        raise FrameError(_THE_SAME)


def _pair(a: AnyArray, b: AnyArray, passed_over: LeftOut | None) -> tuple[Spectrum, Spectrum]:
    """Of the difference of two exposures, over sqrt(2), and of their mean."""
    b = b + (a.mean() - b.mean())
    if np.count_nonzero(np.abs(a - b) > NOISELESS * a.std()) < _DIFFERS * a.size:
        raise FrameError(_THE_SAME)
    spectrum = Spectrum((a - b) / math.sqrt(2), passed_over)
    not_noise = spectrum.power[spectrum.signal].sum() / spectrum.power.sum()
    if not_noise > _CHANGED:
        _log.warning(
            "%.0f %% of the difference of the two frames is not noise: they are not registered, "
            "or the specimen changed",
            100 * not_noise,
        )
    return spectrum, Spectrum((a + b) / 2, passed_over)


def choose_pattern(noise: Noise) -> tuple[SamplingPattern, int, str]:
    """The pattern that keeps the noise of kept and held-out pixels apart.

    Which pattern learns best from which noise was measured: docs/decisions/0005-noise.md.

    Returns
    -------
    The pattern; how near to a kept pixel, in rows or columns, others are not learned from; and in
    a sentence what was found and what it led to.
    """
    along_rows, along_columns = noise.strongest
    white = max(WHITE, _BELIEVED * noise.correlation_error)
    if max(along_rows, along_columns) <= white:
        found = (
            _NEXT_TO_NONE
            if noise.is_negligible
            else "the noise is white"
            if max(along_rows, along_columns) <= WHITE
            else "on so few pixels the noise cannot be told from white"
        )
        return (
            SamplingPattern.named("cell"),
            0,
            f"{found}, so every cell keeps a pixel of its own (pattern cell)",
        )
    name = "row" if along_rows >= along_columns else "column"
    is_along_both = min(along_rows, along_columns) > white
    if is_along_both and noise.of_detail is not None and noise.of_detail < LITTLE:
        return (
            SamplingPattern.named("cell"),
            0,
            "the noise is correlated along rows and columns, but so little "
            f"({noise.of_detail:.2g} of the variance within {_DETAIL} pixels) that more would be "
            "lost between lines far apart than noise is left, so every cell keeps a pixel of its "
            "own (pattern cell)",
        )
    if not is_along_both:
        return (
            SamplingPattern.named(name),
            0,
            f"the noise is correlated along {name}s, so whole {name}s are kept or held out "
            f"(pattern {name})",
        )
    across = (noise.along_columns if name == "row" else noise.along_rows)[1]
    reaches = (
        f"; it reaches farther than that ({across:.2f} two {name}s away), so noise will stay: bin "
        "the frame by two or more first"
        if across > _FARTHER
        else ""
    )
    return (
        SamplingPattern.named(name, 4),
        1,
        f"the noise is correlated along rows and columns, so one {name} of four is kept and those "
        f"beside it are not learned from (pattern {name}, stride 4){reaches}",
    )
