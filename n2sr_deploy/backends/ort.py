"""ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from n2sr_deploy.backends.base import check_arrays
from n2sr_deploy.errors import ModelError

if TYPE_CHECKING:
    from n2sr_deploy.sampling import FloatArray

_PROVIDER = "CPUExecutionProvider"
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
        self._session: onnxruntime.InferenceSession | None = _load(onnx, options)
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
    return dict(_load(onnx, options).get_modelmeta().custom_metadata_map)


def _load(onnx: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=[_PROVIDER])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load it ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
