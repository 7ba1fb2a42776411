"""Which pattern learns best from noise that is correlated: the choice behind `choose_pattern`.

    python -m benchmarks.patterns [--steps 800]
    python -m benchmarks.patterns --weak [--steps 800]
    python -m benchmarks.patterns --little both [--steps 800]
    python -m benchmarks.patterns --little rows [--steps 800]

One phantom of our own, noise of known correlation along rows and columns, preset fast from a random
start; PSNR against the truth. With --weak: from which correlation on whole rows learn better than
cells, over frames of four kinds, preset fast as it is but for the steps. With --little: the error
left, in variances of the noise, over the same kinds of frames where there is little noise: of
cells, every second and every fourth line where it is correlated along both axes; of cells and
every second line where it is along rows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results import keep
from benchmarks.simulation import simulated_frame, unit_noise
from n2sr_deploy import Denoiser, Frame
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.phantom import clean_phantom
from n2sr_train import TrainingConfig, export_model, train

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

GAIN, READ_NOISE = 0.05, 0.02
ALONG_ROWS = (("cell", 2, 0), ("row", 2, 0))
ALONG_BOTH = (
    ("cell", 2, 0),
    ("cell", 3, 1),
    ("cell", 4, 1),
    ("row", 3, 1),
    ("row", 4, 1),
    ("row", 4, 2),
)
# Correlation along rows and along columns, and the patterns (name, stride, margin) to compare.
COMPARED = (
    ((0.0, 0.0), ALONG_ROWS),
    ((0.1, 0.0), ALONG_ROWS),
    ((0.2, 0.0), ALONG_ROWS),
    ((0.2, 0.2), ALONG_BOTH),
    ((0.5, 0.4), ALONG_BOTH),
)


WEAK = (0.1, 0.15, 0.2, 0.25)  # correlations along rows
WEAK_SHAPE = (384, 384)
WEAK_SEEDS = (0, 1)  # of the noise and of the training

# Noise's share of a frame's variance, its correlations along rows and columns; what is compared.
LITTLE_NOISE = (0.01, 0.04, 0.15, 0.4)
LITTLE_COMPARED = {
    "both": (((0.35, 0.25), (0.5, 0.5)), (*ALONG_ROWS, ("row", 4, 1))),
    "rows": (((0.3, 0.0), (0.6, 0.0)), ALONG_ROWS),
}
LITTLE_SIDE = 256


def weak_frames() -> dict[str, tuple[Array, float]]:
    """Clean frames of mean about 0.5, and their noise's gain."""
    lattice, hrtem = (
        0.5 * simulated_frame(WEAK_SHAPE, np.random.default_rng([77, index]), kind)
        for index, kind in ((20, "dark field"), (12, "hrtem"))
    )
    return {
        "phantom, 12 px": (clean_phantom(WEAK_SHAPE, spacing=12, seed=5), 0.05),
        "dark field": (lattice, 0.02),
        "amorphous film": (amorphous_film(WEAK_SHAPE, np.random.default_rng(3)), 0.1),
        "simulated HRTEM": (hrtem, 0.2),
    }


