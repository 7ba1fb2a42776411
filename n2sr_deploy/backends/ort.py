"""ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from n2sr_deploy.backends.base import check_arrays
from n2sr_deploy.errors import DeviceError, ModelError, OutOfDeviceMemoryError

if TYPE_CHECKING:
    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.cuda.runtime import CudaDevice
    from n2sr_deploy.sampling import FloatArray, Shape

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERRORS_ONLY = 3


class OnnxRuntimeBackend:
    """The network on ONNX Runtime's CPU provider.

    Parameters
    ----------
    onnx
        The ONNX file.
    n_threads
        0: one for each core.

    Raises
    ------
    ModelError
        When ONNX Runtime cannot load it.
    """

    def __init__(self, onnx: bytes, *, n_threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.enable_mem_pattern = False  # it plans a third more memory, for no time won
        options.log_severity_level = _ERRORS_ONLY
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
            raise ModelError("this backend was closed; open the model again")
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
            raise ModelError(
                f"ONNX Runtime failed on input of shape {subsampled.shape} ({_first_line(error)}); "
                "if memory ran out, lower the memory budget"
            ) from error

    def close(self) -> None:
        """Release the session."""
        self._session = None


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
    is_capturable = False  # it allocates and waits where it wants to

    def __init__(self, onnx: bytes, device: CudaDevice, precision: str, stride: Shape) -> None:
        if _CUDA not in onnxruntime.get_available_providers():
            raise ModelError(
                "this ONNX Runtime was built without CUDA; put the other one in its place: "
                "pip uninstall onnxruntime, then pip install 'n2sr[gpu]'"
            )
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries from their wheels, if they are there
        self._onnx, self._device, self._precision, self._stride = onnx, device, precision, stride

    @property
    def name(self) -> str:
        """``ONNX Runtime (NVIDIA H100, fp16)``."""
        return f"ONNX Runtime ({self._device.name}, {self._precision})"

    def context(self, shape: InputShape, stream: int) -> _CudaContext:
        """A session on this stream."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {
            "device_id": self._device.index,
            "user_compute_stream": str(stream),
            "cudnn_conv_algo_search": "HEURISTIC",
            "prefer_nhwc": "1",
        }
        session = _load(self._onnx, options, [(_CUDA, settings)])
        if session.get_providers()[0] != _CUDA:  # it falls back to the CPU in silence
            raise ModelError(
                "ONNX Runtime cannot use CUDA here; does its version fit the CUDA and cuDNN that "
                "are installed? See: n2sr doctor"
            )
        out_shape = shape[0], 1, shape[2] * self._stride[0], shape[3] * self._stride[1]
        return _CudaContext(session, self._device.index, shape, out_shape)

    def close(self) -> None:
        """Nothing is held beside the contexts."""


class _CudaContext:
    """A session, for input of one shape."""

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

    def enqueue(self, subsampled: int, outputs: int) -> None:
        """Run it on device memory."""
        binding = self._session.io_binding()
        for bind, name, shape, address in (
            (binding.bind_input, self._names[0], self._shapes[0], subsampled),
            (binding.bind_output, self._names[1], self._shapes[1], outputs),
        ):
            bind(name, "cuda", self._device_index, np.float32, shape, address)
        try:
            self._session.run_with_iobinding(binding, self._options)
        except Exception as error:
            told = _first_line(error)
            if "memory" in told.lower() or "allocate" in told.lower():
                raise OutOfDeviceMemoryError(f"the GPU's memory is full ({told})") from error
            raise DeviceError(f"ONNX Runtime failed ({told})") from error

    def close(self) -> None:
        """Release the session."""
        del self._session


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
        return onnxruntime.InferenceSession(onnx, options, providers=providers)
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load it ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
