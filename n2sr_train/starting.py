"""Where a training's weights begin: carried by the package, of another frame, or random.

The package carries weights trained on simulated frames (benchmarks/starting_weights.py), one file
for each network and pattern. A network for columns starts from the one for rows, transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from n2sr_deploy.errors import ModelError
from n2sr_deploy.model import ExportedModel
from n2sr_deploy.pattern import SamplingPattern
from n2sr_train.checkpoint import Checkpoint
from n2sr_train.config import PRESETS, TrainingConfig
from n2sr_train.network import FIRST_MEMBER, build_network

if TYPE_CHECKING:
    from torch import Tensor

    from n2sr_train.config import NetworkConfig
    from n2sr_train.network import AnyNetwork

_FOLDER = Path(__file__).with_name("weights")


def starting_network(config: TrainingConfig) -> AnyNetwork:
    """The network a training begins with, one member.

    Raises
    ------
    InputFileError, ModelError
        When `config.start` names a file that is no checkpoint or exported model, or one of another
        network.
    """
    network = build_network(config.network.single, config.pattern.stride, config.seed)
    weights: dict[str, Tensor] | None = None
    if config.start == "packaged":
        weights = packaged_weights(config)
    elif config.start_path is not None:
        weights = _weights_of(config.start_path, config)
    if weights is not None:
        _load(network, weights, config.start)
    return network


def check_start(config: TrainingConfig) -> None:
    """Refuse, before any work, a start that no pattern could make fit.

    Raises
    ------
    InputFileError, ModelError
        When `config.start` names a file that is no checkpoint or exported model, or one of another
        network.
    """
    if config.start_path is None:
        return
    theirs = _opened(config.start_path)
    if theirs.network != config.network.single:
        raise ModelError(
            f"{config.start} holds a network of preset {theirs.preset}, but this training needs "
            f"one of preset {config.preset}; give it --preset {theirs.preset}, or leave out --init"
        )


def _load(network: AnyNetwork, weights: dict[str, Tensor], start: str) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise ModelError(f"{start} does not hold this network ({what}); train it again") from error
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise ModelError(f"{start} holds weights that are not finite; train it again")


def packaged_path(network: NetworkConfig, pattern: str) -> Path:
    """Where the package would carry the weights of a network for `cell` or `row`, stride 2."""
    channels = "-".join(map(str, network.channels))
    return _FOLDER / f"{network.architecture}-{channels}-{pattern}.safetensors"


def packaged_weights(config: TrainingConfig) -> dict[str, Tensor] | None:
    """The weights the package carries for this network and pattern, float32; None if none."""
    if config.pattern != SamplingPattern.named(config.pattern.name):
        return None
    is_column = config.pattern.name == "column"
    path = packaged_path(config.network, "row" if is_column else config.pattern.name)
    if not path.exists():
        return None
    weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    if is_column:
        weights = {
            name: tensor.transpose(2, 3).contiguous() if tensor.ndim == 4 else tensor
            for name, tensor in weights.items()
        }
    return weights


def _weights_of(path: Path, config: TrainingConfig) -> dict[str, Tensor]:
    """Of another training, if they fit."""
    theirs = _opened(path)
    if theirs.network != config.network.single or theirs.pattern.stride != config.pattern.stride:
        raise ModelError(
            f"{path} holds a network of preset {theirs.preset}, pattern {theirs.pattern}, but this "
            f"training needs one of preset {config.preset}, pattern {config.pattern}; give it "
            f"--preset {theirs.preset} --pattern {theirs.pattern.name} --stride "
            f"{max(theirs.pattern.stride)}, or leave out --init"
        )
    return theirs.weights


@dataclass(frozen=True)
class _Start:
    """What another training left."""

    preset: str
    network: NetworkConfig
    """One member."""
    pattern: SamplingPattern
    weights: dict[str, Tensor]
    """Of the first member, float32."""


def _opened(path: Path) -> _Start:
    """A checkpoint, or an exported model."""
    if path.suffix.lower() != ".onnx":
        checkpoint = Checkpoint.open(path)
        config, weights = checkpoint.config, checkpoint.weights
        if config.network.members > 1:
            first = [name for name in weights if name.startswith(FIRST_MEMBER)]
            weights = {name.removeprefix(FIRST_MEMBER): weights[name] for name in first}
        return _Start(config.preset, config.network.single, config.pattern, weights)
    from n2sr_train.export import exported_weights  # which takes seconds to import

    model = ExportedModel.open(path)
    meta = model.metadata
    if meta.preset not in PRESETS:
        raise ModelError(
            f"{path} holds a network of preset {meta.preset!r}, but this n2sr knows only "
            f"{', '.join(PRESETS)}; give --init its checkpoint instead"
        )
    network = TrainingConfig.named(meta.preset).network
    try:
        weights = exported_weights(model, network)
    except ModelError as error:
        raise ModelError(f"{path}: {error}; give --init its checkpoint instead") from error
    return _Start(meta.preset, network.single, meta.pattern, weights)
