"""Stands in for a GPU: memory, streams and graphs that refuse what a GPU would refuse."""

from __future__ import annotations

import itertools
import threading

import numpy as np

from n2sr_deploy import sampling
from n2sr_deploy.backends import open_backend
from n2sr_deploy.errors import DeviceError, ModelError, OutOfDeviceMemoryError

POISON = 0xFF  # what freed memory holds: NaN as float32
WORKSPACE = 100  # bytes of a network's own for each value of its input


def transposed(draws_of, draws):
    """(M, h, w) with the draws of every second group transposed in place; or back."""
    result = draws_of.copy()
    for m in range(draws.n_samples):
        if draws.transposes and (draws.first_sample + m) // draws.group_size % 2 == 1:
            result[m] = draws_of[m].T.reshape(draws_of[m].shape)
    return result


def turned_back(outputs, draws):
    """The other way round."""
    height, width = outputs.shape[1:]
    result = outputs.copy()
    for m in range(draws.n_samples):
        if draws.transposes and (draws.first_sample + m) // draws.group_size % 2 == 1:
            result[m] = outputs[m].reshape(width, height).T
    return result


def float_of(values):
    return np.float16 if values.is_half else np.float32


class FakeDevice:
    """Does what is enqueued when it is waited for, or records it while a stream is captured.

    Parameters
    ----------
    n_bytes
        Of memory.
    """

    name = "a GPU that is none"

    def __init__(self, n_bytes=2**30):
        self.n_bytes = n_bytes
        self.memory = {}  # address: array
        self.pins = {}  # address: array
        self.streams = {}  # stream: None, or what is being recorded
        self.queues = {}  # stream: what is still to be done
        self.recorders = {}  # stream: the thread that records it
        self.graphs = {}
        self.numbers = itertools.count(2**20)  # of memory, streams and graphs; safe in threads
        self.places = itertools.count(1)
        self.n_waits = self.n_allocations = self.n_done = self.n_captures = 0
        self.fails_at = None  # the number of the operation that fails
        self.broken = set()  # streams of which an operation failed

    # memory

    def allocate(self, n_bytes):
        self._refuse_while_recording("allocate")
        if n_bytes + sum(a.nbytes for a in list(self.memory.values())) > self.n_bytes:
            raise OutOfDeviceMemoryError("the GPU's memory is full")
        self.n_allocations += 1
        address = next(self.places) * 2**32  # far apart
        self.memory[address] = np.full(n_bytes, 0xAA, np.uint8)
        return address

    def free(self, address):
        self._refuse_while_recording("free")
        self.memory.pop(address)[:] = POISON

    def pinned(self, n_bytes):
        self.n_allocations += 1
        memory = np.full(n_bytes, 0xAA, np.uint8)
        self.pins[memory.ctypes.data] = memory
        return memory

    def unpin(self, memory):
        del self.pins[memory.ctypes.data]
        memory[:] = POISON

    def at(self, address, shape, dtype):
        """Device memory as an array; an error unless it lies within one allocation."""
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for start, memory in list(self.memory.items()):
            if start <= address and address + n_bytes <= start + memory.nbytes:
                part = memory[address - start : address - start + n_bytes]
                return part.view(dtype).reshape(shape)
        raise AssertionError(f"{n_bytes} bytes at {address} are no device memory")

    def _pinned(self, array):
        start = array.ctypes.data
        inside = [
            pin <= start and start + array.nbytes <= pin + memory.nbytes
            for pin, memory in list(self.pins.items())
        ]
        assert any(inside), "a copy from or to memory that is not pinned"

    # streams and graphs

    def stream(self):
        stream = next(self.numbers)
        self.queues[stream] = []
        self.streams[stream] = None
        return stream

    def end_stream(self, stream):
        del self.streams[stream]
        del self.queues[stream]
        self.broken.discard(stream)

    def wait(self, stream):
        self._refuse_while_recording("wait")
        self.n_waits += 1
        for step in self.queues[stream]:
            self.n_done += 1
            if self.n_done == self.fails_at:
                self.broken.add(stream)
            if stream not in self.broken:
                step()
        self.queues[stream] = []
        if stream in self.broken:
            raise DeviceError("the GPU failed (an illegal address)")

    def begin_capture(self, stream):
        assert self.streams[stream] is None, "captured twice"
        self.n_captures += 1
        self.recorders[stream] = threading.get_ident()
        self.streams[stream] = []

    def end_capture(self, stream):
        recorded, self.streams[stream] = self.streams[stream], None
        if any(isinstance(step, DeviceError) for step in recorded):
            raise DeviceError("the GPU failed (the capture was spoilt)")
        graph = next(self.numbers)
        self.graphs[graph] = recorded
        return graph

    def replay(self, graph, stream):
        for step in self.graphs[graph]:
            self.enqueue(stream, step)

    def end_graph(self, graph):
        del self.graphs[graph]

    def enqueue(self, stream, step):
        """Queue a step, or record it."""
        recording = self.streams[stream]
        (self.queues[stream] if recording is None else recording).append(step)

    def _refuse_while_recording(self, what):
        """As CUDA does where captures are of a thread: what other threads do is no matter."""
        for stream, steps in list(self.streams.items()):
            if steps is not None and self.recorders[stream] == threading.get_ident():
                steps.append(DeviceError(what))
                raise DeviceError(f"the GPU failed ({what} while a graph is captured)")

    # work

    def upload(self, to, source, stream):
        self._pinned(source)
        self.enqueue(stream, lambda: np.copyto(self.at(to, source.shape, source.dtype), source))

    def download(self, to, source, stream):
        self._pinned(to)
        self.enqueue(stream, lambda: np.copyto(to, self.at(source, to.shape, to.dtype)))

    def scratch_bytes(self):
        return 64

    def statistics(self, pixels, scratch, result, stream):
        def work():
            values = self.at(pixels.address, (pixels.size,), pixels.dtype)
            self.at(scratch, (64,), np.uint8)[...] = 0
            mean = values.mean(dtype=np.float64)
            std = np.sqrt(np.mean((values - mean) ** 2, dtype=np.float64))
            with np.errstate(divide="ignore"):
                self.at(result, (3,), np.float64)[:] = mean, std, 1 / std

        self.enqueue(stream, work)

    def draw(self, pixels, pattern, window, draws, key, statistics, subsampled, stream):
        def work():
            frame = self.at(pixels.address, pixels.shape, pixels.dtype)
            seed, frame_index = (int(word) for word in self.at(key, (2,), np.uint64))
            mean, std, _ = (float(value) for value in self.at(statistics, (3,), np.float64))
            drawn = sampling.draw(
                frame,
                pattern,
                draws.n_samples,
                seed=seed,
                frame_index=frame_index,
                first_sample=draws.first_sample,
                mean=mean,
                scale=std if std > 0 else 1.0,
                window=window,
            )
            out = self.at(subsampled.address, drawn.shape, float_of(subsampled))
            out[...] = transposed(drawn, draws)

        self.enqueue(stream, work)

    def merge(self, outputs, draws, part, statistics, mean, std, stream):
        def work():
            shape = draws.n_samples, part.of_height, part.of_width
            found = self.at(outputs.address, shape, float_of(outputs))
            offset, scale, _ = (float(value) for value in self.at(statistics, (3,), np.float64))
            results = np.empty((2, part.height, part.width), np.float32)
            sampling.merge(
                turned_back(found.astype(np.float32), draws),
                first_sample=draws.first_sample,
                top=part.top,
                left=part.left,
                offset=offset,
                scale=scale,
                mean=results[0],
                std=results[1],
            )
            for address, result in ((mean, results[0]), (std, results[1])):
                for y, row in enumerate(result):
                    self.at(address + 4 * y * part.row, row.shape, np.float32)[:] = row

        self.enqueue(stream, work)

    def shift_mean(self, mean, n_pixels, scratch, frame, result, stream):
        def work():
            values = self.at(mean, (n_pixels,), np.float32)
            before = values.mean(dtype=np.float64)
            self.at(result, (3,), np.float64)[0] = before
            values += np.float32(self.at(frame, (3,), np.float64)[0] - before)

        self.enqueue(stream, work)


