"""What the Fourier transforms of noisy, denoised and residual tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.report.findings import Peak, Rings
from n2sr_deploy.report.registration import coherence, register
from n2sr_deploy.spectrum import SHARED, Spectrum, box_mean

if TYPE_CHECKING:
    from n2sr_deploy.report.findings import PeakState
    from n2sr_deploy.report.registration import Registration
    from n2sr_deploy.sampling import AnyArray, BoolArray

N_RINGS = 48  # up to 0.5 cycles per pixel
RING_FREQUENCY = (np.arange(N_RINGS) + 0.5) / (2 * N_RINGS)
"""(48,): the middles of the rings, cycles per pixel."""
RING_FREQUENCY.flags.writeable = False
LAGS = 12  # pixels, to which the autocorrelation is shown
_PEAK = 9.0  # times the noise's power, in a mean over 3 x 3; noise alone reached 7.8 in 24 frames
_SHARP = 10.0  # times what is around it, and what its ring has: no speckle of a diffuse spectrum
_ALONE = 3.0  # times the highest tenth of what is around it: not the streak of an edge
_ON_AXIS = 1.5  # frequencies; nearer to an axis, offsets of lines at equal distances look alike
_OFF_AXIS = 2  # peaks elsewhere that a lattice has
_CONTRADICTED = 6.0  # standard errors by which the residual denies a peak
_FLOOR_ERROR = 0.03  # share by which the noise's power may be wrong in a ring, as a standard error
_SUPPORTED = 0.03  # share of the noise's power above which a floor's own error does not explain it
KEPT, LOST = 0.7, 0.3  # of a peak's amplitude
_MOST_PEAKS = 400
_NEAR = np.arange(-8, 9)
_ANNULUS = np.abs(np.hypot(_NEAR[:, None], _NEAR) - 6) < 2  # frequencies, of what is around a peak


def ring_of(frequency: AnyArray) -> AnyArray:
    """The number of the ring that frequencies (H, W), cycles per pixel, lie in; 48 beyond all."""
    return np.asarray(np.minimum((frequency * 2 * N_RINGS).astype(int), N_RINGS))


class Spectra:
    """Noisy, denoised and residual, seen through one window; powers in units of the noise's.

    Parameters
    ----------
    noisy, denoised
        (H, W) float64.
    """

    def __init__(self, noisy: AnyArray, denoised: AnyArray) -> None:
        self.spectrum = Spectrum(noisy)
        self.floor = self.spectrum.levelled_floor()
        norm = np.sqrt(np.square(self.spectrum.window).sum() * self.floor)
        windowed = (denoised - self.spectrum.mean) * self.spectrum.window
        # Amplitudes in units of the noise's.
        self._noisy = self.spectrum.transform / norm
        self._denoised = np.fft.fft2(windowed) / norm
        self._residual = self._noisy - self._denoised
        self.noisy, self.denoised, self.residual = (
            np.asarray(np.abs(a) ** 2) for a in (self._noisy, self._denoised, self._residual)
        )
        fy, fx = (np.fft.fftfreq(n) for n in noisy.shape)
        self.frequency = np.hypot(fy[:, None], fx[None, :])
        self._axes = fy, fx

    def registered(self) -> Registration | None:
        """How the denoised frame lies to the noisy one."""
        shown = self.spectrum.signal & (self.denoised > 1)
        return register(self._noisy, self._denoised, shown * coherence(self.noisy))

    def rings(self) -> Rings:
        """Means over rings."""
        ring = ring_of(self.frequency)
        centre = self.frequency < 2.5 / min(self.floor.shape)  # the mean, smeared by the window
        empty = ~self.spectrum.signal & ~centre

        def summed(values: AnyArray, where: BoolArray) -> AnyArray:
            sums = np.bincount(ring[where], values[where], minlength=N_RINGS + 1)
            return np.asarray(sums[:N_RINGS])

        every = ~centre
        n, n_empty = (summed(np.ones(ring.shape), where) for where in (every, empty))
        with np.errstate(divide="ignore", invalid="ignore"):
            # All of a ring: bins chosen for their signal would be chosen for their noise too.
            above, left = (summed(power - 1, every) for power in (self.noisy, self.residual))
            noisy_excess = summed(self.noisy - 1, empty) / n_empty
            sure = noisy_excess > _SUPPORTED + 3 * np.sqrt(2 * SHARED / n_empty)
            noise_left = summed(self.denoised, empty) / n_empty
            return Rings(
                frequency=RING_FREQUENCY,
                noisy=summed(self.noisy, every) / n,
                denoised=summed(self.denoised, every) / n,
                residual=summed(self.residual, every) / n,
                residual_error=np.sqrt(2 * SHARED / n),  # of an exponential distribution
                signal_left=left / above,
                signal_left_error=(np.sqrt(2 * SHARED * n) + _FLOOR_ERROR * n) / above,
                noise_left=np.maximum(noise_left - np.where(sure, noisy_excess, 0), 0),
            )

    def noise_left(self) -> float:
        """Share of the noise's standard deviation in the denoised frame where no signal is seen.

        What the noisy frame has there above its noise is faint signal and does not count.
        """
        rings = self.rings()
        ring = ring_of(self.frequency)
        weight = np.bincount(
            ring[~self.spectrum.signal], self.floor[~self.spectrum.signal], minlength=N_RINGS + 1
        )[:N_RINGS]
        known = np.isfinite(rings.noise_left)
        if not weight[known].sum() > 0:
            return 0.0
        return float(np.sqrt((rings.noise_left * weight)[known].sum() / weight[known].sum()))

    def peaks(self) -> tuple[Peak, ...]:
        """Sharp peaks of the noisy and of the denoised frame, the strongest first."""
        noisy, denoised = box_mean(self.noisy, 3), box_mean(self.denoised, 3)
        shown = self._sharp(denoised)
        found = (self._sharp(noisy) | shown) & self._half()
        along = box_mean((self._denoised * self._noisy.conj()).real, 3)
        against = box_mean((self._denoised * self._residual.conj()).real, 3)
        peaks = []
        for y, x in np.argwhere(found):
            denial = 0.0  # a trace of what is lost may have any phase
            if shown[y, x]:
                denial = against[y, x] / np.sqrt(denoised[y, x] / 2 * SHARED / 9)
            is_denied = denial < -_CONTRADICTED and against[y, x] < -0.5 * denoised[y, x]
            if not (noisy[y, x] > _PEAK or is_denied):
                continue  # too weak for this frame to tell
            kept = float(along[y, x] / max(noisy[y, x] - 1, 1e-9))
            state: PeakState = "kept" if kept >= KEPT else "lost" if kept < LOST else "weakened"
            if is_denied:
                state = "unsupported"
            frequency = float(self._axes[0][y]), float(self._axes[1][x])
            peaks.append(
                Peak(
                    frequency=frequency,
                    strength=float(noisy[y, x]),
                    kept=kept,
                    state=state,
                    denial=max(-float(denial), 0.0),
                )
            )
        peaks = self._of_a_lattice(peaks)
        peaks.sort(key=lambda peak: (peak.state != "unsupported", -peak.strength))
        return tuple(peaks[:_MOST_PEAKS])

    def _sharp(self, power: AnyArray) -> BoolArray:
        """Local maxima that stand out from what is around them and from their ring."""
        highest = power.copy()
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                np.maximum(highest, np.roll(power, (dy, dx), (0, 1)), out=highest)
        around = (box_mean(power, 15) * 225 - box_mean(power, 7) * 49) / (225 - 49)
        sharp = (power >= highest) & (power > _PEAK) & (power > _SHARP * around)
        rings = np.rint(self.frequency * min(power.shape)).astype(np.int32)
        diffuse: dict[int, float] = {}  # by ring
        for y, x in np.argwhere(sharp & self._half()):
            ring = int(rings[y, x])
            if ring not in diffuse:
                diffuse[ring] = float(np.median(power[rings == ring]))
            near = power[np.ix_((y + _NEAR) % power.shape[0], (x + _NEAR) % power.shape[1])]
            tenth = np.quantile(near[_ANNULUS], 0.9)
            sharp[y, x] = power[y, x] > max(_ALONE * tenth, _SHARP * diffuse[ring])
        return np.asarray(sharp)

    def _of_a_lattice(self, peaks: list[Peak]) -> list[Peak]:
        """Without those on an axis where there are no others: lines make them, no lattice."""
        fy, fx = (_ON_AXIS / n for n in self.floor.shape)
        on_axis = [min(abs(p.frequency[0]) / fy, abs(p.frequency[1]) / fx) < 1 for p in peaks]
        if on_axis.count(False) >= _OFF_AXIS:
            return peaks
        return [
            peak
            for peak, is_on in zip(peaks, on_axis, strict=True)
            if peak.state == "unsupported" or not is_on
        ]

    def _half(self) -> BoolArray:
        """One of each pair of frequencies; not the middle, which the window smears."""
        fy, fx = self._axes[0][:, None], self._axes[1][None, :]
        beyond = self.frequency > max(4.5 / min(self.floor.shape), 0.012)
        return np.asarray(((fy > 0) | ((fy == 0) & (fx > 0))) & beyond)

    def autocorrelations(self) -> tuple[AnyArray, AnyArray]:
        """Of the residual and of the noise: (2 LAGS + 1, 2 LAGS + 1) each, their middle 1."""
        residual, noise = (
            np.fft.fftshift(np.fft.ifft2(power).real)
            for power in (self.residual * self.floor, self.floor)
        )
        # A window's own correlation falls off with the lag.
        shape = self.spectrum.window
        own = np.fft.fftshift(np.fft.ifft2(np.abs(np.fft.fft2(shape)) ** 2).real)
        y, x = (n // 2 for n in residual.shape)
        near = slice(y - LAGS, y + LAGS + 1), slice(x - LAGS, x + LAGS + 1)
        residual, noise = (
            lags[near] / lags[y, x] if lags[y, x] > 0 else np.zeros_like(lags[near])
            for lags in (residual, noise)
        )
        return residual / (own[near] / own[y, x]), noise
