"""The batches of `patches`, made on the device that learns, by its own random numbers.

Copying every batch from the host would cost a GPU more than the step itself, and would keep the
step out of a CUDA graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from n2sr_deploy.reference import MIRRORED
from n2sr_train.patches import Batch

if TYPE_CHECKING:
    from n2sr_deploy.sampling import FloatArray
    from n2sr_train.config import TrainingConfig
    from n2sr_train.patches import PatchSampler


class DevicePatches:
    """Draws batches from the frame of a sampler, as it would.

    Parameters
    ----------
    sampler
        Its frame, its patches' shape, places and turns and the pixels it never learns from are
        taken.
    config
        Pattern, margin and batch are read.
    generator
        Of the device; the same state, the same batches.
    """

    def __init__(
        self, sampler: PatchSampler, config: TrainingConfig, generator: torch.Generator
    ) -> None:
        self._pattern, self._margin = config.pattern, config.margin
        self._shape, self._n_turns, self._n = sampler.shape, sampler.n_turns, config.batch
        self._frame_shape, self._overhang = sampler.frame.shape, sampler.overhang
        self._generator, self._device = generator, generator.device
        self._frame = torch.from_numpy(sampler.frame).to(self._device).flatten()
        self._counts = torch.from_numpy(sampler.counts.copy()).to(self._device).flatten()
        self._upside_down, self._mirrored = (
            torch.tensor([axis in axes for axes in MIRRORED], device=self._device)
            for axis in (-2, -1)
        )
        self._rows = torch.arange(self._shape[0], device=self._device)[:, None]
        self._columns = torch.arange(self._shape[1], device=self._device)[None, :]
        self._elements = torch.arange(self._pattern.group_size, device=self._device)

    def next_batch(self) -> Batch:
        """The next batch to learn from."""
        place = self._places()
        target = self._frame[place]
        kept = self._kept()
        (height, width), (sy, sx) = self._shape, self._pattern.stride
        cells = target.reshape(self._n, height // sy, sy, width // sx, sx).transpose(2, 3)
        subsampled = cells.flatten(3).gather(3, kept)  # (N, h, w, 1)
        is_kept = (kept == self._elements).float()  # (N, h, w, sy * sx)
        is_kept = is_kept.reshape(self._n, height // sy, width // sx, sy, sx).transpose(2, 3)
        is_kept = is_kept.reshape(self._n, 1, height, width)
        if self._margin:
            reach = self._margin
            is_kept = functional.max_pool2d(is_kept, 2 * reach + 1, stride=1, padding=reach)
        counted = (1 - is_kept) * self._counts[place][:, None]
        return Batch(subsampled.squeeze(3)[:, None], target[:, None], counted)

    def weigh(self, counts: FloatArray) -> None:
        """From now on let each pixel's error count so much, (H, W)."""
        self._counts.copy_(torch.from_numpy(counts).flatten())  # where a CUDA graph reads it

    def _places(self) -> torch.Tensor:
        """(N, H, W): for each pixel of a randomly placed and turned patch, its place."""
        (height, width), (frame_height, frame_width) = self._shape, self._frame_shape
        turn = self._random(self._n_turns)
        top = self._first(frame_height - height, self._overhang[0])
        left = self._first(frame_width - width, self._overhang[1])
        upside_down, mirrored = self._upside_down[turn % 4], self._mirrored[turn % 4]
        row = torch.where(upside_down, height - 1 - self._rows, self._rows)
        column = torch.where(mirrored, width - 1 - self._columns, self._columns)
        transposed = turn >= 4
        y, x = torch.where(transposed, column, row), torch.where(transposed, row, column)
        return torch.as_tensor((top + y) * frame_width + left + x)

    def _first(self, last: int, overhang: int) -> torch.Tensor:
        """(N, 1, 1): rows or columns that patches begin at."""
        return (self._random(last + 2 * overhang + 1) - overhang).clamp(0, last)

    def _kept(self) -> torch.Tensor:
        """(N, h, w, 1): which pixel of each cell goes in, by its number in the cell."""
        height, width = self._shape
        h, w = height // self._pattern.stride_y, width // self._pattern.stride_x
        size = self._n, *self._pattern.independent((h, w)), 1
        kept = torch.randint(
            self._pattern.group_size, size, generator=self._generator, device=self._device
        )
        return kept.expand(self._n, h, w, 1)

    def _random(self, high: int) -> torch.Tensor:
        """(N, 1, 1): whole numbers below `high`."""
        return torch.randint(high, (self._n, 1, 1), generator=self._generator, device=self._device)
