"""The waves of a lattice in means of lines, told from what changes from line to line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray

_PEAK = 12.0  # times the power around it: a lattice's
_FINER = 4  # times the frequencies of lines are those at which a lattice's waves are sought
_NEAR = 3 * _FINER  # of these: beyond a peak's own width


def without_waves(values: AnyArray) -> AnyArray:
    """Sequences (n, m) without waves that stand out of a spectrum; NaN if these leave too little.

    A lattice seldom has whole periods over the frame, so its waves are sought with a window and
    fitted. Their amplitude and phase may drift, as real lattices are distorted; with a drift like
    the window's itself, a fitted wave is gone from the spectrum and not found again.
    """
    n = len(values)
    window = np.hanning(n + 2)[1:-1, None]
    drift = np.linspace(-1, 1, n)[:, None]
    fitted = np.full((n, 1), n**-0.5)  # an orthonormal basis
    rest = values - values.mean(axis=0)
    known = np.empty(0, np.intp)
    while fitted.shape[1] < 0.4 * n:
        peaks = _peaks(np.abs(np.fft.rfft(rest * window, _FINER * n, axis=0)) ** 2)
        if not peaks.size:
            return np.asarray(rest)
        peaks = _with_harmonics(peaks, known, _FINER * n // 2)
        known = np.append(known, peaks)
        phases = 2 * np.pi * np.outer(np.arange(n), peaks / (_FINER * n))
        waves = np.hstack([np.cos(phases), np.sin(phases)])
        waves = np.hstack([waves, waves * drift, waves * window])
        waves, _ = np.linalg.qr(waves - fitted @ (fitted.T @ waves))
        fitted = np.hstack([fitted, waves])
        rest = rest - waves @ (waves.T @ rest)
    return np.full_like(rest, np.nan)


def _with_harmonics(peaks: AnyArray, known: AnyArray, highest: int) -> AnyArray:
    """Places of peaks and of twice their frequency, where offsets may hide a lattice's wave."""
    harmonics = 2 * peaks[2 * peaks < highest - 2 * _FINER]
    distances = np.abs(np.subtract.outer(harmonics, np.append(peaks, known)))
    return np.append(peaks, harmonics[distances.min(axis=1) > _NEAR])


def _peaks(power: AnyArray) -> AnyArray:
    """Places of sharp peaks in any of the spectra (f, m), which are padded `_FINER` times."""
    far = _NEAR + _FINER - 1  # as two edges' spectrum is zero at even distances from its crests
    padded = np.pad(power, ((far, far), (0, 0)), mode="reflect")
    beside = [padded[far + step :][: len(power)] for step in (-far, -_NEAR, _NEAR, far)]
    floor = np.median(power[2 * len(power) // 5 :], axis=0)  # of frequencies above 0.2
    is_peak = power > _PEAK * np.maximum(np.max(beside, axis=0), floor)
    is_peak[: 2 * _FINER] = is_peak[-2 * _FINER :] = False  # sine and cosine are no two waves there
    strength = np.where(is_peak, power, 0).max(axis=1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(strength, _NEAR), 2 * _NEAR + 1)
    return np.flatnonzero((strength > 0) & (strength == around.max(axis=-1)))
