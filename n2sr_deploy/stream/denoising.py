"""The denoiser of a stream: one model after another, changed between two frames."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.cuda.driver import find_driver
from n2sr_deploy.denoiser import Denoiser, check_model, check_samples
from n2sr_deploy.errors import DeviceError, SettingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.opening import open_denoiser
from n2sr_deploy.phantom import counts_to_try
from n2sr_deploy.sampling import checked_key
from n2sr_deploy.stream.base import LiveResult
from n2sr_deploy.stream.fit import Fit
from n2sr_deploy.stream.hot import HotPixels
from n2sr_deploy.version import VERSION

if TYPE_CHECKING:
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.stream.base import LiveFrame

_LIKELY = 512, 512  # pixels of frames to come, where a model does not tell of any
_PREPARED = 2048  # rows or columns, beyond which the first frame takes its time anyway


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """How frames of a stream are denoised, whichever model does it."""

    backend: str = "auto"
    """One of `n2sr_deploy.backends.BACKENDS`, or ``auto``."""
    n_samples: int | None = None
    """M; None: the model's own for live frames."""
    seed: int = 0
    """Of the draws."""
    repair: bool = True
    """Whether pixels that are hot in frame after frame are replaced before a frame is denoised."""

    def __post_init__(self) -> None:
        if self.n_samples is not None:
            check_samples(self.n_samples)
        checked_key(self.seed, 0)


class LoadedModel:
    """A model ready for frames of one shape, and what is told of it.

    Parameters
    ----------
    model
        The exported model.
    name
        What users know it by: its file, or from which frame it was learned.
    options
        How it denoises.
    shape
        (H, W) of the frames to come. One is denoised at once, so that the first that comes is not
        kept waiting by what libraries do when they first run.
    """

    def __init__(
        self, model: ExportedModel, name: str, options: DenoisingOptions, shape: Shape
    ) -> None:
        self.model, self.name, self.shape = model, name, shape
        self._options = options
        meta = model.metadata
        self._n_samples = options.n_samples or meta.n_live_samples
        self._denoiser = open_denoiser(
            model, options.backend, shape=shape, n_samples=self._n_samples
        )
        self.record: dict[str, Any] = {
            "n2sr_version": VERSION,
            "model": name,
            "weights_sha256": meta.weights_sha256,
            "preset": meta.preset,
            "pattern": str(meta.pattern),
            "n_samples": self._n_samples,
            "seed": options.seed,
            "backend": self._denoiser.name,
        }
        try:
            self._denoiser.denoise(counts_to_try(shape), self._n_samples)
        except BaseException:
            self._denoiser.close()
            raise

    def denoise(self, frame: LiveFrame) -> LiveResult:
        """Denoise a frame of this shape."""
        pixels = Frame(pixels=frame.pixels, index=frame.index)
        done = self._denoiser.denoise(pixels, self._n_samples, seed=self._options.seed)
        return LiveResult(noisy=frame, mean=done.mean, std=done.std, record=self.record)

    def for_shape(self, shape: Shape) -> LoadedModel:
        """The same model for frames of another shape; another backend may suit those better."""
        if shape == self.shape or isinstance(self._denoiser, Denoiser):
            return self  # on a CPU any shape will do
        loaded = LoadedModel(self.model, self.name, self._options, shape)
        self.close()
        return loaded

    def close(self) -> None:
        """Release it."""
        self._denoiser.close()


def _has_gpu() -> bool:
    try:
        find_driver()
    except DeviceError:
        return False
    return True


class LiveDenoiser:
    """Denoises the frames of a stream, by whatever model it has been given last.

    Parameters
    ----------
    model
        The exported model; None: frames pass as they are until one is swapped in.
    name
        What users know it by.
    options
        How it denoises.

    Raises
    ------
    SettingError
        When the model or the options are none.
    """

    def __init__(
        self,
        model: ExportedModel | None = None,
        name: str = "",
        options: DenoisingOptions | None = None,
    ) -> None:
        self.options = DenoisingOptions() if options is None else options
        if not isinstance(self.options, DenoisingOptions):
            raise SettingError(f"options is {options!r:.200}, but must be a DenoisingOptions")
        if model is not None:
            check_model(model)
        self._model, self._name = model, name
        self._loaded: LoadedModel | None = None
        self._next: LoadedModel | None = None
        self._lock = threading.Lock()
        self._hot = HotPixels()
        self._fit = Fit(repairs=self.options.repair)

    def prepare(self) -> None:
        """Load the model before the first frame comes, where its shape does not matter: on a CPU.

        What takes a shape's time is done for that of the frame it was learned from.

        Raises
        ------
        ModelError, MissingExtraError
            When no backend can load it.
        """
        if self._model is None or self._loaded is not None or _has_gpu():
            return
        meta = self._model.metadata
        likely = meta.frame_shape or _LIKELY
        rows, columns = (
            max(min(n, _PREPARED), least)
            for n, least in zip(likely, meta.pad_multiple, strict=True)
        )
        self._loaded = LoadedModel(self._model, self._name, self.options, (rows, columns))

    def swap(self, loaded: LoadedModel) -> None:
        """Denoise by another model, from the next frame on; from any thread."""
        with self._lock:
            unused, self._next = self._next, loaded
        if unused is not None:
            unused.close()

    @property
    def _newest(self) -> LoadedModel | None:
        with self._lock:
            return self._next or self._loaded

    @property
    def model_name(self) -> str | None:
        """Of what denoises the next frame."""
        newest = self._newest
        return self._name or None if newest is None else newest.name

    @property
    def model(self) -> ExportedModel | None:
        """What denoises the next frame."""
        newest = self._newest
        return self._model if newest is None else newest.model

    def denoise(self, frame: LiveFrame) -> LiveResult:
        """Denoise a frame.

        Raises
        ------
        FrameError
            When the frame cannot be denoised.
        ModelError, DeviceError
            When the backend fails.
        """
        loaded = self._current(frame.shape)
        if loaded is None:
            mean = Frame(pixels=frame.pixels).pixels.astype(np.float32)
            record = {"n2sr_version": VERSION, "model": None}
            return LiveResult(noisy=frame, mean=mean, std=None, record=record)
        result = self._denoised(loaded, frame)
        if loaded.model is self._model:  # what was learned from this stream fits it
            self._fit.look_at(frame, result.mean, loaded.model.metadata)
        return result

    def _denoised(self, loaded: LoadedModel, frame: LiveFrame) -> LiveResult:
        if not self.options.repair:
            return loaded.denoise(frame)
        pixels, n_hot = self._hot.mended(frame.pixels)
        result = loaded.denoise(replace(frame, pixels=pixels))
        self._hot.look_at(frame.pixels)
        return replace(result, noisy=frame, record={**result.record, "n_hot_pixels": n_hot})

    def _current(self, shape: Shape) -> LoadedModel | None:
        with self._lock:
            new, self._next = self._next, None
        if new is not None:
            if self._loaded is not None:
                self._loaded.close()
            self._loaded = new
            self._hot.begin_anew()
        elif self._loaded is None and self._model is not None:
            self._loaded = LoadedModel(self._model, self._name, self.options, shape)
        if self._loaded is not None:
            self._loaded = self._loaded.for_shape(shape)
        return self._loaded

    def close(self) -> None:
        """Release everything."""
        for loaded in (self._loaded, self._next):
            if loaded is not None:
                loaded.close()
        self._loaded = self._next = None
        self._hot.close()
        self._fit.close()
