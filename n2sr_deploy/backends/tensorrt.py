"""TensorRT 10.13 and later, and TensorRT for RTX: one code path, two libraries."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from n2sr_deploy import engine
from n2sr_deploy.backends.base import INPUT_NAME, OUTPUT_NAME, output_shape
from n2sr_deploy.backends.tensorrt_library import LIBRARIES, import_library, require_capability
from n2sr_deploy.cuda.device import dotted
from n2sr_deploy.cuda.driver import find_driver
from n2sr_deploy.engine import EngineKey, option_of
from n2sr_deploy.errors import (
    DeviceError,
    ModelError,
    OutOfDeviceMemoryError,
    OutputError,
)
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.cuda.runtime import CudaDevice
    from n2sr_deploy.pattern import Shape

_log = logging.getLogger("n2sr")
SETTINGS: dict[str, Any] = {
    "network_flags": ("STRONGLY_TYPED",),
    "set_flags": ("REQUIRE_USER_ALLOCATION",),  # where there is one: for CUDA graphs
    "cleared_flags": ("TF32",),
    "max_aux_streams": 0,  # a graph is captured from one stream
    "workspace_bytes": 2**32,
    "profiling_verbosity": "DETAILED",  # so that an engine tells what it computes in
}
"""Of the builder; another value of any of them is another engine."""


def engine_key(
    onnx: bytes, library: str, precision: str, shape: InputShape, device: CudaDevice
) -> EngineKey:
    """Of a model's engine on this machine."""
    return EngineKey(
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        library=library,
        library_version=import_library(library).__version__,
        gpu=device.name,
        capability=dotted(device.capability),
        driver=find_driver().version,
        precision=precision,
        shape=shape,
        options=repr(SETTINGS),
    )


class _Told:
    """What TensorRT's logger was told last; mixed into a logger of the library in use."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=3)

    def told(self) -> str:
        """The last errors, on one line."""
        return " ".join("; ".join(self.errors).split()) or "it gives no reason"


def open_logger(trt: Any) -> Any:
    """The library's one logger; its errors so far are forgotten."""

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


def _asked(logger: Any, call: Callable[[], Any]) -> Any:
    """What a call of the library gives; None or False where it fails, and `logger` knows why.

    What fails may give nothing, or raise; that memory is missing, only the logger may be told.
    """
    logger.errors.clear()
    try:
        result = call()
    except (RuntimeError, TypeError, ValueError) as error:
        logger.errors.append(str(error))
        result = None
    if (result is None or result is False) and any(
        "out of memory" in told.lower() for told in logger.errors
    ):
        raise OutOfDeviceMemoryError(f"the GPU's memory is full ({logger.told()})")
    return result


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
        When the library is missing or broken, or not made for this GPU.
    DeviceError
        When it cannot use the GPU.
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
        require_capability(library, device)
        self._onnx, self._library, self._device = onnx, library, device
        self._precision, self._stride = precision, stride
        self._plans: Mapping[InputShape, bytes] = {} if plans is None else plans
        self._logger = open_logger(self._trt)
        self._runtime = _asked(self._logger, lambda: self._trt.Runtime(self._logger))
        if self._runtime is None:
            raise DeviceError(
                f"{LIBRARIES[library]} cannot use {device.name} ({self._logger.told()}); does it "
                "fit the driver? See: n2sr doctor"
            )
        self._engines: dict[InputShape, Any] = {}
        self._kernels: dict[InputShape, Kernels] = {}

    @property
    def name(self) -> str:
        """``TensorRT 11.4.0 (NVIDIA H100, fp16)``."""
        version = self._trt.__version__
        return f"{LIBRARIES[self._library]} {version} ({self._device.name}, {self._precision})"

    def context(self, shape: InputShape, stream: int) -> TensorRTContext:
        """For input of this shape, for which an engine must have been built."""
        loaded = self._opened(shape)
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        kernels = self._kernels.get(shape)
        running = _asked(
            self._logger,
            lambda: loaded.create_execution_context(
                strategy if kernels is None else kernels.config(strategy)
            ),
        )
        if kernels is not None and running is not None:
            kernels.keep()
        tensors = Tensors(shape, output_shape(shape, self._stride))
        return TensorRTContext(
            self._trt, loaded, running, tensors, stream, self._device, self._logger
        )

    def engine_information(self, shape: InputShape) -> str:
        """What the engine for input of this shape tells of itself, in JSON; "" where it fails."""
        loaded = self._opened(shape)

        def told() -> str | None:
            inspector = loaded.create_engine_inspector()
            if inspector is None:
                return None
            return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

        return _asked(self._logger, told) or ""

    def _opened(self, shape: InputShape) -> Any:
        if shape not in self._engines:
            key = engine_key(self._onnx, self._library, self._precision, shape, self._device)
            self._engines[shape] = self._loaded(key, shape)
            # Of a plan that is not kept nothing is: it may be refused yet.
            if hasattr(self._trt, "IRuntimeCache") and shape not in self._plans:
                self._keep_kernels(shape, key)
        return self._engines[shape]

    def _keep_kernels(self, shape: InputShape, key: EngineKey) -> None:
        """Where that fails, they are compiled at each start."""
        try:
            self._kernels[shape] = Kernels(self._engines[shape], key, self._logger)
        except DeviceError as error:
            _log.warning("compiled kernels are not kept, each start is slow: %s", str(error))

    def _loaded(self, key: EngineKey, shape: InputShape) -> Any:
        plan = self._plans.get(shape) or engine.find(key)
        rows, columns = output_shape(shape, self._stride)[2:]
        command = (
            f"n2sr export MODEL.onnx --engine {option_of(self._library)} --size {rows} {columns} "
            f"--samples {shape[0]}"
        )
        if plan is None:
            raise ModelError(
                f"{engine.why_not(key)}There is no engine of this model for "
                f"{counted(shape[0], 'draw')} of {rows} x {columns} pixels on this "
                f"machine. Build it: {command}"
            )
        loaded = _asked(self._logger, lambda: self._runtime.deserialize_cuda_engine(plan))
        if loaded is None:
            raise ModelError(
                f"{LIBRARIES[self._library]} cannot load the engine {key.name} "
                f"({self._logger.told()}); if it is damaged, build it again: {command} --overwrite"
            )
        return loaded

    def close(self) -> None:
        """Release the engines; what was compiled while they ran is kept."""
        for kernels in self._kernels.values():
            kernels.keep()
        self._kernels.clear()
        self._engines.clear()


