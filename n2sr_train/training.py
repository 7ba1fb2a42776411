"""Training on one noisy frame: the loop, nothing else.

Noise2SR, Tian et al., IEEE Trans. Comput. Imaging 10 (2024) 1462,
doi 10.1109/TCI.2024.3458411: the network sees a sub-sampled patch, and its output at full
resolution is compared with the noisy patch on the held-out pixels only. The noise of these is
independent of what the network saw, so the minimiser of the error is the clean frame.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from n2sr_deploy.errors import SettingError, TrainingError
from n2sr_deploy.learning import TrainingStatus
from n2sr_deploy.version import VERSION
from n2sr_train.checkpoint import Checkpoint
from n2sr_train.network import build_network
from n2sr_train.optimisers import build_optimisers
from n2sr_train.patches import Batch, PatchSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from n2sr_deploy.frame import Frame
    from n2sr_deploy.learning import Progress
    from n2sr_train.config import TrainingConfig

_log = logging.getLogger("n2sr")
_SMOOTHING = 0.05  # of the loss that is shown
_LEARNED_LITTLE = 0.995  # of the error of a flat result
Why = Literal["steps", "seconds", "the user", "divergence"]


def train(frame: Frame, config: TrainingConfig, progress: Progress | None = None) -> Checkpoint:
    """Learn a network from one noisy frame.

    Parameters
    ----------
    frame
        (H, W) in counts, at least as large as the network's multiple (32 x 32 for ``balanced``).
    config
        Everything else; `TrainingConfig.named` gives a preset.
    progress
        Called after every step.

    Returns
    -------
    The averaged weights with the lowest validation error. Ctrl-C ends the training and returns
    the best so far. Without a bound in seconds, the same seed on the same machine gives the same
    weights bit for bit on a CPU, and on a GPU as far as PyTorch's operations repeat there.

    Raises
    ------
    FrameError
        When the frame is constant or too small.
    SettingError
        When the device is not there.
    TrainingError
        When the training diverged before anything worth keeping.
    """
    return _Training(frame, config).run(progress or (lambda status: None))


class _Training:
    """The state of one training."""

    def __init__(self, frame: Frame, config: TrainingConfig) -> None:
        self.frame = frame
        self.config = config
        self.device = _device(config.device)
        self.low_precision = _has_bfloat16(self.device)
        stride = config.pattern.stride
        cells = 2**config.network.levels
        self.sampler = PatchSampler(frame, config, (stride[0] * cells, stride[1] * cells))
        self.network = build_network(config.network, stride, config.seed).to(self.device)
        self.averaged = AveragedModel(self.network, multi_avg_fn=self._average)
        self.optimisers = build_optimisers(self.network, config)
        self.validation = [self._on_device(batch) for batch in self.sampler.validation]
        self.step = 0
        self.flop = 0.0
        self.flop_of: dict[str, float] = {}
        self.loss = math.nan
        self.history: list[dict[str, float]] = []
        self.best: tuple[int, dict[str, torch.Tensor]] | None = None  # step and weights
        self.started = time.monotonic()

    def run(self, progress: Progress) -> Checkpoint:
        """Take all steps, or as many as time and the user allow."""
        why: Why = "steps"
        try:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
                while why == "steps" and self.step < self.config.steps:
                    self._take_step()
                    last = self.step == self.config.steps
                    if not math.isfinite(self.loss):
                        why = "divergence"
                    elif self._time_is_up():
                        why, last = "seconds", True
                    if why != "divergence" and (
                        last or self.step % self.config.validation_every == 0
                    ):
                        self._validate()
                    progress(self._status())
        except KeyboardInterrupt:
            if not self.step:
                raise
            why = "the user"
            if self.best is None:
                self._validate()
        return self._checkpoint(why)

    def _take_step(self) -> None:
        for optimiser in self.optimisers:
            optimiser.set_rate(self._rate())
        batch = self._on_device(self.sampler.next_batch())
        with self._counting_flop("step"):
            for optimiser in self.optimisers:
                optimiser.zero_grad()
            error = self._error(self.network, batch)
            error.backward()  # type: ignore[no-untyped-call]
        for optimiser in self.optimisers:
            optimiser.step()
        self.averaged.update_parameters(self.network)
        value = float(error.detach())
        self.loss = value if self.step == 0 else self.loss + _SMOOTHING * (value - self.loss)
        self.step += 1

    def _average(
        self,
        averaged: Sequence[torch.Tensor],
        current: Sequence[torch.Tensor],
        n_averaged: torch.Tensor | int,
    ) -> None:
        """Exponential moving average, shorter at first so that the beginning is forgotten."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for average, weight in zip(averaged, current, strict=True):
            average.lerp_(weight, 1 - decay)

    def _error(self, network: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        """Mean squared error over the counted pixels."""
        subsampled, target, counted = batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            output = network(subsampled)
        squared = (output.float() - target).square() * counted
        mean: torch.Tensor = squared.sum() / counted.sum().clamp(min=1)
        return mean

    @torch.no_grad()
    def _validate(self) -> None:
        """Measure the error on pixels never used as targets; keep the weights if it fell."""
        with self._counting_flop("validation"):
            errors = [float(self._error(self.averaged, batch)) for batch in self.validation]
        error = sum(errors) / len(errors)
        if math.isfinite(error) and error <= self._best_error():
            self._keep()
        self.history.append(
            {
                "step": self.step,
                "seconds": round(self._elapsed(), 3),
                "tflop": self.flop / 1e12,
                "loss": self.loss,
                "validation_error": error,
            }
        )

    def _error_of_the_mean(self) -> float:
        """The validation error of a result that is flat."""
        squares = [(target.square() * counted).sum() for _, target, counted in self.validation]
        return float(sum(squares) / sum(counted.sum() for *_, counted in self.validation))

    def _best_error(self) -> float:
        return min((entry["validation_error"] for entry in self.history), default=math.inf)

    def _keep(self) -> None:
        kept = self.averaged.module.state_dict()
        weights = {name: tensor.detach().cpu().clone() for name, tensor in kept.items()}
        self.best = self.step, weights

    def _rate(self) -> float:
        """The learning rate as a share of the highest."""
        warmup = self.config.warmup_steps
        rising = min(1.0, (self.step + 1) / warmup) if warmup else 1.0
        if self.config.schedule == "constant":
            return rising
        done = self.step / self.config.steps
        if self.config.seconds is not None:
            done = max(done, self._elapsed() / self.config.seconds)
        return rising * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _time_is_up(self) -> bool:
        return self.config.seconds is not None and self._elapsed() >= self.config.seconds

    @contextmanager
    def _counting_flop(self, what: str) -> Iterator[None]:
        """Count the arithmetic of the first block of its kind, and add it for every one."""
        if what in self.flop_of:
            yield
        else:
            with FlopCounterMode(display=False) as counter:
                yield
            self.flop_of[what] = counter.get_total_flops()
        self.flop += self.flop_of[what]

    def _on_device(self, batch: Batch) -> list[torch.Tensor]:
        return [torch.from_numpy(part).to(self.device) for part in batch]

    def _status(self) -> TrainingStatus:
        elapsed = self._elapsed()
        remaining = (self.config.steps - self.step) * elapsed / self.step
        if self.config.seconds is not None:
            remaining = min(remaining, max(self.config.seconds - elapsed, 0.0))
        return TrainingStatus(
            step=self.step,
            n_steps=self.config.steps,
            elapsed_s=elapsed,
            remaining_s=remaining,
            loss=self.loss,
            validation_error=self.history[-1]["validation_error"] if self.history else None,
            steps_per_s=self.step / elapsed,
        )

    def _checkpoint(self, why: Why) -> Checkpoint:
        if self.best is None:
            raise TrainingError(
                f"training was stopped by {why} before anything could be kept (step {self.step})"
                + ("; try a lower learning rate or another --seed" if why == "divergence" else "")
            )
        kept_step, weights = self.best
        if why == "divergence":
            _log.warning("training diverged at step %d; kept step %d", self.step, kept_step)
        if not self._best_error() < _LEARNED_LITTLE * self._error_of_the_mean():
            _log.warning(
                "after %d steps the network is hardly better than the frame's mean; train longer",
                kept_step,
            )
        summary: dict[str, Any] = {
            "steps": self.step,
            "kept_step": kept_step,
            "seconds": round(self._elapsed(), 3),
            "tflop": self.flop / 1e12,
            "stopped_by": why,
            "device": _device_name(self.device),
            "precision": "bfloat16" if self.low_precision else "float32",
            "torch": str(torch.__version__),
        }
        return Checkpoint(
            weights=weights,
            config=self.config,
            history=self.history,
            summary=summary,
            pixel_size=self.frame.pixel_size,
            unit=self.frame.unit,
            n2sr_version=VERSION,
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingError(f"device is {name!r}, but must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(
            f"device is {name!r}, but this PyTorch ({torch.__version__}) sees no CUDA GPU; "
            "leave --device out, or see: n2sr doctor"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"device is {name!r}, but there are {torch.cuda.device_count()} GPUs")
    return device


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the machine computes in bfloat16, rather than imitating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    names = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # of x86-64 and of Arm
    return any(capabilities.get(name, False) for name in names)
