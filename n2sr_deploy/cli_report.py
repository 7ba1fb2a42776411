"""`n2sr report`, joined to the n2sr group through ``n2sr.commands``."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import click
import numpy as np

from n2sr_deploy.cli_options import (
    PATH,
    backend_option,
    frame_option,
    json_option,
    output_option,
    overwrite_option,
    repair_option,
    signal_option,
    tell_json,
)

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.displaced_rows import Hum
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.mending import Mended
    from n2sr_deploy.report import Known
    from n2sr_deploy.sampling import AnyArray, FloatArray

_log = logging.getLogger("n2sr")
_ANOTHER = 0.5  # of what a network takes away: backends and rounding differ by far less


@dataclass(frozen=True, kw_only=True)
class _Made:
    """How a result was made, as far as it says so itself."""

    path: Path
    weights: str | None = None
    n_samples: int | None = None
    seed: int = 0
    repair: bool = True
    frames: str | None = None
    """``frame 1 of 2``, or of a whole stack ``frames 0 to 4``."""
    hum: Hum | None = None
    """That displaced rows which were put straight, where it is known."""

    @classmethod
    def of(cls, result: Frame, path: Path, seed: int | None) -> Self:
        """By the record that `n2sr denoise` writes; of other results the defaults."""
        from n2sr_deploy.displaced_rows import Hum

        told = result.metadata.get("n2sr")
        record = told if isinstance(told, dict) else {}
        return cls(
            path=path,
            weights=record.get("weights_sha256"),
            n_samples=record.get("n_samples"),
            seed=record.get("seed", 0) if seed is None else seed,
            repair=record.get("repair", True),
            frames=record.get("frames"),
            hum=Hum.from_dict(record["hum"]) if record.get("hum") else None,
        )

    def with_hum(self, mended: AnyArray, judged: FloatArray) -> Self:
        """With that of a frame of a stack, whose record was written before it was found."""
        from n2sr_deploy.scan_hum import find_hum_between

        if not (self.repair and (self.frames or "").startswith("frames")):
            return self
        return replace(self, hum=find_hum_between(mended, judged))

    def check_frame(self, noisy: Path, frame: Frame) -> None:
        """Refuse another frame of the stack than the one it was made of."""
        said = re.fullmatch(r"frame (\d+) of (\d+)", self.frames or "")
        if said and int(said[2]) == frame.n_frames and int(said[1]) != frame.index:
            raise click.UsageError(
                f"{self.path} was made of frame {said[1]} of {said[2]}, but is to be judged by "
                f"frame {frame.index} of {noisy}; say --frame {said[1]}"
            )

    def check_model(self, path: Path, weights: str) -> None:
        """Refuse a network that did not make it."""
        from n2sr_deploy.errors import ModelError

        if self.weights is not None and self.weights != weights:
            raise ModelError(
                f"{path} has weights {weights[:12]}, but {self.path} was made with "
                f"{self.weights[:12]}; give the model that made it, or leave out --model"
            )

    def tell_if_another(
        self, model: Path, judged: FloatArray, again: FloatArray, noisy: AnyArray
    ) -> None:
        """Warn where the network makes something else of the noisy frame."""
        off, taken_away = (float(np.std(image - again)) for image in (judged, noisy))
        if off > _ANOTHER * taken_away:
            _log.warning(
                "%s is not what %s makes of the noisy frame: they differ by %.2g counts, where the "
                "network takes away %.2g; it was made of another frame or changed since, and what "
                "unseen pixels confirm is told of the network's",
                self.path,
                model,
                off,
                taken_away,
            )


@click.command("report", short_help="Judge a denoised frame, on one page.")
@click.argument("noisy", type=PATH)
@click.argument("denoised", type=PATH)
@output_option("page: .html; a .png of the same name is written beside it")
@click.option(
    "-m",
    "--model",
    type=PATH,
    metavar="MODEL.onnx",
    help="The network that denoised it: adds the standard error and what unseen pixels confirm.",
)
@click.option(
    "--std",
    type=PATH,
    metavar="FILE",
    help="The standard error that n2sr denoise --std wrote, where there is no --model.",
)
@click.option(
    "--second",
    type=PATH,
    metavar="FILE",
    help="Another exposure of the same area, registered: adds the true error.",
)
@click.option(
    "--second-frame",
    type=int,
    metavar="N",
    help="Which frame of --second, counted from 0; alone: of NOISY.",
)
@frame_option
@signal_option
@backend_option
@repair_option
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    help="Of the draws with --model; by default what DENOISED says of itself, else 0.",
)
@json_option
@overwrite_option
def report_command(
    noisy: Path,
    denoised: Path,
    output: Path,
    model: Path | None,
    std: Path | None,
    second: Path | None,
    second_frame: int | None,
    frame: int | None,
    signal: str | None,
    backend: str,
    no_repair: bool,
    seed: int | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Judge DENOISED by the frame NOISY it was made of.

    Is signal left in the residual, is noise left in the result, did anything appear that the data
    do not support? The page needs no other file and no network. Neither input is changed.
    --frame and --signal are of NOISY; of a stack DENOISED and --std are read at the same frame.
    """
    from n2sr_deploy.displaced_rows import displaced
    from n2sr_deploy.formats import open_frames, read_frame
    from n2sr_deploy.mending import mend
    from n2sr_deploy.report import check_report, picture_of, report_on
    from n2sr_deploy.report.reporting import check_pixel_size, check_second

    if std is not None and model is not None:
        raise click.UsageError("--std and --model both tell the standard error; leave one out")
    if second is None and second_frame is not None:
        second = noisy
    inputs = [path for path in (noisy, denoised, model, std, second) if path is not None]
    check_report(output, overwrite=overwrite, inputs=inputs)
    noisy_frame = read_frame(noisy, frame, signal)
    result = _same_frame(denoised, noisy_frame)
    if noisy_frame.is_denoised and not result.is_denoised:
        raise click.UsageError(
            f"{noisy} is a result of n2sr and {denoised} is none: name the noisy frame first"
        )
    check_pixel_size("denoised frame", result, noisy_frame)
    made = _Made.of(result, denoised, seed)
    made.check_frame(noisy, noisy_frame)
    mended = mend(noisy_frame, repairs=made.repair and not no_repair)
    other = None
    if second is not None:
        with open_frames(second, signal if second == noisy else None) as opened:
            if second_frame is None and len(opened) > 1:
                raise click.UsageError(
                    f"{second} holds {len(opened)} frames; choose the other exposure with "
                    f"--second-frame 0 to --second-frame {len(opened) - 1}"
                )
            other = opened.read(second_frame)
        is_same = second.resolve() == noisy.resolve() and other.index == noisy_frame.index
        check_second(other, noisy_frame, is_same=is_same)
        check_pixel_size("second exposure", other, noisy_frame)
        other = other.cropped(*mended.part)
    which = f", frame {noisy_frame.index}" if noisy_frame.n_frames > 1 else ""
    lines = [f"{noisy.name}{which}: {noisy_frame.describe()}", *result.history]
    if mended.noisy.shape != noisy_frame.shape:
        height, width = mended.noisy.shape
        lines.append(f"judged is what was measured of it: {height} x {width} pixels")
    if second is not None and other is not None:
        lines.append(f"second exposure: {second.name}, frame {other.index}")
    judged = _measured("denoised frame", result, noisy_frame, mended)
    made = made.with_hum(mended.repaired.frame.pixels, judged)
    if made.hum is not None:
        judged = displaced(judged, made.hum)
        lines.append("judged with its rows where they were scanned")
    findings = report_on(
        output,
        mended.noisy,
        judged,
        title=f"{denoised.name}, denoised from {noisy.name}{which}",
        lines=tuple(lines),
        known=_known(model, std, noisy_frame, mended, judged, backend, made),
        second=other,
        repairs=mended.repairs,
        overwrite=overwrite,
    )
    if as_json:
        tell_json({"report": str(output), **findings.to_dict()})
        return
    click.echo(findings.describe())
    click.echo(f"{output}: the report; {picture_of(output)}: the same as one picture")


