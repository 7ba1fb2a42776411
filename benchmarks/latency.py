"""A frame by preset fast, M = 4, against the paper's network, M = 50, in one run.

    python -m benchmarks.latency [--size 512 512] [--frames 20] [--papers-frames 1]

Networks are untrained: their weights do not change how long they take. Frames of all of n2sr's
backends alternate. What bounds a stage is measured beside it: a copy of as many bytes as it reads
and writes for draw and merge, a product of large float32 matrices for the network.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results import keep
from n2sr_deploy import bench
from n2sr_deploy.backends.choosing import ON_CPU
from n2sr_deploy.version import VERSION
from n2sr_train import Checkpoint, TrainingConfig, export_model
from n2sr_train.network import build_network

if TYPE_CHECKING:
    from n2sr_deploy.model import ExportedModel

MATRIX = 2048  # rows and columns
ROUNDS = 7


def untrained(preset: str) -> ExportedModel:
    """A preset's network with the weights it would start from at random."""
    config = TrainingConfig.named(preset)
    network = build_network(config.network, config.pattern.stride, seed=0)
    return export_model(
        Checkpoint(
            weights=network.state_dict(),
            config=config,
            history=[],
            summary={},
            pixel_size=None,
            unit=None,
            n2sr_version=VERSION,
        )
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


def matrix_rate() -> float:
    """Floating-point operations a second of a float32 matrix product."""
    a, b = np.random.default_rng(0).normal(size=(2, MATRIX, MATRIX)).astype(np.float32)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * MATRIX**3 / min(times)


def moved_bytes(row: dict[str, Any]) -> dict[str, int]:
    """What draw and merge must read and write, in bytes."""
    pixels, draws = int(np.prod(row["size"])), row["n_samples"]
    kept = draws * pixels // 4
    return {
        "draw": kept * (np.dtype(row["dtype"]).itemsize + 4),
        "merge": draws * pixels * 4 + 2 * pixels * 4,
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512))
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--papers-frames", type=int, default=1)
    parser.add_argument("--backends", nargs="+", choices=list(ON_CPU), default=list(ON_CPU))
    arguments = parser.parse_args()
    size = tuple(arguments.size)
    ours = bench.measure(
        untrained("fast"),
        bench.Workload(sizes=[size], backends=arguments.backends, n_frames=arguments.frames),
    )
    papers = bench.measure(
        untrained("paper"),
        bench.Workload(
            sizes=[size], backends=["ort"], n_frames=arguments.papers_frames, n_warm_up=0
        ),
    )
    print("\n".join([*bench.table(ours), *bench.table(papers)]))
    papers_ms = papers["rows"][0]["total_ms"]["p50"]
    copy, matrix = copy_rate(), matrix_rate()
    for row in ours["rows"]:
        stages = {name: 1e-3 * stage["p50"] for name, stage in row["stages_ms"].items()}
        flop = 2 * ours["model"]["mac_per_pixel"] * np.prod(size) * row["n_samples"]
        row["times_faster_than_the_paper"] = papers_ms / row["total_ms"]["p50"]
        row["share_of_matrix_rate"] = flop / stages["infer"] / matrix
        row["times_a_copy"] = {
            stage: stages[stage] / (n_bytes / copy) for stage, n_bytes in moved_bytes(row).items()
        }
        print(
            f"{row['backend']}: {row['times_faster_than_the_paper']:.0f} times as fast as the "
            f"paper's network at M = 50; its network at {row['share_of_matrix_rate']:.0%} of the "
            f"matrix rate ({matrix / 1e9:.0f} GFLOP/s); draw {row['times_a_copy']['draw']:.1f} and "
            f"merge {row['times_a_copy']['merge']:.1f} times a copy ({copy / 1e9:.1f} GB/s)"
        )
    rates = {"copy_bytes_per_s": copy, "matrix_flop_per_s": matrix}
    print(f"kept in {keep('latency', {'ours': ours, 'papers': papers, 'rates': rates})}")


if __name__ == "__main__":
    main()
