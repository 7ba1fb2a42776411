"""What is true of a denoised frame, measured: residual, spectra, peaks, a second exposure."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.defects import repair, untouched
from n2sr_deploy.errors import FrameError
from n2sr_deploy.noise import SMALLEST, measure_noise, middle_of
from n2sr_deploy.report.cross_validation import confirmation
from n2sr_deploy.report.findings import Excess, ReportFindings, VarianceCurve
from n2sr_deploy.report.places import significant_places
from n2sr_deploy.report.registration import (
    check_area,
    coherence,
    noise_in_common,
    register,
    without_signal,
)
from n2sr_deploy.report.spectra import Spectra
from n2sr_deploy.report.verdicts import verdicts
from n2sr_deploy.spectrum import SHARED, Spectrum

if TYPE_CHECKING:
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.report.cross_validation import Halves
    from n2sr_deploy.sampling import AnyArray, FloatArray

_log = logging.getLogger("n2sr")
_BLOCK = 32  # pixels; farther apart, errors are taken as independent
_LEVELS = 16  # of intensity, on the curve of the variance


def measure(
    noisy: Frame,
    denoised: FloatArray,
    *,
    standard_error: FloatArray | None = None,
    halves: Halves | None = None,
    second: Frame | None = None,
    repairs: bool = True,
) -> ReportFindings:
    """Measure what can be told of a denoised frame from the noisy one, and judge it.

    Parameters
    ----------
    noisy
        (H, W) in counts, at least 48 x 48. Never written to.
    denoised
        (H, W) in counts; by any method.
    standard_error
        (H, W) in counts: the standard error of `denoised`, as `standard_error` gives it.
    halves
        Two half-results of the network, to be compared with the pixels they never saw.
    second
        Another exposure of the same area, registered to 0.3 pixels, for the excess error; a drift
        is measured and told.
    repairs
        Whether hot pixels and offsets of lines are mended first, as `n2sr denoise` does, so that
        they do not count as signal; False for a result of ``--no-repair``, which has them.

    Returns
    -------
    The findings, verdicts included. Deterministic.

    Raises
    ------
    FrameError
        When the noisy frame is constant or too small, shapes differ, the denoised frame or the
        standard error is not finite, that is negative, a frame shows another area, or the second
        exposure has the very pixels of the noisy or the denoised frame.
    """
    _check(noisy, denoised, standard_error, second)
    mended = repair if repairs else untouched
    repaired = mended(noisy)
    other = None if second is None else mended(second).frame
    noise = measure_noise(noisy, repaired=repaired)
    if noise.is_negligible:
        _log.warning(
            "the noisy frame has next to no noise, so little can be judged by it; are the two "
            "files the right way round?"
        )
    pixels, result = (np.asarray(a, np.float64) for a in (repaired.frame.pixels, denoised))
    residual = np.where(repaired.hot, 0.0, pixels - result)
    spectra = Spectra(*(middle_of(np.where(repaired.hot, result, pixels)), middle_of(result)))
    check_area("denoised frame", spectra.registered(), may_drift=False)
    expected = noise.std_at(result)
    own, of_noise = spectra.autocorrelations()
    findings = ReportFindings(
        noisy=repaired.frame.pixels.astype(np.float32),
        denoised=np.asarray(denoised, np.float32),
        residual=residual.astype(np.float32),
        standard_error=standard_error,
        noise=noise,
        mended=repaired.describe(),
        residual_std=float(residual.std()),
        autocorrelation=own,
        noise_autocorrelation=of_noise,
        autocorrelation_error=_correlation_error(of_noise, middle_of(residual).size),
        noisy_spectrum=np.fft.fftshift(spectra.noisy),
        denoised_spectrum=np.fft.fftshift(spectra.denoised),
        rings=spectra.rings(),
        noise_left=spectra.noise_left(),
        variance=_variance_curve(residual, result, expected, ~repaired.hot),
        peaks=spectra.peaks(),
        places=significant_places(residual, result, expected, spectra.floor / spectra.floor.mean()),
        confirmation=None if halves is None else confirmation(repaired.frame.pixels, halves),
        excess=None
        if second is None or other is None
        else _excess(noisy, result, second, other, standard_error, spectra),
        pixel_size=noisy.pixel_size,
        unit=noisy.unit,
    )
    return replace(findings, verdicts=verdicts(findings))


def _check(
    noisy: Frame, denoised: AnyArray, standard_error: AnyArray | None, second: Frame | None
) -> None:
    check_size(noisy.shape)
    noisy.mean_and_std()  # refuses a constant frame
    for name, pixels in (
        ("denoised frame", denoised),
        ("standard error", standard_error),
        ("second exposure", None if second is None else second.pixels),
    ):
        if pixels is None:
            continue
        check_shape(name, pixels.shape, noisy)
        if second is not None and pixels is second.pixels:
            _check_exposure(noisy, denoised, pixels)
        if not np.isfinite(pixels).all():
            raise FrameError(f"the {name} has NaN or infinite pixels; denoise the frame again")
    if standard_error is not None and standard_error.min() < 0:
        raise FrameError(
            f"the standard error has pixels down to {standard_error.min():.3g}, but none can be "
            "below 0; give the file that n2sr denoise --std wrote"
        )


def _check_exposure(noisy: Frame, denoised: AnyArray, second: AnyArray) -> None:
    for name, pixels in (("noisy frame", noisy.pixels), ("denoised frame", denoised)):
        if np.array_equal(pixels, second):
            raise FrameError(
                f"the second exposure has the very pixels of the {name}, which tells no error; "
                "give another exposure of the same area"
            )


def check_size(shape: Shape) -> None:
    """Raise FrameError where frames of this shape are too small to be judged."""
    if min(shape) < SMALLEST:
        raise FrameError(
            f"frame is {shape[0]} x {shape[1]} pixels, but can be judged from {SMALLEST} x "
            f"{SMALLEST} on; leave the report out"
        )


def check_shape(name: str, shape: tuple[int, ...], noisy: Frame) -> None:
    """Raise FrameError where what is compared with the noisy frame has another shape."""
    if shape != noisy.shape:
        raise FrameError(
            f"the {name} is {' x '.join(map(str, shape))} pixels, but the noisy frame "
            f"{noisy.shape[0]} x {noisy.shape[1]}; give frames of one area and size"
        )


def _correlation_error(correlation: AnyArray, n_pixels: int) -> float:
    """Of a lag's correlation (Bartlett); a Hann window leaves half of the pixels or so."""
    return math.sqrt(float(np.square(correlation).sum()) * 1.9 / n_pixels)


