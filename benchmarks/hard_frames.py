"""Frames that make denoisers fail: what n2sr makes of each, against the truth.

    python -m benchmarks.hard_frames [--only "beam stop" vacuum] [--preset fast] [--steps 600]

Every frame is learned from alone, with automatic settings, and treated as `n2sr denoise` does. The
figures:

* error left: the squared error of the result over that of the noisy frame, where there is signal;
  beside it a Gaussian's, its width chosen with the truth in hand;
* the figure that a microscopist would look at in this frame, named in its row.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from benchmarks.results import keep
from n2sr_deploy import Denoiser, Frame, repair
from n2sr_deploy.defects import measured_part
from n2sr_deploy.learning import LearnOptions
from n2sr_train import export_model, learn_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Array = npt.NDArray[Any]

SHAPE = (384, 384)
_GAIN, _READ_NOISE = 0.05, 0.02
_SIGMAS = np.geomspace(0.5, 30, 30)


@dataclass(frozen=True)
class Hard:
    """A frame, its truth, and what to look at."""

    noisy: Array
    clean: Array
    looked_at: str = ""
    figure: Callable[[Array], float] = field(default=lambda _: np.nan)
    """Of the result, in the noisy frame's units."""
    live: Array | None = None
    """Where there is signal; None: everywhere."""


def lattice(shape: tuple[int, int] = SHAPE, spacing: float = 14.3) -> Array:
    """Atom columns on a square lattice, turned by 9 degrees: 0.25 to 0.65."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    turned = np.deg2rad(9)
    u = (y * np.cos(turned) + x * np.sin(turned)) * 2 * np.pi / spacing
    v = (x * np.cos(turned) - y * np.sin(turned)) * 2 * np.pi / spacing
    return np.asarray(0.25 + 0.4 * (np.exp(np.cos(u) + np.cos(v) - 2)))


def with_noise(clean: Array, seed: int = 0) -> Array:
    """Of variance gain * x + read noise squared."""
    noise = np.random.default_rng(seed).normal(size=clean.shape)
    return clean + noise * np.sqrt(_GAIN * np.clip(clean, 0, None) + _READ_NOISE**2)


def beam_stop() -> Hard:
    """A bar and a disc without any beam."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    stopped = (np.hypot(y - 190, x - 190) < 45) | ((abs(y - 190) < 8) & (x < 190))
    clean = np.where(stopped, 0, lattice())
    inner = ndimage.binary_erosion(stopped, iterations=4)
    return Hard(
        with_noise(clean).astype(np.float32),
        clean,
        "largest departure from 0 behind the stop, in its noise's std",
        lambda image: float(np.abs(image[inner]).max() / _READ_NOISE),
        live=~stopped,
    )


def black_border() -> Hard:
    """Exactly 0 around the frame, as alignment leaves it."""
    border = np.ones(SHAPE, bool)
    border[40:-24, 32:-48] = False
    clean = np.where(border, 0, lattice())
    noisy = np.where(border, 0, with_noise(clean)).astype(np.float32)
    inner = ndimage.binary_erosion(border, iterations=4, border_value=1)
    return Hard(
        noisy,
        clean,
        "largest departure from 0 in the border, of the signal's contrast",
        lambda image: float(np.abs(image[inner]).max() / 0.4),
        live=~border,
    )


def partial_scan() -> Hard:
    """The lower 45 % of the rows are not scanned yet: 0."""
    rows = int(SHAPE[0] * 0.55)
    clean = lattice()
    clean[rows:] = 0
    noisy = with_noise(clean)
    noisy[rows:] = 0
    live = np.zeros(SHAPE, bool)
    live[:rows] = True
    return Hard(
        noisy.astype(np.float32),
        clean,
        "largest departure from 0 where nothing was scanned, of the signal's contrast",
        lambda image: float(np.abs(image[rows + 4 :]).max() / 0.4),
        live=live,
    )


