"""How often the measured noise is the simulated one, over many frames.

    python -m benchmarks.noise [--frames 100]

Frames of benchmarks/simulation.py, a quarter each with white noise and with noise correlated along
rows, along columns and along both. White noise on small frames, too: how far its correlation is
told from none there decides from where on `choose_pattern` believes one. And every fifth frame
spoiled: clipped at either end, or with x-ray hits of several pixels.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.results import keep
from benchmarks.simulation import simulated_frame, unit_noise
from n2sr_deploy import Frame
from n2sr_deploy.noise import LITTLE, choose_pattern, detail_power, measure_noise

SHAPE = (512, 512)
SEED = 5
SMALL = (64, 96, 128)  # rows and columns
PER_SIZE = 40  # frames
KINDS = ("white", "rows", "columns", "both")


def saturated(pixels: Any, _: np.random.Generator) -> Any:
    """The brightest twentieth at the upper limit."""
    return np.minimum(pixels, np.quantile(pixels, 0.95))


def cut_off(pixels: Any, _: np.random.Generator) -> Any:
    """The darkest twentieth at zero."""
    return np.maximum(pixels - np.quantile(pixels, 0.05), 0)


def with_hits(pixels: Any, rng: np.random.Generator) -> Any:
    """One pixel of 200 in hits of 2 x 2 or 3 x 3 pixels, 3 to 30 times the frame's span."""
    spoiled = pixels.copy()
    span = np.ptp(np.quantile(pixels, (0.001, 0.999)))
    size = int(rng.integers(2, 4))
    for _ in range(pixels.size // 200 // size**2):
        y, x = rng.integers(0, np.array(SHAPE) - size)
        heights = rng.uniform(3, 30) * span * rng.uniform(0.5, 1, (size, size))
        spoiled[y : y + size, x : x + size] += heights
    return spoiled


SPOILED = {"saturated": saturated, "cut off": cut_off, "hits": with_hits}


def measured(index: int, spoiled: str | None = None) -> dict[str, Any]:
    """Simulate a frame, measure it, compare."""
    rng = np.random.default_rng([SEED, index])
    clean = simulated_frame(SHAPE, rng) * rng.uniform(0.3, 0.7)
    gain, read_noise = float(np.exp(rng.uniform(np.log(0.02), 0))), float(rng.uniform(0, 0.1))
    kind = KINDS[index % 4]
    along_rows, along_columns = rng.uniform(0.12, 0.6, 2)
    if kind in ("white", "columns"):
        along_rows = 0.0
    if kind in ("white", "rows"):
        along_columns = 0.0
    noise = unit_noise(SHAPE, rng, along_rows, along_columns)
    pixels = clean + noise * np.sqrt(gain * clean + read_noise**2)
    if spoiled:
        pixels = SPOILED[spoiled](pixels, rng)
    found = measure_noise(Frame(pixels=pixels.astype(np.float32)))
    pattern, margin, _ = choose_pattern(found)
    power = float(np.mean(gain * clean + read_noise**2))
    of_both = "cell" if power < LITTLE * (power + detail_power(clean)) else "both"
    expected = {"white": "cell", "rows": "row", "columns": "column", "both": of_both}[kind]
    errors = found.along_rows[0] - along_rows, found.along_columns[0] - along_columns
    return {
        "kind": kind,
        "spoiled": spoiled,
        "contrast": float(clean.std() / clean.mean()),
        "gain": gain,
        "read_noise": read_noise,
        "right_pattern": ("both" if margin else pattern.name) == expected,
        "correlation_error": float(np.abs(errors).max()),
        "gain_error": None if found.gain is None else found.gain / gain - 1,
        "std_error": float(found.std / np.sqrt(power)) - 1,
        "hot_pixels": found.hot_pixels,
        "offsets_found": bool(found.row_offsets or found.column_offsets),
    }


def measured_small(size: int, index: int) -> dict[str, object]:
    """White noise on a small frame."""
    rng = np.random.default_rng([SEED, size, index])
    clean = simulated_frame((size, size), rng) * rng.uniform(0.3, 0.7)
    gain = float(np.exp(rng.uniform(np.log(0.02), 0)))
    pixels = clean + rng.normal(size=clean.shape) * np.sqrt(gain * clean + 0.02**2)
    found = measure_noise(Frame(pixels=pixels.astype(np.float32)))
    return {
        "size": size,
        "along_rows": found.along_rows[0],
        "along_columns": found.along_columns[0],
        "right_pattern": choose_pattern(found)[0].name == "cell",
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100)
    n_frames = parser.parse_args().frames
    rows = [measured(index) for index in range(n_frames)]
    small = [measured_small(size, index) for size in SMALL for index in range(PER_SIZE)]
    told = [row for row in rows if row["gain_error"] is not None]
    summary: dict[str, float] = {
        "frames": len(rows),
        "right_pattern": sum(bool(row["right_pattern"]) for row in rows),
        "correlation_within_0.05": sum(row["correlation_error"] < 0.05 for row in rows),
        "gain_told": len(told),
        "gain_within_10_percent_of_those": sum(abs(row["gain_error"]) < 0.1 for row in told),
        "false_hot_pixels": sum(row["hot_pixels"] for row in rows),
        "small_white_frames": len(small),
        "of_those_right_pattern": sum(bool(row["right_pattern"]) for row in small),
        "false_offsets": sum(row["offsets_found"] for row in rows),
    }
    spoiled = [
        measured(5 * index, kind) for kind in SPOILED for index in range((n_frames + 4) // 5)
    ]
    for kind in SPOILED:
        of_kind = [row for row in spoiled if row["spoiled"] == kind]
        gains = [row["gain_error"] for row in of_kind if row["gain_error"] is not None]
        name = kind.replace(" ", "_")
        summary[f"{name}_frames"] = len(of_kind)
        summary[f"{name}_right_pattern"] = sum(row["right_pattern"] for row in of_kind)
        summary[f"{name}_gain_told"] = len(gains)
        summary[f"{name}_gain_within_10_percent"] = sum(abs(error) < 0.1 for error in gains)
    for size in SMALL:
        of_size = [(r["along_rows"], r["along_columns"]) for r in small if r["size"] == size]
        error = float(np.sqrt(np.mean(np.square(of_size))))
        summary[f"correlation_error_{size}"] = round(error, 4)
        print(f"{size} x {size}: standard error {error:.3f} = {error * size:.1f} / {size}")
    for name, value in summary.items():
        print(f"{name}: {value}")
    print(f"kept in {keep('noise', {'summary': summary, 'rows': rows + spoiled, 'small': small})}")


if __name__ == "__main__":
    main()
