"""Stands in for a GPU: memory, streams and graphs that refuse what a GPU would refuse."""

from __future__ import annotations

import itertools
import threading

import numpy as np

from n2sr_deploy import cycle_spinning, sampling
from n2sr_deploy.backends import open_backend
from n2sr_deploy.cycle_spinning import PoolWeights
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
    capability = 90

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
        self.can_capture = True
        self.is_lost = False  # as after an illegal address: even freeing fails

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
        if self.is_lost:
            raise DeviceError("the GPU failed (free: an illegal address)")

    def pinned(self, n_bytes):
        self._refuse_while_recording("pinned")
        self.n_allocations += 1
        memory = np.full(n_bytes, 0xAA, np.uint8)
        self.pins[memory.ctypes.data] = memory
        return memory

    def unpin(self, memory):
        self._refuse_while_recording("unpin")
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

    def strided(self, address, shape, dtype, row):
        """Likewise, of rows that lie `row` elements apart."""
        whole = self.at(address, ((shape[0] - 1) * row + shape[1],), dtype)
        strides = row * whole.itemsize, whole.itemsize
        return np.lib.stride_tricks.as_strided(whole, shape, strides)

    def _pinned(self, address, n_bytes):
        """Pinned memory (n_bytes,) by its address; an error if it is not, or no more."""
        for start, memory in list(self.pins.items()):
            if start <= address and address + n_bytes <= start + memory.nbytes:
                return memory[address - start : address - start + n_bytes]
        raise AssertionError("a copy from or to memory that is not pinned")

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
        steps, self.queues[stream] = self.queues[stream], []  # whatever a step raises
        for step in steps:
            self.n_done += 1
            if self.n_done == self.fails_at:
                self.broken.add(stream)
            if stream not in self.broken:
                step()
        if stream in self.broken:
            raise DeviceError("the GPU failed (an illegal address)")

    def begin_capture(self, stream):
        assert self.streams[stream] is None, "captured twice"
        if not self.can_capture:
            raise DeviceError("the GPU failed (begin_capture: not permitted)")
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
        self._copy(source, stream, lambda host: np.copyto(self.at(to, host.shape, np.uint8), host))

    def download(self, to, source, stream):
        self._copy(to, stream, lambda host: np.copyto(host, self.at(source, host.shape, np.uint8)))

    def _copy(self, array, stream, copy):
        """By the array's address, as a GPU does: what is enqueued does not keep it alive."""
        place = array.ctypes.data, array.nbytes
        self._pinned(*place)
        self.enqueue(stream, lambda: copy(self._pinned(*place)))

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
            frame = self.strided(pixels.address, pixels.shape, pixels.dtype, pixels.pitch)
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
                    self.at(address + 4 * y * part.pitch, row.shape, np.float32)[:] = row

        self.enqueue(stream, work)

    def pool(self, pooled, stream):
        given = type(pooled).from_buffer_copy(pooled)  # as a launch copies its arguments

        def work():
            mean, std, *others = (
                self.strided(address, (given.height, given.width), np.float32, given.pitch)
                for address in (given.mean, given.std, given.mean_of_others, given.std_of_others)
            )
            weights = PoolWeights(given.own, given.theirs, given.between, given.share)
            cycle_spinning.pool(mean, std, *others, weights)

        self.enqueue(stream, work)

    def shift_mean(self, mean, n_pixels, scratch, frame, result, stream):
        def work():
            values = self.at(mean, (n_pixels,), np.float32)
            before = values.mean(dtype=np.float64)
            self.at(result, (3,), np.float64)[0] = before
            values += np.float32(self.at(frame, (3,), np.float64)[0] - before)

        self.enqueue(stream, work)

    def convolve(self, job, stream):
        given = type(job).from_buffer_copy(job)  # as a launch copies its arguments
        self.enqueue(stream, lambda: self._convolve(given))

    def _convolve(self, job):
        """What a launch of csrc/convolve.cu gives, from the same memory."""
        half, n, h, w = np.float16, job.n, job.h, job.w
        if job.first:
            pixels = self.at(job.input, (n, h, w), half).astype(np.float32)
            taps = unpacked_first(self.at(job.first, (job.n_inputs // 8, 32, 4), half))
            bias = self.at(job.first_bias, (job.n_inputs,), np.float32)
            given = activated(of_taps(pixels[..., None], taps[:, None]) + bias, job.slope)
        else:
            given = self.at(job.input, (n, h, w, job.n_inputs), half).astype(np.float32)
        if job.coarse:
            coarse = self.at(job.coarse, (n, h // 2, w // 2, job.n_inputs), half)
            given = given + coarse.repeat(2, axis=1).repeat(2, axis=2)
        steps, tiles = -(-job.n_inputs // 16), job.n_outputs // 8
        laid = self.at(job.weights, (steps, 9, tiles, 32, 4), half)
        bias = self.at(job.bias, (job.n_outputs,), np.float32)
        sums = of_taps(as_half(given), unpacked(laid)[:, : job.n_inputs]) + bias
        if job.pixels:
            self._shuffle(job, sums)
            return
        values = as_half(activated(sums, job.slope))
        if job.pooled:
            largest = values.reshape(n, h // 2, 2, w // 2, 2, -1).max(axis=(2, 4))
            self.at(job.pooled, largest.shape, half)[...] = largest
        if job.narrow:
            shape = job.n_narrow // 8, -(-tiles // 2), 32, 4
            matrix = unpacked_narrow(self.at(job.narrow, shape, half), tiles)
            values = values @ matrix + self.at(job.narrow_bias, (job.n_narrow,), np.float32)
        self.at(job.output, values.shape, half)[...] = values

    def _shuffle(self, job, sums):
        sy, sx = job.stride_y, job.stride_x
        values = sums[..., : sy * sx].reshape(job.n, job.h, job.w, sy, sx)
        values = values.transpose(0, 1, 3, 2, 4).reshape(job.n, job.h * sy, job.w * sx) * job.share
        out = self.at(job.pixels, values.shape, np.float16)
        out[...] = values + out if job.adds else values


def as_half(values):
    return values.astype(np.float16).astype(np.float32)


def activated(values, slope):
    return np.maximum(values, slope * values)


def of_taps(maps, taps):
    """A 3 x 3 convolution of (n, h, w, inputs) by (9, inputs, outputs)."""
    _, h, w, _ = maps.shape
    around = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        around[:, k // 3 : k // 3 + h, k % 3 : k % 3 + w] @ tap.astype(np.float32)
        for k, tap in enumerate(taps)
    )


def thread_parts():
    """For each thread of a warp and each number it holds: its row and column of 16 x 8.

    NVIDIA, PTX ISA, matrix fragments for mma.m16n8k16, multiplicand B.
    """
    for lane in range(32):
        for i in range(4):
            yield lane, i, lane % 4 * 2 + i % 2 + (8 if i >= 2 else 0), lane // 4


def unpacked(laid):
    """(steps, 9, tiles, 32, 4) -> (9, inputs, outputs), by what a thread's sums are: columns
    2 * (lane % 4) and the next of each tile are its next two channels."""
    n_steps, _, n_tiles, _, _ = laid.shape
    taps = np.zeros((9, 16 * n_steps, 8 * n_tiles), laid.dtype)
    for lane, i, row, column in thread_parts():
        for step in range(n_steps):
            for tile in range(n_tiles):
                channel = column // 2 * 2 * n_tiles + 2 * tile + column % 2
                taps[:, 16 * step + row, channel] = laid[step, :, tile, lane, i]
    by_columns = taps.reshape(3, 3, *taps.shape[1:])
    return by_columns.swapaxes(0, 1).reshape(taps.shape)


def unpacked_first(laid):
    """(tiles, 32, 4) -> (9, outputs): rows are taps, and zeros after them."""
    taps = np.zeros((16, 8 * len(laid)), np.float32)
    for lane, i, row, column in thread_parts():
        taps[row, column::8] = laid[:, lane, i]
    assert not taps[9:].any()
    return taps[:9]


def unpacked_narrow(laid, n_before):
    """(tiles, steps, 32, 4) -> (inputs, outputs): rows are columns of two tiles of sums."""
    n_tiles, n_steps, _, _ = laid.shape
    matrix = np.zeros((8 * n_before, 8 * n_tiles), np.float32)
    for lane, i, row, column in thread_parts():
        for step in range(n_steps):
            before, own = 2 * step + row // 8, row % 8
            values = laid[:, step, lane, i]
            if before >= n_before:
                assert not values.any()
                continue
            channel = own // 2 * 2 * n_before + 2 * before + own % 2
            matrix[channel, column::8] = values
    return matrix


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

    def enqueue(self, shape, stream, subsampled, outputs):
        n, _, h, w = shape
        of_result = n, 1, h * self.stride[0], w * self.stride[1]
        dtype = np.float16 if self.is_half else np.float32
        self.n_enqueued += 1

        def work():
            given = self.device.at(subsampled, shape, dtype).astype(np.float32)
            found = np.empty(of_result, np.float32)
            self.backend.infer(given, found)
            self.device.at(outputs, of_result, dtype)[...] = found

        self.device.enqueue(stream, work)

    def close(self):
        assert self.n_open == 0, "closed before its contexts"
        self.closed = True


class FakeContext:
    def __init__(self, network, shape, stream):
        self.network, self.shape, self.stream = network, shape, stream
        self.is_capturable = network.can_be_recorded
        self.workspace = network.device.allocate(WORKSPACE * int(np.prod(shape)))

    def enqueue(self, subsampled, outputs):
        self.network.enqueue(self.shape, self.stream, subsampled, outputs)

    def close(self):
        self.network.device.free(self.workspace)
        self.network.n_open -= 1
