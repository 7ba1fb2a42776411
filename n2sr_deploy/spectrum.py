"""Noise told from specimen in the Fourier transform of a frame.

A lattice is a set of sharp peaks, and all else that a lens transfers lies at low frequencies, while
noise fills every frequency smoothly. So the noise is read off high frequencies, by a quantile
that peaks do not move.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.cores import at_once
from n2sr_deploy.defects import running_median

if TYPE_CHECKING:
    from n2sr_deploy.limits import LeftOut
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray, BoolArray

LAGS = 3  # pixels, to which correlations are told
WHITE = 0.08  # correlation of neighbours up to which noise counts as white
_HIGH = 0.33  # cycles per pixel; what a lens transfers lies below
_FAST = 0.25  # cycles per pixel; the noise whose variance is followed over the frame lies above
_QUANTILE = 0.35  # of a periodogram's bins: peaks are fewer
_REACH = 10  # pixels; noise correlates no farther
# Side of a mean over frequencies, and how many times the floor it must be to show signal; noise
# alone gets there about once in ten thousand.
_SIGNAL = ((3, 5.0), (9, 1.9), (25, 1.25))
_LEVELS = 50
_CLIPPED = 0.03  # of a level's pixels; with more, its variance is too low by some percent
_FEWEST = 0.25  # share of the pixels with a weight that a gain is told from; clipped ones have none
_ENOUGH = 0.1  # share of the frequencies that show nothing but noise, to take its level from
# A Hann window correlates neighbouring frequencies: of this many, one is independent.
SHARED = (35 / 18) ** 2
_SPLIT_SEED = 0x6E327372  # unlike any that someone simulates noise with
_SPLITS = (1, 1, 2)  # random splits in each round of the variance model
_SURE = 16  # standard errors that a gain must be above zero: 6 % of it


class VarianceModel(NamedTuple):
    """Variance = gain * intensity + constant."""

    gain: float
    constant: float  # as fitted: a little below 0 at times, where there is no read noise

    @property
    def read_noise(self) -> float:
        """Standard deviation at intensity 0."""
        return math.sqrt(max(self.constant, 0.0))

    def std(self, mean: float) -> float:
        """Standard deviation over a frame of this mean; a spectrum sees mostly its middle."""
        return math.sqrt(max(self.gain * mean + self.constant, 0.0))


class Spectrum:
    """The power spectrum of a frame and the floor that the noise makes in it.

    The floor is a product of one profile along each axis, as white noise has it, and noise that a
    scan or a detector's point spread correlates.

    Parameters
    ----------
    values
        (H, W) float64.
    left_out
        What of them is not to be measured; None: nothing.
    """

    def __init__(self, values: AnyArray, left_out: LeftOut | None = None) -> None:
        self.shape: Shape = values.shape[0], values.shape[1]
        self.left_out = left_out
        rows, columns = (np.hanning(n + 2)[1:-1] for n in self.shape)
        self.window = np.outer(rows, columns)
        self.mean = float(values.mean())
        if left_out is not None:
            self.window *= left_out.weight
            self.mean = float(np.average(values, weights=left_out.weight))
        self.windowed = (values - self.mean) * self.window
        self.transform = np.fft.fft2(self.windowed)
        self.power = self.density(self.transform)
        self._frequencies = [np.abs(np.fft.fftfreq(n)) for n in self.shape]
        self._profiles = self._profile(0), self._profile(1)
        high = np.logical_and.outer(*(f > _HIGH for f in self._frequencies))
        product = np.outer(*self._profiles)
        level = np.quantile(self.power[high] / product[high], _QUANTILE)
        self.floor = product * level / -math.log1p(-_QUANTILE)  # of an exponential distribution
        self.signal = _whole(shows_signal(_half(self.power / self.floor), self.shape), self.shape)

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

    def levelled_floor(self) -> AnyArray:
        """(H, W): the floor with its level from all frequencies that show nothing but noise.

        That is nearer to the truth than a quantile of some; too few of them leave it as it is.
        """
        only = self.noise_only()
        if only.mean() < _ENOUGH:
            return np.asarray(self.floor)
        return np.asarray(self.floor * (self.power[only] / self.floor[only]).mean())

    def noise_only(self) -> BoolArray:
        """High frequencies without signal."""
        fy, fx = self._frequencies
        beside = box_mean(self.signal.astype(float), 3) > 0.1  # or at it
        return np.asarray((np.hypot(fy[:, None], fx) > _FAST) & ~beside)


def shows_signal(ratio: AnyArray, shape: Shape) -> BoolArray:
    """Where power over the floor shows signal: sharp peaks, then what rises in wider means.

    `ratio` and the answer are the half (H, W // 2 + 1) that tells all of the spectrum of a real
    frame of `shape` (H, W), like that of `numpy.fft.rfft2`.
    """
    signal = np.zeros(ratio.shape, np.bool_)
    for size, threshold in _SIGNAL:
        others = _half_mean(np.where(signal, 0.0, ratio), shape, size)
        if signal.any():
            others /= np.maximum(_half_mean(np.where(signal, 0.0, 1.0), shape, size), 0.1)
        signal |= others > threshold
    return signal


def _half(spectrum: AnyArray) -> AnyArray:
    """(H, W // 2 + 1) of (H, W)."""
    return spectrum[:, : spectrum.shape[1] // 2 + 1]


def _mirrored(columns: AnyArray) -> AnyArray:
    """Columns of a real frame's spectrum as they stand at the opposite frequencies."""
    return np.roll(columns[::-1, ::-1], 1, axis=0)


def _pixels(half: AnyArray, shape: Shape) -> AnyArray:
    """(H, W) whose spectrum has this half."""
    return np.asarray(np.fft.irfft2(half, s=shape))


def _whole(half: AnyArray, shape: Shape) -> AnyArray:
    """(H, W) of (H, W // 2 + 1)."""
    return np.hstack([half, _mirrored(half[:, 1 : (shape[1] + 1) // 2])])


def _half_mean(half: AnyArray, shape: Shape, size: int) -> AnyArray:
    """`box_mean` of the whole, on its half."""
    reach, beyond = size // 2, (shape[1] + 1) // 2
    left, right = half[:, 1 : reach + 2], half[:, beyond - reach : beyond]
    columns = np.hstack([_mirrored(left), half, _mirrored(right)])
    return _box_mean(np.pad(columns, ((reach + 1, reach), (0, 0)), mode="wrap"), size)


def box_mean(values: AnyArray, size: int) -> AnyArray:
    """The mean over size x size, on a ring."""
    ends = size // 2 + 1, size // 2
    return _box_mean(np.pad(values, (ends, ends), mode="wrap"), size)


def gaussian(shape: Shape, size: float) -> AnyArray:
    """(H, W // 2 + 1): the transfer of a Gaussian average on a ring (H, W).

    `size` is its standard deviation in pixels.
    """
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    return np.asarray(np.exp(-2 * (math.pi * size) ** 2 * (fy**2 + fx**2)))


def _box_mean(padded: AnyArray, size: int) -> AnyArray:
    """Of values with size // 2 + 1 more before the first along each axis, size // 2 after."""
    sums = np.cumsum(padded, axis=0)
    sums = np.cumsum(sums[size:] - sums[:-size], axis=1)
    return np.asarray((sums[:, size:] - sums[:, :-size]) / size**2)


def variance_model(spectrum: Spectrum, intensity: Spectrum | None = None) -> VarianceModel | None:
    """Gain and read noise: how the variance of the noise follows the intensity.

    The variance is that of frequencies without signal, the intensity that of the frame itself. Its
    noise would flatten the regression, so the regression has an instrument: the frame is split into
    two halves of independent noise (it plus and minus simulated noise of its own strength); what
    one half shows of the intensity multiplies the equation, and the other half, unfiltered, is the
    regressor. So neither noise chosen for being high nor faint signal that is missed moves the
    gain.

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
    if np.count_nonzero(regression.weight) < _FEWEST * np.count_nonzero(spectrum.window > 0.1):
        return None
    model, error = np.array([0.0, float(spectrum.floor.mean())]), math.inf
    simulated = iter(noise.simulated(sum(_SPLITS)))
    for n_splits in _SPLITS:
        fit = regression.fitted(model, list(islice(simulated, n_splits)))
        if fit is None:
            return None
        model, error = fit
    if not model[0] > _SURE * error:
        return None
    return VarianceModel(float(model[0]), float(model[1]))


class _FilteredNoise:
    """The noise at frequencies without signal, made white and squared, and what reaches it."""

    def __init__(self, spectrum: Spectrum) -> None:
        self.spectrum = spectrum
        passed = spectrum.noise_only()
        self.share_passed = float(passed.mean())
        passed, transform = _half(passed), _half(spectrum.transform)
        self._colour = np.sqrt(_half(spectrum.floor) / spectrum.floor.mean())
        self.squared = np.square(_pixels(transform * passed / self._colour, spectrum.shape))
        # With a filter h and correlations c, power is the sum over pairs of pixels of
        # h h' c sqrt(v v'); with (v + v') / 2 for the root it is linear in the variance v.
        filter_, correlated = (
            _pixels(passed * colour, spectrum.shape) for colour in (1 / self._colour, self._colour)
        )
        self._kernel = np.fft.rfft2(filter_ * correlated)

    def reaching(self, variance: AnyArray) -> AnyArray:
        """Of a variance (H, W) of the windowed frame, what reaches `squared`."""
        return _pixels(np.fft.rfft2(variance) * self._kernel, self.spectrum.shape)

    def simulated(self, n: int) -> list[AnyArray]:
        """(H, W), n times: noise of variance 1, correlated like the frame's."""
        rng = np.random.default_rng(_SPLIT_SEED)
        white = [rng.normal(size=self.spectrum.shape) for _ in range(n)]
        return at_once(
            lambda one: _pixels(np.fft.rfft2(one) * self._colour, self.spectrum.shape), white
        )


class _Regression:
    """Of filtered noise power on intensity and a constant."""

    def __init__(self, noise: _FilteredNoise, intensity: Spectrum, share_of_noise: float) -> None:
        self.noise = noise
        self.intensity = intensity
        self.share_of_noise = share_of_noise  # of a frame's variance, in `intensity`
        window = intensity.window
        self.constant = noise.reaching(window**2)
        # Weights that depend on the intensity would favour its noise.
        self.weight = np.where(window > 0.1, 1 / np.maximum(self.constant, 1e-12) ** 2, 0.0)
        signal = _pixels(_half(intensity.transform * intensity.signal), intensity.shape)
        self.rough = signal / np.maximum(window, 0.05) + intensity.mean
        if intensity.left_out is not None:
            self.weight[_often(intensity.left_out.clipped, self.rough)] = 0.0
        self.floor = 2 * share_of_noise * _half(noise.spectrum.floor)  # of a half's noise
        self.whole = self._terms(intensity.windowed)

    def fitted(self, model: AnyArray, simulated: list[AnyArray]) -> tuple[AnyArray, float] | None:
        """(gain, constant) and the gain's standard error, with noise as `model` has it.

        The frame is split by each of the `simulated` noises.
        """
        std = np.sqrt(self.share_of_noise * np.maximum(model[0] * self.rough + model[1], 0))
        window, reaching = self.intensity.window, self.noise.reaching
        residual = self.noise.squared.ravel() - np.tensordot(model, self.whole, 1)
        added = [noise * std * window for noise in simulated]
        transforms = at_once(np.fft.rfft2, added)
        apart = at_once(lambda one: reaching(window * one).ravel(), added)
        halves = [(*each, sign) for each in zip(transforms, apart, strict=True) for sign in (1, -1)]
        moments = at_once(lambda half: self._moments(*half, residual), halves)
        left, right, scatter = (sum(each) / len(halves) for each in zip(*moments, strict=True))
        if not abs(np.linalg.det(left)) > 0:
            return None
        inverse = np.linalg.inv(left)
        independent = self.noise.share_passed  # samples for each pixel of the filtered noise
        squared_error = float((inverse @ scatter @ inverse.T)[0, 0]) / independent
        if not squared_error > 0:  # a few pixels so far from all others that numbers end
            return None
        return inverse @ right, math.sqrt(squared_error)

    def _moments(
        self, of_added: AnyArray, apart: AnyArray, sign: int, residual: AnyArray
    ) -> tuple[AnyArray, AnyArray, AnyArray]:
        """What a half shows, weighted, summed times regressors and power, and its scatter.

        Parameters
        ----------
        of_added, sign
            The transform of what makes the half, if it is added with this sign.
        apart
            Times the sign, by how much the frame exceeds the other half, as power.
        residual
            Of the regression with the model so far, for the scatter.
        """
        transform = _half(self.intensity.transform) + sign * of_added
        weighted = self.weight.ravel() * self._terms(self._shown(transform))
        left, right = weighted @ self.whole.T, weighted @ self.noise.squared.ravel()
        left[:, 0] -= sign * (weighted @ apart)  # the other half is the regressor
        weighted *= residual
        return left, right, weighted @ weighted.T

    def _terms(self, windowed: AnyArray) -> AnyArray:
        """(2, H * W): the power that a windowed frame's intensity and a constant make."""
        window = self.intensity.window
        reaching = self.noise.reaching(window * (windowed + self.intensity.mean * window))
        return np.stack([reaching.ravel(), self.constant.ravel()])

    def _shown(self, transform: AnyArray) -> AnyArray:
        """What a half of a split frame shows of the intensity, windowed; of its transform."""
        intensity = self.intensity
        shows = shows_signal(intensity.density(transform) / self.floor, intensity.shape)
        return _pixels(transform * shows, intensity.shape)


def _often(clipped: BoolArray, level: AnyArray) -> BoolArray:
    """Where the level (H, W) is one at which more than a few pixels are clipped.

    Not where these are: what noise happened to spare there varies less than noise does.
    """
    edges = np.quantile(level, np.linspace(0, 1, _LEVELS + 1)[1:-1])
    at = np.searchsorted(edges, level)
    n_clipped = np.bincount(at[clipped], minlength=_LEVELS)
    return np.asarray((n_clipped > _CLIPPED * np.bincount(at.ravel(), minlength=_LEVELS))[at])
