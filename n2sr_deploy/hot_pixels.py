"""Hot and dead pixels and x-ray spikes, told from a specimen by the frame's own statistics."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.cores import at_once
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, BoolArray, FloatArray

_log = logging.getLogger("n2sr")
# Of the surroundings' level; fine at both ends, as dead pixels are sought in the frame's negative.
_BINS = (0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1)
_STRIP = 256  # rows
_ENOUGH = 2**20  # pixels to learn the noise's tail from
_FEWEST = 300  # pixels a bin's tail is read from
_OUTLIERS = 20  # times the median of a bin's excesses: hot themselves, and no part of the tail
_ISOLATED = 0.6  # of the height above the surroundings: narrower than any lens makes a point
_UNSURE = 0.15  # of the limit, by which noise makes a point look narrower
_NEARLY = 0.7  # of the limit
_TAIL = 3e-4  # of the pixels: more than noise leaves between there and the limit
_MANY = 0.015  # of the pixels
_MANY_BY_THEMSELVES = 0.001  # where they are all that is seen
_SMALL = 20_000  # pixels, of which this many hits are few
_SPECIMEN = 0.25  # of the variance, from which on more is seen than noise
_VISIBLE = 0.3  # of the frame's contrast; a lower spike does no harm
_COMPANIONS = 2  # neighbours that a spike may spread over


def hot_pixels(pixels: AnyArray) -> BoolArray:
    """Where single pixels, or two or three together, stand out as nothing else in the frame does.

    A pixel is hot, or dead, when it differs from the third most similar extreme of its eight
    neighbours by more than the noise at that level ever does, judged by the tail of that
    difference over the frame, and is narrower than a lens can image a point. Where pixels may stand
    out as the signal itself, as single electrons do on a detector that does not count them, none is
    hot, and a warning is logged.

    Parameters
    ----------
    pixels
        (H, W), any real type.

    Returns
    -------
    (H, W) bool.
    """
    hot, dead = at_once(lambda sign: _spikes(pixels, sign), (1, -1))
    return hot | dead


def _spikes(pixels: AnyArray, sign: int) -> BoolArray:
    """Where pixels stand out upwards (sign 1) or downwards (-1); some rows at a time."""
    sample = _sampled(pixels) * sign
    limits = _limits(pixels, sign, sample)
    visible = _VISIBLE * _spread(sample)
    spikes = np.zeros(pixels.shape, np.bool_)
    n_nearly = 0
    for top in range(0, len(pixels), _STRIP):
        values, excess, level = _against_neighbours(pixels, top, _STRIP, sign)
        y, x = np.nonzero(excess > _NEARLY * max(visible, limits.limits.min()))
        limit = limits.at(level[y, x])
        beyond = excess[y, x] / np.maximum(limit, visible)
        is_near = beyond > _NEARLY
        y, x, limit, beyond = y[is_near], x[is_near], limit[is_near], beyond[is_near]
        near = np.asarray(around(pixels, top + y, x, 3), np.float32) * sign
        height = values[y, x] - np.partition(near, 12)[:, 12]  # a quarter: dark between atoms
        narrow = excess[y, x] - _ISOLATED * height
        unsure = _UNSURE * limit + 0.5 * np.sqrt(limits.step * height.clip(0))
        is_spike = (beyond > 1) & (narrow > unsure)
        spikes[top + y, x] = is_spike
        n_nearly += int(np.count_nonzero(~is_spike & (narrow > 0)))
    spikes = _without_slopes(spikes, pixels, sign)
    n_spikes = int(np.count_nonzero(spikes))
    if _may_be_signal(n_spikes, n_nearly, spikes.size, limits.specimen):
        spikes[:] = False
        if n_spikes:
            _log.warning(
                "%s may be the frame's signal, as single electrons are, though as sharp as hot "
                "pixels; none is replaced",
                counted(n_spikes, "pixel"),
            )
    return spikes


def _may_be_signal(n_spikes: int, n_nearly: int, n_pixels: int, specimen: float) -> bool:
    """Whether single electrons make the spikes, rather than defects.

    Defects are rare, and few others are nearly as high and narrow, unlike of pulses, whose heights
    run on into the noise, and of atoms. More of them are believed where the frame shows a specimen
    without them.
    """
    many = _MANY_BY_THEMSELVES if specimen < _SPECIMEN else _MANY
    n_many = many * max(n_pixels, _SMALL)
    return n_spikes > n_many or n_nearly > 0.5 * n_spikes + _TAIL * n_pixels


def _without_slopes(spikes: BoolArray, pixels: AnyArray, sign: int) -> BoolArray:
    """Spikes but for those beside higher pixels that are none: on a slope, as between atoms."""
    y, x = np.nonzero(spikes)
    near = np.asarray(around(pixels, y, x, 1), np.float32) * sign
    higher = np.where(around(spikes, y, x, 1), -np.inf, near) > near[:, 4:5]
    found = spikes.copy()
    found[y, x] = ~higher.any(axis=1)
    return found


def around(values: AnyArray, y: AnyArray, x: AnyArray, reach: int) -> AnyArray:
    """What lies within `reach` of places (n,), row by row: (n, (2 reach + 1)^2)."""
    steps = np.arange(-reach, reach + 1)
    rows = (y[:, None] + steps).clip(0, values.shape[0] - 1)
    columns = (x[:, None] + steps).clip(0, values.shape[1] - 1)
    return np.asarray(values[rows[:, :, None], columns[:, None]].reshape(len(y), steps.size**2))


def _against_neighbours(
    pixels: AnyArray, top: int, n_rows: int, sign: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Some rows; how far each pixel exceeds all but the highest of its neighbours; their level."""
    height, width = pixels.shape
    rows = np.arange(top - 1, min(top + n_rows, height) + 1).clip(0, height - 1)
    signed: FloatArray = np.asarray(pixels[rows], np.float32) * np.float32(sign)
    padded = np.pad(signed, ((0, 0), (1, 1)), mode="edge")
    values = padded[1:-1, 1:-1]
    beside = [
        padded[dy : dy + len(values), dx : dx + width]
        for dy, dx in np.ndindex(3, 3)
        if (dy, dx) != (1, 1)
    ]
    highest = [np.full_like(values, -np.inf) for _ in range(_COMPANIONS + 1)]
    total = np.zeros_like(values)
    for neighbour in beside:
        total += neighbour
        rest = neighbour
        for place in highest:  # each keeps the higher of the two and hands on the lower
            lower = np.minimum(place, rest)
            np.maximum(place, rest, out=place)
            rest = lower
    total -= np.sum(highest[:-1], axis=0)
    total /= 8 - _COMPANIONS  # no spike beside it raises the level
    return values, values - highest[-1], total


