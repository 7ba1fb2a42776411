"""OpenVINO."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Any

from n2sr_deploy.backends.base import CLOSED, check_arrays, failure
from n2sr_deploy.errors import MissingExtraError, ModelError
from n2sr_deploy.signals import ending, held_back

# OpenVINO tells Google Analytics of its use as soon as it is imported, where it finds this package;
# a microscope's computer tells nobody anything.
_TELEMETRY = "openvino_telemetry"
_modules: dict[str, Any] = sys.modules
_hides = _TELEMETRY not in _modules
if _hides:
    _modules[_TELEMETRY] = None
try:
    with held_back(signal.SIGINT, *ending()):  # it would lose what they raise
        import openvino
except ModuleNotFoundError as error:
    if error.name != "openvino":
        raise
    raise MissingExtraError("backend openvino", "openvino", "openvino") from error
finally:
    if _hides:
        del _modules[_TELEMETRY]

if TYPE_CHECKING:
    from n2sr_deploy.sampling import FloatArray

_making = threading.Lock()
_has_lost_threads = threading.Event()
# Of input, each with its own memory: of one size of frames the draws given at once and those that
# are left over, and both transposed.
_SHAPES_KEPT = 4
_FORKED = (
    "it was in use before this process was forked, and compiles no network after that; take "
    "backend ort here, or begin processes by spawn instead of fork"
)


class OpenVINOBackend:
    """The network on OpenVINO's CPU plugin.

    It is compiled for each shape of input when that first comes, which takes a quarter of a
    second; the last four shapes are kept.

    Parameters
    ----------
    onnx
        The ONNX file.
    n_threads
        0: one for each core.
    float32
        Whether to compute in float32 even where the processor has bfloat16 (AMX, AVX-512), which
        is faster; its results have two to three digits: they are rounded to bfloat16 too.

    Raises
    ------
    ModelError
        When OpenVINO cannot load it.
    """

    def __init__(self, onnx: bytes, *, n_threads: int = 0, float32: bool = False) -> None:
        self._settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": n_threads}
        if float32:
            self._settings["INFERENCE_PRECISION_HINT"] = "f32"
        self._requests: OrderedDict[tuple[int, ...], openvino.InferRequest] = OrderedDict()
        try:
            self._precision = "float32" if float32 else _own_precision()
            self._onnx: openvino.Model | None = _core().read_model(onnx, b"")
        except Exception as error:
            raise ModelError(f"OpenVINO cannot load it ({_told(error)})") from error

    @property
    def name(self) -> str:
        """``OpenVINO (CPU, float32)``, or ``bfloat16``."""
        return f"OpenVINO (CPU, {self._precision})"

    def infer(self, subsampled: FloatArray, out: FloatArray) -> None:
        """Run the network; see `Backend.infer`."""
        if self._onnx is None:
            raise ModelError(CLOSED)
        check_arrays(subsampled, out)
        try:
            request = self._request(self._onnx, subsampled.shape)
            request.set_input_tensor(openvino.Tensor(subsampled, shared_memory=True))
            request.set_output_tensor(openvino.Tensor(out, shared_memory=True))
            request.infer()
        except Exception as error:
            raise failure("OpenVINO", subsampled.shape, _told(error)) from error

    def close(self) -> None:
        """Release what was compiled."""
        self._requests.clear()
        self._onnx = None

    def _request(self, onnx: openvino.Model, shape: tuple[int, ...]) -> openvino.InferRequest:
        """Compiled for this shape of input, now or before."""
        if shape not in self._requests:
            if _has_lost_threads.is_set():  # for which it would wait for ever
                raise ModelError(_FORKED)
            fixed = onnx.clone()
            fixed.reshape(list(shape))
            compiled = _core().compile_model(fixed, "CPU", self._settings)
            self._requests[shape] = compiled.create_infer_request()
            if len(self._requests) > _SHAPES_KEPT:
                self._requests.popitem(last=False)
        self._requests.move_to_end(shape)
        return self._requests[shape]


def describe() -> str:
    """What it is here, for ``n2sr doctor``."""
    return f"works, on the CPU in {_own_precision()} ({openvino.get_version().partition('-')[0]})"


def _core() -> openvino.Core:
    """The process's only one, kept to its end.

    Each gives its thread another stack for signals, and takes it away again when it ends. Of two,
    the first to end leaves the second a stack to put back that is gone, and the next Ctrl-C kills
    the process.
    """
    with _making:
        return _made()


@cache
def _made() -> openvino.Core:
    return openvino.Core()


def _note_fork() -> None:
    if _made.cache_info().currsize > 0:
        _has_lost_threads.set()


if hasattr(os, "register_at_fork"):  # where there are forks
    os.register_at_fork(after_in_child=_note_fork)


def _own_precision() -> str:
    """What it computes in unless told otherwise."""
    own = str(_core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name())
    return {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(own, own)


def _told(error: Exception) -> str:
    """The last line of what OpenVINO says: the others name its source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
