"""One file in, its denoised file out: a frame or a whole stack, with a model or one learned first.

`n2sr denoise`, `n2sr batch` and its Dask workers all come here.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Self

import numpy as np

from n2sr_deploy import formats
from n2sr_deploy.defects import measured_part
from n2sr_deploy.errors import FrameError
from n2sr_deploy.formats.base import choose
from n2sr_deploy.learning import LearnOptions, learn
from n2sr_deploy.mending import mend
from n2sr_deploy.noise import SMALLEST, choose_pattern, measure_noise
from n2sr_deploy.uncertainty import standard_error
from n2sr_deploy.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from n2sr_deploy.denoiser import Denoised
    from n2sr_deploy.formats.base import FrameFile
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.learning import Progress
    from n2sr_deploy.mending import Mended
    from n2sr_deploy.model import ModelMetadata
    from n2sr_deploy.noise import Noise
    from n2sr_deploy.opening import Denoisers, Opened
    from n2sr_deploy.sampling import AnyArray, FloatArray
    from n2sr_deploy.uncertainty import Uncertainty

    OpensTraining = Callable[[], AbstractContextManager[Progress]]
    OnResult = Callable[["FrameResult"], None]

_log = logging.getLogger("n2sr")
_TOLD_CLIPPED, _TOLD_SHIFT = 1e-3, 1e-3  # shares from which rounding is worth a warning
_REPAIRED = (
    "hot pixels replaced by the median of their surroundings and offsets of rows and columns "
    "subtracted in each frame that had them"
)


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions:
    """How files are denoised."""

    model: str | None = None
    """Path of an exported model; None: a network is learned first."""
    n_samples: int | None = None
    """M, the number of draws, 1 to 1024; None: the model's."""
    backend: str = "auto"
    """One of `n2sr_deploy.backends.BACKENDS`, or ``auto``."""
    signal: str | None = None
    """Which of a file's signals; None: the only one."""
    stack: bool = False
    """Whether all frames of a file are denoised, into a file with the same axes; else one is."""
    frame: int | None = None
    """Which frame, from 0; None: the only one. Of a stack, the frame to learn from; None: the
    middle one."""
    per_frame: bool = False
    """Whether each frame of a stack learns a network of its own."""
    dtype: Literal["float32", "same"] = "float32"
    """``same``: integer pixels become integers of their own type, by rounding and clipping."""
    learn: LearnOptions = field(default_factory=LearnOptions)
    """Of the training; its `repair` and `seed` hold with a model too."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what JSON kept."""
        learn = dict(values["learn"])
        if learn["stride"] is not None:
            learn["stride"] = tuple(learn["stride"])
        return cls(**{**values, "learn": LearnOptions(**learn)})


@dataclass(frozen=True, kw_only=True)
class DenoisedFile:
    """What was made of a file."""

    outputs: tuple[Path, ...]
    """The denoised frames and, where it was asked for, their spread."""
    n_frames: int
    n_samples: int
    """M."""
    backend: str
    """What ran the network, by its full name."""


class FrameResult(NamedTuple):
    """A frame and what became of it, while the denoiser is open."""

    noisy: Frame
    """The measured part of it."""
    mended: Frame
    denoised: Denoised
    denoiser: Opened
    n_samples: int
    seed: int
    uncertainty: Uncertainty | None
    """The calibrated standard error, where it was asked for."""


@contextmanager
def _unseen() -> Iterator[Progress]:
    """A training that nobody watches."""
    yield lambda _: None


def denoise_file(
    noisy: Path,
    output: Path,
    options: DenoiseOptions,
    denoisers: Denoisers,
    *,
    std: Path | None = None,
    overwrite: bool = False,
    training: OpensTraining = _unseen,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
    on_result: OnResult = lambda result: None,
) -> DenoisedFile:
    """Denoise a frame, or all frames of a stack, from file to file.

    The frames are read, denoised and written one at a time. Each is mended as a single one is and
    draws with its own index, so that frame 3 of a stack becomes the same alone and among others.

    Parameters
    ----------
    noisy, output
        The files. `output` appears whole or not at all.
    options
        What is done.
    denoisers
        Opens the model, or has it open.
    std
        Where the calibrated standard error of each pixel goes, float32; None: nowhere.
    overwrite
        Whether `output` and `std` may be replaced.
    training
        Gives what is called after each step of a training, as a context manager that lasts as
        long as the training.
    on_frame
        Called with the frames done and their number after each.
    on_result
        Called with each frame's result before it is written.

    Returns
    -------
    What was made. The same bytes for the same options and file.

    Raises
    ------
    N2SRError
        What `open_frames`, `learn`, `open_denoiser`, `denoise` and `write_frames` raise; of a
        frame among several, FrameError names it.
    """
    with formats.open_frames(noisy, options.signal) as opened, ExitStack() as closing:
        dtype = _kept_type(opened, options)
        if dtype is not None:
            formats.check_type(output, dtype)  # before any work
        work = _Work(opened, options, denoisers, training, closing, std is not None, on_result)
        spread = closing.enter_context(_spread(std))
        axes = opened.axes if options.stack else ()
        each = list(opened.acquisitions()) if options.stack else None
        results = work.results(spread, on_frame)
        formats.write_frames(
            output, results, axes, dtype=dtype, acquisitions=each, overwrite=overwrite
        )
        if std is not None and spread is not None:
            spreads = work.spreads(spread)
            formats.write_frames(std, spreads, axes, acquisitions=each, overwrite=overwrite)
        work.tell()
    return DenoisedFile(
        outputs=(output,) if std is None else (output, std),
        n_frames=len(work.indexes),
        n_samples=work.n_samples,
        backend=work.backend,
    )


