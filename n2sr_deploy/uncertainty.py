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
from n2sr_deploy.frame import Frame
from n2sr_deploy.noise import SMALLEST, measure_noise, middle_of
from n2sr_deploy.spectrum import SHARED, Spectrum

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.denoiser import Denoised
    from n2sr_deploy.sampling import AnyArray, FloatArray

_log = logging.getLogger("n2sr")

# Chosen on the development frames of benchmarks/coverage.py; how, in 0012-spread.md.
_SMOOTH = 4.0  # pixels; a variance of 4 draws, 3 degrees of freedom, is averaged over about 200
_EVERYWHERE = 0.03  # share of the error's mean square that is the same at every pixel
_OF_TWIN = 1.8  # the error's mean square over the twin's, and its uncertainty as a share
_OF_TWIN_ERROR = 0.45
_OF_RESIDUAL = 1.25  # likewise over what the residual tells
_OF_RESIDUAL_ERROR = 0.1
# Cycles per pixel. Errors are at low frequencies, where noise above would only add; a wider band is
# taken where the residual rises above the noise's scatter there, by so many standard errors.
_BANDS = 0.1, 0.15, 0.25
_RISES = 2.5
_FLOOR_ERROR = 0.005  # share by which the noise's power may be wrong
_OF_SPREAD = 0.9  # the error's mean square over that of the raw spread, where no twin can be made
_OF_SPREAD_ERROR = 1.0
_SEED = 0x6E327374  # of the twin's noise; unlike any that someone simulates noise with


@dataclass(frozen=True, kw_only=True, eq=False)
class Uncertainty:
    """A calibrated standard error."""

    standard_error: FloatArray
    """(H, W) float32, in counts: over many frames the truth lies within it at about 68 % of the
    pixels and within twice of it at 90 to 95 %; of one frame its scale is less sure."""
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
    frame: Frame, denoised: Denoised, denoise: Callable[[Frame], Denoised]
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
        frame of at most 1024 x 1024 pixels.

    Returns
    -------
    The standard error and how well its scale is known. Deterministic if `denoise` is. Of frames
    below 48 x 48 pixels, and of ones without noise, the scale is a guess, which is logged.
    """
    variance = smoothed(np.square(denoised.std, dtype=np.float64), _SMOOTH)
    inside = float(middle_of(variance).mean())
    estimate = _mean_square(frame, denoised, denoise)
    if estimate is None:
        _log.warning(
            "this frame is too small, or without noise, to calibrate the spread on it: the "
            "standard error's scale is that of other frames, right within a factor of two"
        )
        estimate = _Estimate(_OF_SPREAD * inside, _OF_SPREAD * _OF_SPREAD_ERROR * inside)
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


def _mean_square(
    frame: Frame, denoised: Denoised, denoise: Callable[[Frame], Denoised]
) -> _Estimate | None:
    """What twin and residual tell together; None where there can be no twin."""
    noisy, result = middle_of(frame.pixels), middle_of(denoised.mean)
    if min(noisy.shape) < SMALLEST:
        return None
    noise = measure_noise(frame)
    if noise.std < NOISELESS * noisy.std():
        return None
    spectrum = Spectrum(noisy)
    floor = spectrum.levelled_floor()
    added = _coloured(floor) * noise.std_at(result)
    twin_error = denoise(Frame(pixels=(result + added).astype(np.float32))).mean - result
    twin = float(np.square(twin_error).mean())
    told = _told_by_residual(spectrum, floor, noisy - result, twin_error, added)
    prior = _Estimate(_OF_TWIN * twin, _OF_TWIN * _OF_TWIN_ERROR * twin)
    # What is lost in the result is lost in the twin from the start: it may be far too hopeful.
    doubt = max(told.value - 2 * told.error - prior.value, 0.0)
    prior = prior._replace(error=math.hypot(prior.error, doubt))
    weights = [1 / max(estimate.error, 1e-30) ** 2 for estimate in (prior, told)]
    value = (prior.value * weights[0] + told.value * weights[1]) / sum(weights)
    return _Estimate(max(value, twin), 1 / math.sqrt(sum(weights)))


def _coloured(floor: AnyArray) -> AnyArray:
    """(h, w) normal noise of unit variance, correlated as the floor says."""
    white = np.fft.fft2(np.random.default_rng(_SEED).normal(size=floor.shape))
    return np.asarray(np.fft.ifft2(white * np.sqrt(floor / floor.mean())).real)


def _told_by_residual(
    spectrum: Spectrum, floor: AnyArray, residual: AnyArray, twin_error: AnyArray, added: AnyArray
) -> _Estimate:
    """At low frequencies the residual's power above the noise's, and twice the covariance.

    At higher frequencies the twin's error: the residual says too little there.
    """
    power = spectrum.density(np.fft.fft2(residual * spectrum.window))
    transforms = [np.fft.fft2(image * spectrum.window) for image in (twin_error, added)]
    twin = spectrum.density(transforms[0])
    common = (transforms[0] * transforms[1].conj()).real / np.square(spectrum.window).sum()
    fy, fx = (np.fft.fftfreq(n) for n in residual.shape)
    frequency = np.hypot(fy[:, None], fx[None, :])
    lowest = 2.5 / min(residual.shape)  # below, the window smears what the mean is off
    value, squared, reach = 0.0, 0.0, lowest
    for low, high in zip((lowest, *_BANDS), _BANDS, strict=False):
        band = (frequency >= low) & (frequency < high)
        risen = float((power - floor + 2 * common)[band].sum()) / floor.size
        scatter = 2 * SHARED * float(np.square(floor[band]).sum()) / floor.size**2
        level = _FLOOR_ERROR * float(floor[band].sum()) / floor.size
        error = math.hypot(math.sqrt(scatter), level)
        least = float(twin[band].sum()) / floor.size
        if low > lowest and risen - least < _RISES * error:
            break
        value += risen
        squared += error**2
        reach = high
    value += float(twin[frequency >= reach].sum()) / floor.size
    value *= _OF_RESIDUAL
    own = _OF_RESIDUAL_ERROR * max(value, float(twin.sum()) / floor.size)
    return _Estimate(value, math.hypot(_OF_RESIDUAL * math.sqrt(squared), own))
