"""Adam at three learning rates against Muon on two phantoms of our own, the same steps each.

    python benchmarks/optimisers.py [--steps 1500]

Preset balanced from a random start. These are frames to tune on; benchmarks/quality.py reports on
others.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.results import keep
from n2sr_deploy import Denoiser, Frame
from n2sr_deploy.phantom import clean_phantom, noisy_draw
from n2sr_deploy.progress import shown_training
from n2sr_train import TrainingConfig, export_model, train

RECIPES: dict[str, dict[str, Any]] = {
    "adam, 0.0003": {"optimiser": "adam", "learning_rate": 0.0003},
    "adam, 0.001": {"optimiser": "adam", "learning_rate": 0.001},
    "adam, 0.0025": {"optimiser": "adam", "learning_rate": 0.0025},
    "muon": {},
}


def main() -> None:
    """Train each recipe on each phantom, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=TrainingConfig().steps)
    steps = parser.parse_args().steps
    rows = []
    for spacing in (12.0, 40.0):
        clean = clean_phantom((704, 768), spacing=spacing)
        noisy = Frame(pixels=noisy_draw(clean, gain=0.05, read_noise=0.02))
        for name, recipe in RECIPES.items():
            with shown_training() as progress:
                config = replace(
                    TrainingConfig(), steps=steps, start="random", stops_early=False, **recipe
                )
                checkpoint = train(noisy, config, progress)
            with Denoiser(export_model(checkpoint)) as denoiser:
                error = float(np.mean((denoiser.denoise(noisy).mean - clean) ** 2))
            psnr = 10 * np.log10(float(np.ptp(clean)) ** 2 / error)
            row = {
                "spacing_px": spacing,
                "recipe": name,
                "psnr_db": psnr,
                "tflop": checkpoint.summary["tflop"],
                "seconds": checkpoint.summary["seconds"],
            }
            rows.append(row)
            print(
                f"spacing {spacing:g} px, {name}: {psnr:.2f} dB, {row['tflop']:.1f} TFLOP, "
                f"{row['seconds']:.0f} s",
                flush=True,
            )
    print(f"kept in {keep('optimisers', rows)}")


if __name__ == "__main__":
    main()