@contextmanager
def _spread(std: Path | None) -> Iterator[BinaryIO | None]:
    """Where the spreads wait while the denoised frames are written: a nameless file beside them."""
    if std is None:
        yield None
        return
    with tempfile.TemporaryFile(dir=std.parent, prefix=".n2sr-") as file:
        yield file


def _kept_type(opened: FrameFile, options: DenoiseOptions) -> np.dtype[Any] | None:
    """The integers that results are rounded to; None: they are float32."""
    is_integer = options.dtype == "same" and opened.dtype.kind in "iu"
    return opened.dtype.newbyteorder("=") if is_integer else None


def _noise_of(mended: Mended, model: ModelMetadata) -> Noise | None:
    """The frame's noise; a warning where the model was trained for noise of another kind.

    A model that keeps rows apart does no harm where the noise is white; one that does not leaves
    streaks where it is not.
    """
    if min(mended.noisy.shape) < SMALLEST:
        return None
    noise = measure_noise(mended.noisy, repaired=mended.repaired)
    pattern, _, why = choose_pattern(noise)
    if pattern.name not in ("cell", model.pattern.name):
        _log.warning(
            "%s; but the model was trained with pattern %s: noise may stay. "
            "Train one on a frame of this kind",
            why,
            model.pattern,
        )
    return noise


class _Rounding:
    """What rounding to integers did to the intensities."""

    def __init__(self) -> None:
        self._n_pixels = self._n_clipped = 0
        self._before = self._after = 0.0

    def add(self, before: AnyArray, after: AnyArray) -> None:
        """Of one frame more."""
        self._n_pixels += before.size
        self._n_clipped += int(np.count_nonzero(np.abs(before - after.astype(np.float64)) > 0.5))
        self._before += float(before.sum(dtype=np.float64))
        self._after += float(after.sum(dtype=np.float64))

    def tell(self) -> None:
        """Warn where it changed them."""
        if not self._n_pixels:
            return
        clipped = self._n_clipped / self._n_pixels
        shift = abs(self._after - self._before) / max(abs(self._before), 1e-30)
        if clipped > _TOLD_CLIPPED or shift > _TOLD_SHIFT:
            _log.warning(
                "--dtype same clipped %.2g %% of the pixels and rounded the rest: the mean went "
                "from %.4g to %.4g; leave it out to keep the intensities",
                100 * clipped,
                self._before / self._n_pixels,
                self._after / self._n_pixels,
            )


