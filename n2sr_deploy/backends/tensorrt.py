"""TensorRT 10.13 and later, and TensorRT for RTX: one code path, two libraries."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from n2sr_deploy import engine
from n2sr_deploy.cuda.driver import find_driver
from n2sr_deploy.engine import EngineKey, option_of
from n2sr_deploy.errors import DeviceError, MissingExtraError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.cuda.runtime import CudaDevice
    from n2sr_deploy.sampling import Shape

_log = logging.getLogger("n2sr")
LIBRARIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
_OLDEST = 10, 13
_SETTINGS: dict[str, Any] = {
    "network_flags": ("STRONGLY_TYPED",),
    "set_flags": ("REQUIRE_USER_ALLOCATION",),  # where there is one: for CUDA graphs
    "cleared_flags": ("TF32",),
    "max_aux_streams": 0,  # a graph is captured from one stream
    "workspace_bytes": 2**32,
}
"""Of the builder; another value of any of them is another engine."""


def import_library(library: str) -> Any:
    """``tensorrt`` or ``tensorrt_rtx``.

    Raises
    ------
    MissingExtraError
        When it is not installed.
    ModelError
        When it is broken or too old.
    """
    try:
        trt = importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise _broken(library, error) from error
        extra = _EXTRAS[library]
        raise MissingExtraError(f"backend {option_of(library)}", library, extra) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(library, error) from error
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if library == "tensorrt" and version < _OLDEST:
        raise ModelError(
            f"TensorRT {trt.__version__} is installed, but n2sr needs 10.13 or later; "
            "pip install --upgrade tensorrt"
        )
    return trt


def _broken(library: str, error: BaseException) -> ModelError:
    return ModelError(
        f"{LIBRARIES[library]} is broken ({error}); install it again with: "
        f"pip install --force-reinstall 'n2sr[{_EXTRAS[library]}]'"
    )


def engine_key(
    onnx: bytes, library: str, precision: str, shape: InputShape, device: CudaDevice
) -> EngineKey:
    """Of a model's engine on this machine."""
    return EngineKey(
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        library=library,
        library_version=import_library(library).__version__,
        gpu=device.name,
        capability=f"{device.capability // 10}.{device.capability % 10}",
        driver=find_driver().version,
        precision=precision,
        shape=shape,
        options=repr(_SETTINGS),
    )


def build_plan(
    onnx: bytes,
    library: str,
    precision: str,
    shape: InputShape,
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
    progress
        Called with the phase and the share of it that is done.

    Returns
    -------
    The plan.

    Raises
    ------
    MissingExtraError, ModelError
        When the library is missing or broken, cannot read the model or compile it, or would not
        compute in the precision.
    """
    trt = import_library(library)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    flags = [
        1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
        for name in _SETTINGS["network_flags"]
    ]
    network = builder.create_network(sum(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        told = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ModelError(f"{LIBRARIES[library]} cannot read the model: {told or logger.told()}")
    _check_precision(trt, network, precision)
    network.get_input(0).shape = shape
    config = _configured(trt, builder)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.was_interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise ModelError(f"{LIBRARIES[library]} cannot compile the model: {logger.told()}")
    return bytes(plan)


def _configured(trt: Any, builder: Any) -> Any:
    """By `_SETTINGS`."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _SETTINGS["workspace_bytes"])
    config.max_aux_streams = _SETTINGS["max_aux_streams"]
    for names, change in (
        (_SETTINGS["set_flags"], config.set_flag),
        (_SETTINGS["cleared_flags"], config.clear_flag),
    ):
        for name in names:
            if hasattr(trt.BuilderFlag, name):
                change(getattr(trt.BuilderFlag, name))
    return config


def _check_precision(trt: Any, network: Any, precision: str) -> None:
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


class _Told:
    """What TensorRT's logger was told last; mixed into a logger of the library in use."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=3)

    def told(self) -> str:
        """The last errors, on one line."""
        return " ".join("; ".join(self.errors).split()) or "it gives no reason"


def _logger(trt: Any) -> Any:
    class Logger(_Told, trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            _Told.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            _log.debug("%s: %s", trt.__name__, message)

    # TensorRT keeps the first logger it is given for all that come later.
    if not hasattr(trt, "_n2sr_logger"):
        trt._n2sr_logger = Logger()
    logger = trt._n2sr_logger
    logger.errors.clear()
    return logger


def _monitor(trt: Any, progress: Callable[[str, float], object] | None) -> Any:
    """Tells of the progress; an exception, like Ctrl-C, must not pass through the library."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._n_steps: dict[str, int] = {}
            self.was_interrupted = False

        def _tell(self, phase: str, share: float) -> None:
            try:
                if progress is not None:
                    progress(phase, share)
            except KeyboardInterrupt:
                self.was_interrupted = True

        def phase_start(self, phase: str, parent: str | None, n_steps: int) -> None:
            self._n_steps[phase] = max(n_steps, 1)
            self._tell(phase, 0.0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, min((step + 1) / self._n_steps.get(phase, 1), 1.0))
            return not self.was_interrupted

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, 1.0)

    return Monitor()