class FakeNetwork:
    """A model on ONNX Runtime's CPU provider, on a fake GPU's memory.

    Parameters
    ----------
    shapes
        Of input that it was built for; all by default.
    """

    def __init__(self, model, device, *, is_half=False, is_capturable=True, shapes=None):
        self.device, self.is_half, self.can_be_recorded = device, is_half, is_capturable
        self.name = "a network on a GPU that is none"
        self.shapes = shapes
        self.backend = open_backend(model.onnx, "ort")
        self.stride = model.metadata.pattern.stride
        self.n_open = 0
        self.n_enqueued = 0
        self.closed = False

    def context(self, shape, stream):
        assert not self.closed
        if self.shapes is not None and shape not in self.shapes:
            raise ModelError(f"the network was not built for input of shape {shape}")
        context = FakeContext(self, shape, stream)
        self.n_open += 1
        return context

    def close(self):
        assert self.n_open == 0, "closed before its contexts"
        self.closed = True


class FakeContext:
    def __init__(self, network, shape, stream):
        self.network, self.shape, self.stream = network, shape, stream
        self.is_capturable = network.can_be_recorded
        self.workspace = network.device.allocate(WORKSPACE * int(np.prod(shape)))

    def enqueue(self, subsampled, outputs):
        network, (n, _, h, w) = self.network, self.shape
        shape = n, 1, h * network.stride[0], w * network.stride[1]
        dtype = np.float16 if network.is_half else np.float32
        network.n_enqueued += 1

        def work():
            given = network.device.at(subsampled, self.shape, dtype).astype(np.float32)
            found = np.empty(shape, np.float32)
            network.backend.infer(given, found)
            network.device.at(outputs, shape, dtype)[...] = found

        network.device.enqueue(self.stream, work)

    def close(self):
        self.network.device.free(self.workspace)
        self.network.n_open -= 1
