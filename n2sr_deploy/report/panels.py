"""The twelve panels of a report: what each says, and how it is drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from n2sr_deploy.formats.units import length_told
from n2sr_deploy.report.spectra import LAGS
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.report.findings import ReportFindings
    from n2sr_deploy.sampling import AnyArray

    Axes = Any

# Okabe and Ito's colours, which colour-blind people tell apart.
INK, GREY, BLUE, ORANGE, GREEN, PURPLE = (
    "#1b2430", "#8a94a0", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
)  # fmt: skip
PEAK_MARKS = {
    "kept": ("o", BLUE), "weakened": ("D", "#E69F00"), "lost": ("s", ORANGE),
    "unsupported": ("^", PURPLE),
}  # fmt: skip
_LARGEST = 1024  # pixels along an axis that a picture shows
_BAR, _BAR_PAD = 0.12, 0.08  # inches
BESIDE = _BAR + _BAR_PAD
"""Inches that a picture leaves to its colour bar, numbers and unit apart."""


class Panel(NamedTuple):
    """One picture of the report."""

    title: str
    caption: str
    """What it says, for the page."""
    draw: Callable[[Axes, ReportFindings], None]
    is_picture: bool = False
    """Whether it shows the frame's pixels."""


def panels(findings: ReportFindings) -> tuple[Panel, ...]:
    """The twelve panels, in reading order."""
    return (
        Panel("Noisy", "The frame as it was recorded.", _draw_noisy, True),
        Panel("Denoised", "With the grey levels of the noisy frame.", _draw_denoised, True),
        Panel(
            "Standard error",
            "Calibrated: the truth lies within it at about two pixels of three.",
            _draw_standard_error,
            True,
        ),
        Panel(
            "Residual",
            "Noisy minus denoised, in units of the noise expected at each pixel. It should look "
            "like nothing. Rings mark what noise does not explain.",
            _draw_residual,
            True,
        ),
        Panel("Spectrum, noisy", "Power over the noise's, logarithmic.", _draw_noisy_spectrum),
        Panel(
            "Spectrum, denoised",
            _peaks_told(findings),
            _draw_denoised_spectrum,
        ),
        Panel(
            "Residual's autocorrelation",
            "Less the noise's own: all that is left is signal, or noise that was copied. The "
            "middle is left out.",
            _draw_autocorrelation,
        ),
        Panel(
            "Along rows and columns",
            "Dots: the residual. Lines: what this detector's noise has by itself.",
            _draw_correlation_lines,
        ),
        Panel(
            "Power over frequency",
            "The denoised frame should follow the noisy one where that rises above the noise, and "
            "fall far below elsewhere.",
            _draw_power,
        ),
        Panel(
            "Residual against noise",
            "Above 1: signal is left in the residual. Below 1: the result has kept noise, or "
            "signal and noise cannot be told apart there.",
            _draw_residual_spectrum,
        ),
        Panel(
            "Variance over intensity",
            "The residual's. The line is the noise model found in the noisy frame alone.",
            _draw_variance,
        ),
        Panel(
            "What unseen pixels confirm",
            "Share of what half-results show that is in the pixels they never saw, in three rings "
            "of frequency (or steps along lines that are whole seen or unseen) at a time, with two "
            "standard errors. Blue: at least a half, for sure. "
            "Where hardly anything is shown, as at high frequencies, nothing can be told.",
            _draw_confirmation,
        ),
    )


def _peaks_told(findings: ReportFindings) -> str:
    if not findings.peaks:
        return "No Bragg peaks are seen: nothing sharp stands out of noise and diffuse spectrum."
    damaged = findings.counted("lost") + findings.counted("weakened")
    return (
        f"{counted(findings.counted('kept'), 'Bragg peak')} kept, {damaged} weakened or lost, "
        f"{findings.counted('unsupported')} without support in the data."
    )


