"""Which backend runs a model: the one that is named, or the first that works."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from n2sr_deploy.errors import MissingExtraError, ModelError, N2SRError, check_choice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from n2sr_deploy.backends.base import Backend, DeviceNetwork
    from n2sr_deploy.backends.openvino import OpenVINOBackend
    from n2sr_deploy.cuda.runtime import CudaDevice
    from n2sr_deploy.pattern import Shape

    NetworkLoader = Callable[[bytes, CudaDevice, str, Shape], DeviceNetwork]

_log = logging.getLogger("n2sr")
_SIDE = 64  # of a draw to warm up with: the least that every network's multiple divides
# What libraries raise that are damaged, or of a version that nobody has tried.
_FAILURES = N2SRError, ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError


class Loader(Protocol):
    """Loads an ONNX model on the CPU; a backend's class."""

    def __call__(self, onnx: bytes, *, n_threads: int = 0) -> Backend:
        """Load it."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Opened = TypeVar("_Opened", bound=_Named)


def _ort() -> Loader:
    from n2sr_deploy.backends.ort import OnnxRuntimeBackend

    return OnnxRuntimeBackend


def _openvino() -> type[OpenVINOBackend]:
    try:
        from n2sr_deploy.backends.openvino import OpenVINOBackend
    except MissingExtraError:
        raise
    except (ImportError, OSError) as error:
        raise ModelError(
            f"OpenVINO is broken ({error}); install it again with: "
            "pip install --force-reinstall openvino"
        ) from error
    return OpenVINOBackend


def _openvino_float32() -> Loader:
    return functools.partial(_openvino(), float32=True)


def _ort_cuda() -> NetworkLoader:
    from n2sr_deploy.backends.ort import OnnxRuntimeCudaNetwork, require_cuda

    require_cuda()
    return OnnxRuntimeCudaNetwork


def _native() -> NetworkLoader:
    from n2sr_deploy.backends.native import NativeNetwork
    from n2sr_deploy.cuda.runtime import load_library

    load_library()

    def load(onnx: bytes, device: CudaDevice, precision: str, stride: Shape) -> DeviceNetwork:
        return NativeNetwork(onnx, device, stride)

    return load


def _tensorrt(library: str) -> NetworkLoader:
    from n2sr_deploy.backends.tensorrt import TensorRTNetwork
    from n2sr_deploy.backends.tensorrt_library import import_library

    import_library(library)

    def load(onnx: bytes, device: CudaDevice, precision: str, stride: Shape) -> DeviceNetwork:
        return TensorRTNetwork(onnx, library, device, precision, stride)

    return load


ON_CPU: Mapping[str, Callable[[], Loader]] = {
    "ort": _ort,
    "openvino": _openvino,
    "openvino-float32": _openvino_float32,
}
"""What imports the library and gives what loads an ONNX model, by the name users give it."""

ON_GPU: Mapping[str, Callable[[], NetworkLoader]] = {
    "native": _native,
    "tensorrt": functools.partial(_tensorrt, "tensorrt"),
    "tensorrt-rtx": functools.partial(_tensorrt, "tensorrt_rtx"),
    "cuda": _ort_cuda,
}
"""The same for GPUs, the fastest first; ``native`` is n2sr's own kernels, ``cuda`` ONNX Runtime's
CUDA provider."""

BACKENDS = *ON_GPU, *ON_CPU
"""All names."""

FASTEST_FIRST = "openvino", "ort"
"""What ``auto`` tries on a CPU."""


def check_backend(name: str) -> None:
    """Refuse, before any work, a backend that is unknown, cannot be imported or has no GPU.

    Raises
    ------
    SettingError, MissingExtraError, ModelError, DeviceError
        As `open_backend` does.
    """
    if name == "auto":
        return
    check_choice("backend", name, ("auto", *BACKENDS))
    if name in ON_CPU:
        ON_CPU[name]()
        return
    from n2sr_deploy.cuda.runtime import CudaDevice

    CudaDevice()  # first: without a GPU no package helps
    ON_GPU[name]()


def open_network(
    onnx: bytes, name: str, device: CudaDevice, *, precision: str, stride: Shape
) -> DeviceNetwork:
    """Load an ONNX model on a GPU.

    Parameters
    ----------
    onnx
        The exported model's ONNX file.
    name
        One of `ON_GPU`.
    device
        The GPU.
    precision, stride
        The model's.

    Returns
    -------
    The network; engines are loaded when the first frame of their shape comes.

    Raises
    ------
    MissingExtraError, ModelError
        When its library is not installed, is broken, or cannot load the model.
    DeviceError
        When it cannot use the GPU.
    """
    return ON_GPU[name]()(onnx, device, precision, stride)


def open_backend(
    onnx: bytes,
    name: str = "auto",
    *,
    stride: Shape = (2, 2),
    precision: str = "fp32",
    n_threads: int = 0,
) -> Backend:
    """Load an ONNX model.

    Parameters
    ----------
    onnx
        The exported model's ONNX file.
    name
        One of `BACKENDS`; or ``auto``: the first of `FASTEST_FIRST` that is installed and works.
        Which it is, and why, is logged. The order is fixed, not timed here, so that a frame
        denoised again is the same to the last bit.
    stride, precision
        The model's.
    n_threads
        0: one for each core.

    Returns
    -------
    The backend; some compile the network when the first frame comes.

    Raises
    ------
    SettingError
        When there is no backend of that name.
    MissingExtraError
        When its library is not installed.
    ModelError
        When it cannot load the model; with ``auto``, when none can.
    DeviceError
        When it needs a GPU and there is none that works.
    """
    if name == "auto":
        return _first_on_cpu(onnx, stride, n_threads)
    check_choice("backend", name, ("auto", *BACKENDS))
    if name in ON_CPU:
        return ON_CPU[name]()(onnx, n_threads=n_threads)
    from n2sr_deploy.backends.on_device import DeviceBackend
    from n2sr_deploy.cuda.runtime import CudaDevice

    device = CudaDevice()
    network = open_network(onnx, name, device, precision=precision, stride=stride)
    return DeviceBackend(network, device, stride)


def first_that_works(
    names: Iterable[str], opened: Callable[[str], _Opened]
) -> tuple[_Opened | None, str]:
    """Open one backend after another until one works. Which it is, and why, is logged.

    Parameters
    ----------
    names
        Of backends, in the order they are tried.
    opened
        Opens and tries the backend of a name; what it opened and cannot use, it closes.

    Returns
    -------
    What was opened, or None where none works; and what became of the others, in words.
    """
    left_out: list[str] = []
    for name in names:
        try:
            found = opened(name)
        except MissingExtraError:
            left_out.append(f"{name} is not installed")
        except _FAILURES as error:
            left_out.append(f"{name} fails")
            told = error if isinstance(error, N2SRError) else repr(error)
            _log.warning("backend %s is left out: %s", name, told)
        else:
            why = f"since {', '.join(left_out)}" if left_out else "the first choice"
            _log.info("backend: %s, %s", found.name, why)
            return found, ", ".join(left_out)
    return None, ", ".join(left_out)


def _first_on_cpu(onnx: bytes, stride: Shape, n_threads: int) -> Backend:
    def opened(name: str) -> Backend:
        backend = ON_CPU[name]()(onnx, n_threads=n_threads)
        _warm_up(backend, stride)
        return backend

    backend, left_out = first_that_works(FASTEST_FIRST, opened)
    if backend is None:
        raise ModelError(f"no backend can run this model ({left_out}); see: n2sr doctor")
    return backend


def _warm_up(backend: Backend, stride: Shape) -> None:
    """Run a small frame, and close what cannot."""
    subsampled = np.zeros((1, 1, _SIDE, _SIDE), np.float32)
    out = np.empty((1, 1, _SIDE * stride[0], _SIDE * stride[1]), np.float32)
    try:
        backend.infer(subsampled, out)
    except BaseException:
        backend.close()
        raise
