"""What others do with one noisy frame: each a function of the frame and a score to tune by.

Where a method has a parameter it gets the best there is, by the truth or the second exposure,
which no user has: these are upper bounds. ZS-N2N (Mansour and Heckel, CVPR 2023) is written here
from its paper; Noise2Void is CAREamics', run in an environment of its own.
"""

from __future__ import annotations

import subprocess
import tempfile
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage
from skimage.restoration import (
    denoise_nl_means,
    denoise_tv_chambolle,
    denoise_wavelet,
)
from torch import nn

from benchmarks.cases import REPOSITORY
from n2sr_deploy.noise import measure_noise
from n2sr_deploy.spectrum import WHITE
from n2sr_train.devices import has_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy import Frame
    from n2sr_deploy.noise import Noise

    Score = Callable[[np.ndarray], float]

CAREAMICS_PYTHON = REPOSITORY / ".venv-careamics" / "bin" / "python"


class PeerMissingError(Exception):
    """A method that is not installed here; the message tells how to install it."""


def best(
    score: Score, image_of: Callable[[float], np.ndarray], least: float, factor: float
) -> np.ndarray:
    """The image of the best strength: from the least on, until four in a row are worse than one.

    Total variation ends before it has converged, so its score falls and rises again.
    """
    image = image_of(least)
    value, n_worse = score(image), 0
    for power in count(1):
        other = image_of(least * factor**power)
        others = score(other)
        if others > value:
            image, value, n_worse = other, others, 0
        else:
            n_worse += 1
        if n_worse == 4:
            break
    return image


def gaussian(noisy: Frame, score: Score) -> np.ndarray:
    """A Gaussian of the best width."""
    pixels = noisy.pixels.astype(np.float32)
    return best(score, lambda width: ndimage.gaussian_filter(pixels, width), 0.5, 1.08)


def total_variation(noisy: Frame, score: Score) -> np.ndarray:
    """Total variation of the best weight."""
    scaled, back = _scaled(noisy)
    return best(score, lambda weight: back(denoise_tv_chambolle(scaled, weight)), 0.2, 1.25)


def wavelets(noisy: Frame, score: Score) -> np.ndarray:
    """Wavelet shrinkage (BayesShrink), of the best assumed noise."""
    scaled, back = _scaled(noisy)

    def image_of(strength: float) -> np.ndarray:
        sigma = strength * _sigma(noisy)
        return back(denoise_wavelet(scaled, sigma=sigma, wavelet="sym4", rescale_sigma=True))

    return best(score, image_of, 0.5, 1.2)


def non_local_means(noisy: Frame, score: Score) -> np.ndarray:
    """Non-local means of the best strength."""
    scaled, back = _scaled(noisy)
    sigma = _sigma(noisy)

    def image_of(strength: float) -> np.ndarray:
        sizes = {"patch_size": 7, "patch_distance": 9, "fast_mode": True}
        return back(denoise_nl_means(scaled, h=strength * sigma, sigma=sigma, **sizes))

    return best(score, image_of, 0.4, 2**0.5)


def bm3d(noisy: Frame, score: Score) -> np.ndarray:
    """BM3D of the best assumed noise."""
    import bm3d as library

    scaled, back = _scaled(noisy)
    sigma = _sigma(noisy)
    return best(score, lambda strength: back(library.bm3d(scaled, strength * sigma)), 0.77, 1.3)


def vst_bm3d(noisy: Frame, score: Score) -> np.ndarray:
    """BM3D between the generalised Anscombe transform of the measured noise and its inverse.

    Of the best strength, as a share of the noise that the transform should have left.
    """
    import bm3d as library

    noise = measure_noise(noisy)
    if not noise.gain:
        return bm3d(noisy, score)
    gain, floor = noise.gain, 3 / 8 * noise.gain**2 + (noise.read_noise or 0.0) ** 2
    pixels = noisy.pixels.astype(np.float64)
    stabilised = 2 / gain * np.sqrt(np.maximum(gain * pixels + floor, 0))
    low, span = stabilised.min(), np.ptp(stabilised)
    sigma2 = ((noise.read_noise or 0.0) / gain) ** 2

    def image_of(strength: float) -> np.ndarray:
        denoised = library.bm3d((stabilised - low) / span, strength / span) * span + low
        # The closed form of the exact unbiased inverse (Makitalo and Foi 2013).
        d = np.maximum(denoised, 1e-3)
        inverse = d**2 / 4 + 1.5**0.5 / (4 * d) - 11 / (8 * d**2) + 5 * 1.5**0.5 / (8 * d**3)
        return np.asarray(gain * np.maximum(inverse - 1 / 8 - sigma2, 0))

    return best(score, image_of, 0.77, 1.3)


