"""What is mended before a frame is learned from or denoised: hot pixels and offsets of lines.

Both are told from specimen and noise by the frame's own statistics; nothing is assumed of its
counts. The frame itself is never written to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.sampling import AnyArray, BoolArray, FloatArray

# Of the surroundings' level; fine at both ends, as dead pixels are sought in the frame's negative.
_BINS = (0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1)
_STRIP = 256  # rows
_FEWEST = 300  # pixels a bin's tail is read from
_OUTLIERS = 20  # times the median of a bin's excesses: hot themselves, and no part of the tail
_ISOLATED = 0.6  # of the height above the surroundings: narrower than any lens makes a point
_VISIBLE = 0.3  # of the frame's contrast; a lower spike does no harm
_COMPANIONS = 2  # neighbours that a spike may spread over
_SLOW = 25  # lines; what changes over more belongs to the specimen
NOISELESS = 0.003  # of the frame's standard deviation; below, a spectrum shows its rounding
_PEAK = 20.0  # times the power around it: a lattice's
_SHARED = 0.5  # of the offsets' variance that any two quarters of the lines must share
_LINE_RATIO = 2.0  # offsets at least as strong as the noise that remains in a line's mean


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
            f"{self.hot.sum()} hot pixels replaced by the median of their surroundings"
            if self.hot.any()
            else "",
            f"offsets of rows (std {rows.std():.3g}) subtracted" if rows.any() else "",
            f"offsets of columns (std {columns.std():.3g}) subtracted" if columns.any() else "",
        ]
        return "; ".join(filter(None, done))


def repair(frame: Frame) -> Repaired:
    """Replace hot and dead pixels and x-ray spikes; subtract offsets of rows and columns.

    Parameters
    ----------
    frame
        (H, W) in counts.

    Returns
    -------
    The mended frame, float32 if anything was found, and what was mended. Deterministic.
    """
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


def untouched(frame: Frame) -> Repaired:
    """The frame as it is, with nothing taken out."""
    height, width = frame.shape
    return Repaired(
        frame=frame,
        hot=np.zeros((height, width), np.bool_),
        row_offsets=np.zeros(height, np.float32),
        column_offsets=np.zeros(width, np.float32),
    )


def hot_pixels(pixels: AnyArray) -> BoolArray:
    """Where single pixels, or two or three together, stand out as nothing else in the frame does.

    A pixel is hot, or dead, when it differs from the third most similar extreme of its eight
    neighbours by more than the noise at that level ever does, judged by the tail of that
    difference over the frame, and is narrower than a lens can image a point.

    Parameters
    ----------
    pixels
        (H, W), any real type.

    Returns
    -------
    (H, W) bool.
    """
    values = np.asarray(pixels, np.float32)
    return _spikes(values) | _spikes(-values)


def _spikes(values: FloatArray) -> BoolArray:
    excess, level = _against_neighbours(values)
    threshold = np.maximum(_thresholds(values, level, excess), _VISIBLE * _spread(values))
    spikes = np.zeros(values.shape, np.bool_)
    for y, x in np.argwhere(excess > threshold):
        window = values[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
        spikes[y, x] = excess[y, x] > _ISOLATED * (values[y, x] - np.median(window))
    return spikes


def _against_neighbours(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """How far each pixel exceeds all but the highest of its neighbours, and their level.

    In strips of rows: the neighbours take eight times the memory.
    """
    padded = np.pad(values, 1, mode="symmetric")
    excess, level = np.empty_like(values), np.empty_like(values)
    height, width = values.shape
    for top in range(0, height, _STRIP):
        rows = slice(top, min(top + _STRIP, height))
        around = np.stack(
            [
                padded[rows.start + dy : rows.stop + dy, dx : dx + width]
                for dy, dx in np.ndindex(3, 3)
                if (dy, dx) != (1, 1)
            ]
        )
        around.partition(7 - _COMPANIONS, axis=0)
        excess[rows] = values[rows] - around[7 - _COMPANIONS]
        level[rows] = around[: 8 - _COMPANIONS].mean(axis=0)  # no spike beside it raises it
    return excess, level


def _thresholds(values: FloatArray, level: FloatArray, excess: FloatArray) -> FloatArray:
    """(H, W): what `excess` does not reach by noise, from its own tail at the pixel's level.

    The tail is taken as exponential, which no detector's noise exceeds, and followed to where
    one pixel in a hundred thousand would lie; levels with too short a tail lie between their
    neighbours.
    """
    step = _smallest_step(values)
    edges = np.quantile(level, _BINS)
    bins = np.clip(np.searchsorted(edges, level, side="right") - 1, 0, len(_BINS) - 2)
    limits = {}
    for index in range(len(_BINS) - 1):
        above = excess[(bins == index) & (excess > 0)]
        if above.size >= _FEWEST:
            above = above[above <= _OUTLIERS * np.median(above)]
            q90, q97 = np.quantile(above, (0.9, 0.97))
            limits[index] = q97 + 6.6 * max(q97 - q90, 0.25 * q97, step)
    if not limits:
        return np.full(values.shape, np.inf, np.float32)
    every = np.interp(range(len(_BINS) - 1), list(limits), list(limits.values()))
    return np.asarray(every[bins], np.float32)


def _spread(values: FloatArray) -> float:
    """About the standard deviation, without the extremes."""
    low, high = np.quantile(values, (0.02, 0.98))
    return float(high - low) / 4


def _smallest_step(values: FloatArray) -> float:
    """Between neighbouring values where these are few, as of counts at a low dose; else 0."""
    distinct = np.unique(values.ravel()[:: max(values.size // 20_000, 1)])
    return float(np.diff(distinct).min()) if 1 < distinct.size < 200 else 0.0


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
    line, sharp peaks of their spectrum and single steps belong to the specimen and stay; the rest
    is offsets where it exceeds what the noise leaves and goes along the whole lines.

    Returns
    -------
    (H,) or (W,) float32 of zero mean.
    """
    lines = np.asarray(pixels, np.float64) if axis == 0 else np.asarray(pixels, np.float64).T
    n_lines, n_along = lines.shape
    lines = lines - lines.mean()
    if min(n_lines, n_along) < 32:
        return np.zeros(n_lines, np.float32)
    means = lines.mean(axis=1)
    others = _beside_the_means(lines)
    power, expected = _fast_power(means), np.median(_fast_power(others))
    noiseless = not expected * n_along > NOISELESS**2 * lines.var()
    if noiseless or not power > _LINE_RATIO * expected:
        return np.zeros(n_lines, np.float32)
    offsets = _aperiodic(means)
    variance, expected = _variance(offsets), np.median(_variance(_aperiodic(others)))
    if not variance > _LINE_RATIO * expected or not _is_shared(lines, variance - expected):
        return np.zeros(n_lines, np.float32)
    offsets[np.abs(offsets) > 5 * math.sqrt(variance)] = 0  # a line of the specimen's own
    offsets *= 1 - expected / variance  # the rest is noise that remains in a line's mean
    return np.asarray(offsets - offsets.mean(), np.float32)


