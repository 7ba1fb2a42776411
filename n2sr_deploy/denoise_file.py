"""One file in, its denoised file out: a frame or a whole stack, with a model or one learned first.

`n2sr denoise`, `n2sr batch` and its Dask workers all come here.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from n2sr_deploy import files, formats
from n2sr_deploy.defects import measured_part
from n2sr_deploy.denoiser import Denoiser
from n2sr_deploy.errors import OutputError
from n2sr_deploy.formats.base import choose, naming
from n2sr_deploy.learning import LEARNED, learn
from n2sr_deploy.mending import is_blank, mend
from n2sr_deploy.provenance import Provenance, constant_frames, of_standard_error
from n2sr_deploy.uncertainty import standard_error
from n2sr_deploy.whole_frame import put_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from n2sr_deploy.denoise_options import DenoiseOptions
    from n2sr_deploy.denoiser import Denoised
    from n2sr_deploy.formats.base import FrameFile
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.learning import Progress
    from n2sr_deploy.mending import Mended
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.opening import Denoisers, Opened
    from n2sr_deploy.sampling import FloatArray
    from n2sr_deploy.uncertainty import Uncertainty

    OpensTraining = Callable[[], AbstractContextManager[Progress]]
    OnLearned = Callable[[ExportedModel], None]
    OnResult = Callable[["FrameResult"], None]

_log = logging.getLogger("n2sr")
_OR_ALL = ", or denoise all with --stack"


@dataclass(frozen=True, kw_only=True)
class DenoisedFile:
    """What was made of a file."""

    outputs: tuple[Path, ...]
    """The denoised frames and, where it was asked for, their standard errors."""
    n_frames: int
    n_samples: int
    """M."""
    backend: str
    """What ran the network, by its full name."""


class FrameResult(NamedTuple):
    """A frame and what became of it, while the denoiser is open."""

    mended: Mended
    denoised: Denoised
    """Of its measured part."""
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
    on_learned: OnLearned = lambda model: None,
    on_frame: Callable[[float, int], None] = lambda done, total: None,
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
    on_learned
        Called with each model that was learned, before a frame is denoised with it.
    on_frame
        Called with the frames done, shares of one included, and their number.
    on_result
        Called with each frame's result before it is written.

    Returns
    -------
    What was made. The same bytes for the same options and file.

    Raises
    ------
    N2SRError
        What `open_frames`, `learn`, `open_denoiser`, `denoise` and `write_frames` raise;
        FrameError names the file, and the frame where there are several.
    """
    with formats.open_frames(noisy, options.signal) as opened, ExitStack() as closing:
        dtype = _kept_type(opened, options)
        if dtype is not None:
            formats.check_type(output, dtype)  # before any work
        aside = closing.enter_context(_put_aside_for(std))  # before minutes of training
        work = _Work(
            opened=opened,
            options=options,
            denoisers=denoisers,
            training=training,
            on_learned=on_learned,
            closing=closing,
            std=std,
            on_result=on_result,
            on_frame=on_frame,
        )
        axes = opened.axes if options.stack else ()
        each = list(opened.acquisitions()) if options.stack else None
        results = work.results(aside)
        formats.write_frames(
            output, results, axes, dtype=dtype, acquisitions=each, overwrite=overwrite
        )
        if std is not None and aside is not None:
            errors = work.standard_errors(aside)
            formats.write_frames(std, errors, axes, acquisitions=each, overwrite=overwrite)
        work.provenance.tell()
    return DenoisedFile(
        outputs=(output,) if std is None else (output, std),
        n_frames=len(work.indexes),
        n_samples=work.n_samples,
        backend=work.backend,
    )


@contextmanager
def _put_aside_for(std: Path | None) -> Iterator[BinaryIO | None]:
    """A nameless file where standard errors wait until the denoised frames are written."""
    if std is None:
        yield None
        return
    try:
        file = tempfile.TemporaryFile(dir=std.parent, prefix=".n2sr-")  # noqa: SIM115 closed below
    except OSError as error:
        raise OutputError(f"cannot write {std}: {files.why(error)}; choose another name") from error
    try:
        yield file
    finally:
        with suppress(OSError):  # on a full disk, which has been told already
            file.close()