def zs_n2n(noisy: Frame, score: Score, steps: int = 2000) -> np.ndarray:
    """Zero-Shot Noise2Noise: two layers of 48 channels, pair down-sampling, 2000 steps.

    Unlike the paper's, a step sees a random crop of 256 x 256 pixels of a larger frame: with all
    of 832 x 896 pixels in each step, two cores take more than an hour. The trained network
    denoises the whole frame.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scaled, back = _scaled(noisy)
    frame = torch.from_numpy(scaled[None, None].astype(np.float32))
    crop = [min(n // 2 * 2, 256) for n in noisy.shape]
    network = nn.Sequential(
        nn.Conv2d(1, 48, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(48, 48, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(48, 1, 1),
    ).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1000, 0.5)
    low_precision = has_bfloat16(torch.device("cpu"))

    def denoised(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            noise = network(image)
        return image - noise.float()

    for _ in range(steps):
        row, column = (int(rng.integers(n - c + 1)) for n, c in zip(noisy.shape, crop, strict=True))
        seen = frame[..., row : row + crop[0], column : column + crop[1]]
        first, second = _pair(seen)
        a, b = denoised(first), denoised(second)
        residual = ((a - second).square().mean() + (b - first).square().mean()) / 2
        whole_a, whole_b = _pair(denoised(seen))
        consistency = ((a - whole_a).square().mean() + (b - whole_b).square().mean()) / 2
        optimiser.zero_grad()
        (residual + consistency).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return back(denoised(frame)[0, 0].numpy())


def noise2void(noisy: Frame, score: Score) -> np.ndarray:
    """Noise2Void by CAREamics (see noise2void.py); structN2V where the noise is correlated."""
    if not CAREAMICS_PYTHON.exists():
        raise PeerMissingError(
            "Noise2Void (CAREamics) is skipped, for its environment .venv-careamics is not there. "
            "Make it with: make setup-careamics"
        )
    axes, span = struct_mask(measure_noise(noisy))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("noisy.npy", "denoised.npy")]
        np.save(paths[0], noisy.pixels)
        script = Path(__file__).with_name("noise2void.py")
        command = [CAREAMICS_PYTHON, "-I", script, *paths, "--axes", axes, "--span", str(span)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"noise2void.py ended with {run.returncode}:\n{run.stderr[-2000:]}")
        return np.asarray(np.load(paths[1]))


def struct_mask(noise: Noise) -> tuple[str, int]:
    """Along which axes structN2V masks a pixel's neighbours, and over how many pixels.

    As far as the noise is correlated on both sides of the pixel, and over CAREamics' default of 5
    at least.
    """
    reach = {
        axis: len(list(takewhile(lambda c: abs(c) > WHITE, correlation)))
        for axis, correlation in (
            ("horizontal", noise.along_rows),
            ("vertical", noise.along_columns),
        )
    }
    found = [axis for axis, distance in reach.items() if distance]
    axes = "square" if len(found) == 2 else next(iter(found), "none")
    return axes, max(5, 2 * max(reach.values()) + 1)


def _pair(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two half-size images: the means of each cell's diagonals."""
    a, b = image[..., ::2, ::2], image[..., 1::2, 1::2]
    c, d = image[..., ::2, 1::2], image[..., 1::2, ::2]
    return (a + b) / 2, (c + d) / 2


def _scaled(noisy: Frame) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The frame in units of its standard deviation, and the way back."""
    mean, std = noisy.mean_and_std()
    return (noisy.pixels - mean) / std, lambda image: image * std + mean


def _sigma(noisy: Frame) -> float:
    """The noise in units of the frame's standard deviation."""
    return measure_noise(noisy).std / noisy.mean_and_std()[1]


PEERS: dict[str, Callable[[Frame, Score], np.ndarray]] = {
    "Gaussian, best": gaussian,
    "total variation, best": total_variation,
    "wavelets, best": wavelets,
    "non-local means, best": non_local_means,
    "BM3D": bm3d,
    "VST + BM3D": vst_bm3d,
    "ZS-N2N": zs_n2n,
    "Noise2Void (CAREamics)": noise2void,
}
