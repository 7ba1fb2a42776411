"""Seeded lossless crops of one frame, sub-sampled, with the pixels to learn from.

Only crops, mirrorings and quarter turns: any other rotation would duplicate pixels and leak the
noise of the input into the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from n2sr_deploy import reference
from n2sr_deploy.errors import FrameError, SettingError
from n2sr_deploy.sampling import draw, held_out

if TYPE_CHECKING:
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import BoolArray, FloatArray
    from n2sr_train.config import TrainingConfig

_VALIDATION_PATCHES = 12
_LARGEST_FRACTION = 0.1  # of the pixels that is kept from the targets for their number's sake


class Batch(NamedTuple):
    """Patches in, patches out, and how much the error counts, 0 where it does not. float32."""

    subsampled: torch.Tensor
    """(N, 1, H / stride_y, W / stride_x)."""
    target: torch.Tensor
    """(N, 1, H, W), the noisy patches."""
    counted: torch.Tensor
    """(N, 1, H, W), the held-out pixels that are learned from; above 1 where they count more."""


class Patches(Protocol):
    """Where batches come from."""

    def next_batch(self) -> Batch:
        """The next batch to learn from."""

    def weigh(self, counts: FloatArray) -> None:
        """From now on let each pixel's error count so much, (H, W)."""


class ValidationPatch(NamedTuple):
    """One patch, drawn from as denoising does, and where its error is measured."""

    subsampled: FloatArray
    """(M, 1, H / stride_y, W / stride_x), each draw in its orientation."""
    held_out: FloatArray
    """(M, 1, H, W), 1 where a draw does not keep a pixel, turned back."""
    target: FloatArray
    """(1, H, W), the noisy patch."""
    learned: FloatArray
    """(1, H, W), 1 where pixels are learned from."""
    unseen: FloatArray
    """(1, H, W), 1 where they judge; neither beside these, where a margin is kept."""


