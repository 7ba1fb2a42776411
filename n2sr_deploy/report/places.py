"""Where, in the frame itself, the residual is not noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.report.findings import Place
from n2sr_deploy.spectrum import gaussian

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray

SIZES = (1.5, 3.0, 6.0, 12.0)  # pixels; standard deviation of the Gaussian a place is averaged with
CHANCE = 1e-3  # that noise alone shows a place, in all of a frame
MOST_TOLD = 50  # places
_OWN_SHARE = 0.4  # of the residual's departure that the denoised frame's own structure makes up


def significant_places(
    residual: AnyArray, denoised: AnyArray, noise_std: AnyArray, colour: AnyArray
) -> tuple[Place, ...]:
    """Where averages of the residual exceed what the noise leaves in them.

    Parameters
    ----------
    residual, denoised
        (H, W), counts.
    noise_std
        (H, W), counts: the noise at each pixel.
    colour
        (h, w): the noise's power over frequency, of mean 1; of a part of the frame if need be.

    Returns
    -------
    At most 50, the most significant first. A place is invented where the denoised frame has there
    what the residual lacks, of the same size; else something of the data is missing from it.
    """
    shape = residual.shape
    normal = residual / noise_std
    padded = shape[0] + int(4 * SIZES[-1]), shape[1] + int(4 * SIZES[-1])
    transforms = [np.fft.rfft2(image, s=padded) for image in (normal, denoised - denoised.mean())]
    found: list[Place] = []
    for size in SIZES:
        narrow, wide = gaussian(padded, size), gaussian(padded, 2 * size)
        averaged = _back(transforms[0] * narrow, padded, shape)
        averaged /= math.sqrt(_passed(colour, size))
        own = _back(transforms[1] * (narrow - wide), padded, shape)
        limit = _limit(residual.size / (4 * math.pi * size**2))
        for row, column in _maxima(np.abs(averaged), max(2, round(2 * size)), limit):
            lacking = _departure(residual, row, column, size)
            opposite = -own[row, column] * np.sign(lacking)
            found.append(
                Place(
                    row=row,
                    column=column,
                    size=size,
                    sigmas=float(averaged[row, column]),
                    is_invented=bool(opposite > _OWN_SHARE * abs(lacking)),
                )
            )
    return _distinct(found)


def _back(transform: AnyArray, padded: tuple[int, ...], shape: tuple[int, ...]) -> AnyArray:
    return np.fft.irfft2(transform, s=padded)[: shape[0], : shape[1]]


def _passed(colour: AnyArray, size: float) -> float:
    """Variance that an average leaves of unit noise of this colour."""
    fy, fx = (np.fft.fftfreq(n) for n in colour.shape)
    power = np.exp(-4 * (math.pi * size) ** 2 * (fy[:, None] ** 2 + fx[None, :] ** 2))
    return float((power * colour).mean())


def _limit(n_independent: float) -> float:
    """How many standard errors noise exceeds somewhere with a chance of `CHANCE`."""
    chance = CHANCE / len(SIZES) / max(n_independent, 1) / 4  # maxima are sought at every pixel
    sigmas = 3.0
    while math.erfc(sigmas / math.sqrt(2)) > chance:
        sigmas += 0.05
    return sigmas


def _maxima(values: AnyArray, radius: int, limit: float) -> list[tuple[int, int]]:
    """Maxima above a limit, none within `radius` of a higher one."""
    above = np.argwhere(values > limit)
    above = above[np.argsort(-values[tuple(above.T)])]
    taken = np.zeros(values.shape, np.bool_)
    maxima = []
    for row, column in above:
        if not taken[row, column]:
            maxima.append((int(row), int(column)))
            window = slice(max(row - radius, 0), row + radius + 1)
            taken[window, max(column - radius, 0) : column + radius + 1] = True
        if len(maxima) == MOST_TOLD:
            break
    return maxima


def _departure(residual: AnyArray, row: int, column: int, size: float) -> float:
    """The residual averaged around a place, in counts."""
    reach = math.ceil(3 * size)
    rows = np.arange(max(row - reach, 0), min(row + reach + 1, residual.shape[0]))
    columns = np.arange(max(column - reach, 0), min(column + reach + 1, residual.shape[1]))
    y, x = (
        np.exp(-0.5 * ((at - middle) / size) ** 2)
        for at, middle in ((rows, row), (columns, column))
    )
    weight = np.outer(y, x)
    return float(
        (weight * residual[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).sum()
        / weight.sum()
    )


def _distinct(places: list[Place]) -> tuple[Place, ...]:
    """One of each group of places that overlap, the most significant."""
    kept: list[Place] = []
    for place in sorted(places, key=lambda place: -abs(place.sigmas)):
        apart = all(
            math.hypot(place.row - other.row, place.column - other.column)
            > 2 * max(place.size, other.size)
            for other in kept
        )
        if apart:
            kept.append(place)
        if len(kept) == MOST_TOLD:
            break
    return tuple(kept)
