"""One frame denoised by Noise2Void as CAREamics makes it, run in CAREamics' own environment.

    make setup-careamics
    .venv-careamics/bin/python benchmarks/noise2void.py noisy.npy denoised.npy

The settings are CAREamics' defaults for one image: a U-Net of depth 2 that starts with 32 channels,
patches of 64 x 64, 0.2 % of the pixels masked, random flips and quarter turns, Adam. Two have no
default that fits one frame: a batch is 16 patches, and training takes 100 epochs (an epoch sees
every patch once, 11 batches of an 832 x 896 frame), as in CAREamics' Convallaria example; its
default of 30 is meant for large data. `--minutes` ends the training earlier; nothing else is cut.
`--axes` and `--span` make it structN2V, which CAREamics trains without flips and turns.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

MULTIPLE = 4  # of rows and columns that a U-Net of depth 2 takes


def denoised(
    noisy: np.ndarray, axes: str, span: int, epochs: int, minutes: float, seed: int
) -> np.ndarray:
    """The frame (H, W) as the network leaves it after its last epoch; repeats on one machine."""
    make_torchvision_importable()
    from careamics import CAREamist
    from careamics.config.factories import create_advanced_n2v_config

    config = create_advanced_n2v_config(
        experiment_name="frame",
        data_type="array",
        axes="YX",
        patch_size=(64, 64),
        batch_size=16,
        num_epochs=epochs,
        augmentations=None if axes == "none" else [],
        struct_n2v_axes=axes,
        struct_n2v_span=span,
        num_workers=0,
        trainer_params={
            "accelerator": "cpu",
            "enable_model_summary": False,
            "max_time": {"minutes": minutes},
        },
        # The last epoch's weights, even where time ran out.
        checkpoint_params={"every_n_epochs": 1, "save_top_k": 1, "save_last": True},
        seed=seed,
    )
    padding = [(0, -n % MULTIPLE) for n in noisy.shape]
    with tempfile.TemporaryDirectory() as folder:
        careamist = CAREamist(config, work_dir=folder, enable_progress_bar=False)
        careamist.train(train_data=noisy)
        images, _ = careamist.predict(pred_data=np.pad(noisy, padding, mode="reflect"))
    return np.squeeze(images[0])[: noisy.shape[0], : noisy.shape[1]]


def make_torchvision_importable() -> None:
    """Declare what the import stumbles over where torch is built for CPUs, torchvision for CUDA.

    CAREamics imports torchvision, but Noise2Void uses nothing of it.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")


def main() -> None:
    """From file to file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("noisy", type=Path, help=".npy, (H, W)")
    parser.add_argument("denoised", type=Path, help=".npy, written")
    parser.add_argument(
        "--axes",
        choices=["none", "horizontal", "vertical", "square"],
        default="none",
        help="where the noise is correlated: along rows, along columns, along both",
    )
    parser.add_argument("--span", type=int, default=5, help="pixels masked along each, odd")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="of training at most")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    settings = {name: value for name, value in vars(arguments).items() if name != "denoised"}
    settings["noisy"] = np.load(arguments.noisy).astype(np.float32)
    np.save(arguments.denoised, denoised(**settings))


if __name__ == "__main__":
    main()
