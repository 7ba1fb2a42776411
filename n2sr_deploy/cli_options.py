"""Options that several commands share."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from n2sr_deploy import files, formats
from n2sr_deploy.backends import BACKENDS, check_backend
from n2sr_deploy.formats.metadata import finite, plain_values
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.pattern import MAX_STRIDE, PATTERN_NAMES
from n2sr_deploy.sampling import LIVE_SAMPLES, MAX_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.pattern import Shape

    Command = Callable[..., None]


PATH = click.Path(path_type=Path, readable=False)  # readable: our own error tells the fix


class StrideType(click.ParamType["Shape"]):
    """``2`` or ``2,3``: one stride for both axes, or rows,columns."""

    name = "stride"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Shape:
        """``"2"`` -> (2, 2); ``"2,3"`` -> (2, 3)."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2):
            self.fail(
                f"{value!r} is no stride; give one number, or rows,columns like 2,3", param, ctx
            )
        return numbers[0], numbers[-1]


def output_option(metavar: str, *, required: bool = True) -> Callable[[Command], Command]:
    """-o, where the result goes."""
    return click.option(
        "-o",
        "--output",
        required=required,
        type=PATH,
        metavar="FILE",
        help=f"Where to write the {metavar}.",
    )


frame_option = click.option(
    "--frame", type=int, metavar="N", help="Which frame of a stack, counted from 0."
)
signal_option = click.option(
    "--signal",
    metavar="NAME",
    help="Which signal of a file that holds several; in HDF5, the path of a dataset.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "same"]),
    default="float32",
    show_default=True,
    help="Of the result; same: the integer type of the input, by rounding and clipping.",
)
model_option = click.option(
    "-m",
    "--model",
    type=PATH,
    metavar="MODEL.onnx",
    help="An exported model. Without it, a network is learned first.",
)
samples_option = click.option(
    "-M",
    "--samples",
    "n_samples",
    type=int,
    metavar="M",
    help="Draws to average; by default the model's own number.",
)
live_samples_option = click.option(
    "-M",
    "--samples",
    "n_samples",
    type=int,
    metavar="M",
    help=f"Draws to average; by default {LIVE_SAMPLES}, or the model's own number if that is less.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print it as JSON, for other programs."
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the output if it exists."
)
repair_option = click.option(
    "--no-repair",
    is_flag=True,
    help="Leave hot pixels, offsets of rows and columns, and rows that hum displaced as they are.",
)
backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", *BACKENDS]),
    default="auto",
    show_default=True,
    help="What runs the network; auto: a GPU where one works, then OpenVINO, then ONNX Runtime.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of everything random; the same seed gives the same result.",
)


def training_options(command: Command) -> Command:
    """Add the options of a training and pass them, with `seed`, as `options: LearnOptions`."""

    @click.option(
        "--preset",
        help="The recipe: fast, balanced (unless you name one), best, or paper (a day or more).",
    )
    @click.option(
        "--pattern",
        type=click.Choice(PATTERN_NAMES),
        help="Which pixels a draw keeps: one of every cell (for white noise), whole rows (noise "
        "correlated along rows, as in STEM), or whole columns; by default what the noise asks for.",
    )
    @click.option(
        "--stride",
        type=StrideType(),
        metavar="N[,N]",
        help="Pixels in a cell along an axis, or rows,columns: "
        f"2 to {MAX_STRIDE}; by default what the noise asks for; 2 where --pattern is named.",
    )
    @click.option(
        "--seconds",
        type=float,
        help="End the training, the judgement at its end included, after this time.",
    )
    @click.option("--steps", type=int, help="Train at most this many steps.")
    @click.option(
        "--init",
        metavar="CHECKPOINT|MODEL.onnx",
        help="Start from another frame's network; or `random`. By default from the weights that "
        "n2sr carries.",
    )
    @repair_option
    @click.option("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one.")
    @functools.wraps(command)
    def with_options(
        *args: Any,
        preset: str | None,
        pattern: str | None,
        stride: Shape | None,
        seconds: float | None,
        steps: int | None,
        init: str | None,
        no_repair: bool,
        device: str | None,
        seed: int,
        **kwargs: Any,
    ) -> None:
        options = LearnOptions(
            preset=preset,
            pattern=pattern,
            stride=stride,
            seconds=seconds,
            steps=steps,
            seed=seed,
            init=init,
            repair=not no_repair,
            device=device,
        )
        command(*args, options=options, **kwargs)

    return with_options


def check_outputs(outputs: list[Path], raw: Path | None, *, overwrite: bool) -> None:
    """Refuse, before any work, what could not be written afterwards, and the raw file itself.

    What killed commands left of these outputs is removed.
    """
    for output in outputs:
        files.remove_leftovers(output)
        formats.check_writable(output, overwrite=overwrite, inputs=[raw] if raw else [])
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise click.UsageError(
            f"{outputs[0]} is named for two outputs; give each a file of its own"
        )


def check_keep(
    keep: Path | None,
    model: Path | None,
    inputs: list[Path],
    options: LearnOptions,
    *,
    learns: bool,
    overwrite: bool,
    or_else: str = "",
) -> None:
    """Refuse, before any work, a --keep with nothing to keep, and what could not be written."""
    if keep is None:
        return
    if not learns:
        raise click.UsageError(
            "--keep is for what is learned, but --model gives a trained network; leave one out"
            + or_else
        )
    given = [*inputs, *(Path(path) for path in (model, options.init) if path is not None)]
    files.check_output(keep, overwrite=overwrite, inputs=given, suffixes=[".onnx"])


def refuse_training(options: LearnOptions, hint: str) -> None:
    """Refuse options that only a training has, beside a model."""
    if options.named:
        raise click.UsageError(
            f"--{options.named[0]} is about training, but --model gives a trained network; {hint}"
        )


def check_denoising(
    model: Path | None,
    n_samples: int | None,
    backend: str,
    options: LearnOptions,
    *,
    std: bool,
    per_frame: bool,
) -> None:
    """Refuse, before any work, options that are out of range or contradict each other."""
    if model is not None:
        refuse_training(options, "leave one out")
    if per_frame and model is not None:
        raise click.UsageError(
            "--per-frame learns a network for each frame, but --model gives one; leave one out"
        )
    if n_samples is not None and not 1 <= n_samples <= MAX_SAMPLES:
        raise click.UsageError(f"--samples is {n_samples}, but must be 1 to {MAX_SAMPLES} draws")
    if std and n_samples == 1:
        raise click.UsageError("--std needs at least 2 draws: one draw has no spread")
    check_backend(backend)
    if model is None and backend.startswith("tensorrt"):
        raise click.UsageError(
            f"--backend {backend} needs an engine, and that a model: n2sr train, then n2sr export "
            f"with --engine {backend}; or leave out --backend"
        )


def tell_json(value: Any) -> None:
    """Print it; numbers that JSON has no word for as null."""
    click.echo(json.dumps(finite(plain_values(value)), indent=1, allow_nan=False))
