"""One noisy frame in, the denoised frame and its spread out: draw, infer, merge."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Self

import numpy as np

from n2sr_deploy.backends import open_backend
from n2sr_deploy.cycle_spinning import draw_sets, pool_sets
from n2sr_deploy.errors import FrameError, ModelError, SettingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.model import ExportedModel
from n2sr_deploy.sampling import DRAWS_AT_ONCE, MAX_SAMPLES, alike_draws, checked_key, draw, merge
from n2sr_deploy.tiling import seen_within, tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from n2sr_deploy.backends import Backend
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray, FloatArray
    from n2sr_deploy.tiling import Tile

DEFAULT_MEMORY_BUDGET = 2 * 2**30  # bytes

STAGES = "standardise", "draw", "infer", "merge"
"""Of a `Denoiser`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoised:
    """A denoised frame."""

    mean: FloatArray
    """(H, W) float32, in counts: the MMSE estimate, the mean over the draws."""
    std: FloatArray
    """(H, W) float32, in counts: the raw spread, the standard deviation of the draws. It tells
    where they disagree; `n2sr_deploy.uncertainty.standard_error` makes a calibrated error of it."""
    timings: Mapping[str, float]
    """Seconds spent in each stage: `STAGES`; or of a pipeline, ``enqueue`` and ``gpu``."""


class _Stopwatch:
    """Adds up the time between laps, by stage."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What has passed since the last lap was this stage's."""
        now = time.perf_counter()
        self.spent[stage] += now - self._last
        self._last = now


