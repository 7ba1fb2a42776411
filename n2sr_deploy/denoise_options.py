"""How files are denoised: what `n2sr denoise`, `n2sr batch` and its workers are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from n2sr_deploy.learning import LearnOptions

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions:
    """How files are denoised."""

    model: str | None = None
    """Path of an exported model; None: a network is learned first."""
    n_samples: int | None = None
    """M, the number of draws, 1 to 1024; None: the model's."""
    backend: str = "auto"
    """One of `n2sr_deploy.backends.BACKENDS`, or ``auto``."""
    signal: str | None = None
    """Which of a file's signals; None: the only one."""
    stack: bool = False
    """Whether all frames of a file are denoised, into a file with the same axes; else one is."""
    frame: int | None = None
    """Which frame, from 0; None: the only one. Of a stack, the frame to learn from; None: the
    middle one."""
    per_frame: bool = False
    """Whether each frame of a stack learns a network of its own."""
    dtype: Literal["float32", "same"] = "float32"
    """``same``: integer pixels become integers of their own type, by rounding and clipping."""
    learn: LearnOptions = field(default_factory=LearnOptions)
    """Of the training; its `repair` and `seed` hold with a model too."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what JSON kept."""
        learn = dict(values["learn"])
        if learn["stride"] is not None:
            learn["stride"] = tuple(learn["stride"])
        return cls(**{**values, "learn": LearnOptions(**learn)})
