"""Settings of a training, and the presets."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from n2sr_deploy.errors import SettingError, check_choice
from n2sr_deploy.noise import choose_pattern
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.sampling import MAX_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from n2sr_deploy.learning import LearnOptions
    from n2sr_deploy.noise import Noise
    from n2sr_deploy.pattern import Shape


LEAST_SECONDS = 0.1  # of a training
_GUARD = 10**6  # from which on an upper bound is told only to who goes beyond
_DEVICE = re.compile(r"auto|(cpu|cuda)(:(0|[1-9]\d?))?")


def _within(name: str, value: float, low: float, high: float) -> None:
    whole = isinstance(low, int) and isinstance(high, int)
    if not hasattr(value, "__float__"):  # a program may give anything
        raise SettingError(f"{name} is {value!r}, but must be a number")
    if not (math.isfinite(value) and low <= value <= high) or (whole and value != int(value)):
        highest = high if isinstance(high, int) else f"{high:.10g}"
        bounds = f"{low:.10g} to {highest}" if high < _GUARD or value > high else f"{low} or more"
        given = str(value).removesuffix(".0")
        raise SettingError(f"{name} is {given}, but must be {'a whole number, ' * whole}{bounds}")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network, and how large."""

    architecture: Literal["unet", "paper"] = "unet"
    """``unet``: the small U-Net; ``paper``: the paper's, see `n2sr_train.network`."""
    channels: tuple[int, ...] = (32, 48, 64, 64, 32)
    """Feature channels at the sub-sampled resolution, then after each pooling; 2 to 7 numbers.
    Each pooling doubles how far the network sees and the multiple frames are padded to. The
    paper's network has the first number everywhere."""
    members: int = 1
    """How many such networks are trained, one after another, each from its own random numbers;
    their outputs are averaged. Time and arithmetic multiply by it."""

    @property
    def single(self) -> NetworkConfig:
        """Of one member."""
        return replace(self, members=1)

    @property
    def levels(self) -> int:
        """How many poolings there are."""
        return len(self.channels) - 1

    @property
    def multiple(self) -> int:
        """What rows and columns of its input are multiples of."""
        return 1 << self.levels

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # JSON keeps a list
        check_choice("architecture", self.architecture, ("unet", "paper"))
        _within("the number of poolings", self.levels, 1, 6)
        _within("members", self.members, 1, 16)
        for channels in self.channels:
            _within("channels", channels, 1, 1024)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a training depends on but the frame.

    Raises
    ------
    SettingError
        When a setting is out of range; the message gives the range.
    """

    preset: str = "balanced"
    """The name of the recipe this began from."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network to train."""
    pattern: SamplingPattern = field(default_factory=lambda: SamplingPattern.named("cell"))
    """How frames are sub-sampled, in training and afterwards."""
    margin: int = 0
    """Held-out pixels no farther than this, in rows or columns, from a kept one or one that judges
    are not learned from; for noise that is correlated along both axes. 0: all held-out pixels
    are."""
    start: str = "packaged"
    """Where the weights begin. ``packaged``: from those this package carries for the preset and
    pattern, at random where there are none; ``random``; or the path of a checkpoint or
    exported model of the same network."""
    n_samples: int = 16
    """M, the number of draws that denoising averages unless told otherwise; live frames have
    `n2sr_deploy.sampling.LIVE_SAMPLES`."""
    steps: int = 2600
    """Steps of the optimiser, for each member of the network; the learning rate ends at zero
    there."""
    seconds: float | None = None
    """An upper bound on the training time, which members share evenly: the schedule is shortened
    to end there. None: no bound. A run bounded by time does not repeat exactly."""
    batch: int = 2
    """Patches in a step."""
    patch: int = 256
    """Rows and columns of a patch, in pixels of the frame; smaller frames give smaller patches."""
    optimiser: Literal["muon", "adam"] = "muon"
    """``muon``: orthogonalised momentum for the convolutions' weights and Adam for the rest;
    ``adam``: Adam for all."""
    learning_rate: float = 0.012
    """The highest learning rate; of Muon where Muon is used."""
    adam_learning_rate: float = 0.0025
    """The highest learning rate of what Adam trains beside Muon."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Falls to zero as a half cosine, or stays."""
    warmup_steps: int = 20
    """Steps in which the learning rate rises to its highest; 0: none."""
    ema_decay: float = 0.985
    """Of the exponential moving average of the weights, which is what is kept; 0: the last
    weights themselves."""
    overhang: float = 1 / 3
    """How far patches are drawn beyond the frame's border, to be moved back to it: as a share of
    their side, or of the places they have along it where those are fewer; 0 to 1. With 0 a pixel at
    the border is in hardly any."""
    missed_weight: float = 5.0
    """How much pixels count where the residual shows that something was missed, 1 to 1000; 1: as
    others."""
    validation_fraction: float = 0.02
    """Of the pixels, kept from all targets to measure the validation error on; 0.001 to 0.2."""
    validation_pixels: int = 14_000
    """Of small frames at least so many, but no more than a tenth of the frame; 0: the fraction
    alone counts."""
    stops_early: bool = True
    """Whether to stop when three judgements in a row find the validation error risen for sure,
    after a quarter of the steps and five times the warm-up."""
    validation_every: int = 100
    """Steps between two measurements of the validation error."""
    seed: int = 0
    """Of everything random; the same seed on the same CPU repeats a run exactly."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``cuda:1``; ``auto`` takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check_choice("optimiser", self.optimiser, ("muon", "adam"))
        check_choice("schedule", self.schedule, ("cosine", "constant"))
        for name, low, high in (
            ("n_samples", 1, MAX_SAMPLES),
            ("margin", 0, 2),
            ("steps", 1, 10**8),
            ("batch", 1, 4096),
            ("patch", 16, 4096),
            ("warmup_steps", 0, 10**6),
            ("validation_every", 1, 10**8),
            ("validation_pixels", 0, 10**8),
            ("seed", 0, 2**63 - 1),
        ):
            _within(name, getattr(self, name), low, high)
            object.__setattr__(self, name, int(getattr(self, name)))  # of NumPy's: JSON keeps it
        _within("validation_fraction", self.validation_fraction, 0.001, 0.2)
        _within("ema_decay", self.ema_decay, 0.0, 0.99999)
        _within("learning_rate", self.learning_rate, 1e-8, 10.0)
        _within("adam_learning_rate", self.adam_learning_rate, 1e-8, 10.0)
        _within("overhang", self.overhang, 0.0, 1.0)
        _within("missed_weight", self.missed_weight, 1.0, 1000.0)
        if self.seconds is not None:
            _within("seconds", self.seconds, LEAST_SECONDS, 1e9)
        if not _DEVICE.fullmatch(self.device):
            raise SettingError(f"device is {self.device!r}, but must be auto, cpu, cuda or cuda:N")
        if self.margin and max(self.pattern.stride) < self.margin + 2:
            raise SettingError(
                f"margin is {self.margin} and the pattern {self.pattern}, which leaves no pixel to "
                f"learn from; take a stride of at least {self.margin + 2}"
            )

    @property
    def multiple(self) -> Shape:
        """(rows, columns) of pixels that frames are padded to multiples of."""
        stride_y, stride_x = self.pattern.stride
        return stride_y * self.network.multiple, stride_x * self.network.multiple

    @property
    def start_path(self) -> Path | None:
        """The file that `start` names; None where it names none."""
        return None if self.start in ("packaged", "random") else Path(self.start)

    @classmethod
    def named(cls, preset: str) -> TrainingConfig:
        """The settings of a preset.

        Raises
        ------
        SettingError
            When there is none of that name.
        """
        check_choice("preset", preset, PRESETS)
        return PRESETS[preset]

    @classmethod
    def from_options(cls, options: LearnOptions, noise: Noise | None = None) -> TrainingConfig:
        """A preset's settings with what the noise asks for and what the user said put in.

        Raises
        ------
        SettingError
            When something the user said is out of range.
        """
        config = cls.named(options.preset or DEFAULT_PRESET)
        pattern, margin = config.pattern, config.margin
        if noise is not None:
            pattern, margin, _ = choose_pattern(noise)
        if options.pattern is not None or options.stride is not None:
            name = options.pattern or pattern.name
            pattern = SamplingPattern.named(name, options.stride or max(config.pattern.stride))
            # The noise asks for it still; of cells hardly a pixel would be left.
            margin = 0 if name == "cell" else min(margin, max(0, max(pattern.stride) - 2))
        given: dict[str, Any] = {
            key: getattr(options, key)
            for key in ("seconds", "steps", "seed", "device")
            if getattr(options, key) is not None
        }
        if options.init is not None:
            given["start"] = options.init
        return replace(config, pattern=pattern, margin=margin, **given)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """From what JSON kept; unknown keys are refused.

        Where one is missing the training came before there was such a setting: it looked for no
        missed places, and its patches had no overhang. What earlier versions could set and this
        one cannot is left out.

        Raises
        ------
        SettingError
            When a key is unknown or a value out of range.
        """
        known = {known.name for known in dataclasses.fields(cls)}
        values = {key: value for key, value in values.items() if key not in _NO_LONGER}
        for key in values:
            check_choice("setting", key, known)
        nested = {
            "network": NetworkConfig(**values["network"]),
            "pattern": SamplingPattern(**values["pattern"]),
        }
        return cls(**{**_BEFORE, **values, **nested})


_BEFORE = {"missed_weight": 1.0, "overhang": 0.0}
_NO_LONGER = {"turns"}  # a checkpoint's summary tells in how many ways its patches were laid
DEFAULT_PRESET = "balanced"

PRESETS: Mapping[str, TrainingConfig] = {
    "fast": TrainingConfig(
        preset="fast", network=NetworkConfig(channels=(16, 24, 32, 48, 48)), steps=2000
    ),
    "balanced": TrainingConfig(),
    "best": TrainingConfig(preset="best", network=NetworkConfig(members=2), n_samples=32),
    # Tian et al. 2024, doi 10.1109/TCI.2024.3458411, as its text describes it, but for what n2sr
    # always does: 2 % of the pixels are kept from the targets and choose the weights to keep, the
    # draws of inference are stratified and turned, and so the patches are turned too.
    "paper": TrainingConfig(
        preset="paper",
        network=NetworkConfig(architecture="paper", channels=(128,) * 6),
        n_samples=50,
        steps=6000,
        batch=10,
        optimiser="adam",
        learning_rate=1e-4,
        schedule="constant",
        warmup_steps=0,
        ema_decay=0.0,
        overhang=0.0,
        missed_weight=1.0,
        validation_pixels=0,
        stops_early=False,
    ),
}
