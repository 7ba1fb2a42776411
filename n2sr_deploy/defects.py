"""What is mended before a frame is learned from or denoised: hot pixels and offsets of lines.

Both are told from specimen and noise by the frame's own statistics; nothing is assumed of its
counts. The frame itself is never written to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.frame import Frame
from n2sr_deploy.hot_pixels import hot_pixels
from n2sr_deploy.waves import without_waves
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, BoolArray, FloatArray

_STRIP = 256  # rows
_SLOW = 25  # lines; what changes over more belongs to the specimen
NOISELESS = 0.003  # of the frame's standard deviation; below, a spectrum shows its rounding
_SHARED = 0.5  # of the offsets' variance that any two quarters of the lines must share
_LEAST = 64  # rows and columns that are worth a frame of their own, or tell of offsets
_CHANCE = 1e-9  # that blank lines are counts of zero
_LINE_RATIO = 2.0  # offsets at least as strong as the noise that remains in a line's mean
_LEAST_FAST = 0.06  # power, of that at medium frequencies: layers 0.01, random walks 0.2
_LEAST_USUAL = 0.6  # of the steps' variance, from their median: layers 0 to 0.3, offsets 1.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Repaired:
    """A frame without hot pixels and offsets, and what was taken out."""

    frame: Frame
    """The mended frame; the very one given when nothing was found."""
    hot: BoolArray
    """(H, W), true where a pixel was replaced by the median of its surroundings."""
    row_offsets: FloatArray
    """(H,), what was subtracted from each row, in counts; zeros when none was found."""
    column_offsets: FloatArray
    """(W,), likewise."""

    def describe(self) -> str:
        """What was mended, in words; empty when nothing was."""
        rows, columns = self.row_offsets, self.column_offsets
        done = [
            f"{counted(int(self.hot.sum()), 'hot pixel')} replaced by the median of the "
            "surroundings"
            if self.hot.any()
            else "",
            f"offsets of rows (std {rows.std():.3g}) subtracted" if rows.any() else "",
            f"offsets of columns (std {columns.std():.3g}) subtracted" if columns.any() else "",
        ]
        return "; ".join(filter(None, done))


def repair(frame: Frame | AnyArray) -> Repaired:
    """Replace hot and dead pixels and x-ray spikes; subtract offsets of rows and columns.

    Parameters
    ----------
    frame
        (H, W) in counts.

    Returns
    -------
    The mended frame, float32 if anything was found, and what was mended. Deterministic.
    """
    frame = Frame.of(frame)
    hot = hot_pixels(frame.pixels)
    pixels = frame.pixels
    if hot.any():
        pixels = without(pixels, hot)
    rows = line_offsets(pixels, axis=0)
    columns = line_offsets(pixels, axis=1)
    if rows.any() or columns.any():
        pixels = (pixels - rows[:, None] - columns).astype(np.float32)
    repaired = Repaired(frame=frame, hot=hot, row_offsets=rows, column_offsets=columns)
    if not repaired.describe():
        return repaired
    return replace(repaired, frame=frame.with_pixels(pixels, repaired.describe()))


def measured_part(pixels: AnyArray) -> tuple[slice, slice]:
    """The rows and columns without those at the edges that hold one value throughout.

    Rows that were not scanned yet and borders that alignment left are no part of the frame: nothing
    can be learned from them, and nothing should appear in them.

    Parameters
    ----------
    pixels
        (H, W), any real type.

    Returns
    -------
    Rows and columns, with a start and a stop; all of them where nothing is blank, where what
    remained would be too little to denoise, or where noise of few counts could have made it.
    """
    height, width = pixels.shape
    whole = slice(0, height), slice(0, width)
    top, bottom = _blank_lines(pixels)
    rows = slice(top, height - bottom)
    if rows.stop - rows.start < _LEAST:
        return whole
    left, right = _blank_lines(pixels[rows].T)
    columns = slice(left, width - right)
    inside = pixels[rows, columns]
    if inside.size == pixels.size or columns.stop - columns.start < _LEAST:
        return whole
    corner = pixels[0, 0] if top or left else pixels[-1, -1]
    share = np.count_nonzero(inside == corner) / inside.size
    is_chance = share ** (pixels.size - inside.size) > _CHANCE
    return whole if is_chance else (rows, columns)


def _blank_lines(lines: AnyArray) -> tuple[int, int]:
    """How many lines at the beginning and at the end hold one value throughout."""
    counts = []
    for ordered in (lines, lines[::-1]):
        value, n = ordered[0, 0], 0
        while n < len(ordered) and (ordered[n] == value).all():
            n += 1
        counts.append(n)
    return (0, 0) if counts[0] == len(lines) else (counts[0], counts[1])


def untouched(frame: Frame) -> Repaired:
    """The frame as it is, with nothing taken out."""
    height, width = frame.shape
    return Repaired(
        frame=frame,
        hot=np.zeros((height, width), np.bool_),
        row_offsets=np.zeros(height, np.float32),
        column_offsets=np.zeros(width, np.float32),
    )


def without(pixels: AnyArray, hot: BoolArray) -> FloatArray:
    """The pixels with the hot ones replaced by the median of the others within two pixels."""
    mended = np.array(pixels, np.float32)
    for y, x in np.argwhere(hot):
        window = slice(max(y - 2, 0), y + 3), slice(max(x - 2, 0), x + 3)
        good = pixels[window][~hot[window]]
        if good.size:
            mended[y, x] = np.median(good)
    return mended


def line_offsets(pixels: AnyArray, axis: int) -> FloatArray:
    """Offsets that whole rows (axis 0) or columns (axis 1) share, in counts; zeros if none.

    The mean of a line is specimen, offset and what remains of the noise. Slow changes from line to
    line, waves along them and single steps belong to the specimen and stay; the rest is offsets
    where it exceeds what the noise leaves and goes along the whole lines.

    Returns
    -------
    (H,) or (W,) float32 of zero mean; zeros of fewer than 64 lines or pixels along them, too.
    """
    lines = pixels if axis == 0 else pixels.T
    n_lines, n_along = lines.shape
    if min(n_lines, n_along) < _LEAST:
        return np.zeros(n_lines, np.float32)
    quarters, others, total_variance = _of_lines(lines)
    means = quarters @ [len(part) / n_along for part in np.array_split(range(n_along), 4)]
    floor = float(np.median(_fast_power(others)))
    noiseless = not floor * n_along > NOISELESS**2 * total_variance
    if noiseless or not _fast_power(means) > _LINE_RATIO * floor:
        return np.zeros(n_lines, np.float32)
    offsets, noise = _aperiodic(means), _aperiodic(others)
    variance, expected = _variance(offsets), np.median(_variance(noise))
    is_strong = variance > _LINE_RATIO * expected and _is_shared(quarters, variance - expected)
    if not is_strong or not _are_independent(offsets, floor):
        return np.zeros(n_lines, np.float32)
    # Of layers that seem to be waves only the lines as they are tell; on a lattice, only the rest.
    if _are_layers(means, noise) or _are_layers(offsets, noise):
        return np.zeros(n_lines, np.float32)
    offsets[np.abs(offsets) > 5 * math.sqrt(variance)] = 0  # a line of the specimen's own
    offsets *= 1 - expected / variance  # the rest is noise that remains in a line's mean
    return np.asarray(offsets - offsets.mean(), np.float32)


def _of_lines(lines: AnyArray) -> tuple[AnyArray, AnyArray, float]:
    """Means of each line's four quarters, waves along the lines, and the variance of all pixels.

    The waves (n_lines, 10) are like the lines' means, but at low frequencies along the lines
    instead of zero: they carry as much noise, no offsets, and little of a specimen that changes
    from line to line. Some lines at a time, in float64.
    """
    n_along = lines.shape[1]
    window = np.hanning(n_along + 2)[1:-1]
    window /= math.sqrt(np.square(window).sum() * n_along / 2)
    phases = 2 * np.pi * np.outer(np.arange(n_along), np.fft.fftfreq(n_along)[3:8])
    waves = np.hstack([np.cos(phases), np.sin(phases)]) * window[:, None]
    mean = lines.mean(dtype=np.float64)
    quarters, others, squares = [], [], 0.0
    for first in range(0, len(lines), _STRIP):
        some = lines[first : first + _STRIP] - mean
        parts = np.array_split(some, 4, axis=1)
        quarters.append(np.stack([part.mean(axis=1) for part in parts], axis=1))
        others.append(some @ waves)
        squares += float(np.square(some).sum())
    return np.concatenate(quarters), np.concatenate(others), squares / lines.size


def _is_shared(quarters: AnyArray, variance: float) -> bool:
    """Whether offsets of this variance go along the whole lines; a specimen's edges do not."""
    covariance = np.cov(_aperiodic(quarters).T)
    return bool(covariance[~np.eye(4, dtype=np.bool_)].min() > _SHARED * variance)


