"""`n2sr train` in a process of its own, beside a stream.

At a lower priority, it shares neither Python nor its lock with the stream, and ends with it, even
when that is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from n2sr_deploy import formats
from n2sr_deploy.learning import LEARNED
from n2sr_deploy.lifeline import READY
from n2sr_deploy.model import ExportedModel
from n2sr_deploy.signals import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.frame import Frame
    from n2sr_deploy.learning import LearnOptions

_log = logging.getLogger("n2sr")
_LIFELINE = """
import sys
from n2sr_deploy.lifeline import end_with_parent
end_with_parent(removes=sys.argv.pop(1))
"""
_PROGRAM = "from n2sr_deploy.__main__ import main; main()"
_NICENESS = 10
_ON_WINDOWS = "CREATE_NEW_PROCESS_GROUP", "BELOW_NORMAL_PRIORITY_CLASS"
TOO_EARLY = "the training ended before there was anything to keep"
_KILLED = "on Windows a training can only be killed"


class TrainingFailedError(Exception):
    """The command ended with an error; its message is why."""


class TrainingProcess:
    """A training, which checks its options and imports PyTorch while it waits for its frame.

    Frame and model are exchanged in a temporary folder, which goes with the process, even where
    the stream is killed. To be closed, unless `learn` was called.

    Parameters
    ----------
    options, preset, start
        Of the training; the latter two take the place of the options' own. `start` may be a model.

    Raises
    ------
    OSError
        When no process can be begun or no folder written.
    """

    def __init__(
        self, options: LearnOptions, preset: str | None, start: str | Path | ExportedModel | None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="n2sr-", ignore_cleanup_errors=True)
        self._frame, self._model, saved = (
            Path(self._folder.name, name) for name in ("noisy.tif", "learned.onnx", "start.onnx")
        )
        names = "|".join(re.escape(f"{name}: ") for name in (self._frame, self._model))
        self._names = re.compile(rf"^((?:Error: |Warning: )?)(?:{names})")
        try:
            if isinstance(start, ExportedModel):
                start.save(saved)
                start = saved
            self._process = self._begun(options, preset, start)
        except BaseException:
            self._folder.cleanup()
            raise
        self._last = ""  # that it said
        self._has_raised = False  # what nobody foresaw: its last line is why
        self.has_learned = False
        """Whether what it has learned only has to be exported."""
        self._was_ended = False
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)

    def _begun(
        self, options: LearnOptions, preset: str | None, start: str | Path | None
    ) -> subprocess.Popen[str]:
        options_said = ["--overwrite", "--once-told", *_said(options, preset, start)]
        command = ["train", str(self._frame), "-o", str(self._model), *options_said]
        return subprocess.Popen(
            # -P: without what happens to lie in the current folder.
            [sys.executable, "-P", "-c", _LIFELINE + _PROGRAM, self._folder.name, *command],
            stdin=subprocess.PIPE,  # its lifeline
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            # In which it can say any name: else on Windows those with letters of its language.
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            # Ctrl-C is the stream's, which ends it. No session: its niceness would not count there.
            process_group=0,
            creationflags=sum(getattr(subprocess, name, 0) for name in _ON_WINDOWS),
        )

    @property
    def has_ended(self) -> bool:
        """Whether the process has, in whatever way."""
        return self._process.poll() is not None

    def wait_until_checked(self) -> None:
        """Wait until its options are; this takes seconds.

        Raises
        ------
        TrainingFailedError
            When no frame could be learned from with them.
        """
        if not any(line == READY for line in self._lines()):
            self._process.wait()
            raise TrainingFailedError(self._why())

    def learn(self, frame: Frame) -> ExportedModel:
        """Learn from a frame; what the command says is logged.

        Returns
        -------
        What was learned; where the training was ended, the best until then.

        Raises
        ------
        TrainingFailedError
            When it ends before it has learned anything.
        N2SRError
            When the frame cannot be written or the model not be read.
        """
        try:
            formats.write_frame(self._frame, frame)
            self._tell_it_to_begin()
            for line in self._lines():
                self.has_learned |= line.startswith(LEARNED)
                if line != READY and not line.startswith("Error: "):  # which its failure tells
                    _log.info("beside the stream: %s", line)
            failed = self._process.wait() != 0  # before its lifeline is closed
            if failed and not self._model.exists():  # whole, or not there
                raise TrainingFailedError(self._why())
            if failed and not self._was_ended:
                _log.warning("the training failed after it had learned: %s", self._why())
            return ExportedModel.open(self._model)
        finally:
            self.close()

    def _tell_it_to_begin(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended already, and says why
                os.write(self._process.stdin.fileno(), b"\n")

    def end(self) -> None:
        """Ask it to keep the best so far, as Ctrl-C does; on Windows this kills it."""
        self._was_ended = True
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._was_ended = True
        self._process.kill()

    def close(self) -> None:
        """End it at once, and leave nothing."""
        with self._process:
            self.kill()
        self._folder.cleanup()

    def _lines(self) -> Iterator[str]:
        for line in self._process.stdout or ():
            if line.strip():
                # Without the names of the files, which nobody gave.
                self._last = self._names.sub(r"\1", line.strip())
                self._has_raised |= self._last.startswith("Traceback (most recent call last)")
                yield self._last

    def _why(self) -> str:
        """Why it failed."""
        code, last = self._process.returncode, self._last
        is_error = last.startswith("Error: ") and INTERRUPTED not in last
        if self._was_ended and not is_error:
            # As by Ctrl-C, or by the signal before it could answer any.
            if os.name == "nt":
                return _KILLED
            if INTERRUPTED in last or code in (-signal.SIGTERM, 128 + signal.SIGTERM):
                return TOO_EARLY
        if is_error or (self._has_raised and not self._was_ended):
            return last.removeprefix("Error: ")
        return f"n2sr train ended with {code}"


def _said(options: LearnOptions, preset: str | None, start: str | Path | None) -> list[str]:
    """The options as the command line has them."""
    given = {
        "--preset": preset,
        "--pattern": options.pattern,
        "--stride": options.stride and ",".join(map(str, options.stride)),
        "--seconds": options.seconds,
        "--steps": options.steps,
        "--seed": options.seed,
        "--init": start,
        "--device": options.device,
    }
    said = [f"{name}={value}" for name, value in given.items() if value is not None]
    return said if options.repair else [*said, "--no-repair"]
