"""How a frame on a GPU is cut: draws at once, and tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from n2sr_deploy.sampling import DRAWS_AT_ONCE, alike_draws
from n2sr_deploy.tiling import overlap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.pattern import Shape


class Layout(NamedTuple):
    """How a frame is cut: how many draws the network is given at once, and tiles."""

    at_once: int
    seen: Shape
    """Of a tile, what the network sees of the padded frame; all tiles see as much."""

    def cells(self, stride: Shape) -> Shape:
        """Height and width of a draw of a tile."""
        return self.seen[0] // stride[0], self.seen[1] // stride[1]


def layouts(model: ExportedModel, shape: Shape, n_samples: int) -> Iterator[Layout]:
    """The fastest first, then ones that need less and less memory."""
    meta = model.metadata
    padded = meta.padded(shape)
    at_once = min(n_samples, DRAWS_AT_ONCE)
    while at_once > 1:
        yield Layout(at_once, padded)
        at_once = -(-at_once // 2)
    seen = padded
    while True:
        yield Layout(1, seen)
        smaller = tuple(
            min(length, max(-(-length // 2 // multiple) * multiple, _least_seen(model, axis)))
            for axis, (length, multiple) in enumerate(zip(seen, meta.pad_multiple, strict=True))
        )
        if smaller == seen:
            return
        seen = smaller[0], smaller[1]


def input_shapes(model: ExportedModel, shape: Shape, n_samples: int) -> list[InputShape]:
    """What a network is given of frames of this shape when memory does not matter.

    Parameters
    ----------
    model
        The exported model.
    shape
        (H, W) of the frames.
    n_samples
        M.

    Returns
    -------
    (draws at once, 1, h, w) each; of frames that are not square, transposed too where draws are
    also laid so. More where fewer draws are left for the last time.
    """
    layout = next(layouts(model, shape, n_samples))
    height, width = layout.cells(model.metadata.pattern.stride)
    kinds = dict.fromkeys(batch[1:] for batch in batches(model, n_samples, layout))
    return [
        (count, 1, *((width, height) if turned else (height, width))) for count, turned in kinds
    ]


def batches(
    model: ExportedModel, n_samples: int, layout: Layout
) -> Iterator[tuple[int, int, bool]]:
    """As `n2sr_deploy.sampling.alike_draws` has them; of square tiles all draws go together."""
    meta = model.metadata
    stride = meta.pattern.stride
    is_square = layout.seen[0] * stride[1] == layout.seen[1] * stride[0]
    apart = meta.n_orientations == 8 and not is_square
    group_size = meta.pattern.group_size if apart else n_samples
    return alike_draws(n_samples, layout.at_once, group_size)


def _least_seen(model: ExportedModel, axis: int) -> int:
    """Of a tile: as much again as it overlaps its neighbours on both sides."""
    return 4 * overlap(model.metadata, axis) or model.metadata.pad_multiple[axis]
