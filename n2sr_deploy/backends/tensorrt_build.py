"""Compiles a model with TensorRT or TensorRT for RTX."""

from __future__ import annotations

import json
import logging
import re
import signal
from typing import TYPE_CHECKING, Any

from n2sr_deploy.backends.base import INPUT_NAME, OUTPUT_NAME, output_shape
from n2sr_deploy.backends.tensorrt import SETTINGS, open_logger
from n2sr_deploy.backends.tensorrt_library import LIBRARIES, import_library
from n2sr_deploy.errors import ModelError
from n2sr_deploy.signals import ending, held_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.pattern import Shape

    _Tensor = tuple[str, tuple[int, ...], str]  # name, shape, type

_log = logging.getLogger("n2sr")
_OTHERS = "Another version of the library may do better; backends native and cuda need no engine"
_TYPES = {"fp32": {"float", "fp32"}, "fp16": {"half", "fp16"}}  # as engines tell of weights
# How a plan of TensorRT for RTX tells of the constants in it: of 3 x 3 convolutions' weights, which
# every network has. Its inspector does not tell them, and loads a plan only where there is a GPU.
_WEIGHTS = re.compile(
    rb"tensor=\{[^}]*const_payload_size=\d+ dims=\{ \d+ \d+ 3 3 \}.*?type=(\w+) \}"
)
# And how of what it takes and gives, by the names of exported models.
_TAKEN_AND_GIVEN = re.compile(
    rb"tensor=\{[^{}]*dims=\{ ([\d ]+) \}[^{}]*"
    rb'name="(%b|%b)\.1"[^\n]*? type=(\w+) \}' % (INPUT_NAME.encode(), OUTPUT_NAME.encode())
)


def build_plan(
    onnx: bytes,
    library: str,
    precision: str,
    shape: InputShape,
    stride: Shape,
    progress: Callable[[str, float], object] | None = None,
) -> bytes:
    """Compile a model for input of one shape. TensorRT for RTX needs no GPU for it.

    Parameters
    ----------
    onnx
        The ONNX file; its own types are those the engine computes in.
    library
        ``tensorrt`` or ``tensorrt_rtx``.
    precision
        ``fp32`` or ``fp16``: what every convolution must compute in.
    shape
        (M, 1, H / stride_y, W / stride_x) of the input.
    stride
        Of the model's pattern.
    progress
        Called with the phase and the share of it that is done.

    Returns
    -------
    The plan.

    Raises
    ------
    MissingExtraError, ModelError
        When the library is missing or broken, cannot read the model or compile it, would not
        compute in the precision, or takes or gives something else than the model.
    """
    trt = import_library(library)
    # The library swallows what its calls of Python raise: Ctrl-C while it logs would go unheard.
    with held_back(signal.SIGINT, *ending()) as signals:
        plan = _compiled(trt, onnx, precision, shape, _monitor(trt, progress, signals))
    if signals:  # of a handler that raises nothing
        raise KeyboardInterrupt
    if library == "tensorrt_rtx":  # an engine of TensorRT tells it when it is loaded
        check_plan(plan, precision, shape, stride)
    return plan


def _compiled(trt: Any, onnx: bytes, precision: str, shape: InputShape, monitor: Any) -> bytes:
    logger = open_logger(trt)
    builder = trt.Builder(logger)
    flags = [
        1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
        for name in SETTINGS["network_flags"]
    ]
    network = builder.create_network(sum(flags))
    parser = trt.OnnxParser(network, logger)
    name = LIBRARIES[trt.__name__]
    if not parser.parse(onnx):
        told = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ModelError(f"{name} cannot read the model: {told or logger.told()}")
    check_network(trt, network, precision)
    network.get_input(0).shape = shape
    config = _configured(trt, builder)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.is_interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise ModelError(f"{name} cannot compile the model: {logger.told()}")
    return bytes(plan)


