"""Nothing invented, nothing lost, stopping in time: tables on frames of known truth.

    python -m benchmarks.trust [--only invention defects stopping start]

All with preset fast, each frame learned from alone.

* invention: pure noise in, white and correlated along one axis or both; what is left of it.
* defects: lattices with one atom column missing and one displaced, six draws of the noise; is it
  still missing, is it still displaced, by how much? With all pixels counted alike, and as the
  preset does, where those count more at which something was missed.
* stopping: ten simulated frames; PSNR of the weights that were kept when the training stopped
  against the best of a run that does not.
* start: frames unlike any the starting weights were trained on; full budget from them and from
  random weights, three seeds each, mean and its standard error.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.cases import fitted, gaussian
from benchmarks.results import keep
from benchmarks.simulation import simulated_frame, unit_noise
from n2sr_deploy import Denoiser, Frame
from n2sr_deploy.learning import LearnOptions, TrainingStatus
from n2sr_train import Checkpoint, export_model, learn_checkpoint, train
from n2sr_train.config import PRESETS
from n2sr_train.learner import prepared
from n2sr_train.training import _Training
from n2sr_train.validation import copied_weights

if TYPE_CHECKING:
    from n2sr_train.validation import Kept

SHAPE = (512, 512)
GAIN, READ_NOISE = 0.05, 0.02  # of the lattices with defects
DEFECT_DRAWS = 6
START_SEEDS = 3
Rows = list[dict[str, Any]]


def learned(frame: Frame, start: str | None = None, seed: int = 0) -> Checkpoint:
    """With automatic settings but for where the weights begin, and the seed."""
    return learn_checkpoint(frame, LearnOptions(preset="fast", init=start, seed=seed))


def denoised(checkpoint: Checkpoint, frame: Frame) -> np.ndarray:
    """As `n2sr denoise` does."""
    with Denoiser(export_model(checkpoint)) as denoiser:
        return denoiser.denoise(frame).mean.astype(np.float64)


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    """In dB of the truth's range."""
    return float(10 * np.log10(np.ptp(clean) ** 2 / np.mean((image - clean) ** 2)))


def invention() -> Rows:
    """What is left of noise of unit variance, and its strongest single wave."""
    rows = []
    for name, *correlation in (
        ("white noise", 0.0, 0.0),
        ("noise correlated 0.5 along rows", 0.5, 0.0),
        ("0.5 along columns", 0.0, 0.5),
        ("0.2 along both", 0.2, 0.2),
        ("0.5 along rows, 0.4 along columns", 0.5, 0.4),
    ):
        noise = unit_noise(SHAPE, np.random.default_rng(0), *correlation)
        frame = Frame(pixels=(10 + noise).astype(np.float32))
        image = denoised(learned(frame), frame) - 10
        waves = np.abs(np.fft.fft2(image - image.mean())) * 2 / image.size
        rows.append(
            {
                "frame": name,
                "std_left": float(image.std()),
                "strongest_wave": float(waves.max()),
            }
        )
    return rows


