"""Where pipelines are tested: on a GPU that is none, and on a real one that tells as much."""

from __future__ import annotations

import numpy as np
import pytest

from n2sr_deploy import Denoiser, Frame
from n2sr_deploy.backends import open_network
from n2sr_deploy.backends.native import NativeNetwork
from n2sr_deploy.cuda.runtime import CudaDevice
from n2sr_deploy.pipeline import FramePipeline, Program
from tests.fake_device import FakeDevice, FakeNetwork

FAKE, FAKE_NATIVE = "a GPU that is none", "n2sr's kernels on it"
WHERE = [FAKE, FAKE_NATIVE, *(pytest.param(on, marks=pytest.mark.gpu) for on in ("native", "cuda"))]
# Of the worst pixel, in the frame's standard deviations: of networks in float32, then in float16
TOLERANCE = {FAKE: 1e-5, "cuda": 1e-4, FAKE_NATIVE: 1e-2, "native": 1e-2}


class WatchedDevice(CudaDevice):
    """The real GPU; it tells what it holds and how often it was asked, as `FakeDevice` does."""

    def __init__(self):
        super().__init__()
        self.memory, self.pins, self.streams, self.graphs = {}, {}, {}, {}
        self.n_allocations = self.n_waits = self.n_captures = 0

    def allocate(self, n_bytes):
        address = super().allocate(n_bytes)
        self.memory[address] = n_bytes
        self.n_allocations += 1
        return address

    def free(self, address):
        del self.memory[address]  # before: then another thread may be given the same address
        super().free(address)

    def pinned(self, n_bytes):
        memory = super().pinned(n_bytes)
        self.pins[memory.ctypes.data] = n_bytes
        self.n_allocations += 1
        return memory

    def unpin(self, memory):
        del self.pins[memory.ctypes.data]
        super().unpin(memory)

    def stream(self):
        stream = super().stream()
        self.streams[stream] = None
        return stream

    def end_stream(self, stream):
        del self.streams[stream]
        super().end_stream(stream)

    def wait(self, stream):
        self.n_waits += 1
        super().wait(stream)

    def begin_capture(self, stream):
        self.n_captures += 1
        super().begin_capture(stream)

    def end_capture(self, stream):
        graph = super().end_capture(stream)
        self.graphs[graph] = stream
        return graph

    def end_graph(self, graph):
        del self.graphs[graph]
        super().end_graph(graph)


class GPU:
    """A GPU, or what stands in for one, and how networks get onto it; one of `WHERE`."""

    def __init__(self, where):
        self.where = where
        self.device = FakeDevice() if where in (FAKE, FAKE_NATIVE) else WatchedDevice()
        self.is_recorded = where != "cuda"
        self.closed = []  # networks

    def program(self, model, n_in_flight=2):
        network, stride = None, model.metadata.pattern.stride
        if self.where == FAKE:
            network = FakeNetwork(model, self.device)
        elif self.where == FAKE_NATIVE:
            network = NativeNetwork(model.onnx, self.device, stride)
        else:
            network = open_network(
                model.onnx,
                self.where,
                self.device,
                precision=model.metadata.precision,
                stride=stride,
            )
        close = network.close
        network.close = lambda: (self.closed.append(network), close())
        return Program(model, network, self.device, n_in_flight)

    def pipeline(self, model, n_in_flight=2):
        return FramePipeline(self.program(model, n_in_flight))

    def assert_as_on_the_cpu(self, found, model, frame, n_samples=None, **key):
        assert_as_on_the_cpu(found, model, frame, n_samples, TOLERANCE[self.where], **key)

    def assert_replayed(self, n_graphs):
        """Those that were recorded are there, one in each slot, and were not given up."""
        assert len(self.device.graphs) == (n_graphs if self.is_recorded else 0)

    def assert_empty(self):
        assert not self.device.memory, "device memory was not given back"
        assert not self.device.pins, "pinned memory was not given back"
        assert not self.device.streams
        assert not self.device.graphs


def assert_as_on_the_cpu(found, model, frame, n_samples=None, tolerance=1e-5, **key):
    """No pixel is further off than the tolerance, in the frame's standard deviations, and all of
    them a fifth of that (root mean square)."""
    with Denoiser(model, backend="ort") as denoiser:
        wanted = denoiser.denoise(frame, n_samples, **key)
    scale = tolerance * (frame.pixels if isinstance(frame, Frame) else frame).std()
    for result, expected in ((found.mean, wanted.mean), (found.std, wanted.std)):
        off = np.abs(result.astype(np.float64) - expected)
        assert off.max() <= scale
        assert np.sqrt(np.mean(off**2)) <= scale / 5