def _are_independent(offsets: AnyArray, floor: float) -> bool:
    """Whether offsets (n,) change from line to line; a lens does not leave layers so narrow."""
    power, frequency = _spectrum(offsets)
    fast = np.median(power[frequency > 0.4]) - floor
    medium = power[(frequency > 0.08) & (frequency < 0.3)].mean() - floor
    return bool(fast > max((_LINE_RATIO - 1) * floor, _LEAST_FAST * medium))


def _are_layers(lines: AnyArray, noise: AnyArray) -> bool:
    """Whether lines (n,) lie in groups of one level; noise (n, m) as it remains in their means.

    Then most steps from line to line are none, and a few are large. The very largest are left out:
    a line or two of their own make no layers, but three bars of the specimen do.
    """
    steps = np.diff(lines)
    usual = np.sort(np.square(steps))[: -2 - min(len(steps) // 60, 2)]
    of_noise = np.median(_variance(np.diff(noise, axis=0)))
    return bool(_variance(steps) - of_noise < _LEAST_USUAL * (usual.mean() - of_noise))


def _fast_power(values: AnyArray) -> AnyArray:
    """Of sequences (n, ...): the median power at frequencies above 0.2, among lattices' peaks."""
    power, frequency = _spectrum(values)
    return np.asarray(np.median(power[frequency > 0.2], axis=0))


def _spectrum(values: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Power of sequences (n, ...), windowed, and its frequencies (n,)."""
    n = len(values)
    window = np.hanning(n + 2)[1:-1].reshape(-1, *[1] * (values.ndim - 1))
    power = np.abs(np.fft.fft(values * window, axis=0)) ** 2 / np.square(window).sum()
    return power, np.abs(np.fft.fftfreq(n))


def _aperiodic(values: AnyArray) -> AnyArray:
    """Sequences (n, ...) without the waves of a lattice and without slow changes."""
    rest = without_waves(values.reshape(len(values), -1)).reshape(values.shape)
    return np.asarray(rest - running_median(rest, _SLOW))


def _variance(values: AnyArray) -> AnyArray:
    """Of sequences (n, ...), from the median: an edge moves a few values only."""
    return np.asarray((np.median(np.abs(values), axis=0) / 0.6745) ** 2)


def running_median(values: AnyArray, width: int) -> AnyArray:
    """Over `width` neighbours along the first axis, mirrored at the ends."""
    width = min(width, len(values) // 2 * 2 - 1)
    ends = [(width // 2, width // 2), *[(0, 0)] * (values.ndim - 1)]
    padded = np.pad(values, ends, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return np.asarray(np.median(windows, axis=-1))
