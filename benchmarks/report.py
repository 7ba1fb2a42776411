"""docs/benchmark.md and its pictures from results/quality.json.

    python -m benchmarks.report

Pictures show only frames that may be shown: our phantom and the NIST pair.
"""

from __future__ import annotations

import json
import math
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.cases import PAPER_PSNR, REPOSITORY, Pair, Simulated, cases
from benchmarks.peers import PEERS
from benchmarks.quality import (
    FIVE_SECONDS,
    IMAGES,
    OURS,
    PAPER,
    PAPERS_SAMPLER,
    PRESETS,
    Row,
    file_name,
    rows,
)
from benchmarks.results import FOLDER
from n2sr_train import TrainingConfig

DOCS = REPOSITORY / "docs"
BEGIN, END = "<!-- made by benchmarks/report.py -->", "<!-- until here -->"
METHODS = ["noisy", *PEERS, *OURS]
SHOWN = ["noisy", "Gaussian, best", "BM3D", "ZS-N2N", "fast" + PAPERS_SAMPLER, "fast", "balanced"]
TARGETS = {"fast": (34.0, 35.3), "balanced": (36.5, 36.4), "best": (38.0, 37.2)}
TARGETS[FIVE_SECONDS] = (32.5, 34.0)
PAPERS_STEPS = TrainingConfig.named(PAPER).steps


def worst(found: list[Row], measure: str, digits: int, *, low: bool) -> float:
    """Of several seeds, rounded to the worse side: rounding must not reach a goal."""
    value = (min if low else max)(row[measure] for row in found)
    return (math.floor if low else math.ceil)(value * 10**digits) / 10**digits


def how_far(found: list[Row]) -> str:
    """How far the paper's trainings came, where one was ended before its end."""
    steps = min((r["steps"] for r in found if r["method"] == PAPER), default=PAPERS_STEPS)
    return "" if steps == PAPERS_STEPS else f", {steps} of {PAPERS_STEPS} steps"


def table(found: list[Row], frames: list[str], measure: str, digits: int, *, low: bool) -> str:
    """Methods down, frames across; the worst of the seeds, the best method bold."""
    values: dict[str, dict[str, float]] = {}
    for method in METHODS:
        for frame in frames:
            mine = [r for r in found if (r["frame"], r["method"]) == (frame, method)]
            if mine and measure in mine[0]:
                values.setdefault(method, {})[frame] = worst(mine, measure, digits, low=low)
    best = {
        frame: (max if low else min)(v[frame] for v in values.values() if frame in v)
        for frame in frames
        if any(frame in values.get(method, {}) for method in OURS)  # no race without us
    }

    def cell(method: str, frame: str) -> str:
        if frame not in values[method]:
            return ""
        text = f"{values[method][frame]:.{digits}f}"
        return f"**{text}**" if values[method][frame] == best.get(frame) else text

    lines = ["| | " + " | ".join(frames) + " |", "|---" * (len(frames) + 1) + "|"]
    for method in values:
        row = " | ".join(cell(method, f) for f in frames)
        of_method = [r for r in found if r["method"] == method and r["frame"] in frames]
        lines.append(f"| {method}{how_far(of_method)} | {row} |")
    return "\n".join(lines)


def presets_table(found: list[Row], *, goals: bool) -> str:
    """The presets, and what they are to reach; the worst of the seeds counts."""
    frames = list(PAPER_PSNR)
    lines = [
        "| | " + " | ".join(frames) + " | seeds | arithmetic | two cores | M |",
        "|---" * (len(frames) + 5) + "|",
        "| paper's figures | "
        + " | ".join(f"{PAPER_PSNR[f]:.2f} dB" for f in frames)
        + " | | 9300 TFLOP | | 50 |",
    ]
    for method in (FIVE_SECONDS, *PRESETS, PAPER):
        mine = [r for r in found if r["method"] == method and r["frame"] in frames]
        if not mine:
            continue
        quality = []
        for frame, target in zip(frames, TARGETS.get(method, (None, None)), strict=True):
            here = [r for r in mine if r["frame"] == frame]
            if not here:
                quality.append("not measured")
                continue
            value = worst(here, "psnr_db", 2, low=True)
            quality.append(f"{value:.2f} dB{how_far(here)}")
            if goals and target is not None:
                quality[-1] += f" (goal: {target}{'' if value >= target else ', missed'})"
        tflop = max(r["tflop"] for r in mine)
        timed = [r["seconds"] for r in mine if "seconds" in r]
        seconds = f"{max(timed):.0f} s" if timed else ""
        seeds = ", ".join(map(str, sorted({r["seed"] for r in mine})))
        draws = ", ".join(map(str, sorted({r["n_samples"] for r in mine})))
        lines.append(
            f"| {method} | {' | '.join(quality)} | {seeds} | {tflop:.1f} TFLOP | "
            f"{seconds} | {draws} |"
        )
    return "\n".join(lines)


