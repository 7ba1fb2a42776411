"""A real GPU, through the .cu files of csrc: one library, loaded by ctypes."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.cuda.device import Convolution, Draws, Part, Pixels, Pooled, Values, dotted
from n2sr_deploy.cuda.driver import NEEDED, find_driver
from n2sr_deploy.errors import DeviceError, OutOfDeviceMemoryError

if TYPE_CHECKING:
    from n2sr_deploy.pattern import SamplingPattern, Window
    from n2sr_deploy.sampling import AnyArray, UInt8Array

# In a folder of its own, since it is no Python module.
LIBRARY = Path(
    Path(__file__).parent, "lib", "n2sr_cuda.dll" if sys.platform == "win32" else "libn2sr_cuda.so"
)
DTYPES = {"uint8": 0, "uint16": 1, "int16": 2, "float32": 5}  # n2sr_dtype
_SHARED = {None: 0, "row": 1, "column": 2}  # n2sr_shared
_OUT_OF_MEMORY = 2
OLDEST = 75
"""Compute capability, times ten, of the oldest GPUs that the kernels are built for."""
_size, _int, _pointer = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p


class CPattern(ctypes.Structure):
    """n2sr_pattern."""

    _fields_ = (("stride_y", _int), ("stride_x", _int), ("shared", _int))


class CWindow(ctypes.Structure):
    """n2sr_window."""

    _fields_ = tuple((name, _size) for name in ("top", "left", "height", "width"))


class CDraws(ctypes.Structure):
    """n2sr_draws."""

    _fields_ = (
        ("first_sample", ctypes.c_uint32),
        ("n_samples", _int),
        ("group_size", _int),
        ("transposes", _int),
    )


class CPart(ctypes.Structure):
    """n2sr_part."""

    _fields_ = (*((name, _size) for name in Part._fields), ("draws", CDraws))


def c_pattern(pattern: SamplingPattern) -> CPattern:
    """As the kernels take it."""
    return CPattern(*pattern.stride, _SHARED[pattern.shared])


_SIGNATURES: dict[str, list[Any]] = {
    "describe": [_int, ctypes.c_char_p, _int, _pointer, _pointer],
    "malloc": [_pointer, ctypes.c_size_t],
    "free": [_pointer],
    "host_malloc": [_pointer, ctypes.c_size_t],
    "host_free": [_pointer],
    "copy": [_pointer, _pointer, ctypes.c_size_t, _pointer],
    "stream": [_pointer],
    "end_stream": [_pointer],
    "wait": [_pointer],
    "begin_capture": [_pointer],
    "end_capture": [_pointer, _pointer],
    "replay": [_pointer, _pointer],
    "end_graph": [_pointer],
    "statistics": [_pointer, _int, ctypes.c_size_t, _pointer, _pointer, _pointer],
    "draw": [
        *(_pointer, _int, _size, _size, _size, CPattern, CWindow, CDraws),
        *(_pointer, _pointer, _pointer, _int, _pointer),
    ],
    "merge": [_pointer, _int, CPart, _pointer, _pointer, _pointer, _pointer],
    "pool": [Pooled, _pointer],
    "shift_mean": [_pointer, ctypes.c_size_t, _pointer, _pointer, _pointer, _pointer],
    "convolve": [ctypes.POINTER(Convolution), _pointer],
}


@functools.cache
def load_library(path: Path = LIBRARY) -> ctypes.CDLL:
    """The compiled kernels; loads without a GPU or driver too.

    Raises
    ------
    DeviceError
        When they were not built, or cannot be loaded.
    """
    if not path.exists():
        raise DeviceError(
            "n2sr was built without its CUDA kernels; install NVIDIA's CUDA toolkit (nvcc) and "
            "install n2sr again with N2SR_CUDA=require"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise DeviceError(
            f"n2sr's CUDA kernels cannot be loaded ({error}); install n2sr again"
        ) from error
    try:
        for name, signature in _SIGNATURES.items():
            function = getattr(library, f"n2sr_cuda_{name}")
            function.argtypes, function.restype = signature, _int
        library.n2sr_cuda_error.argtypes = [_int]
        library.n2sr_cuda_error.restype = ctypes.c_char_p
        library.n2sr_cuda_scratch_bytes.restype = ctypes.c_size_t
        library.n2sr_cuda_forget_error.restype = None
    except AttributeError as error:
        raise DeviceError(
            f"n2sr's CUDA kernels are of another version ({error}); install n2sr again"
        ) from error
    return library


class CudaDevice:
    """The first GPU; see `n2sr_deploy.cuda.device.Device`. CUDA_VISIBLE_DEVICES chooses another.

    Raises
    ------
    DeviceError
        When there is no driver or it is too old, no GPU or one that is too old, or no kernels
        were built.
    """

    index = 0
    """Every thread begins with this one."""

    def __init__(self) -> None:
        driver = find_driver()
        if driver.cuda[0] < NEEDED[0]:
            raise DeviceError(
                f"the NVIDIA driver ({driver.version}) supports CUDA {driver.cuda[0]}."
                f"{driver.cuda[1]}, but n2sr's kernels need {NEEDED[0]}.{NEEDED[1]}; update it"
            )
        self._library = load_library()
        name = ctypes.create_string_buffer(256)
        capability, n_bytes = ctypes.c_int(), ctypes.c_size_t()
        self._call(
            "describe", self.index, name, len(name), ctypes.byref(capability), ctypes.byref(n_bytes)
        )
        if capability.value < OLDEST:
            raise DeviceError(
                f"{name.value.decode()} has compute capability {dotted(capability.value)}, but "
                f"n2sr's kernels need {dotted(OLDEST)} (Turing) or later; backend auto runs on the "
                "CPU"
            )
        self.name = name.value.decode()
        self.capability = capability.value
        """Compute capability, 90 for 9.0."""

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, f"n2sr_cuda_{name}")(*arguments)
        if code == 0:
            return
        self._library.n2sr_cuda_forget_error()
        told = self._library.n2sr_cuda_error(code).decode()
        if code == _OUT_OF_MEMORY and name == "host_malloc":
            raise DeviceError(f"the machine has no more memory that the GPU can copy from ({told})")
        if code == _OUT_OF_MEMORY:
            raise OutOfDeviceMemoryError(f"the GPU's memory is full ({name}: {told})")
        raise DeviceError(
            f"the GPU failed ({name}: {told}, CUDA error {code}); "
            "if it fails again, start n2sr anew"
        )

    def _new(self, name: str, *arguments: Any) -> int:
        """What a call leaves at its first pointer."""
        result = ctypes.c_void_p()
        self._call(name, ctypes.byref(result), *arguments)
        return result.value or 0

    def allocate(self, n_bytes: int) -> int:
        """Device memory."""
        return self._new("malloc", n_bytes)

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("free", address)

    def pinned(self, n_bytes: int) -> UInt8Array:
        """Host memory that the device copies from and to by itself."""
        address = self._new("host_malloc", n_bytes)
        return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))

    def unpin(self, memory: UInt8Array) -> None:
        """Give pinned memory back."""
        self._call("host_free", memory.ctypes.data)

    def stream(self) -> int:
        """A new stream."""
        return self._new("stream")

    def end_stream(self, stream: int) -> None:
        """Release a stream."""
        self._call("end_stream", stream)

    def wait(self, stream: int) -> None:
        """Until all that was enqueued is done."""
        self._call("wait", stream)

    def upload(self, to: int, source: AnyArray, stream: int) -> None:
        """Copy pinned memory to the device."""
        self._call("copy", to, source.ctypes.data, source.nbytes, stream)

    def download(self, to: AnyArray, source: int, stream: int) -> None:
        """Copy from the device to pinned memory."""
        self._call("copy", to.ctypes.data, source, to.nbytes, stream)

    def begin_capture(self, stream: int) -> None:
        """Record what is enqueued from now on."""
        self._call("begin_capture", stream)

    def end_capture(self, stream: int) -> int:
        """The graph of what was recorded."""
        graph = ctypes.c_void_p()
        self._call("end_capture", stream, ctypes.byref(graph))
        return graph.value or 0

    def replay(self, graph: int, stream: int) -> None:
        """Enqueue all that was recorded."""
        self._call("replay", graph, stream)

    def end_graph(self, graph: int) -> None:
        """Release a graph."""
        self._call("end_graph", graph)

    def scratch_bytes(self) -> int:
        """Of device memory that `statistics` and `shift_mean` need."""
        return int(self._library.n2sr_cuda_scratch_bytes())

    def statistics(self, pixels: Pixels, scratch: int, result: int, stream: int) -> None:
        """Leave the `Statistics` of pixels at `result`."""
        dtype = DTYPES[pixels.dtype.name]
        self._call("statistics", pixels.address, dtype, pixels.size, scratch, result, stream)

    def draw(
        self,
        pixels: Pixels,
        pattern: SamplingPattern,
        window: Window,
        draws: Draws,
        key: int,
        statistics: int,
        subsampled: Values,
        stream: int,
    ) -> None:
        """Draw sub-sampled frames."""
        frame = pixels.address, DTYPES[pixels.dtype.name], *pixels.shape, pixels.pitch
        what = c_pattern(pattern), CWindow(*window), CDraws(*draws), key, statistics
        self._call("draw", *frame, *what, *subsampled, stream)

    def merge(
        self,
        outputs: Values,
        draws: Draws,
        part: Part,
        statistics: int,
        mean: int,
        std: int,
        stream: int,
    ) -> None:
        """Merge outputs into their mean and standard deviation."""
        where = CPart(*part, CDraws(*draws))
        self._call("merge", *outputs, where, statistics, mean, std, stream)

    def pool(self, pooled: Pooled, stream: int) -> None:
        """Make one result of two."""
        self._call("pool", pooled, stream)

    def shift_mean(
        self, mean: int, n_pixels: int, scratch: int, frame: int, result: int, stream: int
    ) -> None:
        """Give a result the mean of the frame."""
        self._call("shift_mean", mean, n_pixels, scratch, frame, result, stream)

    def convolve(self, job: Convolution, stream: int) -> None:
        """One convolution and what stands around it."""
        self._call("convolve", ctypes.byref(job), stream)
