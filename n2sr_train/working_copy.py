"""A network in bfloat16 for a GPU to learn with, beside the float32 weights that are moved.

On networks as small as ours a GPU waits for its kernels to begin, not for arithmetic. So weights
are rounded once a step instead of at every layer, and the weights' gradients, which only the
optimiser waits for, are computed beside those of the feature maps.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator


class WorkingCopy:
    """A copy of a network that computes; the network itself is what learns.

    Parameters
    ----------
    network
        Its parameters get their gradients, float32, in memory that stays theirs.
    dtype
        What is computed in.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        self._masters = list(network.parameters())
        for master in self._masters:
            master.grad = torch.zeros_like(master)
        self.network = copy.deepcopy(network).to(dtype)
        self._dtype = dtype
        self._beside = _Beside(self._masters[0].device)
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = _Convolution
                module.beside = self._beside  # type: ignore[assignment]
        self._copies = list(self.network.parameters())

    def __call__(self, subsampled: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) -> (N, 1, H, W), both float32."""
        output: torch.Tensor = self.network(subsampled.to(self._dtype))
        return output.float()

    @torch.no_grad()
    def give_gradients(self) -> None:
        """To the network's parameters, after the backward pass."""
        self._beside.join()
        given = [gradient for gradient in map(_taken, self._copies) if gradient is not None]
        torch._foreach_copy_([m.grad for m in self._masters if m.grad is not None], given)

    @torch.no_grad()
    def follow(self) -> None:
        """Take the network's weights."""
        masters: list[torch.Tensor] = list(self._masters)
        copies: list[torch.Tensor] = list(self._copies)
        torch._foreach_copy_(copies, masters)


def _taken(parameter: torch.Tensor) -> torch.Tensor | None:
    gradient, parameter.grad = parameter.grad, None
    return gradient


class _Beside:
    """A stream of a GPU that works beside the current one; on a CPU one thing follows another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read: list[torch.Tensor] = []
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def with_(self, *tensors: torch.Tensor) -> Iterator[None]:
        """What is launched here reads these tensors, which are ready on the current stream."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        self._read += tensors  # so that their memory is not used again before

    def join(self) -> None:
        """Let the current stream wait for all of it."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._read.clear()


class _Convolution(nn.Conv2d):
    """One whose weights' gradients are computed beside; `WorkingCopy` joins them."""

    beside: _Beside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Function.apply(x, self.weight, self.bias, self)  # type: ignore[no-any-return,no-untyped-call]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, layer: _Convolution
    ) -> torch.Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight, bias, padding=layer.padding)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        layer: _Convolution = ctx.layer

        def of(*wanted: bool) -> list[torch.Tensor]:
            return list(
                torch.ops.aten.convolution_backward(
                    *(gradient, x, weight, [len(weight)]),
                    *((1, 1), layer.padding, (1, 1), False, (0, 0), 1, wanted),
                )
            )

        # Not returned: who adds them up would do it on the other stream.
        with layer.beside.with_(x, gradient):
            _, layer.weight.grad, layer.bias.grad = of(False, True, True)  # type: ignore[union-attr]
        return of(True, False, False)[0] if ctx.needs_input_grad[0] else None, None, None, None
