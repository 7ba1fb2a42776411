"""Noise told from specimen in the Fourier transform of a frame.

A lattice is a set of sharp peaks, and all else that a lens transfers lies at low frequencies, while
noise fills every frequency smoothly. So the noise is read off high frequencies, by a quantile
that peaks do not move.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.defects import running_median

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, BoolArray, Shape

LAGS = 3  # pixels, to which correlations are told
WHITE = 0.08  # correlation of neighbours up to which noise counts as white
_HIGH = 0.33  # cycles per pixel; what a lens transfers lies below
_FAST = 0.25  # cycles per pixel; the noise whose variance is followed over the frame lies above
_QUANTILE = 0.35  # of a periodogram's bins: peaks are fewer
_REACH = 10  # pixels; noise correlates no farther
# Side of a mean over frequencies, and how many times the floor it must be to show signal; noise
# alone gets there about once in ten thousand.
_SIGNAL = ((3, 5.0), (9, 1.9), (25, 1.25))
_SPLIT_SEED = 0x6E327372  # unlike any that someone simulates noise with
_SPLITS = (1, 1, 2)  # random splits in each round of the variance model
_SURE = 22  # standard errors that a gain must be above zero: 4.5 % of it


class VarianceModel(NamedTuple):
    """Variance = gain * intensity + read_noise ** 2."""

    gain: float
    read_noise: float


class Spectrum:
    """The power spectrum of a frame and the floor that the noise makes in it.

    The floor is a product of one profile along each axis, as white noise has it, and noise that a
    scan or a detector's point spread correlates.

    Parameters
    ----------
    values
        (H, W) float64.
    """

    def __init__(self, values: AnyArray) -> None:
        self.shape: Shape = values.shape[0], values.shape[1]
        self.mean = float(values.mean())
        rows, columns = (np.hanning(n + 2)[1:-1] for n in self.shape)
        self.window = np.outer(rows, columns)
        self.windowed = (values - self.mean) * self.window
        self.transform = np.fft.fft2(self.windowed)
        self.power = self.density(self.transform)
        self._frequencies = [np.abs(np.fft.fftfreq(n)) for n in self.shape]
        self._profiles = self._profile(0), self._profile(1)
        product = np.outer(*self._profiles)
        high = np.logical_and.outer(*(f > _HIGH for f in self._frequencies))
        level = np.quantile(self.power[high] / product[high], _QUANTILE)
        self.floor = product * level / -math.log1p(-_QUANTILE)  # of an exponential distribution

    def density(self, transform: AnyArray) -> AnyArray:
        """(H, W): the power of a transform of windowed values; its mean is their variance."""
        return np.asarray(np.abs(transform) ** 2 / np.square(self.window).sum())

    def _profile(self, axis: int) -> AnyArray:
        """How the floor changes along the frequencies of an axis; its mean is 1."""
        across = self._frequencies[1 - axis] > _HIGH
        band = self.power[:, across] if axis == 0 else self.power[across]
        profile = np.quantile(band, _QUANTILE, axis=1 - axis)
        profile = np.minimum(profile, 1.5 * running_median(profile, 31))  # edges along the axis
        lags = np.fft.ifft(profile).real
        n = lags.size
        lags[np.minimum(np.arange(n), n - np.arange(n)) > _REACH] = 0
        profile = np.maximum(np.fft.fft(lags).real, 0.02 * lags[0])
        return np.asarray(profile / profile.mean())

    def correlation(self, axis: int) -> tuple[float, ...]:
        """Of the noise at distances 1, 2, 3 along an axis."""
        lags = np.fft.ifft(self._profiles[axis]).real
        return tuple(float(lags[lag] / lags[0]) for lag in range(1, LAGS + 1))

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise."""
        return float(math.sqrt(self.floor.mean()))

    def signal(self) -> BoolArray:
        """(H, W): the frequencies at which the frame shows signal."""
        return _signal(self.power / self.floor)

    def noise_only(self) -> tuple[BoolArray, AnyArray]:
        """High frequencies without signal, and the amplitude of the noise there if it were white.

        Where noise is correlated along one axis, frequencies are cut along the other only: then
        the variance of the filtered noise is a sum of the pixels' own variances.
        """
        rows, columns = abs(self.correlation(1)[0]), abs(self.correlation(0)[0])
        fy, fx = self._frequencies
        amplitude = np.ones(self.shape)
        if max(rows, columns) < WHITE:
            passed = np.hypot(fy[:, None], fx) > _FAST
        elif rows > columns:
            passed = np.broadcast_to(fy[:, None] > _FAST, self.shape)
            amplitude = amplitude * np.sqrt(self._profiles[0])[:, None]
        else:
            passed = np.broadcast_to(fx > _FAST, self.shape)
            amplitude = amplitude * np.sqrt(self._profiles[1])
        return passed & (_box(self.signal().astype(float), 3) < 0.1), amplitude


def _signal(ratio: AnyArray) -> BoolArray:
    """Where power over the floor shows signal: sharp peaks, then what rises in wider means."""
    signal = np.zeros(ratio.shape, np.bool_)
    for size, threshold in _SIGNAL:
        others = _box(np.where(signal, 0.0, ratio), size)
        others /= np.maximum(_box(np.where(signal, 0.0, 1.0), size), 0.1)
        signal |= others > threshold
    return signal


