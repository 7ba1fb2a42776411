"""Learning while live: a network is trained on a frame of the stream, beside it.

The training runs as commands of n2sr in a process of its own, at a lower priority: it shares
neither Python nor its lock with the stream, and ends with it, even when that is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy import formats
from n2sr_deploy.errors import N2SRError, OutputError, SettingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.model import ExportedModel
from n2sr_deploy.stream.denoising import LoadedModel

if TYPE_CHECKING:
    from n2sr_deploy.learning import LearnOptions
    from n2sr_deploy.stream.base import LiveResult
    from n2sr_deploy.stream.denoising import LiveDenoiser

_log = logging.getLogger("n2sr")
_LIFELINE = "from n2sr_deploy.stream.lifeline import end_with_parent; end_with_parent(); "
_PROGRAM = "from n2sr_deploy.cli import main; main()"
_NICENESS = 10
_TRY_AGAIN_S = 30.0  # after a training that failed
_LOOKS_EVERY_S = 0.5  # at the residual
_SIDE = 256  # pixels of the part that is looked at
_BASELINE = 8  # looks at a new model's residual, to know what is usual
_CHANGED = 6  # looks in a row that are unusual, after which the scene or dose has changed
_RATIO, _CORRELATION = 1.3, 0.06  # of variances, and by how much neighbours' correlation changes
_CLIPPED_AT = 6.0  # deviations of the residual; beyond are hot pixels, which have all the variance
_QUANTILE, _DEVIATIONS = 0.99, 2.576  # of normal noise; a median would see no sparse counts


class LiveLearner:
    """Trains on frames of a stream and swaps what was learned into its denoiser.

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
        self._keep, self._overwrite, self._is_kept = keep, overwrite, False
        if options.named and (relearns or denoiser.model is None):
            self._check_options()  # else every training would fail, twice a minute
        self._folder = tempfile.TemporaryDirectory(prefix="n2sr-")
        self._in_use = Path(self._folder.name, "in_use.onnx")
        self._starts_from_what_is_in_use = True
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._command = ""  # of that process
        self._is_closed = False
        self._closing = threading.Lock()  # a second signal would end what the first one asks for
        self._not_before_s = 0.0
        self._watch = ResidualWatch()
        self.n_learned = 0
        """Models that were swapped in."""

    def _check_options(self) -> None:
        """Raise SettingError when no frame could be learned from with the options."""
        asked = self._options
        # No frame is read and no checkpoint written: their names only fill the places.
        arguments = ["train", "-", "--output=-", "--only-check"]
        done = subprocess.run(
            [*_python(_PROGRAM), *arguments, *self._arguments(asked.preset, asked.init)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = done.stderr.strip().rpartition("\n")[2].removeprefix("Error: ")
            raise SettingError(last or f"n2sr train ended with {done.returncode}")

    @property
    def is_training(self) -> bool:
        """Whether a training runs now."""
        return self._thread is not None and self._thread.is_alive()

    def observe(self, result: LiveResult) -> None:
        """Look at a result; begin to train if that is needed. Quick, in the stream's thread."""
        if self.is_training or self._is_closed or time.monotonic() < self._not_before_s:
            return
        if self._denoiser.model_name is None:
            self._begin(result, "")
        elif self._relearns and result.std is not None and self._watch.sees_change(result):
            _log.info("the scene or the dose has changed at frame %d", result.noisy.index)
            self._begin(result, "re")

    def _begin(self, result: LiveResult, prefix: str) -> None:
        noisy = result.noisy
        frame = Frame(
            pixels=noisy.pixels.copy(),
            pixel_size=noisy.pixel_size,
            unit=noisy.unit,
        )
        _log.info("learning from frame %d; frames go on meanwhile", noisy.index)
        name = f"{prefix}learned from frame {noisy.index}"
        self._thread = threading.Thread(
            target=self._learn, args=(frame, name), name="n2sr learner", daemon=True
        )
        self._thread.start()

    def _learn(self, frame: Frame, name: str) -> None:
        while True:
            preset, start = self._start()
            try:
                model = self._learned(frame, preset, start)
                if self._ends_with(model):
                    return
                loaded = LoadedModel(model, name, self._denoiser.options, frame.shape)
                if self._ends_with(model):
                    loaded.close()
                    return
                break
            except (N2SRError, OSError, _FailedError) as error:
                if self._is_closed:
                    if self._writes_at_the_end:
                        why = str(error).removeprefix("Error: ")
                        _log.warning("nothing was kept in %s: %s", self._keep, why)
                    return
                if start == self._in_use:
                    _log.warning("nothing was learned from the model in use: %s", error)
                    self._starts_from_what_is_in_use = False  # now: it may be what does not fit
                    continue
                _log.warning("nothing was learned: %s; it is tried again later", error)
                self._not_before_s = time.monotonic() + _TRY_AGAIN_S
                return
        self._starts_from_what_is_in_use = True
        self.n_learned += 1
        self._watch = ResidualWatch()
        self._denoiser.swap(loaded)
        _log.info("from now on the model %s", name)
        self._write(model)

    def _ends_with(self, model: ExportedModel) -> bool:
        """Whether the stream has ended, and with what was learned meanwhile."""
        with self._closing:
            is_closed = self._is_closed
        if is_closed and self._writes_at_the_end:
            self._write(model)
        return is_closed

    @property
    def _writes_at_the_end(self) -> bool:
        """Whether a training that had not ended is kept: never in the place of one that had."""
        return self._keep is not None and not self._is_kept

    def _write(self, model: ExportedModel) -> None:
        if self._keep is None:
            return
        try:
            model.save(self._keep, overwrite=self._overwrite or self._is_kept)
        except OutputError as error:
            _log.warning("what was learned is not kept: %s", error)
            return
        self._is_kept = True
        _log.info("%s: %s", self._keep, model.describe())

    def _learned(self, frame: Frame, preset: str | None, start: str | Path | None) -> ExportedModel:
        folder = Path(self._folder.name)
        noisy, checkpoint, model = (
            folder / f"{self.n_learned}{ending}" for ending in (".tif", ".safetensors", ".onnx")
        )
        formats.write_frame(noisy, frame, overwrite=True)
        try:
            arguments = self._arguments(preset, start)
            self._run("train", noisy, "-o", checkpoint, "--overwrite", *arguments)
        except _FailedError:
            # Ended after it had written: a checkpoint is whole or not there.
            if not (self._is_closed and checkpoint.exists()):
                raise
        self._run("export", checkpoint, "-o", model, "--overwrite")
        return ExportedModel.open(model)

    def _arguments(self, preset: str | None, start: str | Path | None) -> list[str]:
        """The training's options as the command line has them."""
        given = {
            "--preset": preset,
            "--pattern": self._options.pattern,
            "--stride": self._options.stride and ",".join(map(str, self._options.stride)),
            "--seconds": self._options.seconds,
            "--steps": self._options.steps,
            "--seed": self._options.seed,
            "--init": start,
            "--device": self._options.device,
        }
        arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
        return [*arguments, *([] if self._options.repair else ["--no-repair"])]

    def _start(self) -> tuple[str | None, str | Path | None]:
        """The preset of a training and what it starts from.

        The model in use, unless the user named another preset or pattern, or it was of no use just
        before; the first training from what the user named.
        """
        asked, model = self._options, self._denoiser.model
        is_first = self.n_learned == 0 and asked.init is not None
        if model is None or is_first or not self._starts_from_what_is_in_use:
            return asked.preset, asked.init
        pattern = model.metadata.pattern
        if asked.pattern not in (None, pattern.name) or asked.stride not in (None, pattern.stride):
            return asked.preset, asked.init
        preset = model.metadata.preset
        if asked.preset not in (None, preset):
            return asked.preset, asked.init
        model.save(self._in_use, overwrite=True)
        return preset, self._in_use

    def _run(self, command: str, *arguments: str | Path) -> None:
        with self._closing:
            if self._is_closed and not (command == "export" and self._writes_at_the_end):
                raise _FailedError("the stream had ended")
            self._process, self._command = self._begun(command, *arguments), command
        last = ""
        with self._process as process:
            for line in process.stderr or ():
                if line.strip():
                    last = line.strip().replace(f"{arguments[0]}: ", "")  # a name nobody gave
                    _log.info("beside the stream: %s", last)
            process.wait()  # before its lifeline is closed
        if process.returncode != 0:
            if self._is_closed and not last.startswith("Error: "):
                last = "it was ended at once"  # before it could answer signals, or on Windows
            raise _FailedError(last or f"it ended with {process.returncode}")

    def _begun(self, *arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*_python(_LIFELINE + _PROGRAM), *map(str, arguments)],
            stdin=subprocess.PIPE,  # its lifeline
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is the stream's, which ends it. No session: its niceness would not count there.
            process_group=0,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows
        )
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        return process

    def close(self) -> None:
        """End a training that runs, and keep the best so far where that was asked for."""
        with self._closing:
            was_closed, self._is_closed = self._is_closed, True
            if self.is_training and not was_closed:
                self._end_training()
        if self._thread is not None:
            self._thread.join()
        self._folder.cleanup()

    def _end_training(self) -> None:
        process = self._process
        if self._writes_at_the_end:
            if os.name == "nt":  # where it can only be killed
                _log.warning("a training had not ended; what it has learned is lost")
            else:
                _log.warning(
                    "a training had not ended; the best it has learned is written to %s (Ctrl-C "
                    "again: it is not)",
                    self._keep,
                )
            if process is not None and self._command == "train":
                process.terminate()  # by which it ends as by Ctrl-C
            return
        kept = "name a file for it with --keep" if self._keep is None else f"{self._keep} stays"
        _log.warning("a training had not ended; what it has learned is lost (%s)", kept)
        if process is not None:
            process.kill()  # without a word: it would say that it keeps what is lost here


def _python(program: str) -> list[str]:
    """The command that runs it, without what happens to lie in the current folder."""
    return [sys.executable, "-P", "-c", program]


class _FailedError(Exception):
    """A command of a training has failed."""


class _Look(NamedTuple):
    """At the residual of a frame."""

    variance: float
    along_rows: float
    along_columns: float


class ResidualWatch:
    """Looks at what is left between noisy and denoised frames, now and then.

    While the model fits, that is noise: its variance and the correlation of neighbours stay as they
    were when the model was new. Signal that is left, or another dose, changes them.
    """

    def __init__(self) -> None:
        self._usual: list[_Look] = []
        self._n_unusual = 0
        self._looked_s = 0.0

    def sees_change(self, result: LiveResult) -> bool:
        """Look, if it is time to; whether the looks have been unusual for a while."""
        now = time.monotonic()
        if now - self._looked_s < _LOOKS_EVERY_S:
            return False
        self._looked_s = now
        return self.is_unusual(result)

    def is_unusual(self, result: LiveResult) -> bool:
        """Look; whether this and the looks before it were unusual, in a row."""
        look = _look(result)
        if len(self._usual) < _BASELINE:
            self._usual.append(look)
            return False
        variance, along_rows, along_columns = np.median(np.array(self._usual), axis=0)
        ratio = max(look.variance, variance) / max(min(look.variance, variance), 1e-30)
        moved = max(abs(look.along_rows - along_rows), abs(look.along_columns - along_columns))
        is_unusual = ratio > _RATIO or moved > _CORRELATION
        self._n_unusual = self._n_unusual + 1 if is_unusual else 0
        return self._n_unusual >= _CHANGED


def _look(result: LiveResult) -> _Look:
    """At the middle of the frame; the residual is clipped, since noisy frames keep hot pixels."""
    middle = tuple(
        slice(max((n - _SIDE) // 2, 0), max((n - _SIDE) // 2, 0) + _SIDE) for n in result.mean.shape
    )
    residual = result.noisy.pixels[middle].astype(np.float64) - result.mean[middle]
    residual -= np.median(residual)
    limit = _CLIPPED_AT * float(np.quantile(np.abs(residual), _QUANTILE)) / _DEVIATIONS
    if limit > 0:  # else nearly all are equal
        residual = np.clip(residual, -limit, limit)
    residual -= residual.mean()
    variance = float(np.mean(residual**2))
    if variance == 0:
        return _Look(0.0, 0.0, 0.0)
    return _Look(
        variance,
        float(np.mean(residual[:, 1:] * residual[:, :-1])) / variance,
        float(np.mean(residual[1:] * residual[:-1])) / variance,
    )
