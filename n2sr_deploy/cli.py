"""The `n2sr` command. Results go to stdout, everything else to stderr.

Exit codes: 0 done; 1 the system failed; 2 the input or usage was wrong; 130 Ctrl-C ended it.
Other packages join commands through the entry-point group ``n2sr.commands``.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NoReturn

import click

from n2sr_deploy import formats
from n2sr_deploy.cli_options import (
    PATH,
    check_outputs,
    frame_option,
    json_option,
    output_option,
    overwrite_option,
    seed_option,
    signal_option,
    tell_json,
)
from n2sr_deploy.errors import (
    N2SRError,
    NotChosenError,
    OutputExistsError,
    SettingError,
    check_choice,
)
from n2sr_deploy.kernels import describe_kernels
from n2sr_deploy.signals import INTERRUPTED, INTERRUPTED_CODE, handled
from n2sr_deploy.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from n2sr_deploy.pattern import Shape


class _InputError(click.ClickException):
    exit_code = 2


class _Interrupted(click.ClickException):
    exit_code = INTERRUPTED_CODE


class _Group(click.Group):
    """Commands of this file and of the entry points; n2sr's errors become one line and exit 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        joined = {entry_point.name for entry_point in entry_points(group="n2sr.commands")}
        order = ["train", "export", "denoise", "batch", "report", "stream", "bench"]
        order += ["info", "simulate", "doctor"]
        names = joined | set(super().list_commands(ctx))
        return sorted(
            names,
            key=lambda name: (name not in order, order.index(name) if name in order else 0, name),
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry_point in entry_points(group="n2sr.commands", name=cmd_name):
            command: click.Command = entry_point.load()
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and not args[0].startswith("-"):  # as tab completion parses
            check_choice("the command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _telling_interrupts():  # of --help, which imports every command
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _telling_interrupts(), handled(_end):
                return super().invoke(ctx)
        except N2SRError as error:
            invoked = self.get_command(ctx, ctx.invoked_subcommand or "")
            raise _InputError(_told(error, invoked)) from error
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error}") from error


def _told(error: N2SRError, command: click.Command | None) -> str:
    """An error as one line, in which settings are the options that the command has for them."""
    told = " ".join(str(error).split())
    params = [] if command is None else command.params
    options = {p.name: max(p.opts, key=len) for p in params if isinstance(p, click.Option)}
    name, _, rest = told.partition(" ")
    if isinstance(error, SettingError) and name in options:
        return f"{options[name]} {rest}"
    if isinstance(error, NotChosenError) and "frame" in options:
        advice = error.advice.replace(" index=", f" {options['frame']} ")
        return f"{error.held}. {advice}"
    if isinstance(error, OutputExistsError) and "overwrite" in options:
        return f"{told} or pass --overwrite"
    return told


@contextmanager
def _telling_interrupts() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise _Interrupted(INTERRUPTED) from error


def _end(number: int, _: object) -> NoReturn:
    """SIGTERM ends a command as an error does, so no temporary file stays behind."""
    sys.exit(128 + number)


class _ToStderr(logging.Handler):
    """Says what the library logs as the command line speaks."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "Warning: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + record.getMessage(), err=True)


def _tell_version(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    """Load the kernels only when asked: see `n2sr_deploy.kernels`."""
    if is_asked:
        click.echo(f"n2sr {VERSION}, kernels: {describe_kernels()}")
        context.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Denoise electron-microscope frames with a network trained on the one noisy frame in hand."""
    logger = logging.getLogger("n2sr")
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr(logging.INFO))
        logger.setLevel(logging.INFO)
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our errors say it


@main.command(short_help="Tell what a frame, checkpoint or model is.")
@click.argument("file", type=PATH)
@frame_option
@click.option(
    "--second",
    type=int,
    metavar="N",
    help="Another frame of the same area: the noise is then measured from the difference.",
)
@signal_option
@click.option("--metadata", is_flag=True, help="Print all the file's own metadata, as JSON.")
@json_option
def info(
    file: Path,
    frame: int | None,
    second: int | None,
    signal: str | None,
    metadata: bool,
    as_json: bool,
) -> None:
    """Tell what FILE is: a frame and its noise, a checkpoint or an exported model."""
    from n2sr_deploy import describing

    if metadata and as_json:
        raise click.UsageError("--metadata and --json both print JSON; choose one")
    if describing.is_frame_file(file):
        with formats.open_frames(file, signal) as opened:
            if metadata:
                tell_json(dict(opened.read(frame or 0).metadata))
                return
            told = describing.describe_frame(opened, frame or 0, second)
    else:
        given = {"frame": frame, "second": second, "signal": signal, "metadata": metadata or None}
        for name, value in given.items():
            if value is not None:
                raise click.UsageError(
                    f"--{name} is about frames, but {file} is none; leave it out"
                )
        told = describing.describe_network(file)
    if as_json:
        tell_json({"file": str(file), **told.facts})
    else:
        click.echo(f"{file}: " + "\n  ".join(told.lines))


@main.command(short_help="Tell what n2sr finds on this machine.")
@json_option
def doctor(as_json: bool) -> None:
    """Tell versions, kernels, backends, processor and GPU, and why something is missing."""
    from n2sr_deploy.doctor import report

    if as_json:
        tell_json(dict(report()))
        return
    for topic, finding in report():
        click.echo(f"{topic:22} {finding}")


@main.command(short_help="Make a noisy phantom to try n2sr on.")
@output_option(f"noisy frame: {' '.join(formats.extensions(written=True))}")
@click.option(
    "--clean",
    type=PATH,
    metavar="FILE",
    help="Also write the clean phantom.",
)
@click.option("--size", type=int, nargs=2, default=(512, 512), show_default=True, metavar="H W")
@click.option(
    "--spacing", type=float, default=24.0, show_default=True, help="Pixels between atom columns."
)
@click.option(
    "--gain", type=float, default=0.05, show_default=True, help="Noise variance per intensity."
)
@click.option(
    "--read-noise",
    type=float,
    default=0.02,
    show_default=True,
    help="Standard deviation of the noise in the dark.",
)
@seed_option
@overwrite_option
def simulate(
    output: Path,
    clean: Path | None,
    size: Shape,
    spacing: float,
    gain: float,
    read_noise: float,
    seed: int,
    overwrite: bool,
) -> None:
    """Make a clean lattice phantom and one noisy draw from it, to try n2sr without data.

    Intensities are 0.25 to 0.65; the noise has variance gain * intensity + read_noise^2.
    """
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.phantom import clean_phantom, noisy_draw

    check_outputs([output] if clean is None else [output, clean], None, overwrite=overwrite)
    phantom = clean_phantom(size, spacing=spacing, seed=seed)
    noisy = noisy_draw(phantom, gain=gain, read_noise=read_noise, seed=seed)
    done = f"n2sr {VERSION}: phantom, spacing {spacing:g}, seed {seed}"
    frame = Frame(pixels=phantom, history=(done,))
    noise = f"noise of gain {gain:g}, read noise {read_noise:g}, seed {seed}"
    formats.write_frame(output, frame.with_pixels(noisy, noise), overwrite=overwrite)
    click.echo(f"{output}: {size[0]} x {size[1]} phantom with {noise}")
    if clean is not None:
        formats.write_frame(clean, frame, overwrite=overwrite)
        click.echo(f"{clean}: the clean phantom")