def _variance_curve(
    residual: AnyArray, intensity: AnyArray, expected: AnyArray, counted: AnyArray
) -> VarianceCurve:
    """In levels of equal numbers of pixels."""
    values, squares = intensity[counted], np.square(residual[counted])
    levels = np.quantile(values, np.linspace(0, 1, _LEVELS + 1))
    level = np.clip(np.searchsorted(levels, values, side="right") - 1, 0, _LEVELS - 1)
    n = np.bincount(level, minlength=_LEVELS)
    filled = n > 1

    def mean(of: AnyArray) -> AnyArray:
        return np.asarray((np.bincount(level, of, minlength=_LEVELS) / np.maximum(n, 1))[filled])

    variance = mean(squares)
    scatter = np.sqrt(np.maximum(mean(squares**2) - variance**2, 0) / n[filled])
    return VarianceCurve(
        intensity=mean(values),
        variance=variance,
        error=scatter,
        expected=mean(np.square(expected[counted])),
    )


def _excess(
    noisy: Frame,
    denoised: AnyArray,
    second: Frame,
    mended: Frame,
    standard_error: AnyArray | None,
    spectra: Spectra,
) -> Excess:
    """Standardised by the noisy frame: the mean squared distance to the second, less its noise."""
    first, other = spectra.spectrum, Spectrum(middle_of(mended.pixels))
    coherent = coherence(first.power / first.floor, other.power / other.floor)
    found = register(first.transform, other.transform, coherent * (first.signal & other.signal))
    check_area("second exposure", found, may_drift=True)
    result = np.fft.fft2(middle_of(denoised) * first.window)
    empty = without_signal(first, other)
    mean, std = noisy.mean_and_std()
    a, b = ((frame.pixels.astype(np.float64) - mean) / std for frame in (noisy, second))
    noise = np.square(a - b) / 2
    each = np.square((denoised - mean) / std - b) - noise
    blocks = _block_means(each)
    error = float(blocks.std(ddof=1) / math.sqrt(blocks.size)) if blocks.size > 1 else math.nan
    reported = (
        None
        if standard_error is None
        else float(np.square(standard_error / std, dtype=np.float64).mean())
    )
    return Excess(
        noisy=float(noise.mean()),
        denoised=float(each.mean()),
        error=error,
        reported=reported,
        shift=None if found is None else found.shift,
        shared_noise=noise_in_common(first.transform, other.transform, empty),
        own_noise=noise_in_common(first.transform, result, empty),
        other_noise=noise_in_common(other.transform, result, empty),
        noise_ratio=math.sqrt(float(other.levelled_floor().mean() / spectra.floor.mean())),
        noise_ratio_error=math.sqrt(SHARED / first.power.size),
    )


def _block_means(values: AnyArray) -> AnyArray:
    rows, columns = (n // _BLOCK for n in values.shape)
    whole = values[: rows * _BLOCK, : columns * _BLOCK]
    return np.asarray(whole.reshape(rows, _BLOCK, columns, _BLOCK).mean(axis=(1, 3)).ravel())