class _Work:
    """The frames of one file on their way."""

    n_samples = 0
    backend = ""

    def __init__(
        self,
        opened: FrameFile,
        options: DenoiseOptions,
        denoisers: Denoisers,
        training: OpensTraining,
        closing: ExitStack,
        calibrates: bool,
        on_result: OnResult,
    ) -> None:
        self._calibrates, self._on_result = calibrates, on_result
        self._opened, self._options, self._denoisers = opened, options, denoisers
        self._training = training
        self._closing = closing
        self._first: Frame | None = None
        self._mended: list[str] = []
        self._noise: Noise | None = None  # of the first frame, where a model is given
        self._rounding = _Rounding()
        self._uncertainties: list[str] = []
        self.indexes: Sequence[int] = (
            range(len(opened))
            if options.stack
            else [choose(opened.path, len(opened), options.frame)]
        )
        self._learned_from = self._frame_to_learn_from()
        self._of_all = None if options.per_frame else self._open_for_all()

    def _frame_to_learn_from(self) -> int | None:
        options, n_frames = self._options, len(self._opened)
        if options.model is not None or options.per_frame:
            return None
        if not options.stack:
            return self.indexes[0]
        return choose(
            self._opened.path, n_frames, n_frames // 2 if options.frame is None else options.frame
        )

    def _open_for_all(self) -> Opened:
        """The denoiser of every frame: the model's, or that of the frame to learn from."""
        options = self._options
        if self._learned_from is not None:
            if len(self.indexes) > 1:
                _log.info("learning from frame %d of %d", self._learned_from, len(self.indexes))
            return self._learned(self._opened.read(self._learned_from), self._closing)
        shape = self._opened.shape
        return self._denoisers.of_file(
            str(options.model), options.backend, shape, options.n_samples
        )

    def _learned(self, frame: Frame, closing: ExitStack) -> Opened:
        options = self._options
        frame = frame.cropped(*measured_part(frame.pixels))
        with self._training() as progress:
            model = learn(frame, options.learn, progress)
        denoiser = self._denoisers.of_model(model, options.backend, frame.shape, options.n_samples)
        closing.callback(denoiser.close)
        return denoiser

    def results(
        self, spread: BinaryIO | None, on_frame: Callable[[int, int], None]
    ) -> Iterator[Frame]:
        """The denoised frames; their spreads go into a file meanwhile."""
        for n_done, index in enumerate(self.indexes, 1):
            try:
                frame, std = self._denoised(self._opened.read(index))
            except FrameError as error:
                if len(self.indexes) == 1:
                    raise
                raise FrameError(
                    f"{self._opened.path}, frame {index} of {len(self.indexes)}: {error}"
                ) from error
            if spread is not None and std is not None:
                spread.write(np.ascontiguousarray(std, np.float32).data)
            self._first = self._first or frame
            yield frame
            on_frame(n_done, len(self.indexes))

    def _denoised(self, noisy: Frame) -> tuple[Frame, FloatArray | None]:
        options = self._options
        mended = mend(noisy, repairs=options.learn.repair)
        measured, repaired = mended.noisy, mended.repaired
        if repaired.describe():
            self._mended.append(repaired.describe())
        seed = options.learn.seed or 0
        with ExitStack() as closing:
            denoiser = self._of_all or self._learned(measured, closing)
            self.n_samples = options.n_samples or denoiser.model.metadata.n_samples
            self.backend = denoiser.name
            if options.model is not None and self._noise is None:
                self._noise = _noise_of(mended, denoiser.model.metadata)
            denoise = partial(denoiser.denoise, n_samples=self.n_samples, seed=seed)
            denoised = denoise(repaired.frame)
            found = standard_error(repaired.frame, denoised, denoise) if self._calibrates else None
            self._on_result(
                FrameResult(
                    measured, repaired.frame, denoised, denoiser, self.n_samples, seed, found
                )
            )
            told = self._told(noisy, mended.history, denoiser, "mean")
        result = replace(noisy, pixels=mended.put_back(denoised.mean), **told)
        dtype = _kept_type(self._opened, options)
        if dtype is not None:
            rounded = result.rounded_to(dtype)
            self._rounding.add(result.pixels, rounded.pixels)
            result = rounded
        if found is None:
            return result, None
        self._uncertainties.append(found.describe())
        return result, mended.put_back(found.standard_error, 0.0)

    def _told(
        self, noisy: Frame, history: tuple[str, ...], denoiser: Opened, what: str
    ) -> dict[str, Any]:
        """History and record of a result."""
        options, meta = self._options, denoiser.model.metadata
        n_frames, seed = len(self._opened), options.learn.seed or 0
        which = f"frame {noisy.index} of {n_frames}"
        weights: str | None = meta.weights_sha256
        if len(self.indexes) > 1:
            which = f"frames 0 to {n_frames - 1}"
            history = (*noisy.history, _REPAIRED) if options.learn.repair else noisy.history
            weights = None if options.per_frame else weights
        by = f"weights {weights[:12]}" if weights else "each frame's own weights"
        done = (
            f"n2sr {VERSION}: {what} of {self.n_samples} draws, seed {seed}, {which}, "
            f"preset {meta.preset}, pattern {meta.pattern}, {by}, {denoiser.name}"
        )
        found = dict(meta.noise) if meta.noise and weights else None
        record = {
            "version": VERSION,
            "result": what,
            "frames": which,
            "weights_sha256": weights,
            "preset": meta.preset,
            "pattern": str(meta.pattern),
            "n_samples": self.n_samples,
            "seed": seed,
            "backend": denoiser.name,
            "repair": options.learn.repair,
            "dtype": options.dtype,
            "learned_from_frame": self._learned_from,
            "noise": found if self._noise is None else self._noise.to_dict(),
        }
        return {
            "history": (*history, done),
            "metadata": {**noisy.metadata, "n2sr": record},
        }

    def spreads(self, file: BinaryIO) -> Iterator[Frame]:
        """What `results` put aside, as frames that tell what they are."""
        if self._first is None:
            return
        first, size = self._first, int(np.prod(self._opened.shape))
        what = "standard error"
        record = {**first.metadata["n2sr"], "result": what, "dtype": "float32"}
        done = first.history[-1].replace(": mean of ", f": {what} of ", 1)
        told: dict[str, Any] = {
            "history": (*first.history[:-1], done),
            "metadata": {**first.metadata, "n2sr": record},
        }
        file.seek(0)
        for _ in self.indexes:
            pixels = np.frombuffer(file.read(4 * size), np.float32).reshape(self._opened.shape)
            yield replace(first, pixels=pixels, **told)

    def tell(self) -> None:
        """Log what a user would not see in the result."""
        self._rounding.tell()
        if len(self._uncertainties) == 1:
            _log.info("%s", self._uncertainties[0])
        self._tell_mended()

    def _tell_mended(self) -> None:
        """What was taken out of the frames, where no training has told it."""
        if not self._mended or (self._options.model is None and len(self.indexes) == 1):
            return
        if len(self.indexes) == 1:
            _log.info("mended: %s", self._mended[0])
        else:
            _log.info(
                "mended: hot pixels or offsets of lines in %d of %d frames",
                len(self._mended),
                len(self.indexes),
            )
