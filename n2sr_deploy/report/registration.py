"""Whether two frames show the same area, how far apart, and whether one has the other's noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.errors import FrameError
from n2sr_deploy.report.findings import Correlation
from n2sr_deploy.spectrum import SHARED, box_mean

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, BoolArray
    from n2sr_deploy.spectrum import Spectrum

_LOWEST = 2.5  # periods in a frame; slower, any two areas look alike
_BESIDE = 1.5  # periods in a frame, up to which a frequency lies on an axis
_UNRELATED = 4.0  # a score that frames of two areas reach at no shift; measured: up to 3.8
# A score to be expected of one area, from which a bad one tells that areas differ; frames of one
# area had at least half of it, distorted ones (scanned anew) the least.
_TELLING = 2 * _UNRELATED
_SURE_SCORE = 5.0  # a score whose shift is to be believed
_FITS = 0.7  # of the best fit, from which frames lie on each other
_AS_HIGH = 0.9  # of the highest peak: a lattice fits as well one distance farther
_VAGUE = 0.3  # standard error of a correlation that could not tell copies, of 1, from none
_PASSED = 0.3  # cycles per pixel, up to which a denoiser may keep some of the noise


class Registration(NamedTuple):
    """How the second of two frames lies to the first."""

    score: float
    """How well they fit where they fit best; unrelated frames scatter by about 1 / 2."""
    unshifted: float
    """The same where they lie, give or take a pixel."""
    rows: float
    """By how many pixels the second's content lies lower; of a lattice, the shortest such way."""
    columns: float
    error: float
    """Standard error of the shift, in pixels."""

    @property
    def shift(self) -> tuple[float, float] | None:
        """Rows and columns; 0 where it cannot be told from none, None where nothing is sure."""
        if self.score < _SURE_SCORE:
            return None
        is_seen = math.hypot(self.rows, self.columns) > 3 * self.error
        return (self.rows, self.columns) if is_seen else (0.0, 0.0)


def register(first: AnyArray, second: AnyArray, coherent: AnyArray) -> Registration | None:
    """By the phases of some frequencies.

    Parameters
    ----------
    first, second
        (H, W): the transforms of two frames, seen through one window.
    coherent
        (H, W), 0 to 1: how well their phases must agree if they show one area, as `coherence` has
        it; 0 where they show no signal.

    Returns
    -------
    How they lie; None where they fit badly but show too little signal to tell more of it.
    """
    fy, fx = (np.abs(np.fft.fftfreq(n)) for n in coherent.shape)
    y, x = fy[:, None] * fy.size, fx * fx.size
    # Offsets of rows and columns lie on the axes, and stay where they are when a specimen drifts.
    told = (np.minimum(y, x) > _BESIDE) & (np.hypot(y, x) > _LOWEST)
    weight = np.where(told, coherent, 0)
    n = float(np.square(weight).sum())
    if n == 0:
        return None
    cross = second * first.conj()
    phases = weight * cross / np.maximum(np.abs(cross), 1e-300)
    score = np.fft.ifft2(phases).real * phases.size / math.sqrt(n * SHARED)
    if score.max() < _SURE_SCORE and math.sqrt(n / SHARED) < _TELLING:
        return None
    row, column = _nearest_peak(score)
    squares = np.square(weight) * (fy[:, None] ** 2 + fx**2)
    steepness = 2 * math.pi * math.sqrt(float(squares.sum()) / n / 2)
    return Registration(
        score=float(score.max()),
        unshifted=float(score[np.ix_((-1, 0, 1), (-1, 0, 1))].max()),
        rows=_signed(row, score.shape[0]) + _vertex(score[:, column], row),
        columns=_signed(column, score.shape[1]) + _vertex(score[row], column),
        error=1 / (2 * float(score.max()) * steepness),  # unrelated frames scatter by 1 / 2
    )


def coherence(*powers: AnyArray) -> AnyArray:
    """(H, W), 0 to 1: how well phases agree of one signal in noise.

    Parameters
    ----------
    powers
        (H, W) each, over the noise's power: of both frames, or of the one that has noise.
    """
    signal = [1 - 1 / np.maximum(power, 1.0) for power in powers]
    return np.asarray(np.sqrt(np.prod(signal, axis=0)))


def check_area(name: str, found: Registration | None, *, may_drift: bool) -> None:
    """Raise FrameError where a frame surely shows another area than the noisy one."""
    if found is None:
        return
    if found.score < _UNRELATED:
        raise FrameError(
            f"the {name} shows another area than the noisy frame: the two have nothing in common "
            "at any shift; give frames of one area"
        )
    rows, columns = found.shift or (0.0, 0.0)
    if not may_drift and math.hypot(rows, columns) > 1 and found.unshifted < _FITS * found.score:
        raise FrameError(
            f"the {name} lies {rows:z.1f} rows and {columns:z.1f} columns off the noisy frame; "
            "give frames of one area that lie on each other"
        )


def noise_in_common(first: AnyArray, second: AnyArray, where: BoolArray) -> Correlation | None:
    """Of two transforms over some frequencies (H, W); None where there are too few of them."""
    a, b = first[where], second[where]
    powers = np.square(np.abs(a)), np.square(np.abs(b))
    product = float(powers[0].sum() * powers[1].sum())
    if not product > 0:
        return None
    # sqrt(SHARED / n) of white noise; a result's has fewer frequencies that count.
    error = math.sqrt(SHARED * float((powers[0] * powers[1]).sum()) / product)
    if error > _VAGUE:
        return None
    return Correlation(float((a * b.conj()).real.sum() / math.sqrt(product)), error)


def without_signal(first: Spectrum, second: Spectrum) -> BoolArray:
    """(H, W): the frequencies at which neither shows signal, but a denoiser may leave noise."""
    fy, fx = (np.fft.fftfreq(n) for n in first.shape)
    beside = box_mean((first.signal | second.signal).astype(float), 3) > 0.1  # or at it
    return np.asarray((np.hypot(fy[:, None], fx[None, :]) < _PASSED) & ~beside)


def _nearest_peak(score: AnyArray) -> tuple[int, int]:
    """Of the maxima about as high as the highest, the one nearest to no shift."""
    highest = np.ones(score.shape, np.bool_)
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        highest &= score >= np.roll(score, shift, (0, 1))
    rows, columns = np.nonzero(highest & (score > _AS_HIGH * score.max()))
    far = np.hypot(
        *(np.minimum(at, n - at) for at, n in zip((rows, columns), score.shape, strict=True))
    )
    index = int(np.argmin(far))
    return int(rows[index]), int(columns[index])


def _signed(at: int, n: int) -> int:
    return (at + n // 2) % n - n // 2


def _vertex(line: AnyArray, at: int) -> float:
    """Of the parabola through a maximum and its neighbours, from the maximum."""
    before, middle, after = (float(line[(at + step) % line.size]) for step in (-1, 0, 1))
    curvature = before - 2 * middle + after
    return 0.5 * (before - after) / curvature if curvature < 0 else 0.0
