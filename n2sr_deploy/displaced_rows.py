"""Rows that a wave displaced while they were scanned, and how they are moved.

A beam that the mains' field sways writes row i where row i + dy(i) belongs, and its pixels by
dx(i) aside. Both are waves of one frequency in i, and the same for all pixels of a row, which
takes a small part of a period.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.errors import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from n2sr_deploy.sampling import AnyArray, FloatArray

FARTHEST = 4.0  # rows or pixels
_BAND = 256  # rows at once
_KERNEL = 0.8  # rows, standard deviation, about a place between the rows


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
        waves = waves_of(self.frequency, n_rows)
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
        if hum is None or not (0 < hum.frequency < 0.5 and all(r <= FARTHEST for r in reaches)):
            raise FileFormatError(
                f"the record of n2sr tells of hum {values!r}, but a frequency below 0.5, and down "
                "and aside of two numbers each, up to 4 pixels, are expected; denoise again"
            )
        return hum


def straightened(image: AnyArray, hum: Hum) -> FloatArray:
    """Put the rows where they belong.

    At the place of each row a straight line is fitted to the rows that lie about, weighted by a
    Gaussian of 0.8 rows, so that details of two rows are blurred.

    Parameters
    ----------
    image
        (H, W).
    hum
        How they were displaced.

    Returns
    -------
    (H, W) float32. Deterministic.
    """
    return _in_bands(rows_straightened, image, hum)


def displaced(image: AnyArray, hum: Hum) -> FloatArray:
    """Lay the rows where hum had them: the reverse of `straightened`, (H, W) float32."""
    return _in_bands(rows_displaced, image, hum)


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


def rows_straightened(image: AnyArray, down: AnyArray, aside: AnyArray) -> AnyArray:
    """(H, W) float64, of rows that lie farther down and aside by (H,) each."""
    lain = rows_displaced(image, np.zeros(len(image)), -aside)
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


def rows_displaced(image: AnyArray, down: AnyArray, aside: AnyArray) -> AnyArray:
    """(H, W) float64, with each row from farther down and aside, by (H,) each."""
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


def waves_of(frequency: float, n_rows: int) -> AnyArray:
    """(2, H): cosine and sine, by the row's distance from the middle."""
    phase = 2 * np.pi * frequency * from_middle(n_rows)
    return np.stack([np.cos(phase), np.sin(phase)])


def from_middle(n_rows: int) -> AnyArray:
    """(H,): how far below the middle each row lies."""
    return np.arange(n_rows) - (n_rows - 1) / 2