class _Buffer:
    """Memory kept from frame to frame, as large as the largest needed so far."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.float32)

    def shaped(self, *shape: int) -> FloatArray:
        """An array of this shape; its values are left over."""
        size = math.prod(shape)
        if size > self._values.size:
            self._values = np.empty(size, np.float32)
        return self._values[:size].reshape(shape)


class Denoiser:
    """Denoises frames with one exported model, one at a time: threads wait for each other.

    It does not go into another process: give that the model, or its path.

    Parameters
    ----------
    model
        The exported model.
    backend
        What runs it: a name of `n2sr_deploy.backends.BACKENDS`; ``auto``, the fastest that works
        on the CPU (`n2sr_deploy.open_denoiser` takes a GPU); or one that is loaded.
    memory_budget
        Bytes for the draws, the network and its outputs; larger frames go in tiles, which
        overlap by the network's receptive field and so leave no seam. Before there are tiles, the
        network is given fewer draws at once than `DRAWS_AT_ONCE`. The result comes beside them,
        and with patterns of whole lines one more, of as many bytes.
    n_threads
        For the kernels and a backend that is named; 0: one for each core.

    Attributes
    ----------
    on_share
        Called with the share of a frame that is done, above 0 to 1, after each run of the network;
        None, at first: nothing is.

    Raises
    ------
    ModelError
        When the backend cannot load the model.
    MissingExtraError
        When the backend's library is not installed.
    SettingError
        When a setting is out of range, there is no such backend, or `model` is none.
    """

    def __init__(
        self,
        model: ExportedModel,
        *,
        backend: Backend | str = "auto",
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        n_threads: int = 0,
    ) -> None:
        if memory_budget < 1 or n_threads < 0:
            raise SettingError(
                f"memory_budget is {memory_budget} and n_threads {n_threads}, but must be at least "
                "1 and at least 0"
            )
        check_model(model)
        self.model = model
        if isinstance(backend, str):
            stride = model.metadata.pattern.stride
            backend = open_backend(
                model.onnx,
                backend,
                stride=stride,
                precision=model.metadata.precision,
                n_threads=n_threads,
            )
        self.backend = backend
        self.on_share: Callable[[float], None] | None = None
        self._draws, self._outputs, self._turned = _Buffer(), _Buffer(), _Buffer()
        self._of_shifted = _Buffer()
        self._memory_budget = memory_budget
        self._n_threads = n_threads
        self._lock = threading.RLock()  # of the buffers and the backend

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        backend: str = "auto",
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        n_threads: int = 0,
    ) -> Self:
        """Open an exported model by its path; the settings are the class's.

        Raises
        ------
        InputFileError
            When there is no readable file.
        ModelError
            When it is no exported model, or the backend cannot load it.
        MissingExtraError, SettingError
            As the class does.
        """
        return cls(
            ExportedModel.open(path),
            backend=backend,
            memory_budget=memory_budget,
            n_threads=n_threads,
        )

    @property
    def name(self) -> str:
        """What runs the network."""
        return self.backend.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the backend."""
        with self._lock:
            self.backend.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Denoiser neither goes into another process nor is copied; give its model, or the "
            "model's path, and open another there"
        )

    def denoise(
        self,
        frame: Frame | AnyArray,
        n_samples: int | None = None,
        *,
        seed: int = 0,
        frame_index: int | None = None,
    ) -> Denoised:
        """Denoise one frame.

        Parameters
        ----------
        frame
            (H, W) in counts; never written to. It is standardised by its own mean and standard
            deviation, and taken as it is: `n2sr_deploy.denoise_frame` mends it first, as the
            commands do.
        n_samples
            M, the number of draws, 1 to 1024; by default the model's.
        seed, frame_index
            0 to 2**64 - 1; they choose the draws. Give successive frames successive indices; by
            default a `Frame`'s own index, 0 for an array.

        Returns
        -------
        The mean and standard deviation over the draws. The same to float32 rounding for the same
        seed and index, whatever the threads or memory budget; to bfloat16 rounding where the
        backend computes in that.

        Raises
        ------
        FrameError
            When the frame cannot be denoised: its shape, type or values, or constant.
        SettingError
            When `n_samples`, `seed` or `frame_index` is out of range.
        ModelError
            When the backend fails, or the network gives NaN or infinite values.
        """
        frame = Frame.of(frame)
        if n_samples is None:
            n_samples = self.model.metadata.n_samples
        check_frame(self.model, frame.shape, n_samples)
        key = checked_key(seed, frame.index if frame_index is None else frame_index)
        with self._lock:
            return self._denoised(frame, n_samples, key)

    def _denoised(self, frame: Frame, n_samples: int, key: tuple[int, int]) -> Denoised:
        meta = self.model.metadata
        watch = _Stopwatch()
        offset, scale = frame.mean_and_std()
        watch.lap("standardise")
        sets = draw_sets(frame.pixels, meta.pattern, n_samples, meta.padded(frame.shape))
        results: list[FloatArray] = [np.empty((2, *frame.shape), np.float32)]
        if len(sets) == 2:
            results.append(self._of_shifted.shaped(2, *frame.shape))
        at_once = self._draws_at_once(frame.shape, n_samples)
        cover = self._tiles(frame.shape, n_samples)
        for n_done, tile in enumerate(cover):
            window = tile.window(meta.pattern.stride)
            subsampled = self._draws.shaped(n_samples, window.height, window.width)
            for draw_set in sets:
                draw(
                    draw_set.pixels,
                    meta.pattern,
                    draw_set.n_samples,
                    seed=key[0],
                    frame_index=key[1],
                    first_sample=draw_set.first_sample,
                    mean=offset,
                    scale=scale,
                    window=window,
                    out=subsampled[draw_set.draws],
                    n_threads=self._n_threads,
                )
            watch.lap("draw")
            outputs = self._infer(subsampled, at_once, watch, (n_done, len(cover)))
            for draw_set, result in zip(sets, results, strict=True):
                merge(
                    outputs[draw_set.draws],
                    first_sample=draw_set.first_sample,
                    top=tile.top,
                    left=tile.left,
                    offset=offset,
                    scale=scale,
                    mean=result[0, tile.rows, tile.columns],
                    std=result[1, tile.rows, tile.columns],
                    n_threads=self._n_threads,
                )
            watch.lap("merge")
        mean, std = results[0]
        if len(sets) == 2:
            pool_sets(mean, std, sets, results[1])
        own = float(mean.mean(dtype=np.float64))
        if not math.isfinite(own):
            raise ModelError(
                "the model gives NaN or infinite values for this frame; it may be damaged: export "
                "its checkpoint again, or learn a network from this frame"
            )
        # The frame tells its mean far better than any network: to noise / sqrt(H * W).
        mean += np.float32(offset - own)
        watch.lap("merge")
        return Denoised(mean=mean, std=std, timings=watch.spent)

    def _infer(
        self, subsampled: FloatArray, at_once: int, watch: _Stopwatch, part: tuple[int, int]
    ) -> FloatArray:
        """(M, h, w) sub-samples to (M, H, W) outputs, `at_once` of them at a time.

        `part`: how many such parts of the frame are done, and of how many.
        """
        n_samples, height, width = subsampled.shape
        meta = self.model.metadata
        stride_y, stride_x = meta.pattern.stride
        outputs = self._outputs.shaped(n_samples, height * stride_y, width * stride_x)
        group = meta.pattern.group_size if meta.n_orientations == 8 else n_samples
        for first, count, is_transposed in alike_draws(n_samples, at_once, group):
            draws = slice(first, first + count)
            if is_transposed:
                seen = np.ascontiguousarray(subsampled[draws, None].swapaxes(2, 3))
                turned = self._turned.shaped(len(seen), 1, *outputs.shape[:0:-1])
                watch.lap("draw")
                self.backend.infer(seen, turned)
                watch.lap("infer")
                outputs[draws] = turned[:, 0].swapaxes(1, 2)
                watch.lap("merge")
            else:
                self.backend.infer(subsampled[draws, None], outputs[draws, None])
                watch.lap("infer")
            if self.on_share is not None:
                self.on_share((part[0] + (first + count) / n_samples) / part[1])
        return outputs

    def _tiles(self, shape: Shape, n_samples: int) -> list[Tile]:
        """Cover the frame with tiles that keep to the memory budget."""
        n_pixels = self._memory_budget // self._bytes_per_pixel(1, n_samples)
        meta = self.model.metadata
        return list(tiles(meta, shape, seen_within(meta, shape, n_pixels)))

    def _draws_at_once(self, shape: Shape, n_samples: int) -> int:
        """As many as fit into the memory budget without tiles."""
        rows, columns = self.model.metadata.padded(shape)
        left = self._memory_budget // (rows * columns) - self._bytes_per_pixel(0, n_samples)
        fit = max(left // self.model.metadata.bytes_per_pixel, 1)
        return min(fit, n_samples, DRAWS_AT_ONCE)

    def _bytes_per_pixel(self, at_once: int, n_samples: int) -> int:
        """Of a tile: the network's for each draw at once, and every draw's input and output."""
        float32 = 4
        return at_once * self.model.metadata.bytes_per_pixel + 2 * float32 * n_samples


def check_model(model: ExportedModel) -> None:
    """Raise SettingError where a program gives something else, as a path."""
    if not isinstance(model, ExportedModel):
        raise SettingError(
            f"model is {model!r:.200}, but must be an exported model, as ExportedModel.open(path) "
            "gives"
        )


def check_samples(n_samples: int) -> None:
    """Raise SettingError unless so many draws can be made."""
    is_whole = isinstance(n_samples, (int, np.integer)) and not isinstance(n_samples, bool)
    if not (is_whole and 1 <= n_samples <= MAX_SAMPLES):
        raise SettingError(
            f"n_samples is {n_samples!r}, but must be 1 to {MAX_SAMPLES}, a whole number"
        )


def check_frame(model: ExportedModel, shape: Shape, n_samples: int) -> None:
    """Raise SettingError or FrameError unless the model denoises such frames with as many draws."""
    check_samples(n_samples)
    rows, columns = model.metadata.pad_multiple
    if shape[0] < rows or shape[1] < columns:
        raise FrameError(
            f"frame is {shape[0]} x {shape[1]} pixels, but this model needs at "
            f"least {rows} x {columns}"
        )
