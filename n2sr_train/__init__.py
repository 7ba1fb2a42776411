"""n2sr_train learns a network from one noisy frame.

    from n2sr_train import export_model, learn_checkpoint

    checkpoint = learn_checkpoint(frame)
    export_model(checkpoint).save("sample.onnx")

`learn_checkpoint` mends the frame, measures its noise and chooses settings as `n2sr train` does;
`train` takes the frame as it is, with settings of a `TrainingConfig`.

Importing this package imports no PyTorch; the first use of these names does, and where it is
missing says what to install.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from n2sr_deploy.learning import LearnOptions
from n2sr_train.learner import learn_checkpoint, require_training_extra

if TYPE_CHECKING:
    from n2sr_train.checkpoint import Checkpoint
    from n2sr_train.config import TrainingConfig
    from n2sr_train.export import export_model
    from n2sr_train.training import train

__all__ = [
    "Checkpoint",
    "LearnOptions",
    "TrainingConfig",
    "export_model",
    "learn_checkpoint",
    "train",
]

_HOME = {
    "Checkpoint": "n2sr_train.checkpoint",
    "TrainingConfig": "n2sr_train.config",
    "export_model": "n2sr_train.export",
    "train": "n2sr_train.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_training_extra()
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
