"""From the spread of the draws to a calibrated standard error: docs/decisions/0012-spread.md.

The raw spread sees only what differs between draws. How large the whole error is, is measured on
the frame itself, in two ways that are then weighed against each other:

* **The twin.** The denoised frame is given noise like the frame's and denoised again; there the
  truth is known. It sees the noise that comes through, not what training cost.
* **The residual.** Noisy minus denoised has the noise's power, plus the error's, less twice what
  they have in common; that covariance the twin tells. It sees all of the error, where it
  rises above the noise's own scatter.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.defects import NOISELESS
from n2sr_deploy.errors import FrameError
from n2sr_deploy.frame import Frame
from n2sr_deploy.noise import SMALLEST, measure_noise, middle_of, where_the_middle_is
from n2sr_deploy.spectrum import SHARED, Spectrum

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.denoiser import Denoised
    from n2sr_deploy.sampling import AnyArray, FloatArray

_log = logging.getLogger("n2sr")

# Chosen on the development frames of benchmarks/coverage.py; how, in 0012-spread.md.
_SMOOTH = 4.0  # pixels; the variance of a few draws is averaged over about 200
_EVERYWHERE = 0.03  # share of the error's mean square that is the same at every pixel
_TIMES_TWIN = 2.0  # the error's mean square over the twin's, and its uncertainty as a share
_TIMES_TWIN_ERROR = 0.3
_CELL_ERROR = 0.8  # by which share a cell of the spectrum may depart from that
_LOST = 10.0  # uncertainties from which a cell's residual alone is believed
_TIMES_ESTIMATE = 1.1  # what is still missing on average, and how far frames scatter around it
_ESTIMATE_ERROR = 0.4
_OF_SPREAD = 0.9  # the error's mean square over that of the raw spread, where no twin can be made
_OF_SPREAD_ERROR = 1.0
_SEED = 0x6E327374  # of the twin's noise; unlike any that someone simulates noise with


class _Band(NamedTuple):
    """Of frequencies, up to `high` cycles per pixel."""

    high: float
    missed: float
    """What the residual tells too little, as a share of the noise: the network has learned from
    this noise, and not from the twin's."""
    unsure: float
    """How far frames scatter around that."""


_BANDS = (
    _Band(0.02, 0.06, 0.2),
    _Band(0.04, 0.04, 0.18),
    _Band(0.07, 0.06, 0.14),
    _Band(0.1, 0.04, 0.09),
    _Band(0.15, 0.02, 0.07),
    _Band(0.25, 0.0, 0.04),
    _Band(0.35, 0.0, 0.04),
    _Band(0.75, 0.0, 0.04),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Uncertainty:
    """A calibrated standard error."""

    standard_error: FloatArray
    """(H, W) float32, in counts: over many frames the truth lies within it at about 70 % of the
    pixels and within twice of it at 92 %; of one frame its scale is less sure."""
    scale_error: float
    """By which share its overall scale may be wrong, as a standard error."""

    def describe(self) -> str:
        """In words."""
        mean = float(self.standard_error.mean(dtype=np.float64))
        return f"standard error of {mean:.3g} on average, its scale known to {self.scale_error:.0%}"


class _Estimate(NamedTuple):
    """Of the error's mean square over the middle of the frame, in counts squared."""

    value: float
    error: float


def standard_error(
    frame: Frame | AnyArray, denoised: Denoised, denoise: Callable[[Frame], Denoised]
) -> Uncertainty:
    """Calibrate the spread of the draws.

    Parameters
    ----------
    frame
        (H, W) in counts: what was denoised, mended as it was.
    denoised
        The result, of at least 2 draws.
    denoise
        Denoises another frame by the same network and with as many draws; called once, with a
        frame of the same shape.

    Returns
    -------
    The standard error and how well its scale is known. Deterministic if `denoise` is. Of frames
    below 48 x 48 pixels, and of ones without noise, the scale is a guess, which is logged.

    Raises
    ------
    FrameError
        When the frame is none, or the result is of another shape.
    """
    frame = Frame.of(frame)
    if denoised.mean.shape != frame.shape:
        raise FrameError(
            f"frame has shape {frame.shape}, but the result {denoised.mean.shape}; give the frame "
            "that was denoised"
        )
    twin = _Twin.of(frame, denoised, denoise)
    variance = smoothed(np.square(denoised.std, dtype=np.float64), _SMOOTH)
    if twin is None:
        _log.warning(
            "this frame is too small, or without noise, to calibrate the spread on it: the "
            "standard error's scale is that of other frames, right within a factor of two"
        )
        inside = float(variance.mean())
        estimate = _Estimate(_OF_SPREAD * inside, _OF_SPREAD * _OF_SPREAD_ERROR * inside)
    else:
        variance = twin.completed(variance)
        inside = twin.average(middle_of(variance))
        estimate = twin.mean_square()
    scale = estimate.value / inside if inside > 0 else 0.0
    squared = scale * ((1 - _EVERYWHERE) * variance + _EVERYWHERE * inside)
    if not inside > 0:
        squared = np.full(frame.shape, estimate.value)
    relative = estimate.error / estimate.value / 2 if estimate.value > 0 else 1.0
    return Uncertainty(
        standard_error=np.sqrt(squared).astype(np.float32), scale_error=min(relative, 1.0)
    )


def smoothed(values: AnyArray, size: float) -> AnyArray:
    """A Gaussian average of (H, W), its edges mirrored; size is a standard deviation in pixels."""
    reach = math.ceil(4 * size)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / size) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        ends = [(0, 0), (0, 0)]
        ends[axis] = (reach, reach)
        padded = np.pad(values, ends, mode="symmetric")
        n = values.shape[axis]
        averaged = np.zeros(values.shape)
        for start, weight in enumerate(weights):
            taken = slice(start, start + n)
            averaged += weight * (padded[taken] if axis == 0 else padded[:, taken])
        values = averaged
    return np.asarray(values)


