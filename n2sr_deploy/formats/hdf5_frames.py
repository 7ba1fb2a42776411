"""Frames in the datasets of HDF5 and zarr: which axes are theirs, and their calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.files import check_room
from n2sr_deploy.formats.base import (
    Axis,
    distinct,
)
from n2sr_deploy.formats.units import is_no_unit, one_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from n2sr_deploy.formats.base import Output
    from n2sr_deploy.sampling import AnyArray

    Signal = tuple[str, Any, Any]

LARGEST_CHUNK = 2**32 - 1  # bytes, HDF5's own limit


def frame_reader(
    dataset: Any,
    rows: int,
    columns: int,
    leading: Sequence[int],
    falls: tuple[bool, bool] = (False, False),
) -> Callable[[int], AnyArray]:
    """Read frame `index` of a dataset in which these are the axes of its rows, columns and frames.

    The frames' last axis is the fastest. Rows or columns whose places fall are turned round.
    """
    order = tuple(slice(None, None, -1 if one else 1) for one in falls)
    sizes = tuple(int(dataset.shape[axis]) for axis in leading)

    def read(index: int) -> AnyArray:
        places = np.unravel_index(index, sizes) if sizes else ()
        chosen: list[Any] = [slice(None)] * len(dataset.shape)
        for axis, place in zip(leading, places, strict=True):
            chosen[axis] = int(place)
        pixels = np.asarray(dataset[tuple(chosen)])
        return (pixels.T if columns < rows else pixels)[order]

    return read


def calibrated(row: Axis, column: Axis) -> dict[str, Any]:
    """Pixel size, unit and origin of a `FrameInfo`; none where neither scale nor unit is told.

    Metres, as Velox has them, in nanometres. The origin of an axis that falls is at its end, where
    the frame begins once `frame_reader` turned it round.
    """
    if any(is_no_unit(axis.unit) and axis.scale == 1 for axis in (row, column)):
        return {}
    row, column = (
        replace(axis, scale=axis.scale * 1e9, offset=axis.offset * 1e9, unit="nm")
        if axis.unit == "m"
        else axis
        for axis in (row, column)
    )
    row, column = (
        replace(axis, offset=axis.offset + (axis.size - 1) * axis.scale, scale=-axis.scale)
        if axis.scale < 0
        else axis
        for axis in (row, column)
    )
    size, unit = one_unit((row.scale, row.unit), (column.scale, column.unit))
    if size is None:
        return {}
    factor = 1.0 if size[0] == row.scale else size[0] / row.scale
    return {"pixel_size": size, "unit": unit, "origin": (row.offset * factor, column.offset)}


def falling(row: Axis, column: Axis) -> tuple[bool, bool]:
    """Whether the places along them fall from pixel to pixel."""
    return row.scale < 0, column.scale < 0


def kept_axes(found: tuple[Axis, ...], recorded: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The recorded axes, whose numbers were not rounded, unless somebody changed them since."""
    if len(found) != len(recorded):
        return found
    return tuple(
        mine if _same(mine, its) else its for its, mine in zip(found, recorded, strict=True)
    )


def same_sizes(found: tuple[Axis, ...], recorded: tuple[Axis, ...]) -> bool:
    """Whether nobody took frames away since."""
    return [axis.size for axis in found] == [axis.size for axis in recorded]


def _same(one: Axis, other: Axis) -> bool:
    numbers = (one.scale, other.scale), (one.offset, other.offset)
    return one.size == other.size and all(
        abs(a - b) <= 1e-5 * max(abs(one.scale), abs(a)) for a, b in numbers
    )


def named(signals: Iterable[tuple[str, Signal]]) -> dict[str, Signal]:
    """By their names, made distinct."""
    pairs = list(signals)
    names = distinct([name for name, _ in pairs])
    return dict(zip(names, (what for _, what in pairs), strict=True))


def frame_dataset(group: Any, output: Output, *, is_reversed: bool = False) -> Any:
    """An empty HDF5 dataset ``data`` for all frames, each a chunk; the axes may be reversed."""
    n_bytes = output.shape[0] * output.shape[1] * output.dtype.itemsize
    order = slice(None, None, -1 if is_reversed else 1)
    chunks = None
    if output.axes and n_bytes <= LARGEST_CHUNK:
        chunks = (*(1 for _ in output.axes), *output.shape)[order]
    return group.create_dataset("data", output.whole_shape[order], output.dtype, chunks=chunks)


def placed(path: Path, output: Output) -> Iterator[tuple[tuple[int, ...], AnyArray]]:
    """The frames, each with its place along the axes, as long as the disk has room for them.

    HDF5 crashes when it closes a file on a disk that is full.
    """
    sizes = tuple(axis.size for axis in output.axes)
    for index, pixels in enumerate(output.pixels):
        check_room(path.parent, pixels.nbytes)
        at = np.unravel_index(index, sizes) if sizes else ()
        yield tuple(int(i) for i in at), pixels


def image_axes(output: Output) -> tuple[Axis, Axis]:
    """Of the rows and the columns."""
    info = output.info
    size, (top, left) = info.pixel_size or (1.0, 1.0), info.origin
    (height, width), (y, x) = output.shape, info.axis_names
    if (y.lower(), x.lower()) == ("x", "y"):  # by which readers would turn the image
        y, x = "y", "x"
    return (
        Axis(name=y, size=height, scale=size[0], offset=top, unit=info.unit),
        Axis(name=x, size=width, scale=size[1], offset=left, unit=info.unit),
    )
