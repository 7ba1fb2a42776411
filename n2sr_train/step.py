"""One step of training, all of it on the device, and its capture in a CUDA graph.

Nothing in a step is read back by the host: what changes from step to step (the learning rate, how
much the average takes in) lies in scalars on the device. So a GPU records one step and replays it,
and the host never waits for it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol

import torch

from n2sr_train.arithmetic import counting_flop
from n2sr_train.optimisers import build_optimisers
from n2sr_train.working_copy import WorkingCopy

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_train.config import TrainingConfig
    from n2sr_train.patches import Patches

_SMOOTHING = 0.05  # of the loss that is shown
_WARM_UP = 3  # steps before the capture: libraries load, optimisers make their state


class Graph(Protocol):
    """A device's recording of a function that takes and gives nothing."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run it as it will be recorded."""

    def capture(self, function: Callable[[], None]) -> None:
        """Record it without running it."""

    def replay(self) -> None:
        """Run what was recorded; returns at once."""


class CudaGraph:
    """A CUDA graph, recorded on a stream of its own.

    Parameters
    ----------
    device
        The GPU.
    generator
        The random numbers the function draws on the GPU: each replay draws new ones.
    """

    def __init__(self, device: torch.device, generator: torch.Generator) -> None:
        self._device = device
        with torch.cuda.device(device):  # not always the current one
            self._graph = torch.cuda.CUDAGraph()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph.register_generator_state(generator)

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run it on the stream it will be recorded on."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> None:
        """Record it."""
        # Other threads may use the GPU meanwhile: live learning runs beside the denoiser.
        recording = torch.cuda.graph(
            self._graph, stream=self._stream, capture_error_mode="thread_local"
        )
        with torch.cuda.device(self._device), recording:
            function()

    def replay(self) -> None:
        """Run it on the device's current stream."""
        with torch.cuda.device(self._device):
            self._graph.replay()


class TrainingStep:
    """Draw, network, error, optimisers, averaging.

    Parameters
    ----------
    network
        On its device; its weights are moved in place.
    config
        Optimisers and the averaging are read.
    patches
        Where batches come from; on the network's device if there is a graph.
    low_precision
        Whether to compute in bfloat16.
    graph
        Records the step after a few have been taken; None: every step is launched by the host.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        config: TrainingConfig,
        patches: Patches,
        *,
        low_precision: bool,
        graph: Graph | None = None,
    ) -> None:
        self.network = network
        self.averaged = copy.deepcopy(network).requires_grad_(False)
        self.device = next(network.parameters()).device
        self.low_precision = low_precision
        self.flop = 0.0  # of a step's passes through the network, once it was taken
        self.n_taken = 0
        self._ema_decay = config.ema_decay
        self.patches = patches
        self._graph = graph
        is_on_gpu = self.device.type == "cuda"
        self._working = WorkingCopy(network) if low_precision and is_on_gpu else None
        self._optimisers = build_optimisers(network, config)
        self._loss, self._smoothing, self._mixing = torch.zeros(3, device=self.device).unbind()

    @property
    def loss(self) -> float:
        """The weighted error, smoothed over the last steps; it rises where more pixels count more.

        Reading it waits for the device.
        """
        return float(self._loss)

    def take(self, rate: float) -> None:
        """Take a step with a learning rate that is this share of the highest."""
        for optimiser in self._optimisers:
            optimiser.set_rate(rate)
        # Shorter at first, so that the beginning is forgotten.
        decay = min(self._ema_decay, (1 + self.n_taken) / (10 + self.n_taken))
        self._mixing.fill_(1 - decay if self.n_taken else 1.0)
        self._smoothing.fill_(_SMOOTHING if self.n_taken else 1.0)
        if self._graph is None:
            self._run()
        elif self.n_taken < _WARM_UP:
            self._graph.warm_up(self._run)
        else:
            if self.n_taken == _WARM_UP:
                self._graph.capture(self._run)
            self._graph.replay()
        self.n_taken += 1

    def output(self, network: torch.nn.Module, subsampled: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) -> (N, 1, H, W), in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            output = network(subsampled)
        return torch.as_tensor(output.float())

    def _run(self) -> None:
        if self.flop:
            self._differentiate()
        else:
            computing = self.network if self._working is None else self._working.network
            with counting_flop(computing) as counted:
                self._differentiate()
            self.flop = counted.total
        for optimiser in self._optimisers:
            optimiser.step()
        if self._working is not None:
            self._working.follow()
        self._average()

    def _differentiate(self) -> None:
        """The gradient of the squared error's mean over held-out pixels, as these count."""
        subsampled, target, counted = self.patches.next_batch()
        if self._working is None:
            for optimiser in self._optimisers:
                optimiser.zero_grad()
            output = self.output(self.network, subsampled)
        else:
            output = self._working(subsampled)
        squared = (output - target).square() * counted
        error = squared.sum() / counted.sum().clamp(min=1)
        error.backward()  # type: ignore[no-untyped-call]
        if self._working is not None:
            self._working.give_gradients()
        self._loss.lerp_(error.detach(), self._smoothing)

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential moving average of the weights."""
        averages: list[torch.Tensor] = list(self.averaged.parameters())
        weights: list[torch.Tensor] = list(self.network.parameters())
        difference = list(torch._foreach_sub(weights, averages))
        torch._foreach_mul_(difference, self._mixing)
        torch._foreach_add_(averages, difference)
