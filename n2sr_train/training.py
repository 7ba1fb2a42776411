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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from n2sr_deploy.errors import SettingError, TrainingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.kernels import pytorch_sleeps
from n2sr_deploy.learning import TrainingStatus
from n2sr_deploy.version import VERSION
from n2sr_deploy.words import counted, seconds
from n2sr_train.arithmetic import counting_flop
from n2sr_train.checkpoint import Checkpoint
from n2sr_train.config import LEAST_SECONDS
from n2sr_train.device_patches import DevicePatches
from n2sr_train.devices import (
    chosen_device,
    device_name,
    has_bfloat16,
    without_lost_threads,
)
from n2sr_train.members import joined, part_of
from n2sr_train.missed import MissedPlaces
from n2sr_train.patches import PatchSampler
from n2sr_train.starting import starting_network
from n2sr_train.step import CudaGraph, TrainingStep
from n2sr_train.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.learning import Progress
    from n2sr_deploy.noise import Noise
    from n2sr_deploy.sampling import AnyArray
    from n2sr_train.config import TrainingConfig

_log = logging.getLogger("n2sr")
_READ_ON_GPU = 25  # steps
_VALIDATION_BYTES = 2**29  # of feature maps, about
_VALIDATION_SHARE = 0.05  # of the time, where it is bounded
_SEEDS_APART = 2**32  # of the members of an ensemble
_TIMES_WORSE = 3  # judgements in a row that find the error risen, after which a training ends
Why = Literal["steps", "seconds", "the user", "divergence", "overfitting"]


