"""Train the starting weights that n2sr_train carries, on simulated frames whose truth is known.

    python -m benchmarks.starting_weights [--preset fast balanced] [--pattern cell row] [--go-on]

Each network sees sub-sampled noisy frames of `simulation.py` at all noise levels from nearly
clean to hopeless, and learns their clean frames. The results go to n2sr_train/weights, in float16,
where a training finds them; a network of pattern `column` starts from the transposed `row`.
With `--go-on` they are not trained from the beginning but further, on other patches.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.simulation import simulated_frame, unit_noise
from n2sr_deploy import reference
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.sampling import draw
from n2sr_train.config import TrainingConfig
from n2sr_train.devices import has_bfloat16
from n2sr_train.optimisers import build_optimisers
from n2sr_train.starting import packaged_path, starting_network

FRAME = 384  # pixels along a simulated frame
N_FRAMES, N_HELD_BACK = 3000, 100
SEED = 7
NOISE_RANGE = 0.2, 10.0  # standard deviations of the noise over that of the signal
FLAT_SHARE = 0.04  # of the patches, so that pure noise gives a flat field
BATCH = 4

torch.set_flush_denormal(True)


def frame(index: int) -> np.ndarray:
    """The clean frame of a number."""
    rng = np.random.default_rng([SEED, index])
    return simulated_frame((FRAME, FRAME), rng).astype(np.float16)


def patch(rng: np.random.Generator, frames: np.ndarray, pattern: SamplingPattern, size: int) -> Any:
    """A sub-sampled noisy patch (1, h, w) and its clean patch (1, H, W), both standardised."""
    clean = frames[rng.integers(len(frames))].astype(np.float32)
    mean, signal = float(clean.mean()), max(float(clean.std()), 0.02)
    if rng.random() < FLAT_SHARE:
        clean = np.full_like(clean, mean)
    top, left = rng.integers(FRAME - size + 1, size=2)
    clean = clean[top : top + size, left : left + size]
    turns = 8 if pattern.stride_y == pattern.stride_x else 4
    turn = rng.integers(turns)
    clean = np.ascontiguousarray(
        (clean.T if turn >= 4 else clean)[reference.ORIENTATIONS[turn % 4]]
    )
    variance = (signal * math.exp(rng.uniform(*np.log(NOISE_RANGE)))) ** 2
    share = rng.uniform()  # of the variance that grows with the intensity
    along_rows = rng.uniform(0, 0.6) if pattern.shared == "row" else 0.0
    noise = unit_noise(clean.shape, rng, along_rows)
    noisy = clean + noise * np.sqrt(variance * (share * clean + 1 - share))
    std = math.sqrt(signal**2 + variance * (share * mean + 1 - share))
    standardised = ((noisy - mean) / std).astype(np.float32)
    seed = int(rng.integers(2**63))
    return draw(standardised, pattern, 1, seed=seed), ((clean - mean) / std)[None]


def batch(rng: np.random.Generator, n: int, *where: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` patches: (n, 1, h, w) and (n, 1, H, W)."""
    subsampled, clean = zip(*(patch(rng, *where) for _ in range(n)), strict=True)
    return tuple(torch.from_numpy(np.stack(x).astype(np.float32)) for x in (subsampled, clean))


def autocast() -> torch.autocast:
    """To bfloat16, where the processor has it."""
    enabled = has_bfloat16(torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def relative_error(network: torch.nn.Module, batches: list[Any]) -> float:
    """The mean error that is left, in variances of each clean patch."""
    errors = []
    with torch.no_grad(), autocast():
        for subsampled, clean in batches:
            squared = (network(subsampled).float() - clean).square().mean((1, 2, 3))
            errors += (squared / (clean.var((1, 2, 3)) + 0.02)).tolist()
    return float(np.mean(errors))


def trained(
    preset: str, pattern: SamplingPattern, frames: np.ndarray, steps: int, *, goes_on: bool
) -> Any:
    """The averaged network after `steps` steps; a trapezoid of a schedule."""
    config = replace(TrainingConfig.named(preset), pattern=pattern, seed=SEED)
    config = replace(config, start="packaged" if goes_on else "random")
    network: torch.nn.Module = starting_network(config)
    network = network.to(memory_format=torch.channels_last)
    optimisers = build_optimisers(network, config)
    averaged = copy.deepcopy(network)
    size = 192 if pattern.name == "cell" else 128
    held_back = np.random.default_rng(SEED + 1)
    check = [batch(held_back, 16, frames[:N_HELD_BACK], pattern, size) for _ in range(8)]
    rng = np.random.default_rng([SEED, 1] if goes_on else SEED)  # other patches than before
    error = relative_error(averaged, check)
    print(f"  step 0: error left {error:.4f}", flush=True)
    start = time.perf_counter()
    for step in range(steps):
        rate = min(1.0, (step + 1) / 50, 2 * (1 - step / steps))
        for optimiser in optimisers:
            optimiser.set_rate(rate)
            optimiser.zero_grad()
        subsampled, clean = batch(rng, BATCH, frames[N_HELD_BACK:], pattern, size)
        with autocast():
            output = network(subsampled)
        # In shares of what there is to explain, or the cleanest patches would rule.
        weight = 1 / (clean.var((1, 2, 3), keepdim=True) + 0.05)
        ((output.float() - clean).square() * weight).mean().backward()
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            decay = min(0.998, (1 + step) / (10 + step))
            for average, weight in zip(averaged.parameters(), network.parameters(), strict=True):
                average.lerp_(weight, 1 - decay)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            error = relative_error(averaged, check)
            elapsed = time.perf_counter() - start
            print(f"  step {step + 1}: error left {error:.4f}, {elapsed:.0f} s", flush=True)
    return averaged


def main() -> None:
    """Simulate, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["fast", "balanced"])
    parser.add_argument("--pattern", nargs="+", default=["cell", "row"])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--go-on", action="store_true", help="from the weights that are there")
    arguments = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        frames = np.stack(list(pool.map(frame, range(N_FRAMES), chunksize=20)))
    for name in arguments.pattern:
        for preset in arguments.preset:
            print(f"{preset}, {name}", flush=True)
            pattern = SamplingPattern.named(name)
            network = trained(preset, pattern, frames, arguments.steps, goes_on=arguments.go_on)
            state = network.state_dict().items()
            weights = {key: value.half().contiguous() for key, value in state}
            path = packaged_path(TrainingConfig.named(preset).network, name)
            save_file(weights, path)
            path.chmod(0o644)
            print(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