def _is_shared(lines: AnyArray, variance: float) -> bool:
    """Whether offsets of this variance go along the whole lines; a specimen's edges do not."""
    quarters = [_aperiodic(part.mean(axis=1)) for part in np.array_split(lines, 4, axis=1)]
    covariance = np.cov(quarters)
    return bool(covariance[~np.eye(4, dtype=np.bool_)].min() > _SHARED * variance)


def _beside_the_means(lines: AnyArray) -> AnyArray:
    """(n_lines, 10): like the lines' means, but at low frequencies along the lines instead of zero.

    They carry as much noise, no offsets, and little of a specimen that changes from line to line.
    """
    n_along = lines.shape[1]
    window = np.hanning(n_along + 2)[1:-1]
    window /= math.sqrt(np.square(window).sum() * n_along / 2)
    waves = 2 * np.pi * np.outer(np.arange(n_along), np.fft.fftfreq(n_along)[3:8])
    return np.asarray(lines @ (np.hstack([np.cos(waves), np.sin(waves)]) * window[:, None]))


def _fast_power(values: AnyArray) -> AnyArray:
    """Of sequences (n, ...): the median power at frequencies above 0.2, among lattices' peaks."""
    n = len(values)
    window = np.hanning(n + 2)[1:-1].reshape(-1, *[1] * (values.ndim - 1))
    power = np.abs(np.fft.fft(values * window, axis=0)) ** 2 / np.square(window).sum()
    return np.asarray(np.median(power[np.abs(np.fft.fftfreq(n)) > 0.2], axis=0))


def _aperiodic(values: AnyArray) -> AnyArray:
    """Sequences (n, ...) without sharp peaks of their spectrum and without slow changes."""
    n = len(values)
    spectrum = np.fft.fft(values, axis=0)
    power = np.abs(spectrum) ** 2
    is_slow = (np.abs(np.fft.fftfreq(n)) * _SLOW <= 1).reshape(-1, *[1] * (values.ndim - 1))
    lattice = (power > _PEAK * running_median(power, 31)) & ~is_slow
    rest = values - np.fft.ifft(np.where(lattice, spectrum, 0), axis=0).real
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