def train(
    frame: Frame | AnyArray,
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
    The latest of the averaged weights, or those of the lowest validation error where the latest
    are worse by more than chance or nothing was learned. Ctrl-C ends the training and returns the
    best so far. Without a bound in seconds, the same seed on the same machine gives the same
    weights bit for bit on a CPU, and on a GPU as far as PyTorch's operations repeat there.

    Raises
    ------
    FrameError
        When the frame is constant or too small.
    SettingError
        When the device is not there, or `progress` is no function.
    TrainingError
        When the training diverged before anything worth keeping, or the GPU's memory is full.
    """
    if not (progress is None or callable(progress)):
        raise SettingError(f"progress is {progress!r:.200}, but must be a function of the status")
    without_lost_threads()
    frame, n_members = Frame.of(frame), config.network.members
    trained: list[Checkpoint] = []
    for member in range(n_members):
        own = replace(
            config,
            network=config.network.single,
            seed=(config.seed + member * _SEEDS_APART) % 2**63,
            seconds=config.seconds and max(config.seconds / n_members, LEAST_SECONDS),
        )
        shown = part_of(progress, trained, n_members)
        try:
            trained.append(_Training(frame, own, noise).run(shown))
        except (TrainingError, KeyboardInterrupt) as error:
            if not trained:
                raise
            why = str(error) or "ended by the user"
            _log.warning("only %d of %d networks were trained: %s", len(trained), n_members, why)
            break
        if trained[-1].summary["stopped_by"] == "the user":
            break
    return joined(trained, config)


class _Training:
    """The state of one training."""

    def __init__(self, frame: Frame, config: TrainingConfig, noise: Noise | None = None) -> None:
        self.noise = noise
        self.frame = frame
        self.config = config
        self.device = chosen_device(config.device)
        if self.device.type == "cpu" and pytorch_sleeps():
            _log.info(
                "frames were denoised in this process before PyTorch was imported, so its threads "
                "sleep between operations: the training may take twice as long. Import torch first"
            )
        sampler = PatchSampler(frame, config, config.multiple)
        network: torch.nn.Module = starting_network(config).to(self.device)
        bytes_per_pixel = int(network.bytes_per_pixel)  # type: ignore[arg-type]
        # Convolutions are twice as fast so, on CPUs as on GPUs.
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.n_turns = sampler.n_turns
        # A GPU waits for launches, so it takes many patches at a time; a CPU gains nothing by it.
        patch_bytes = 4 * sampler.shape[0] * sampler.shape[1] * bytes_per_pixel  # of four draws
        at_once = 1 if self.device.type == "cpu" else max(1, _VALIDATION_BYTES // patch_bytes)
        self.validation = Validation(sampler, self.device, at_once)
        self.missed = MissedPlaces(sampler, config, self.device, at_once)
        self.looks = config.missed_weight > 1
        self.stepper = self._stepper(network, sampler)
        self.step = 0
        self.flop = 0.0
        self.validation_flop = 0.0
        self.validating_s = 0.0
        self.first_step_s = 0.0
        self.loss = math.nan
        self.history: list[dict[str, float]] = []
        self.started = time.monotonic()

    def _stepper(self, network: torch.nn.Module, sampler: PatchSampler) -> TrainingStep:
        """How steps are taken here: launched one by one on a CPU, recorded on a GPU."""
        low_precision = has_bfloat16(self.device)
        if self.device.type == "cpu":
            return TrainingStep(network, self.config, sampler, low_precision=low_precision)
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        return TrainingStep(
            network,
            self.config,
            DevicePatches(sampler, self.config, generator),
            low_precision=low_precision,
            graph=CudaGraph(self.device, generator),
        )

    def run(self, progress: Progress) -> Checkpoint:
        """Take all steps, or as many as time, the user and what is learned allow."""
        try:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
                self._validate()
                # Libraries have loaded; now the learning begins.
                self.started, self.validating_s = time.monotonic(), 0.0
                why = self._take_steps(progress)
        except KeyboardInterrupt:
            if not self.step:
                raise
            why = "the user"
            if self.step > self.history[-1]["step"]:
                _log.info("ending: what was learned is judged and kept (Ctrl-C gives it up)")
                self._validate()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the GPU has too little memory for preset {self.config.preset} ({error}); "
                "take --preset fast or --device cpu"
            ) from error
        return self._checkpoint(why)

    def _take_steps(self, progress: Progress) -> Why:
        """Until something ends them, and tell what."""
        ended: Why | None = None
        while ended is None:
            self._take_step()
            if self.step == self.config.steps:
                ended = "steps"
            elif self._time_is_up():
                ended = "seconds"
            judges = ended is not None or self._validation_is_due()
            looks = self.looks and judges and ended is None
            if looks:
                self.missed.draw_next()  # while a GPU is still at its steps
            if ended or self.step % self._reads_every == 0:
                self.loss = self.stepper.loss
            if not math.isfinite(self.loss):
                return "divergence"
            if judges:
                self._validate()
            if looks:
                self._look_for_missed()
            if self.config.stops_early and self.overfits():
                ended = ended or "overfitting"
            progress(self._status())
        return ended

    def _take_step(self) -> None:
        self.stepper.take(self._rate())
        self.flop += self.stepper.flop
        self.step += 1
        if self.step == 1:
            self.first_step_s = self._elapsed()

    @property
    def _reads_every(self) -> int:
        """Steps after which the loss is read, for which the host must wait for the device."""
        return 1 if self.device.type == "cpu" or self.step == 1 else _READ_ON_GPU

    def _validation_is_due(self) -> bool:
        """Every so many steps; where seconds are few, no more often than they allow."""
        if self.step % self.config.validation_every:
            return False
        if self.config.seconds is None:
            return True
        takes_s = self._seconds_for(self.validation_flop + self.looks * self._look_flop)
        is_followed = self._elapsed() + takes_s < self._seconds_to_learn()
        return is_followed and self.validating_s < _VALIDATION_SHARE * self._elapsed()

    def overfits(self) -> bool:
        """Whether further steps would only learn to repeat noise."""
        enough = max(self.config.steps / 4, 5 * self.config.warmup_steps)
        return self.step >= enough and self.validation.n_worse >= _TIMES_WORSE

    def _validate(self) -> None:
        """Judge the averaged weights, and note it."""
        began = time.monotonic()
        with self._counting_flop():
            found = self.validation.judge(self.step, self.stepper.averaged, self.stepper.output)
        learned_error = found.pop("learned_error")
        self.history.append(
            {
                "step": self.step,
                "seconds": round(self._elapsed(), 3) if self.step else 0.0,
                "tflop": self.flop / 1e12,
                "loss": self.stepper.loss if self.step else learned_error,
                **found,
            }
        )
        self.validating_s += time.monotonic() - began

    def _look_for_missed(self) -> None:
        """For the steps to come."""
        began = time.monotonic()
        self.missed.look(self.stepper.averaged, self.stepper.output)
        self.stepper.patches.weigh(self.missed.counts)
        self.flop += self._look_flop
        self.validating_s += time.monotonic() - began

    @property
    def _look_flop(self) -> float:
        return self.validation_flop * self.missed.n_tiles / self.validation.n_patches

    def _rate(self) -> float:
        """The learning rate as a share of the highest."""
        warmup = self.config.warmup_steps
        rising = min(1.0, (self.step + 1) / warmup) if warmup else 1.0
        if self.config.schedule == "constant":
            return rising
        done = max(self.step / self.config.steps, self._elapsed() / self._seconds_to_learn())
        return rising * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _seconds_for(self, flop: float) -> float:
        """How long so much arithmetic takes, at the pace of the steps so far."""
        if not self.step:
            return 0.0
        per_step = max(self._elapsed() - self.validating_s, 0.0) / self.step
        return per_step * flop / self.stepper.flop

    def _seconds_to_learn(self) -> float:
        """What a bound in seconds leaves for steps: the end is judged within it."""
        seconds = self.config.seconds
        if seconds is None:
            return math.inf
        return max(seconds - self._seconds_for(self.validation_flop), 0.5 * seconds)

    def _time_is_up(self) -> bool:
        return self._elapsed() >= self._seconds_to_learn()

    @contextmanager
    def _counting_flop(self) -> Iterator[None]:
        """Count the arithmetic of the first validation, and add it for every one."""
        if self.validation_flop:
            yield
        else:
            with counting_flop(self.stepper.averaged) as counted:
                yield
            self.validation_flop = counted.total
        self.flop += self.validation_flop

    def _status(self) -> TrainingStatus:
        elapsed, remaining = self._elapsed(), None
        if self.step > 1:
            pace_s = (elapsed - self.first_step_s) / (self.step - 1)
            remaining = (self.config.steps - self.step) * pace_s
            if self.config.seconds is not None:
                remaining = min(remaining, max(self.config.seconds - elapsed, 0.0))
        return TrainingStatus(
            step=self.step,
            n_steps=self.config.steps,
            elapsed_s=elapsed,
            remaining_s=remaining,
            loss=self.loss,
            validation_error=self.history[-1]["validation_error"],
            steps_per_s=self.step / elapsed,
        )

    def _checkpoint(self, why: Why) -> Checkpoint:
        kept = self.validation.kept
        if kept is None or (why == "divergence" and kept.step == 0):
            raise TrainingError(
                f"training was stopped by {why} before anything could be kept (step {self.step})"
                + ("; try a lower learning rate or another --seed" if why == "divergence" else "")
            )
        if kept.step == 0 and self.step > 0 and self.config.start != "random":
            _log.warning("all that was learned was worse than what it started from, which is kept")
        if why == "divergence":
            _log.warning("training diverged at step %d; kept step %d", self.step, kept.step)
        if why in ("seconds", "the user") and self.step < self.config.warmup_steps:
            _log.warning(
                "%s in %s: too little to learn from the frame, so this is hardly more than "
                "the weights it started from; give it more %s",
                counted(self.step, "step"),
                seconds(self._elapsed()),
                "--seconds" if why == "seconds" else "time",
            )
        if self.validation.is_flat(kept):
            _log.warning(
                "after %s the network is hardly better than the frame's mean; %s",
                counted(self.step, "step"),
                "there may be nothing but noise"
                if why == "overfitting"
                or (kept.step < self.step and self.step >= self.config.warmup_steps)
                else "train longer",
            )
        summary: dict[str, Any] = {
            "frame_shape": list(self.frame.shape),
            "steps": self.step,
            "kept_step": kept.step,
            "seconds": round(self._elapsed(), 3),
            "tflop": self.flop / 1e12,
            "stopped_by": why,
            "turns": self.n_turns,
            "device": device_name(self.device),
            "precision": "bfloat16" if self.stepper.low_precision else "float32",
            "torch": str(torch.__version__),
        }
        return Checkpoint(
            weights={name: tensor.cpu() for name, tensor in kept.weights.items()},
            config=self.config,
            history=self.history,
            summary=summary,
            pixel_size=self.frame.pixel_size,
            unit=self.frame.unit,
            n2sr_version=VERSION,
            noise=self.noise,
        )