def gradient() -> Hard:
    """A background that rises twentyfold across the frame."""
    ramp = np.linspace(0.2, 4, SHAPE[1])
    clean = lattice() * ramp
    left = slice(0, SHAPE[1] // 4)
    noisy = with_noise(clean)

    def dark_side(image: Array) -> float:
        error = np.mean((image - clean)[:, left] ** 2)
        return float(error / np.mean((noisy - clean)[:, left] ** 2))

    return Hard(noisy.astype(np.float32), clean, "error left in the dark quarter", dark_side)


def hologram() -> Hard:
    """Fringes of 5.3 pixels, bent by a phase object, in vacuum."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    phase = 2.5 * np.exp(-(np.hypot(y - 190, x - 170) ** 2) / 60**2)
    wave = 2 * np.pi * (x * 0.94 + y * 0.34) / 5.3 + phase
    clean = 0.5 * (1 + 0.3 * np.cos(wave))
    noisy = with_noise(clean)

    def contrast(image: Array) -> float:
        along = np.cos(wave)
        return float(np.mean((image - image.mean()) * along) / np.mean((clean - 0.5) * along))

    return Hard(noisy.astype(np.float32), clean, "contrast of the fringes kept", contrast)


def vacuum() -> Hard:
    """Nothing but noise around a constant."""
    clean = np.full(SHAPE, 0.5)
    noisy = with_noise(clean)
    std = (noisy - clean).std()
    return Hard(
        noisy.astype(np.float32),
        clean,
        "std left, of the noise's",
        lambda image: float(image.std() / std),
    )


def one_atom() -> Hard:
    """A single atom of 3 pixels width and twice the noise's height."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    atom = np.exp(-((y - 200.3) ** 2 + (x - 151.7) ** 2) / (2 * 3**2))
    clean = 0.25 + 0.25 * atom

    def height(image: Array) -> float:
        near = (slice(180, 220), slice(132, 172))
        weight = atom[near] - atom[near].mean()
        return float((image[near] * weight).sum() / (clean[near] * weight).sum())

    near = np.hypot(y - 200.3, x - 151.7) < 10
    return Hard(
        with_noise(clean).astype(np.float32), clean, "height of the atom kept", height, live=near
    )


def low_dose() -> Hard:
    """0.08 counts a pixel, counted."""
    clean = lattice(spacing=28.7)
    clean *= 0.08 / clean.mean()
    noisy = np.random.default_rng(0).poisson(clean)

    def correlation(image: Array) -> float:
        return float(np.corrcoef(image.ravel(), clean.ravel())[0, 1])

    return Hard(noisy.astype(np.uint8), clean, "correlation with the truth", correlation)


def saturated() -> Hard:
    """The brightest twelfth of the pixels at the upper limit of 12 bits."""
    clean = lattice()
    counts = np.clip(np.rint(with_noise(clean) * 6000), 0, 4095)
    truth = np.clip(clean * 6000, 0, 4095)
    top = truth > np.percentile(truth, 97)

    def highest(image: Array) -> float:
        return float(image[top].mean() / truth[top].mean())

    return Hard(counts.astype(np.uint16), truth, "brightness of the brightest kept", highest)


def spikes() -> Hard:
    """X-ray hits, hot and dead pixels: one pixel of a thousand, up to 40 times the contrast."""
    rng = np.random.default_rng(1)
    clean = lattice()
    noisy = with_noise(clean)
    hit = rng.random(SHAPE) < 0.0007
    dead = rng.random(SHAPE) < 0.0003
    noisy[hit] += rng.uniform(3, 16, hit.sum())
    noisy[dead] = -3
    around = ndimage.binary_dilation(hit | dead, iterations=5)

    def spread(image: Array) -> float:
        return float(np.mean((image - clean)[around] ** 2) / np.mean((image - clean)[~around] ** 2))

    return Hard(
        noisy.astype(np.float32),
        clean,
        "error within 5 pixels of a hit, over elsewhere",
        spread,
        live=~(hit | dead),
    )


def small() -> Hard:
    """64 x 64 pixels."""
    clean = lattice((64, 64), spacing=9.1)
    return Hard(with_noise(clean).astype(np.float32), clean)


FRAMES = {
    "beam stop": beam_stop,
    "black border": black_border,
    "partial scan": partial_scan,
    "gradient": gradient,
    "hologram": hologram,
    "vacuum": vacuum,
    "one atom": one_atom,
    "0.08 counts": low_dose,
    "saturated": saturated,
    "spikes": spikes,
    "64 x 64": small,
}


def measured(name: str, options: LearnOptions) -> dict[str, Any]:
    """One frame's row."""
    hard = FRAMES[name]()
    part = measured_part(hard.noisy)
    frame = Frame(pixels=hard.noisy).cropped(*part)
    checkpoint = learn_checkpoint(frame, options)
    image = hard.noisy.astype(np.float64)
    with Denoiser(export_model(checkpoint)) as denoiser:
        image[part] = denoiser.denoise(repair(frame).frame).mean
    live = np.ones(hard.clean.shape, bool) if hard.live is None else hard.live

    def left(of: Array) -> float:
        noise = np.mean((hard.noisy - hard.clean)[live] ** 2)
        return float(np.mean((of - hard.clean)[live] ** 2) / noise)

    blurred = [ndimage.gaussian_filter(hard.noisy.astype(np.float64), sigma) for sigma in _SIGMAS]
    best = min(blurred, key=left)
    return {
        "frame": name,
        "pattern": str(checkpoint.config.pattern),
        "error_left": left(image),
        "gaussian": left(best),
        "looked_at": hard.looked_at,
        "figure": hard.figure(image),
        "gaussian_figure": hard.figure(best),
    }


def main() -> None:
    """Print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FRAMES, default=list(FRAMES))
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    options = LearnOptions(preset=arguments.preset, steps=arguments.steps)
    rows = []
    for name in arguments.only:
        row = measured(name, options)
        rows.append(row)
        print(
            f"{row['frame']:13} {row['pattern']:24} error left {row['error_left']:.4f} "
            f"(Gaussian {row['gaussian']:.4f})  {row['looked_at']}: {row['figure']:.3f} "
            f"(Gaussian {row['gaussian_figure']:.3f})",
            flush=True,
        )
    if arguments.only == list(FRAMES):
        print(keep("hard_frames", {"options": vars(arguments), "rows": rows}))


if __name__ == "__main__":
    main()
