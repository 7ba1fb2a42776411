"""A frame by preset fast, M = 4, against balanced and the paper's network, M = 50, in one run.

    python -m benchmarks.latency [--size 512 512 --size 1024 1024] [--frames 100]

Networks are untrained: their weights do not change how long they take. Frames of all of n2sr's
backends alternate; the paper's network is measured at the first size only. Preset fast on ONNX
Runtime is measured against the same network in a bare session, as its library makes one, rounds of
both in turn. What bounds a stage is measured beside it: a copy of as many bytes as it reads and
writes for draw and merge, products of large matrices in the row's precision for the network.
"""

from __future__ import annotations

import argparse
import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from torch.nn.functional import conv2d

from benchmarks.results import begin_as_deployed, keep
from n2sr_deploy import Denoiser, bench
from n2sr_deploy.backends.choosing import ON_CPU
from n2sr_deploy.sampling import LIVE_SAMPLES
from n2sr_deploy.version import VERSION
from n2sr_train import Checkpoint, TrainingConfig, export_model
from n2sr_train.network import build_network

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from n2sr_deploy.pattern import Shape

SIZES = (512, 512), (1024, 1024)
OWN_SHARE = 0.1  # asked: of a frame's time, at most this beside the network's
BARE_RUN = 1.2  # asked: times the library's bare run, at most
BALANCED = 3.0  # asked: times preset fast's, at most
SIDES = 512, 1024  # of square matrices
MAPS = (4, 64, 32, 32), (4, 64, 64, 64), (4, 128, 64, 64)  # (N, C, H, W) to convolve
TIMES = 200  # each product, of which the fastest counts
ROUNDS = 7
BARE_FRAMES = 20  # of each round


def untrained(recipe: str | TrainingConfig) -> Checkpoint:
    """A preset's network, or a configuration's, with weights at random."""
    config = TrainingConfig.named(recipe) if isinstance(recipe, str) else recipe
    network = build_network(config.network, config.pattern.stride, seed=0)
    return Checkpoint(
        weights=network.state_dict(),
        config=config,
        history=[],
        summary={},
        pixel_size=None,
        unit=None,
        n2sr_version=VERSION,
    )


def copy_rate() -> float:
    """Bytes read plus bytes written a second, one thread, of more than caches hold."""
    source = np.ones(2**27, np.uint8)
    target = np.zeros_like(source)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.size / min(times)


def matrix_rate(precision: str) -> float:
    """Floating-point operations a second of matrix products in this precision, at most.

    A 3 x 3 convolution is such a product, (N H W, 9 C) times (9 C, C). On processors that they do
    not know, OpenBLAS and MKL, which multiply float32 matrices, take units of half the width; what
    convolves, oneDNN, does not.
    """
    dtype = getattr(torch, precision)
    rates = []
    with torch.inference_mode():
        for side in SIDES:
            a, b = torch.randn(2, side, side).to(dtype)
            rates.append(2 * side**3 / least_s(lambda a=a, b=b: a @ b))
        for n, channels, rows, columns in MAPS:
            maps, kernels = (
                torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
                for shape in ((n, channels, rows, columns), (channels, channels, 3, 3))
            )
            flop = 2 * n * rows * columns * 9 * channels**2
            rates.append(flop / least_s(lambda m=maps, k=kernels: conv2d(m, k, padding=1)))
    return max(rates)


def least_s(run: Callable[[], object]) -> float:
    """Of `TIMES` runs: others only tell of what else the machine did."""
    return min(_taken_s(run, TIMES))


def precision_of(row: dict[str, Any]) -> str:
    """What the network of a row computes in, as PyTorch calls it; backends tell in their names."""
    found = re.search(r"\b(bfloat16|float16)\b", row["backend"])
    return found[0] if found else "float32"


def moved_bytes(row: dict[str, Any]) -> dict[str, int]:
    """What draw and merge must read and write, in bytes."""
    pixels, draws = int(np.prod(row["size"])), row["n_samples"]
    kept = draws * pixels // 4
    return {
        "draw": kept * (np.dtype(row["dtype"]).itemsize + 4),
        "merge": draws * pixels * 4 + 2 * pixels * 4,
    }


def measured(preset: str, sizes: Sequence[Shape], **workload: Any) -> dict[str, Any]:
    """What `n2sr bench` tells of a preset's network; its table is printed."""
    model = export_model(untrained(preset))
    result = bench.measure(model, bench.Workload(sizes=sizes, **workload))
    print(f"preset {preset}")
    print("\n".join(bench.table(result)))
    return result


