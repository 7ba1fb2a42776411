"""What n2sr_train registers under ``n2sr.learners``: see `n2sr_deploy.learning`."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from n2sr_deploy.errors import MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.frame import Frame
    from n2sr_deploy.learning import LearnOptions, Progress
    from n2sr_deploy.model import ExportedModel


def require_training_extra() -> None:
    """Raise MissingExtraError unless everything training and export import is installed."""
    for package in ("torch", "onnx", "onnxscript", "safetensors", "platformdirs"):
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise MissingExtraError("training or exporting", package, "train") from error


def learn(frame: Frame, options: LearnOptions, progress: Progress) -> ExportedModel:
    """Train on one noisy frame and export; what `train` and `export_model` raise, it raises."""
    require_training_extra()
    from n2sr_train.config import TrainingConfig
    from n2sr_train.export import export_model
    from n2sr_train.training import train

    checkpoint = train(frame, TrainingConfig.from_options(options), progress)
    logging.getLogger("n2sr").info("learned: %s", checkpoint.describe())
    return export_model(checkpoint)


def describe_checkpoint(path: Path) -> str:
    """Tell what a checkpoint is, in words, for ``n2sr info``."""
    require_training_extra()
    from n2sr_train.checkpoint import Checkpoint

    return Checkpoint.open(path).describe()
