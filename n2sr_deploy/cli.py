"""The `n2sr` command. Results go to stdout, everything else to stderr.

Exit codes: 0 done; 1 the system failed or the user stopped it; 2 the input or usage was wrong.
Other packages join commands through the entry-point group ``n2sr.commands``.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import click

from n2sr_deploy import files, formats, sampling
from n2sr_deploy.cli_options import (
    PATH,
    backend_option,
    frame_option,
    output_option,
    overwrite_option,
    seed_option,
    training_options,
)
from n2sr_deploy.errors import FileFormatError, MissingExtraError, ModelError, N2SRError
from n2sr_deploy.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.frame import Frame
    from n2sr_deploy.learning import LearnOptions
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.sampling import Shape


class _InputError(click.ClickException):
    exit_code = 2


class _Group(click.Group):
    """Commands of this file and of the entry points; n2sr's errors become one line and exit 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        joined = {entry_point.name for entry_point in entry_points(group="n2sr.commands")}
        order = ["train", "export", "denoise", "report", "stream", "bench"]
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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except N2SRError as error:
            raise _InputError(" ".join(str(error).split())) from error
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error}") from error


class _ToStderr(logging.Handler):
    """Says what the library logs as the command line speaks."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "Warning: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + record.getMessage(), err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    VERSION,
    prog_name="n2sr",
    message=f"%(prog)s %(version)s, kernels: {sampling.describe_kernels()}",
)
def main() -> None:
    """Denoise electron-microscope frames with a network trained on the one noisy frame in hand."""
    logger = logging.getLogger("n2sr")
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr(logging.INFO))
        logger.setLevel(logging.INFO)
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our errors say it


@main.command(short_help="Denoise a frame with a model, or learn one first.")
@click.argument("noisy", type=PATH)
@output_option("denoised frame: .tif, .mrc or .npy")
@click.option(
    "-m",
    "--model",
    type=PATH,
    metavar="MODEL.onnx",
    help="An exported model. Without it, a network is trained on NOISY first.",
)
@click.option(
    "--std",
    type=PATH,
    metavar="FILE",
    help="Also write the calibrated standard error of each pixel.",
)
@click.option(
    "--report",
    type=PATH,
    metavar="FILE.html",
    help="Also judge the result: a page, and a .png of the same name beside it.",
)
@click.option(
    "-M",
    "--samples",
    type=int,
    metavar="M",
    help="Draws to average; by default the model's own number.",
)
@backend_option
@frame_option
@training_options
@seed_option
@overwrite_option
def denoise(
    noisy: Path,
    output: Path,
    model: Path | None,
    std: Path | None,
    report: Path | None,
    samples: int | None,
    backend: str,
    frame: int | None,
    options: LearnOptions,
    overwrite: bool,
) -> None:
    """Denoise the frame NOISY. The raw file is only read."""
    from n2sr_deploy.backends import check_backend
    from n2sr_deploy.defects import repair, untouched
    from n2sr_deploy.opening import open_denoiser

    if model is not None:
        _refuse_training_options(options)
    _check_outputs([output] if std is None else [output, std], noisy, overwrite=overwrite)
    if report is not None:
        from n2sr_deploy.report import check_report

        check_report(report, overwrite=overwrite, inputs=[noisy])
    if samples is not None and not 1 <= samples <= sampling.MAX_SAMPLES:
        raise click.UsageError(
            f"--samples is {samples}, but must be 1 to {sampling.MAX_SAMPLES} draws"
        )
    check_backend(backend)
    if model is None and backend.startswith("tensorrt"):
        raise click.UsageError(
            f"--backend {backend} needs an engine, and that a model: n2sr train, then n2sr export "
            f"with --engine {backend}; or leave out --backend"
        )
    noisy_frame = formats.read_frame(noisy, frame)
    repaired = repair(noisy_frame) if options.repair else untouched(noisy_frame)
    if model is not None and repaired.describe():
        click.echo(f"mended: {repaired.describe()}", err=True)
    seed = options.seed or 0
    if std is not None and samples == 1:
        raise click.UsageError("--std needs at least 2 draws: one draw has no spread")
    exported = _model(model, noisy_frame, options)
    shape = noisy_frame.shape
    with open_denoiser(exported, backend, shape=shape, n_samples=samples) as denoiser:
        denoised = denoiser.denoise(repaired.frame, samples, seed=seed)
        known = None
        if std is not None or report is not None:
            from n2sr_deploy.report.reporting import known as known_of

            known = known_of(
                denoiser, repaired.frame, denoised, samples, seed, with_halves=report is not None
            )
        meta, runs_on = denoiser.model.metadata, denoiser.name
    done = (
        f"n2sr {VERSION}: {{}} of {samples or meta.n_samples} draws, seed {seed}, "
        f"frame {noisy_frame.index} of {noisy_frame.n_frames}, preset {meta.preset}, "
        f"pattern {meta.pattern}, weights {meta.weights_sha256[:12]}, {runs_on}"
    )
    formats.write_frame(
        output, repaired.frame.with_pixels(denoised.mean, done.format("mean")), overwrite=overwrite
    )
    click.echo(f"{output}: denoised, mean of {samples or meta.n_samples} draws")
    if std is not None and known is not None and known.spread is not None:
        formats.write_frame(
            std,
            repaired.frame.with_pixels(known.spread, done.format("standard error")),
            overwrite=overwrite,
        )
        click.echo(f"{std}: calibrated standard error; {known.told}")
    if report is not None:
        from n2sr_deploy.report import picture_of, report_on

        findings = report_on(
            report,
            noisy_frame,
            denoised.mean,
            title=f"{output.name}, denoised from {noisy.name}",
            lines=(noisy_frame.describe(), done.format("mean")),
            known=known,
            overwrite=overwrite,
        )
        click.echo(findings.describe())
        click.echo(f"{report}: the report; {picture_of(report)}: the same as one picture")


@main.command(short_help="Tell what a frame, checkpoint or model is.")
@click.argument("file", type=PATH)
@click.option(
    "--frame", type=int, default=0, metavar="N", help="Which frame of a stack, counted from 0."
)
@click.option(
    "--second",
    type=int,
    metavar="N",
    help="Another frame of the same area: the noise is then measured from the difference.",
)
def info(file: Path, frame: int, second: int | None) -> None:
    """Tell what FILE is: a frame and its noise, a checkpoint or an exported model."""
    from n2sr_deploy.model import ExportedModel, looks_like_checkpoint

    files.check_input(file)
    with file.open("rb") as opened:
        is_checkpoint = looks_like_checkpoint(opened.read(9))
    if is_checkpoint:
        click.echo(f"{file}: {_describe_checkpoint(file)}")
    elif formats.is_frame_file(file):
        found = formats.read_frame(file, frame)
        click.echo(f"{file}: {found.describe()}")
        for key, value in found.metadata.items():
            click.echo(f"  {key}: {value}")
        for line in found.history:
            click.echo(f"  history: {line}")
        for line in _noise_lines(
            found, None if second is None else formats.read_frame(file, second)
        ):
            click.echo(f"  {line}")
    else:
        try:
            click.echo(f"{file}: {ExportedModel.open(file).describe()}")
        except ModelError as error:
            if file.suffix == ".onnx":
                raise
            raise FileFormatError(
                f"{file} is no frame, checkpoint or exported model that n2sr reads"
            ) from error


@main.command(short_help="Tell what n2sr finds on this machine.")
def doctor() -> None:
    """Tell versions, kernels, backends, processor and GPU, and why something is missing."""
    from n2sr_deploy.doctor import report

    for topic, finding in report():
        click.echo(f"{topic:22} {finding}")


@main.command(short_help="Make a noisy phantom to try n2sr on.")
@output_option("noisy frame: .tif, .mrc or .npy")
@click.option(
    "--clean",
    type=PATH,
    metavar="FILE",
    help="Also write the clean phantom.",
)
@click.option("--shape", type=int, nargs=2, default=(512, 512), show_default=True, metavar="H W")
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
    shape: Shape,
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

    _check_outputs([output] if clean is None else [output, clean], None, overwrite=overwrite)
    phantom = clean_phantom(shape, spacing=spacing, seed=seed)
    noisy = noisy_draw(phantom, gain=gain, read_noise=read_noise, seed=seed)
    done = f"n2sr {VERSION}: phantom, spacing {spacing:g}, seed {seed}"
    frame = Frame(pixels=phantom, history=(done,))
    noise = f"noise of gain {gain:g}, read noise {read_noise:g}, seed {seed}"
    formats.write_frame(output, frame.with_pixels(noisy, noise), overwrite=overwrite)
    click.echo(f"{output}: {shape[0]} x {shape[1]} phantom with {noise}")
    if clean is not None:
        formats.write_frame(clean, frame, overwrite=overwrite)
        click.echo(f"{clean}: the clean phantom")


def _noise_lines(frame: Frame, second: Frame | None) -> list[str]:
    """What the noise is, and the pattern it asks for."""
    from n2sr_deploy.noise import SMALLEST, choose_pattern, measure_noise

    if min(frame.shape) < SMALLEST or (second is None and frame.pixels.min() == frame.pixels.max()):
        return []
    noise = measure_noise(frame, second)
    return [f"found: {noise.describe()}", choose_pattern(noise)[2]]


def _refuse_training_options(options: LearnOptions) -> None:
    for name in ("preset", "pattern", "stride", "seconds", "steps", "init", "device"):
        if getattr(options, name) is not None:
            raise click.UsageError(
                f"--{name} is about training, but --model gives a trained network; leave one out"
            )


def _check_outputs(outputs: list[Path], raw: Path | None, *, overwrite: bool) -> None:
    """Refuse, before any work, what could not be written afterwards, and the raw file itself."""
    for output in outputs:
        formats.check_writable(output, overwrite=overwrite, inputs=[raw] if raw else [])
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise click.UsageError(
            f"{outputs[0]} is named for two outputs; give each a file of its own"
        )


def _model(path: Path | None, frame: Frame, options: LearnOptions) -> ExportedModel:
    """The model that is given, or one learned from the frame."""
    from n2sr_deploy.learning import learn
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.progress import shown_training

    if path is not None:
        return ExportedModel.open(path)
    with shown_training() as progress:
        return learn(frame, options, progress)


def _describe_checkpoint(path: Path) -> str:
    """In the words of the package that reads checkpoints."""
    for entry_point in entry_points(group="n2sr.descriptions", name="checkpoint"):
        description: str = entry_point.load()(path)
        return description
    raise MissingExtraError("reading a checkpoint", "n2sr_train", "train")
