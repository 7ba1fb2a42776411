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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from n2sr_deploy.errors import SettingError, TrainingError
from n2sr_deploy.learning import TrainingStatus
from n2sr_deploy.version import VERSION
from n2sr_train.checkpoint import Checkpoint
from n2sr_train.optimisers import build_optimisers
from n2sr_train.patches import Batch, PatchSampler, ValidationPatch
from n2sr_train.starting import starting_network

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from n2sr_deploy.frame import Frame
    from n2sr_deploy.learning import Progress
    from n2sr_deploy.noise import Noise
    from n2sr_train.config import TrainingConfig

_log = logging.getLogger("n2sr")
_SMOOTHING = 0.05  # of the loss that is shown
# Axes of (1, H, W) along which `sampling.draw` mirrors the draws of a group.
_MIRRORED: tuple[tuple[int, ...], ...] = ((), (1, 2), (2,), (1,))
_LEARNED_LITTLE = 0.995  # of the error of a flat result
Why = Literal["steps", "seconds", "the user", "divergence"]


def train(
    frame: Frame,
    config: TrainingConfig,
    progress: Progress | None = None,
    noise: Noise | None = None,
) -> Checkpoint:
    """Learn a network from one noisy frame.

    Parameters
    ----------
    frame
        (H, W) in counts, at least as large as the network's multiple (32 x 32 for ``balanced``).
    config
        Everything else; `TrainingConfig.named` gives a preset.
    progress
        Called after every step.
    noise
        What was measured of the frame's noise, to be kept with the weights.

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
    return _Training(frame, config, noise).run(progress or (lambda status: None))


class _Kept(NamedTuple):
    """Averaged weights worth keeping."""

    step: int
    validation_error: float
    weights: dict[str, torch.Tensor]


class _Score(NamedTuple):
    """What a step is judged by."""

    step: int
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


class _Training:
    """The state of one training."""

    def __init__(self, frame: Frame, config: TrainingConfig, noise: Noise | None = None) -> None:
        self.noise = noise
        self.frame = frame
        self.config = config
        self.device = _device(config.device)
        self.low_precision = has_bfloat16(self.device)
        stride = config.pattern.stride
        cells = 2**config.network.levels
        self.sampler = PatchSampler(frame, config, (stride[0] * cells, stride[1] * cells))
        network: torch.nn.Module = starting_network(config).to(self.device)
        # Convolutions are twice as fast so, on CPUs as on GPUs.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = AveragedModel(self.network, multi_avg_fn=self._average)
        self.optimisers = build_optimisers(self.network, config)
        self.validation = [self._on_device(batch) for batch in self.sampler.validation]
        self.step = 0
        self.flop = 0.0
        self.flop_of: dict[str, float] = {}
        self.loss = math.nan
        self.history: list[dict[str, float]] = []
        self.best: _Kept | None = None
        self.lowest: _Score | None = None
        self.first_gap = 0.0
        self.started = time.monotonic()

    def run(self, progress: Progress) -> Checkpoint:
        """Take all steps, or as many as time and the user allow."""
        why: Why = "steps"
        try:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
                self._validate()
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
        subsampled, target, counted = self._on_device(self.sampler.next_batch())
        with self._counting_flop("step"):
            for optimiser in self.optimisers:
                optimiser.zero_grad()
            squared = (self._output(self.network, subsampled) - target).square() * counted
            error = squared.sum() / counted.sum().clamp(min=1)
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

    def _output(self, network: torch.nn.Module, subsampled: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) -> (N, 1, H, W), in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            output = network(subsampled)
        return torch.as_tensor(output.float())

    @torch.no_grad()
    def _validate(self) -> None:
        """Measure the error on pixels never learned from; keep the weights unless it rose.

        The error is that of the mean over a group of draws, as denoising takes it, each pixel
        from the draws that held it out. A network that has seen its targets too often repeats a
        share m of their noise, in the pixels it learned from only: there its error falls below
        that of the others by 2 m of the noise's variance, while its true error rises by m ** 2 of
        it. That is added.
        """
        unseen_errors, learned_error, n_learned = [], 0.0, 0.0
        with self._counting_flop("validation"):
            for subsampled, held_out, target, learned, unseen in self.validation:
                output = self._output(self.averaged, subsampled)
                for m, axes in enumerate(_MIRRORED[: len(output)]):
                    output[m] = output[m].flip(axes)
                n_held_out = held_out.sum(dim=0)  # (1, H, W)
                mean = (output * held_out).sum(dim=0) / n_held_out.clamp(min=1)
                squared = (mean - target).square()
                unseen_errors.append(squared[(unseen > 0) & (n_held_out > 0)])
                counted = learned * (n_held_out > 0)
                learned_error += float((squared * counted).sum())
                n_learned += float(counted.sum())
        errors = torch.cat(unseen_errors)
        error = float(errors.mean())
        gap = error - learned_error / n_learned
        if not self.history:
            self.first_gap = gap  # chance: nothing has been learned yet
        repeated = max(gap - self.first_gap, 0.0) / (2 * error)
        score = _Score(self.step, errors + repeated**2 * error)
        if math.isfinite(error):
            if self.lowest is None or not score.is_worse_than(self.lowest):
                self._keep(error)
            if self.lowest is None or score.mean < self.lowest.mean:
                self.lowest = score
        self.history.append(
            {
                "step": self.step,
                "seconds": round(self._elapsed(), 3),
                "tflop": self.flop / 1e12,
                "loss": self.loss if self.step else learned_error / n_learned,
                "validation_error": error,
                "repeated_noise": repeated,
            }
        )

    def _error_of_the_mean(self) -> float:
        """The validation error of a result that is flat."""
        squares = sum(float((p.target**2 * p.unseen).sum()) for p in self.sampler.validation)
        return squares / sum(float(p.unseen.sum()) for p in self.sampler.validation)

    def _keep(self, error: float) -> None:
        kept = self.averaged.module.state_dict()
        weights = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in kept.items()
        }
        self.best = _Kept(self.step, error, weights)

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

    def _on_device(self, batch: Batch | ValidationPatch) -> list[torch.Tensor]:
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
        if self.best is None or (why == "divergence" and self.best.step == 0):
            raise TrainingError(
                f"training was stopped by {why} before anything could be kept (step {self.step})"
                + ("; try a lower learning rate or another --seed" if why == "divergence" else "")
            )
        kept = self.best
        if why == "divergence":
            _log.warning("training diverged at step %d; kept step %d", self.step, kept.step)
        if not kept.validation_error < _LEARNED_LITTLE * self._error_of_the_mean():
            _log.warning(
                "after %d steps the network is hardly better than the frame's mean; train longer",
                kept.step,
            )
        summary: dict[str, Any] = {
            "steps": self.step,
            "kept_step": kept.step,
            "seconds": round(self._elapsed(), 3),
            "tflop": self.flop / 1e12,
            "stopped_by": why,
            "device": _device_name(self.device),
            "precision": "bfloat16" if self.low_precision else "float32",
            "torch": str(torch.__version__),
        }
        return Checkpoint(
            weights=kept.weights,
            config=self.config,
            history=self.history,
            summary=summary,
            pixel_size=self.frame.pixel_size,
            unit=self.frame.unit,
            n2sr_version=VERSION,
            noise=self.noise,
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


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than imitating it slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    names = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # of x86-64 and of Arm
    return any(capabilities.get(name, False) for name in names)
