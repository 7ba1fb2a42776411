"""`n2sr train` and `n2sr export`, joined to the n2sr group through ``n2sr.commands``.

PyTorch is imported when a command runs, not before: --help must be quick.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from signal import SIGINT
from typing import TYPE_CHECKING

import click

from n2sr_deploy import files
from n2sr_deploy.cli_options import (
    PATH,
    frame_option,
    output_option,
    overwrite_option,
    seed_option,
    signal_option,
    training_options,
)
from n2sr_deploy.cuda.runtime import CudaDevice
from n2sr_deploy.formats import read_frame
from n2sr_deploy.formats.base import naming
from n2sr_deploy.learning import LEARNED
from n2sr_deploy.lifeline import READY, wait_until_told
from n2sr_deploy.progress import shown_phases, shown_training
from n2sr_deploy.sampling import MAX_SAMPLES
from n2sr_deploy.signals import ending, ignored
from n2sr_train.learner import (
    exporter,
    learn_checkpoint,
    require_training_extra,
)

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.learning import LearnOptions
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.pattern import Shape
    from n2sr_train.checkpoint import Checkpoint

_log = logging.getLogger("n2sr")


@click.command("train", short_help="Learn a network from one noisy frame.")
@click.argument("noisy", type=PATH)
@output_option("CHECKPOINT, .safetensors, or the exported MODEL, .onnx")
@frame_option
@signal_option
@training_options
@seed_option
@overwrite_option
@click.option("--once-told", is_flag=True, hidden=True)  # of `n2sr stream`, to have all ready
def train_command(
    noisy: Path,
    output: Path,
    frame: int | None,
    signal: str | None,
    options: LearnOptions,
    overwrite: bool,
    once_told: bool,
) -> None:
    """Learn a network from one NOISY frame; write it as a checkpoint, or exported.

    Ctrl-C ends the training and keeps the best so far.
    """
    files.check_output(
        output, overwrite=overwrite, inputs=[noisy], suffixes=[".safetensors", ".onnx"]
    )
    if once_told:
        exporter(options)  # which takes seconds now, none later
        click.echo(READY)
        wait_until_told()
    noisy_frame = read_frame(noisy, frame, signal)
    export_model = exporter(options) if output.name.endswith(".onnx") else None
    with naming(noisy, noisy_frame.index, noisy_frame.n_frames), shown_training() as progress:
        checkpoint = learn_checkpoint(noisy_frame, options, progress)
    with ExitStack() as undisturbed:
        # A stream waits for what was learned; who is at the terminal may give the export up.
        signals = ignored(SIGINT, *ending())
        made: Checkpoint | ExportedModel = checkpoint
        try:
            if once_told:
                undisturbed.enter_context(signals)
            if export_model is not None:
                _log.info("%s%s", LEARNED, checkpoint.describe())
                made = export_model(checkpoint)
            if not once_told:
                undisturbed.enter_context(signals)
            made.save(output, overwrite=overwrite)
        except BaseException:  # though it could be written when the training began
            if not once_told:  # of a stream nothing is kept but what it says
                with ignored(SIGINT, *ending()):
                    files.keep_elsewhere(checkpoint.save, output, ".safetensors")
            raise
        click.echo(f"{output}: {made.describe()}")


@click.command("export", short_help="Make a checkpoint a portable model, or engines of it.")
@click.argument("source", metavar="CHECKPOINT|MODEL.onnx", type=PATH)
@output_option("MODEL, .onnx", required=False)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    help="Arithmetic inside; input and output stay float32. By default fp32; an engine's is its "
    "model's.",
)
@click.option(
    "--engine",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="Also compile the model for this machine's NVIDIA GPU: with TensorRT (data-centre GPUs), "
    "or TensorRT for RTX (GeForce and RTX).",
)
@click.option(
    "--size",
    type=click.IntRange(1),
    nargs=2,
    metavar="H W",
    help="Of the frames that an engine is for; by default that of the frame trained on.",
)
@click.option(
    "-M",
    "--samples",
    type=click.IntRange(1, MAX_SAMPLES),
    metavar="M",
    help="Draws an engine is for; by default the model's, which do for live frames too.",
)
@overwrite_option
def export_command(
    source: Path,
    output: Path | None,
    precision: str | None,
    engine: str | None,
    size: Shape | None,
    samples: int | None,
    overwrite: bool,
) -> None:
    """Make a CHECKPOINT a portable model, checked against PyTorch before it is written.

    With --engine, a CHECKPOINT or a MODEL.onnx is also compiled for frames of one size; engines
    are kept in the user's cache folder, and `n2sr denoise --backend tensorrt` finds them there.
    """
    from n2sr_deploy.building import build_engines
    from n2sr_deploy.model import ExportedModel, is_checkpoint

    files.check_input(source)
    is_trained = is_checkpoint(source) or source.suffix == ".safetensors"
    is_model = engine is not None and not is_trained
    if is_model and output is not None:
        raise click.UsageError("a model is there already: leave out -o, or name a checkpoint")
    if not is_model and output is None:
        raise click.UsageError(
            "name the model to write: -o MODEL.onnx"
            if is_trained
            else f"{source} is no checkpoint; if it is an exported model, name what to make of it: "
            "--engine"
        )
    if engine is None and (size is not None or samples is not None):
        which = "--size" if size is not None else "--samples"
        raise click.UsageError(f"{which} is about engines: name one with --engine, or leave it out")
    if output is not None:
        files.check_output(output, overwrite=overwrite, inputs=[source], suffixes=[".onnx"])
    device = CudaDevice() if engine is not None else None  # before seconds of work
    if is_model:
        model = ExportedModel.open(source)
        if precision not in (None, model.metadata.precision):
            raise click.UsageError(
                f"{source} is {model.metadata.precision}, and so will be its engine; export its "
                f"checkpoint with --precision {precision} first"
            )
        _check_size(source, engine, size or model.metadata.frame_shape)
    else:
        require_training_extra()
        from n2sr_train.checkpoint import Checkpoint

        checkpoint = Checkpoint.open(source)
        _check_size(source, engine, size or checkpoint.summary.get("frame_shape"))
        from n2sr_train.export import export_model

        model = export_model(checkpoint, precision or "fp32")
    shape = size or model.metadata.frame_shape
    if output is not None:
        model.save(output, overwrite=overwrite)
        click.echo(f"{output}: {model.describe()}")
    if engine is not None and device is not None and shape is not None:
        library = engine.replace("-", "_")
        with shown_phases(f"compiling for {device.name}") as progress:
            paths = build_engines(
                model, library, shape, samples, device, rebuild=overwrite, progress=progress
            )
        for path in paths:
            click.echo(f"{path}: engine for frames of {shape[0]} x {shape[1]} on {device.name}")


def _check_size(source: Path, engine: str | None, shape: Shape | None) -> None:
    """Raise UsageError when an engine is asked for and nobody says how large its frames are."""
    if engine is not None and shape is None:
        raise click.UsageError(
            f"{source} does not say how large the frame was that it learned from; name the size "
            "of the frames to come: --size H W"
        )
