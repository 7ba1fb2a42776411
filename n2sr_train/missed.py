"""Where a network misses what the frame shows: docs/decisions/0014-what-is-shown-once.md.

A network learns what a frame repeats long before what it shows once: a displaced column is drawn
where the lattice has it. What it misses stays in the residual, of which noise alone has no
structure; there pixels are made to count more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from n2sr_train.validation import held_out_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_train.config import TrainingConfig
    from n2sr_train.patches import PatchSampler, ValidationPatch

_TILES = 4  # looked at each time
_SCALES = 1.5, 3.0  # pixels: standard deviations of what smooths the residual
_MISSED = 4.0  # standard deviations of noise, in each of two halves of the pixels
_LARGEST = 4.0  # standard deviations of noise that a pixel is taken to be off
_ENOUGH = 0.5  # of the pixels that are near: of fewer, one alone could show structure
_REACH = 2  # scales around such a place that count with it
_LEVEL = 24.0  # pixels: the noise's power changes over no fewer
_LEAST_WEIGHT = 1e-20  # of a Gaussian: with numbers below float32's range a CPU is ten times slower
_LEAST_POWER = 0.1  # of the tile's: where hardly an electron comes, one is no structure


class MissedPlaces:
    """Walks over the frame, tile by tile, and remembers where something was missed.

    Parameters
    ----------
    sampler
        Its frame, pattern and the pixels it never learns from are taken.
    config
        Its seed gives the order of the tiles, ``missed_weight`` what pixels there count; a margin
        is kept where the noise is correlated along both axes.
    device
        Of the networks.
    at_once
        How many tiles a network is given at a time.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        config: TrainingConfig,
        device: torch.device,
        at_once: int = 1,
    ) -> None:
        self._sampler, self._weight, self._device = sampler, config.missed_weight, device
        self._at_once, self._blur = at_once, _Blur()
        # Where noise is shared, both halves are high for one reason, which must be rarer by itself.
        self._limit = _MISSED * (math.sqrt(2) if config.margin else 1)
        tops, lefts = (
            np.linspace(0, whole - tile, math.ceil(whole / tile)).round().astype(int)
            for whole, tile in zip(sampler.frame.shape, sampler.shape, strict=True)
        )
        self._tiles = [(int(top), int(left)) for top in tops for left in lefts]
        self._order = np.random.default_rng(config.seed).permutation(len(self._tiles))
        self._n_seen = 0
        self._next: list[tuple[tuple[slice, slice], ValidationPatch]] = []
        self.n_tiles = min(_TILES, len(self._tiles))
        """Tiles that one look denoises."""
        self.counts = sampler.counts.copy()
        """(H, W) float32: how much each pixel's error counts; 0 where it is never learned from."""

    def draw_next(self) -> None:
        """Draw from the next look's tiles already now, on the host: a GPU may be busy meanwhile."""
        height, width = self._sampler.shape
        numbers = (self._n_seen + np.arange(self.n_tiles)) % len(self._tiles)
        self._n_seen += self.n_tiles
        places = [self._tiles[number] for number in self._order[numbers]]
        tiles = [(slice(top, top + height), slice(left, left + width)) for top, left in places]
        self._next = [(tile, self._sampler.judged_patch(tile)) for tile in tiles]

    @torch.no_grad()
    def look(
        self,
        network: torch.nn.Module,
        output: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor],
    ) -> None:
        """Look at the next tiles, and let missed places count more from now on."""
        if not self._next:
            self.draw_next()
        drawn, self._next = self._next, []
        for first in range(0, len(drawn), self._at_once):
            tiles, patches = zip(*drawn[first : first + self._at_once], strict=True)
            *parts, _ = zip(*patches, strict=True)
            subsampled, held_out, target, learned = (
                torch.from_numpy(np.stack(part)).to(self._device) for part in parts
            )
            mean, is_told = held_out_mean(network, output, subsampled, held_out)
            told = learned * is_told  # pixels that judge must not steer what is learned
            missed = _missed(
                target - mean, told, self._sampler.pattern.shared, self._limit, self._blur
            )
            for tile, found in zip(tiles, missed[:, 0].cpu().numpy(), strict=True):
                counts = self.counts[tile]
                counts[found & (counts > 0)] = self._weight


def _missed(
    residual: torch.Tensor, told: torch.Tensor, shared: str | None, limit: float, summed: _Blur
) -> torch.Tensor:
    """(N, 1, H, W) bool: where the residual (N, 1, H, W) of each tile has structure.

    It counts where ``told`` is 1, and must be beyond the limit, in standard deviations of noise, in
    each of two halves of the pixels: else hot pixels and chance meetings of a few electrons would
    count. Where the halves' noise is not independent, the limit should be higher.
    """
    height, width = residual.shape[2:]
    rows = torch.arange(height, device=residual.device)[:, None]
    columns = torch.arange(width, device=residual.device)[None, :]
    parity = {"row": rows + 0 * columns, "column": columns + 0 * rows, None: rows + columns}[shared]
    residual = residual * told
    power = summed(residual.square(), _LEVEL) / summed(told, _LEVEL).clamp(min=1)
    least = _LEAST_POWER * power.mean(dim=(1, 2, 3), keepdim=True) + 1e-30
    white = residual / power.maximum(least).sqrt()
    white = white.clamp(-_LARGEST, _LARGEST)
    missed = torch.zeros_like(residual)
    for scale in _SCALES:
        of_half = math.pi * scale**2 / 2  # the sum of a Gaussian's squares
        halves = []
        for half in (0, 1):
            is_in = parity % 2 == half
            variance = summed(told * is_in, scale / math.sqrt(2))  # of white noise
            deviations = summed(white * is_in, scale) / variance.clamp(min=_ENOUGH * of_half).sqrt()
            spread = deviations.std(dim=(1, 2, 3), keepdim=True)
            halves.append(deviations / spread.clamp(min=1))
        is_one = (torch.minimum(*halves) > limit) | (torch.maximum(*halves) < -limit)
        missed = torch.maximum(missed, _grown(is_one.float(), round(_REACH * scale)))
    return missed > 0


def _grown(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Over what lies within `reach` rows and columns."""
    for rows, columns in ((reach, 0), (0, reach)):
        kernel = 2 * rows + 1, 2 * columns + 1
        mask = functional.max_pool2d(mask, kernel, stride=1, padding=(rows, columns))
    return mask


class _Blur:
    """Sums around each pixel; the Gaussians that weigh them are kept."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, float], torch.Tensor] = {}

    def __call__(self, image: torch.Tensor, scale: float) -> torch.Tensor:
        """(N, 1, H, W): around each pixel, by a Gaussian whose highest weight is 1."""
        by_rows, by_columns = (self._gaussian(n, scale, image.device) for n in image.shape[2:])
        return by_rows @ image @ by_columns

    def _gaussian(self, n: int, scale: float, device: torch.device) -> torch.Tensor:
        """(n, n): each row a Gaussian around its place."""
        if (n, scale) not in self._made:
            at = torch.arange(n, device=device, dtype=torch.float32)
            apart = at[:, None] - at[None, :]
            weights = torch.exp(-(apart**2) / (2 * scale**2))
            self._made[n, scale] = weights * (weights > _LEAST_WEIGHT)
        return self._made[n, scale]
