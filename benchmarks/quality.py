"""How near the denoised frame comes to the truth, what it cost, and a picture.

    python benchmarks/quality.py [--data FOLDER] [--seeds 0 1 2] [--only NAME ...]

FOLDER holds simulated/PtCeO2_*.tif (clean frames; one fixed noise draw is added here) and
real/nist_haadf_pair.mrc (two exposures of one area; only the first is trained on). They are not
shipped; without them, our phantom and the shipped crop of the pair are measured instead.
Nothing is tuned on these frames.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from skimage.metrics import structural_similarity

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.results import FOLDER, keep
from n2sr_deploy import Denoised, Denoiser, Frame, SamplingPattern, read_frame
from n2sr_deploy.phantom import clean_phantom
from n2sr_deploy.progress import shown_training
from n2sr_train import TrainingConfig, export_model, train

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[1]
GAIN, READ_NOISE = 0.05, 0.02
PAPER_PSNR = {"PtCeO2_5": 31.56, "PtCeO2_4": 34.13}


@dataclass(frozen=True)
class Case:
    """A frame to denoise and how to score the result."""

    name: str
    noisy: Frame
    pattern: str
    scores: Callable[[np.ndarray], dict[str, float]]


def simulated(name: str, clean: np.ndarray) -> Case:
    """The fixed draw of variance gain * clean + read_noise ** 2, scored against the truth."""
    noise = np.random.default_rng(0).normal(size=clean.shape)
    noisy = (clean + noise * np.sqrt(GAIN * clean + READ_NOISE**2)).astype(np.float32)
    span = float(clean.max() - clean.min())

    def scores(image: np.ndarray) -> dict[str, float]:
        error = float(np.mean((image.astype(np.float64) - clean) ** 2))
        return {
            "psnr_db": 10 * np.log10(span**2 / error),
            "ssim": float(structural_similarity(clean, image, data_range=span)),
        }

    return Case(name, Frame(pixels=noisy), "cell", scores)


def exposure_pair(name: str, path: Path, pattern: str) -> Case:
    """The excess error of the first frame against the second, in variances of the first."""
    first, second = read_frame(path, 0), read_frame(path, 1)
    mean, std = first.mean_and_std()
    a, b = (np.asarray((frame.pixels - mean) / std, np.float64) for frame in (first, second))
    noise = float(np.mean((a - b) ** 2)) / 2

    def scores(image: np.ndarray) -> dict[str, float]:
        return {"excess_error": float(np.mean(((image - mean) / std - b) ** 2)) - noise}

    return Case(f"{name}, pattern {pattern}", first, pattern, scores)


def cases(data: Path) -> list[Case]:
    """What there is to measure here."""
    found = [
        simulated(name, read_frame(data / "simulated" / f"{name}.tif").pixels)
        for name in PAPER_PSNR
        if (data / "simulated" / f"{name}.tif").exists()
    ]
    pair = data / "real" / "nist_haadf_pair.mrc"
    shipped = REPOSITORY / "examples" / "nist_haadf_pair_512.mrc"
    real = ("nist_haadf_pair", pair) if pair.exists() else ("nist_haadf_pair, crop", shipped)
    return [
        *(found or [simulated("phantom", clean_phantom((832, 896), spacing=40))]),
        *(exposure_pair(*real, pattern) for pattern in ("row", "cell")),
    ]


def measure(case: Case, preset: str, seed: int) -> tuple[dict[str, Any], Denoised]:
    """Train, export, denoise, score."""
    config = replace(
        TrainingConfig.named(preset), pattern=SamplingPattern.named(case.pattern), seed=seed
    )
    with shown_training() as progress:
        checkpoint = train(case.noisy, config, progress)
    export_model(checkpoint)  # the first of its kind makes the template
    start = time.perf_counter()
    model = export_model(checkpoint)
    export_s = time.perf_counter() - start
    with Denoiser(model) as denoiser:
        start = time.perf_counter()
        denoised = denoiser.denoise(case.noisy)
        denoising_s = time.perf_counter() - start
    row = {
        "frame": case.name,
        "preset": preset,
        "seed": seed,
        **{f"noisy_{key}": value for key, value in case.scores(case.noisy.pixels).items()},
        **case.scores(denoised.mean),
        "n_samples": config.n_samples,
        "tflop": checkpoint.summary["tflop"],
        "training_s": checkpoint.summary["seconds"],
        "steps": checkpoint.summary["steps"],
        "kept_step": checkpoint.summary["kept_step"],
        "export_s": export_s,
        "denoising_s": denoising_s,
    }
    return row, denoised


def worst(rows: list[dict[str, Any]], name: str) -> str:
    """The least good score of a frame's seeds."""
    mine = [row for row in rows if row["frame"] == name]
    if "psnr_db" in mine[0]:
        return f"{min(row['psnr_db'] for row in mine):.2f} dB"
    return f"{max(row['excess_error'] for row in mine):.4f}"


