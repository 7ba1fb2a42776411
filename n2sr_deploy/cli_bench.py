"""`n2sr bench`, joined to the n2sr group through ``n2sr.commands``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress

from n2sr_deploy import files
from n2sr_deploy.backends import BACKENDS
from n2sr_deploy.cli_options import PATH, live_samples_option, overwrite_option
from n2sr_deploy.errors import FileFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.pattern import Shape


@click.command("bench", short_help="Measure how long a frame takes here.")
@click.argument("model", type=PATH, required=False)
@click.option(
    "--size",
    "sizes",
    type=click.IntRange(1),
    nargs=2,
    multiple=True,
    metavar="H W",
    help="Rows and columns of the frames; may be given several times. By default 512 512 and "
    "1024 1024.",
)
@click.option(
    "--backend",
    "backends",
    type=click.Choice(["auto", *BACKENDS]),
    multiple=True,
    help="May be given several times: their frames alternate. By default auto.",
)
@live_samples_option
@click.option("--dtype", default="uint16", show_default=True, help="Of the frames' pixels.")
@click.option("--frames", type=int, default=100, show_default=True, help="Of each size.")
@click.option("--json", "kept", type=PATH, metavar="FILE", help="Also write everything as JSON.")
@click.option(
    "--compare",
    type=PATH,
    nargs=2,
    metavar="BEFORE AFTER",
    help="Instead of measuring, compare two such files of one machine.",
)
@overwrite_option
def bench_command(
    model: Path | None,
    sizes: tuple[Shape, ...],
    backends: tuple[str, ...],
    n_samples: int | None,
    dtype: str,
    frames: int,
    kept: Path | None,
    compare: tuple[Path, Path] | None,
    overwrite: bool,
) -> None:
    """Measure how long MODEL takes for a frame, stage by stage, in milliseconds.

    A frame lies in memory before and its mean and spread after; files are not part of it. p50,
    p90 and p99 are percentiles over the frames, of each stage and, by the clock, of all (a p99
    needs a hundred); frames/s is of one frame after the other and, on a GPU, of two in flight.
    MAC are the network's multiply-accumulates for all draws.
    """
    from n2sr_deploy import bench
    from n2sr_deploy.model import ExportedModel

    if compare is not None:
        click.echo("\n".join(bench.comparison(*map(_read, compare))))
        return
    if model is None:
        raise click.UsageError("name a MODEL.onnx to measure, or two files with --compare")
    if kept is not None:
        files.check_output(kept, overwrite=overwrite, inputs=[model], suffixes=[".json"])
    workload = bench.Workload(
        sizes=sizes or ((512, 512), (1024, 1024)),
        backends=backends or ("auto",),
        dtype=dtype,
        n_samples=n_samples,
        n_frames=frames,
    )
    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("measuring", total=workload.n_rounds)
        result = bench.measure(ExportedModel.open(model), workload, lambda: shown.advance(task))
    click.echo("\n".join(bench.table(result)))
    if kept is not None:
        with files.replacing(kept, overwrite=overwrite) as temporary:
            temporary.write_text(json.dumps(result, indent=1))
        click.echo(f"{kept}: all of it, and the environment")


def _read(path: Path) -> Any:
    files.check_input(path)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise FileFormatError(f"{path} is not JSON ({error})") from error
