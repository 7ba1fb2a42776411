"""How a frame too large for the memory at hand is cut into tiles that leave no seam.

The network sees more than a tile: its receptive radius on every side that has neighbours. All tiles
of a frame see as much, since some backends compile the network for each shape.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from n2sr_deploy.pattern import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.model import ModelMetadata
    from n2sr_deploy.pattern import Shape


class Tile(NamedTuple):
    """A part of the frame and the larger part the network must see for it; in pixels."""

    rows: slice
    columns: slice
    seen_rows: slice
    """Of the padded frame, as `seen_columns`."""
    seen_columns: slice

    @property
    def top(self) -> int:
        """Where its rows begin in what is seen."""
        return int(self.rows.start - self.seen_rows.start)

    @property
    def left(self) -> int:
        """Where its columns begin in what is seen."""
        return int(self.columns.start - self.seen_columns.start)

    def window(self, stride: Shape) -> Window:
        """What the network must see, in cells."""
        return Window(
            self.seen_rows.start // stride[0],
            self.seen_columns.start // stride[1],
            (self.seen_rows.stop - self.seen_rows.start) // stride[0],
            (self.seen_columns.stop - self.seen_columns.start) // stride[1],
        )


def tiles(meta: ModelMetadata, shape: Shape, seen: Shape) -> Iterator[Tile]:
    """Cover a frame with tiles.

    Parameters
    ----------
    meta
        Of the model.
    shape
        (H, W) of the frame.
    seen
        Rows and columns that the network sees for a tile: all of the padded frame along an axis,
        or a multiple of the network's above twice the overlap.

    Yields
    ------
    Tiles that cover each pixel once.
    """
    padded = meta.padded(shape)
    cuts = (_cut(padded[axis], seen[axis], overlap(meta, axis)) for axis in (0, 1))
    for (y, top, bottom), (x, left, right) in itertools.product(*cuts):
        rows, columns = slice(top, min(bottom, shape[0])), slice(left, min(right, shape[1]))
        if rows.start < rows.stop and columns.start < columns.stop:
            yield Tile(rows, columns, slice(y, y + seen[0]), slice(x, x + seen[1]))


def overlap(meta: ModelMetadata, axis: int) -> int:
    """What tiles see of their neighbours: the receptive radius, up to the network's multiple."""
    multiple = meta.pad_multiple[axis]
    return -(-meta.receptive_radius[axis] // multiple) * multiple


def seen_within(meta: ModelMetadata, shape: Shape, n_pixels: int) -> Shape:
    """What tiles may see so that all of them together cost least.

    Parameters
    ----------
    meta
        Of the model.
    shape
        (H, W) of the frame.
    n_pixels
        The most that may be seen at once.

    Returns
    -------
    Rows and columns; more than `n_pixels` only where the smallest tile does.
    """
    padded = meta.padded(shape)
    if padded[0] * padded[1] <= n_pixels:
        return padded
    rows, columns = (_choices(padded[axis], meta, axis) for axis in (0, 1))
    best, least = (rows[-1][1], columns[-1][1]), float("inf")
    for n_rows, height in rows:
        fitting = next((choice for choice in columns if height * choice[1] <= n_pixels), None)
        if fitting is None:
            continue
        n_columns, width = fitting
        cost = n_rows * height * n_columns * width
        if cost < least:
            best, least = (height, width), cost
    return best


def _choices(length: int, meta: ModelMetadata, axis: int) -> list[tuple[int, int]]:
    """Along an axis: how many tiles, and what each of them then sees; the largest first."""
    multiple, beside = meta.pad_multiple[axis], 2 * overlap(meta, axis)
    smallest, choices = beside + multiple, [(1, length)]
    n, seen = 1, length
    while seen > smallest:
        n += 1
        share = -(-(length + (n - 1) * beside) // n)
        seen = max(-(-share // multiple) * multiple, smallest)
        if seen < choices[-1][1]:
            choices.append((n, seen))
    return choices


def _cut(length: int, seen: int, beside: int) -> list[tuple[int, int, int]]:
    """Along an axis: where tiles that see `seen` pixels begin, and from where to where they count.

    Each begins within the padded frame; neighbours are seen by `beside` pixels on both sides.
    """
    if seen == length:  # then any overlap will do, even half of it
        return [(0, 0, length)]
    begins = [*range(0, length - seen, seen - 2 * beside), length - seen]
    ends = [begin + seen - beside for begin in begins[:-1]] + [length]
    return list(zip(begins, [0, *ends[:-1]], ends, strict=True))
