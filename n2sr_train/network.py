"""The networks: one sub-sampled frame in, one frame at full resolution out.

Both see (N, 1, h, w) standardised values, h and w multiples of 2 ** levels, and give
(N, 1, h * stride_y, w * stride_x). No normalisation layers, nothing random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable

    from n2sr_deploy.pattern import Shape
    from n2sr_train.config import NetworkConfig

FIRST_MEMBER = "members.0."
"""What the names of an ensemble's first weights begin with."""
_SLOPE = 0.1  # of LeakyReLU below zero


def build_network(config: NetworkConfig, stride: Shape, seed: int) -> AnyNetwork:
    """The network `config` asks for, its weights drawn from `seed`."""
    if config.members > 1:
        # Unlike each other: the exporter makes one of weights that are equal.
        seeds = range(seed, seed + config.members)
        return Ensemble(build_network(config.single, stride, own) for own in seeds)
    kind = SmallUNet if config.architecture == "unet" else PaperUNet
    with torch.random.fork_rng(devices=[]):  # PyTorch's own initialisation, seeded for us alone
        torch.manual_seed(seed)
        return kind(config.channels, stride)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _activate_(x: torch.Tensor) -> torch.Tensor:
    # In place, as a convolution's output is of no other use; the exporter takes longer over it so.
    return functional.leaky_relu(x, _SLOPE, inplace=not torch.compiler.is_exporting())


