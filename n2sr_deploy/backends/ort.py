"""ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.backends.base import CLOSED, check_arrays, failure, output_shape
from n2sr_deploy.cores import cores_allowed
from n2sr_deploy.errors import DeviceError, ModelError, OutOfDeviceMemoryError
from n2sr_deploy.signals import ending, held_back

if TYPE_CHECKING:
    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.cuda.runtime import CudaDevice
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import FloatArray

try:
    with held_back(signal.SIGINT, *ending()):  # it would make an ImportError of what they raise
        import onnxruntime

    # An application may have imported it before n2sr_deploy/__init__.py told it to be silent.
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        onnxruntime.disable_telemetry_events()
except (ImportError, OSError, AttributeError) as error:  # of a folder without its files, the last
    raise ModelError(
        f"ONNX Runtime is missing or broken ({error}); install it again with: "
        "pip install --force-reinstall onnxruntime"
    ) from error

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERRORS_ONLY = 3
# How CUDA, ONNX Runtime's arena, cuBLAS and cuDNN say it; an illegal memory access is none.
_NO_MEMORY = re.compile(
    r"\bout of memory|failed to allocate memory for requested buffer|smaller than requested bytes"
    r"|cudaErrorMemoryAllocation|(STATUS|DEVICE)_ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)


class OnnxRuntimeBackend:
    """The network on ONNX Runtime's CPU provider.

    Parameters
    ----------
    onnx
        The ONNX file.
    n_threads
        0: one for each core that this process may use.

    Raises
    ------
    ModelError
        When ONNX Runtime cannot load it.
    """

    def __init__(self, onnx: bytes, *, n_threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads or _own_threads()
        options.enable_mem_pattern = False  # it plans a third more memory, for no time won
        options.log_severity_level = _ERRORS_ONLY
        # Threads that spin for work take the cores of whoever sends and shows the frames.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: onnxruntime.InferenceSession | None = _load(onnx, options, [_CPU])
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    @property
    def name(self) -> str:
        """``ONNX Runtime (CPU)``; its arithmetic is the model's."""
        return "ONNX Runtime (CPU)"

    def infer(self, subsampled: FloatArray, out: FloatArray) -> None:
        """Run the network; see `Backend.infer`."""
        if self._session is None:
            raise ModelError(CLOSED)
        check_arrays(subsampled, out)
        binding = self._session.io_binding()
        for bind, name, array in (
            (binding.bind_input, self._input, subsampled),
            (binding.bind_output, self._output, out),
        ):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise failure("ONNX Runtime", subsampled.shape, _first_line(error)) from error

    def close(self) -> None:
        """Release the session."""
        self._session = None


def _own_threads() -> int:
    """One for each core that is allowed, which ONNX Runtime does not ask for; 0: all are."""
    allowed = cores_allowed()
    return allowed if allowed < (os.cpu_count() or 1) else 0


