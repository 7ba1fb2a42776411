"""Quality side by side: noisy, the classical filters, ZS-N2N, Noise2Void and n2sr's presets.

    python -m benchmarks.quality [--only PtCeO2_5 ...] [--methods fast BM3D ...] [--seeds 0 1 2]

Each row goes to results/quality.json when it is measured, in place of an older one of the same
case, method and seed; `--missing` measures only what is not there yet. n2sr is used with its
automatic settings, on ONNX Runtime: it learns from the noisy frame only, and is scored on the
truth or on other exposures. `fast, 5 s` is denoised with as many draws as `best`. `paper` takes
hours to days and is measured only where it is named; Ctrl-C ends its training, what was learned
until then is scored, and the next run goes on from there.
`python -m benchmarks.report` makes docs/benchmark.md of the rows.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cases import Case, Simulated, cases
from benchmarks.peers import PEERS, PeerMissingError
from benchmarks.results import FOLDER, commit, keep_rows, kept_rows, machine
from n2sr_deploy import Denoiser, Frame
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.progress import shown_training
from n2sr_deploy.scan_hum import put_straight
from n2sr_train import Checkpoint, TrainingConfig, export_model, train
from n2sr_train.learner import prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.noise import Noise

    Learn = Callable[[Case, Frame, TrainingConfig, Noise | None], Checkpoint]

PRESETS = ("fast", "balanced", "best")
PAPERS_SAMPLER = ", paper's sampler"
RANDOM_START = ", random start"
FIVE_SECONDS = "fast, 5 s"
PAPER = "paper"
PAPERS_FRAMES = ("PtCeO2_5, gain 0.05", "PtCeO2_4, gain 0.05")  # of which the paper tells figures
OURS = (
    *PRESETS,
    FIVE_SECONDS,
    "fast" + RANDOM_START,
    *(name + PAPERS_SAMPLER for name in PRESETS[:2]),
    PAPER,
)
IMAGES = FOLDER / "images"  # not committed: some frames' licences do not allow it

_TIMES = ("seconds", "measuring_s", "denoising_s")
_SUMS = ("steps", "kept_step", "seconds", "tflop")  # of the parts of a training
Row = dict[str, Any]
_LEARNED: dict[tuple[str, str], Checkpoint] = {}


def noisy_row(case: Case) -> tuple[Row, np.ndarray]:
    """The frame as it is."""
    return {"method": "noisy", "seed": 0, **case.scores(case.noisy.pixels)}, case.noisy.pixels


def peer_row(case: Case, method: str) -> tuple[Row, np.ndarray]:
    """A peer at its best."""
    key, sign = ("psnr_db", 1) if isinstance(case, Simulated) else ("excess_error", -1)
    start = time.perf_counter()
    image = PEERS[method](case.noisy, lambda x: sign * case.scores(x)[key])
    seconds = time.perf_counter() - start
    return {"method": method, "seed": 0, "seconds": seconds, **case.scores(image)}, image


def learned(case: Case, frame: Frame, config: TrainingConfig, noise: Noise | None) -> Checkpoint:
    """Trained now, or before by the same recipe: presets may differ in how they denoise only."""
    recipe = replace(config, preset="", n_samples=1)
    key = case.name, json.dumps(recipe.to_dict())
    if key not in _LEARNED or config.seconds is not None:
        with shown_training() as progress:
            _LEARNED[key] = train(frame, config, progress, noise)
    return replace(_LEARNED[key], config=config)


def learned_in_parts(
    case: Case, frame: Frame, config: TrainingConfig, noise: Noise | None
) -> Checkpoint:
    """Trained on from where a run before was ended, but for Adam's moments, which begin anew."""
    path = IMAGES / file_name(case.name, config.preset, config.seed, ".safetensors")
    before = Checkpoint.open(path) if path.exists() else None
    if before is not None:
        taken = before.summary["steps"]
        if taken == config.steps:
            return before
        config = replace(
            config, start=str(path), steps=config.steps - taken, seed=config.seed + taken
        )
    with shown_training() as progress:
        trained = train(frame, config, progress, noise)
    if before is not None:
        sums = {name: before.summary[name] + trained.summary[name] for name in _SUMS}
        trained = replace(trained, summary={**trained.summary, **sums})
    trained.save(path, overwrite=True)
    return trained


