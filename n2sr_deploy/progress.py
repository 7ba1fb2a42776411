"""Shows trainings and frames on the terminal: a bar, or a line now and then where there is none."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from n2sr_deploy.signals import handled
from n2sr_deploy.words import about, counted, time_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from n2sr_deploy.batch.manifest import Entry
    from n2sr_deploy.learning import TrainingStatus

_LINE_EVERY_S = 10.0
_TELLING_SHARE = 0.2  # of a file, before the time left is told


@contextmanager
def shown_training() -> Iterator[Callable[[TrainingStatus], None]]:
    """Give what a training calls after each step; shows it on stderr.

    SIGTERM (`kill`, a cluster's time limit) ends the training as Ctrl-C does: the best is kept.
    """
    with handled(signal.default_int_handler), _shown(Console(stderr=True)) as show:
        yield show


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[TrainingStatus], None]]:
    if console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task("training", total=None, figures="", left="")

            def show(status: TrainingStatus) -> None:
                remaining = status.remaining_s
                progress.update(
                    task,
                    completed=status.elapsed_s,
                    total=None if remaining is None else status.elapsed_s + remaining,
                    description=f"training, step {status.step} of {status.n_steps}",
                    figures=_figures(status),
                    left=time_left(remaining or 0.0),
                )

            yield show
            progress.update(task, completed=1, total=1, left="done")
    else:
        lines = _Lines(console)
        yield lines
        lines.end()


@contextmanager
def shown_frames(what: str, *, alone: bool = True) -> Iterator[Callable[[float, int], None]]:
    """Give what is called with the frames done and their number; shows them on stderr.

    One frame is shown where it takes long. With `alone` false there are only lines: a terminal
    shows one bar at a time, and each frame's training has one.
    """
    console = Console(stderr=True)
    if alone and console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        ) as progress:
            task = progress.add_task(what, total=None, visible=False)

            def show(done: float, total: int) -> None:
                progress.update(
                    task,
                    description=_frames(what, done, total),
                    completed=done,
                    total=total,
                    visible=total > 1 or done < 1,
                )

            yield show
    else:
        due: float | None = None  # a training may come first

        def tell(done: float, total: int) -> None:
            nonlocal due
            if due is None:
                due = time.monotonic() + _LINE_EVERY_S
            if (total > 1 and done == total) or (done < total and time.monotonic() >= due):
                due = time.monotonic() + _LINE_EVERY_S
                console.print(_frames(what, done, total), soft_wrap=True)

        yield tell


def _frames(what: str, done: float, total: int) -> str:
    return f"{what}, {done:.0%}" if total == 1 else f"{what}, frame {int(done)} of {total}"


@contextmanager
def shown_phases(what: str) -> Iterator[Callable[[str, float], None]]:
    """Give what is called with the name of a phase and the share of it that is done."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task(what, total=1.0)

        def show(phase: str, share: float) -> None:
            progress.update(task, description=f"{what}: {phase}", completed=share)

        yield show


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=False,
    )


class _Lines:
    """A line at the beginning, at the end and every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._last: TrainingStatus | None = None

    def __call__(self, status: TrainingStatus) -> None:
        self._last = status
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_EVERY_S
            self._print(status, time_left(status.remaining_s or 0.0))

    def end(self) -> None:
        """Tell the last step, however early it came."""
        if self._last is not None:
            self._print(self._last, "done")

    def _print(self, status: TrainingStatus, left: str) -> None:
        step = f"training, step {status.step} of {status.n_steps}"
        self._console.print(", ".join(filter(None, (step, left, _figures(status)))), soft_wrap=True)


def _figures(status: TrainingStatus) -> str:
    return (
        f"loss {status.loss:.4f}, validation {status.validation_error:.4f}, "
        f"{status.steps_per_s:.1f} steps/s"
    )


@contextmanager
def shown_batch() -> Iterator[ShownBatch]:
    """Give what watches a batch: a bar over all files, or a line now and then; each failure."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ShownBatch(console)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    ) as bar:
        yield ShownBatch(console, bar)


class ShownBatch:
    """Where a batch stands, over all its files; see `n2sr_deploy.batch.Watcher`."""

    def __init__(self, console: Console, bar: Progress | None = None) -> None:
        self._console, self._bar = console, bar
        self._lock = threading.Lock()
        self._began = self._next = time.monotonic()
        self._n_files = self._n_ended = self._n_failed = 0
        self._shares: dict[str, float] = {}
        self._warnings: Counter[str] = Counter()
        self._task = None if bar is None else bar.add_task("denoising", total=None, left="")

    def begin(self, n_files: int, told: str) -> None:
        """So many files, done by whom."""
        self._n_files = n_files
        self._console.print(f"{counted(n_files, 'file')} to denoise, {told}", soft_wrap=True)

    def share(self, name: str, share: float) -> None:
        """A share of a file is done."""
        with self._lock:
            self._shares[name] = share
            self._show()

    def end(self, name: str, entry: Entry) -> None:
        """A file is done or has failed."""
        with self._lock:
            self._shares.pop(name, None)
            self._n_ended += 1
            if entry.outcome == "failed":
                self._n_failed += 1
                told = about(entry.input, entry.error or "")
                self._console.print(f"failed: {told}", soft_wrap=True, markup=False)
            for warning in entry.warnings:
                self._warnings[warning] += 1
                if self._warnings[warning] == 1:  # not for each of thousands of files
                    self._warn(about(entry.input, warning))
            if self._n_ended == self._n_files:
                self._count_warnings()
            self._show()

    def _count_warnings(self) -> None:
        for warning, n in self._warnings.items():
            if n > 1:
                self._warn(f"{n} files in all: {warning}")

    def _warn(self, told: str) -> None:
        self._console.print(f"Warning: {told}", soft_wrap=True, markup=False)

    def stopped(self) -> None:
        """It was stopped: say what is done, and that nothing of it is lost."""
        if not self._n_files:
            self._console.print("stopped before anything was begun")
            return
        self._count_warnings()
        n_done = self._n_ended - self._n_failed
        failed = f", {self._n_failed} failed" if self._n_failed else ""
        self._console.print(
            f"stopped: {n_done} of {counted(self._n_files, 'file')} denoised{failed}; the same "
            "command does the rest",
            soft_wrap=True,
        )

    def _show(self) -> None:
        done = self._n_ended + sum(self._shares.values())
        failed = f", {self._n_failed} failed" if self._n_failed else ""
        told = f"{self._n_ended} of {counted(self._n_files, 'file')}{failed}"
        now = time.monotonic()
        denoised = done - self._n_failed  # those that failed at once tell nothing of the others
        # The first steps tell how long loading takes, not how long a file does.
        is_any_done = self._n_ended > self._n_failed
        tells = is_any_done or max(self._shares.values(), default=0.0) >= _TELLING_SHARE
        left = (now - self._began) / denoised * (self._n_files - done) if tells else 0.0
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                description=told,
                completed=done,
                total=self._n_files,
                left=time_left(left),
            )
            return
        if now >= self._next or self._n_ended == self._n_files:
            self._next = now + _LINE_EVERY_S
            self._console.print(", ".join(filter(None, (told, time_left(left)))), soft_wrap=True)
