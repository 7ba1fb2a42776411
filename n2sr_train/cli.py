"""`n2sr train` and `n2sr export`, joined to the n2sr group through ``n2sr.commands``.

PyTorch is imported when a command runs, not before: --help must be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from n2sr_deploy import files
from n2sr_deploy.cli_options import (
    PATH,
    frame_option,
    output_option,
    overwrite_option,
    seed_option,
    training_options,
)
from n2sr_deploy.formats import read_frame
from n2sr_deploy.progress import shown_training
from n2sr_train.learner import learn_checkpoint, require_training_extra

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.learning import LearnOptions


@click.command("train", short_help="Learn a network from one noisy frame.")
@click.argument("noisy", type=PATH)
@output_option("CHECKPOINT, .safetensors")
@frame_option
@training_options
@seed_option
@overwrite_option
def train_command(
    noisy: Path, output: Path, frame: int | None, options: LearnOptions, overwrite: bool
) -> None:
    """Learn a network from one NOISY frame and write it as a checkpoint.

    Ctrl-C ends the training and keeps the best so far.
    """
    files.check_output(output, overwrite=overwrite, inputs=[noisy], suffix=".safetensors")
    noisy_frame = read_frame(noisy, frame)
    with shown_training() as progress:
        checkpoint = learn_checkpoint(noisy_frame, options, progress)
    checkpoint.save(output, overwrite=overwrite)
    click.echo(f"{output}: {checkpoint.describe()}")


@click.command("export", short_help="Make a checkpoint a portable model (ONNX).")
@click.argument("checkpoint", type=PATH)
@output_option("MODEL, .onnx")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic inside; input and output stay float32.",
)
@overwrite_option
def export_command(checkpoint: Path, output: Path, precision: str, overwrite: bool) -> None:
    """Make a CHECKPOINT a portable model, checked against PyTorch before it is written."""
    files.check_output(output, overwrite=overwrite, inputs=[checkpoint], suffix=".onnx")
    files.check_input(checkpoint)
    require_training_extra()
    from n2sr_train.checkpoint import Checkpoint
    from n2sr_train.export import export_model

    model = export_model(Checkpoint.open(checkpoint), precision)
    model.save(output, overwrite=overwrite)
    click.echo(f"{output}: {model.describe()}")
