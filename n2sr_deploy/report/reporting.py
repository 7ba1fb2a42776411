"""From a frame and its result to the files of a report: what the commands call."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy import files
from n2sr_deploy.errors import FrameError, SettingError
from n2sr_deploy.formats.units import size_in_nm
from n2sr_deploy.report.cross_validation import HalfResult, Halves, draws_of_a_half, unseen_by
from n2sr_deploy.report.drawing import check_drawing, overview_png
from n2sr_deploy.report.measuring import check_shape, measure
from n2sr_deploy.report.page import page
from n2sr_deploy.uncertainty import standard_error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from n2sr_deploy.denoiser import Denoised
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.opening import Opened
    from n2sr_deploy.report.findings import ReportFindings
    from n2sr_deploy.sampling import FloatArray
    from n2sr_deploy.uncertainty import Uncertainty

_log = logging.getLogger("n2sr")
_SAME_SIZE = 0.02  # by which sizes may differ that were calibrated apart


class Known(NamedTuple):
    """What only the network can tell of a result."""

    standard_error: FloatArray | None
    """(H, W), counts: calibrated."""
    halves: Halves | None = None


def check_report(path: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise, before any work, what would keep a report from being written.

    Raises
    ------
    MissingExtraError
        When matplotlib is not installed.
    OutputError
        When the page or the picture beside it cannot become a new file.
    """
    check_drawing()
    inputs = list(inputs)
    files.check_output(path, overwrite=overwrite, inputs=inputs, suffixes=[".html"])
    files.check_output(picture_of(path), overwrite=overwrite, inputs=inputs)


def picture_of(path: Path) -> Path:
    """The PNG beside a page."""
    return path.with_suffix(".png")


def known(
    denoiser: Opened,
    frame: Frame,
    denoised: Denoised | None = None,
    n_samples: int | None = None,
    seed: int = 0,
    uncertainty: Uncertainty | None = None,
) -> Known:
    """The standard error and two half-results, by denoising a few times more.

    Parameters
    ----------
    denoiser
        Of the network that made the result.
    frame
        (H, W) in counts, mended as it was denoised.
    denoised
        The result and its raw spread, if at hand.
    n_samples, seed
        Of the result.
    uncertainty
        The standard error, if at hand.

    Returns
    -------
    The standard error, None for a single draw; and two half-results with the pixels they never saw.

    Raises
    ------
    FrameError
        When the network cannot denoise the frame.
    """
    _log.info("judging the result, by denoising again")
    n_samples = n_samples or denoiser.model.metadata.n_samples
    if denoised is None:
        denoised = denoiser.denoise(frame, n_samples, seed=seed)
    if uncertainty is None and n_samples > 1:
        uncertainty = standard_error(
            frame, denoised, lambda twin: denoiser.denoise(twin, n_samples, seed=seed)
        )
    pattern = denoiser.model.metadata.pattern
    n = draws_of_a_half(pattern)
    image = denoiser.denoise(frame, n, seed=seed).mean
    others = 2 * denoiser.denoise(frame, 2 * n, seed=seed).mean - image
    first, second = (
        HalfResult(
            result, unseen_by(pattern, frame.shape, draws, seed=seed, frame_index=frame.index)
        )
        for result, draws in ((image, range(n)), (others, range(n, 2 * n)))
    )
    halves = Halves(first, second, pattern.shared)
    return Known(None if uncertainty is None else uncertainty.standard_error, halves)


def report_on(
    path: Path,
    noisy: Frame,
    denoised: FloatArray,
    *,
    title: str,
    lines: tuple[str, ...] = (),
    known: Known | None = None,
    second: Frame | None = None,
    repairs: bool = True,
    overwrite: bool = False,
) -> ReportFindings:
    """Measure, judge, and write the page and the picture beside it, each whole or not at all.

    Parameters
    ----------
    path
        Of the page, ``.html``; the picture has its name with ``.png``.
    noisy, denoised
        (H, W) in counts: the frame as it was recorded, and the result.
    title, lines
        The heading, and what stands below it.
    known
        What the network tells, if it is at hand.
    second
        Another exposure of the same area, registered.
    repairs
        Whether hot pixels and offsets of lines were mended before the frame was denoised.
    overwrite
        Whether existing files are replaced.

    Returns
    -------
    The findings.

    Raises
    ------
    FrameError
        When the frames cannot be judged: too small, constant, of different shapes.
    MissingExtraError
        When matplotlib is not installed.
    OutputError
        When a file cannot be written.
    """
    check_report(path, overwrite=overwrite)
    known = known or Known(None)
    findings = measure(
        noisy,
        denoised,
        standard_error=known.standard_error,
        halves=known.halves,
        second=second,
        repairs=repairs,
    )
    html, picture = page(findings, title, lines), overview_png(findings, title)
    with files.replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(html, encoding="utf-8")
    with files.replacing(picture_of(path), overwrite=overwrite) as temporary:
        temporary.write_bytes(picture)
    return findings


def check_second(second: Frame, noisy: Frame, *, is_same: bool) -> None:
    """Refuse the noisy frame as its own second exposure."""
    if is_same:
        raise SettingError(
            "the second exposure is the noisy frame itself, which cannot tell its own error; "
            "give another exposure of the same area, with --second and --second-frame"
        )
    check_shape("second exposure", second.shape, noisy)


def check_pixel_size(name: str, frame: Frame, noisy: Frame) -> None:
    """Refuse a frame whose pixels are known to be of another size: it shows another area."""
    size, expected = (size_in_nm(x.pixel_size, x.unit) for x in (frame, noisy))
    if size is None or expected is None or np.allclose(size, expected, rtol=_SAME_SIZE):
        return
    raise FrameError(
        f"the {name} has pixels of {size[0]:.4g} nm, but the noisy frame of "
        f"{expected[0]:.4g} nm; give frames of one area"
    )
