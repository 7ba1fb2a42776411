"""What pixels that a result never saw say of it, by spatial frequency.

Their noise is independent of the result, so what it has in common with them is specimen. Noise,
and what a network draws everywhere alike, are in the result but not in them: two half-results
correlate there all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.noise import middle_of
from n2sr_deploy.report.findings import Confirmation
from n2sr_deploy.report.spectra import N_RINGS, RING_FREQUENCY, ring_of
from n2sr_deploy.sampling import held_out
from n2sr_deploy.spectrum import SHARED

if TYPE_CHECKING:
    from n2sr_deploy.pattern import SamplingPattern, Shape
    from n2sr_deploy.report.findings import LineAxis
    from n2sr_deploy.sampling import AnyArray, BoolArray, FloatArray

_TOGETHER = 3  # rings
_SURELY = 5.0  # standard errors: noise alone reached 3.5, and the weights have seen it besides
_MOSTLY = 0.5  # of what is shown


class HalfResult(NamedTuple):
    """A result of some of the frame's pixels."""

    image: FloatArray
    """(H, W), counts."""
    unseen: BoolArray
    """(H, W): pixels that it never saw, whose noise is not that of any it saw."""


class Halves(NamedTuple):
    """Two results of one network."""

    first: HalfResult
    second: HalfResult
    along: LineAxis | None = None
    """Where whole lines were seen: the axis they lie along."""


def unseen_by(
    pattern: SamplingPattern, shape: Shape, draws: range, *, seed: int, frame_index: int
) -> BoolArray:
    """(H, W): which pixels of a frame none of these draws keeps, nor correlates with.

    A pattern that keeps one line of three or more is for noise that reaches to the lines beside
    it. Cells that the border cuts off count as seen: a draw may mirror their pixels.
    """
    whole = tuple(n // stride * stride for n, stride in zip(shape, pattern.stride, strict=True))
    kept = np.zeros(whole, np.bool_)
    for sample in draws:
        key = {"sample": sample, "seed": seed, "frame_index": frame_index}
        kept |= ~held_out(pattern, (whole[0], whole[1]), **key)
    if pattern.shared is not None and pattern.group_size > 2:
        axis = 0 if pattern.shared == "row" else 1
        ahead, behind = (np.roll(kept, step, axis) for step in (1, -1))
        kept |= ahead | behind
    unseen = np.zeros(shape, np.bool_)
    unseen[: whole[0], : whole[1]] = ~kept
    return unseen


def draws_of_a_half(pattern: SamplingPattern) -> int:
    """How many draws make a half-result that leaves pixels unseen, of twice as many in a group."""
    return 1 if pattern.shared is not None else pattern.group_size // 2


def confirmation(noisy: AnyArray, halves: Halves) -> Confirmation:
    """Which share of what half-results show is in the pixels they never saw.

    Parameters
    ----------
    noisy
        (H, W) in counts.
    halves
        What was made of it.

    Returns
    -------
    (48,) each, up to 0.5 cycles per pixel; deterministic. By rings of frequency, three together.
    Of whole lines by frequency along them: across, a half-result shows the lines it saw displaced
    and others not (0016-cycle-spinning.md).
    """
    noisy = middle_of(noisy)
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in noisy.shape))
    fy, fx = (np.fft.fftfreq(n) for n in noisy.shape)
    fy, fx = fy[:, None] * (halves.along != "row"), fx[None, :] * (halves.along != "column")
    ring = ring_of(np.hypot(fy, fx))

    def summed(values: AnyArray) -> AnyArray:
        """Over each ring and those beside it."""
        sums = np.bincount(ring.ravel(), values.ravel(), minlength=N_RINGS + 1)[:N_RINGS]
        return np.convolve(sums, np.ones(_TOGETHER), mode="same")

    shown = in_common = variance = np.zeros(N_RINGS)
    for half in (halves.first, halves.second):
        image, unseen = middle_of(half.image), middle_of(half.unseen)
        residual = unseen / unseen.mean() * (noisy - image)
        drawn, lacking = (np.fft.fft2((x - x.mean()) * window) for x in (image, residual))
        shown = shown + summed(np.abs(drawn) ** 2)
        in_common = in_common + summed((lacking * drawn.conj()).real)
        # Where the halves leave some pixels both unseen (strides above 2), a little too small.
        variance = variance + SHARED * summed(
            _level(np.abs(lacking) ** 2, ring) * np.abs(drawn) ** 2
        )
    share = 1 + in_common / np.maximum(shown, 1e-300)
    error = np.sqrt(variance) / np.maximum(shown, 1e-300)
    surely = (share > _SURELY * error) & (share > _MOSTLY)
    return Confirmation(
        frequency=RING_FREQUENCY,
        along=halves.along,
        share=share,
        error=error,
        is_confirmed=surely,
        resolution=float(RING_FREQUENCY[surely].max()) if surely.any() else None,
    )


def _level(power: AnyArray, ring: AnyArray) -> AnyArray:
    """(h, w): the noise's mean power in each frequency's ring, whatever few peaks stand in it."""
    medians = np.zeros(N_RINGS + 1)
    numbers = np.unique(ring)  # of small frames and odd sizes some are empty
    medians[numbers] = [np.median(power[ring == number]) for number in numbers]
    return np.asarray(medians[ring] / np.log(2))  # of an exponential distribution
