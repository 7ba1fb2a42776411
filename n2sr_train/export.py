"""Checkpoint -> exported model, verified against PyTorch before it is kept.

PyTorch's exporter takes seconds; replacing the weights of a graph it made before takes
milliseconds. So the graph of each network is exported once and kept as a template, in memory and
in the user's cache folder (N2SR_CACHE_DIR moves it), under a name that holds all it depends on.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from n2sr_deploy import files
from n2sr_deploy.backends import open_backend
from n2sr_deploy.backends.base import INPUT_NAME, OUTPUT_NAME
from n2sr_deploy.backends.onnx_weights import graph_sha256
from n2sr_deploy.errors import ModelError, OutputError, SettingError, check_choice
from n2sr_deploy.model import ExportedModel, ModelMetadata
from n2sr_deploy.phantom import phantom_input
from n2sr_deploy.version import VERSION
from n2sr_train.arithmetic import counting_flop
from n2sr_train.checkpoint import Checkpoint
from n2sr_train.devices import without_lost_threads
from n2sr_train.network import FIRST_MEMBER, build_network

if TYPE_CHECKING:
    from n2sr_deploy.pattern import Shape
    from n2sr_train.config import NetworkConfig
    from n2sr_train.network import AnyNetwork

_log = logging.getLogger("n2sr")
_OPSET = 18
_WRAPPED = "network."
# As they are when imported: a template depends on the network and on how it is exported.
_SOURCES = Path(__file__).with_name("network.py").read_bytes() + Path(__file__).read_bytes()
Precision = Literal["fp32", "fp16"]

# Largest difference from PyTorch in float32, as a share of the output's root mean square.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2}


class _HalfInside(torch.nn.Module):
    """A network in float16 between float32 input and output."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.network(x.half()).float()
        return result


def export_model(checkpoint: Checkpoint, precision: str = "fp32") -> ExportedModel:
    """Make a checkpoint's network an exported model.

    Parameters
    ----------
    checkpoint
        The trained state.
    precision
        ``fp32``, or ``fp16``: half the size, float16 arithmetic inside, float32 input and output.

    Returns
    -------
    The model, its output on a noisy phantom compared with PyTorch's float32 output.

    Raises
    ------
    SettingError
        When the precision is neither, or `checkpoint` is none.
    ModelError
        When the weights do not fit the network, or the outputs differ by more than `TOLERANCE`.
    """
    if not isinstance(checkpoint, Checkpoint):
        raise SettingError(
            f"checkpoint is {checkpoint!r:.200}, but must be one, as Checkpoint.open(path) gives"
        )
    check_choice("precision", precision, TOLERANCE)
    without_lost_threads()
    wanted: Precision = "fp16" if precision == "fp16" else "fp32"
    config = checkpoint.config
    network = build_network(config.network, config.pattern.stride, seed=0)
    try:
        network.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise ModelError(f"the checkpoint's weights do not fit its network: {error}") from error
    network.eval()
    graph = onnx.load_from_string(_template(config.network, config.pattern.stride, wanted))
    _put_in_weights(graph, checkpoint.weights)
    exported = graph_sha256(graph.SerializeToString())
    metadata = replace(_metadata(checkpoint, network, wanted), graph_sha256=exported)
    onnx.helper.set_model_props(graph, metadata.to_props())
    model = ExportedModel(onnx=graph.SerializeToString(), metadata=metadata)
    _verify(model, network, wanted)
    return model


def exported_weights(model: ExportedModel, config: NetworkConfig) -> dict[str, torch.Tensor]:
    """The weights of an exported model's first member, float32, by their names in the network.

    Raises
    ------
    ModelError
        When it holds no network like `config.single`.
    """
    expected = build_network(config.single, model.metadata.pattern.stride, seed=0).state_dict()
    found = {
        initializer.name.removeprefix(_WRAPPED).removeprefix(FIRST_MEMBER): initializer
        for initializer in onnx.load_from_string(model.onnx).graph.initializer
    }
    if any(tuple(found[n].dims) != w.shape if n in found else True for n, w in expected.items()):
        raise ModelError("the exported model does not hold the network of its preset")
    return {
        name: torch.from_numpy(numpy_helper.to_array(found[name]).astype(np.float32))
        for name in expected
    }


def _metadata(checkpoint: Checkpoint, network: AnyNetwork, precision: Precision) -> ModelMetadata:
    config = checkpoint.config
    stride_y, stride_x = config.pattern.stride
    radius = network.receptive_radius
    return ModelMetadata(
        pattern=config.pattern,
        pad_multiple=config.multiple,
        receptive_radius=(radius * stride_y, radius * stride_x),
        bytes_per_pixel=network.bytes_per_pixel,
        n_samples=config.n_samples,
        n_orientations=8 if checkpoint.summary.get("turns") == 8 else 4,
        preset=config.preset,
        precision=precision,
        weights_sha256=checkpoint.weights_sha256,
        n2sr_version=VERSION,
        pixel_size=checkpoint.pixel_size,
        unit=checkpoint.unit,
        frame_shape=_frame_shape(checkpoint),
        mac_per_pixel=_mac_per_pixel(network, config.network.multiple),
        noise=checkpoint.noise.to_dict() if checkpoint.noise else None,
        steps=checkpoint.summary.get("steps"),
        kept_step=checkpoint.summary.get("kept_step"),
        validation_error=checkpoint.validation_error,
    )


