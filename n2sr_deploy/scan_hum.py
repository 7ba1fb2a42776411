"""Rows that mains hum displaced while they were scanned: how far, and how they are put straight.

A beam that the mains' field sways writes row i where row i + dy(i) belongs, and its pixels by
dx(i) aside. Both are waves of one frequency in i, and the same for all pixels of a row, which
takes a small part of a period. A denoised frame shows it; in a noisy one it cannot be seen.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from n2sr_deploy.errors import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from n2sr_deploy.sampling import AnyArray, FloatArray

_SMALLEST = 64  # rows and columns below which a hum says too little
_LARGEST = 512  # rows and columns that are enough; more would take longer
_LOWEST = 1 / 8  # cycles per row; slower ones may be the specimen's
_BAND = 256  # rows at once
_BLUR = 2.0  # rows, standard deviation, that hide the hum at first
_KERNEL = 0.8  # rows, standard deviation, about a place between the rows
_FARTHEST = 4.0  # rows or pixels
_LEAST = 0.25  # pixels
_STEPS = 8  # of Gauss and Newton
_PARTS, _ALIKE = 3, 0.25  # of the rows, and how far the waves of each may differ from all
_STEPPED = 0.1  # of what rows differ by from the next: what the more alike of two pairs do
_FEW = 0.9  # of the squares, that two profiles along the rows may explain
_SEEN, _EXPLAINED = 0.25, 0.6  # of what rows differ from their neighbours by, at first and at last


@dataclass(frozen=True, kw_only=True)
class Hum:
    """How far the rows of a frame are displaced.

    By ``cosine * cos(2 pi f i) + sine * sin(2 pi f i)``, with i the row counted from the middle.
    """

    frequency: float
    """f, cycles per row, from 1/8 to below 1/2."""
    down: tuple[float, float]
    """Cosine and sine of the displacement along columns, in rows."""
    aside: tuple[float, float]
    """Cosine and sine of that along rows, in pixels."""

    def of_rows(self, n_rows: int) -> tuple[AnyArray, AnyArray]:
        """(H,) and (H,): by how much each row lies farther down, and its content aside."""
        waves = _waves(self.frequency, n_rows)
        return np.asarray(self.down) @ waves, np.asarray(self.aside) @ waves

    @property
    def reach(self) -> float:
        """How far a row is displaced at most along either axis, in pixels."""
        return max(math.hypot(*self.down), math.hypot(*self.aside))

    def describe(self) -> str:
        """In words."""
        return (
            f"rows displaced to and fro every {1 / self.frequency:.2f} rows, as by mains hum, by "
            f"up to {math.hypot(*self.down):.2f} rows and {math.hypot(*self.aside):.2f} pixels "
            "along them"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Hum:
        """From what JSON kept; `FileFormatError` where that is no such hum."""
        try:
            (a, b), (c, d) = (map(float, values[key]) for key in ("down", "aside"))
            hum = cls(frequency=float(values["frequency"]), down=(a, b), aside=(c, d))
        except (KeyError, TypeError, ValueError):
            hum = None
        reaches = () if hum is None else (math.hypot(*hum.down), math.hypot(*hum.aside))
        if hum is None or not (0 < hum.frequency < 0.5 and all(r <= _FARTHEST for r in reaches)):
            raise FileFormatError(
                f"the record of n2sr tells of hum {values!r}, but a frequency below 0.5, and down "
                "and aside of two numbers each, up to 4 pixels, are expected; denoise again"
            )
        return hum


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
    without = np.mean((image - _straightened(image, *np.zeros((2, len(image))))) ** 2)
    left = np.mean((image - displaced(straightened(image, hum), hum)) ** 2)
    if left > (1 - _EXPLAINED) * without:
        return False
    parts = np.array_split(image, _PARTS, axis=1)
    return _are_alike(hum, [_better(part, hum) for part in parts])


def _is_possible(hum: Hum) -> bool:
    return _LEAST <= hum.reach <= _FARTHEST and hum.frequency < 0.5


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


def straightened(image: AnyArray, hum: Hum) -> FloatArray:
    """Put the rows where they belong.

    At the place of each row a straight line is fitted to the rows that lie about, weighted by a
    Gaussian of 0.8 rows, so that details of two rows are blurred.

    Parameters
    ----------
    image
        (H, W).
    hum
        Of `find_hum`.

    Returns
    -------
    (H, W) float32. Deterministic.
    """
    return _in_bands(_straightened, image, hum)


def displaced(image: AnyArray, hum: Hum) -> FloatArray:
    """Lay the rows where hum had them: the reverse of `straightened`, (H, W) float32."""
    return _in_bands(_shown, image, hum)


def _in_bands(
    act: Callable[[AnyArray, AnyArray, AnyArray], AnyArray], image: AnyArray, hum: Hum
) -> FloatArray:
    """Acted on band by band, since in float64 a large frame takes several times its memory."""
    down, aside = hum.of_rows(len(image))
    margin = _reach_of(down)
    result = np.empty(image.shape, np.float32)
    for begin in range(0, len(image), _BAND):
        first = max(0, begin - margin)
        near, inside = slice(first, begin + _BAND + margin), slice(begin, begin + _BAND)
        done = act(image[near].astype(np.float64), down[near], aside[near])
        result[inside] = done[begin - first :][: len(result[inside])]
    return result


def _reach_of(down: AnyArray) -> int:
    """How many rows above and below may lie where a row belongs."""
    return math.ceil(2 * float(np.abs(down).max()) + 3 * _KERNEL) + 1


def _middle(n: int) -> slice:
    """Of as many pixels as are enough; both ends are cut alike, so that waves keep their phase."""
    begin = max(0, (n - _LARGEST) // 2)
    return slice(begin, n - begin)


def _straightened(image: AnyArray, down: AnyArray, aside: AnyArray) -> AnyArray:
    lain = _shown(image, np.zeros(len(image)), -aside)
    places = np.arange(len(image)) + down
    reach = _reach_of(down)
    result = np.empty_like(lain)
    for row in range(len(image)):
        near = slice(max(0, row - reach), row + reach + 1)
        off = places[near] - row
        weight = np.exp(-(off**2) / (2 * _KERNEL**2)) + 1e-9 / (1 + off**2)  # never none
        n, first, second = (float((weight * off**power).sum()) for power in range(3))
        spread = n * second - first**2
        is_line = spread > 1e-3 * n**2  # else all lie at one place
        weight = weight * (second - first * off) / spread if is_line else weight / n
        result[row] = weight @ lain[near]
    return result


def _shown(image: AnyArray, down: AnyArray, aside: AnyArray) -> AnyArray:
    """Each row from farther down and aside."""
    if not (down.any() or aside.any()):
        return image
    n_rows, n_columns = image.shape
    lain, moved = np.zeros(image.shape), np.zeros(image.shape)
    for shift, weight in _cubic(down):
        lain += weight * image[np.clip(np.arange(n_rows) + shift, 0, n_rows - 1)]
    for shift, weight in _cubic(aside):
        columns = np.clip(np.arange(n_columns) + shift[:, None], 0, n_columns - 1)
        moved += weight * np.take_along_axis(lain, columns, axis=1)
    return moved


def _cubic(by: AnyArray) -> Iterator[tuple[AnyArray, AnyArray]]:
    """Four neighbours, (H,), and the weight of each, (H, 1): cubic convolution.

    Keys, IEEE Trans. Acoust. Speech Signal Process. 29 (1981) 1153.
    """
    below = np.floor(by).astype(int)
    for shift in (-1, 0, 1, 2):
        off = np.abs(by - below - shift)
        near = (1.5 * off - 2.5) * off**2 + 1
        far = ((-0.5 * off + 2.5) * off - 4) * off + 2
        yield below + shift, np.where(off <= 1, near, far)[:, None]


def _blurred(image: AnyArray) -> AnyArray:
    """Along columns."""
    n_rows, reach = len(image), math.ceil(4 * _BLUR)
    shifts = np.arange(-reach, reach + 1)
    weights = np.exp(-(shifts**2) / (2 * _BLUR**2))
    result = np.zeros_like(image)
    for shift, weight in zip(shifts, weights / weights.sum(), strict=True):
        result += weight * image[np.clip(np.arange(n_rows) + shift, 0, n_rows - 1)]
    return result


def _waves(frequency: float, n_rows: int) -> AnyArray:
    """(2, H): cosine and sine."""
    phase = 2 * np.pi * frequency * _from_middle(n_rows)
    return np.stack([np.cos(phase), np.sin(phase)])


def _slopes(image: AnyArray) -> AnyArray:
    """(2, H, W): along columns, and along rows."""
    return np.asarray(np.gradient(image))


def _from_middle(n_rows: int) -> AnyArray:
    return np.arange(n_rows) - (n_rows - 1) / 2


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
    ways = np.stack([_both_ways(_waves(f, n_rows)) for f in frequencies.tolist()])
    ways.flags.writeable = False
    return frequencies, ways


def _better(image: AnyArray, hum: Hum) -> Hum:
    """After a step more against the image with its rows put straight."""
    return _nearer(image, straightened(image, hum).astype(np.float64), hum)


def _nearer(image: AnyArray, straight: AnyArray, hum: Hum) -> Hum:
    """After a step of Gauss and Newton, of the frequency too."""
    n_rows = len(image)
    down, aside = hum.of_rows(n_rows)
    slopes = np.stack([_shown(slope, down, aside) for slope in _slopes(straight)])
    waves = _waves(hum.frequency, n_rows)
    turned = 2 * np.pi * _from_middle(n_rows) * np.stack([-waves[1], waves[0]])
    by_frequency = np.stack([np.asarray(way) @ turned for way in (hum.down, hum.aside)])
    ways = np.concatenate([_both_ways(waves), by_frequency[None]])
    found, _ = _Sums.of(image - _shown(straight, down, aside), slopes).solved(ways)
    before = np.array([*hum.down, *hum.aside])
    return _hum(hum.frequency + found[4], before + found[:4])


def _both_ways(waves: AnyArray) -> AnyArray:
    """(4, 2, H): each wave down, then each aside."""
    none = np.zeros_like(waves[0])
    return np.stack([*([wave, none] for wave in waves), *([none, wave] for wave in waves)])


def _hum(frequency: float, found: AnyArray) -> Hum:
    a, b, c, d = (float(value) for value in found[:4])
    return Hum(frequency=float(frequency), down=(a, b), aside=(c, d))
