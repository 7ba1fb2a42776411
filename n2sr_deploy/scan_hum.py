"""Hum of the mains in a scan: how far it displaced the rows, told from what is denoised.

A denoised frame shows it; in a noisy one it cannot be seen.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.displaced_rows import (
    FARTHEST,
    Hum,
    displaced,
    from_middle,
    rows_displaced,
    rows_straightened,
    straightened,
    waves_of,
)

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, FloatArray

_SMALLEST = 64  # rows and columns below which a hum says too little
_LARGEST = 512  # rows and columns that are enough; more would take longer
_LOWEST = 1 / 8  # cycles per row; slower ones may be the specimen's
_BLUR = 2.0  # rows, standard deviation, that hide the hum at first
_LEAST = 0.25  # pixels
_STEPS = 8  # of Gauss and Newton
_PARTS, _ALIKE = 3, 0.25  # of the rows, and how far the waves of each may differ from all
_STEPPED = 0.1  # of what rows differ by from the next: what the more alike of two pairs do
_FEW = 0.9  # of the squares, that two profiles along the rows may explain
_SEEN, _EXPLAINED = 0.25, 0.6  # of what rows differ from their neighbours by, at first and at last


def find_hum(denoised: AnyArray) -> Hum | None:
    """Find how hum displaced the rows of a frame.

    An image that varies smoothly from row to row, and the waves, are fitted in turn (Gauss and
    Newton). They are believed where they explain at least 0.6 of what rows differ from their
    neighbours by.

    Parameters
    ----------
    denoised
        (H, W), in counts, the last axis that of the fast scan. Its middle tells.

    Returns
    -------
    The waves, of a quarter of a pixel to four; None where there are none, or the frame is smaller
    than 64 x 64. Deterministic.
    """
    image = denoised[_middle(denoised.shape[0]), _middle(denoised.shape[1])].astype(np.float64)
    if min(image.shape) < _SMALLEST:
        return None
    image -= image.mean(axis=1, keepdims=True)  # layers along the rows look like hum
    hum = _first(image)
    for _ in range(_STEPS):
        if hum is None or not _is_possible(hum):
            return None
        hum = _better(image, hum)
    return hum if hum is not None and _is_sure(image, hum) else None


def find_hum_between(noisy: AnyArray, straight: AnyArray) -> Hum | None:
    """Find how the rows of a noisy frame were displaced that lie straight in the denoised one.

    Parameters
    ----------
    noisy
        (H, W), as scanned; its middle tells.
    straight
        (H, W), denoised, after `put_straight`.

    Returns
    -------
    The waves, of a quarter of a pixel to four; None where three parts of the columns do not tell
    the same. Deterministic.
    """
    middle = _middle(noisy.shape[0]), _middle(noisy.shape[1])
    scanned, image = (x[middle].astype(np.float64) for x in (noisy, straight))
    if min(image.shape) < _SMALLEST:
        return None
    scanned, image = (x - x.mean(axis=1, keepdims=True) for x in (scanned, image))
    hum, _ = _most_explained(scanned, image)
    for _ in range(_STEPS):
        if not _is_possible(hum):
            return None
        hum = _nearer(scanned, image, hum)
    columns = np.array_split(np.arange(image.shape[1]), _PARTS)
    parts = [_nearer(scanned[:, part], image[:, part], hum) for part in columns]
    return hum if _is_possible(hum) and _are_alike(hum, parts) else None


def _is_sure(image: AnyArray, hum: Hum) -> bool:
    """Whether it explains enough, in all parts of the rows alike, and nothing else made it."""
    if not _is_possible(hum) or hum.frequency < _LOWEST:
        return False
    if _keeps_step(hum, len(image)) or _is_stepped(image) or _has_few_profiles(image):
        return False
    without = np.mean((image - rows_straightened(image, *np.zeros((2, len(image))))) ** 2)
    left = np.mean((image - displaced(straightened(image, hum), hum)) ** 2)
    if left > (1 - _EXPLAINED) * without:
        return False
    parts = np.array_split(image, _PARTS, axis=1)
    return _are_alike(hum, [_better(part, hum) for part in parts])


def _is_possible(hum: Hum) -> bool:
    return _LEAST <= hum.reach <= FARTHEST and hum.frequency < 0.5


def _are_alike(hum: Hum, parts: list[Hum]) -> bool:
    """Whether parts of the columns tell the same waves as all of them."""
    whole = np.array([*hum.down, *hum.aside])
    off = [np.linalg.norm(whole - [*part.down, *part.aside]) for part in parts]
    return bool(max(off) < _ALIKE * np.linalg.norm(whole))


def _keeps_step(hum: Hum, n_rows: int) -> bool:
    """Whether it returns after a whole number of rows.

    That is of enlarged, interlaced or compressed images: the mains do not know of the rows.
    """
    period = round(1 / hum.frequency)
    return abs(hum.frequency - 1 / period) < 1 / (2 * n_rows)


def _is_stepped(image: AnyArray) -> bool:
    """Whether of three rows two are always alike, as in an image enlarged by repeating rows."""
    apart = np.mean(np.diff(image, axis=0) ** 2, axis=1)
    return bool(np.minimum(apart[1:], apart[:-1]).sum() < _STEPPED * apart.sum())


def _has_few_profiles(image: AnyArray) -> bool:
    """Whether rows are sums of two profiles, as of layers along them and tilted waves.

    What hum would make of those, another such specimen shows too.
    """
    squares = np.linalg.eigvalsh(image @ image.T)
    return bool(squares[-2:].sum() > _FEW * squares.sum())


def put_straight(denoised: FloatArray) -> tuple[FloatArray, Hum | None]:
    """A denoised frame (H, W) with its rows where they belong, and how far hum displaced them.

    As it is, and None, where there is none. Deterministic.
    """
    hum = find_hum(denoised)
    return (denoised, None) if hum is None else (straightened(denoised, hum), hum)


def _middle(n: int) -> slice:
    """Of as many pixels as are enough; both ends are cut alike, so that waves keep their phase."""
    begin = max(0, (n - _LARGEST) // 2)
    return slice(begin, n - begin)


def _blurred(image: AnyArray) -> AnyArray:
    """Along columns."""
    n_rows, reach = len(image), math.ceil(4 * _BLUR)
    shifts = np.arange(-reach, reach + 1)
    weights = np.exp(-(shifts**2) / (2 * _BLUR**2))
    result = np.zeros_like(image)
    for shift, weight in zip(shifts, weights / weights.sum(), strict=True):
        result += weight * image[np.clip(np.arange(n_rows) + shift, 0, n_rows - 1)]
    return result


def _slopes(image: AnyArray) -> AnyArray:
    """(2, H, W): along columns, and along rows."""
    return np.asarray(np.gradient(image))


class _Sums(NamedTuple):
    """What of a least-squares problem does not depend on the waves: sums over each row."""

    squares: AnyArray
    """(2, 2, H), of the slopes."""
    products: AnyArray
    """(2, H), of the slopes with the difference."""

    @classmethod
    def of(cls, difference: AnyArray, slopes: AnyArray) -> _Sums:
        return cls(
            np.einsum("ihw,jhw->ijh", slopes, slopes), np.einsum("ihw,hw->ih", slopes, difference)
        )

    def solved(self, ways: AnyArray) -> tuple[AnyArray, AnyArray]:
        """How much there is of each displacement (..., N, 2, H): (..., N).

        And by how much the squares fall: (...).
        """
        acted = (self.squares * ways[..., None, :]).sum(axis=-3).reshape(*ways.shape[:-2], -1)
        flat = ways.reshape(acted.shape)
        matrix = flat @ acted.swapaxes(-1, -2)
        vector = flat @ self.products.ravel()
        scale = np.sqrt(np.maximum(np.diagonal(matrix, axis1=-2, axis2=-1), 1e-300))
        matrix = matrix / (scale[..., None] * scale[..., None, :]) + 1e-9 * np.eye(scale.shape[-1])
        found = np.linalg.solve(matrix, (vector / scale)[..., None])[..., 0] / scale
        return found, np.sum(vector * found, axis=-1)


def _first(image: AnyArray) -> Hum | None:
    """The waves that explain most of what a blur along columns takes away."""
    smooth = _blurred(image)
    hum, explained = _most_explained(image, smooth)
    return hum if explained >= _SEEN * np.sum((image - smooth) ** 2) else None


def _most_explained(image: AnyArray, straight: AnyArray) -> tuple[Hum, float]:
    """The waves of small displacements, and by how much the squared difference falls with them."""
    sums = _Sums.of(image - straight, _slopes(straight))
    frequencies, ways = _candidates(len(image))
    found, explained = sums.solved(ways)
    best = int(np.argmax(explained))
    return _hum(float(frequencies[best]), found[best]), float(explained[best])


@functools.lru_cache(maxsize=1)  # of a stack always the same
def _candidates(n_rows: int) -> tuple[AnyArray, AnyArray]:
    """Frequencies, (F,), and their waves both ways, (F, 4, 2, H)."""
    frequencies = np.arange(_LOWEST, 0.5, 1 / (2 * n_rows))
    ways = np.stack([_both_ways(waves_of(f, n_rows)) for f in frequencies.tolist()])
    ways.flags.writeable = False
    return frequencies, ways


def _better(image: AnyArray, hum: Hum) -> Hum:
    """After a step more against the image with its rows put straight."""
    return _nearer(image, straightened(image, hum).astype(np.float64), hum)


def _nearer(image: AnyArray, straight: AnyArray, hum: Hum) -> Hum:
    """After a step of Gauss and Newton, of the frequency too."""
    n_rows = len(image)
    down, aside = hum.of_rows(n_rows)
    slopes = np.stack([rows_displaced(slope, down, aside) for slope in _slopes(straight)])
    waves = waves_of(hum.frequency, n_rows)
    turned = 2 * np.pi * from_middle(n_rows) * np.stack([-waves[1], waves[0]])
    by_frequency = np.stack([np.asarray(way) @ turned for way in (hum.down, hum.aside)])
    ways = np.concatenate([_both_ways(waves), by_frequency[None]])
    found, _ = _Sums.of(image - rows_displaced(straight, down, aside), slopes).solved(ways)
    before = np.array([*hum.down, *hum.aside])
    return _hum(hum.frequency + found[4], before + found[:4])


def _both_ways(waves: AnyArray) -> AnyArray:
    """(4, 2, H): each wave down, then each aside."""
    none = np.zeros_like(waves[0])
    return np.stack([*([wave, none] for wave in waves), *([none, wave] for wave in waves)])


def _hum(frequency: float, found: AnyArray) -> Hum:
    a, b, c, d = (float(value) for value in found[:4])
    return Hum(frequency=float(frequency), down=(a, b), aside=(c, d))
