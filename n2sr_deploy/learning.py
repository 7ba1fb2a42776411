"""How the run-time asks for training without importing it.

A package that can learn a network from one frame registers what does so, called as `learn` is,
under the entry-point group ``n2sr.learners``; n2sr_train does. Beside it may be a `check_settings`
that takes `LearnOptions` and refuses, quickly, what no frame could be learned with. No import ever
runs back.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple

from n2sr_deploy.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.frame import Frame
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.pattern import Shape

GROUP = "n2sr.learners"
LEARNED = "learned: "
"""What a command says before what was learned in words, once it only has to be exported."""


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """What a user may say of a training; None leaves it to the preset or the machine."""

    preset: str | None = None
    """The recipe's name."""
    pattern: str | None = None
    """``cell``, ``row`` or ``column``."""
    stride: Shape | None = None
    """(stride_y, stride_x), each 1 to 4."""
    seconds: float | None = None
    """An upper bound on the training time; the learning rate ends at zero there."""
    steps: int | None = None
    """An upper bound on the number of steps."""
    seed: int | None = None
    """Of everything random in the training, and of the draws of a result."""
    init: str | None = None
    """The path of a checkpoint or exported model to start from, or ``random``; by default the
    weights that the learner carries, where they fit."""
    repair: bool = True
    """Whether hot pixels are replaced and offsets of rows and columns subtracted first; and rows
    that hum displaced put straight in a file's result."""
    device: str | None = None
    """``cpu``, ``cuda`` or ``cuda:1``; by default a GPU where there is one."""

    @property
    def named(self) -> list[str]:
        """Those that the user named, of the ones that only a training has."""
        names = "preset", "pattern", "stride", "seconds", "steps", "init", "device"
        return [name for name in names if getattr(self, name) is not None]


@dataclass(frozen=True, kw_only=True)
class TrainingStatus:
    """Where a training stands, told after each step."""

    step: int
    """Steps done."""
    n_steps: int
    """Steps in all, unless time runs out."""
    elapsed_s: float
    """Since the training began."""
    remaining_s: float | None
    """Estimated; None at the first step, which loads and compiles what the others use."""
    loss: float
    """Mean squared error on held-out pixels, smoothed; 1 is the frame's variance."""
    validation_error: float
    """The same on pixels never used as targets, when it was last measured."""
    steps_per_s: float
    """On average so far."""


if TYPE_CHECKING:
    Progress = Callable[[TrainingStatus], None]


class Learned(NamedTuple):
    """What a learner gives."""

    model: ExportedModel
    told: str
    """What was learned, and how, in words."""


def check_settings(options: LearnOptions) -> None:
    """Refuse settings before there is a frame, with what the learner that is installed raises."""
    for entry_point in entry_points(group=GROUP):
        check = getattr(import_module(entry_point.module), "check_settings", None)
        if check is not None:
            check(options)
        return


def learn(frame: Frame, options: LearnOptions, progress: Progress) -> Learned:
    """Learn a network from one noisy frame with the learner that is installed.

    Raises
    ------
    MissingExtraError
        When none is.
    """
    for entry_point in entry_points(group=GROUP):
        learner: Callable[[Frame, LearnOptions, Progress], Learned] = entry_point.load()
        return learner(frame, options, progress)
    raise MissingExtraError("training", "n2sr_train", "train")
