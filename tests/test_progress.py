"""What a user sees while a network trains: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from n2sr_deploy import progress
from n2sr_deploy.learning import TrainingStatus


def statuses(n_steps):
    for step in range(1, n_steps + 1):
        yield TrainingStatus(
            step=step,
            n_steps=n_steps,
            elapsed_s=step / 10,
            remaining_s=(n_steps - step) / 10,
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
        assert len(text.splitlines()) == 2, "the first step and the last"
