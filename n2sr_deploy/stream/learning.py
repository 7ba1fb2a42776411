"""Learning while live: a network is trained on a frame of the stream, beside it.

The training runs in a process of its own (`training_process`), and files are all that is exchanged.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from n2sr_deploy.errors import N2SRError, OutputError, SettingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.model import ExportedModel
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.stream.denoising import LoadedModel
from n2sr_deploy.stream.residual import ResidualWatch
from n2sr_deploy.stream.training_process import TOO_EARLY, TrainingFailedError, TrainingProcess

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.learning import LearnOptions
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.stream.base import LiveResult
    from n2sr_deploy.stream.denoising import LiveDenoiser

_log = logging.getLogger("n2sr")
_TRY_AGAIN_S = 30.0  # after a training that failed
_TICK_S = 0.02  # how often it is looked whether a training has ended


class LiveLearner:
    """Trains on frames of a stream and swaps what was learned into its denoiser.

    A context manager; left by Ctrl-C, it gives up what a training has learned.

    Parameters
    ----------
    denoiser
        Of the stream; while it has no model, a training begins with the next frame.
    options
        Of the trainings.
    relearns
        Whether to train again, from the weights in use, when the residual shows that the scene or
        the dose has changed.
    keep
        An .onnx file for what is learned: each network that is swapped in, or, where the stream
        ends before the first, the best so far. None: all is forgotten at the end.
    overwrite
        Whether a file that is there already may be replaced.

    Raises
    ------
    SettingError
        When no training could be begun with the options. Where any are named and a training may
        come, a process is asked about them, which takes seconds.
    """

    def __init__(
        self,
        denoiser: LiveDenoiser,
        options: LearnOptions,
        *,
        relearns: bool = False,
        keep: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self._denoiser, self._options, self._relearns = denoiser, options, relearns
        self._keep, self._overwrite = keep, overwrite
        self.has_kept = False
        """Whether something that was learned here is in the file for it."""
        self._why_not = "no training was begun"
        self._waiting: TrainingProcess | None = None
        is_first = denoiser.model is None
        if is_first or (relearns and options.named):  # else each would fail, twice a minute
            try:
                self._waiting = self._ready_for_the_first(learns_at_once=is_first)
            except TrainingFailedError as error:
                raise SettingError(str(error)) from error
            except OSError as error:
                raise SettingError(f"no training can be begun: {error}") from error
        self._starts_from_what_is_in_use = True
        self._thread: threading.Thread | None = None
        self._training: TrainingProcess | None = None  # that runs, not one before
        self._is_taken = False  # it has ended, and nothing keeps it from being used and kept
        self._is_closed = self._is_given_up = False
        self._closing = threading.Lock()  # a second signal would end what the first one asks for
        self._not_before_s = 0.0
        self._has_told_of_blank = False
        self._watch = ResidualWatch()
        self.n_begun = 0
        """Trainings."""
        self.n_learned = 0
        """Models that were swapped in."""

    def _ready_for_the_first(self, *, learns_at_once: bool) -> TrainingProcess | None:
        """Have a training wait for the first frame, if one comes; check whether any could begin."""
        training = TrainingProcess(self._options, self._options.preset, self._options.init)
        with ExitStack() as unless_it_waits:
            unless_it_waits.callback(training.close)
            if self._options.named:
                training.wait_until_checked()
            if learns_at_once:
                unless_it_waits.pop_all()
                return training
        return None

    @property
    def is_training(self) -> bool:
        """Whether a training runs now."""
        return self._thread is not None and self._thread.is_alive()

    def observe(self, result: LiveResult) -> None:
        """Look at a result; begin to train if that is needed. Quick, in the stream's thread."""
        if self.is_training or self._is_closed or time.monotonic() < self._not_before_s:
            return
        if self._denoiser.model_name is None:
            if not self._is_blank(result):
                self._begin(result, "")
        elif (
            self._relearns
            and result.std is not None
            and self._watch.sees_change(result)
            and not self._is_blank(result)
        ):
            _log.info("the scene or the dose has changed at frame %d", result.noisy.index)
            self._begin(result, "re")

    def _is_blank(self, result: LiveResult) -> bool:
        """Whether there is nothing to learn from, as before the beam is on."""
        is_blank = Frame(pixels=result.noisy.pixels).is_constant
        if is_blank and not self._has_told_of_blank:
            self._has_told_of_blank = True
            index = result.noisy.index
            _log.info("frame %d is blank; the next that is not is learned from", index)
        return is_blank

    def _begin(self, result: LiveResult, prefix: str) -> None:
        noisy = result.noisy
        frame = Frame(
            pixels=noisy.pixels.copy(),
            pixel_size=noisy.pixel_size,
            unit=noisy.unit,
        )
        _log.info("learning from frame %d; frames go on meanwhile", noisy.index)
        name = f"{prefix}learned from frame {noisy.index}"
        self.n_begun += 1
        self._training, self._is_taken = None, False
        self._thread = threading.Thread(
            target=self._learn, args=(frame, name), name="n2sr learner", daemon=True
        )
        self._thread.start()

    def _learn(self, frame: Frame, name: str) -> None:
        while True:
            preset, start = self._start()
            try:
                model = self._next_training(preset, start).learn(frame)
                if self._ends_with(model):
                    return
                loaded = LoadedModel(model, name, self._denoiser.options, frame.shape)
                if self._ends_with(model, else_takes=True):
                    loaded.close()
                    return
                break
            except (N2SRError, OSError, TrainingFailedError) as error:
                self._why_not = str(error)
                if self._is_closed:
                    return
                if isinstance(start, ExportedModel):
                    _log.warning("nothing was learned from the model in use: %s", error)
                    self._starts_from_what_is_in_use = False  # now: it may be what does not fit
                    self._training = None
                    continue
                _log.warning(
                    "nothing was learned: %s; it is tried again in %d s", error, _TRY_AGAIN_S
                )
                self._not_before_s = time.monotonic() + _TRY_AGAIN_S
                return
        self._starts_from_what_is_in_use = True
        self.n_learned += 1
        self._watch = ResidualWatch()
        self._denoiser.swap(loaded)
        _log.info("from now on the model %s", name)
        self._write(model)

    def _ends_with(self, model: ExportedModel, *, else_takes: bool = False) -> bool:
        """Whether the stream has ended, and with what was learned meanwhile."""
        with self._closing:
            is_closed = self._is_closed
            self._is_taken = else_takes and not is_closed
        if is_closed and self._writes_at_the_end:
            self._write(model)
        return is_closed

    @property
    def _writes_at_the_end(self) -> bool:
        """Whether a training that had not ended is kept: never in the place of one that had."""
        return self._keep is not None and not self.has_kept and not self._is_given_up

    def _write(self, model: ExportedModel) -> None:
        if self._keep is None or self._is_given_up:
            return
        try:
            model.save(self._keep, overwrite=self._overwrite or self.has_kept)
        except OutputError as error:
            self._why_not = str(error)
            if not self._is_closed:  # else it is told at once
                _log.warning("what was learned is not kept: %s", error)
            return
        self.has_kept = True
        _log.info("%s: %s", self._keep, model.describe())

    def _next_training(
        self, preset: str | None, start: str | Path | ExportedModel | None
    ) -> TrainingProcess:
        """The one that has waited for a frame, or another."""
        with self._closing:
            if self._is_closed:
                raise TrainingFailedError(TOO_EARLY)
            waiting, self._waiting = self._waiting, None
            is_as_asked = (preset, start) == (self._options.preset, self._options.init)
            if waiting is not None and (waiting.has_ended or not is_as_asked):
                waiting.close()
                waiting = None
            self._training = waiting or TrainingProcess(self._options, preset, start)
            return self._training

    def _start(self) -> tuple[str | None, str | Path | ExportedModel | None]:
        """The preset of a training and what it starts from.

        The model in use, unless the user named another preset or pattern, or it was of no use just
        before; the first training from what the user named.
        """
        asked, model = self._options, self._denoiser.model
        is_first = self.n_learned == 0 and asked.init is not None
        if model is None or is_first or not self._starts_from_what_is_in_use:
            return asked.preset, asked.init
        pattern = model.metadata.pattern
        if asked.pattern not in (None, pattern.name):
            return asked.preset, asked.init
        if asked.stride is not None and not _is_stride_of(pattern, asked.stride):
            return asked.preset, asked.init
        preset = model.metadata.preset
        if asked.preset not in (None, preset):
            return asked.preset, asked.init
        return preset, model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(at_once=kind is not None and not issubclass(kind, Exception))

    def close(self, *, at_once: bool = False) -> None:
        """End a training that runs, and keep the best so far where that was asked for.

        Interrupted, or `at_once`, nothing more is kept. Where nothing was, that is told.
        """
        if self._is_closed:
            return
        self._is_closed, self._is_given_up = True, at_once  # whatever interrupts the rest
        try:
            with self._closing:
                if self.is_training and not self._is_taken:
                    self._end_training()
            self._wait()
        except BaseException:
            self._is_given_up = True
            raise
        finally:
            with self._closing:  # so that no other process begins
                if self._training is not None:
                    self._training.kill()
                if self._waiting is not None:
                    self._waiting.close()
            self._wait()
            self._tell_what_is_not_kept()

    def _wait(self) -> None:
        while self.is_training:  # after an interrupted join, Python 3.11 takes it for ended
            time.sleep(_TICK_S)

    def _end_training(self) -> None:
        training = self._training
        has_learned = training is not None and training.has_learned
        had = f"a training had {'just' if has_learned else 'not'} ended; what it has learned"
        if self._writes_at_the_end and (has_learned or os.name != "nt"):
            learned = had if has_learned else f"{had}, if anything,"
            _log.warning("%s goes to %s (Ctrl-C gives it up)", learned, self._keep)
            if training is not None and not has_learned:
                training.end()
            return
        told = f" ({self._keep} stays)" if self.has_kept else ""
        told = " (name a file for it with --keep)" if self._keep is None else told
        _log.warning("%s is lost%s", had, told)
        if training is not None:
            training.kill()  # without a word: it would say that it keeps what is lost here

    def _tell_what_is_not_kept(self) -> None:
        if self._keep is None or self.has_kept:
            return
        stays = ", which stays as it was" if self._keep.exists() else ""
        why = "it was ended at once" if self._is_given_up else self._why_not
        _log.warning("nothing was kept in %s%s: %s", self._keep, stays, why)


def _is_stride_of(pattern: SamplingPattern, stride: Shape) -> bool:
    """Whether a user who names it means this pattern's."""
    try:
        return SamplingPattern.named(pattern.name, stride) == pattern
    except SettingError:  # of both axes, for whole lines
        return False
