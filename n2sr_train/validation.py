"""Which weights of a training are kept: docs/decisions/0003-what-is-kept.md."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch

from n2sr_deploy.reference import MIRRORED

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_train.patches import PatchSampler

_TOGETHER = 3  # judgements in a row whose errors are averaged: one alone is low or high by chance
_WORSE = 2.0  # standard errors above the lowest from which the weights of that are kept
_SURELY_WORSE = 3.0  # standard errors


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
    """

    def __init__(self, sampler: PatchSampler, device: torch.device) -> None:
        self._patches = [
            [torch.from_numpy(part).to(device) for part in patch] for patch in sampler.validation
        ]
        self._along = {"row": 2, "column": 1, None: None}[sampler.pattern.shared]
        length = 1 if self._along is None else sampler.shape[self._along - 1]
        self._n_different = int(sampler.is_validation.sum()) // length
        self.kept: Kept | None = None
        """The latest weights, or those of the lowest error where the latest are worse."""
        self.flat_error = self._mean_square()
        self.n_worse = 0
        """How many judgements in a row found the error surely above the lowest."""
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

        The error is that of the mean over a group of draws, as denoising takes it, each pixel
        from the draws that held it out. A network that has seen its targets too often repeats a
        share m of their noise, in the pixels it learned from only: there its error falls below
        that of the others by 2 m of the noise's variance, while its true error rises by m ** 2 of
        it. That is added.
        """
        unseen_errors, learned_error, n_learned = [], 0.0, 0.0
        for subsampled, held_out, target, learned, unseen in self._patches:
            outputs = output(network, subsampled)
            for m, axes in enumerate(MIRRORED[: len(outputs)]):
                outputs[m] = outputs[m].flip(axes)
            n_held_out = held_out.sum(dim=0)  # (1, H, W)
            mean = (outputs * held_out).sum(dim=0) / n_held_out.clamp(min=1)
            squared = (mean - target).square()
            unseen_errors.append(self._independent(squared, unseen * (n_held_out > 0)))
            counted = learned * (n_held_out > 0)
            learned_error += float((squared * counted).sum())
            n_learned += float(counted.sum())
        errors = torch.cat(unseen_errors)
        error = float(errors.mean())
        learned_error /= n_learned
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

    def _independent(self, squared: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n,): the errors of the masked pixels of a patch (1, H, W), or the means of its lines."""
        if self._along is None:
            return squared[mask > 0]
        counts = mask.sum(dim=self._along)
        means = (squared * mask).sum(dim=self._along) / counts.clamp(min=1)
        return means[counts > 0]

    def _compare(self, score: _Score) -> None:
        """With the lowest error so far: by itself, and together with the judgements before it.

        By itself the lowest of many is low by chance, and so the others seem worse.
        """
        if score.kept.step > 0:  # what it started from may be far above
            self._recent.append(score.errors)
        together = torch.stack(tuple(self._recent) or (score.errors,)).mean(dim=0)
        smoothed = score._replace(errors=together)
        self._lowest = _lower(self._lowest, score)
        self._lowest_smoothed = _lower(self._lowest_smoothed, smoothed)
        above = min(score.above(self._lowest), smoothed.above(self._lowest_smoothed))
        self.kept = self._lowest.kept if above > _WORSE else score.kept
        is_worse = above > _SURELY_WORSE and self._lowest.kept.step > 0  # it has learned anything
        self.n_worse = self.n_worse + 1 if is_worse else 0

    def _mean_square(self) -> float:
        """The validation error of a result that is flat."""
        pairs = [(target, unseen) for _, _, target, _, unseen in self._patches]
        squares = sum(float((target**2 * unseen).sum()) for target, unseen in pairs)
        return squares / sum(float(unseen.sum()) for _, unseen in pairs)


def _lower(lowest: _Score | None, score: _Score) -> _Score:
    return score if lowest is None or score.mean < lowest.mean else lowest


def copied_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """On the CPU, in the order of memory that a file keeps."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
