"""Shows a training on the terminal: a bar, or a line now and then where there is none."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from n2sr_deploy.learning import TrainingStatus

_LINE_EVERY_S = 10.0


@contextmanager
def shown_training() -> Iterator[Callable[[TrainingStatus], None]]:
    """Give what a training calls after each step; shows it on stderr."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task("training", total=None, figures="", left="")

            def show(status: TrainingStatus) -> None:
                total = status.elapsed_s + status.remaining_s
                progress.update(
                    task,
                    completed=status.elapsed_s,
                    total=total,
                    description=f"training, step {status.step} of {status.n_steps}",
                    figures=_figures(status),
                    left=f"{status.remaining_s:.0f} s left",
                )

            yield show
            progress.update(task, completed=1, total=1, left="done")
    else:
        lines = _Lines(console)
        yield lines
        lines.end()


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
            self._print(status, f"{status.remaining_s:.0f} s left")

    def end(self) -> None:
        """Tell the last step, however early it came."""
        if self._last is not None:
            self._print(self._last, "done")

    def _print(self, status: TrainingStatus, left: str) -> None:
        line = f"training, step {status.step} of {status.n_steps}, {left}, {_figures(status)}"
        self._console.print(line, soft_wrap=True)


def _figures(status: TrainingStatus) -> str:
    return (
        f"loss {status.loss:.4f}, validation {status.validation_error:.4f}, "
        f"{status.steps_per_s:.1f} steps/s"
    )
