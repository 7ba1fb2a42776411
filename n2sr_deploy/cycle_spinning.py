"""Cycle spinning: half of a frame's draws have their cells laid one line further.

Draws whose cells lie alike are a `DrawSet`; each set is drawn and merged by itself, then
`pool_sets` makes one result of two. docs/decisions/0016-cycle-spinning.md tells why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from n2sr_deploy.pattern import SamplingPattern, Shape
    from n2sr_deploy.sampling import AnyArray, FloatArray

_STRIP = 8  # rows


class DrawSet(NamedTuple):
    """Draws whose cells lie alike."""

    pixels: AnyArray
    """(h, w), what they are drawn from: the frame, or what is left of it from `shift` on."""
    first_sample: int
    n_samples: int

    @property
    def draws(self) -> slice:
        """Which of all."""
        return slice(self.first_sample, self.first_sample + self.n_samples)


def n_shifted(pattern: SamplingPattern, n_samples: int, shape: Shape, padded: Shape) -> int:
    """How many of a frame's draws, the last, have their cells laid elsewhere: `pattern.shift`.

    Parameters
    ----------
    pattern
        Which pixels compete to be kept.
    n_samples
        M, the number of draws.
    shape, padded
        (H, W) of the frame, and as the network takes it. None are where the frame is so small that
        it cannot be mirrored that far once a line is left out.

    Returns
    -------
    About half of them: the others are whole groups, each of which keeps every pixel once.
    """
    if pattern.shift is None:
        return 0
    reaches = all(
        whole <= 2 * (n - shift) - 1
        for whole, n, shift in zip(padded, shape, pattern.shift, strict=True)
    )
    group = pattern.group_size
    unshifted = group * max((n_samples + group) // (2 * group), 1)
    return max(n_samples - unshifted, 0) if reaches else 0


def draw_sets(
    pixels: AnyArray, pattern: SamplingPattern, n_samples: int, padded: Shape
) -> list[DrawSet]:
    """One or two of them, which together are all draws; parameters as for `n_shifted`."""
    others = n_shifted(pattern, n_samples, (pixels.shape[0], pixels.shape[1]), padded)
    unshifted = DrawSet(pixels, 0, n_samples - others)
    if not others or pattern.shift is None:
        return [unshifted]
    y, x = pattern.shift
    return [unshifted, DrawSet(pixels[y:, x:], unshifted.n_samples, others)]


def pool_sets(mean: FloatArray, std: FloatArray, sets: list[DrawSet], others: FloatArray) -> None:
    """Turn the first set's result into that of both, in place.

    Parameters
    ----------
    mean, std
        (H, W) float32 of the first set. The line before the second set's first stays as it is.
    sets
        Two of them.
    others
        (2, H, W) float32: mean and std of the second set, from its own first pixel on.
    """
    unshifted, shifted = sets
    rows, columns = shifted.pixels.shape
    mean, std = mean[-rows:, -columns:], std[-rows:, -columns:]
    weights = PoolWeights.of(unshifted.n_samples, shifted.n_samples)
    for top in range(0, rows, _STRIP):  # or what it works with would be as large as many frames
        strip = slice(top, min(top + _STRIP, rows))
        theirs = others[0, strip, :columns], others[1, strip, :columns]
        pool(mean[strip], std[strip], *theirs, weights)


class PoolWeights(NamedTuple):
    """What two results count when they become one."""

    own: float
    """Of the variance."""
    theirs: float
    """Of the others' variance."""
    between: float
    """Of the squared difference of the means, in the variance."""
    share: float
    """Of the others' mean."""

    @classmethod
    def of(cls, n: int, n_others: int) -> PoolWeights:
        """Of results of so many draws, at least 1 each."""
        total = n + n_others
        free = total - 1
        return cls(
            (n - 1) / free, (n_others - 1) / free, n * n_others / (total * free), n_others / total
        )


def pool(
    mean: FloatArray,
    std: FloatArray,
    mean_of_others: FloatArray,
    std_of_others: FloatArray,
    weights: PoolWeights,
) -> None:
    """Turn mean and standard deviation of some draws into those of all, in place.

    Parameters
    ----------
    mean, std
        (h, w) float32, as `merge` leaves them.
    mean_of_others, std_of_others
        (h, w) float32, of the other draws.
    weights
        By how many draws each has.
    """
    apart = mean_of_others.astype(np.float64) - mean
    # In float64, for in counts a square may be too small or too large for float32.
    squares = weights.own * np.square(std, dtype=np.float64)
    squares += weights.theirs * np.square(std_of_others, dtype=np.float64)
    squares += weights.between * np.square(apart)
    std[...] = np.sqrt(squares)
    mean += (weights.share * apart).astype(np.float32)
