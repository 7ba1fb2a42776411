"""The optimisers of a network, with one learning-rate schedule over all.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of each
weight matrix by the nearest orthogonal matrix, so that all its directions learn at the same speed.
What that gives on one noisy frame: docs/decisions/0002-muon.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim.adam import adam

if TYPE_CHECKING:
    from n2sr_train.config import TrainingConfig


_MOMENTUM = 0.95


class Adam:
    """Adam, by PyTorch's function for it: its class imports the compiler, for seconds.

    One operation for all the small vectors.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], learning_rate: float, beta2: float = 0.999
    ) -> None:
        self._parameters: list[torch.Tensor] = list(parameters)
        self._highest, self._beta2 = learning_rate, beta2
        device = parameters[0].device
        self._is_on_gpu = device.type == "cuda"
        # A tensor, or a CUDA graph would replay the first one; on a CPU it loses no digit by that.
        exactly = torch.float32 if self._is_on_gpu else torch.float64
        self._rate = torch.zeros((), dtype=exactly, device=device)
        self._means, self._squares = (list(map(torch.zeros_like, parameters)) for _ in range(2))
        self._steps = [torch.zeros((), device=device) for _ in parameters]

    def set_rate(self, share: float) -> None:
        """Set the learning rate, 0 to 1 of the highest."""
        self._rate.fill_(self._highest * share)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters."""
        adam(
            self._parameters,
            [p.grad for p in self._parameters if p.grad is not None],
            self._means,
            self._squares,
            [],
            self._steps,
            fused=True,
            capturable=self._is_on_gpu,
            amsgrad=False,
            beta1=0.9,
            beta2=self._beta2,
            lr=self._rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


class Muon:
    """Muon on convolutions seen as matrices (outputs, 9 * inputs), many at once.

    It equals torch.optim.Muon, which takes the matrices one by one: on networks as small as ours
    that is up to a quarter of a step (docs/decisions/0006-recipe.md). Matrices are filled up with
    zeros and taken together: all on a GPU, which small kernels keep waiting; on a CPU, where zeros
    cost time too, those with the most channels and all others.
    """

    def __init__(self, weights: list[torch.nn.Parameter], learning_rate: float) -> None:
        self._highest = learning_rate
        # On the weights' device, for a CUDA graph; float64 multiplies as a number of Python would.
        self._rate = torch.zeros((), dtype=torch.float64, device=weights[0].device)
        most = max(map(_channels, weights))
        widest = [w for w in weights if w.is_cuda or _channels(w) == most]
        others = [w for w in weights if not w.is_cuda and _channels(w) < most]
        self._stacks = [_Stack(group) for group in (widest, others) if group]

    def set_rate(self, share: float) -> None:
        """Set the learning rate, 0 to 1 of the highest."""
        self._rate.fill_(self._highest * share)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for stack in self._stacks:
            for weight in stack.weights:
                weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights."""
        for stack in self._stacks:
            gradient = stack.gradients()
            stack.momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = _orthogonal(gradient.lerp(stack.momentum, _MOMENTUM))
            stack.add(update.mul_(stack.scale * -self._rate))


class _Stack:
    """Weights as matrices (n, rows, columns), the smaller ones filled up with zeros.

    Zeros stay zeros in a nearest orthogonal matrix, and change nothing of the rest.
    """

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        self.weights = weights
        shapes = [_as_matrix(weight.detach()).shape for weight in weights]
        rows, columns = (max(shape[axis] for shape in shapes) for axis in (0, 1))
        self._shapes = shapes
        self._gradient = torch.zeros((len(weights), rows, columns), device=weights[0].device)
        self.momentum = torch.zeros_like(self._gradient)
        scales = [max(1.0, r / c) ** 0.5 for r, c in shapes]
        each = torch.tensor(scales, device=weights[0].device)[:, None, None]
        self.scale = each if len(set(scales)) > 1 else scales[0]  # in float64, if they agree

    def _parts(self, stack: torch.Tensor) -> list[torch.Tensor]:
        return [m[:r, :c] for m, (r, c) in zip(stack.unbind(), self._shapes, strict=True)]

    def gradients(self) -> torch.Tensor:
        """Of all the weights, (n, rows, columns); the same memory each time."""
        gradients = [_as_matrix(w.grad) for w in self.weights if w.grad is not None]
        torch._foreach_copy_(self._parts(self._gradient), gradients)
        return self._gradient

    def add(self, update: torch.Tensor) -> None:
        """Move the weights by (n, rows, columns)."""
        moved: list[torch.Tensor] = list(self.weights)
        parts = zip(self._parts(update), moved, strict=True)
        torch._foreach_add_(moved, [_as_weight(part, like) for part, like in parts])


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(n, rows, columns): about the nearest orthogonal matrix of each, by Newton and Schulz.

    Five steps of the quintic iteration of Jordan et al., whose singular values end between about
    0.7 and 1.2.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.is_cuda:  # as torch.optim.Muon does everywhere; what comes out is rough anyway
        x = x.bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).float()


def _channels(weight: torch.Tensor) -> int:
    """The most of inputs and outputs."""
    return max(weight.shape[:2])


def _as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """(outputs, inputs, 3, 3) -> (outputs, 9 * inputs); no copy where channels are last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _as_weight(matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse, for a weight of the same shape as another."""
    outputs, inputs, height, width = like.shape
    return matrix.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def build_optimisers(network: torch.nn.Module, config: TrainingConfig) -> list[Adam | Muon]:
    """The optimisers `config` asks for, together covering every parameter once."""
    if config.optimiser == "adam":
        return [Adam(list(network.parameters()), config.learning_rate)]
    matrices = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1]
    others = [p for p in network.parameters() if not (p.ndim == 4 and p.shape[1] > 1)]
    of_others = Adam(others, config.adam_learning_rate, beta2=0.99)
    return [Muon(matrices, config.learning_rate), of_others] if matrices else [of_others]
