"""Dask arrays of frames, denoised lazily: for HyperSpy's lazy signals, and whoever uses Dask.

Needs the extra ``dask``.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from n2sr_deploy.backends import check_backend, ort
from n2sr_deploy.denoiser import check_frame
from n2sr_deploy.errors import FrameError, MissingExtraError
from n2sr_deploy.formats.base import naming
from n2sr_deploy.frame import Frame
from n2sr_deploy.mending import is_blank, mend
from n2sr_deploy.model import ExportedModel, ModelMetadata
from n2sr_deploy.opening import open_denoiser
from n2sr_deploy.whole_frame import put_together

try:
    import dask.array as da
except ModuleNotFoundError as error:
    raise MissingExtraError("n2sr_deploy.dask", "dask", "dask") from error

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.opening import Opened
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray, FloatArray

_MODELS_KEPT = 2  # open in a process at once
_OPENING = threading.Lock()


def denoise(
    array: da.Array,
    model: ExportedModel | str | Path,
    *,
    n_samples: int | None = None,
    seed: int = 0,
    backend: str = "auto",
    repaired: bool = True,
) -> da.Array:
    """Denoise every frame of a Dask array; nothing is done before the result is computed.

    Each process that computes opens the model once, and denoises one frame at a time with all the
    threads it has.

    Parameters
    ----------
    array
        (..., H, W), real numbers in counts. Its last two axes are made one chunk each.
    model
        An exported model, or the path of one; it is read here and goes with the work.
    n_samples
        M, the number of draws, 1 to 1024; None: the model's.
    seed
        0 to 2**63 - 1. With a frame's place among all frames, counted along the last of the
        leading axes fastest, it chooses the frame's draws: they are the same whatever the chunks,
        and those of ``n2sr denoise --stack``.
    backend
        What runs the network, see `open_denoiser`.
    repaired
        Whether hot pixels are replaced and offsets of rows and columns subtracted first, and rows
        that hum displaced are put straight in the result.

    Returns
    -------
    (..., H, W) float32, in counts: the means over the draws; rows and columns at the edges that
    were not measured stay as they are, and of a series constant frames. Deterministic.

    Raises
    ------
    FrameError
        When it is no Dask array, or no array of images; when it is computed, what the denoiser
        raises of a frame.
    InputFileError, ModelError, SettingError, MissingExtraError
        Of the model and the backend.
    """
    if not isinstance(array, da.Array):
        raise FrameError(
            f"denoise takes a Dask array (..., H, W), but was given {type(array).__name__}; wrap "
            "it with dask.array.from_array, or denoise a NumPy array (H, W) with "
            "n2sr_deploy.Denoiser"
        )
    if array.ndim < 2 or 0 in array.shape or any(np.isnan(n) for n in array.shape):
        raise FrameError(
            f"array has shape {array.shape}, but denoise takes frames (..., H, W) of known size"
        )
    if array.dtype.kind not in "biuf":
        raise FrameError(f"array has type {array.dtype}, but denoise takes real numbers")
    check_backend(backend)
    if not isinstance(model, ExportedModel):
        model = ExportedModel.open(model)
    height, width = array.shape[-2:]
    m = model.metadata.n_samples if n_samples is None else n_samples
    check_frame(model, (height, width), m)
    work = _Work(model, n_samples, seed, backend, repaired, array.shape[:-2])
    whole = array.rechunk({array.ndim - 2: -1, array.ndim - 1: -1})
    return whole.map_blocks(work, dtype=np.float32, meta=np.empty((0,) * array.ndim, np.float32))


@dataclass(frozen=True)
class _Work:
    """What is done to a block."""

    model: ExportedModel
    n_samples: int | None
    seed: int
    backend: str
    repaired: bool
    leading: tuple[int, ...]

    def __call__(self, block: AnyArray, block_info: Any = None) -> FloatArray:
        """(..., H, W) noisy, a part of all, to (..., H, W) float32."""
        begins = [begin for begin, _ in block_info[0]["array-location"][:-2]]
        shape: Shape = block.shape[-2:]
        result = np.empty(block.shape, np.float32)
        with _OPENING:
            opened = _opened(self.model.onnx, self.backend, shape, self.n_samples)
        for place in np.ndindex(block.shape[:-2]):
            at = tuple(begin + i for begin, i in zip(begins, place, strict=True))
            index = int(np.ravel_multi_index(at, self.leading)) if at else 0
            with naming("the array", index, math.prod(self.leading)):
                noisy = Frame(pixels=block[place], index=index)
                if self.leading and is_blank(noisy):
                    result[place] = noisy.pixels
                    continue
                mended = mend(noisy, repairs=self.repaired)
                frame = mended.repaired.frame
                with opened.one_at_a_time:
                    done = opened.denoiser.denoise(frame, self.n_samples, seed=self.seed)
            result[place] = put_together(mended, done.mean).mean
        return result


class _Opened(NamedTuple):
    denoiser: Opened
    one_at_a_time: threading.Lock


@functools.lru_cache(maxsize=_MODELS_KEPT)
def _opened(onnx: bytes, backend: str, shape: Shape, n_samples: int | None) -> _Opened:
    """Of this process: opened once, used by all its threads in turn."""
    metadata = ModelMetadata.from_props(ort.metadata_props(onnx), "the model")
    model = ExportedModel(onnx=onnx, metadata=metadata)
    denoiser = open_denoiser(
        model, backend, shape=shape, n_samples=n_samples, n_threads=_threads_here()
    )
    return _Opened(denoiser, threading.Lock())


def _threads_here() -> int:
    """As many as a Dask worker was given; elsewhere 0, one for each core."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return 0
    try:
        return int(distributed.get_worker().state.nthreads)
    except ValueError:  # in no worker
        return 0
