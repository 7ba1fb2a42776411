"""What a pipeline of frames asks of a GPU: memory, streams, graphs, and n2sr's kernels.

Addresses of device memory, streams and graphs are plain integers, as every library takes them.
Whatever has a stream only enqueues: it is done when `Device.wait` returns.
"""

from __future__ import annotations

import ctypes
import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from n2sr_deploy.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.pattern import SamplingPattern, Shape, Window
    from n2sr_deploy.sampling import AnyArray, UInt8Array

_log = logging.getLogger("n2sr")
PIXEL_TYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16", "float32"))
"""Of frames on a GPU; those of other types are converted to float32 before."""


class Key(ctypes.Structure):
    """What the draws of a frame depend on, as the kernels read it from device memory."""

    _fields_ = (("seed", ctypes.c_uint64), ("frame_index", ctypes.c_uint64))


class Statistics(ctypes.Structure):
    """A frame's, as the kernels leave them in device memory."""

    _fields_ = (
        ("mean", ctypes.c_double),
        ("std", ctypes.c_double),
        ("inverse_std", ctypes.c_double),
    )


class Convolution(ctypes.Structure):
    """One launch of csrc/convolve.cu, which tells what the fields are: n2sr_convolution."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("input", "coarse", "first", "first_bias", "weights", "bias", "narrow"),
                *("narrow_bias", "output", "pooled", "pixels"),
            )
        ),
        *(
            (name, ctypes.c_int)
            for name in (
                *("n", "h", "w", "n_inputs", "n_outputs", "n_narrow", "stride_y", "stride_x"),
                "adds",
            )
        ),
        ("slope", ctypes.c_float),
        ("share", ctypes.c_float),
    )


class Pixels(NamedTuple):
    """A frame in device memory."""

    address: int
    dtype: np.dtype
    """One of `PIXEL_TYPES`."""
    shape: Shape
    pitch: int
    """How many elements its rows lie apart."""

    @property
    def size(self) -> int:
        """How many there are."""
        return self.shape[0] * self.shape[1]


class Values(NamedTuple):
    """What a network takes or gives, in device memory."""

    address: int
    is_half: bool
    """Whether they are float16, else float32."""


class Draws(NamedTuple):
    """Consecutive draws, and how they lie: draw m in orientation m mod 4."""

    first_sample: int
    n_samples: int
    group_size: int
    transposes: bool
    """Whether every second group of draws lies transposed, after that."""


class Part(NamedTuple):
    """Where a rectangle of the frame comes from and goes to."""

    top: int
    """Its first row in the outputs."""
    left: int
    height: int
    width: int
    of_height: int
    """Of the outputs."""
    of_width: int
    pitch: int
    """How many elements the rows of the results lie apart."""


class Pooled(ctypes.Structure):
    """n2sr_pooled of csrc/pool.cu: two results, whose rows lie `pitch` elements apart.

    What they count are `n2sr_deploy.cycle_spinning.PoolWeights`.
    """

    _fields_ = (
        ("mean", ctypes.c_void_p),
        ("std", ctypes.c_void_p),
        ("mean_of_others", ctypes.c_void_p),
        ("std_of_others", ctypes.c_void_p),
        ("height", ctypes.c_ssize_t),
        ("width", ctypes.c_ssize_t),
        ("pitch", ctypes.c_ssize_t),
        ("own", ctypes.c_double),
        ("theirs", ctypes.c_double),
        ("between", ctypes.c_double),
        ("share", ctypes.c_double),
    )


class Device(Protocol):
    """A GPU, or what stands in for one. Every method raises DeviceError when it fails."""

    @property
    def name(self) -> str:
        """As its maker calls it."""

    @property
    def capability(self) -> int:
        """Compute capability, 90 for 9.0."""

    def allocate(self, n_bytes: int) -> int:
        """Device memory; OutOfDeviceMemoryError when there is too little."""

    def free(self, address: int) -> None:
        """Give device memory back."""

    def pinned(self, n_bytes: int) -> UInt8Array:
        """Host memory (n_bytes,) that the device copies from and to by itself."""

    def unpin(self, memory: UInt8Array) -> None:
        """Give it back; the array must not be used afterwards."""

    def stream(self) -> int:
        """A new stream, whose work runs beside that of other streams."""

    def end_stream(self, stream: int) -> None:
        """Release it."""

    def wait(self, stream: int) -> None:
        """Until all that was enqueued is done; what failed of it raises here."""

    def upload(self, to: int, source: AnyArray, stream: int) -> None:
        """Copy pinned memory to the device."""

    def download(self, to: AnyArray, source: int, stream: int) -> None:
        """Copy from the device to pinned memory."""

    def begin_capture(self, stream: int) -> None:
        """Record what is enqueued from now on instead of doing it."""

    def end_capture(self, stream: int) -> int:
        """End recording, whatever happened meanwhile; gives the graph."""

    def replay(self, graph: int, stream: int) -> None:
        """Enqueue all that was recorded, with the same addresses."""

    def end_graph(self, graph: int) -> None:
        """Release it."""

    def scratch_bytes(self) -> int:
        """Of device memory that `statistics` and `shift_mean` need to work in."""

    def statistics(self, pixels: Pixels, scratch: int, result: int, stream: int) -> None:
        """Leave the `Statistics` of pixels at `result`."""

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
        """As `n2sr_deploy.sampling.draw`, bit for bit but for the rounding to float16."""

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
        """As `n2sr_deploy.sampling.merge`, bit for bit."""

    def pool(self, pooled: Pooled, stream: int) -> None:
        """As `n2sr_deploy.cycle_spinning.pool`, bit for bit."""

    def shift_mean(
        self, mean: int, n_pixels: int, scratch: int, frame: int, result: int, stream: int
    ) -> None:
        """Give a result (n_pixels,) float32 the mean of the frame's `Statistics`."""

    def convolve(self, job: Convolution, stream: int) -> None:
        """One convolution and what stands around it, of feature maps in float16."""


def quietly(release: Callable[..., object], *arguments: object) -> None:
    """Release something; a GPU that has failed cannot even do that, which is only logged."""
    try:
        release(*arguments)
    except DeviceError as error:
        # Its words only: who keeps the error keeps its callers' frames.
        _log.debug("while releasing: %s", str(error))


def dotted(capability: int) -> str:
    """A compute capability as NVIDIA writes it: 90 as 9.0."""
    return f"{capability // 10}.{capability % 10}"