class TensorRTNetwork:
    """A model's engines; see `n2sr_deploy.backends.base.DeviceNetwork`.

    Parameters
    ----------
    onnx
        The ONNX file.
    library
        ``tensorrt`` or ``tensorrt_rtx``.
    device
        The GPU.
    precision
        The model's, ``fp32`` or ``fp16``.
    stride
        Of the model's pattern; for messages.
    plans
        Built just now and not kept yet, by the shape of their input.

    Raises
    ------
    MissingExtraError, ModelError
        When the library is missing or broken.
    """

    is_half = False  # input and output of exported models are float32

    def __init__(
        self,
        onnx: bytes,
        library: str,
        device: CudaDevice,
        precision: str,
        stride: Shape,
        plans: Mapping[InputShape, bytes] | None = None,
    ) -> None:
        self._trt = import_library(library)
        self._onnx, self._library, self._device = onnx, library, device
        self._precision, self._stride, self._plans = precision, stride, plans or {}
        self._logger = _logger(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self._engines: dict[InputShape, Any] = {}

    @property
    def name(self) -> str:
        """``TensorRT 11.4.0 (NVIDIA H100, fp16)``."""
        version = self._trt.__version__
        return f"{LIBRARIES[self._library]} {version} ({self._device.name}, {self._precision})"

    def context(self, shape: InputShape, stream: int) -> TensorRTContext:
        """For input of this shape, for which an engine must have been built."""
        if shape not in self._engines:
            self._engines[shape] = self._loaded(shape)
        return TensorRTContext(
            self._trt, self._engines[shape], shape, stream, self._device, self._logger
        )

    def _loaded(self, shape: InputShape) -> Any:
        key = engine_key(self._onnx, self._library, self._precision, shape, self._device)
        plan = self._plans.get(shape) or engine.find(key)
        rows, columns = shape[2] * self._stride[0], shape[3] * self._stride[1]
        command = (
            f"n2sr export MODEL.onnx --engine {option_of(self._library)} --size {rows} {columns} "
            f"--samples {shape[0]}"
        )
        if plan is None:
            raise ModelError(
                f"{engine.why_not(key)}There is no engine of this model for {shape[0]} draws of "
                f"{rows} x {columns} pixels on this machine. Build it: {command}"
            )
        self._logger.errors.clear()
        loaded = self._runtime.deserialize_cuda_engine(plan)
        if loaded is None:
            raise ModelError(
                f"{LIBRARIES[self._library]} cannot load the engine {key.name} "
                f"({self._logger.told()}); if it is damaged, build it again: {command} --overwrite"
            )
        return loaded

    def close(self) -> None:
        """Release the engines."""
        self._engines.clear()


class TensorRTContext:
    """An engine with memory to work in, on one stream."""

    def __init__(
        self,
        trt: Any,
        loaded: Any,
        shape: InputShape,
        stream: int,
        device: CudaDevice,
        logger: Any,
    ) -> None:
        self._stream, self._device, self._logger = stream, device, logger
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = loaded.create_execution_context(strategy)
        if self._context is None:
            raise DeviceError(f"TensorRT cannot run the engine here ({logger.told()})")
        n_bytes = max(int(loaded.device_memory_size_v2), 1)
        self._memory: int | None = device.allocate(n_bytes)
        self._context.set_device_memory(self._memory, n_bytes)
        names = sorted(
            (loaded.get_tensor_name(i) for i in range(loaded.num_io_tensors)),
            key=lambda name: loaded.get_tensor_mode(name) != trt.TensorIOMode.INPUT,
        )
        self._input, self._output = names
        if tuple(loaded.get_tensor_shape(self._input)) != shape:
            self.close()
            raise ModelError(f"the engine takes another input than {shape}; build it again")

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph may be recorded; TensorRT for RTX tells, TensorRT always can."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(self._stream))

    def enqueue(self, subsampled: int, outputs: int) -> None:
        """Run it on device memory."""
        accepted = self._context.set_tensor_address(self._input, subsampled)
        accepted = self._context.set_tensor_address(self._output, outputs) and accepted
        if not accepted or not self._context.execute_async_v3(self._stream):
            raise DeviceError(f"TensorRT failed ({self._logger.told()})")

    def close(self) -> None:
        """Release its memory."""
        memory, self._memory, self._context = self._memory, None, None
        if memory is not None:
            self._device.free(memory)


def describe(library: str) -> str:
    """What it is here, for ``n2sr doctor``."""
    return f"{import_library(library).__version__} is installed"
