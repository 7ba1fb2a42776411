"""Would frames come faster if draw and merge ran beside the network? Frames a second, both ways.

    python -m benchmarks.overlap [--size 512 512 --size 1024 1024] [--rounds 12]

One after another, as `Denoiser` does, against three threads with two sets of buffers: one draws the
next frame and one merges the last while the network has this one. Preset fast, M = 4, untrained:
its weights do not change how long it takes. Rounds of ten frames alternate.
"""

from __future__ import annotations

import argparse
import queue
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks.latency import SIZES, untrained
from benchmarks.results import begin_as_deployed, keep
from n2sr_deploy import Frame
from n2sr_deploy.backends import open_backend
from n2sr_deploy.backends.choosing import ON_CPU
from n2sr_deploy.sampling import draw, merge
from n2sr_train import export_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import FloatArray

FRAMES = 10  # of a round
N_SAMPLES = 4
SETS = 2  # of buffers


class Scale(NamedTuple):
    """Of a frame."""

    mean: float
    std: float


class Stages:
    """The three stages of a frame, each on one of two sets of buffers."""

    def __init__(self, model: ExportedModel, backend: str, size: Shape) -> None:
        meta = model.metadata
        self.pattern = meta.pattern
        self.backend = open_backend(
            model.onnx, backend, stride=self.pattern.stride, precision=meta.precision
        )
        rng = np.random.default_rng(0)
        self.frames = [rng.poisson(100, size).astype(np.uint16) for _ in range(4)]
        rows, columns = (n // s for n, s in zip(size, self.pattern.stride, strict=True))
        self.drawn = np.empty((SETS, N_SAMPLES, 1, rows, columns), np.float32)
        self.outputs = np.empty((SETS, N_SAMPLES, 1, *size), np.float32)
        self.merged: FloatArray = np.empty((SETS, 2, *size), np.float32)

    def draw(self, n: int, n_threads: int) -> Scale:
        """Frame n's sub-samples, and what they were standardised by."""
        frame = Frame(pixels=self.frames[n % len(self.frames)])
        scale = Scale(*frame.mean_and_std())
        draw(
            frame.pixels,
            self.pattern,
            N_SAMPLES,
            seed=0,
            frame_index=n,
            mean=scale.mean,
            scale=scale.std,
            out=self.drawn[n % SETS, :, 0],
            n_threads=n_threads,
        )
        return scale

    def infer(self, n: int) -> None:
        """Frame n through the network."""
        self.backend.infer(self.drawn[n % SETS], self.outputs[n % SETS])

    def merge(self, n: int, scale: Scale, n_threads: int) -> None:
        """Frame n's mean and spread."""
        mean, std = self.merged[n % SETS]
        merge(
            self.outputs[n % SETS, :, 0],
            top=0,
            left=0,
            offset=scale.mean,
            scale=scale.std,
            mean=mean,
            std=std,
            n_threads=n_threads,
        )
        mean += np.float32(scale.mean - mean.mean(dtype=np.float64))


def one_after_another(stages: Stages) -> None:
    """Every stage on all cores."""
    for n in range(FRAMES):
        scale = stages.draw(n, 0)
        stages.infer(n)
        stages.merge(n, scale, 0)


def overlapped(stages: Stages) -> None:
    """The network on all cores; draw and merge in a thread each."""
    drawn: queue.SimpleQueue[Scale] = queue.SimpleQueue()
    inferred: queue.SimpleQueue[Scale] = queue.SimpleQueue()
    free_drawn, free_outputs = threading.Semaphore(SETS), threading.Semaphore(SETS)

    def draw_all() -> None:
        for n in range(FRAMES):
            free_drawn.acquire()
            drawn.put(stages.draw(n, 1))

    def merge_all() -> None:
        for n in range(FRAMES):
            stages.merge(n, inferred.get(), 1)
            free_outputs.release()

    threads = [threading.Thread(target=target) for target in (draw_all, merge_all)]
    for thread in threads:
        thread.start()
    for n in range(FRAMES):
        scale = drawn.get()
        free_outputs.acquire()
        stages.infer(n)
        free_drawn.release()
        inferred.put(scale)
    for thread in threads:
        thread.join()


def seconds_each(run: Callable[[Stages], None], stages: Stages) -> float:
    """A frame takes."""
    began = time.perf_counter()
    run(stages)
    return (time.perf_counter() - began) / FRAMES


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--backends", nargs="+", choices=list(ON_CPU), default=list(ON_CPU))
    arguments = parser.parse_args()
    model = export_model(untrained("fast"))
    rows = []
    for size in arguments.size or SIZES:
        for backend in arguments.backends:
            stages = Stages(model, backend, tuple(size))
            ways = one_after_another, overlapped
            for way in ways:
                way(stages)  # to warm up
            taken = np.array(
                [[seconds_each(way, stages) for way in ways] for _ in range(arguments.rounds)]
            )
            stages.backend.close()
            row = {
                "backend": backend,
                "size": list(size),
                "one_after_another_ms": 1e3 * float(np.median(taken[:, 0])),
                "overlapped_ms": 1e3 * float(np.median(taken[:, 1])),
                "times_faster": float(np.median(taken[:, 0] / taken[:, 1])),
            }
            rows.append(row)
            print(
                f"{backend}, {size[0]} x {size[1]}: {row['one_after_another_ms']:.1f} ms a frame, "
                f"overlapped {row['overlapped_ms']:.1f} ms, {row['times_faster']:.2f} times as fast"
            )
    print(f"kept in {keep('overlap', rows)}")


if __name__ == "__main__":
    begin_as_deployed()
    main()
