"""Is the standard error right? Shares of pixels within 1 and 2 of it, where truth is known.

    python -m benchmarks.coverage [--only development held-out] [--models FOLDER]

Simulated frames of many kinds, noise white or correlated along rows, each learned from alone with
preset fast, with all its steps or a tenth of them, and the held-out ones with preset balanced too,
denoised as `n2sr denoise` does. The model of the error (`n2sr_deploy.uncertainty`) was chosen on
the development frames with 4 draws; the held-out ones had no part in it.
PtCeO2 frames are measured where the files are at hand. `--models` keeps the trained networks for
another run.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cases import DATA
from benchmarks.results import keep
from benchmarks.simulation import simulated_frame, unit_noise
from n2sr_deploy import Denoiser, ExportedModel, Frame, read_frame
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.phantom import clean_phantom
from n2sr_deploy.uncertainty import standard_error
from n2sr_train import export_model, learn_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

NOMINAL = 0.6827, 0.9545
NEAR = 0.05


@dataclass(frozen=True)
class Case:
    """A frame of known truth."""

    name: str
    clean: np.ndarray
    noisy: Frame
    options: LearnOptions

    def model(self, folder: Path) -> ExportedModel:
        """Learned from the noisy frame, or before."""
        name = self.name.replace(" ", "_").replace(",", "")
        path = folder / f"{name}_{self.options.preset}.onnx"
        if not path.exists():
            export_model(learn_checkpoint(self.noisy, self.options)).save(path)
        return ExportedModel.open(path)


def _case(
    name: str,
    clean: np.ndarray,
    gain: float,
    rng: np.random.Generator,
    along_rows: float = 0.0,
    steps: int | None = None,
) -> Case:
    noise = unit_noise(clean.shape, rng, along_rows)
    noisy = (clean + noise * np.sqrt(gain * clean + 0.02**2)).astype(np.float32)
    return Case(name, clean, Frame(pixels=noisy), LearnOptions(preset="fast", steps=steps))


def _simulated(
    name: str, seed: int, index: int, size: int, along_rows: float = 0.0, steps: int | None = None
) -> Case:
    """Of one to three regions, lattices, film; gain 0.003 to 0.1."""
    rng = np.random.default_rng([seed, index])
    whole = simulated_frame((size + 64, size + 64), rng)
    clean = 0.4 * whole[32:-32, 32:-32]  # its optics wrap around
    gain = float(np.exp(rng.uniform(np.log(0.003), np.log(0.1))))
    return _case(f"{name} {index}", clean, gain, rng, along_rows, steps)


def development() -> Iterator[Case]:
    """What the error's model was chosen on."""
    for index in range(6):
        yield _simulated("white", 3101, index, (512, 384, 640)[index % 3])
    for index in range(4):
        yield _simulated("white, more", 8201, index, (512, 448, 576)[index % 3])
    for seed, name in ((3102, "correlated"), (8202, "correlated, more")):
        for index, along_rows in enumerate((0.5, 0.3)):
            yield _simulated(name, seed, index, (512, 384)[index], along_rows)
    yield _phantom(12, 5, 8203)


def development_short() -> Iterator[Case]:
    """Likewise, by trainings that were cut to a tenth."""
    for index in range(8):
        steps = (200, 350)[index % 2]
        yield _simulated("white, short", 3103, index, (512, 384, 256)[index % 3], steps=steps)
    for index in range(3):
        steps = (200, 400)[index % 2]
        yield _simulated("white, more, short", 8204, index, (512, 384, 256)[index], steps=steps)
    for index, along_rows in enumerate((0.5, 0.3)):
        steps = (150, 300)[index]
        yield _simulated("correlated, short", 3104, index, (512, 384)[index], along_rows, steps)


def held_out() -> Iterator[Case]:
    """What is only reported on."""
    for index in range(4):
        yield _simulated("white, new", 8301, index, (512, 448, 576)[index % 3])
    yield _simulated("correlated, new", 8302, 0, 512, 0.4)
    yield _phantom(16, 9, 8303)
    for name in ("PtCeO2_4", "PtCeO2_5"):
        path = DATA / "simulated" / f"{name}.tif"
        if path.exists():
            clean = read_frame(path).pixels
            yield _case(name, clean, 0.05, np.random.default_rng(0))


def held_out_balanced() -> Iterator[Case]:
    """The same frames, with the preset that users have unless they name one."""
    for case in held_out():
        yield replace(case, options=replace(case.options, preset="balanced"))


def _phantom(spacing: int, seed: int, noise_seed: int) -> Case:
    """A lattice with defects and an edge."""
    clean = clean_phantom((512, 512), spacing=spacing, seed=seed)
    return _case(f"phantom, {spacing} px", clean, 0.05, np.random.default_rng(noise_seed))


SETS = {
    "development": development,
    "development, cut short": development_short,
    "held-out": held_out,
    "held-out, balanced": held_out_balanced,
}


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """Shares within 1 and 2 standard errors, and of the raw spread for comparison."""
    with Denoiser(case.model(folder), backend="ort") as denoiser:
        denoised = denoiser.denoise(case.noisy)
        found = standard_error(case.noisy, denoised, denoiser.denoise)
    error = np.abs(denoised.mean - case.clean)
    row: dict[str, Any] = {
        "frame": case.name,
        "steps": case.options.steps,
        "pattern": denoiser.model.metadata.pattern.name,
        "error": float(np.sqrt(np.mean(error**2))),
        "reported": float(np.sqrt(np.mean(np.square(found.standard_error, dtype=np.float64)))),
        "scale_error": found.scale_error,
    }
    for name, std in (("", found.standard_error), ("raw_", denoised.std)):
        for times in (1, 2):
            row[f"{name}within_{times}"] = float(np.mean(error <= times * std))
    print(f"{case.name}, {case.options.preset}: {row}", flush=True)
    return row


def pooled(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The shares over all frames, each frame counted alike; and how many are near."""
    shares = {
        f"{name}within_{times}": float(np.mean([row[f"{name}within_{times}"] for row in rows]))
        for name in ("", "raw_")
        for times in (1, 2)
    }
    near = [
        abs(row["within_1"] - NOMINAL[0]) <= NEAR and abs(row["within_2"] - NOMINAL[1]) <= NEAR
        for row in rows
    ]
    return {**shares, "frames": len(rows), "frames_within_5_points": sum(near)}


def table(figures: dict[str, Any]) -> str:
    """As docs/report.md shows it."""
    lines = [
        "| frame | error | reported | within 1 | within 2 | raw spread, within 1, 2 |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in figures.items():
        for row in [*part["frames"], {"frame": f"**{name}, mean**", **part["mean"]}]:
            error = (f"{row[key]:.4f}" if key in row else "" for key in ("error", "reported"))
            lines.append(
                f"| {row['frame']} | {' | '.join(error)} | {row['within_1']:.1%} "
                f"| {row['within_2']:.1%} | {row['raw_within_1']:.1%}, {row['raw_within_2']:.1%} |"
            )
        lines.append(
            f"| {name}, both shares within 5 points | "
            f"{part['mean']['frames_within_5_points']} of {part['mean']['frames']} frames | | | | |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--models", type=Path, help="a folder that keeps the trained networks")
    chosen = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen.only:
            rows = [measured(case, folder) for case in SETS[name]()]
            figures[name] = {"frames": rows, "mean": pooled(rows)}
    print(table(figures))
    if chosen.only == list(SETS):
        keep("coverage", figures)


if __name__ == "__main__":
    main()