def _image(axis: Axes, image: AnyArray, findings: ReportFindings, unit: str, **style: Any) -> None:
    """An image without ticks, a scale bar in it and its colours beside it."""
    height, width = image.shape
    step = max(1, math.ceil(max(height, width) / _LARGEST))
    drawn = axis.imshow(
        image[::step, ::step], interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        **style,
    )  # fmt: skip
    axis.set_axis_off()
    _colour_bar(axis, drawn, unit)
    _scale_bar(axis, findings, height, width)


def _colour_bar(axis: Axes, drawn: Any, unit: str) -> None:
    """Beside an image, as high as it is, and of one width: images alike stay alike."""
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    divider = make_axes_locatable(axis)
    divider.set_anchor("NW")
    bar = axis.figure.colorbar(drawn, cax=divider.append_axes("right", _BAR, pad=_BAR_PAD))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label(unit, loc="top")  # low pictures have shorter bars than words


def _scale_bar(axis: Axes, findings: ReportFindings, height: int, width: int) -> None:
    """About a fifth of the width, a round number of the unit; none when the size is unknown."""
    size, unit = findings.length_of(1), findings.unit
    if size is None or not unit:
        return
    wanted = width * size / 5
    power = 10.0 ** math.floor(math.log10(wanted))
    length = max(n * power for n in (1, 2, 5) if n * power <= wanted)
    left, y = 0.045 * width, 0.945 * height
    for line, colour in ((6.5, "black"), (3.5, "white")):
        axis.plot(
            [left, left + length / size], [y, y], color=colour, linewidth=line,
            solid_capstyle="butt",
        )  # fmt: skip
    axis.text(
        left, y - 0.03 * height, length_told(length, unit), color="white", fontsize=9,
        weight="bold", path_effects=_outline(), va="bottom",
    )  # fmt: skip


def _outline() -> list[Any]:
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=2, foreground="black")]


def _contrast(findings: ReportFindings) -> dict[str, Any]:
    """Of noisy and denoised: what the denoised frame spans, and part of the noise."""
    low, high = np.quantile(findings.denoised, (0.002, 0.998))
    margin = 0.15 * (high - low) + 0.25 * findings.noise.std
    return {"cmap": "gray", "vmin": low - margin, "vmax": high + margin}


def _draw_noisy(axis: Axes, findings: ReportFindings) -> None:
    _image(axis, findings.noisy, findings, "counts", **_contrast(findings))


def _draw_denoised(axis: Axes, findings: ReportFindings) -> None:
    _image(axis, findings.denoised, findings, "counts", **_contrast(findings))


def _draw_standard_error(axis: Axes, findings: ReportFindings) -> None:
    if findings.standard_error is None:
        _say(axis, "not known of this file\n\nGive it with --std FILE\nor the network with --model")
        return
    high = float(np.quantile(findings.standard_error, 0.998))
    _image(axis, findings.standard_error, findings, "counts", cmap="viridis", vmin=0, vmax=high)


def _draw_residual(axis: Axes, findings: ReportFindings) -> None:
    scaled = findings.residual / findings.noise.std_at(findings.denoised)
    style = {"cmap": "RdBu_r", "vmin": -4, "vmax": 4}
    _image(axis, scaled, findings, "std of the noise", **style)
    for place in findings.places:
        from matplotlib.patches import Circle

        colour = PURPLE if place.is_invented else INK
        radius = max(3 * place.size, 0.015 * max(scaled.shape))
        ring = Circle((place.column, place.row), radius, fill=False, color=colour, linewidth=1.8)
        axis.add_patch(ring)
    height, width = scaled.shape  # rings may be larger than the frame
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)


def _draw_noisy_spectrum(axis: Axes, findings: ReportFindings) -> None:
    _spectrum(axis, findings.noisy_spectrum, findings)