def amorphous_film(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Band-passed noise, of 0.05 to 0.15 cycles per pixel, and a slope."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    film = np.fft.fft2(rng.normal(size=shape)) * np.exp(-(((frequency - 0.1) / 0.05) ** 2))
    film = np.fft.ifft2(film).real
    return 0.5 + 0.08 * film / film.std() + np.linspace(-0.1, 0.1, shape[1])


def learned_psnr(clean: Array, noise: Array, gain: float, config: TrainingConfig) -> float:
    """In dB, of what a training makes of a clean frame with noise of unit variance."""
    pixels = clean + noise * np.sqrt(gain * clean + READ_NOISE**2)
    frame = Frame(pixels=pixels.astype(np.float32))
    with Denoiser(export_model(train(frame, config))) as denoiser:
        image = denoiser.denoise(frame).mean
    return float(10 * np.log10(np.ptp(clean) ** 2 / np.mean((image - clean) ** 2)))


def compared(steps: int) -> list[dict[str, Any]]:
    """All patterns on one frame."""
    clean = clean_phantom((512, 512), spacing=14).astype(np.float64)
    rows = []
    for (along_rows, along_columns), patterns in COMPARED:
        noise = unit_noise(clean.shape, np.random.default_rng(0), along_rows, along_columns)
        for name, stride, margin in patterns:
            config = replace(
                TrainingConfig.named("fast"),
                pattern=SamplingPattern.named(name, stride),
                margin=margin,
                steps=steps,
                start="random",
                stops_early=False,
            )
            psnr = learned_psnr(clean, noise, GAIN, config)
            rows.append(
                {
                    "along_rows": along_rows,
                    "along_columns": along_columns,
                    "pattern": str(config.pattern),
                    "margin": margin,
                    "psnr_db": psnr,
                }
            )
            print(
                f"correlation {along_rows} along rows, {along_columns} along columns: "
                f"{config.pattern}, margin {margin}: {psnr:.2f} dB",
                flush=True,
            )
    return rows


def weak(steps: int) -> list[dict[str, Any]]:
    """Cells and rows where noise correlates weakly along rows."""
    rows = []
    for seed in WEAK_SEEDS:
        for along_rows in WEAK:
            for name, (clean, gain) in weak_frames().items():
                noise = unit_noise(clean.shape, np.random.default_rng(seed), along_rows)
                row: dict[str, Any] = {"frame": name, "gain": gain, "along_rows": along_rows}
                for pattern in ("cell", "row"):
                    config = replace(
                        TrainingConfig.named("fast"),
                        pattern=SamplingPattern.named(pattern, 2),
                        steps=steps,
                        seed=seed,
                    )
                    row[f"{pattern}_psnr_db"] = learned_psnr(clean, noise, gain, config)
                rows.append({**row, "seed": seed, "steps": steps})
                print(
                    f"{name}, gain {gain}, correlation {along_rows}, seed {seed}: cell "
                    f"{row['cell_psnr_db']:.2f} dB, row {row['row_psnr_db']:.2f} dB, row - cell "
                    f"{row['row_psnr_db'] - row['cell_psnr_db']:+.2f} dB",
                    flush=True,
                )
    for along_rows in WEAK:
        gains = [
            row["row_psnr_db"] - row["cell_psnr_db"]
            for row in rows
            if row["along_rows"] == along_rows
        ]
        print(f"correlation {along_rows}: row - cell {np.mean(gains):+.2f} dB on average")
    return rows


def little(steps: int, along: str) -> list[dict[str, Any]]:
    """Cells and whole lines where there is little noise, correlated so."""
    rows = []
    correlations, patterns = LITTLE_COMPARED[along]
    for along_rows, along_columns in correlations:
        for share in LITTLE_NOISE:
            for name, (clean, _) in weak_frames().items():
                clean = clean[:LITTLE_SIDE, :LITTLE_SIDE]
                rng = np.random.default_rng(0)
                noise = unit_noise(clean.shape, rng, along_rows, along_columns)
                noise *= clean.std() * np.sqrt(share / (1 - share))
                row: dict[str, Any] = {
                    "frame": name,
                    "noise_share": share,
                    "along_rows": along_rows,
                    "along_columns": along_columns,
                    "steps": steps,
                }
                for pattern, stride, margin in patterns:
                    config = replace(
                        TrainingConfig.named("fast"),
                        pattern=SamplingPattern.named(pattern, stride),
                        margin=margin,
                        steps=steps,
                    )
                    frame = Frame(pixels=(clean + noise).astype(np.float32))
                    with Denoiser(export_model(train(frame, config))) as denoiser:
                        error = np.mean((denoiser.denoise(frame).mean - clean) ** 2)
                    row[f"{pattern} {stride}"] = float(error / np.mean(noise**2))
                rows.append(row)
                print(row, flush=True)
    return rows


def main() -> None:
    """Train, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weak", action="store_true", help="where noise correlates weakly")
    parser.add_argument(
        "--little", choices=LITTLE_COMPARED, help="where there is little noise, correlated so"
    )
    parser.add_argument("--steps", type=int, default=800)
    given = parser.parse_args()
    if given.little:
        rows = little(given.steps, given.little)
        print(f"kept in {keep(f'patterns_little_{given.little}', rows)}")
    elif given.weak:
        print(f"kept in {keep('patterns_weak', weak(given.steps))}")
    else:
        print(f"kept in {keep('patterns', compared(given.steps))}")


if __name__ == "__main__":
    main()
