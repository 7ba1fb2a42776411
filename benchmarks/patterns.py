"""Which pattern learns best from noise that is correlated: the choice behind `choose_pattern`.

    python -m benchmarks.patterns [--steps 800]

One phantom of our own, noise of known correlation along rows and columns, preset fast from a random
start; PSNR against the truth.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from benchmarks.results import keep
from benchmarks.simulation import unit_noise
from n2sr_deploy import Denoiser, Frame
from n2sr_deploy.phantom import clean_phantom
from n2sr_deploy.sampling import SamplingPattern
from n2sr_train import TrainingConfig, export_model, train

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


def main() -> None:
    """Train, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    steps = parser.parse_args().steps
    clean = clean_phantom((512, 512), spacing=14).astype(np.float64)
    rows = []
    for (along_rows, along_columns), patterns in COMPARED:
        noise = unit_noise(clean.shape, np.random.default_rng(0), along_rows, along_columns)
        pixels = clean + noise * np.sqrt(GAIN * clean + READ_NOISE**2)
        frame = Frame(pixels=pixels.astype(np.float32))
        for name, stride, margin in patterns:
            config = replace(
                TrainingConfig.named("fast"),
                pattern=SamplingPattern.named(name, stride),
                margin=margin,
                steps=steps,
                start="random",
                stops_early=False,
            )
            with Denoiser(export_model(train(frame, config))) as denoiser:
                image = denoiser.denoise(frame).mean
            psnr = 10 * np.log10(np.ptp(clean) ** 2 / np.mean((image - clean) ** 2))
            rows.append(
                {
                    "along_rows": along_rows,
                    "along_columns": along_columns,
                    "pattern": str(config.pattern),
                    "margin": margin,
                    "psnr_db": float(psnr),
                }
            )
            print(
                f"correlation {along_rows} along rows, {along_columns} along columns: "
                f"{config.pattern}, margin {margin}: {psnr:.2f} dB",
                flush=True,
            )
    print(f"kept in {keep('patterns', rows)}")


if __name__ == "__main__":
    main()
