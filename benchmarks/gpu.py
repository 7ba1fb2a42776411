"""On a GPU: kernels against a copy, frames host to host beside PyTorch, trainings, and memory.

    python -m benchmarks.gpu [--parts kernels stages frames draws trainings cold memory paper]

Needs n2sr's CUDA kernels and PyTorch with CUDA; backends that are not installed are told and left
out. Times of kernels are those of many replays of a CUDA graph, whose inputs exceed the GPU's
caches, but for `statistics`.
Models are float16. PyTorch's network, the yardstick, is the model's in channels_last, recorded in
a CUDA graph and timed alone: no draw, no merge, no copy from or to the host. The part `paper`, the
preset of that name in full, 9300 TFLOP a frame, is measured only when it is named. A part is
replaced as a whole when it has ended; the others keep what an earlier run gave them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch

from benchmarks.cases import cases
from benchmarks.gpu_stages import REPEATS, ROUNDS, copy_seconds, seconds_of, stage_rows
from benchmarks.latency import untrained
from benchmarks.quality import OURS, PAPERS_FRAMES, our_row
from benchmarks.results import keep_part
from n2sr_deploy import Denoiser, bench, layout
from n2sr_deploy.backends.choosing import ON_GPU, check_backend
from n2sr_deploy.cuda.device import Draws, Part, Pixels, Values
from n2sr_deploy.cuda.runtime import CudaDevice
from n2sr_deploy.errors import N2SRError
from n2sr_deploy.opening import open_denoiser
from n2sr_deploy.pattern import SamplingPattern, Window
from n2sr_deploy.pipeline import FramePipeline
from n2sr_train import export_model
from n2sr_train.network import build_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from n2sr_deploy import Denoised, ExportedModel

SIDE, N_SAMPLES = 4096, 4
SIZES = (512, 512), (1024, 1024), (4096, 4096)
MATRIX = 8192
PARTS = "kernels", "stages", "frames", "draws", "trainings", "cold", "memory", "paper"
AT_ONCE = 4, 16  # draws given to the network
MANY, WARM = 100_000, 1000  # frames of 128 x 128
ALLOWED = 0.01  # of a result's standard deviation, from the CPU's; float16 costs 0.002


def kernel_rows() -> Iterator[dict[str, Any]]:
    """Draw and merge of a large frame, and copies that move as many bytes."""
    device = CudaDevice()
    pattern = SamplingPattern.named("cell")
    cells = SIDE // 2
    window, draws = Window(0, 0, cells, cells), Draws(0, N_SAMPLES, pattern.group_size, False)
    part = Part(0, 0, SIDE, SIDE, SIDE, SIDE, SIDE)
    n = SIDE * SIDE
    with ExitStack() as opened:

        def room(n_bytes: int) -> int:
            address = device.allocate(n_bytes)
            opened.callback(device.free, address)
            return address

        def put(array: np.ndarray) -> int:
            address, pinned = room(array.nbytes), device.pinned(array.nbytes)
            pinned[:] = array.view(np.uint8).reshape(-1)
            stream = device.stream()
            device.upload(address, pinned, stream)
            device.wait(stream)
            device.end_stream(stream)
            device.unpin(pinned)
            return address

        rng = np.random.default_rng(0)
        frame = rng.poisson(100, (SIDE, SIDE)).astype(np.uint16)
        pixels = Pixels(put(frame), frame.dtype, frame.shape, frame.shape[1])
        key, scratch = put(np.array([1, 2], np.uint64)), room(device.scratch_bytes())
        statistics = put(np.array([100.0, 10.0, 0.1]))
        mean, std = room(4 * n), room(4 * n)
        for half in (True, False):
            number = 2 if half else 4
            values = rng.normal(size=(N_SAMPLES, SIDE, SIDE)).astype(np.float16 if half else "f4")
            outputs, drawn = put(values), room(number * n)
            work: dict[str, tuple[int, Callable[[int], None]]] = {
                "draw": (
                    n * (2 + number),
                    lambda stream, drawn=drawn, half=half: device.draw(
                        pixels, pattern, window, draws, key, statistics, Values(drawn, half), stream
                    ),
                ),
                "merge": (
                    n * (N_SAMPLES * number + 8),
                    lambda stream, outputs=outputs, half=half: device.merge(
                        Values(outputs, half), draws, part, statistics, mean, std, stream
                    ),
                ),
            }
            if half:
                work["statistics"] = (
                    2 * n,
                    lambda stream: device.statistics(pixels, scratch, statistics, stream),
                )
            for name, (n_bytes, enqueue) in work.items():
                copied = copy_seconds(device, n_bytes)
                taken = seconds_of(device, enqueue)
                yield {
                    "kernel": f"{name}, {'float16' if half else 'float32'}",
                    "bytes": n_bytes,
                    "us": 1e6 * taken,
                    "copy_us": 1e6 * copied,
                    "times_a_copy": taken / copied,
                    "copy_bytes_per_s": n_bytes / copied,
                }


def all_stage_rows() -> Iterator[dict[str, Any]]:
    """Stages of frames of every size, by both presets of one network."""
    device, rate = CudaDevice(), matrix_rate()
    for preset in ("fast", "balanced"):
        model = export_model(untrained(preset), precision="fp16")
        for size in SIZES:
            for row in stage_rows(device, model, size, N_SAMPLES, rate):
                yield {"preset": preset, **row}


def network_ms(preset: str, size: tuple[int, int]) -> dict[str, float]:
    """PyTorch's time for the network alone, recorded in a CUDA graph: the yardstick."""
    config = untrained(preset).config
    network = build_network(config.network, config.pattern.stride, seed=0)
    network = network.to("cuda", torch.float16, memory_format=torch.channels_last)
    shape = N_SAMPLES, 1, size[0] // 2, size[1] // 2
    inputs = torch.randn(shape, device="cuda", dtype=torch.float16)
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        with torch.cuda.stream(stream):
            for _ in range(3):
                network(inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            network(inputs)
    times = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(REPEATS):
            graph.replay()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began) / REPEATS)
    flop = (
        2 * export_model(untrained(preset)).metadata.mac_per_pixel * size[0] * size[1] * N_SAMPLES
    )
    ms = float(np.median(times[1:]))
    return {"ms": ms, "tflop_per_s": flop / ms / 1e9}


