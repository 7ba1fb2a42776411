"""n2sr's own CUDA kernels: the small U-Net without any library but the driver."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.backends.base import output_shape
from n2sr_deploy.backends.onnx_weights import weights_in
from n2sr_deploy.backends.packing import unet_members
from n2sr_deploy.cuda.device import Convolution, dotted, quietly
from n2sr_deploy.errors import ModelError
from n2sr_deploy.phantom import phantom_input

if TYPE_CHECKING:
    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.backends.packing import Packed, UNet
    from n2sr_deploy.cuda.device import Device
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray

_SLOPE = 0.1  # of LeakyReLU below zero, in every exported U-Net
_OLDEST = 80  # compute capability, times ten
_TRIED = 2, 1, 64, 64  # input that the kernels are tried on
_ALLOWED = 0.01  # of the output's standard deviation


def require_matrix_units(device: Device) -> None:
    """Raise ModelError unless the GPU has what csrc/convolve.cu computes with."""
    if device.capability < _OLDEST:
        raise ModelError(
            f"{device.name} has compute capability {dotted(device.capability)}, but n2sr's kernels "
            f"for networks need {dotted(_OLDEST)} (Ampere) or later; try backend cuda, "
            "tensorrt-rtx or auto"
        )


class NativeNetwork:
    """A model's U-Nets on a GPU; see `n2sr_deploy.backends.base.DeviceNetwork`.

    Arithmetic is in float16, sums are in float32, whatever the model's precision.

    Parameters
    ----------
    onnx
        The ONNX file.
    device
        The GPU.
    stride
        Of the model's pattern.

    Raises
    ------
    ModelError
        When the model is none of n2sr's small U-Nets, the GPU is too old, or the kernels do not
        give what ONNX Runtime gives.
    """

    is_half = True

    def __init__(self, onnx: bytes, device: Device, stride: Shape) -> None:
        require_matrix_units(device)
        self._device, self._stride = device, stride
        members = unet_members(weights_in(onnx), stride)
        with ExitStack() as opened:
            self._members = [_on_device(opened, device, member) for member in members]
            self._opened = opened.pop_all()
        try:
            self._check(onnx)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """``n2sr's kernels (NVIDIA H100, float16)``."""
        return f"n2sr's kernels ({self._device.name}, float16)"

    def context(self, shape: InputShape, stream: int) -> _Context:
        """Feature maps for input of this shape."""
        n_levels = len(self._members[0].up)
        if shape[2] % 2**n_levels or shape[3] % 2**n_levels:
            raise ModelError(
                f"input of shape {shape} was given, but height and width must be multiples of "
                f"{2**n_levels}"
            )
        return _Context(self._members, self._device, shape, stream, self._stride)

    def _check(self, onnx: bytes) -> None:
        """Against ONNX Runtime: that the file holds the network that is run here."""
        from n2sr_deploy.backends.on_device import DeviceBackend
        from n2sr_deploy.backends.ort import OnnxRuntimeBackend

        given = phantom_input(_TRIED)
        results = np.empty((2, *output_shape(_TRIED, self._stride)), np.float32)
        with closing(OnnxRuntimeBackend(onnx, n_threads=1)) as backend:
            backend.infer(given, results[0])
        with closing(DeviceBackend(_Lent(self), self._device, self._stride)) as on_device:
            on_device.infer(given, results[1])
        error = float(np.sqrt(np.mean(np.square(results[1] - results[0]))))
        std = float(results[0].std())
        if not error <= _ALLOWED * std:
            raise ModelError(
                f"n2sr's kernels are {error:.3g} away from ONNX Runtime, whose output has a "
                f"standard deviation of {std:.3g} (allowed: {_ALLOWED:.0%} of it); try "
                "backend cuda, tensorrt or auto"
            )

    def close(self) -> None:
        """Release the weights."""
        quietly(self._opened.close)


class _Lent:
    """A network that whoever borrows it does not close."""

    def __init__(self, network: NativeNetwork) -> None:
        self.name, self.is_half, self.context = network.name, network.is_half, network.context

    def close(self) -> None:
        """Nothing."""