@dataclass(frozen=True)
class _Twin:
    """The middle of the denoised frame, given noise like the frame's and denoised again."""

    spectrum: Spectrum
    floor: AnyArray
    residual: AnyArray
    """(h, w) in counts: noisy minus denoised."""
    added: AnyArray
    error: AnyArray
    variance: AnyArray
    """Of the twin's draws, averaged as the frame's."""

    @classmethod
    def of(
        cls, frame: Frame, denoised: Denoised, denoise: Callable[[Frame], Denoised]
    ) -> _Twin | None:
        """None of a frame that is too small or without noise."""
        noisy, result = middle_of(frame.pixels), middle_of(denoised.mean)
        if min(noisy.shape) < SMALLEST:
            return None
        noise = measure_noise(frame)
        if noise.std < NOISELESS * noisy.std():
            return None
        spectrum = Spectrum(noisy)
        floor = spectrum.levelled_floor()
        mean = float(denoised.mean.mean(dtype=np.float64))
        added = _coloured(floor) * noise.std_at(result, mean)
        # In its frame: by itself it would be seen by another mean and standard deviation, and an
        # engine may be built for one shape.
        middle, pixels = where_the_middle_is(frame.shape), frame.pixels.astype(np.float32)
        pixels[middle] = result + added
        again = denoise(Frame(pixels=pixels))
        variance = smoothed(np.square(again.std[middle], dtype=np.float64), _SMOOTH)
        return cls(spectrum, floor, noisy - result, added, again.mean[middle] - result, variance)

    def average(self, values: AnyArray) -> float:
        """Of (h, w), weighted as spectra see a frame: most in its middle."""
        return float(np.average(values, weights=np.square(self.spectrum.window)))

    def completed(self, variance: AnyArray) -> AnyArray:
        """(H, W): by twice as many draws, where the twin is."""
        variance = variance.copy()
        middle = where_the_middle_is(variance.shape)
        own = self.average(self.variance)
        if own > 0:
            times = self.average(variance[middle]) / own
            variance[middle] = (variance[middle] + times * self.variance) / 2
        return variance

    def mean_square(self) -> _Estimate:
        """What twin and residual tell together of the error's mean square.

        The spectrum is cut into cells, where the frame shows signal and where not, from low to high
        frequencies. One factor takes the twin's error to the frame's, and each cell may depart
        from it as far as its residual says.
        """
        whole = self._density(self.error)
        twin, told, error = np.array(self._cells(whole)).T
        total = float(whole.sum())
        scatter = np.square(_CELL_ERROR * _TIMES_TWIN * twin)
        weight = twin / (np.square(error) + scatter)
        prior = 1 / (_TIMES_TWIN_ERROR * _TIMES_TWIN) ** 2
        weights = float(weight @ twin) + prior
        times = max((float(weight @ told) + prior * _TIMES_TWIN) / weights, 1.0)
        expected = times * twin
        share = np.square(error) / (np.square(error) + np.square(_CELL_ERROR * expected))
        # What is lost in the result is lost in the twin from the start, and nothing is expected.
        unlikely = np.hypot(error, _CELL_ERROR * expected)
        share[told - expected > _LOST * unlikely] = 0
        values = np.maximum(share * expected + (1 - share) * told, twin)
        value = _TIMES_ESTIMATE * (float(values.sum()) + times * (total - float(twin.sum())))
        independent = float(((1 - share) * np.square(error)).sum())
        common = total * float(share @ twin) / max(float(twin.sum()), 1e-300) / math.sqrt(weights)
        own = _ESTIMATE_ERROR * value
        return _Estimate(value, math.hypot(math.sqrt(independent), common, own))

    def _cells(self, twin: AnyArray) -> list[tuple[float, float, float]]:
        """Of each cell the twin's error, what the residual tells and how surely, in counts squared.

        The residual tells its power above the noise's, and twice the covariance that error and
        noise have in the twin.
        """
        window = self.spectrum.window
        error, added = (np.fft.fft2(x * window) for x in (self.error, self.added))
        common = (error * added.conj()).real / np.square(window).sum() / twin.size
        noise = self.floor / twin.size
        told = self._density(self.residual) - noise + 2 * common
        fy, fx = (np.fft.fftfreq(n) for n in twin.shape)
        frequency = np.hypot(fy[:, None], fx[None, :])
        lowest = 2.5 / min(twin.shape)  # below, the window smears what the mean is off
        cells, low = [], lowest
        for band in _BANDS:
            if band.high < 1.5 * lowest:
                continue
            inside = (frequency >= low) & (frequency < band.high)
            low = band.high
            for cell in (inside & self.spectrum.signal, inside & ~self.spectrum.signal):
                if not cell.any():
                    continue
                power = float(noise[cell].sum())
                scatter = math.sqrt(2 * SHARED * float(np.square(noise[cell]).sum()))
                cells.append(
                    (
                        float(twin[cell].sum()),
                        float(told[cell].sum()) + band.missed * power,
                        math.hypot(scatter, band.unsure * power),
                    )
                )
        return cells

    def _density(self, image: AnyArray) -> AnyArray:
        """(h, w): the mean square of an image (h, w), by frequencies."""
        transform = np.fft.fft2(image * self.spectrum.window)
        return self.spectrum.density(transform) / transform.size


def _coloured(floor: AnyArray) -> AnyArray:
    """(h, w) normal noise of unit variance, correlated as the floor says."""
    white = np.fft.fft2(np.random.default_rng(_SEED).normal(size=floor.shape))
    return np.asarray(np.fft.ifft2(white * np.sqrt(floor / floor.mean())).real)
