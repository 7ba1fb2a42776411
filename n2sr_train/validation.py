"""Which weights of a training are kept: docs/decisions/0003-what-is-kept.md."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from n2sr_deploy.reference import MIRRORED

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_train.patches import PatchSampler

_TOGETHER = 3  # judgements in a row whose errors are averaged: one alone is low or high by chance
_WORSE = 2.0  # standard errors above the lowest from which the weights of that are kept
_SURELY_WORSE = 3.0  # standard errors
_LEARNED_LITTLE = 0.995  # of the error of a flat result


class Kept(NamedTuple):
    """Averaged weights worth keeping."""

    step: int
    validation_error: float
    weights: dict[str, torch.Tensor]


class _Score(NamedTuple):
    """What a step is judged by."""

    kept: Kept
    errors: torch.Tensor
    """(n,): the expected true error and the targets' noise; of pixels, or of lines where the
    pattern shares its choice along them, since their noise is correlated."""
    n_different: int
    """How many different pixels or lines these are; patches overlap."""

    @property
    def mean(self) -> float:
        return float(self.errors.mean())

    def above(self, other: _Score) -> float:
        """The difference in standard errors: the targets' noise, most of it, is in both."""
        difference = self.errors - other.errors
        uncertainty = float(difference.std()) / math.sqrt(self.n_different)
        return float(difference.mean()) / max(uncertainty, 1e-30)