def lattice_with_defects(spacing: float, shift: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A perfect lattice but for one column missing and one moved by `shift` pixels."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float64)
    clean = np.full(SHAPE, 0.25)
    n = int(SHAPE[0] / spacing)
    places = {"missing": (n // 3, n // 3), "moved": (2 * n // 3, n // 2), "sound": (n // 2, n // 4)}
    at = {}
    for i, j in np.ndindex(n, n):
        row, column = (i + 0.5) * spacing, (j + 0.5) * spacing
        names = [name for name, place in places.items() if place == (i, j)]
        if "moved" in names:
            column += shift
        if names:
            at[names[0]] = np.array([row, column])
        if "missing" in names:
            continue
        window = (
            slice(max(int(row) - 30, 0), int(row) + 31),
            slice(max(int(column) - 30, 0), int(column) + 31),
        )
        distance = (y[window] - row) ** 2 + (x[window] - column) ** 2
        clean[window] += 0.4 * np.exp(-distance / (2 * (0.2 * spacing) ** 2))
    return clean, at


def defects() -> Rows:
    """Height left at a missing column, and where the moved one is found."""
    rows = []
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for spacing, shift in ((16.0, 4.0), (28.0, 6.0)):
            for weight in (1.0, PRESETS["fast"].missed_weight):
                draws = range(DEFECT_DRAWS)
                each = list(
                    pool.map(found_defects, repeat(spacing), repeat(shift), repeat(weight), draws)
                )
                rows.append(summary_of_defects(spacing, shift, weight, each))
    return rows


def found_defects(spacing: float, shift: float, weight: float, draw: int) -> dict[str, Any]:
    """On one draw of the noise; ``weight`` is what pixels count where something was missed."""
    clean, at = lattice_with_defects(spacing, shift)
    rng = np.random.default_rng([draw, int(spacing)])
    std = np.sqrt(GAIN * clean + READ_NOISE**2)
    noisy = Frame(pixels=(clean + std * rng.standard_normal(SHAPE)).astype(np.float32))
    frame, config, noise = prepared(noisy, LearnOptions(preset="fast"))
    checkpoint = train(frame, replace(config, missed_weight=weight), None, noise)
    image = denoised(checkpoint, frame)
    radius = int(spacing / 5)

    def height(image: np.ndarray, place: np.ndarray) -> float:
        row, column = np.round(place).astype(int)
        return float(image[row - 1 : row + 2, column - 1 : column + 2].mean())

    sound = height(clean, at["sound"]) - height(clean, at["missing"])
    return {
        "psnr_db": psnr(image, clean),
        "missing": (height(image, at["missing"]) - height(clean, at["missing"])) / sound,
        "sound": (height(image, at["sound"]) - height(clean, at["missing"])) / sound,
        "off": fitted(image, at["moved"][None], radius)[0] - at["moved"],
        "off_by_noise": fitted_to_noise(frame.pixels, clean, at["moved"], spacing) - at["moved"],
    }


def fitted_to_noise(
    noisy: np.ndarray, clean: np.ndarray, place: np.ndarray, spacing: float
) -> np.ndarray:
    """(2,): where the most likely column lies, for whoever knows all but its place."""
    row, column = np.round(place).astype(int)
    reach = int(spacing)
    around = slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1)
    y, x = np.mgrid[around]
    variance = (GAIN * clean + READ_NOISE**2)[around]

    def spot(at: np.ndarray) -> np.ndarray:
        return 0.4 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * (0.2 * spacing) ** 2))

    rest = noisy[around] - clean[around] + spot(place)
    found = minimize(
        lambda at: np.sum((rest - spot(at)) ** 2 / variance), place, method="Nelder-Mead"
    )
    return np.asarray(found.x)


def summary_of_defects(
    spacing: float, shift: float, weight: float, each: list[dict[str, Any]]
) -> dict[str, Any]:
    """Over all draws."""
    off, by_noise = (np.array([found[name] for found in each]) for name in ("off", "off_by_noise"))
    pulled = (by_noise - off)[:, 1]  # the column was moved along +x

    def mean(name: str) -> float:
        return float(np.mean([found[name] for found in each]))

    return {
        "spacing_px": spacing,
        "moved_by_px": shift,
        "missed_weight": weight,
        "pulled_to_lattice_px": float(pulled.mean()),
        "plus_minus_px": float(pulled.std(ddof=1) / np.sqrt(len(off))),
        "rms_error_px": float(np.sqrt(np.mean(np.sum(off**2, axis=1)))),
        "rms_error_by_noise_px": float(np.sqrt(np.mean(np.sum(by_noise**2, axis=1)))),
        "height_left_of_missing": mean("missing"),
        "height_of_sound": mean("sound"),
        "psnr_db": mean("psnr_db"),
    }


def stopping() -> Rows:
    """PSNR over the whole run of ten frames, and where it would have been stopped."""
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(stopped_on, range(10)))


def stopped_on(index: int) -> dict[str, Any]:
    """One of the ten frames."""
    rng = np.random.default_rng([4321, index])
    clean = 0.4 * simulated_frame((512, 512), rng)[32:-32, 32:-32]  # its optics wrap around
    gain = float(np.exp(rng.uniform(np.log(0.003), np.log(0.1))))
    frame = gaussian(f"simulated {index}", clean, gain, 0.02).noisy
    return {"frame": index, "gain": gain, **stopped(frame, clean)}