def our_row(case: Case, method: str, seed: int, learn: Learn = learned) -> tuple[Row, np.ndarray]:
    """Learned from the noisy frame, exported, denoised."""
    options = LearnOptions(
        preset=method.split(",")[0],
        seed=seed,
        seconds=5.0 if method == FIVE_SECONDS else None,
        init="random" if method.endswith(RANDOM_START) else None,
        pattern="cell" if method.endswith(PAPERS_SAMPLER) else None,
    )
    start = time.perf_counter()
    frame, config, noise = prepared(case.noisy, options)
    measuring_s = time.perf_counter() - start
    if method == FIVE_SECONDS:  # seconds more for as many draws as `best` has
        config = replace(config, n_samples=TrainingConfig.named("best").n_samples)
    checkpoint = learn(case, frame, config, noise)
    with Denoiser(export_model(checkpoint), backend="ort") as denoiser:
        start = time.perf_counter()
        if method.endswith(PAPERS_SAMPLER):  # independent draws, none of them turned
            single = [
                denoiser.denoise(frame, 1, frame_index=m).mean for m in range(config.n_samples)
            ]
            image = np.mean(single, axis=0)
        else:
            image = denoiser.denoise(frame).mean
        image, hum = put_straight(image)  # as `n2sr denoise` does
        denoising_s = time.perf_counter() - start
    row = {
        "method": method,
        "seed": seed,
        "seconds": checkpoint.summary["seconds"],
        "tflop": checkpoint.summary["tflop"],
        "steps": checkpoint.summary["steps"],
        "kept_step": checkpoint.summary["kept_step"],
        "n_samples": config.n_samples,
        "pattern": str(config.pattern),
        "found": noise.describe() if noise else "",
        "hum": hum.describe() if hum else "",
        "stopped_by": checkpoint.summary["stopped_by"],
        "measuring_s": measuring_s,
        "denoising_s": denoising_s,
        **case.scores(image),
    }
    return row, image


def file_name(frame: str, method: str, seed: int = 0, extension: str = ".npy") -> str:
    """What is kept of a row beside it: the image, or of `paper` the checkpoint."""
    return f"{frame}, {method}, {seed}{extension}".replace("/", " per ")


def measure(case: Case, method: str, seed: int) -> tuple[Row, np.ndarray]:
    """The scores of any method, and its image."""
    if method == "noisy":
        return noisy_row(case)
    if method in PEERS:
        return peer_row(case, method)
    return our_row(case, method, seed, learned_in_parts if method == PAPER else learned)


def key(row: Row) -> tuple[Any, ...]:
    """What a row measures."""
    return row["frame"], row["method"], row["seed"]


def rows() -> list[Row]:
    """What has been measured."""
    return kept_rows("quality")


def describe(row: Row) -> str:
    """One line."""
    if "psnr_db" in row:
        quality = (
            f"{row['psnr_db']:.2f} dB, SSIM {row['ssim']:.3f}, FRC {row['frc_half']:.3f} / px, "
            f"columns {row['columns_px']:.2f} px"
        )
    else:
        quality = f"excess error {row['excess_error']:.4f}"
    spent = f"; {row['tflop']:.2f} TFLOP" if "tflop" in row else ""
    spent += f", {row['seconds']:.0f} s" if "seconds" in row else ""
    spent += f", kept step {row['kept_step']} of {row['steps']}" if "steps" in row else ""
    return f"{row['frame']:26} {row['method']:24} seed {row['seed']}: {quality}{spent}"


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="frames whose name contains one of these")
    parser.add_argument("--methods", nargs="+", choices=["noisy", *PEERS, *OURS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of n2sr's methods")
    parser.add_argument("--untimed", action="store_true", help="keep no seconds: a busy machine")
    parser.add_argument("--missing", action="store_true", help="only what was not measured yet")
    arguments = parser.parse_args()
    methods = arguments.methods or ["noisy", *PEERS, *(name for name in OURS if name != PAPER)]
    IMAGES.mkdir(parents=True, exist_ok=True)
    for case in cases():
        if arguments.only and not any(word in case.name for word in arguments.only):
            continue
        for method in methods:
            for seed in arguments.seeds if method in OURS else [0]:
                done = {key(row) for row in rows()}
                if arguments.missing and (case.name, method, seed) in done:
                    continue
                try:
                    row, image = measure(case, method, seed)
                except PeerMissingError as error:
                    print(error, flush=True)
                    continue
                if arguments.untimed:
                    row = {name: value for name, value in row.items() if name not in _TIMES}
                row = {"frame": case.name, **row, "commit": commit(), "machine": machine()}
                others = [other for other in rows() if key(other) != key(row)]
                keep_rows("quality", sorted([*others, row], key=key))
                np.save(IMAGES / file_name(case.name, method, seed), image.astype(np.float32))
                print(describe(row), flush=True)


if __name__ == "__main__":
    main()
