"""The arithmetic of a network: that of its convolutions, counted where they run.

PyTorch's own counter imports its compiler, which takes as long as importing PyTorch.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator


class CountedFlop:
    """Floating-point operations, a multiplication and an addition counted as two."""

    total = 0.0

    def _add(self, layer: nn.Conv2d, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        passes = 1
        if torch.is_grad_enabled():  # the gradients to come take as much each
            passes += bool(layer.weight.requires_grad) + bool(inputs[0].requires_grad)
        self.total += 2.0 * passes * output.numel() * layer.weight[0].numel()


@contextmanager
def counting_flop(network: nn.Module) -> Iterator[CountedFlop]:
    """Count what is passed through a network in the block, with its way back where that follows."""
    counted = CountedFlop()
    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                hooks.callback(layer.register_forward_hook(counted._add).remove)
        yield counted