def _box(values: AnyArray, size: int) -> AnyArray:
    """The mean over size x size, on a ring."""
    for axis, n in enumerate(values.shape):
        lags = np.minimum(np.arange(n), n - np.arange(n))
        kernel = np.fft.rfft((lags <= size // 2) / size)
        kernel = kernel.reshape((-1, 1) if axis == 0 else (1, -1))
        values = np.fft.irfft(np.fft.rfft(values, axis=axis) * kernel, n=n, axis=axis)
    return values


def variance_model(spectrum: Spectrum, intensity: Spectrum | None = None) -> VarianceModel | None:
    """Gain and read noise: how the variance of the noise follows the intensity.

    The intensity is what remains of the frame where it shows signal; the variance is that of
    frequencies without. Which frequencies show signal is chosen on one half of a random split of
    the frame (the frame plus and minus simulated noise of its own strength), the intensity taken
    from the other, so that no noise is chosen for being high. The noise that is left in the
    intensity is simulated too, and its share taken out of the regression, which it would flatten.

    Parameters
    ----------
    spectrum
        Of the frame; of a difference of two exposures over sqrt(2), if there are two.
    intensity
        Of the mean of the two exposures, whose noise is independent of their difference's.

    Returns
    -------
    The model, or None where the intensity varies too little to tell the two parts apart.
    """
    noise = _FilteredNoise(spectrum)
    if noise.share_passed < 0.02:
        return None
    regression = _Regression(noise, intensity or spectrum, 1.0 if intensity is None else 0.5)
    model, error = np.array([0.0, float(spectrum.floor.mean())]), math.inf
    for n_splits in _SPLITS:
        fit = regression.fitted(model, n_splits)
        if fit is None:
            return None
        model, error = fit
    if not model[0] > _SURE * error:
        return None
    return VarianceModel(float(model[0]), math.sqrt(max(model[1], 0.0)))


class _FilteredNoise:
    """The noise at frequencies without signal, squared, and what variance reaches it from where."""

    def __init__(self, spectrum: Spectrum) -> None:
        self.spectrum = spectrum
        passed, amplitude = spectrum.noise_only()
        self.share_passed = float(passed.mean())
        self.squared = np.square(np.fft.ifft2(spectrum.transform * passed).real)
        self._kernel = np.fft.rfft2(np.square(np.fft.ifft2(passed * amplitude).real))
        self._colour = np.sqrt(spectrum.floor / spectrum.floor.mean())
        self._rng = np.random.default_rng(_SPLIT_SEED)

    def reaching(self, variance: AnyArray) -> AnyArray:
        """Of a variance (H, W) of the windowed frame, what reaches `squared`."""
        spread = np.fft.rfft2(variance) * self._kernel
        return np.asarray(np.fft.irfft2(spread, s=self.spectrum.shape))

    def simulated(self, variance: AnyArray) -> AnyArray:
        """Windowed noise of this variance (H, W), correlated like the frame's."""
        white = np.fft.fft2(self._rng.normal(size=self.spectrum.shape))
        unit = np.fft.ifft2(white * self._colour).real
        return np.asarray(unit * np.sqrt(variance) * self.spectrum.window)


class _Regression:
    """Of filtered noise power on intensity and a constant.

    The weights must not depend on the intensity, whose noise they would then favour.
    """

    def __init__(self, noise: _FilteredNoise, intensity: Spectrum, share_of_noise: float) -> None:
        self.noise = noise
        self.intensity = intensity
        self.share_of_noise = share_of_noise  # of a frame's variance, in `intensity`
        window, variance = intensity.window, noise.spectrum.floor.mean()
        self.constant = noise.reaching(window**2)
        expected = variance * np.maximum(self.constant, 1e-12)
        self.weight = np.where(window > 0.1, 1 / expected**2, 0.0)
        signal = np.fft.ifft2(intensity.transform * intensity.signal()).real
        self.rough = signal / np.maximum(window, 0.05) + intensity.mean

    def fitted(self, model: AnyArray, n_splits: int) -> tuple[AnyArray, float] | None:
        """(gain, constant) and the gain's standard error, with noise as `model` has it."""
        variance = self.share_of_noise * np.maximum(model[0] * self.rough + model[1], 0)
        normal, right = np.zeros((2, 2)), np.zeros(2)
        for _ in range(n_splits):
            added = self.noise.simulated(variance)
            halves = [np.fft.fft2(self.intensity.windowed + sign * added) for sign in (1, -1)]
            for chosen_on, measured_on in (halves, halves[::-1]):
                terms, left = self._terms(chosen_on, measured_on, variance)
                normal += [[(self.weight * a * b).sum() for b in terms] for a in terms]
                normal[0, 0] -= (self.weight * np.square(left)).sum()
                right += [(self.weight * a * self.noise.squared).sum() for a in terms]
        normal, right = normal / (2 * n_splits), right / (2 * n_splits)
        if not np.linalg.det(normal) > 0:
            return None
        independent = self.noise.share_passed  # samples for each pixel of the filtered noise
        error = math.sqrt(max(2 * np.linalg.inv(normal)[0, 0] / independent, 0.0))
        return np.linalg.solve(normal, right), error

    def _terms(
        self, chosen_on: AnyArray, measured_on: AnyArray, variance: AnyArray
    ) -> tuple[tuple[AnyArray, AnyArray], AnyArray]:
        """The two regressors, and noise as it is left in the first."""
        window, intensity = self.intensity.window, self.intensity
        floor = 2 * self.share_of_noise * self.noise.spectrum.floor  # a half has twice the noise
        chosen = _signal(intensity.density(chosen_on) / floor)
        filtered = np.fft.ifft2(chosen * measured_on).real + intensity.mean * window
        left = np.fft.ifft2(chosen * np.fft.fft2(self.noise.simulated(2 * variance))).real
        terms = self.noise.reaching(window * filtered), self.constant
        return terms, self.noise.reaching(window * left)
