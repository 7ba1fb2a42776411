"""The small U-Net's weights as csrc/convolve.cu reads them.

The matrix units multiply 16 pixels x 16 input channels by 16 x 8 output channels, a step, spread
over the 32 threads of a warp: thread `lane` holds the four weights of output column lane // 4 whose
rows are `_ROWS[lane]`. Columns are given to channels so that each thread ends with consecutive
channels of a pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from n2sr_deploy.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray, FloatArray

Weights = TypeVar("Weights")
Placed = TypeVar("Placed")
WIDEST = 64
"""Channels of a feature map, at most."""
_LANE = np.arange(32)
_COLUMN = _LANE // 4
_ROWS = 2 * (_LANE % 4)[:, None] + np.array([0, 1, 8, 9])  # (32, 4), of 16


class Packed(NamedTuple):
    """A convolution's weights."""

    weights: AnyArray
    """Of the matrix units, float16."""
    bias: FloatArray
    n_inputs: int
    """Channels, filled up to a multiple of 8."""
    n_outputs: int


class UNet(NamedTuple, Generic[Weights]):
    """The layers of a small U-Net, `n2sr_train.network.SmallUNet`."""

    first: Weights
    """The one that has one channel to read."""
    down: list[list[Weights]]
    """On each level, from the finest on; but for the first layer."""
    narrow: list[Weights]
    """From the coarsest level on."""
    up: list[list[Weights]]
    to_pixels: Weights

    def on(self, put: Callable[[Weights], Placed]) -> UNet[Placed]:
        """The same with every layer put somewhere else."""
        return UNet(
            put(self.first),
            [[put(layer) for layer in level] for level in self.down],
            [put(layer) for layer in self.narrow],
            [[put(layer) for layer in level] for level in self.up],
            put(self.to_pixels),
        )


def _filled(values: FloatArray, *sizes: int) -> FloatArray:
    """Zeros after the end of the leading axes."""
    result = np.zeros((*sizes, *values.shape[len(sizes) :]), values.dtype)
    result[tuple(slice(n) for n in values.shape)] = values
    return result