class _Layer(NamedTuple):
    """A convolution's weights on the device."""

    weights: int
    bias: int
    n_inputs: int
    n_outputs: int


def _on_device(opened: ExitStack, device: Device, unet: UNet[Packed]) -> UNet[_Layer]:
    """A copy in the device's memory."""
    with ExitStack() as meanwhile:
        stream = device.stream()
        meanwhile.callback(device.end_stream, stream)

        def put(array: AnyArray) -> int:
            address = device.allocate(array.nbytes)
            opened.callback(device.free, address)
            with ExitStack() as pinned:
                staged = device.pinned(array.nbytes)
                pinned.callback(device.unpin, staged)
                staged[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                device.upload(address, staged, stream)
                device.wait(stream)
            return address

        return unet.on(lambda layer: _Layer(put(layer.weights), put(layer.bias), *layer[2:]))


class _Maps(NamedTuple):
    """Of one level, addresses of feature maps."""

    skip: int
    """What goes down and, added to, up again."""
    inner: int
    """Between two convolutions."""
    between: int
    """What the next coarser level is given, then what it gives."""


class _Context:
    """The feature maps and launches for input of one shape."""

    is_capturable = True

    def __init__(
        self,
        members: list[UNet[_Layer]],
        device: Device,
        shape: InputShape,
        stream: int,
        stride: Shape,
    ) -> None:
        self._device, self._stream = device, stream
        with ExitStack() as opened:
            maps = [
                self._maps(opened, shape, level, layers[-1].n_outputs)
                for level, layers in enumerate(members[0].down)
            ]
            self._members = [_launches(member, maps, shape) for member in members]
            self._opened = opened.pop_all()
        for k, launches in enumerate(self._members):
            last = launches[-1]
            last.stride_y, last.stride_x = stride
            last.share, last.adds = 1 / len(members), k > 0

    def _maps(self, opened: ExitStack, shape: InputShape, level: int, channels: int) -> _Maps:
        n_bytes = 2 * channels * shape[0] * (shape[2] >> level) * (shape[3] >> level)
        addresses = []
        for room in (n_bytes, n_bytes, n_bytes // 4):
            addresses.append(self._device.allocate(room))
            opened.callback(self._device.free, addresses[-1])
        return _Maps(*addresses)

    def enqueue(self, subsampled: int, outputs: int) -> None:
        """Launch all convolutions."""
        for launches in self._members:
            launches[0].input, launches[-1].pixels = subsampled, outputs
            for launch in launches:
                self._device.convolve(launch, self._stream)

    def close(self) -> None:
        """Release the feature maps."""
        self._opened.close()


def _launches(unet: UNet[_Layer], maps: list[_Maps], shape: InputShape) -> list[Convolution]:
    """In their order; of the first the input is missing, of the last where it writes to."""
    n, _, height, width = shape
    coarsest = len(maps) - 1
    done: list[Convolution] = []

    def launch(level: int, layer: _Layer, **more: int) -> None:
        size = {"n": n, "h": height >> level, "w": width >> level}
        done.append(Convolution(**layer._asdict(), **size, slope=_SLOPE, **more))

    def narrowed(k: int, level: int) -> dict[str, int]:
        layer = unet.narrow[k]
        return {
            "narrow": layer.weights,
            "narrow_bias": layer.bias,
            "n_narrow": layer.n_outputs,
            "output": maps[level].between,
        }

    for level, layers in enumerate(unet.down):
        here = maps[level]
        if level == 0:
            given = {"first": unet.first.weights, "first_bias": unet.first.bias}
        else:
            launch(level, layers[0], input=maps[level - 1].between, output=here.inner)
            given = {"input": here.inner}
        if level < coarsest:
            launch(level, layers[-1], **given, output=here.skip, pooled=here.between)
        else:
            launch(level, layers[-1], **given, **narrowed(0, level - 1))
    for k, (first, second) in enumerate(unet.up):
        level = coarsest - 1 - k
        here = maps[level]
        launch(level, first, input=here.skip, coarse=here.between, output=here.inner)
        to = narrowed(k + 1, level - 1) if level else {"output": here.skip}
        launch(level, second, input=here.inner, **to)
    launch(0, unet.to_pixels, input=maps[0].skip)
    return done