def _same_frame(path: Path, noisy: Frame) -> Frame:
    """That of the noisy frame's place, in a file of as many; else the only one."""
    from n2sr_deploy.formats import open_frames

    with open_frames(path) as opened:
        return opened.read(noisy.index if len(opened) == noisy.n_frames else None)


def _measured(name: str, frame: Frame, noisy: Frame, mended: Mended) -> FloatArray:
    """What lies where the noisy frame was measured."""
    from n2sr_deploy.report.measuring import check_shape

    check_shape(name, frame.shape, noisy)
    return frame.pixels[mended.part].astype(np.float32)


def _known(
    model: Path | None,
    std: Path | None,
    noisy: Frame,
    mended: Mended,
    judged: FloatArray,
    backend: str,
    made: _Made,
) -> Known | None:
    """What the network, or a file it wrote, tells."""
    from n2sr_deploy.displaced_rows import displaced
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.opening import open_denoiser
    from n2sr_deploy.report import Known, known

    if std is not None:
        error = _measured("standard error", _same_frame(std, noisy), noisy, mended)
        return Known(error if made.hum is None else np.maximum(displaced(error, made.hum), 0))
    if model is None:
        return None
    frame = mended.repaired.frame
    opened, n_samples = ExportedModel.open(model), made.n_samples
    made.check_model(model, opened.metadata.weights_sha256)
    shape = frame.shape
    with open_denoiser(opened, backend, shape=shape, n_samples=n_samples) as denoiser:
        again = denoiser.denoise(frame, n_samples, seed=made.seed)
        made.tell_if_another(model, judged, again.mean, frame.pixels)
        return known(denoiser, frame, again, n_samples=n_samples, seed=made.seed)
