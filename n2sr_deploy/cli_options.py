"""Options that several commands share."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from n2sr_deploy.backends import BACKENDS
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.sampling import MAX_STRIDE, PATTERN_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.sampling import Shape

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
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the output if it exists."
)
repair_option = click.option(
    "--no-repair",
    is_flag=True,
    help="Leave hot pixels and offsets of rows and columns as they are.",
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
        f"2 to {MAX_STRIDE}; else the preset's.",
    )
    @click.option(
        "--seconds", type=float, help="End the training after this time, with the step it is in."
    )
    @click.option("--steps", type=int, help="Train at most this many steps.")
    @click.option(
        "--init",
        metavar="CHECKPOINT",
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