def _frame_shape(checkpoint: Checkpoint) -> Shape | None:
    """Of the frame trained on, if it was kept."""
    shape = checkpoint.summary.get("frame_shape")
    return None if shape is None else (shape[0], shape[1])


def _put_in_weights(graph: onnx.ModelProto, weights: dict[str, torch.Tensor]) -> None:
    """Replace the template's initializers by name; every weight must find its place."""
    missing = set(weights)
    for initializer in graph.graph.initializer:
        name = initializer.name.removeprefix(_WRAPPED)
        if name not in missing:
            continue  # a constant of the graph
        values = weights[name].numpy()
        dtype = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
        replaced = numpy_helper.from_array(values.astype(dtype), initializer.name)
        initializer.CopyFrom(replaced)
        missing.remove(name)
    if missing:
        raise ModelError(f"the exported graph has no place for the weights {sorted(missing)}")


def _mac_per_pixel(network: torch.nn.Module, cells: int) -> float:
    """Multiply-accumulates for each output pixel, of the smallest input: so many cells a side."""
    with torch.no_grad(), counting_flop(network) as counted:
        output = network(torch.zeros(1, 1, cells, cells))
    return float(counted.total / 2 / output.numel())


def _verify(model: ExportedModel, network: torch.nn.Module, precision: Precision) -> None:
    """Compare with PyTorch on a phantom; raise where they differ most."""
    rows, columns = (
        2 * multiple // stride
        for multiple, stride in zip(
            model.metadata.pad_multiple, model.metadata.pattern.stride, strict=True
        )
    )
    subsampled = phantom_input((2, 1, rows, columns))
    with torch.no_grad():
        expected = network(torch.from_numpy(subsampled)).numpy()
    found = np.empty_like(expected)
    backend = open_backend(model.onnx, "ort")
    try:
        backend.infer(subsampled, found)
    finally:
        backend.close()
    difference = np.abs(found - expected)
    difference = np.nan_to_num(difference, nan=np.inf)
    allowed = TOLERANCE[precision] * float(np.sqrt(np.mean(np.square(expected))))
    if not difference.max() <= allowed:  # where PyTorch gives NaN, so is `allowed`
        where = np.unravel_index(int(difference.argmax()), difference.shape)
        hint = "; export it with --precision fp32" if precision == "fp16" else ""
        raise ModelError(
            f"the exported model differs from PyTorch by {difference.max():.3g} "
            f"(allowed: {allowed:.3g}), most at {tuple(map(int, where))} of (sample, channel, row, "
            f"column): {found[where]:.6g} instead of {expected[where]:.6g}{hint}"
        )


@functools.lru_cache(maxsize=16)
def _template(config: NetworkConfig, stride: Shape, precision: Precision) -> bytes:
    """The graph of a network with some weights, from the cache folder or exported now."""
    versions = [torch.__version__, onnx.__version__, version("onnxscript")]
    depends_on = repr((config, stride, precision, versions))
    key = hashlib.sha256(_SOURCES + depends_on.encode()).hexdigest()[:24]
    path = files.cache_folder() / "templates" / f"{key}.onnx"
    try:
        template = path.read_bytes()
        onnx.checker.check_model(onnx.load_from_string(template))
    except (OSError, DecodeError, onnx.checker.ValidationError):
        _log.info("exporting: for the first network of its kind this takes some seconds")
        template = _export_template(config, stride, precision)
        _cache(template, path)
    return template


def _cache(template: bytes, path: Path) -> None:
    """Keep a template for the next time; that it cannot be kept is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(path)
        with files.replacing(path, overwrite=True) as temporary:
            temporary.write_bytes(template)
    except (OSError, OutputError) as error:
        _log.debug("cannot keep the export template: %s", error)


def _export_template(config: NetworkConfig, stride: Shape, precision: Precision) -> bytes:
    network: torch.nn.Module = build_network(config, stride, seed=0).eval()
    if precision == "fp16":
        network = _HalfInside(network)
    multiple = config.multiple
    dims = {
        0: torch.export.Dim("M"),
        2: multiple * torch.export.Dim("h"),
        3: multiple * torch.export.Dim("w"),
    }
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # it speaks of libraries that are not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 1, 2 * multiple, 3 * multiple),),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={"x": dims},
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise ModelError("PyTorch exported nothing")
    return bytes(_stripped(program.model_proto).SerializeToString())


def _stripped(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes, which hold stack traces and paths of this machine."""
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
    graph.graph.ClearField("metadata_props")
    graph.graph.ClearField("doc_string")
    graph.graph.ClearField("value_info")
    for node in graph.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    return graph