def _configured(trt: Any, builder: Any) -> Any:
    """By `SETTINGS`."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, SETTINGS["workspace_bytes"])
    config.max_aux_streams = SETTINGS["max_aux_streams"]
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, SETTINGS["profiling_verbosity"])
    for names, change in (
        (SETTINGS["set_flags"], config.set_flag),
        (SETTINGS["cleared_flags"], config.clear_flag),
    ):
        for name in names:
            if hasattr(trt.BuilderFlag, name):
                change(getattr(trt.BuilderFlag, name))
    return config


def check_network(trt: Any, network: Any, precision: str) -> None:
    """A strongly typed network computes in the types it has, so those are what is checked."""
    wanted = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}[precision]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = {
        layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.CONVOLUTION
    }
    if found != {wanted}:
        raise ModelError(
            f"the model's convolutions compute in {', '.join(sorted(map(str, found))) or 'nothing'}"
            f", not in {precision}; export its checkpoint with --precision {precision}"
        )


def check_plan(plan: bytes, precision: str, shape: InputShape, stride: Shape) -> None:
    """Compare what a plan of TensorRT for RTX tells of itself with what was asked for.

    Parameters
    ----------
    plan
        As it was built.
    precision
        ``fp32`` or ``fp16``.
    shape
        (M, 1, H / stride_y, W / stride_x) of the input.
    stride
        Of the model's pattern.

    Raises
    ------
    ModelError
        When there are weights of another type, input or output have another name, shape or type
        (float32), or the plan does not tell.
    """
    _check_types({found.decode() for found in _WEIGHTS.findall(plan)}, precision)
    found: set[_Tensor] = {
        (name.decode(), tuple(map(int, dims.split())), told.decode())
        for dims, name, told in _TAKEN_AND_GIVEN.findall(plan)
    }
    of_result = output_shape(shape, stride)
    wanted: set[_Tensor] = {(INPUT_NAME, shape, "float"), (OUTPUT_NAME, of_result, "float")}
    if found != wanted:
        raise ModelError(
            f"the engine takes and gives {_listed(found) or 'what it does not tell'}, but "
            f"{_listed(wanted)} was asked for; nothing was kept. {_OTHERS}"
        )


def _listed(tensors: set[_Tensor]) -> str:
    """The input first."""
    return ", ".join(
        f"{name} {' x '.join(map(str, dims))} {told}"
        for name, dims, told in sorted(tensors, reverse=True)
    )


def check_engine(information: str, precision: str) -> None:
    """Compare what an engine of TensorRT computes with against what it was asked for.

    Parameters
    ----------
    information
        What the engine's inspector tells, JSON. Where it tells of no weights, as when the whole
        network became one layer, or is no JSON, that is logged.
    precision
        ``fp32`` or ``fp16``.

    Raises
    ------
    ModelError
        When there are weights of another type.
    """
    try:
        layers = [layer for layer in json.loads(information)["Layers"] if isinstance(layer, dict)]
    except (ValueError, KeyError, TypeError):
        layers = []
    weights = [layer["Weights"] for layer in layers if isinstance(layer.get("Weights"), dict)]
    found = {str(told["Type"]) for told in weights if "Type" in told}
    if found:
        _check_types(found, precision)
    else:
        _log.warning(
            "the engine does not tell the type of its weights: that it computes in %s is known of "
            "the network it was built of only",
            precision,
        )


def _check_types(found: set[str], precision: str) -> None:
    """Of an engine's weights."""
    if not found:
        raise ModelError(
            "the engine does not tell the type of its weights, so whether it computes in "
            f"{precision} cannot be known; nothing was kept. {_OTHERS}"
        )
    if not {told.lower() for told in found} <= _TYPES[precision]:
        raise ModelError(
            f"the engine computes with weights of type {', '.join(sorted(found))}, but {precision} "
            f"was asked for; nothing was kept. {_OTHERS}"
        )


def _monitor(
    trt: Any, progress: Callable[[str, float], object] | None, signals: Sequence[int]
) -> Any:
    """Tells of the progress, and ends the build when a signal has come, or Ctrl-C out of there."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._n_steps: dict[str, int] = {}
            self._has_raised = False

        @property
        def is_interrupted(self) -> bool:
            return self._has_raised or bool(signals)

        def _tell(self, phase: str, share: float) -> None:
            try:
                if progress is not None:
                    progress(phase, share)
            except KeyboardInterrupt:
                self._has_raised = True

        def phase_start(self, phase: str, parent: str | None, n_steps: int) -> None:
            self._n_steps[phase] = max(n_steps, 1)
            self._tell(phase, 0.0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, min((step + 1) / self._n_steps.get(phase, 1), 1.0))
            return not self.is_interrupted

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, 1.0)

    return Monitor()