class Kernels:
    """What TensorRT for RTX compiles of a plan when it runs, kept for the next process.

    Parameters
    ----------
    loaded
        The engine.
    key
        The engine's.
    logger
        The library's.

    Raises
    ------
    DeviceError
        When the library cannot keep any.
    """

    def __init__(self, loaded: Any, key: EngineKey, logger: Any) -> None:
        self._key, self._logger = key, logger
        self._config = self._made(loaded.create_runtime_config)
        self._cache = self._made(self._config.create_runtime_cache)
        self._kept = engine.find_kernels(key)
        if self._kept is not None and not _asked(
            logger, lambda: self._cache.deserialize(self._kept)
        ):
            _log.warning("kernels of %s do not fit here: they are compiled again", key.name)
        self._made(lambda: self._config.set_runtime_cache(self._cache))

    def _made(self, call: Callable[[], Any]) -> Any:
        made = _asked(self._logger, call)
        if made is None or made is False:
            raise DeviceError(f"TensorRT for RTX has no cache for them ({self._logger.told()})")
        return made

    def config(self, strategy: Any) -> Any:
        """What a context is made by."""
        self._config.set_execution_context_allocation_strategy(strategy)
        return self._config

    def keep(self) -> None:
        """Write what is new; that it cannot be kept is no reason to fail."""
        try:
            kernels = self._serialized()
            if kernels is None or kernels == self._kept:
                return
            self._kept = kernels  # or as good as: what could not be written is told once
            engine.keep_kernels(self._key, kernels)
        except (DeviceError, OutputError) as error:
            _log.warning("compiled kernels are not kept, the next start is as slow: %s", str(error))

    def _serialized(self) -> bytes | None:
        """None where nothing was compiled."""

        def serialized() -> bytes | None:
            memory = self._cache.serialize()
            return None if memory is None else bytes(memory)

        kernels: bytes | None = _asked(self._logger, serialized)
        if kernels is None and self._logger.errors:
            raise DeviceError(f"TensorRT for RTX does not give them ({self._logger.told()})")
        return kernels


class Tensors(NamedTuple):
    """What an engine takes and gives: float32 of these shapes."""

    subsampled: InputShape
    denoised: InputShape

    def check(self, trt: Any, loaded: Any) -> None:
        """Raise ModelError when an engine takes or gives something else."""
        names = [loaded.get_tensor_name(i) for i in range(loaded.num_io_tensors)]
        modes, mode = trt.TensorIOMode, loaded.get_tensor_mode
        found = {
            (name, mode(name), tuple(loaded.get_tensor_shape(name)), loaded.get_tensor_dtype(name))
            for name in names
        }
        wanted = {
            (INPUT_NAME, modes.INPUT, self.subsampled, trt.DataType.FLOAT),
            (OUTPUT_NAME, modes.OUTPUT, self.denoised, trt.DataType.FLOAT),
        }
        if found != wanted:
            told = ", ".join(
                f"{name} {shape} {dtype}"
                for name, _, shape, dtype in sorted(
                    found, key=lambda tensor: tensor[0], reverse=True
                )
            )
            raise ModelError(
                f"the engine takes and gives {told}, but {INPUT_NAME} {self.subsampled} and "
                f"{OUTPUT_NAME} {self.denoised} in float32 are what the model does; build it again"
            )


class TensorRTContext:
    """An engine with memory to work in, on one stream."""

    def __init__(
        self,
        trt: Any,
        loaded: Any,
        running: Any,
        tensors: Tensors,
        stream: int,
        device: CudaDevice,
        logger: Any,
    ) -> None:
        self._stream, self._device, self._logger = stream, device, logger
        self._context = running
        if self._context is None:
            raise DeviceError(f"TensorRT cannot run the engine here ({logger.told()})")
        tensors.check(trt, loaded)
        n_bytes = max(int(loaded.device_memory_size_v2), 1)
        self._memory: int | None = device.allocate(n_bytes)
        try:
            self._context.set_device_memory(self._memory, n_bytes)
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError | TypeError | ValueError):
                told = f"TensorRT cannot use the memory it is given ({error})"
                raise DeviceError(told) from error
            raise

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph may be recorded; TensorRT for RTX tells, TensorRT always can."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(self._stream))

    def enqueue(self, subsampled: int, outputs: int) -> None:
        """Run it on device memory."""
        accepted = self._context.set_tensor_address(INPUT_NAME, subsampled)
        accepted = self._context.set_tensor_address(OUTPUT_NAME, outputs) and accepted
        run = self._context.execute_async_v3
        if not accepted or not _asked(self._logger, lambda: run(self._stream)):
            raise DeviceError(f"TensorRT failed ({self._logger.told()})")

    def close(self) -> None:
        """Release its memory."""
        memory, self._memory, self._context = self._memory, None, None
        if memory is not None:
            self._device.free(memory)
