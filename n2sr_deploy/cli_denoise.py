"""`n2sr denoise`, joined to the n2sr group through ``n2sr.commands``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from n2sr_deploy import files
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
from n2sr_deploy.errors import N2SRError
from n2sr_deploy.formats import extensions
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from n2sr_deploy.denoise_file import FrameResult
    from n2sr_deploy.learning import LearnOptions
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.report import Known


@click.command("denoise", short_help="Denoise a frame with a model, or learn one first.")
@click.argument("noisy", type=PATH)
@output_option(f"denoised frame: {' '.join(extensions(written=True))}")
@model_option
@click.option(
    "--keep",
    type=PATH,
    metavar="MODEL.onnx",
    help="Keep the network that is learned there, for -m and further frames.",
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
    from n2sr_deploy.denoise_file import denoise_file
    from n2sr_deploy.denoise_options import DenoiseOptions
    from n2sr_deploy.opening import Denoisers
    from n2sr_deploy.progress import shown_frames, shown_training

    check_denoising(model, samples, backend, options, std=std is not None, per_frame=per_frame)
    _check_stack(model, frame, stack=stack, per_frame=per_frame)
    check_outputs([output] if std is None else [output, std], noisy, overwrite=overwrite)
    keeping = _Keeping(keep, noisy, model, options, per_frame=per_frame, overwrite=overwrite)
    judge = (
        None if report is None else _Judge(report, noisy, signal, stack=stack, overwrite=overwrite)
    )
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
            judge.write(output, noisy)
        except KeyboardInterrupt:
            what = f"n2sr report {noisy} {output} -o {report}"
            click.echo(f"the result is kept; its report is made by: {what}", err=True)
            raise
    keeping.check()


class _Keeping:
    """Writes what was learned to the file of --keep, if there is one."""

    def __init__(
        self,
        path: Path | None,
        noisy: Path,
        model: Path | None,
        options: LearnOptions,
        *,
        per_frame: bool,
        overwrite: bool,
    ) -> None:
        self._path, self._overwrite = path, overwrite
        self._error: N2SRError | None = None
        if path is None:
            return
        if model is not None:
            raise click.UsageError(
                "--keep is for what is learned, but --model gives a trained network; leave one out"
            )
        if per_frame:
            raise click.UsageError(
                "--keep is for one network, but --per-frame learns one for each frame; leave one "
                "out"
            )
        given = [noisy, *([] if options.init is None else [Path(options.init)])]
        files.check_output(path, overwrite=overwrite, inputs=given, suffix=".onnx")

    def __call__(self, model: ExportedModel) -> None:
        if self._path is None:
            return
        try:
            model.save(self._path, overwrite=self._overwrite)
        except N2SRError as error:  # told at the end: the frame can be denoised all the same
            self._error = error
        else:
            click.echo(f"{self._path}: {model.describe()}")

    def check(self) -> None:
        """Raise what kept the model from being written."""
        if self._error is not None:
            raise self._error


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
        self._path, self._overwrite = path, overwrite
        self._result: FrameResult | None = None
        self._known: Known | None = None

    def __call__(self, result: FrameResult) -> None:
        from n2sr_deploy.report import known

        self._result = result
        self._known = known(
            result.denoiser,
            result.mended,
            result.denoised,
            result.n_samples,
            result.seed,
            result.uncertainty,
        )

    def write(self, output: Path, noisy: Path) -> None:
        """The page and the picture; the verdict goes to stdout."""
        from n2sr_deploy.formats import read_frame
        from n2sr_deploy.report import picture_of, report_on

        if self._result is None:
            raise AssertionError("no frame was denoised")
        findings = report_on(
            self._path,
            self._result.noisy,
            self._result.denoised.mean,
            title=f"{output.name}, denoised from {noisy.name}",
            lines=(self._result.noisy.describe(), *read_frame(output).history),
            known=self._known,
            overwrite=self._overwrite,
        )
        click.echo(findings.describe())
        click.echo(f"{self._path}: the report; {picture_of(self._path)}: the same as one picture")


def _check_stack(model: Path | None, frame: int | None, *, stack: bool, per_frame: bool) -> None:
    if per_frame and frame is not None:
        raise click.UsageError("--per-frame learns from every frame; leave out --frame")
    if stack and model is not None and frame is not None:
        raise click.UsageError(
            "with --stack, --frame names the frame to learn from, but --model gives a network; "
            "leave one of the three out"
        )
