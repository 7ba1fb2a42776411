"""The main job on a real frame: learn from one noisy STEM frame, export, denoise, compare.

    python examples/demo.py OUT

The second exposure of the same area is used only to measure the result.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

from n2sr_deploy import Denoised, Denoiser, Frame, read_frame, write_frame
from n2sr_deploy.kernels import describe_kernels
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.progress import shown_training
from n2sr_train import TrainingConfig, export_model, train

PAIR = Path(__file__).with_name("nist_haadf_pair_512.mrc")
SHOWN = slice(128, 384), slice(128, 384)  # the middle, so that pixels can be seen


# This detector's noise is correlated along the scan, so whole rows are kept or held out.
OPTIONS = LearnOptions(pattern="row", seconds=60)


def main(out: Path, options: LearnOptions = OPTIONS) -> None:
    """Run the whole chain and write every step's file to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    print(f"kernels: {describe_kernels()}")
    noisy, second = read_frame(PAIR, 0), read_frame(PAIR, 1)
    print(f"noisy frame: {noisy.describe()}")

    with shown_training() as progress:
        checkpoint = train(noisy, TrainingConfig.from_options(options), progress)
    checkpoint.save(out / "sample.safetensors", overwrite=True)
    print(f"learned: {checkpoint.describe()}")

    export_model(checkpoint).save(out / "sample.onnx", overwrite=True)
    with Denoiser.open(out / "sample.onnx") as denoiser:
        denoised = denoiser.denoise(noisy)
    result = noisy.with_pixels(denoised.mean, "n2sr demo: denoised")
    write_frame(out / "denoised.tif", result, overwrite=True)
    draw_picture(noisy, denoised, out / "demo.png")

    print(compare(noisy, denoised, second))
    print(f"see {out / 'demo.png'}, {out / 'denoised.tif'}")


def compare(noisy: Frame, denoised: Denoised, second: Frame) -> str:
    """How far noisy and denoised are from the second exposure, and from the truth it implies.

    Half the mean squared difference of the two exposures is the noise of one; what a frame's
    distance from the second exposure exceeds it by is its own error.
    """
    mean, std = noisy.mean_and_std()
    a, b = (np.asarray((f.pixels - mean) / std, np.float64) for f in (noisy, second))
    d = (denoised.mean - mean) / std
    noise = np.mean((a - b) ** 2) / 2
    from_noisy, from_denoised = np.mean((a - b) ** 2), np.mean((d - b) ** 2)
    return (
        f"mean squared distance to the second exposure (variance of the frame = 1): "
        f"noisy {from_noisy:.3f}, denoised {from_denoised:.3f}, "
        f"{from_noisy / from_denoised:.2f} times closer\n"
        f"of which {noise:.3f} is the second exposure's own noise; error left: noisy {noise:.3f}, "
        f"denoised {from_denoised - noise:.3f}, {noise / (from_denoised - noise):.1f} times less"
    )


def draw_picture(noisy: Frame, denoised: Denoised, path: Path) -> None:
    """Noisy, denoised and spread side by side."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    low, high = np.percentile(noisy.pixels, [1, 99])
    grey = {"cmap": "gray", "vmin": low, "vmax": high}
    panels = (
        ("noisy", noisy.pixels, grey),
        ("denoised", denoised.mean, grey),
        ("spread (std of the draws)", denoised.std, {"cmap": "magma", "vmin": 0}),
    )
    figure, axes = plt.subplots(1, 3, figsize=(18, 5.4), layout="constrained")
    for axis, (title, image, style) in zip(axes, panels, strict=True):
        drawn = axis.imshow(image[SHOWN], interpolation="nearest", **style)
        axis.set_title(title)
        axis.set_axis_off()
        figure.colorbar(drawn, ax=axis, shrink=0.8, label="counts")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