def _draw_denoised_spectrum(axis: Axes, findings: ReportFindings) -> None:
    _spectrum(axis, findings.denoised_spectrum, findings)
    for state, (mark, colour) in PEAK_MARKS.items():
        at = np.array([peak.frequency for peak in findings.peaks if peak.state == state])
        if at.size:
            both = np.concatenate([at, -at])
            axis.scatter(
                both[:, 1], both[:, 0], s=64, marker=mark, facecolors="none", edgecolors=colour,
                linewidths=1.4, label=f"{state} ({len(at)})",
            )  # fmt: skip
    if findings.peaks:
        below = 3.6  # letters: a legend beside no peak, below the axis' numbers and label
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=below, ncols=2)


def _spectrum(axis: Axes, power: AnyArray, findings: ReportFindings) -> None:
    """Up to a little beyond the farthest peak; the logarithm of the power over the noise's."""
    rows, columns = power.shape
    blocks = [max(1, n // 512) for n in (rows, columns)]
    trimmed = power[: rows // blocks[0] * blocks[0], : columns // blocks[1] * blocks[1]]
    shown = trimmed.reshape(
        trimmed.shape[0] // blocks[0], blocks[0], trimmed.shape[1] // blocks[1], blocks[1]
    ).max(axis=(1, 3))
    drawn = axis.imshow(
        np.log10(np.maximum(shown, 1e-6)), cmap="gray", vmin=-3.0, vmax=3.0,
        extent=(-0.5, 0.5, 0.5, -0.5), interpolation="nearest",
    )  # fmt: skip
    farthest = max((max(map(abs, peak.frequency)) for peak in findings.peaks), default=0.5)
    reach = min(max(1.4 * farthest, 0.1), 0.5)
    axis.set_xlim(-reach, reach)
    axis.set_ylim(reach, -reach)
    axis.locator_params(nbins=5)
    axis.set_xlabel("cycles per pixel")
    axis.set_ylabel("cycles per pixel")
    _colour_bar(axis, drawn, "log10 of power / noise")


def _draw_autocorrelation(axis: Axes, findings: ReportFindings) -> None:
    excess = findings.autocorrelation - findings.noise_autocorrelation
    excess[LAGS, LAGS] = 0.0
    limit = max(10 * findings.autocorrelation_error, 0.02, float(np.abs(excess).max()))
    reach = LAGS + 0.5
    drawn = axis.imshow(
        excess, cmap="PuOr", vmin=-limit, vmax=limit, extent=(-reach, reach, reach, -reach),
        interpolation="nearest",
    )  # fmt: skip
    axis.set_xlabel("columns apart")
    axis.set_ylabel("rows apart")
    _colour_bar(axis, drawn, "correlation less the noise's")


def _draw_correlation_lines(axis: Axes, findings: ReportFindings) -> None:
    own, noise = findings.autocorrelation, findings.noise_autocorrelation
    lags = np.arange(1, LAGS + 1)
    band = 3 * findings.autocorrelation_error
    for name, colour, at in (
        ("along rows", BLUE, (LAGS, slice(LAGS + 1, None))),
        ("along columns", ORANGE, (slice(LAGS + 1, None), LAGS)),
    ):
        axis.fill_between(lags, noise[at] - band, noise[at] + band, color=colour, alpha=0.15, lw=0)
        axis.plot(lags, noise[at], color=colour, linewidth=1.2)
        axis.plot(lags, own[at], "o", color=colour, markersize=5, label=name)
    axis.axhline(0, color=GREY, linewidth=0.8)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -0.05), max(high, 0.1))
    _curve(axis, "pixels apart", "correlation")
    axis.legend()


def _draw_power(axis: Axes, findings: ReportFindings) -> None:
    rings = findings.rings
    axis.axhline(1, color=INK, linewidth=1, linestyle="--", label="noise")
    axis.plot(rings.frequency, rings.noisy, color=GREY, linewidth=2, label="noisy")
    axis.plot(rings.frequency, np.maximum(rings.denoised, 1e-6), color=BLUE, linewidth=2,
              label="denoised")  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(bottom=1e-5)
    axis.set_xlim(0, 0.5)
    _curve(axis, "cycles per pixel", "power / noise")
    axis.legend()


def _draw_residual_spectrum(axis: Axes, findings: ReportFindings) -> None:
    rings = findings.rings
    axis.fill_between(
        rings.frequency, 1 - 3 * rings.residual_error, 1 + 3 * rings.residual_error,
        color=GREY, alpha=0.3, lw=0, label="noise, 3 standard errors",
    )  # fmt: skip
    axis.axhline(1, color=INK, linewidth=1, linestyle="--")
    axis.plot(rings.frequency, rings.residual, "o-", color=ORANGE, markersize=3.5, label="residual")
    axis.set_xlim(0, 0.5)
    axis.set_ylim(0, max(2.0, 1.1 * float(np.nanquantile(rings.residual, 0.97))))
    _curve(axis, "cycles per pixel", "power / noise")
    axis.legend()


def _draw_variance(axis: Axes, findings: ReportFindings) -> None:
    curve, noise = findings.variance, findings.noise
    (across, in_x), (up, in_y) = (
        _power_of_ten(float(np.abs(values).max()))
        for values in (curve.intensity, np.concatenate([curve.variance, curve.expected]))
    )
    model = (
        f"noise model: gain {noise.gain:.3g}"
        if noise.gain is not None
        else f"noise model: std {noise.std:.3g},\ngain not told"
    )
    intensity = curve.intensity / across
    axis.plot(intensity, curve.expected / up, color=INK, linewidth=1.5, label=model)
    axis.errorbar(
        intensity, curve.variance / up, 2 * curve.error / up, fmt="o", color=ORANGE, markersize=5,
        elinewidth=1.2, label="residual",
    )  # fmt: skip
    axis.set_ylim(0, 1.5 * float(max(curve.variance.max(), curve.expected.max())) / up)
    axis.locator_params(axis="x", nbins=6)  # large counts are long
    _curve(axis, f"denoised intensity / {in_x}counts", f"variance / {in_y}counts²")
    axis.legend()


def _draw_confirmation(axis: Axes, findings: ReportFindings) -> None:
    found = findings.confirmation
    if found is None:
        _say(
            axis, "needs the network:\n\nn2sr report … --model MODEL.onnx\nor n2sr denoise --report"
        )
        return
    for level, style in ((1, "--"), (0, "-")):
        axis.axhline(level, color=INK, linewidth=1, linestyle=style)
    for which, colour in ((found.is_confirmed, BLUE), (~found.is_confirmed, GREY)):
        axis.errorbar(
            found.frequency[which], found.share[which], 2 * found.error[which], fmt="o",
            color=colour, markersize=4, elinewidth=1.2,
        )  # fmt: skip
    if found.resolution is not None:
        axis.axvline(found.resolution, color=ORANGE, linewidth=1.2)
        length = f"{1 / found.resolution:.3g} px"
        in_unit = findings.length_of(1 / found.resolution, found.along)
        if in_unit is not None:
            length += f" = {length_told(in_unit, findings.unit or '')}"
        is_right = found.resolution > found.frequency[-1] / 2
        at: Any = {"ha": "right" if is_right else "left", "color": ORANGE}
        at["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
        axis.text(found.resolution, 1.7, f" {length} ", **at)
    axis.set_xlim(0, 0.5)
    axis.set_ylim(-1, 2)
    along = "" if found.along is None else f" along {found.along}s"
    _curve(axis, f"cycles per pixel{along}", "share")


def _power_of_ten(largest: float) -> tuple[float, str]:
    """What numbers are divided by so that they are short, and how that is written."""
    if largest == 0 or 0.01 <= largest < 1e5:
        return 1.0, ""
    power = 3 * math.floor(math.log10(largest) / 3)
    return 10.0**power, f"$10^{{{power}}}$ "


def _curve(axis: Axes, across: str, up: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(visible=True)
    axis.set_axisbelow(True)


def _say(axis: Axes, words: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, words, ha="center", va="center", color=GREY, transform=axis.transAxes)
