"""`n2sr denoise`, joined to the n2sr group through ``n2sr.commands``."""

from __future__ import annotations

import logging
import shlex
from contextlib import contextmanager
from signal import SIGINT
from typing import TYPE_CHECKING, Literal

import click

from n2sr_deploy import files
from n2sr_deploy.cli_options import (
    PATH,
    backend_option,
    check_denoising,
    check_keep,
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
from n2sr_deploy.errors import N2SRError
from n2sr_deploy.formats import extensions
from n2sr_deploy.signals import ending, ignored
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from n2sr_deploy.denoise_file import FrameResult
    from n2sr_deploy.learning import LearnOptions
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.report import Known

_log = logging.getLogger("n2sr")


@click.command("denoise", short_help="Denoise a frame with a model, or learn one first.")
@click.argument("noisy", type=PATH)
@output_option(f"denoised frame: {' '.join(extensions(written=True))}")
@model_option
@click.option(
    "--keep",
    type=PATH,
    metavar="MODEL.onnx",
    help="Where to keep the network that is learned, for -m and further frames.",
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
    keep: Path | None,
    std: Path | None,
    report: Path | None,
    n_samples: int | None,
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
    from n2sr_deploy.denoise_file import denoise_file
    from n2sr_deploy.denoise_options import DenoiseOptions
    from n2sr_deploy.opening import Denoisers
    from n2sr_deploy.progress import shown_frames, shown_training

    check_denoising(model, n_samples, backend, options, std=std is not None, per_frame=per_frame)
    _check_stack(model, keep, frame, stack=stack, per_frame=per_frame)
    check_outputs([output] if std is None else [output, std], noisy, overwrite=overwrite)
    check_keep(keep, model, [noisy], options, learns=model is None, overwrite=overwrite)
    keeping = _Keeping(keep, overwrite=overwrite)
    judge = (
        None if report is None else _Judge(report, noisy, signal, stack=stack, overwrite=overwrite)
    )
    how = DenoiseOptions(
        model=None if model is None else str(model),
        n_samples=n_samples,
        backend=backend,
        signal=signal,
        stack=stack or per_frame,
        frame=frame,
        per_frame=per_frame,
        dtype=dtype,
        learn=options,
    )
    alone = model is not None
    with (
        keeping.though_unwritten(output),
        Denoisers() as denoisers,
        shown_frames("denoising", alone=alone) as on_frame,
    ):
        done = denoise_file(
            noisy,
            output,
            how,
            denoisers,
            std=std,
            overwrite=overwrite,
            training=shown_training,
            on_learned=keeping,
            on_frame=on_frame,
            on_result=judge or (lambda _: None),
        )
    frames = f"{done.n_frames} frames " if done.n_frames > 1 else ""
    click.echo(f"{output}: {frames}denoised, mean of {counted(done.n_samples, 'draw')}")
    if std is not None:
        click.echo(f"{std}: standard error of each pixel")
    if judge is not None:
        try:
            judge.write(output)
        except KeyboardInterrupt:
            network = model or (None if keeping.has_failed else keep)
            beside = {"--frame": frame, "--signal": signal, "-m": network}
            beside["--std"] = std if network is None else None  # which the network tells
            again = judge.command(output, beside)
            click.echo(f"the result is kept; its report is made by: {again}", err=True)
            raise
    if keeping.has_failed:
        raise click.ClickException(f"nothing was kept in {keep}, see above")


class _Keeping:
    """Writes what was learned to the file of --keep; without one, where its result cannot be."""

    def __init__(self, path: Path | None, *, overwrite: bool) -> None:
        self._path, self._overwrite = path, overwrite
        self.has_failed = False
        self._learned: ExportedModel | None = None

    def __call__(self, model: ExportedModel) -> None:
        self._learned = model
        if self._path is None:
            return
        try:
            model.save(self._path, overwrite=self._overwrite)
        except N2SRError as error:  # the frame can be denoised all the same
            self.has_failed = True
            _log.warning("what was learned is not kept there: %s", error)
            files.keep_elsewhere(model.save, self._path, ".onnx")
        else:
            click.echo(f"{self._path}: {model.describe()}")

    @contextmanager
    def though_unwritten(self, output: Path) -> Iterator[None]:
        """Keep what was learned last where no result comes of it: it took minutes."""
        try:
            yield
        except BaseException:
            if self._learned is not None and self._path is None:
                with ignored(SIGINT, *ending()):
                    files.keep_elsewhere(self._learned.save, output, ".onnx")
            raise


class _Judge:
    """Keeps what the report of a frame needs while its denoiser is open, and writes it."""

    def __init__(
        self, path: Path, noisy: Path, signal: str | None, *, stack: bool, overwrite: bool
    ) -> None:
        from n2sr_deploy.formats import open_frames
        from n2sr_deploy.report import check_report, check_size

        if stack:
            raise click.UsageError(
                "--report judges one frame: choose it with --frame and leave out --stack"
            )
        check_report(path, overwrite=overwrite, inputs=[noisy])
        with open_frames(noisy, signal) as opened:
            check_size(opened.shape)
        self._path, self._noisy, self._overwrite = path, noisy, overwrite
        self._result: FrameResult | None = None
        self._known: Known | None = None

    def __call__(self, result: FrameResult) -> None:
        from n2sr_deploy.report import known

        self._result = result
        self._known = known(
            result.denoiser,
            result.mended.repaired.frame,
            result.denoised,
            result.n_samples,
            result.seed,
            result.uncertainty,
        )

    def command(self, output: Path, options: Mapping[str, object]) -> str:
        """What makes the report of a result that is there; options that are None are left out."""
        parts = ["n2sr", "report", self._noisy, output, "-o", self._path]
        for name, value in options.items():
            parts += [] if value is None else [name, value]
        return shlex.join(map(str, parts)) + " --overwrite" * self._overwrite

    def write(self, output: Path) -> None:
        """The page and the picture; the verdict goes to stdout."""
        from n2sr_deploy.formats import read_frame
        from n2sr_deploy.report import picture_of, report_on

        if self._result is None:
            raise AssertionError("no frame was denoised")
        mended = self._result.mended
        noisy = mended.noisy
        which = f", frame {noisy.index}" if noisy.n_frames > 1 else ""
        findings = report_on(
            self._path,
            noisy,
            self._result.denoised.mean,
            title=f"{output.name}, denoised from {self._noisy.name}{which}",
            lines=(noisy.describe(), *read_frame(output).history),
            known=self._known,
            repairs=mended.repairs,
            overwrite=self._overwrite,
        )
        click.echo(findings.describe())
        click.echo(f"{self._path}: the report; {picture_of(self._path)}: the same as one picture")


def _check_stack(
    model: Path | None, keep: Path | None, frame: int | None, *, stack: bool, per_frame: bool
) -> None:
    if per_frame and keep is not None:
        raise click.UsageError(
            "--keep is for one network, but --per-frame learns many; leave one out"
        )
    if per_frame and frame is not None:
        raise click.UsageError("--per-frame learns from every frame; leave out --frame")
    if stack and model is not None and frame is not None:
        raise click.UsageError(
            "with --stack, --frame names the frame to learn from, but --model gives a network; "
            "leave one of the three out"
        )
