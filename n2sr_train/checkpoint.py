"""The trained state: weights, the whole configuration and history, in one .safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import safetensors
from safetensors import torch as safetensors_torch

from n2sr_deploy import files
from n2sr_deploy.errors import InputFileError, ModelError, N2SRError, OutputError
from n2sr_deploy.noise import Noise
from n2sr_deploy.words import counted, seconds
from n2sr_train.config import TrainingConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FORMAT_VERSION = 2
_KEY = "n2sr"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What a training leaves."""

    weights: dict[str, Tensor] = field(repr=False)
    """float32, on the CPU, by their names in the network."""
    config: TrainingConfig
    """What was asked for."""
    history: list[dict[str, float]] = field(repr=False)
    """One entry for each validation: step, seconds, tflop, loss, validation_error,
    repeated_noise."""
    summary: dict[str, Any]
    """How it ended: steps, kept_step, seconds, tflop, stopped_by, device, precision, torch,
    frame_shape; and turns, the ways a patch was laid, of which an exported model's draws take as
    many."""
    pixel_size: tuple[float, float] | None
    """Of the frame trained on, in `unit`."""
    unit: str | None
    """Of `pixel_size`, as the frame's file spelled it."""
    n2sr_version: str
    """The version that trained it."""
    noise: Noise | None = None
    """What was measured of the frame's noise before the training."""

    @property
    def weights_sha256(self) -> str:
        """Of the weights' names, shapes and values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def validation_error(self) -> float | None:
        """Of the weights, in units of the frame's variance; None where the history has none.

        Of an ensemble it is that of the last member, a little more than that of their average.
        """
        errors = {entry["step"]: entry["validation_error"] for entry in self.history}
        return errors.get(self.summary.get("kept_step", math.nan))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the .safetensors file, whole or not at all.

        What a killed process left of it is removed.

        Raises
        ------
        OutputError
            When it exists and may not be replaced, or the system refuses the writing.
        """
        data = safetensors_torch.save(
            {name: tensor.contiguous() for name, tensor in self.weights.items()},
            metadata={_KEY: json.dumps(self._header())},
        )
        path = files.path_of(path, OutputError)
        files.remove_leftovers(path)
        with files.replacing(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(data)

    def to_dict(self) -> dict[str, Any]:
        """All that is known but the weights, as JSON keeps it."""
        return {
            "weights_sha256": self.weights_sha256,
            "n_parameters": sum(tensor.numel() for tensor in self.weights.values()),
            "validation_error": self.validation_error,
            **self._header(),
        }

    def _header(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "history": self.history,
            "summary": self.summary,
            "pixel_size": self.pixel_size,
            "unit": self.unit,
            "n2sr_version": self.n2sr_version,
            "noise": self.noise.to_dict() if self.noise else None,
        }

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        InputFileError
            When there is no readable file.
        ModelError
            When it is no checkpoint of n2sr, or of another format version.
        """
        path = files.path_of(path, InputFileError)
        files.check_input(path)
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            hint = "; if it is one, it was cut off or damaged: copy it again, or train again"
            if path.suffix == ".onnx":
                hint = "; this looks like an exported model, which is used with: n2sr denoise -m"
            raise ModelError(f"{path} is not a checkpoint ({error}){hint}") from error
        if _KEY not in metadata:
            raise ModelError(
                f"{path} is a .safetensors file without n2sr's header; "
                "use one written by: n2sr train"
            )
        return cls._from_header(path, weights, metadata[_KEY])

    @classmethod
    def _from_header(cls, path: Path, weights: dict[str, Tensor], text: str) -> Checkpoint:
        try:
            header = json.loads(text)
            if header["format_version"] != FORMAT_VERSION:
                raise ModelError(
                    f"{path} has checkpoint format {header['format_version']}, but this n2sr "
                    f"reads {FORMAT_VERSION}; train again, or use the n2sr that wrote it"
                )
            size = header["pixel_size"]
            return cls(
                weights=weights,
                config=TrainingConfig.from_dict(header["config"]),
                history=header["history"],
                summary=header["summary"],
                pixel_size=(size[0], size[1]) if size else None,
                unit=header["unit"],
                n2sr_version=header["n2sr_version"],
                noise=Noise.from_dict(header["noise"]) if header["noise"] else None,
            )
        except ModelError:
            raise
        except (KeyError, TypeError, ValueError, N2SRError) as error:
            raise ModelError(f"{path} has a damaged header ({error}); train again") from error

    def describe(self) -> str:
        """What it is, in words."""
        ended, config = self.summary, self.config
        error = math.nan if self.validation_error is None else self.validation_error
        lowest = min((entry["validation_error"] for entry in self.history), default=error)
        parameters = sum(tensor.numel() for tensor in self.weights.values())
        members = config.network.members
        kept, found = f"{error:.4f}", f"{lowest:.4f}"
        is_lowest = members > 1 or kept == found  # members are judged by different pixels
        lower = "" if is_lowest else f" (the lowest measured: {found})"
        networks = f"{members} networks, " if members > 1 else ""
        return (
            f"checkpoint, preset {config.preset}, {networks}pattern {config.pattern}, "
            f"{parameters / 1e3:.0f} k parameters, weights {self.weights_sha256[:12]}; "
            f"{counted(ended['steps'], 'step')} (ended by {ended['stopped_by']}) in "
            f"{seconds(ended['seconds'])} "
            f"on {ended['device']} "
            f"({ended['precision']}, {ended['tflop']:.3g} TFLOP), kept from step "
            f"{ended['kept_step']}, validation error {kept}{lower}, seed {config.seed}; "
            f"trained by n2sr {self.n2sr_version}"
        )