def _double(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def pixel_shuffle(x: torch.Tensor, stride: Shape) -> torch.Tensor:
    """(N, stride_y * stride_x, h, w) -> (N, 1, h * stride_y, w * stride_x)."""
    stride_y, stride_x = stride
    if stride_y == stride_x:
        return functional.pixel_shuffle(x, stride_y)
    n, _, h, w = x.shape
    x = x.reshape(n, stride_y, stride_x, h, w).permute(0, 3, 1, 4, 2)  # (N, h, sy, w, sx)
    return x.reshape(n, 1, h * stride_y, w * stride_x)


class _TwoConvolutions(nn.Module):
    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.first = _conv(inputs, channels)
        self.second = _conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _activate_(self.second(_activate_(self.first(x))))


class SmallUNet(nn.Module):
    """A U-Net at the sub-sampled resolution, then one pixel shuffle to the full one.

    Two convolutions on every level down and up, `channels[level]` features each. What comes up
    is brought to the finer level's channels before it is doubled, where that is cheap, and added
    to what went down. Few channels where there are many pixels, more where there are few:
    arithmetic per output pixel in docs/decisions/0006-recipe.md.
    """

    def __init__(self, channels: tuple[int, ...], stride: Shape) -> None:
        super().__init__()
        self.stride = stride
        self.channels = channels
        self.levels = len(channels) - 1
        inputs = (1, *channels)
        self.down = nn.ModuleList(
            _TwoConvolutions(*pair) for pair in zip(inputs, channels, strict=False)
        )
        finer = range(self.levels - 1, -1, -1)
        self.narrow = nn.ModuleList(nn.Conv2d(channels[i + 1], channels[i], 1) for i in finer)
        self.up = nn.ModuleList(_TwoConvolutions(channels[i], channels[i]) for i in finer)
        self.to_pixels = _conv(channels[0], stride[0] * stride[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) -> (N, 1, h * stride_y, w * stride_x)."""
        skips: list[torch.Tensor] = []
        for level, convolutions in enumerate(self.down):
            if level:
                skips.append(x)
                x = functional.max_pool2d(x, 2)  # (N, C[level - 1], h / 2**level, w / 2**level)
            x = convolutions(x)
        for narrow, convolutions in zip(self.narrow, self.up, strict=True):
            x = convolutions(_double(narrow(x)) + skips.pop())  # twice the size
        x = self.to_pixels(x)  # (N, stride_y * stride_x, h, w)
        return pixel_shuffle(x, self.stride)

    @property
    def receptive_radius(self) -> int:
        """How far an output depends on the input, in pixels of the sub-sampled frame, at most.

        A 3 x 3 convolution on level l reaches 2**l; a pooling and the doubling that undoes it
        reach 2**l each.
        """
        down = sum(2 << level for level in range(self.levels + 1))
        up = sum(2 << level for level in range(self.levels))
        resampling = sum(2 << level for level in range(self.levels))
        return down + up + resampling + 1

    @property
    def bytes_per_pixel(self) -> int:
        """About the memory of inference for each pixel of the frame and draw, float32."""
        maps_alive = 6  # a skip, a sum's two inputs, a convolution's two ends, a work space
        return maps_alive * 4 * self.channels[0] // (self.stride[0] * self.stride[1])


class PaperUNet(nn.Module):
    """The paper's network as far as its text tells: ~1.74 M parameters, 395 kMAC per pixel.

    128 features everywhere; an encoder with five poolings at the sub-sampled resolution,
    a decoder with additive skips, and two more convolutions after the doubling to full
    resolution. Ours has 1.77 M parameters and 395 kMAC per output pixel at stride (2, 2).
    """

    def __init__(self, channels: tuple[int, ...], stride: Shape) -> None:
        super().__init__()
        self.stride = stride
        self.levels = levels = len(channels) - 1
        self.channels = features = channels[0]
        self.first = nn.ModuleList([_conv(1, features), _conv(features, features)])
        self.down = nn.ModuleList(_conv(features, features) for _ in range(levels))
        self.up = nn.ModuleList(_conv(features, features) for _ in range(levels - 1))
        self.full = nn.ModuleList([_conv(features, features), _conv(features, features)])
        self.to_pixels = _conv(features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) -> (N, 1, h * stride_y, w * stride_x)."""
        for conv in self.first:
            x = _activate_(conv(x))
        skips: list[torch.Tensor] = []
        for conv in self.down:
            skips.append(x)
            x = _activate_(conv(functional.max_pool2d(x, 2)))
        x = _double(x) + skips.pop()
        for conv in self.up:
            x = _activate_(conv(_double(x) + skips.pop()))
        scale = float(self.stride[0]), float(self.stride[1])
        x = functional.interpolate(x, scale_factor=scale, mode="nearest")  # (N, C, H, W)
        for conv in self.full:
            x = _activate_(conv(x))
        pixels: torch.Tensor = self.to_pixels(x)
        return pixels

    @property
    def receptive_radius(self) -> int:
        """How far an output depends on the input, in pixels of the sub-sampled frame, at most."""
        down = 2 + sum(2 << level for level in range(self.levels))
        up = sum(1 << level for level in range(self.levels - 1))
        resampling = sum(2 << level for level in range(self.levels))
        return down + up + resampling + 3

    @property
    def bytes_per_pixel(self) -> int:
        """About the memory of inference for each pixel of the frame and draw, float32."""
        maps_alive = 3  # input and output of a convolution at full resolution, a work space
        return maps_alive * 4 * self.channels


class Ensemble(nn.Module):
    """Networks of one kind that were trained apart; their outputs are averaged."""

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) -> (N, 1, h * stride_y, w * stride_x)."""
        outputs: list[torch.Tensor] = [member(x) for member in self.members]
        return sum(outputs[1:], outputs[0]) / len(outputs)

    @property
    def receptive_radius(self) -> int:
        """How far an output depends on the input, in pixels of the sub-sampled frame, at most."""
        return max(int(member.receptive_radius) for member in self.members)  # type: ignore[arg-type]

    @property
    def bytes_per_pixel(self) -> int:
        """About the memory of inference for each pixel of the frame and draw, float32."""
        outputs = 4 * len(self.members)
        return outputs + max(int(member.bytes_per_pixel) for member in self.members)  # type: ignore[arg-type]


AnyNetwork = SmallUNet | PaperUNet | Ensemble
