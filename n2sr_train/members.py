"""An ensemble's members, trained one after another: to the user one training and one network."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from n2sr_deploy.learning import Progress, TrainingStatus
    from n2sr_train.checkpoint import Checkpoint
    from n2sr_train.config import TrainingConfig


def part_of(progress: Progress | None, before: list[Checkpoint], n_members: int) -> Progress:
    """What one member's training calls, which tells the user of all of them."""
    if progress is None:
        return lambda status: None
    told = progress
    steps = sum(member.summary["steps"] for member in before)
    seconds = sum(member.summary["seconds"] for member in before)
    n_left = n_members - len(before) - 1

    def show(status: TrainingStatus) -> None:
        remaining = status.remaining_s
        if remaining is None and before:  # at a first step; the others are as long as the last was
            remaining = max(before[-1].summary["seconds"] - status.elapsed_s, 0.0)
        if remaining is not None:
            remaining += n_left * (status.elapsed_s + remaining)
        told(
            replace(
                status,
                step=steps + status.step,
                n_steps=steps + status.n_steps * (n_left + 1),
                elapsed_s=seconds + status.elapsed_s,
                remaining_s=remaining,
            )
        )

    return show


def joined(trained: list[Checkpoint], config: TrainingConfig) -> Checkpoint:
    """Members as one network, their histories one after another."""
    if len(trained) == 1:
        single = replace(config, network=config.network.single)
        return replace(trained[0], config=single)
    steps, seconds, tflop = (
        [0, *accumulate(member.summary[key] for member in trained)]
        for key in ("steps", "seconds", "tflop")
    )
    history = [
        {
            **entry,
            "step": entry["step"] + steps[k],
            "seconds": entry["seconds"] + seconds[k],
            "tflop": entry["tflop"] + tflop[k],
        }
        for k, member in enumerate(trained)
        for entry in member.history
    ]
    last = trained[-1]
    ended = {
        "steps": steps[-1],
        "seconds": seconds[-1],
        "tflop": tflop[-1],
        "kept_step": steps[-2] + last.summary["kept_step"],
    }
    return replace(
        last,
        weights={
            f"members.{k}.{name}": tensor
            for k, member in enumerate(trained)
            for name, tensor in member.weights.items()
        },
        config=replace(config, network=replace(config.network, members=len(trained))),
        history=history,
        summary={**last.summary, **ended},
    )
