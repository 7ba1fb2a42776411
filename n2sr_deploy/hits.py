"""X-ray hits of several pixels, which are no hot pixels, but no noise either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.cores import at_once
from n2sr_deploy.defects import without
from n2sr_deploy.hot_pixels import around, smallest_step
from n2sr_deploy.spectrum import box_mean

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, BoolArray

_FEW = 0.001  # of the pixels at either end, which hits are fewer than
_MANY = (0.003, 0.01, 0.02)  # or as many; with fewer, less of the specimen lies beyond
_BEYOND = 0.5  # of the span between these quantiles, past which a small group of pixels is a hit
_STEPS = 5  # between few values: more than single events lie beyond
_LARGEST = 9  # pixels of 5 x 5; a bright particle has more of them beyond
_TOUCHING = 18  # pixels of 5 x 5, among many hits, of which some touch
_NEARLY = 0.1  # of the pixels of many hits: half as far, where pulses and atoms have more
_NOISE = 3e-4  # of all pixels: what noise leaves there
_RING = 0.1  # of a hit's height, on the pixels around it; of the sharpest atoms 0.2
_FLANK = 0.4  # of the highest pixel of a hit; of an atom far above the noise most are lower
_FLANKS = 0.25  # of the pixels


def without_hits(pixels: AnyArray) -> AnyArray:
    """(H, W) float64 with the surroundings' median for small groups of pixels beyond all others.

    They hold more power than all the noise, and their own correlation. For the measurement only:
    what is learned from keeps them.
    """
    bright, dark = at_once(_hits, (pixels, -pixels))
    hits = bright | dark
    return np.where(hits, without(pixels, hits), pixels) if hits.any() else pixels


def _hits(pixels: AnyArray) -> BoolArray:
    """Those that are brighter than all else."""
    shares = (_FEW, *_MANY)
    quantiles = np.quantile(pixels, (*shares, *(1 - share for share in shares)))
    few, *many = zip(quantiles[: len(shares)], quantiles[len(shares) :], strict=True)
    hits = _few_hits(pixels, *few)
    for low, high in many:
        hits |= _many_hits(pixels, low, high)
    return hits


def _few_hits(pixels: AnyArray, low: float, high: float) -> BoolArray:
    """Where small groups lie far beyond all but the extremes."""
    limit, _ = _limits(low, high)
    beyond = pixels > limit
    if not beyond.any():
        return beyond
    return beyond & (25 * box_mean(beyond.astype(np.float64), 5) < _LARGEST + 0.5)


def _many_hits(pixels: AnyArray, low: float, high: float) -> BoolArray:
    """Groups of two pixels or more with clear edges, where they are too many to be extremes.

    Single electrons' pulses of all heights run on into the noise, or are single pixels, and what a
    lens images has flanks; where any of it is so, there are no hits.
    """
    none = np.zeros(pixels.shape, np.bool_)
    limit, half = _limits(low, high, _STEPS * smallest_step(pixels.ravel()))
    beyond = pixels > limit
    n_beyond = int(np.count_nonzero(beyond))
    n_nearly = int(np.count_nonzero(pixels > half)) - n_beyond
    if not n_beyond or _are_many(n_nearly, n_beyond, pixels.size):
        return none
    particles = (25 * box_mean(beyond.astype(np.float64), 5) > _TOUCHING + 0.5).astype(np.float64)
    small = beyond & (box_mean(particles, 7) < 0.01)
    hits = small & (9 * box_mean(small.astype(np.float64), 3) > 1.5)
    n_hits = int(np.count_nonzero(hits))
    if 2 * n_hits <= n_beyond or _are_many(n_nearly, n_hits, pixels.size):
        return none
    ring = (box_mean(hits.astype(np.float64), 3) > 0.05) & ~beyond
    far = (~ring & ~beyond).astype(np.float64)
    level = box_mean(np.where(far > 0, pixels, 0.0), 7) / np.maximum(box_mean(far, 7), 1e-9)
    above = pixels - level
    if above[ring].mean() > _RING * above[hits].mean():
        return none
    y, x = np.nonzero(hits)
    highest = around(above, y, x, 2).max(axis=1)
    is_flank = above[hits] < _FLANK * highest
    return hits if is_flank.mean() < _FLANKS else none


def _are_many(n_nearly: int, n_hits: int, n_pixels: int) -> bool:
    """Whether more pixels are nearly as bright than there are around so many hits."""
    return n_nearly > _NEARLY * n_hits + _NOISE * n_pixels


def _limits(low: float, high: float, margin: float = 0.0) -> tuple[float, float]:
    """What lies far beyond the higher of two quantiles, and half as far."""
    if low == high:  # so few counts that a single one is extreme
        return np.inf, np.inf
    reach = _BEYOND * (high - low) + margin
    return float(high + reach), float(high + reach / 2)