def against_bare_run(size: Shape, n_frames: int) -> dict[str, Any]:
    """A frame on ONNX Runtime, uint16 in, mean and spread out, against the network's run alone."""
    model = export_model(untrained("fast"))
    n_samples, pattern = LIVE_SAMPLES, model.metadata.pattern
    rng = np.random.default_rng(0)
    frame = rng.poisson(100, size).astype(np.uint16)
    rows, columns = (n // s for n, s in zip(size, pattern.stride, strict=True))
    drawn = rng.normal(size=(n_samples, 1, rows, columns)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.onnx)
    given = {session.get_inputs()[0].name: drawn}
    with Denoiser(model, backend="ort") as denoiser:
        ways = (lambda: denoiser.denoise(frame, n_samples)), (lambda: session.run(None, given))
        taken = np.array([[median_s(way, n_frames) for way in ways] for _ in range(ROUNDS)])
    whole, bare = (1e3 * float(np.median(times)) for times in taken.T)
    times = float(np.median(taken[:, 0] / taken[:, 1]))
    print(
        f"ONNX Runtime, {size[0]} x {size[1]}: {whole:.1f} ms a frame, {bare:.1f} ms a bare run: "
        f"{times:.2f} times (at most {BARE_RUN:g})"
    )
    return {"size": list(size), "frame_ms": whole, "bare_run_ms": bare, "times_bare_run": times}


def median_s(run: Callable[[], object], n: int) -> float:
    """Of so many runs."""
    return float(np.median(_taken_s(run, n)))


def _taken_s(run: Callable[[], object], n: int) -> list[float]:
    """By each of so many runs, after one to warm up."""
    run()
    taken = []
    for _ in range(n):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return taken


def put_limits(row: dict[str, Any], mac_per_pixel: float, copy: float, matrix: float) -> None:
    """Tell of a row how near its stages come to what bounds them, and print it."""
    stages = {name: 1e-3 * stage["p50"] for name, stage in row["stages_ms"].items()}
    flop = 2 * mac_per_pixel * np.prod(row["size"]) * row["n_samples"]
    row["share_of_matrix_rate"] = flop / stages["infer"] / matrix
    row["times_a_copy"] = {
        stage: stages[stage] / (n_bytes / copy) for stage, n_bytes in moved_bytes(row).items()
    }
    print(
        f"{_what(row)}: its network at {row['share_of_matrix_rate']:.0%} of the matrix rate in "
        f"{precision_of(row)} ({matrix / 1e9:.0f} GFLOP/s); draw {row['times_a_copy']['draw']:.1f} "
        f"and merge {row['times_a_copy']['merge']:.1f} times a copy ({copy / 1e9:.1f} GB/s)"
    )


def put_ratios(fast: dict[str, Any], balanced: dict[str, Any], papers: dict[str, Any]) -> None:
    """Tell of every row of `fast` how it compares with the other two, and print it."""
    papers_ms, papers_size = papers["total_ms"]["p50"], papers["size"]
    for row, slower in zip(fast["rows"], balanced["rows"], strict=True):
        ms = row["total_ms"]["p50"]
        row["balanced_times_fast"] = slower["total_ms"]["p50"] / ms
        told = (
            f"{_what(row)}: {row['own_share']:.1%} beside infer (at most {OWN_SHARE:.0%}); "
            f"balanced takes {row['balanced_times_fast']:.2f} times as long (at most {BALANCED:g})"
        )
        if row["size"] == papers_size:
            row["times_faster_than_the_paper"] = papers_ms / ms
            told += f"; the paper's network at M = 50 {papers_ms / ms:.0f} times"
        print(told)


def _what(row: dict[str, Any]) -> str:
    return f"{row['backend']}, {row['size'][0]} x {row['size'][1]}"


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("H", "W"))
    parser.add_argument("--frames", type=int, default=100, help="of each size; p99 needs 100")
    parser.add_argument("--papers-frames", type=int, default=1)
    parser.add_argument("--backends", nargs="+", choices=list(ON_CPU), default=list(ON_CPU))
    arguments = parser.parse_args()
    sizes = [tuple(size) for size in arguments.size or SIZES]
    given = {"backends": arguments.backends, "n_frames": arguments.frames}
    fast, balanced = (measured(preset, sizes, **given) for preset in ("fast", "balanced"))
    papers = measured(
        "paper",
        sizes[:1],
        backends=["ort"],
        n_samples=TrainingConfig.named("paper").n_samples,
        n_frames=arguments.papers_frames,
        n_warm_up=0,
    )
    bare = [against_bare_run(size, min(BARE_FRAMES, arguments.frames)) for size in sizes]
    copy = copy_rate()
    matrix = {name: matrix_rate(name) for name in sorted({*map(precision_of, fast["rows"])})}
    for row in fast["rows"]:
        put_limits(row, fast["model"]["mac_per_pixel"], copy, matrix[precision_of(row)])
    put_ratios(fast, balanced, papers["rows"][0])
    rates = {"copy_bytes_per_s": copy, "matrix_flop_per_s": matrix}
    figures = {
        "ours": fast,
        "balanced": balanced,
        "papers": papers,
        "bare_runs": bare,
        "rates": rates,
    }
    print(f"kept in {keep('latency', figures)}")


if __name__ == "__main__":
    begin_as_deployed()
    main()
