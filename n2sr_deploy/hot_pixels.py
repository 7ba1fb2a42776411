"""Hot and dead pixels and x-ray spikes, told from a specimen by the frame's own statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.sampling import AnyArray, BoolArray, FloatArray

# Of the surroundings' level; fine at both ends, as dead pixels are sought in the frame's negative.
_BINS = (0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1)
_STRIP = 256  # rows
_ENOUGH = 2**20  # pixels to learn the noise's tail from
_FEWEST = 300  # pixels a bin's tail is read from
_OUTLIERS = 20  # times the median of a bin's excesses: hot themselves, and no part of the tail
_ISOLATED = 0.6  # of the height above the surroundings: narrower than any lens makes a point
_VISIBLE = 0.3  # of the frame's contrast; a lower spike does no harm
_COMPANIONS = 2  # neighbours that a spike may spread over


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
    return _spikes(pixels, 1) | _spikes(pixels, -1)


def _spikes(pixels: AnyArray, sign: int) -> BoolArray:
    """Where pixels stand out upwards (sign 1) or downwards (-1); some rows at a time."""
    sample = _sampled(pixels) * sign
    limit = _limits(pixels, sign, _smallest_step(sample))
    visible = _VISIBLE * _spread(sample)
    spikes = np.zeros(pixels.shape, np.bool_)
    for top in range(0, len(pixels), _STRIP):
        values, excess, level = _against_neighbours(pixels, top, _STRIP, sign)
        seen = np.argwhere(excess > visible)
        is_beyond = excess[tuple(seen.T)] > limit(level[tuple(seen.T)])
        for y, x in seen[is_beyond]:
            window = pixels[max(top + y - 3, 0) : top + y + 4, max(x - 3, 0) : x + 4]
            height = values[y, x] - np.median(np.asarray(window, np.float32) * sign)
            spikes[top + y, x] = excess[y, x] > _ISOLATED * height
    return spikes


def _against_neighbours(
    pixels: AnyArray, top: int, n_rows: int, sign: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Some rows; how far each pixel exceeds all but the highest of its neighbours; their level."""
    height, width = pixels.shape
    rows = np.arange(top - 1, min(top + n_rows, height) + 1).clip(0, height - 1)
    signed: FloatArray = np.asarray(pixels[rows], np.float32) * np.float32(sign)
    padded = np.pad(signed, ((0, 0), (1, 1)), mode="edge")
    values = padded[1:-1, 1:-1]
    around = [
        padded[dy : dy + len(values), dx : dx + width]
        for dy, dx in np.ndindex(3, 3)
        if (dy, dx) != (1, 1)
    ]
    highest = [np.full_like(values, -np.inf) for _ in range(_COMPANIONS + 1)]
    total = np.zeros_like(values)
    for neighbour in around:
        total += neighbour
        rest = neighbour
        for place in highest:  # each keeps the higher of the two and hands on the lower
            lower = np.minimum(place, rest)
            np.maximum(place, rest, out=place)
            rest = lower
    total -= np.sum(highest[:-1], axis=0)
    total /= 8 - _COMPANIONS  # no spike beside it raises the level
    return values, values - highest[-1], total


def _limits(pixels: AnyArray, sign: int, step: float) -> Callable[[FloatArray], FloatArray]:
    """What the excess of a pixel at a level does not reach by noise, from the excesses' own tail.

    The tail is taken as exponential, which no detector's noise exceeds, and followed to where
    one pixel in a hundred thousand would lie; levels with too short a tail lie between their
    neighbours.
    """
    parts = [
        _against_neighbours(pixels, top, n_rows, sign)[1:]
        for top, n_rows in _some_strips(pixels.shape)
    ]
    excess, level = (np.concatenate(found) for found in zip(*parts, strict=True))
    edges = np.quantile(level, _BINS)

    def bin_of(level: FloatArray) -> AnyArray:
        return np.clip(np.searchsorted(edges, level, side="right") - 1, 0, len(_BINS) - 2)

    bins, found = bin_of(level), {}
    for index in range(len(_BINS) - 1):
        above = excess[(bins == index) & (excess > 0)]
        if above.size >= _FEWEST:
            above = above[above <= _OUTLIERS * np.median(above)]
            q90, q97 = np.quantile(above, (0.9, 0.97))
            found[index] = q97 + 6.6 * max(q97 - q90, 0.25 * q97, step)
    if not found:
        return lambda level: np.full(level.shape, np.inf, np.float32)
    every = np.interp(range(len(_BINS) - 1), list(found), list(found.values()))
    return lambda level: np.asarray(every[bin_of(level)], np.float32)


def _some_strips(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """First row and rows of strips over the whole frame: all of it, or as much as is enough."""
    height, width = shape
    if height * width <= _ENOUGH:
        return [(0, height)]
    n_strips = 16
    n_rows = max(_ENOUGH // width // n_strips, 1)
    tops = np.linspace(0, height - n_rows, n_strips).astype(int)
    return [(int(top), n_rows) for top in tops]


def _sampled(pixels: AnyArray) -> FloatArray:
    """All pixels, or as many as are enough."""
    if pixels.size <= _ENOUGH:
        return np.asarray(pixels, np.float32).ravel()
    places = np.random.default_rng(0).integers(pixels.size, size=_ENOUGH)
    return np.asarray(pixels.ravel()[places], np.float32)


def _spread(values: FloatArray) -> float:
    """About the standard deviation, without the extremes."""
    low, high = np.quantile(values, (0.02, 0.98))
    return float(high - low) / 4


def _smallest_step(values: FloatArray) -> float:
    """Between neighbouring values where these are few, as of counts at a low dose; else 0."""
    distinct = np.unique(values[:: max(values.size // 20_000, 1)])
    return float(np.diff(distinct).min()) if 1 < distinct.size < 200 else 0.0
