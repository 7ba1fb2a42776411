"""A network on a GPU as a backend: host memory in, host memory out."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.backends.base import CLOSED, check_arrays
from n2sr_deploy.cuda.device import quietly
from n2sr_deploy.errors import DeviceError, ModelError

if TYPE_CHECKING:
    from n2sr_deploy.backends.base import DeviceContext, DeviceNetwork, InputShape
    from n2sr_deploy.cuda.device import Device
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import FloatArray


class _Memory(NamedTuple):
    """For input of one shape, on the device and pinned on the host."""

    shape: InputShape
    context: DeviceContext
    input: int
    output: int
    host_input: FloatArray
    host_output: FloatArray


class DeviceBackend:
    """Runs a network on a GPU for the denoiser that works on the CPU: frames in tiles, tests.

    `n2sr_deploy.pipeline.FramePipeline` keeps all of a frame's work on the GPU, and is faster.

    Parameters
    ----------
    network
        On `device`; the backend closes it, also when it cannot be opened itself.
    device
        The GPU.
    stride
        Of the model's pattern.
    """

    def __init__(self, network: DeviceNetwork, device: Device, stride: Shape) -> None:
        self._network, self._device, self._stride = network, device, stride
        try:
            self._stream: int | None = device.stream()
        except BaseException:
            network.close()
            raise
        self._memory: _Memory | None = None
        self._opened = ExitStack()

    @property
    def name(self) -> str:
        """The network's."""
        return self._network.name

    def infer(self, subsampled: FloatArray, out: FloatArray) -> None:
        """Run the network; see `Backend.infer`."""
        if self._stream is None:
            raise ModelError(CLOSED)
        check_arrays(subsampled, out)
        scale = 1, 1, *self._stride
        wanted = tuple(n * s for n, s in zip(subsampled.shape, scale, strict=False))
        if subsampled.ndim != 4 or subsampled.shape[1] != 1 or out.shape != wanted:
            raise ModelError(
                f"the GPU failed on input of shape {subsampled.shape}: out has shape {out.shape}"
            )
        n, _, height, width = subsampled.shape
        try:
            memory = self._memory_for((n, 1, height, width), out.size, self._stream)
            np.copyto(memory.host_input.reshape(subsampled.shape), subsampled)
            self._device.upload(memory.input, memory.host_input, self._stream)
            memory.context.enqueue(memory.input, memory.output)
            self._device.download(memory.host_output, memory.output, self._stream)
            self._device.wait(self._stream)
        except DeviceError as error:
            self._forget()
            raise ModelError(f"{error}; it failed on input of shape {subsampled.shape}") from error
        np.copyto(out, memory.host_output.reshape(out.shape))

    def _memory_for(self, shape: InputShape, output_size: int, stream: int) -> _Memory:
        """Kept until the shape changes."""
        if self._memory is not None and self._memory.shape == shape:
            return self._memory
        self._forget()
        dtype = np.dtype(np.float16 if self._network.is_half else np.float32)
        n_bytes = [size * dtype.itemsize for size in (math.prod(shape), output_size)]
        with ExitStack() as opened:
            addresses, pinned = [], []
            for n in n_bytes:
                addresses.append(self._device.allocate(n))
                opened.callback(self._device.free, addresses[-1])
                pinned.append(self._device.pinned(n))
                opened.callback(self._device.unpin, pinned[-1])
            context = self._network.context(shape, stream)
            opened.callback(context.close)
            self._opened = opened.pop_all()
        host_input, host_output = (memory.view(dtype) for memory in pinned)
        self._memory = _Memory(shape, context, addresses[0], addresses[1], host_input, host_output)
        return self._memory

    def _forget(self) -> None:
        self._memory = None
        opened, self._opened = self._opened, ExitStack()
        quietly(opened.close)

    def close(self) -> None:
        """Release the memory and the network."""
        if self._stream is not None:
            self._forget()
            self._opened.callback(self._network.close)
            self._opened.callback(self._device.end_stream, self._stream)
            self._stream = None
            self._forget()