class OnnxRuntimeCudaNetwork:
    """The network on ONNX Runtime's CUDA provider; see `DeviceNetwork`.

    Each context is a session of its own, for a session has one stream. It takes input of any
    shape.

    Parameters
    ----------
    onnx
        The ONNX file.
    device
        The GPU.
    precision
        The model's.
    stride
        Of the model's pattern.

    Raises
    ------
    ModelError
        When this ONNX Runtime was built without CUDA.
    """

    is_half = False  # input and output of exported models are float32

    def __init__(self, onnx: bytes, device: CudaDevice, precision: str, stride: Shape) -> None:
        require_cuda()
        self._onnx, self._device, self._precision, self._stride = onnx, device, precision, stride
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._input_shape: list[int | str] = _load(onnx, options, [_CPU]).get_inputs()[0].shape
        if hasattr(onnxruntime, "preload_dlls"):  # CUDA's libraries from their wheels
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                onnxruntime.preload_dlls()

    @property
    def name(self) -> str:
        """``ONNX Runtime (NVIDIA H100, fp16)``."""
        return f"ONNX Runtime ({self._device.name}, {self._precision})"

    def context(self, shape: InputShape, stream: int) -> _CudaContext:
        """A session on this stream."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # With all sizes known nothing is left that the provider would leave to the CPU.
        for name, size in zip(self._input_shape, shape, strict=True):
            if isinstance(name, str):
                options.add_free_dimension_override_by_name(name, size)
        settings = {
            "device_id": str(self._device.index),
            "user_compute_stream": str(stream),
            "cudnn_conv_algo_search": "HEURISTIC",
            "prefer_nhwc": "1",
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }
        try:
            session = _load(self._onnx, options, [(_CUDA, settings)])
        except ModelError as error:
            raise _explained(error) from error
        of_result = output_shape(shape, self._stride)
        return _CudaContext(session, self._device.index, shape, of_result)

    def close(self) -> None:
        """Nothing is held beside the contexts."""


def require_cuda() -> None:
    """Raise ModelError unless this ONNX Runtime was built with CUDA."""
    if _CUDA not in onnxruntime.get_available_providers():
        raise ModelError(
            "this ONNX Runtime was built without CUDA; put the other one in its place: pip "
            "uninstall -y onnxruntime, then pip install --no-deps onnxruntime-gpu"
        )


def _explained(error: ModelError) -> ModelError | DeviceError:
    """What a session on CUDA that cannot be made means."""
    if _is_of_memory(str(error)):
        return OutOfDeviceMemoryError(f"the GPU's memory is full ({error})")
    return ModelError(
        f"ONNX Runtime cannot use CUDA here ({error}); does its version fit the CUDA and cuDNN "
        "that are installed? See onnxruntime.ai, CUDA Execution Provider, Requirements"
    )


def _is_of_memory(told: str) -> bool:
    return _NO_MEMORY.search(told) is not None


class _CudaContext:
    """A session, for input of one shape."""

    is_capturable = False  # it allocates and waits where it wants to

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        device_index: int,
        shape: InputShape,
        out_shape: InputShape,
    ) -> None:
        self._session, self._device_index = session, device_index
        self._shapes = shape, out_shape
        self._names = session.get_inputs()[0].name, session.get_outputs()[0].name
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    def _bound(self, subsampled: int, outputs: int) -> onnxruntime.IOBinding:
        """To these addresses, now or before."""
        if (subsampled, outputs) in self._bindings:
            return self._bindings[subsampled, outputs]
        binding = self._session.io_binding()
        for bind, name, shape, address in (
            (binding.bind_input, self._names[0], self._shapes[0], subsampled),
            (binding.bind_output, self._names[1], self._shapes[1], outputs),
        ):
            bind(name, "cuda", self._device_index, np.float32, shape, address)
        self._bindings[subsampled, outputs] = binding
        return binding

    def enqueue(self, subsampled: int, outputs: int) -> None:
        """Run it on device memory."""
        try:
            self._session.run_with_iobinding(self._bound(subsampled, outputs), self._options)
        except Exception as error:
            told = _first_line(error)
            if _is_of_memory(told):
                raise OutOfDeviceMemoryError(f"the GPU's memory is full ({told})") from error
            raise DeviceError(f"ONNX Runtime failed ({told})") from error

    def close(self) -> None:
        """Release the session."""
        self._bindings.clear()
        del self._session


def describe() -> str:
    """What it is here, for ``n2sr doctor``."""
    providers = onnxruntime.get_available_providers()
    cuda = "" if _CUDA in providers else ", not for CUDA"
    return f"works, on the CPU (built for {', '.join(providers)}{cuda})"


def metadata_props(onnx: bytes) -> dict[str, str]:
    """The ``metadata_props`` of an ONNX file.

    Raises
    ------
    ModelError
        When ONNX Runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    return dict(_load(onnx, options, [_CPU]).get_modelmeta().custom_metadata_map)


def _load(
    onnx: bytes, options: onnxruntime.SessionOptions, providers: list[Any]
) -> onnxruntime.InferenceSession:
    try:
        # Without `enable_fallback` it does not turn to the CPU in silence.
        return onnxruntime.InferenceSession(
            onnx, options, providers=providers, enable_fallback=False
        )
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load it ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """Without ONNX Runtime's numbers and names of errors before it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
