"""`n2sr denoise`, joined to the n2sr group through ``n2sr.commands``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from n2sr_deploy.cli_options import (
    PATH,
    backend_option,
    check_denoising,
    check_outputs,
    dtype_option,
    frame_option,
    model_option,
    output_option,
    overwrite_option,
    samples_option,
    seed_option,
    signal_option,
    training_options,
)

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.learning import LearnOptions


@click.command("denoise", short_help="Denoise a frame with a model, or learn one first.")
@click.argument("noisy", type=PATH)
@output_option("denoised frame: .tif, .mrc or .npy")
@model_option
@click.option(
    "--std",
    type=PATH,
    metavar="FILE",
    help="Also write the spread: the standard deviation of the draws.",
)
@samples_option
@backend_option
@frame_option
@click.option(
    "--stack",
    is_flag=True,
    help="Denoise all frames, with one model; without --model it is learned from the middle "
    "frame, or from --frame N.",
)
@click.option(
    "--per-frame", is_flag=True, help="Of a stack, learn a network for each frame. Takes long."
)
@signal_option
@dtype_option
@training_options
@seed_option
@overwrite_option
def denoise_command(
    noisy: Path,
    output: Path,
    model: Path | None,
    std: Path | None,
    samples: int | None,
    backend: str,
    frame: int | None,
    stack: bool,
    per_frame: bool,
    signal: str | None,
    dtype: Literal["float32", "same"],
    options: LearnOptions,
    overwrite: bool,
) -> None:
    """Denoise the frame NOISY, or with --stack all its frames. The raw file is only read."""
    from n2sr_deploy.denoise_file import DenoiseOptions, denoise_file
    from n2sr_deploy.opening import Denoisers
    from n2sr_deploy.progress import shown_frames, shown_training

    check_denoising(model, samples, backend, options, std=std is not None)
    _check_stack(model, frame, stack=stack, per_frame=per_frame)
    check_outputs([output] if std is None else [output, std], noisy, overwrite=overwrite)
    how = DenoiseOptions(
        model=None if model is None else str(model),
        n_samples=samples,
        backend=backend,
        signal=signal,
        stack=stack or per_frame,
        frame=frame,
        per_frame=per_frame,
        dtype=dtype,
        learn=options,
    )
    alone = model is not None
    with Denoisers() as denoisers, shown_frames("denoising", alone=alone) as on_frame:
        done = denoise_file(
            noisy,
            output,
            how,
            denoisers,
            std=std,
            overwrite=overwrite,
            training=shown_training,
            on_frame=on_frame,
        )
    frames = f"{done.n_frames} frames " if done.n_frames > 1 else ""
    click.echo(f"{output}: {frames}denoised, mean of {done.n_samples} draws")
    if std is not None:
        click.echo(f"{std}: standard deviation of the draws")


def _check_stack(model: Path | None, frame: int | None, *, stack: bool, per_frame: bool) -> None:
    if per_frame and model is not None:
        raise click.UsageError(
            "--per-frame learns a network for each frame, but --model gives one; leave one out"
        )
    if per_frame and frame is not None:
        raise click.UsageError("--per-frame learns from every frame; leave out --frame")
    if stack and model is not None and frame is not None:
        raise click.UsageError(
            "with --stack, --frame names the frame to learn from, but --model gives a network; "
            "leave one of the three out"
        )