def _up_to(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def channel_of(tile: AnyArray, column: AnyArray, n_tiles: int) -> AnyArray:
    """Which output channel a column of a tile of 8 is."""
    channel: AnyArray = 2 * n_tiles * (column // 2) + 2 * tile + column % 2
    return channel


def packed(weights: FloatArray, bias: FloatArray) -> Packed:
    """A 3 x 3 convolution's; weights are (outputs, inputs, 3, 3).

    They become (steps, 9, tiles, 32, 4), the taps column by column.
    """
    n_outputs, n_inputs = (_up_to(n, 8) for n in weights.shape[:2])
    n_tiles, n_steps = n_outputs // 8, _up_to(n_inputs, 16) // 16
    taps = _filled(weights, 8 * n_tiles, 16 * n_steps).swapaxes(2, 3)
    taps = taps.reshape(8 * n_tiles, 16 * n_steps, 9)
    output = channel_of(np.arange(n_tiles)[:, None], _COLUMN, n_tiles)[:, :, None]
    given = (16 * np.arange(n_steps)[:, None, None] + _ROWS)[:, None, None]
    laid = taps[output, given, np.arange(9)[:, None, None, None]]
    return Packed(laid.astype(np.float16), _filled(bias, n_outputs), n_inputs, n_outputs)


def packed_first(weights: FloatArray, bias: FloatArray) -> Packed:
    """The first layer's, whose nine taps are one step; (outputs, 1, 3, 3).

    They become (tiles, 32, 4).
    """
    n_outputs = _up_to(len(bias), 8)
    taps = _filled(weights.reshape(len(bias), 9), n_outputs, 16)
    output = 8 * np.arange(n_outputs // 8)[:, None, None] + _COLUMN[:, None]
    return Packed(taps[output, _ROWS].astype(np.float16), _filled(bias, n_outputs), 1, n_outputs)


def packed_narrow(weights: FloatArray, bias: FloatArray) -> Packed:
    """A 1 x 1 convolution's, of what the threads of a 3 x 3 one hold; (outputs, inputs, 1, 1).

    They become (tiles, steps, 32, 4).
    """
    n_outputs, n_inputs = (_up_to(n, 8) for n in weights.shape[:2])
    n_tiles, n_before = n_outputs // 8, n_inputs // 8
    n_steps = -(-n_before // 2)
    matrix = _filled(weights[:, :, 0, 0], n_outputs, n_inputs)
    matrix = np.pad(matrix, ((0, 0), (0, 1)))  # a column of zeros for steps half full
    tile = 2 * np.arange(n_steps)[:, None, None] + _ROWS // 8
    given = np.where(tile < n_before, channel_of(tile, _ROWS % 8, n_before), -1)[None]
    output = (8 * np.arange(n_tiles)[:, None] + _COLUMN)[:, None, :, None]
    laid = matrix[output, given]
    return Packed(laid.astype(np.float16), _filled(bias, n_outputs), n_inputs, n_outputs)


_OTHERS = "try backend cuda, tensorrt or auto"


def unet_members(weights: Mapping[str, FloatArray], stride: Shape) -> list[UNet[Packed]]:
    """The networks in an exported model, whose outputs are averaged.

    Parameters
    ----------
    weights
        By their names in the network; others are ignored.
    stride
        Of the model's pattern.

    Raises
    ------
    ModelError
        When they are not of small U-Nets that are alike, or of ones that are too wide.
    """
    ending = "down.0.first.weight"
    prefixes = sorted(name.removesuffix(ending) for name in weights if name.endswith(ending))
    if not prefixes:
        raise ModelError(f"the model is no small U-Net, as of preset paper; {_OTHERS}")
    members = [
        {
            name.removeprefix(prefix): values
            for name, values in weights.items()
            if name.startswith(prefix)
        }
        for prefix in prefixes
    ]
    channels = _channels(members[0])
    if not 1 <= min(channels) <= max(channels) <= WIDEST or len(channels) < 2:
        raise ModelError(
            f"the model has feature maps of {', '.join(map(str, channels))} channels, but n2sr's "
            f"kernels take 2 levels or more of 1 to {WIDEST}; {_OTHERS}"
        )
    for member in members:
        _check(member, _shapes(channels, stride[0] * stride[1]))
    return [_unet(member, len(channels) - 1) for member in members]


def _channels(member: Mapping[str, FloatArray]) -> list[int]:
    """Of each level, from the finest on."""
    found: list[int] = []
    while (weights := member.get(f"down.{len(found)}.first.weight")) is not None:
        found.append(len(weights) if weights.ndim else 0)
    return found


def _shapes(channels: list[int], n_pixels: int) -> dict[str, tuple[int, ...]]:
    """What the weights of `n2sr_train.network.SmallUNet` are."""
    shapes: dict[str, tuple[int, ...]] = {}
    before = 1
    for level, own in enumerate(channels):
        shapes[f"down.{level}.first"] = own, before, 3, 3
        shapes[f"down.{level}.second"] = own, own, 3, 3
        before = own
    for k, own in enumerate(reversed(channels[:-1])):
        shapes[f"narrow.{k}"] = own, before, 1, 1
        shapes[f"up.{k}.first"] = shapes[f"up.{k}.second"] = own, own, 3, 3
        before = own
    return {**shapes, "to_pixels": (n_pixels, channels[0], 3, 3)}


def _check(member: Mapping[str, FloatArray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for layer, shape in shapes.items():
        for name, wanted in ((f"{layer}.weight", shape), (f"{layer}.bias", shape[:1])):
            if name not in member:
                raise ModelError(f"the model has no weights {name}; {_OTHERS}")
            found = member[name]
            if found.shape != wanted:
                raise ModelError(
                    f"{name} in the model has shape {found.shape}, but a small U-Net's has "
                    f"{wanted}; {_OTHERS}"
                )
            if not np.abs(found).max() < np.finfo(np.float16).max:  # nor where it is no number
                raise ModelError(f"{name} in the model exceeds float16; {_OTHERS}")


def _unet(member: Mapping[str, FloatArray], n_poolings: int) -> UNet[Packed]:
    def conv(name: str) -> tuple[FloatArray, FloatArray]:
        return member[f"{name}.weight"], member[f"{name}.bias"]

    def pair(name: str) -> list[Packed]:
        return [packed(*conv(f"{name}.{which}")) for which in ("first", "second")]

    return UNet(
        first=packed_first(*conv("down.0.first")),
        down=[[packed(*conv("down.0.second"))]]
        + [pair(f"down.{k + 1}") for k in range(n_poolings)],
        narrow=[packed_narrow(*conv(f"narrow.{k}")) for k in range(n_poolings)],
        up=[pair(f"up.{k}") for k in range(n_poolings)],
        to_pixels=packed(*conv("to_pixels")),
    )