class Validation:
    """Judges networks by pixels they never learned from, and says which weights to keep.

    Parameters
    ----------
    sampler
        Its validation patches are used.
    device
        Of the networks.
    at_once
        How many patches a network is given at a time.
    """

    def __init__(self, sampler: PatchSampler, device: torch.device, at_once: int = 1) -> None:
        parts = zip(*sampler.validation, strict=True)
        given = [torch.from_numpy(np.stack(part)).to(device) for part in parts]
        self._subsampled, self._held_out, self._target, learned, unseen = given
        is_held_out = self._held_out.sum(dim=1) > 0  # (P, 1, H, W)
        self._learned = learned * is_held_out
        self._n_learned = float(self._learned.sum())
        self._unseen = unseen * is_held_out
        self._at_once = at_once
        self._along = {"row": 3, "column": 2, None: None}[sampler.pattern.shared]
        length = 1 if self._along is None else sampler.shape[self._along - 2]
        self._n_different = int(sampler.is_validation.sum()) // length
        self._counts = self._unseen if self._along is None else self._unseen.sum(dim=self._along)
        self._places = self._counts.flatten().nonzero().squeeze(1)
        self.kept: Kept | None = None
        """The latest weights; those of the lowest error where the latest are worse, or hardly
        better than a flat result; what it started from where all others are worse."""
        self.flat_error = float((self._target**2 * unseen).sum() / unseen.sum())
        self.n_patches = len(self._target)
        """That are judged each time."""
        self.n_worse = 0
        """How many judgements in a row found the error surely above the lowest."""
        self._start: _Score | None = None
        self._lowest: _Score | None = None
        self._lowest_smoothed: _Score | None = None
        self._recent: deque[torch.Tensor] = deque(maxlen=_TOGETHER)
        self._first_gap: float | None = None

    @torch.no_grad()
    def judge(
        self,
        step: int,
        network: torch.nn.Module,
        output: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor],
    ) -> dict[str, float]:
        """Measure the error on pixels never learned from; keep the weights unless it rose.

        While they are hardly better than a flat result, those of the lowest error are kept too.

        The error is that of the mean over a group of draws, as denoising takes it, each pixel
        from the draws that held it out. A network that has seen its targets too often repeats a
        share m of their noise, in the pixels it learned from only: there its error falls below
        that of the others by 2 m of the noise's variance, while its true error rises by m ** 2 of
        it. That is added.
        """
        squared = torch.cat(
            [
                self._squared(network, output, slice(first, first + self._at_once))
                for first in range(0, len(self._target), self._at_once)
            ]
        )
        errors = self._independent(squared)
        error = float(errors.mean())
        learned_error = float((squared * self._learned).sum()) / self._n_learned
        gap = error - learned_error
        if self._first_gap is None:
            self._first_gap = gap  # chance: nothing has been learned yet
        repeated = max(gap - self._first_gap, 0.0) / (2 * error)
        n_different = max(1, min(len(errors), self._n_different))
        kept = Kept(step, error, copied_weights(network))
        score = _Score(kept, errors + repeated**2 * error, n_different)
        if math.isfinite(error):
            self._compare(score)
        return {
            "validation_error": error,
            "learned_error": learned_error,
            "repeated_noise": repeated,
        }

    def is_flat(self, kept: Kept) -> bool:
        """Whether weights are hardly better than the frame's mean."""
        return not kept.validation_error < _LEARNED_LITTLE * self.flat_error

    def _squared(
        self,
        network: torch.nn.Module,
        output: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor],
        which: slice,
    ) -> torch.Tensor:
        """(p, 1, H, W): the squared errors of some patches."""
        subsampled = self._subsampled[which]
        mean, _ = held_out_mean(network, output, subsampled, self._held_out[which])
        return (mean - self._target[which]).square()

    def _independent(self, squared: torch.Tensor) -> torch.Tensor:
        """(n,): the errors of the pixels never learned from, or the means of their lines."""
        if self._along is not None:
            sums = (squared * self._unseen).sum(dim=self._along)
            squared = sums / self._counts.clamp(min=1)
        return squared.flatten()[self._places]

    def _compare(self, score: _Score) -> None:
        """With the lowest error so far: by itself, and together with the judgements before it.

        By itself the lowest of many is low by chance, and so the others seem worse. What the
        training started from counts only where all that was learned is worse than it.
        """
        if score.kept.step == 0:
            self._start, self.kept = score, score.kept
            return
        self._recent.append(score.errors)
        smoothed = score._replace(errors=torch.stack(tuple(self._recent)).mean(dim=0))
        self._lowest = lowest = _lower(self._lowest, score)
        self._lowest_smoothed = lowest_smoothed = _lower(self._lowest_smoothed, smoothed)
        if self._start is not None and lowest.above(self._start) > _WORSE:
            lowest = lowest_smoothed = self._start
        above = min(score.above(lowest), smoothed.above(lowest_smoothed))
        # Where there is nothing to learn, what is learned after all is noise.
        keeps_lowest = above > _WORSE or self.is_flat(score.kept)
        self.kept = lowest.kept if keeps_lowest else score.kept
        is_worse = above > _SURELY_WORSE and lowest.kept.step > 0  # it has learned anything
        self.n_worse = self.n_worse + 1 if is_worse else 0


def held_out_mean(
    network: torch.nn.Module,
    output: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor],
    subsampled: torch.Tensor,
    held_out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, 1, H, W): the mean of patches' draws, of each pixel those that held it out; whether any.

    Parameters
    ----------
    network, output
        ``output(network, drawn)`` is (N, 1, H, W) for drawn pixels (N, 1, h, w).
    subsampled, held_out
        As `n2sr_train.patches.ValidationPatch` has them, stacked: (P, M, 1, ...).
    """
    outputs = output(network, subsampled.flatten(0, 1))
    outputs = outputs.view(*subsampled.shape[:2], *outputs.shape[1:])
    turned = [outputs[:, m].flip(axes) for m, axes in enumerate(MIRRORED[: outputs.shape[1]])]
    n_held_out = held_out.sum(dim=1)
    sums = (torch.stack(turned, dim=1) * held_out).sum(dim=1)
    return sums / n_held_out.clamp(min=1), n_held_out > 0


def _lower(lowest: _Score | None, score: _Score) -> _Score:
    return score if lowest is None or score.mean < lowest.mean else lowest


def copied_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """On the network's device, in the order of memory that a file keeps."""
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