def readme_tables(found: list[Row]) -> str:
    """The presets, and everybody on real exposures."""
    pairs = sorted({row["frame"] for row in found if "excess_error" in row}, reverse=True)
    parts = [
        presets_table(found, goals=False),
        table(found, pairs, "excess_error", 4, low=False),
        displaced_rows(found),
    ]
    return "\n\n".join(filter(None, parts))


def displaced_rows(found: list[Row]) -> str:
    """What the ABF series says once displacements of its rows no longer count; empty if unknown."""
    measure = "excess_error_rows_blurred"
    here = [row for row in found if row["frame"].startswith("ABF") and measure in row]
    values = {
        method: worst([r for r in here if r["method"] == method], measure, 4, low=False)
        for method in sorted({row["method"] for row in here})  # of equals always the same
    }
    ours = {method: value for method, value in values.items() if method in PRESETS}
    theirs = {method: value for method, value in values.items() if method in PEERS}
    if not ours or not theirs:
        return ""
    mine, best = min(ours, key=ours.__getitem__), min(theirs, key=theirs.__getitem__)
    return (
        "The ABF series was scanned with hum, which displaced its rows to and fro, otherwise in "
        "each exposure. n2sr finds that in what it denoised and puts the rows straight; filters "
        "blur them into each other, and what is fine with them. Once the rows of every result are "
        f"blurred, by the width best for it, {mine} has {ours[mine]:.4f} and the best of the "
        f"others, {best.removesuffix(', best')}, {theirs[best]:.4f}."
    )


def costs_table(found: list[Row]) -> str:
    """Seconds and arithmetic on one frame."""
    frame = "PtCeO2_5, gain 0.05"
    lines = [f"| on {frame} | seconds | TFLOP |", "|---|---|---|"]
    for method in METHODS:
        mine = [r for r in found if (r["frame"], r["method"], r["seed"]) == (frame, method, 0)]
        if mine and "seconds" in mine[0]:
            tflop = f"{mine[0]['tflop']:.1f}" if "tflop" in mine[0] else ""
            lines.append(f"| {method} | {mine[0]['seconds']:.1f} | {tflop} |")
    return "\n".join(lines)


def plain_table(name: str) -> str:
    """The rows of another benchmark's JSON as they are; empty if it was not run."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text())["figures"]
    lines = ["| " + " | ".join(found[0]) + " |", "|---" * len(found[0]) + "|"]
    for row in found:
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def image(frame: str, method: str) -> np.ndarray | None:
    """What a method made of a frame, if it was run here."""
    path = IMAGES / file_name(frame, method)
    return np.load(path) if path.exists() else None


def picture(case: Simulated | Pair, name: str) -> None:
    """Results above, below their errors: against the truth, or the other exposure."""
    from matplotlib import pyplot as plt

    images = [(method, image(case.name, method)) for method in SHOWN]
    shown = [(method, made) for method, made in images if made is not None]
    if len(shown) < 2:
        return
    mean, std = case.noisy.mean_and_std()
    truth = case.clean if isinstance(case, Simulated) else case.others[0] * std + mean
    middle = tuple(slice(n // 2 - 96, n // 2 + 96) for n in case.noisy.shape)
    low, high = np.percentile(shown[-1][1][middle], [0.5, 99.5])
    figure, axes = plt.subplots(2, len(shown), figsize=(3 * len(shown), 6.2), layout="constrained")
    for (above, below), (method, made) in zip(axes.T, shown, strict=True):
        above.imshow(made[middle], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        above.set_title(method)
        error = made[middle] - truth[middle]
        span = (high - low) / (4 if isinstance(case, Simulated) else 1)
        below.imshow(error, cmap="RdBu", vmin=-span, vmax=span, interpolation="nearest")
        for axis in (above, below):
            axis.set_axis_off()
    against = "truth" if isinstance(case, Simulated) else "the other exposure"
    figure.suptitle(f"{case.name}: results, and their difference from {against}")
    figure.savefig(DOCS / name, dpi=60)
    plt.close(figure)


def scatter(found: list[Row]) -> None:
    """PSNR over arithmetic, n2sr's presets against the paper's figure."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axis, frame in zip(axes, PAPER_PSNR, strict=True):
        for method in (FIVE_SECONDS, *PRESETS):
            mine = [r for r in found if (r["frame"], r["method"]) == (frame, method)]
            axis.plot([r["tflop"] for r in mine], [r["psnr_db"] for r in mine], "o", label=method)
        axis.plot(9300, PAPER_PSNR[frame], "k*", markersize=12, label="paper's figure")
        axis.set(xscale="log", xlabel="training arithmetic, TFLOP", title=frame)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR, dB")
    axes[1].legend()
    figure.savefig(DOCS / "benchmark.png", dpi=70)
    plt.close(figure)


