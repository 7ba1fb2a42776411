"""What every backend gives the denoiser."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from n2sr_deploy.errors import ModelError, OutOfMemoryError

if TYPE_CHECKING:
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import FloatArray

INPUT_NAME, OUTPUT_NAME = "subsampled", "denoised"
"""Of the tensors that an exported model takes and gives."""
CLOSED = "this backend was closed; open the model again"
InputShape = tuple[int, int, int, int]
"""(M, 1, H / stride_y, W / stride_x)."""

_NO_MEMORY = re.compile(r"bad.?alloc|(failed|unable|not|cannot) (to )?allocate", re.IGNORECASE)


class Backend(Protocol):
    """A network loaded and ready: loaded once, run often, closed at the end."""

    @property
    def name(self) -> str:
        """As users know it, with its device and arithmetic: ``OpenVINO (CPU, float32)``."""

    def infer(self, subsampled: FloatArray, out: FloatArray) -> None:
        """Run the network.

        Parameters
        ----------
        subsampled
            (M, 1, H / stride_y, W / stride_x) float32, standardised, C-contiguous.
        out
            (M, 1, H, W) float32, C-contiguous and writable, to fill.

        Raises
        ------
        ModelError
            When the library fails, the arrays do not fit the network, or the backend was closed.
        """

    def close(self) -> None:
        """Release what the backend holds; it cannot be used afterwards. Closing twice is fine."""


class DeviceContext(Protocol):
    """A network on a GPU, ready for input of one shape on one stream."""

    @property
    def is_capturable(self) -> bool:
        """Whether what it enqueues may be recorded in a CUDA graph."""

    def enqueue(self, subsampled: int, outputs: int) -> None:
        """Run it on device memory, and do not wait; DeviceError when it fails."""

    def close(self) -> None:
        """Release it."""


class DeviceNetwork(Protocol):
    """A network loaded on a GPU."""

    @property
    def name(self) -> str:
        """As users know it: ``TensorRT 11.4 (NVIDIA H100, fp16)``."""

    @property
    def is_half(self) -> bool:
        """Whether it takes and gives float16 instead of float32."""

    def context(self, shape: InputShape, stream: int) -> DeviceContext:
        """For input of (M, 1, h, w); ModelError when the network was not built for it."""

    def close(self) -> None:
        """Release it, after all its contexts."""


def output_shape(shape: InputShape, stride: Shape) -> InputShape:
    """(M, 1, H, W): what a network makes of input of a shape."""
    return shape[0], 1, shape[2] * stride[0], shape[3] * stride[1]


def check_arrays(subsampled: FloatArray, out: FloatArray) -> None:
    """Refuse what a library that is given their addresses would misread.

    Raises
    ------
    ModelError
        When one is not float32 and C-contiguous, or `out` not writable.
    """
    for name, array in (("subsampled", subsampled), ("out", out)):
        if array.dtype.name != "float32" or not array.flags.c_contiguous:
            raise ModelError(
                f"{name} is {array.dtype} with strides {array.strides}, but a backend takes "
                "C-contiguous float32"
            )
    if not out.flags.writeable:
        raise ModelError("out is read-only, but a backend writes to it")


def failure(library: str, shape: tuple[int, ...], told: str) -> ModelError:
    """What to raise when a library's network fails on the CPU.

    Parameters
    ----------
    library
        Its name.
    shape
        Of the input.
    told
        What it says.

    Returns
    -------
    An `OutOfMemoryError` where it says that it could not allocate, else a `ModelError`.
    """
    if _NO_MEMORY.search(told):
        return OutOfMemoryError(
            f"{library} found too little memory for input of shape {shape} ({told}); close other "
            "programs, or lower the memory budget"
        )
    return ModelError(f"{library} failed on input of shape {shape} ({told})")