def stopped(frame: Frame, clean: np.ndarray) -> dict[str, Any]:
    """A training that goes on to its end, and what was kept when it would have stopped."""
    frame, config, noise = prepared(frame, LearnOptions(preset="fast"))
    blank = train(frame, replace(config, steps=1), None, noise)
    run = _Training(frame, replace(config, stops_early=False), noise)
    ended: list[tuple[int, Kept]] = []

    def psnr_of(weights: dict[str, torch.Tensor]) -> float:
        return psnr(denoised(replace(blank, weights=weights), frame), clean)

    seen = {0: psnr_of(copied_weights(run.stepper.averaged))}

    def watch(status: TrainingStatus) -> None:
        if status.step % config.validation_every == 0:
            seen[status.step] = psnr_of(copied_weights(run.stepper.averaged))
        kept = run.validation.kept
        if kept is not None and not ended and run.overfits():
            ended.append((status.step, kept))

    final = run.run(watch)
    step, weights, kept_step = (
        (ended[0][0], ended[0][1].weights, ended[0][1].step)
        if ended
        else (config.steps, final.weights, final.summary["kept_step"])
    )
    kept_db = psnr_of(weights)
    return {
        "best_db": max(seen.values()),
        "best_step": max(seen, key=lambda step: seen[step]),
        "stopped_step": step,
        "kept_db": kept_db,
        "kept_step": kept_step,
        "last_db": psnr(denoised(final, frame), clean),
        "below_best_db": max(seen.values()) - kept_db,
    }


def start() -> Rows:
    """A holographic fringe pattern, an amorphous film, a camera frame with no specimen."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float64)
    bend = 6 * np.exp(-((y - 256) ** 2 + (x - 256) ** 2) / (2 * 90**2))
    fringes = 0.5 + 0.3 * np.cos(2 * np.pi * (0.08 * x + 0.05 * y) + bend)
    rng = np.random.default_rng(8)
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in SHAPE), indexing="ij"))
    film = np.fft.ifft2(
        np.fft.fft2(rng.normal(size=SHAPE)) * np.exp(-((frequency / 0.06) ** 2))
    ).real
    film = 0.5 + 0.08 * film / film.std()
    empty = 0.5 + 0.03 * np.cos(2 * np.pi * (y / 900 + x / 1100))  # uneven illumination
    cleans = {"fringes": fringes, "amorphous film": film, "no specimen": empty}
    frames = {name: gaussian(name, clean, 0.05, 0.02).noisy for name, clean in cleans.items()}
    runs = list(product(cleans, ("packaged", "random"), range(START_SEEDS)))
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        args = zip(*((frames[name], begin, seed) for name, begin, seed in runs), strict=True)
        images = dict(zip(runs, pool.map(learned_and_denoised, *args), strict=True))
    rows = []
    for name, clean in cleans.items():
        row: dict[str, Any] = {
            "frame": name,
            "noisy_rmse": float((frames[name].pixels - clean).std()),
        }
        for begin in ("packaged", "random"):
            of_seeds = [images[name, begin, seed] for seed in range(START_SEEDS)]
            errors = [float(np.sqrt(np.mean((image - clean) ** 2))) for image in of_seeds]
            row[f"{begin}_rmse"] = float(np.mean(errors))
            row[f"{begin}_plus_minus"] = float(np.std(errors, ddof=1)) / START_SEEDS**0.5
        rows.append(row)
    return rows


def learned_and_denoised(frame: Frame, begin: str, seed: int) -> np.ndarray:
    """From the packaged weights or others."""
    return denoised(learned(frame, None if begin == "packaged" else begin, seed), frame)


TABLES = {"invention": invention, "defects": defects, "stopping": stopping, "start": start}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    for name in parser.parse_args().only:
        print(name)
        rows = TABLES[name]()
        for row in rows:
            words = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print("  " + ", ".join(words), flush=True)
        keep(f"trust-{name}", rows)


if __name__ == "__main__":
    main()
