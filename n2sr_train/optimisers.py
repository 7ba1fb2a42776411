"""The optimisers of a network, with one learning-rate schedule over all.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of each
weight matrix by the nearest orthogonal matrix, so that all its directions learn at the same speed.
What that gives on one noisy frame: docs/decisions/0002-muon.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from n2sr_train.config import TrainingConfig


class Optimiser:
    """One of PyTorch's optimisers whose learning rate is told as a share of its highest."""

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self._optimiser = optimiser
        self._highest = [group["lr"] for group in optimiser.param_groups]

    def set_rate(self, share: float) -> None:
        """Set the learning rate, 0 to 1 of the highest."""
        for group, highest in zip(self._optimiser.param_groups, self._highest, strict=True):
            group["lr"] = highest * share

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._optimiser.zero_grad()

    def step(self) -> None:
        """Move the parameters."""
        self._optimiser.step()


class _ConvolutionMuon(Optimiser):
    """PyTorch's Muon, which takes matrices, on convolutions seen as (outputs, inputs * 9).

    The matrices share their memory with the weights.
    """

    def __init__(self, weights: list[torch.nn.Parameter], learning_rate: float) -> None:
        self._weights = weights
        self._matrices = [
            torch.nn.Parameter(weight.detach().view(len(weight), -1)) for weight in weights
        ]
        super().__init__(torch.optim.Muon(self._matrices, lr=learning_rate, weight_decay=0.0))

    def zero_grad(self) -> None:
        for weight in self._weights:
            weight.grad = None

    def step(self) -> None:
        for weight, matrix in zip(self._weights, self._matrices, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        super().step()


def build_optimisers(network: torch.nn.Module, config: TrainingConfig) -> list[Optimiser]:
    """The optimisers `config` asks for, together covering every parameter once."""
    if config.optimiser == "adam":
        return [Optimiser(torch.optim.Adam(network.parameters(), config.learning_rate))]
    matrices = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1]
    others = [p for p in network.parameters() if not (p.ndim == 4 and p.shape[1] > 1)]
    return [
        _ConvolutionMuon(matrices, config.learning_rate),
        Optimiser(torch.optim.Adam(others, config.adam_learning_rate, betas=(0.9, 0.99))),
    ]
