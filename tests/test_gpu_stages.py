"""The stages that `benchmarks.gpu` times are a frame's, on a device that is none."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import gpu, gpu_stages
from benchmarks.latency import untrained
from n2sr_deploy.backends.native import NativeNetwork
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.pipeline import FramePipeline, Program
from n2sr_train import export_model
from n2sr_train.config import NetworkConfig
from tests.conftest import random_pixels, tiny_config
from tests.fake_device import FakeDevice


class CopyingDevice(FakeDevice):
    """That copies within its memory too, as benchmarks ask a GPU to."""

    def _call(self, name, to, source, n_bytes, stream):
        assert name == "copy"
        to, source = (self.at(address, (n_bytes,), np.uint8) for address in (to, source))
        self.enqueue(stream, lambda: np.copyto(to, source))


STAGES = ["upload", "statistics", "draw", "network", "merge", "download"]


def test_gpu_tells_the_stages_of_frames_of_every_size(model, monkeypatch):
    device, kept, seconds = CopyingDevice(), {}, iter(range(1, 1000))

    def seconds_of(on, work):
        stream = on.stream()
        work(stream)
        on.wait(stream)
        on.end_stream(stream)
        return float(next(seconds))

    monkeypatch.setattr(gpu, "CudaDevice", lambda: device)
    monkeypatch.setattr(gpu, "export_model", lambda *_, **__: model)
    monkeypatch.setattr(gpu, "SIZES", [(32, 32), (32, 64)])
    monkeypatch.setattr(gpu, "matrix_rate", lambda: 1e6)
    monkeypatch.setattr(gpu, "keep_part", lambda _, part, rows, **__: kept.update({part: rows}))
    monkeypatch.setattr(gpu_stages, "seconds_of", seconds_of)
    monkeypatch.setattr(sys, "argv", ["gpu", "--parts", "stages"])
    gpu.main()
    rows = kept["stages"]
    assert [row["stage"] for row in rows] == 4 * STAGES
    assert [row["preset"] for row in rows] == 12 * ["fast"] + 12 * ["balanced"]
    first = {row["stage"]: row for row in rows[6:12]}
    assert [row["size"] for row in first.values()] == 6 * [[32, 64]]
    n = 32 * 64
    n_bytes = {stage: row["bytes"] for stage, row in first.items() if stage != "network"}
    assert list(n_bytes.values()) == [2 * n, 2 * n, 4 * n, 16 * n, 8 * n]
    # Each stage is timed, then its copy; the network has none.
    assert [row["us"] / 1e6 for row in first.values()] == [12, 14, 16, 18, 19, 21]
    assert first["draw"]["times_a_copy"] == pytest.approx(16 / 17)
    network = first["network"]
    assert network["share_of_matrix_rate"] == pytest.approx(network["flop"] / 18 / 1e6)
    assert network["flop"] == pytest.approx(2 * model.metadata.mac_per_pixel * 4 * n)
    assert not device.memory | device.pins | device.streams | device.graphs


@pytest.mark.parametrize("pattern", ["cell", "row"])
def test_the_stages_of_a_frame_are_all_of_its_work(pattern, monkeypatch):
    """As many calls as a pipeline makes for a frame, and one after another the same result."""
    monkeypatch.setattr(gpu_stages, "REPEATS", 2)
    monkeypatch.setattr(gpu_stages, "ROUNDS", 1)
    small = NetworkConfig(channels=(12, 12))
    config = tiny_config(pattern=SamplingPattern.named(pattern), network=small)
    model = export_model(untrained(config), precision="fp16")
    pixels = random_pixels((32, 48), "uint16")
    device = CopyingDevice()
    network = NativeNetwork(model.onnx, device, model.metadata.pattern.stride)
    with FramePipeline(Program(model, network, device, 1)) as pipeline:
        for _ in range(3):  # planned, recorded, replayed
            before = device.n_done
            denoised = pipeline.denoise(pixels, 4, frame_index=0)
        n_done, mean = device.n_done - before, denoised.mean.copy()
    device = CopyingDevice()
    with gpu_stages.noted_stages(device, model, pixels, 4) as stages:
        assert list(stages) == STAGES
        assert sum(map(len, stages.values())) == n_done
        results = [pin for pin in device.pins.values() if pin.nbytes == mean.nbytes]
        for result in results:
            result[:] = 0
        for calls in stages.values():
            gpu_stages.seconds_of(device, lambda on, calls=calls: gpu_stages.all_of(calls, on))
        assert any(np.array_equal(pin.view("f4").reshape(mean.shape), mean) for pin in results)
    assert not device.memory | device.pins | device.streams | device.graphs
