"""`n2sr batch`, joined to the n2sr group through ``n2sr.commands``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from n2sr_deploy.cli_options import (
    PATH,
    backend_option,
    check_denoising,
    dtype_option,
    model_option,
    samples_option,
    seed_option,
    signal_option,
    training_options,
)
from n2sr_deploy.formats import extensions
from n2sr_deploy.signals import INTERRUPTED_CODE
from n2sr_deploy.words import about

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.batch import OpensRunner, Summary
    from n2sr_deploy.learning import LearnOptions


@click.command("batch", short_help="Denoise many files, resumably.")
@click.argument("inputs", nargs=-1, required=True, metavar="FOLDER|GLOB|FILE...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=PATH,
    metavar="FOLDER",
    help="Where results and the manifest go; made if it is missing.",
)
@model_option
@click.option(
    "--std",
    is_flag=True,
    help="Also write the calibrated standard error of each pixel: of a.tif, as a.std.tif.",
)
@click.option("--recursive", is_flag=True, help="Look into folders in folders too.")
@click.option(
    "--format",
    "extension",
    type=click.Choice([name[1:] for name in extensions(written=True)]),
    help="Of all results; by default each input's own, where n2sr writes it.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Files at once, each in a process of its own; they share the cores.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Of each process; by default its share of the cores.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Of a Dask scheduler, like tcp://127.0.0.1:8786: its workers do the files.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=1,
    show_default=True,
    help="How often a file that failed is tried again.",
)
@samples_option
@backend_option
@click.option("--per-frame", is_flag=True, help="Learn a network for each frame of a stack.")
@signal_option
@dtype_option
@training_options
@seed_option
@click.option(
    "--overwrite",
    is_flag=True,
    help="Do again what is there with other settings or of other inputs, and replace files that "
    "this batch did not write.",
)
def batch_command(
    inputs: tuple[str, ...],
    output: Path,
    model: Path | None,
    std: bool,
    recursive: bool,
    extension: str | None,
    jobs: int,
    threads: int | None,
    scheduler: str | None,
    retries: int,
    n_samples: int | None,
    backend: str,
    per_frame: bool,
    signal: str | None,
    dtype: Literal["float32", "same"],
    options: LearnOptions,
    overwrite: bool,
) -> None:
    """Denoise many files into a folder: all frame files of a FOLDER, of a GLOB, or each FILE.

    With a model, or each file learns its own network. Files of several frames are done as stacks.
    What is done is noted in the folder, so the same command goes on where it was stopped or
    killed. A file that fails stops no other; the exit code is then 1.
    """
    from n2sr_deploy.batch import BatchOptions, run_batch
    from n2sr_deploy.denoise_options import DenoiseOptions
    from n2sr_deploy.progress import shown_batch

    check_denoising(model, n_samples, backend, options, std=std, per_frame=per_frame)
    if scheduler is not None and (jobs != 1 or threads is not None):
        raise click.UsageError(
            "--jobs and --threads are about processes of this machine, but --scheduler has "
            "workers; leave one out"
        )
    how = BatchOptions(
        denoising=DenoiseOptions(
            model=None if model is None else str(model.absolute()),
            n_samples=n_samples,
            backend=backend,
            signal=signal,
            stack=True,
            per_frame=per_frame,
            dtype=dtype,
            learn=options,
        ),
        std=std,
        recursive=recursive,
        extension=None if extension is None else f".{extension}",
        retries=retries,
        n_threads=threads or 0,
        overwrite=overwrite,
    )
    with shown_batch() as watcher:
        try:
            summary = run_batch(inputs, output, how, _runner(scheduler, jobs), watcher)
        except KeyboardInterrupt:
            watcher.stopped()
            raise click.exceptions.Exit(INTERRUPTED_CODE) from None
    for line in _table(summary, output):
        click.echo(line)
    if summary.failed:
        raise click.exceptions.Exit(1)


def _runner(scheduler: str | None, jobs: int) -> OpensRunner:
    """Opens who does the work."""
    if scheduler is not None:
        from n2sr_deploy.batch.cluster import ClusterRunner

        return lambda begins, shares, _: ClusterRunner(scheduler, begins, shares)
    from n2sr_deploy.batch.local import LocalRunner

    return lambda begins, shares, n_threads: LocalRunner(jobs, begins, shares, n_threads=n_threads)


def _table(summary: Summary, folder: Path) -> list[str]:
    """What became of the files, and why some failed."""
    counted = [
        (len(summary.done), "denoised"),
        (len(summary.done_before), "done before"),
        (len(summary.of_other_settings), "left: of other settings"),
        (len(summary.of_another_input), "left: of another input"),
        (len(summary.failed), "failed"),
    ]
    lines = [f"{folder}:", *(f"{n:7} {what}" for n, what in counted if n)]
    left = [*summary.of_other_settings, *summary.of_another_input]
    if left:
        lines += ["", "Left as they are; --overwrite does them again:"]
        lines += [f"  {name}" for name in left]
    if summary.failed:
        lines += ["", "Failed:"]
        lines += [f"  {about(path, error)}" for path, error in summary.failed.items()]
    return lines
