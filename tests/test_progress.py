"""What a user sees while a network trains: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import count

import pytest
from rich.console import Console

from n2sr_deploy import progress
from n2sr_deploy.batch.manifest import Entry
from n2sr_deploy.learning import TrainingStatus


def statuses(n_steps):
    for step in range(1, n_steps + 1):
        yield TrainingStatus(
            step=step,
            n_steps=n_steps,
            elapsed_s=step / 10,
            remaining_s=None if step == 1 else (n_steps - step) / 10,
            loss=1 / step,
            validation_error=0.5,
            steps_per_s=10.0,
        )


@pytest.mark.parametrize("is_terminal", [True, False])
def test_loss_validation_error_speed_and_time_left_are_shown(monkeypatch, is_terminal):
    written = io.StringIO()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda stderr: Console(file=written, force_terminal=is_terminal, width=160),
    )
    with progress.shown_training() as show:
        for status in statuses(20):
            show(status)
    text = written.getvalue()
    for part in ("step 20 of 20", "done", "loss 0.0500", "validation 0.5000", "10.0 steps/s"):
        assert part in text
    if not is_terminal:
        first, last = text.splitlines()  # steps
        assert "left" not in first
        assert "done" in last


@pytest.mark.parametrize(
    ("n_frames", "lines"),
    [(1, ["denoising, 50%"]), (3, [f"denoising, frame {n} of 3" for n in (0, 1, 2, 3)])],
)
def test_frames_that_take_long_are_told_every_ten_seconds(monkeypatch, n_frames, lines):
    written = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=written, width=160))
    seconds = count(1000, 6)  # a training came first
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with progress.shown_frames("denoising") as show:
        for done in (0.25, 0.5, 0.75, 1, *([1.5, 2.5, 3] if n_frames == 3 else [])):
            show(done, n_frames)
    assert written.getvalue().splitlines() == lines


def ended(outcome, name="a.tif"):
    error = None if outcome == "done" else "frame is constant"
    return Entry(
        output=name, outcome=outcome, input=f"/raw/{name}", size=1, mtime_ns=1, settings={},
        error=error,
    )  # fmt: skip


def test_a_batch_that_is_stopped_while_files_are_looked_for_tells_no_counts(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=written, width=160))
    with progress.shown_batch() as watcher:
        watcher.stopped()
    assert written.getvalue() == "stopped before anything was begun\n"


def test_the_first_steps_of_a_batch_tell_no_time(monkeypatch):
    """Loading counted as the time of one step in two thousand: of three files 8.6 h were left."""
    written = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=written, width=160))
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.shown_batch() as watcher:
        watcher.begin(3, "1 process")
        now = 10.0
        watcher.share("a.tif", 1 / 2000)
        assert "left" not in written.getvalue()
        now = 30.0
        watcher.share("a.tif", 0.5)
    assert "0 of 3 files, about 2.5 min left" in written.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_files_that_fail_at_once_do_not_shorten_the_time_left(monkeypatch, is_terminal):
    """Of 40 files of 10 s, 20 of which had failed at once, 11 s were left after the first."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=is_terminal, width=160)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.shown_batch() as watcher:
        watcher.begin(40, "1 process")
        for index in range(20):
            watcher.end(f"{index}.tif", ended("failed"))
        watcher.share("a.tif", 0.0)
        assert "left" not in written.getvalue()
        now = 20.0
        watcher.end("a.tif", ended("done"))
        watcher.stopped()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())  # colours
    assert "failed: /raw/a.tif: frame is constant" in text
    assert "21 of 40 files, 20 failed" in text
    assert "about 6.3 min left" in text
    assert "stopped: 1 of 40 files denoised, 20 failed; the same command does the rest" in text


def test_a_warning_of_many_files_is_told_once_and_counted_at_the_end(monkeypatch):
    written = io.StringIO()
    console = Console(file=written, width=160)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    with progress.shown_batch() as watcher:
        watcher.begin(3, "1 process")
        for index in range(3):
            watcher.end(f"{index}.tif", replace(ended("done"), warnings=("it is dark",)))
    text = written.getvalue()
    assert text.count("it is dark") == 2
    assert text.index("Warning: /raw/a.tif: it is dark") < text.index("Warning: 3 files in all")