def keep_row(row: dict[str, Any]) -> None:
    """Put a measurement into the results, in place of the same one of an earlier run."""
    path = FOLDER / "quality.json"
    kept = json.loads(path.read_text())["figures"] if path.exists() else []

    def what(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["frame"], row["preset"], row["seed"]

    keep("quality", sorted([*(old for old in kept if what(old) != what(row)), row], key=what))


def describe(row: dict[str, Any]) -> str:
    """One line of the table."""
    if "psnr_db" in row:
        quality = f"{row['noisy_psnr_db']:.2f} -> {row['psnr_db']:.2f} dB, SSIM {row['ssim']:.3f}"
        if row["frame"] in PAPER_PSNR:
            quality += f" (paper: {PAPER_PSNR[row['frame']]} dB at 9300 TFLOP)"
    else:
        quality = f"excess error {row['noisy_excess_error']:.4f} -> {row['excess_error']:.4f}"
    return (
        f"{row['frame']:30} {row['preset']}, seed {row['seed']}, M = {row['n_samples']}: "
        f"{quality}; "
        f"{row['tflop']:.1f} TFLOP, {row['training_s']:.0f} s, kept step {row['kept_step']} of "
        f"{row['steps']}; exported in {row['export_s']:.3f} s, "
        f"denoised in {row['denoising_s']:.2f} s"
    )


def draw_picture(shown: list[tuple[str, Frame, Denoised]], path: Path) -> None:
    """Noisy and denoised side by side, a row for each frame."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(shown), 3, figsize=(15, 5 * len(shown)), layout="constrained", squeeze=False
    )
    for row, (name, noisy, denoised) in zip(axes, shown, strict=True):
        middle = tuple(slice(size // 2 - 128, size // 2 + 128) for size in noisy.shape)
        low, high = np.percentile(denoised.mean, [0.5, 99.5])
        spread = np.percentile(noisy.pixels, [1, 99])
        panels = (
            (f"{name}: noisy", noisy.pixels, *spread),
            ("denoised", denoised.mean, low, high),
            ("spread", denoised.std, 0, None),
        )
        for axis, (title, image, bottom, top) in zip(row, panels, strict=True):
            axis.imshow(image[middle], cmap="gray", vmin=bottom, vmax=top, interpolation="nearest")
            axis.set_title(title)
            axis.set_axis_off()
    figure.savefig(path, dpi=60)
    plt.close(figure)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="frames whose name contains one of these")
    arguments = parser.parse_args()
    rows, shown = [], []
    for case in cases(arguments.data):
        if arguments.only and not any(word in case.name for word in arguments.only):
            continue
        for seed in arguments.seeds:
            row, denoised = measure(case, arguments.preset, seed)
            rows.append(row)
            keep_row(row)
            print(describe(row), flush=True)
        shown.append((case.name, case.noisy, denoised))
        print(f"{case.name}: worst of {len(arguments.seeds)} seeds {worst(rows, case.name)}")
    draw_picture(shown, FOLDER / "quality.png")
    pair = [item for item in shown if "pattern" in item[0]]
    if pair:
        draw_picture(pair, FOLDER / "pattern.png")
    print(f"kept in {FOLDER / 'quality.json'}; pictures beside it")


if __name__ == "__main__":
    main()
