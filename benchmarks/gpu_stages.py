"""What a GPU takes for the stages of a frame, one by one, of which `benchmarks.gpu` is the program.

What the first frame of its kind asks of the device, unrecorded, is noted. Then the calls of each
stage are timed by themselves: many replays of a CUDA graph, with the same memory. Beside it stands
what bounds a stage: a copy of as many bytes, from or to the host for `upload` and `download`, or a
product of matrices for `network`.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.backends.native import NativeNetwork
from n2sr_deploy.cuda.copying import Copier
from n2sr_deploy.frame import Frame
from n2sr_deploy.layout import layouts
from n2sr_deploy.plan import Kind, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from n2sr_deploy.cuda.runtime import CudaDevice
    from n2sr_deploy.model import ExportedModel

    Work = Callable[[int], None]  # enqueues on a stream

REPEATS = 20  # in a graph
ROUNDS = 7
STAGE_OF = {
    "upload": "upload",
    "statistics": "statistics",
    "draw": "draw",
    "convolve": "network",
    "merge": "merge",
    "pool": "merge",
    "shift_mean": "merge",
    "download": "download",
}
"""Of what enqueues work."""


def seconds_of(device: CudaDevice, work: Work) -> float:
    """What some work takes on the device: the median over rounds of a graph of repeats."""
    stream = device.stream()
    work(stream)
    device.wait(stream)
    device.begin_capture(stream)
    for _ in range(REPEATS):
        work(stream)
    graph = device.end_capture(stream)
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        device.replay(graph, stream)
        device.wait(stream)
        times.append((time.perf_counter() - began) / REPEATS)
    device.end_graph(graph)
    device.end_stream(stream)
    return float(np.median(times[1:]))


def copy_seconds(device: CudaDevice, n_bytes: int, stage: str = "") -> float:
    """What a copy takes that reads and writes so many bytes; of a transfer, that moves as many."""
    with ExitStack() as opened:

        def room(n: int) -> int:
            address = device.allocate(n)
            opened.callback(device.free, address)
            return address

        if stage in ("upload", "download"):
            there, here = room(n_bytes), device.pinned(n_bytes)
            opened.callback(device.unpin, here)
            if stage == "upload":
                return seconds_of(device, lambda stream: device.upload(there, here, stream))
            return seconds_of(device, lambda stream: device.download(here, there, stream))
        half = n_bytes // 2
        source, target = room(half), room(half)
        return seconds_of(device, lambda stream: device._call("copy", target, source, half, stream))


class Noting:
    """A device, and what it was asked to enqueue, by stage."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.noted: dict[str, list[Work]] = {}

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._device, name)
        if name not in STAGE_OF:
            return asked

        def note(*arguments: Any) -> None:
            *given, stream = map(_as_it_is, arguments)
            self.noted.setdefault(STAGE_OF[name], []).append(lambda on: asked(*given, on))
            asked(*given, stream)

        return note


def _as_it_is(argument: Any) -> Any:
    """A launch's structure is used for the next launch too."""
    if isinstance(argument, ctypes.Structure):
        return type(argument).from_buffer_copy(argument)
    return argument


@contextmanager
def noted_stages(
    device: CudaDevice, model: ExportedModel, pixels: np.ndarray, n_samples: int
) -> Iterator[dict[str, list[Work]]]:
    """The calls of one frame on n2sr's own kernels, to be made again while this is open."""
    noting = Noting(device)
    with ExitStack() as opened:
        stream = device.stream()
        opened.callback(device.end_stream, stream)
        network = NativeNetwork(model.onnx, noting, model.metadata.pattern.stride)
        opened.callback(network.close)
        copier = Copier()
        opened.callback(copier.close)
        kind = Kind(pixels.shape, pixels.dtype, n_samples)
        layout = next(layouts(model, kind.shape, n_samples))
        plan = Plan(model, network, noting, kind, layout, stream)
        opened.callback(plan.close)
        results = []
        for _ in range(2):
            memory = device.pinned(4 * pixels.size)
            opened.callback(device.unpin, memory)
            results.append(memory.view(np.float32).reshape(kind.shape))
        plan.fill(Frame(pixels=pixels), (0, 0), copier)
        noting.noted.clear()  # of trying the network
        plan.enqueue()
        plan.download(*results)
        device.wait(stream)
        yield noting.noted


def stage_rows(
    device: CudaDevice,
    model: ExportedModel,
    size: tuple[int, int],
    n_samples: int,
    matrix_flop_per_s: float,
) -> Iterator[dict[str, Any]]:
    """Every stage of a uint16 frame: its time, and how near it comes to what bounds it."""
    pixels = np.random.default_rng(0).poisson(100, size).astype(np.uint16)
    n = pixels.size
    n_bytes = {  # that must be read and written
        "upload": 2 * n,
        "statistics": 2 * n,
        "draw": 2 * n + 2 * n_samples * n // model.metadata.pattern.group_size,
        "merge": (2 * n_samples + 8) * n,
        "download": 8 * n,
    }
    flop = 2 * model.metadata.mac_per_pixel * n * n_samples
    with noted_stages(device, model, pixels, n_samples) as stages:
        for stage, calls in stages.items():
            taken = seconds_of(device, lambda stream, calls=calls: all_of(calls, stream))
            row = {"size": list(size), "stage": stage, "us": 1e6 * taken}
            if stage == "network":
                row |= {"flop": flop, "matrix_flop_per_s": matrix_flop_per_s}
                row["share_of_matrix_rate"] = flop / taken / matrix_flop_per_s
            else:
                copied = copy_seconds(device, n_bytes[stage], stage)
                row |= {"bytes": n_bytes[stage], "copy_us": 1e6 * copied}
                row["times_a_copy"] = taken / copied
            yield row


def all_of(calls: list[Work], stream: int) -> None:
    """Enqueue a stage's calls."""
    for call in calls:
        call(stream)