def put_into_readme(text: str) -> None:
    """In place of what stands between the markers."""
    path = REPOSITORY / "README.md"
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    """Write the page."""
    mpl.use("Agg")
    found: list[Row] = rows()
    all_cases: list[Any] = list(cases())
    simulated = [case.name for case in all_cases if isinstance(case, Simulated)]
    pairs = [case.name for case in all_cases if isinstance(case, Pair)]
    displaced = [name for name in pairs if name.startswith("ABF")]
    groups = {
        "Ours": [name for name in simulated if "PtCeO2" not in name],
        "PtCeO2_5": [name for name in simulated if "PtCeO2_5" in name],
        "PtCeO2_4": [name for name in simulated if "PtCeO2_4" in name],
    }
    measures = {
        "PSNR, dB": ("psnr_db", 2, True),
        "SSIM": ("ssim", 3, True),
        "Resolution: frequency up to which the Fourier ring correlation with the truth is 0.5, "
        "cycles per pixel": ("frc_half", 3, True),
        "Root-mean-square error of atom columns, pixels": ("columns_px", 2, False),
    }
    parts = [
        "# Benchmark",
        "Made by `make bench-quality` from benchmarks/results/quality.json (machine named there). "
        "Every method sees the same noisy frame; n2sr runs with its automatic settings. Filters "
        "with a parameter get the best one by the truth, or the second exposure, which no user "
        "has. Of several seeds the worst counts, rounded to the worse side. Seconds are those of "
        "the training; measuring the noise before takes 1 to 4 more; rows without seconds were "
        "taken on a busy machine. The arithmetic is that of the network; Muon's own adds 4 to 5 %. "
        "With pattern row or column a frame keeps half of its pixels instead of a quarter, so "
        "network and training take twice the arithmetic told for these frames.",
        "## The presets",
        presets_table(found, goals=True),
        "![PSNR over arithmetic](benchmark.png)",
        costs_table(found),
        "## Real exposures: true squared error, in variances of the frame",
        "Learned from one exposure, compared with the others of the same area (see "
        "`Pair.scores` in benchmarks/cases.py).",
        table(found, pairs, "excess_error", 4, low=False),
        "![NIST pair](benchmark-nist.png)",
        "The ABF series was scanned with hum: its rows are displaced to and fro every 4.7 rows, by "
        "up to two rows and otherwise in each exposure (the spectrum has sidebands of the lattice "
        "there). A network shows them where they were scanned, which had left an error of 0.061 to "
        "0.068; n2sr now finds the hum in what it denoised and puts the rows straight (decision "
        "0020); with the paper's sampler more noise is left, and it is not sure of it. A filter "
        "blurs them into each other, and what is fine with them. When the rows of "
        "every result are blurred into each other, by the width that is best for it:",
        table(found, displaced, "excess_error_rows_blurred", 4, low=False),
        "## Simulated frames",
        "![Our phantom](benchmark-phantom.png)",
    ]
    for title, (measure, digits, low) in measures.items():
        parts.append(f"### {title}")
        parts += [
            table(found, names, measure, digits, low=low) for names in groups.values() if names
        ]
    parts.append("## Trust")
    parts.append(
        "Made by `make bench-trust`, preset fast: what is left of pure noise of standard "
        "deviation 1; lattices with one atom column missing (its height left, in heights of a "
        "sound one: below zero the network dug too deep) and one moved, six draws of the noise: "
        "how much nearer to the lattice it is found than where the noisy frame has it (by a fit "
        "that knows all but its place; mean and standard error), how far off from the truth it and "
        "this fit are, first with all pixels counted alike; ten frames and how far "
        "what was kept when the training stopped lies below the best of a whole run; three frames "
        "that are no lattices, after the full budget from the packaged and from random weights."
    )
    parts += [
        plain_table(f"trust-{name}") for name in ("invention", "defects", "stopping", "start")
    ]
    (DOCS / "benchmark.md").write_text("\n\n".join(filter(None, parts)) + "\n")
    put_into_readme(readme_tables(found))
    scatter(found)
    for case in all_cases:
        if case.name == "nist HAADF pair, 0 to 1":
            picture(case, "benchmark-nist.png")
        if case.name.startswith("phantom"):
            picture(case, "benchmark-phantom.png")
    print(f"see {DOCS / 'benchmark.md'}")


if __name__ == "__main__":
    main()