def matrix_rate() -> float:
    """Floating-point operations a second of a large float16 product."""
    a, b = torch.randn((2, MATRIX, MATRIX), device="cuda", dtype=torch.float16)
    times = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(3):
            a @ b
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / 3)
    return 2 * MATRIX**3 / float(np.median(times[1:]))


def working_backends() -> list[str]:
    """Of the GPU's, those that are installed; the others are told."""
    found = []
    for name in ON_GPU:
        try:
            check_backend(name)
        except N2SRError as error:
            print(f"{name}: {error}")
        else:
            found.append(name)
    return found


def frame_rows(frames: int) -> Iterator[dict[str, Any]]:
    """Every backend host to host, and PyTorch's network beside it."""
    backends = working_backends()
    for preset in ("fast", "balanced"):
        model = export_model(untrained(preset), precision="fp16")
        for size in SIZES:
            yardstick = network_ms(preset, size)
            workload = bench.Workload(
                sizes=[size],
                backends=backends,
                n_frames=max(100, frames * 512 * 512 // (size[0] * size[1])),
            )
            result = bench.measure(model, workload)
            for row in result["rows"]:
                yield {**row, "preset": preset, "pytorch": yardstick}


def draw_rows(frames: int) -> Iterator[dict[str, Any]]:
    """Frames with 16 draws, given to the network four or all at once."""
    for preset in ("fast", "balanced"):
        model = export_model(untrained(preset), precision="fp16")
        for size in SIZES:
            n_frames = max(100, frames // 4 * 512 * 512 // (size[0] * size[1]))
            workload = bench.Workload(
                sizes=[size], backends=["native"], n_samples=16, n_frames=n_frames
            )
            for at_once in AT_ONCE:
                with mock.patch.object(layout, "DRAWS_AT_ONCE", at_once):
                    (row,) = bench.measure(model, workload)["rows"]
                yield {**row, "preset": preset, "at_once": at_once}


def cold_rows() -> Iterator[dict[str, Any]]:
    """Trainings, each the first of a process."""
    for method in ("fast", "balanced"):
        command = [sys.executable, "-m", "benchmarks.gpu", "--cold", method]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        yield json.loads(said.splitlines()[-1])


def cold_row(method: str) -> dict[str, Any]:
    """Of this process, in which nothing was trained yet."""
    case = next(case for case in cases() if case.name == PAPERS_FRAMES[0])
    began = time.perf_counter()
    row, _ = our_row(case, method, 0)
    return {"frame": case.name, "total_s": time.perf_counter() - began, **row}


def training_rows(methods: Sequence[str], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Trainings of the simulated frames, from the frame to the image."""
    for case in cases():
        if case.name not in PAPERS_FRAMES:
            continue
        for method in methods:
            for seed in seeds:
                row, _ = our_row(case, method, seed)
                yield {"frame": case.name, **row}


def memory_after_many() -> dict[str, float]:
    """What the process and the GPU hold more after many frames than after the first thousand."""
    model = export_model(untrained("fast"))
    frames = np.random.default_rng(0).poisson(100, (4, 128, 128)).astype(np.uint16)
    held: list[tuple[int, int]] = []
    with open_denoiser(model, "native", n_in_flight=2) as pipeline:
        if not isinstance(pipeline, FramePipeline):
            raise TypeError("frames would not be denoised on a GPU")
        began = time.perf_counter()
        for n in range(MANY):
            if pipeline.n_in_flight == 2:
                pipeline.collect()
            pipeline.submit(frames[n % 4], N_SAMPLES, frame_index=n)
            if n in (WARM, MANY - 1):
                free, _ = torch.cuda.mem_get_info()
                held.append((resident_bytes(), -free))
        seconds = time.perf_counter() - began
        while pipeline.n_in_flight:
            last = pipeline.collect()
    error = difference_from_cpu(model, last, frames[(MANY - 1) % 4], MANY - 1)
    host, gpu = (after - before for before, after in zip(*held, strict=True))
    return {
        "frames": MANY,
        "seconds": seconds,
        "host_bytes": host,
        "gpu_bytes": gpu,
        "last_differs_by": error,
    }


def difference_from_cpu(
    model: ExportedModel, found: Denoised, frame: np.ndarray, frame_index: int
) -> float:
    """Root mean square, in standard deviations of ONNX Runtime's result.

    Raises
    ------
    RuntimeError
        Where mean or spread differs by more than `ALLOWED`.
    """
    with Denoiser(model, backend="ort") as denoiser:
        wanted = denoiser.denoise(frame, N_SAMPLES, frame_index=frame_index)
    off = [found.mean - wanted.mean, found.std - wanted.std]
    error = float(np.sqrt(np.mean(np.square(off), axis=(1, 2))).max() / wanted.mean.std())
    if not error <= ALLOWED:
        raise RuntimeError(
            f"frame {frame_index} on the GPU differs from the CPU's by {error:.3g} of its standard "
            f"deviation, but at most {ALLOWED:g} is allowed"
        )
    return error


def resident_bytes() -> int:
    """Of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:-1])
    parser.add_argument("--frames", type=int, default=1000, help="of 512 x 512; fewer larger ones")
    parser.add_argument("--methods", nargs="+", choices=OURS, default=["fast", "balanced", "best"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cold", choices=OURS, help="only this training, printed as JSON")
    arguments = parser.parse_args()
    if arguments.cold:
        print(json.dumps(cold_row(arguments.cold)))
        return
    parts: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        "kernels": kernel_rows,
        "stages": all_stage_rows,
        "frames": lambda: frame_rows(arguments.frames),
        "draws": lambda: draw_rows(arguments.frames),
        "cold": cold_rows,
        "trainings": lambda: training_rows(arguments.methods, arguments.seeds),
        "memory": lambda: [memory_after_many()],
        "paper": lambda: training_rows(["paper"], arguments.seeds),
    }
    for name in arguments.parts:
        rows = []
        for row in parts[name]():
            print(name, json.dumps(row), flush=True)
            rows.append(row)
            keep_part("gpu", name, rows, is_whole=False)  # whatever ends the next
        if rows:
            print(f"{name}: kept in {keep_part('gpu', name, rows)}", flush=True)


if __name__ == "__main__":
    main()
