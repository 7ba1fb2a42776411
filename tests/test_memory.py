"""What frames leave behind in memory, and what is kept from frame to frame."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from n2sr_deploy import Denoiser
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.pipeline import FramePipeline, Program
from tests.conftest import random_pixels
from tests.fake_device import FakeContext, FakeDevice, FakeNetwork

MANY, WARM = 100_000, 2_000
SIDE, M = 512, 4
ONE = 4 * SIDE**2  # bytes of a float32 frame, in which memory is counted below
SMALL = ONE // 8  # of all that is no frame
SHAPE = 16, 16
FRAMES = [random_pixels(SHAPE, "uint16", seed) for seed in range(4)]


class Doubling:
    """A backend that repeats each value over its cell."""

    name = "none"
    n_closed = 0

    def infer(self, subsampled, out):
        rows, columns = (out.shape[axis] // subsampled.shape[axis] for axis in (-2, -1))
        for y in range(rows):
            for x in range(columns):
                out[..., y::rows, x::columns] = subsampled

    def close(self):
        self.n_closed += 1


def nothing():
    """What each step of an `IdleDevice` does."""


class IdleDevice(FakeDevice):
    """Enqueues, records and waits as a GPU does, but does nothing: so it is fast."""

    def pinned(self, n_bytes):
        memory = super().pinned(n_bytes)
        if n_bytes % 8 == 0:
            memory.view(np.float64)[:] = 1  # of the frame's statistics: a mean and a deviation
        return memory

    def draw(self, *arguments):
        self.enqueue(arguments[-1], nothing)

    upload = download = statistics = merge = pool = shift_mean = draw


class IdleContext(FakeContext):
    def enqueue(self, *_):
        self.network.device.enqueue(self.stream, nothing)


class IdleNetwork(FakeNetwork):
    def context(self, shape, stream):
        self.n_open += 1
        return IdleContext(self, shape, stream)


def resident_bytes():
    """Of this process; 0 where the system does not tell."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * 4096 if told.exists() else 0


def grown(denoise):
    """Objects and bytes that the process holds more after MANY frames than after WARM of them."""
    held = []
    for n in range(MANY):
        denoise(n)
        if n in (WARM - 1, MANY - 1):
            gc.collect()
            held.append((sys.getallocatedblocks(), resident_bytes()))
    return np.subtract(held[1], held[0])


def test_frames_leave_nothing_behind_on_a_cpu(model):
    with Denoiser(model, backend=Doubling(), n_threads=1) as denoiser:
        n_objects, n_bytes = grown(lambda n: denoiser.denoise(FRAMES[n % 4], 4, frame_index=n))
    assert n_objects < 1000
    assert n_bytes < 2**22


def test_frames_leave_nothing_behind_on_a_gpu(model):
    device = IdleDevice()
    network = IdleNetwork(model, device)
    with FramePipeline(Program(model, network, device, n_in_flight=2)) as pipeline:

        def denoise(n):
            if pipeline.n_in_flight == 2:
                pipeline.collect()
            pipeline.submit(FRAMES[n % 4], 4, frame_index=n)

        n_objects, n_bytes = grown(denoise)
        assert device.n_captures == 2
    assert n_objects < 1000
    assert n_bytes < 2**22


@pytest.mark.parametrize(("name", "n_kept"), [("cell", 1), ("row", 4)])
def test_on_a_cpu_few_frames_are_held_beside_the_networks_outputs(model, name, n_kept):
    """Its input, which stays, as large as M / 4 frames of cells, M / 2 of lines; of lines the
    results of the shifted draws, which stay too; and the results, of which the caller keeps what it
    likes."""
    pattern = SamplingPattern.named(name)
    model = replace(model, metadata=replace(model.metadata, pattern=pattern, n_orientations=4))
    frame = random_pixels((SIDE, SIDE), "uint16")
    with Denoiser(model, backend=Doubling(), n_threads=1) as denoiser:
        denoiser.denoise(FRAMES[0], M)
        tracemalloc.start()
        try:
            for n in range(3):
                done = denoiser.denoise(frame, M, frame_index=n)
                assert done.mean.nbytes == done.std.nbytes == ONE
                del done
            held, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    outputs = M * ONE
    assert held < outputs + n_kept * ONE + SMALL
    assert most < outputs + (n_kept + 2) * ONE + 2 * SMALL


@pytest.mark.parametrize("n_in_flight", [1, 2])
def test_on_a_gpu_a_frame_in_flight_pins_itself_and_its_results(model, n_in_flight):
    """And the results that the caller still holds when it asks for the next are pinned too."""
    frame = random_pixels((SIDE, SIDE), "uint16")
    device = IdleDevice()
    network = IdleNetwork(model, device)
    with FramePipeline(Program(model, network, device, n_in_flight)) as pipeline:

        def most_pinned(holds):
            done, most = None, 0
            for _ in range(12):
                if pipeline.n_in_flight == n_in_flight:
                    done = pipeline.collect()
                if not holds:
                    done = None
                pipeline.submit(frame, M)
                most = max(most, sum(memory.nbytes for memory in device.pins.values()))
            while pipeline.n_in_flight:
                pipeline.collect()
            return done, most

        uint16_and_results = ONE // 2 + 2 * ONE
        assert abs(most_pinned(False)[1] - n_in_flight * uint16_and_results) < SMALL
        assert abs(most_pinned(True)[1] - n_in_flight * uint16_and_results - 2 * ONE) < SMALL