def _kept_type(opened: FrameFile, options: DenoiseOptions) -> np.dtype[Any] | None:
    """The integers that results are rounded to; None: they are float32."""
    is_integer = options.dtype == "same" and opened.dtype.kind in "iu"
    return opened.dtype.newbyteorder("=") if is_integer else None


@dataclass(kw_only=True, eq=False)
class _Work:
    """The frames of one file on their way."""

    opened: FrameFile
    options: DenoiseOptions
    denoisers: Denoisers
    training: OpensTraining
    on_learned: OnLearned
    closing: ExitStack
    """Closes what was opened for all frames."""
    std: Path | None
    on_result: OnResult
    on_frame: Callable[[float, int], None]
    n_samples: int = field(init=False, default=0)
    backend: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Read the first frame, and open what denoises all."""
        opened, options = self.opened, self.options
        self._first: Frame | None = None
        self._n_done = self._n_passes = 0  # frames, and passes over the one at hand
        self.indexes: Sequence[int] = (
            range(len(opened))
            if options.stack
            else [choose(opened.path, len(opened), options.frame, or_else=_OR_ALL)]
        )
        self._ahead, self._blank = self._looked_at()
        self._learned_from = self._frame_to_learn_from()
        self.provenance = Provenance(
            options, len(opened), self.indexes, self._learned_from, self._blank
        )
        self._of_all = None if options.per_frame else self._open_for_all()

    def _looked_at(self) -> tuple[dict[int, Frame], list[int]]:
        """The first frame to denoise, and which of a stack are blank.

        What is refused is told before a network is learned or opened.
        """
        if len(self.indexes) > 1:
            _log.info("looking at %d frames first", len(self.indexes))
        ahead: dict[int, Frame] = {}
        blank = []
        for index in self.indexes:
            frame = self.opened.read(index)
            if is_blank(frame):
                blank.append(index)
            elif not ahead:
                ahead = {index: frame}
        if not ahead:
            self._read(self.indexes[0])
        if blank:
            _log.warning("%s", constant_frames(blank))
        return ahead, blank

    def _read(self, index: int) -> Frame:
        """The frame, unless there is nothing to learn from it or to denoise."""
        frame = self.opened.read(index)
        with self._naming(index):
            frame.cropped(*measured_part(frame.pixels)).check_varies()
        return frame

    def _naming(self, index: int) -> AbstractContextManager[None]:
        return naming(self.opened.path, index, len(self.opened))

    def _frame_to_learn_from(self) -> int | None:
        options, n_frames = self.options, len(self.opened)
        if options.model is not None or options.per_frame:
            return None
        if not options.stack:
            return self.indexes[0]
        if options.frame is not None:
            return choose(self.opened.path, n_frames, options.frame)
        from_middle = sorted(self.indexes, key=lambda index: abs(index - n_frames // 2))
        return next(index for index in from_middle if index not in self._blank)

    def _open_for_all(self) -> Opened:
        """The denoiser of every frame: the model's, or that of the frame to learn from."""
        options = self.options
        if self._learned_from is not None:
            frame = self._ahead.get(self._learned_from) or self._read(self._learned_from)
            return self._learned(frame, self.closing)
        shape = self.opened.shape
        with naming(self.opened.path, 0, 1):  # too small, all of them
            return self.denoisers.of_file(
                str(options.model), options.backend, shape, options.n_samples
            )

    def _learned(self, frame: Frame, closing: ExitStack) -> Opened:
        options = self.options
        frame = frame.cropped(*measured_part(frame.pixels))
        if len(self.indexes) > 1:
            _log.info("learning from frame %d of %d", frame.index, len(self.indexes))
        with self._naming(frame.index), self.training() as progress:
            model, told = learn(frame, options.learn, progress)
        _log.info("%s%s", LEARNED, told)
        self.on_learned(model)
        denoiser = self.denoisers.of_model(model, options.backend, frame.shape, options.n_samples)
        closing.callback(denoiser.close)
        return denoiser

    def results(self, aside: BinaryIO | None) -> Iterator[Frame]:
        """The denoised frames; their standard errors go into a file meanwhile."""
        ((begin, noisy),) = self._ahead.items()
        with self._naming(begin):
            first = self._denoised(noisy)
        self._first = first[0]
        for n_done, index in enumerate(self.indexes, 1):
            with self._naming(index):
                frame, std = first if index == begin else self._result(index)
            if aside is not None and std is not None:
                self._put_aside(aside, std)
            yield frame
            self._n_done = n_done
            self.on_frame(n_done, len(self.indexes))

    def _result(self, index: int) -> tuple[Frame, FloatArray | None]:
        """A blank frame as it is, any other denoised."""
        noisy = self.opened.read(index)
        if self._first is None or index not in self._blank:
            return self._denoised(noisy)
        kept = noisy.rounded_to(_kept_type(self.opened, self.options) or np.dtype(np.float32))
        told = replace(self._first, pixels=kept.pixels, index=index)
        return told, None if self.std is None else np.zeros(noisy.shape, np.float32)

    def _tell_share(self, share: float) -> None:
        """Of a pass over the frame at hand, which may be so large that each takes minutes."""
        done = (self._n_passes + share) / (1 if self.std is None else 2)
        self._n_passes += share == 1
        if done < 1:  # a report's own passes are not counted
            self.on_frame(self._n_done + done, len(self.indexes))

    def _put_aside(self, aside: BinaryIO, std: FloatArray) -> None:
        try:
            aside.write(np.ascontiguousarray(std, np.float32).data)
            aside.flush()
        except OSError as error:
            raise OutputError(
                f"cannot write {self.std}: {files.why(error)}; no part of it is left"
            ) from error

    def _denoised(self, noisy: Frame) -> tuple[Frame, FloatArray | None]:
        options = self.options
        mended = mend(noisy, repairs=options.learn.repair)
        repaired = mended.repaired.frame
        seed = options.learn.seed or 0
        self._n_passes = 0
        with ExitStack() as closing:
            denoiser = self._of_all or self._learned(mended.noisy, closing)
            model = denoiser.model.metadata
            self.n_samples = options.n_samples or model.n_samples
            self.backend = denoiser.name
            self.provenance.add_frame(mended, model)
            if isinstance(denoiser, Denoiser):
                denoiser.on_share = self._tell_share
                closing.callback(setattr, denoiser, "on_share", None)
            denoise = partial(denoiser.denoise, n_samples=self.n_samples, seed=seed)
            denoised = denoise(repaired)
            self.provenance.add_denoised(mended, denoised.mean)
            found = None
            if self.std is not None:
                if self._first is None:
                    _log.info("measuring the standard error, by denoising once more")
                found = standard_error(repaired, denoised, denoise)
            self.on_result(FrameResult(mended, denoised, denoiser, self.n_samples, seed, found))
        whole = put_together(mended, denoised.mean)
        self.provenance.add_hum(whole.hum)
        result = replace(noisy, pixels=whole.mean)
        dtype = _kept_type(self.opened, options)
        if dtype is not None:
            rounded = result.rounded_to(dtype)
            self.provenance.rounding.add(result.pixels, rounded.pixels)
            result = rounded
        result = self.provenance.of_result(result, mended, model, self.n_samples, self.backend)
        if found is None:
            return result, None
        self.provenance.add_uncertainty(found)
        return result, whole.std(found.standard_error)

    def standard_errors(self, file: BinaryIO) -> Iterator[Frame]:
        """What `results` put aside, as frames that tell what they are."""
        if self._first is None:
            return
        told, size = of_standard_error(self._first), int(np.prod(self.opened.shape))
        file.seek(0)
        for _ in self.indexes:
            pixels = np.frombuffer(file.read(4 * size), np.float32).reshape(self.opened.shape)
            yield replace(told, pixels=pixels)