class PatchSampler:
    """Draws batches from one frame, on the CPU: the same seed, the same batches.

    Parameters
    ----------
    frame
        The noisy frame; standardised here by its own mean and standard deviation.
    config
        Pattern, margin, batch, patch, overhang, validation pixels and seed are read.
    multiple
        Rows and columns, in pixels, of which patch sides are multiples.

    Raises
    ------
    FrameError
        When the frame is constant, or smaller than one multiple.
    SettingError
        When the patch is smaller than one multiple.
    """

    def __init__(self, frame: Frame, config: TrainingConfig, multiple: Shape) -> None:
        if frame.shape[0] < multiple[0] or frame.shape[1] < multiple[1]:
            smaller = " or a smaller --stride" if max(config.pattern.stride) > 2 else ""
            raise FrameError(
                f"frame is {frame.shape[0]} x {frame.shape[1]} pixels, but this network needs at "
                f"least {multiple[0]} x {multiple[1]} to train on with pattern {config.pattern}; "
                f"a larger frame{smaller} would do"
            )
        if config.patch < max(multiple):
            raise SettingError(
                f"patch is {config.patch}, but this network needs at least {max(multiple)}"
            )
        mean, std = frame.mean_and_std()
        self.frame = reference.standardise(frame.pixels, mean, std)
        self._config = config
        self.pattern = config.pattern
        self._rng = np.random.default_rng(config.seed)
        self._n_drawn = 0
        self.shape: Shape = (
            min(config.patch, frame.shape[0]) // multiple[0] * multiple[0],
            min(config.patch, frame.shape[1]) // multiple[1] * multiple[1],
        )
        self.overhang: Shape = (
            round(config.overhang * min(self.shape[0], frame.shape[0] - self.shape[0])),
            round(config.overhang * min(self.shape[1], frame.shape[1] - self.shape[1])),
        )
        """Rows and columns by which places are drawn beyond the border, to be moved back to it."""
        self.n_turns = self._allowed_turns()
        self.is_validation = _validation_pixels(frame.shape, config, self._rng)
        # Correlated noise that is learned by heart would look like success beside its pixel.
        self.counts = (~_dilated(self.is_validation, config.margin)).astype(np.float32)
        """(H, W): how much each pixel's error counts; 0 where it is never learned from."""
        self.validation = [
            self.judged_patch(*self._random_crop()) for _ in range(_VALIDATION_PATCHES)
        ]

    def next_batch(self) -> Batch:
        """The next batch to learn from."""
        parts = zip(*(self._patch() for _ in range(self._config.batch)), strict=True)
        return Batch(*(torch.from_numpy(np.stack(part)) for part in parts))

    def weigh(self, counts: FloatArray) -> None:
        """From now on let each pixel's error count so much, (H, W)."""
        self.counts = counts

    def judged_patch(self, crop: tuple[slice, slice], turn: int = 0) -> ValidationPatch:
        """A part of the frame with one group of draws, at most four."""
        target, counts = self._cropped(crop, turn)
        n_samples = min(self.pattern.group_size, 4)
        seed, index = self._next_draw()
        held = [self._held_out(sample, seed, index) for sample in range(n_samples)]
        return ValidationPatch(
            self._drawn(target, n_samples, seed, index)[:, None],
            np.stack(held).astype(np.float32)[:, None],
            target[None],
            (counts > 0).astype(np.float32)[None],
            _turned(self.is_validation[crop], turn).astype(np.float32)[None],
        )

    def _random_crop(self) -> tuple[tuple[slice, slice], int]:
        """A random place, and how it is turned."""
        turn = int(self._rng.integers(self.n_turns))
        crop = []
        for side, whole, beyond in zip(self.shape, self.frame.shape, self.overhang, strict=True):
            first = int(self._rng.integers(-beyond, whole - side + beyond + 1))
            first = min(max(first, 0), whole - side)
            crop.append(slice(first, first + side))
        return (crop[0], crop[1]), turn

    def _cropped(self, crop: tuple[slice, slice], turn: int) -> tuple[FloatArray, FloatArray]:
        """A patch (H, W), turned, and how much its pixels count."""
        target = np.ascontiguousarray(_turned(self.frame[crop], turn))
        return target, _turned(self.counts[crop], turn)

    def _next_draw(self) -> tuple[int, int]:
        """The seed and the number of a draw that was not taken yet."""
        self._n_drawn += 1
        return self._config.seed, self._n_drawn - 1

    def _drawn(self, patch: FloatArray, n_samples: int, seed: int, frame_index: int) -> FloatArray:
        """(M, h, w); a patch is too small for more threads than one."""
        return draw(patch, self.pattern, n_samples, seed=seed, frame_index=frame_index, n_threads=1)

    def _held_out(self, sample: int, seed: int, frame_index: int) -> BoolArray:
        """(H, W): which pixels a draw may be compared with."""
        held = held_out(
            self.pattern,
            self.shape,
            sample=sample,
            seed=seed,
            frame_index=frame_index,
            n_threads=1,
        )
        return ~_dilated(~held, self._config.margin)

    def _patch(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """One patch of a batch: sub-sampled, (1, H, W), and how much its pixels count."""
        target, counts = self._cropped(*self._random_crop())
        seed, index = self._next_draw()
        subsampled = self._drawn(target, 1, seed, index)
        return subsampled, target[None], (counts * self._held_out(0, seed, index))[None]

    def _allowed_turns(self) -> int:
        """4: mirrorings and the half turn; 8: quarter turns too.

        Denoising turns its draws: a network that learned without meets what it has not seen.
        """
        pattern = self._config.pattern
        square = self.shape[0] == self.shape[1] and pattern.stride_y == pattern.stride_x
        return 8 if square else 4


def _dilated(mask: BoolArray, reach: int) -> BoolArray:
    """True wherever the mask is within `reach` rows and columns."""
    if not reach:
        return mask
    for axis in (0, 1):
        padded = np.pad(mask, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
        mask = np.asarray(windows.any(axis=-1))
    return mask


def _turned(image: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight ways to lay a square on itself; the first four keep rows rows."""
    if turn >= 4:
        image = image.T
    return image[reference.ORIENTATIONS[turn % 4]]


def _validation_pixels(shape: Shape, config: TrainingConfig, rng: np.random.Generator) -> BoolArray:
    """(H, W), true on the pixels kept from all targets.

    Where a pattern keeps whole rows or columns, because the noise along them is correlated,
    whole rows or columns are kept from the targets too.
    """
    drawn = config.pattern.independent(shape)
    enough = min(config.validation_pixels / (shape[0] * shape[1]), _LARGEST_FRACTION)
    n = drawn[0] * drawn[1]
    chosen = np.zeros(n, np.bool_)
    n_chosen = max(1, round(n * max(config.validation_fraction, enough)))
    chosen[rng.permutation(n)[:n_chosen]] = True
    return np.broadcast_to(chosen.reshape(drawn), shape)
