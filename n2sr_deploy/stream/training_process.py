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
from typing import TYPE_CHECKING

from n2sr_deploy.learning import LEARNED
from n2sr_deploy.lifeline import READY
from n2sr_deploy.signals import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from n2sr_deploy.learning import LearnOptions

_log = logging.getLogger("n2sr")
_LIFELINE = "from n2sr_deploy.lifeline import end_with_parent; end_with_parent(); "
_PROGRAM = "from n2sr_deploy.__main__ import main; main()"
_NICENESS = 10
_ON_WINDOWS = "CREATE_NEW_PROCESS_GROUP", "BELOW_NORMAL_PRIORITY_CLASS"
TOO_EARLY = "the training ended before there was anything to keep"
_KILLED = "on Windows a training can only be killed"


class TrainingFailedError(Exception):
    """The command ended with an error; its message is why."""


class TrainingProcess:
    """A training, which checks its options and imports PyTorch while it waits for its frame.

    Parameters
    ----------
    frame, model
        The file it will learn from, which need not be there yet, and the exported model it will
        write.
    options, preset, start
        Of the training; the latter two take the place of the options' own.
    """

    def __init__(
        self,
        frame: Path,
        model: Path,
        options: LearnOptions,
        preset: str | None,
        start: str | Path | None,
    ) -> None:
        names = "|".join(re.escape(f"{name}: ") for name in (frame, model))
        self._names = re.compile(rf"^((?:Error: |Warning: )?)(?:{names})")
        options_said = ["--overwrite", "--once-told", *_said(options, preset, start)]
        command = ["train", str(frame), "-o", str(model), *options_said]
        self._process = subprocess.Popen(
            # -P: without what happens to lie in the current folder.
            [sys.executable, "-P", "-c", _LIFELINE + _PROGRAM, *command],
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
        self._last = ""  # that it said
        self._has_raised = False  # what nobody foresaw: its last line is why
        self.has_learned = False
        """Whether what it has learned only has to be exported."""
        self._was_ended = False
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)

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

    def run(self) -> None:
        """Learn from the frame, which is there now; what the command says is logged.

        Raises
        ------
        TrainingFailedError
            When it ends with an error. The model may have been written all the same.
        """
        with self._process as process:
            if process.stdin is not None:
                with contextlib.suppress(OSError):  # it has ended already, and says why
                    os.write(process.stdin.fileno(), b"\n")
            for line in self._lines():
                self.has_learned |= line.startswith(LEARNED)
                if line != READY and not line.startswith("Error: "):  # which its failure tells
                    _log.info("beside the stream: %s", line)
            process.wait()  # before its lifeline is closed
        if process.returncode != 0:
            raise TrainingFailedError(self._why())

    def end(self) -> None:
        """Ask it to keep the best so far, as Ctrl-C does; on Windows this kills it."""
        self._was_ended = True
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._was_ended = True
        self._process.kill()

    def close(self) -> None:
        """End it at once where nobody runs it: no frame came."""
        with self._process:
            self.kill()

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