class _Limits(NamedTuple):
    """What the excess of a pixel does not reach by noise."""

    edges: AnyArray
    """(n + 1,) of the surroundings' level."""
    limits: AnyArray
    """(n,) between them; infinite where nothing is known."""
    specimen: float
    """Share of the frame's variance that the surroundings show too; 0.14 of white noise."""
    step: float
    """Between values, where they are few; else 0."""

    def at(self, level: FloatArray) -> FloatArray:
        index = np.searchsorted(self.edges, level, side="right") - 1
        return np.asarray(self.limits[index.clip(0, len(self.limits) - 1)], np.float32)


def _limits(pixels: AnyArray, sign: int, sample: FloatArray) -> _Limits:
    """What the excess does not reach at each level, from the excesses' own tail.

    The tail is taken as exponential, which no detector's noise exceeds, and followed to where
    one pixel in a hundred thousand would lie; levels with too short a tail lie between their
    neighbours. Of a level and those beside it the highest limit counts, as a border without noise
    may share a level with a specimen.
    """
    parts = [
        _against_neighbours(pixels, top, n_rows, sign)[1:]
        for top, n_rows in _some_strips(pixels.shape)
    ]
    excess, level = (np.concatenate(found) for found in zip(*parts, strict=True))
    edges, step = np.quantile(level, _BINS), smallest_step(sample)
    bins, found = (np.searchsorted(edges, level, side="right") - 1).clip(0, len(_BINS) - 2), {}
    for index in range(len(_BINS) - 1):
        above = excess[(bins == index) & (excess > 0)]
        if above.size >= _FEWEST:
            above = above[above <= _OUTLIERS * np.median(above)]
            q90, q97 = np.quantile(above, (0.9, 0.97))
            found[index] = q97 + 6.6 * max(q97 - q90, 0.25 * q97, step)
    limits = np.full(len(_BINS) - 1, np.inf)
    if found:
        limits = np.interp(range(len(limits)), list(found), list(found.values()))
    limits = np.lib.stride_tricks.sliding_window_view(np.pad(limits, 1, "edge"), 3).max(axis=1)
    specimen = (_spread(level) / max(_spread(sample), 1e-30)) ** 2
    return _Limits(edges, limits, specimen, step)


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


def smallest_step(values: FloatArray) -> float:
    """Between neighbouring values where these are few, as of counts at a low dose; else 0."""
    distinct = np.unique(values[:: max(values.size // 20_000, 1)])
    return float(np.diff(distinct).min()) if 1 < distinct.size < 200 else 0.0
