"""Where a detector's limits cut the noise off: saturation, and an offset set too low."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.spectrum import box_mean, gaussian

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, BoolArray

_FEW_VALUES = 8  # different ones; with so few a frame's extremes are no limits of the detector
_PILE = 16  # pixels, the fewest of a pile
_HIGHER = 4  # times the pixels of any of the values beside it
_BESIDE = 4  # values
_NEAR = 5  # rows and columns around a pixel
_MOST = 0.75  # of the largest share of these at the lower limit that there is
_RUNS_ON = 3  # times its 5 % quantile is the median of what noise leaves above a limit, or more
_AREA = 0.1  # of these at a limit, from which on they are more than tails of the noise
_MARGIN = 6  # pixels; where an area begins, the frame has a bend sharper than a lens makes
_ENOUGH = 0.25  # of the frame, which must be left to measure


@dataclass(frozen=True, kw_only=True, eq=False)
class AtLimits:
    """Which pixels (H, W) pile up at an end of a detector's range; all false: none."""

    highest: BoolArray
    lowest: BoolArray

    @property
    def either(self) -> BoolArray:
        """(H, W)."""
        return self.highest | self.lowest


@dataclass(frozen=True, kw_only=True, eq=False)
class LeftOut:
    """What of a frame is not to be measured."""

    weight: AnyArray
    """(H, W), 0 in areas of clipped pixels and around, 1 farther off, and smooth."""
    clipped: BoolArray
    """(H, W), true where a pixel is at a limit."""


def at_limits(pixels: AnyArray, hot: BoolArray) -> AtLimits:
    """Where a frame is at the limits of its detector.

    Values of continuous noise, or of more than a few steps, do not pile up unless something cuts
    them off. Counts of single events pile up at zero, but there they are the signal: a step lies
    between zero and the next of them, while noise that was cut off runs on to the limit.

    Parameters
    ----------
    pixels
        (H, W), any real type.
    hot
        (H, W), true where pixels tell nothing of the limits.
    """
    others = pixels[~hot] if hot.any() else pixels.ravel()
    highest, lowest = (
        (pixels == limit) & ~hot if is_pile else np.zeros(pixels.shape, np.bool_)
        for limit, is_pile in zip((others.max(), others.min()), _piles(others), strict=True)
    )
    if lowest.any() and _is_a_step_below(pixels, lowest):
        lowest = np.zeros(pixels.shape, np.bool_)
    return AtLimits(highest=highest, lowest=lowest)


def _piles(pixels: AnyArray) -> tuple[bool, bool]:
    """Whether pixels (n,) pile up at their highest, and at their lowest value."""
    if max(np.count_nonzero(pixels == limit) for limit in (pixels.max(), pixels.min())) < _PILE:
        return False, False
    values, n_pixels = np.unique(pixels, return_counts=True)
    if values.size <= _FEW_VALUES:
        return False, False
    return _is_pile(n_pixels[::-1]), _is_pile(n_pixels)


def _is_pile(n_pixels: AnyArray) -> bool:
    """Whether many more have the first value than those beside it."""
    return bool(n_pixels[0] >= _PILE and n_pixels[0] > _HIGHER * n_pixels[1 : _BESIDE + 1].max())


def _is_a_step_below(pixels: AnyArray, lowest: BoolArray) -> bool:
    """Whether the others, where most pixels are lowest, lie a step above them."""
    share = box_mean(lowest.astype(np.float64), _NEAR)
    among = (share > _MOST * np.quantile(share[lowest], 0.99)) & ~lowest
    above = pixels[among].astype(np.float64) - float(pixels[lowest][0])
    if above.size < _PILE:
        return True
    step, middle = np.quantile(above, (0.05, 0.5))
    return bool(middle < _RUNS_ON * step)


def left_out(clipped: BoolArray) -> LeftOut | None:
    """What is not to be measured of a frame with clipped pixels (H, W); None where there are none.

    Areas have no weight, unless too little would remain.
    """
    if not clipped.any():
        return None
    ones, side = clipped.astype(np.float64), 2 * _MARGIN + 1
    areas = (box_mean(ones, _NEAR) > _AREA).astype(np.float64)
    around = box_mean(areas, side) > 0.5 / side**2
    weight = 1 - _blurred(around.astype(np.float64), _MARGIN / 3)
    if np.square(weight).mean() < _ENOUGH:
        weight = np.ones(clipped.shape)
    return LeftOut(weight=weight, clipped=clipped)


def _blurred(values: AnyArray, sigma: float) -> AnyArray:
    """By a Gaussian, on a ring."""
    height, width = values.shape
    transfer = gaussian((height, width), sigma)
    return np.fft.irfft2(np.fft.rfft2(values) * transfer, s=values.shape).clip(0, 1)
