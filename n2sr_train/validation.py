"""Which weights of a training are kept: docs/decisions/0003-what-is-kept.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_train.patches import PatchSampler

# Axes of (1, H, W) along which `sampling.draw` mirrors the draws of a group.
_MIRRORED: tuple[tuple[int, ...], ...] = ((), (1, 2), (2,), (1,))


class Kept(NamedTuple):
    """Averaged weights worth keeping."""

    step: int
    validation_error: float
    weights: dict[str, torch.Tensor]


class _Score(NamedTuple):
    """What a step is judged by."""

    errors: torch.Tensor
    """(n,): the expected true error and the targets' noise, pixel by pixel."""

    @property
    def mean(self) -> float:
        return float(self.errors.mean())

    def is_worse_than(self, other: _Score) -> bool:
        """By more than chance: the targets' noise, most of the errors, is the same in both."""
        difference = self.errors - other.errors
        uncertainty = float(difference.std()) / math.sqrt(len(difference))
        return float(difference.mean()) > uncertainty


class Validation:
    """Judges networks by pixels they never learned from, and keeps the weights of the best.

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
        self.best: Kept | None = None
        self.flat_error = self._mean_square()
        self._lowest: _Score | None = None
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
            for m, axes in enumerate(_MIRRORED[: len(outputs)]):
                outputs[m] = outputs[m].flip(axes)
            n_held_out = held_out.sum(dim=0)  # (1, H, W)
            mean = (outputs * held_out).sum(dim=0) / n_held_out.clamp(min=1)
            squared = (mean - target).square()
            unseen_errors.append(squared[(unseen > 0) & (n_held_out > 0)])
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
        score = _Score(errors + repeated**2 * error)
        if math.isfinite(error):
            if self._lowest is None or not score.is_worse_than(self._lowest):
                self._keep(step, error, network)
            if self._lowest is None or score.mean < self._lowest.mean:
                self._lowest = score
        return {
            "validation_error": error,
            "learned_error": learned_error,
            "repeated_noise": repeated,
        }

    def _mean_square(self) -> float:
        """The validation error of a result that is flat."""
        pairs = [(target, unseen) for _, _, target, _, unseen in self._patches]
        squares = sum(float((target**2 * unseen).sum()) for target, unseen in pairs)
        return squares / sum(float(unseen.sum()) for _, unseen in pairs)

    def _keep(self, step: int, error: float, network: torch.nn.Module) -> None:
        weights = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in network.state_dict().items()
        }
        self.best = Kept(step, error, weights)
