"""The CUDA kernels, thread by thread on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import ctypes
import importlib
import subprocess
from pathlib import Path

import numpy as np
import pytest

from n2sr_deploy import cycle_spinning, sampling
from n2sr_deploy.cuda import driver, runtime
from n2sr_deploy.cuda.device import (
    PIXEL_TYPES,
    Draws,
    Key,
    Part,
    Pixels,
    Pooled,
    Statistics,
    Values,
)
from n2sr_deploy.cuda.runtime import CDraws, CPart, CudaDevice, CWindow, c_pattern
from n2sr_deploy.cycle_spinning import PoolWeights
from n2sr_deploy.errors import DeviceError, OutOfDeviceMemoryError
from n2sr_deploy.pattern import SamplingPattern, Window
from tests.conftest import REPOSITORY, random_pixels
from tests.fake_device import transposed

PATTERNS = [
    SamplingPattern.named("cell"),
    SamplingPattern.named("cell", 3),
    SamplingPattern.named("cell", (4, 1)),
    SamplingPattern.named("row"),
    SamplingPattern.named("column", 3),
    SamplingPattern.named("cell", 4),
]
SEED, FRAME_INDEX = 2**40 + 3, 2**33 + 1


def empty_draws(window, draws, half):
    shape = draws.n_samples, window.height, window.width
    return aligned(np.empty(shape, np.float16 if half else np.float32))


def aligned(array):
    """A copy that lies as device memory does."""
    memory = np.empty(array.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def takes_vectors(library, what, *arguments):
    return bool(getattr(library, f"n2sr_cuda_{what}_vectors")(*arguments))


def draws_vectors(library, pattern, window, draws, address, half):
    where = c_pattern(pattern), CWindow(*window), CDraws(*draws)
    return takes_vectors(library, "draws", *where, ctypes.c_void_p(address), int(half))


def merges_vectors(library, part, draws, address, half):
    where = CPart(*part, CDraws(*draws))
    return takes_vectors(library, "merges", ctypes.c_void_p(address), int(half), where)


class OnHost:
    """What the kernels' threads do, in loops."""

    def __init__(self, library):
        self.library = library

    def draw(self, frame, pattern, window, draws, mean, std, half):
        out = empty_draws(window, draws, half)
        whole = frame if frame.base is None else frame.base
        first = frame.ctypes.data - whole.ctypes.data
        whole = aligned(whole)
        self.in_vectors = draws_vectors(self.library, pattern, window, draws, out.ctypes.data, half)
        failed = self.library.host_draw(
            ctypes.c_void_p(whole.ctypes.data + first),
            runtime.DTYPES[frame.dtype.name],
            *map(ctypes.c_ssize_t, (*frame.shape, whole.shape[1])),
            c_pattern(pattern),
            CWindow(*window),
            CDraws(*draws),
            ctypes.byref(Key(SEED, FRAME_INDEX)),
            ctypes.byref(Statistics(mean, std, 1 / std)),
            ctypes.c_void_p(out.ctypes.data),
            int(half),
        )
        assert not failed
        return out

    def merge(self, outputs, draws, part, mean, std):
        results = [aligned(np.full((part.height, part.pitch), -1, np.float32)) for _ in range(2)]
        outputs = aligned(outputs)
        half = outputs.dtype == np.float16
        self.in_vectors = merges_vectors(self.library, part, draws, outputs.ctypes.data, half)
        failed = self.library.host_merge(
            ctypes.c_void_p(outputs.ctypes.data),
            int(half),
            CPart(*part, CDraws(*draws)),
            ctypes.byref(Statistics(mean, std, 1 / std)),
            *(ctypes.c_void_p(result.ctypes.data) for result in results),
        )
        assert not failed
        return np.stack(results)

    def pool(self, results, n, n_others):
        pooled, others = results[:2].copy(), results[2:].copy()
        addresses = [result.ctypes.data for result in (*pooled, *others)]
        shape = pooled.shape[1], pooled.shape[2] - 1
        assert not self.library.host_pool(
            Pooled(*addresses, *shape, pooled.shape[2], *PoolWeights.of(n, n_others))
        )
        return pooled

    def statistics(self, pixels):
        pixels, found = aligned(pixels), np.empty(3, np.float64)
        failed = self.library.host_statistics(
            ctypes.c_void_p(pixels.ctypes.data),
            runtime.DTYPES[pixels.dtype.name],
            ctypes.c_size_t(pixels.size),
            ctypes.c_void_p(found.ctypes.data),
        )
        assert not failed
        return found


class OnGPU:
    """The kernels themselves."""

    def __init__(self):
        self.device = CudaDevice()
        self.stream = self.device.stream()

    def put(self, array):
        array = np.ascontiguousarray(array)
        address = self.device.allocate(array.nbytes)
        self.device.upload(address, array, self.stream)
        return address

    def get(self, address, like):
        self.device.download(like, address, self.stream)
        self.device.wait(self.stream)
        return like

    def draw(self, frame, pattern, window, draws, mean, std, half):
        out = empty_draws(window, draws, half)
        key, statistics = (
            self.put(np.frombuffer(bytes(c), np.uint8))
            for c in (Key(SEED, FRAME_INDEX), Statistics(mean, std, 1 / std))
        )
        address = self.device.allocate(out.nbytes)
        library = runtime.load_library()
        self.in_vectors = draws_vectors(library, pattern, window, draws, address, half)
        whole = frame if frame.base is None else frame.base
        first = frame.ctypes.data - whole.ctypes.data
        pixels = Pixels(self.put(whole) + first, frame.dtype, frame.shape, whole.shape[1])
        self.device.draw(
            pixels, pattern, window, draws, key, statistics, Values(address, half), self.stream,
        )  # fmt: skip
        return self.get(address, out)

    def merge(self, outputs, draws, part, mean, std):
        results = np.full((2, part.height, part.pitch), -1, np.float32)
        addresses = [self.put(result) for result in results]
        statistics = self.put(np.frombuffer(bytes(Statistics(mean, std, 1 / std)), np.uint8))
        values = Values(self.put(outputs), outputs.dtype == np.float16)
        library = runtime.load_library()
        self.in_vectors = merges_vectors(library, part, draws, *values)
        self.device.merge(values, draws, part, statistics, *addresses, self.stream)
        for address, result in zip(addresses, results, strict=True):
            self.get(address, result)
        return results

    def pool(self, results, n, n_others):
        addresses = [self.put(result) for result in results]
        shape = results.shape[1], results.shape[2] - 1
        pooled = Pooled(*addresses, *shape, results.shape[2], *PoolWeights.of(n, n_others))
        self.device.pool(pooled, self.stream)
        return np.stack([self.get(addresses[i], results[i].copy()) for i in range(2)])

    def statistics(self, pixels):
        scratch = self.device.allocate(self.device.scratch_bytes())
        address = self.device.allocate(24)
        on_device = Pixels(self.put(pixels), pixels.dtype, pixels.shape, pixels.shape[-1])
        self.device.statistics(on_device, scratch, address, self.stream)
        return self.get(address, np.empty(3, np.float64))


@pytest.fixture(scope="session")
def host_library(nvcc, tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "kernels.so"
    source = REPOSITORY / "tests" / "kernels_on_host.cu"
    options = ["-O1", "-std=c++17", "-fmad=false", "-shared"]
    options += ["-Xcompiler", "-fPIC,-ffp-contract=off"]
    subprocess.run([nvcc, *options, f"-I{REPOSITORY / 'csrc'}", source, "-o", path], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(params=["host", pytest.param("GPU", marks=pytest.mark.gpu)])
def kernels(request):
    if request.param == "host":
        return OnHost(request.getfixturevalue("host_library"))
    return OnGPU()


def expected_draws(frame, pattern, window, draws, mean, std):
    drawn = sampling.draw(
        frame,
        pattern,
        draws.n_samples,
        seed=SEED,
        frame_index=FRAME_INDEX,
        first_sample=draws.first_sample,
        mean=mean,
        scale=std,
        window=window,
    )
    return transposed(drawn, draws)


@pytest.mark.parametrize("dtype", [str(dtype) for dtype in PIXEL_TYPES])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_draws_are_the_cpus_bit_for_bit(kernels, dtype, pattern, half):
    frame = random_pixels((48, 70), dtype)
    cells = pattern.cells(frame.shape)
    window = Window(1, 2, cells[0] + 1, cells[1])  # past the frame, where it is mirrored
    mean, std = float(frame.mean()), float(frame.std())
    for first_sample, n_samples in ((0, 4), (3, 7), (0, 1)):
        draws = Draws(first_sample, n_samples, pattern.group_size, False)
        found = kernels.draw(frame, pattern, window, draws, mean, std, half)
        wanted = expected_draws(frame, pattern, window, draws, mean, std)
        assert np.array_equal(found, wanted.astype(found.dtype))


@pytest.mark.parametrize("dtype", [str(dtype) for dtype in PIXEL_TYPES])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("shape", "window", "first_sample", "n_samples"),
    [
        ((32, 560), Window(0, 0, 16, 280), 0, 4),  # whole rows, of more than a block
        ((32, 64), Window(1, 4, 16, 32), 4, 12),  # past the frame's right and lower edges
        ((31, 70), Window(0, 0, 16, 36), 0, 4),  # the frame's rows are not aligned; odd
        ((9, 5), Window(0, 0, 8, 4), 8, 4),  # smaller than a vector
    ],
)
def test_draws_in_vectors_are_the_cpus(
    kernels, dtype, half, shape, window, first_sample, n_samples
):
    frame, pattern = random_pixels(shape, dtype), SamplingPattern.named("cell")
    mean, std = float(frame.mean()), float(frame.std())
    draws = Draws(first_sample, n_samples, pattern.group_size, first_sample == 0)
    found = kernels.draw(frame, pattern, window, draws, mean, std, half)
    assert kernels.in_vectors
    wanted = expected_draws(frame, pattern, window, draws, mean, std)
    assert np.array_equal(found, wanted.astype(found.dtype))


@pytest.mark.parametrize(
    ("draws", "left", "width"),
    [
        (Draws(2, 4, 4, False), 0, 16),
        (Draws(0, 6, 4, False), 0, 16),
        (Draws(0, 8, 4, True), 0, 16),
        (Draws(0, 4, 4, False), 0, 18),
        (Draws(0, 4, 4, False), 2, 16),
    ],
    ids=["first sample", "samples", "transposed", "width", "left"],
)
def test_draws_that_do_not_lie_in_vectors_are_drawn_one_by_one(kernels, draws, left, width):
    frame, pattern = random_pixels((20, 36), "uint16"), PATTERNS[0]
    window = Window(0, left, 8, width)
    found = kernels.draw(frame, pattern, window, draws, 3.0, 2.0, True)
    assert not kernels.in_vectors
    wanted = expected_draws(frame, pattern, window, draws, 3.0, 2.0)
    assert np.array_equal(found, wanted.astype(found.dtype))


@pytest.mark.parametrize("pattern", [PATTERNS[0], PATTERNS[1]], ids=str)
def test_every_second_group_of_draws_lies_transposed(kernels, pattern):
    frame = random_pixels((36, 48), "uint16")
    window = Window(0, 0, *pattern.cells(frame.shape))
    draws = Draws(2, 2 * pattern.group_size + 3, pattern.group_size, True)
    found = kernels.draw(frame, pattern, window, draws, 3.0, 2.0, False)
    wanted = expected_draws(frame, pattern, window, draws, 3.0, 2.0)
    assert np.array_equal(found, wanted)
    assert not np.array_equal(found, transposed(wanted, draws))


@pytest.mark.parametrize("n_samples", [1, 2, 4, 9])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("first_sample", "part", "in_vectors"),
    [
        (1, Part(top=3, left=5, height=20, width=31, of_height=24, of_width=40, pitch=37), False),
        (0, Part(top=0, left=0, height=24, width=40, of_height=24, of_width=40, pitch=40), True),
        (4, Part(top=3, left=4, height=20, width=31, of_height=24, of_width=40, pitch=37), True),
        (4, Part(top=0, left=8, height=8, width=267, of_height=12, of_width=280, pitch=268), True),
        (0, Part(top=0, left=2, height=20, width=32, of_height=24, of_width=40, pitch=40), False),
        (0, Part(top=0, left=0, height=20, width=32, of_height=24, of_width=42, pitch=40), False),
    ],
)
def test_merging_is_the_cpus_bit_for_bit(kernels, n_samples, half, first_sample, part, in_vectors):
    rng = np.random.default_rng(1)
    shape = n_samples, part.of_height, part.of_width
    outputs = rng.normal(size=shape).astype((np.float32, np.float16)[half])
    draws = Draws(first_sample, n_samples, 4, False)
    found = kernels.merge(outputs, draws, part, 1234.5, 67.8)
    assert kernels.in_vectors == in_vectors
    wanted = np.full((2, part.height, part.pitch), -1, np.float32)
    sampling.merge(
        outputs.astype(np.float32),
        first_sample=first_sample,
        top=part.top,
        left=part.left,
        offset=1234.5,
        scale=67.8,
        mean=wanted[0, :, : part.width],
        std=wanted[1, :, : part.width],
    )
    assert np.array_equal(found, wanted)


def test_merging_turns_transposed_outputs_back(kernels):
    outputs = np.random.default_rng(2).normal(size=(11, 16, 24)).astype(np.float32)
    plain, turning = Draws(0, 11, 4, False), Draws(0, 11, 4, True)
    part = Part(top=0, left=0, height=16, width=24, of_height=16, of_width=24, pitch=24)
    wanted = kernels.merge(outputs, plain, part, 0.0, 1.0)
    found = kernels.merge(transposed(outputs, turning), turning, part, 0.0, 1.0)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("shape", [(33, 41), (64, 64)])
@pytest.mark.parametrize("first", [(1, 0), (0, 1)])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_draws_of_a_frame_without_its_first_line(kernels, pattern, first, shape):
    """As cells are laid elsewhere; its rows lie as far apart as the whole frame's."""
    frame = random_pixels(shape, "uint16")[first[0] :, first[1] :]
    window, draws = Window(0, 0, *pattern.cells(shape)), Draws(2, 4, pattern.group_size, False)
    found = kernels.draw(frame, pattern, window, draws, 2000.0, 500.0, False)
    assert np.array_equal(found, expected_draws(frame, pattern, window, draws, 2000.0, 500.0))


@pytest.mark.parametrize(("n", "n_others"), [(1, 1), (2, 2), (3, 2), (16, 16)])
def test_results_are_pooled_as_on_the_cpu_bit_for_bit(kernels, n, n_others):
    """The last column is another's: rows lie further apart than results are wide."""
    results = np.random.default_rng(1).gamma(2, 300, (4, 21, 40)).astype(np.float32)
    wanted = results.copy()
    mean, std, *others = wanted[:, :, :-1]
    cycle_spinning.pool(mean, std, *others, PoolWeights.of(n, n_others))
    assert np.array_equal(kernels.pool(results, n, n_others), wanted[:2])
    assert not np.array_equal(wanted[:2], results[:2])


def test_kernels_are_given_what_they_take():
    """By the signatures that ctypes converts by, in their order; no GPU is needed for that."""
    called = {}

    def noted(name, *arguments):
        signature = runtime._SIGNATURES[name]
        assert len(arguments) == len(signature)
        for kind, argument in zip(signature, arguments, strict=True):
            kind.from_param(argument)
        called[name] = arguments

    device = CudaDevice.__new__(CudaDevice)
    device._call = noted
    pixels = Pixels(1, np.dtype(np.int16), (20, 30), 31)
    pattern, draws, part = SamplingPattern.named("cell", 3), Draws(0, 4, 9, True), Part(*range(7))
    device.statistics(pixels, 2, 3, 4)
    device.draw(pixels, pattern, Window(0, 1, 2, 3), draws, 5, 6, Values(7, True), 8)
    device.merge(Values(9, False), draws, part, 10, 11, 12, 13)
    device.shift_mean(14, 600, 2, 3, 4, 8)
    device.pool(Pooled(*range(11)), 8)
    assert called["statistics"] == (1, 2, 600, 2, 3, 4)
    assert (called["draw"][:5], called["draw"][8:]) == ((1, 2, 20, 30, 31), (5, 6, 7, True, 8))
    assert (called["merge"][:2], called["merge"][3:]) == ((9, False), (10, 11, 12, 13))


@pytest.mark.parametrize("dtype", [str(dtype) for dtype in PIXEL_TYPES])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (33, 65), (1024, 1024)])
def test_statistics_of_a_frame(kernels, dtype, shape):
    pixels = random_pixels(shape, dtype)
    mean, std, inverse = kernels.statistics(pixels)
    assert mean == pytest.approx(pixels.mean(dtype=np.float64), rel=1e-12, abs=1e-12)
    assert std == pytest.approx(pixels.std(dtype=np.float64), rel=1e-12, abs=1e-12)
    assert inverse == (1 / std if std else np.inf)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [3, 1027, 1024 * 1024])
def test_a_result_is_given_the_frames_mean(n):
    kernels = OnGPU()
    result = random_pixels((n,), "float32")
    address, scratch = kernels.put(result), kernels.device.allocate(kernels.device.scratch_bytes())
    frame = kernels.put(np.frombuffer(bytes(Statistics(1000.5, 2.0, 0.5)), np.uint8))
    of_result = kernels.device.allocate(24)
    kernels.device.shift_mean(address, n, scratch, frame, of_result, kernels.stream)
    mean = kernels.get(of_result, np.empty(3, np.float64))[0]
    assert mean == pytest.approx(result.mean(dtype=np.float64), rel=1e-12)
    shifted = result + np.float32(1000.5 - mean)
    assert np.array_equal(kernels.get(address, np.empty_like(result)), shifted)


@pytest.mark.gpu
def test_a_full_gpu_says_so_and_goes_on():
    device = CudaDevice()
    with pytest.raises(OutOfDeviceMemoryError, match="memory is full"):
        device.allocate(2**50)
    device.free(device.allocate(2**20))


def test_without_a_driver_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libno-such-driver.so")
    with pytest.raises(
        DeviceError, match=r"no NVIDIA driver .*n2sr runs on the CPU \(backend auto\)"
    ):
        CudaDevice()


class FakeDriver:
    """Answers as libcuda does."""

    def __init__(self, cuda=13000, code=0, names=("NVIDIA Fake",)):
        self.cuda, self.code, self.names = cuda, code, names

    def cuInit(self, flags):  # noqa: N802
        return self.code

    def cuDriverGetVersion(self, number):  # noqa: N802
        number._obj.value = self.cuda

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = len(self.names)

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = index

    def cuDeviceGetName(self, name, size, device):  # noqa: N802
        name.value = self.names[device.value].encode()


def with_driver(monkeypatch, fake):
    def load(name):
        if name == driver.LIBRARY:
            return fake
        raise OSError(f"{name}: not there")

    monkeypatch.setattr(driver.ctypes, "CDLL", load)


def test_the_driver_tells_its_gpus(monkeypatch):
    with_driver(monkeypatch, FakeDriver(13010, names=("NVIDIA A", "NVIDIA B")))
    found = driver.find_driver()
    assert found.describe() == "NVIDIA A, NVIDIA B; driver of unknown version, for CUDA up to 13.1"


@pytest.mark.parametrize(
    ("fake", "told"),
    [
        (FakeDriver(code=999), "answers error 999 to cuInit"),
        (FakeDriver(names=()), "finds no GPU"),
        (FakeDriver(code=100), "finds no GPU; is CUDA_VISIBLE_DEVICES set"),
        (FakeDriver(cuda=12040), r"supports CUDA 12.4, but n2sr's kernels need 13.0; update it"),
    ],
)
def test_a_driver_that_does_not_do_is_told(monkeypatch, fake, told):
    with_driver(monkeypatch, fake)
    with pytest.raises(DeviceError, match=told):
        CudaDevice()


def test_kernels_that_were_not_built_or_are_broken_are_told(tmp_path):
    with pytest.raises(DeviceError, match="N2SR_CUDA=require"):
        runtime.load_library(tmp_path / "missing.so")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(DeviceError, match="cannot be loaded"):
        runtime.load_library(broken)
    another = Path(importlib.import_module("n2sr_deploy._subsample").__file__)
    with pytest.raises(DeviceError, match=r"of another version .*; install n2sr again"):
        runtime.load_library(another)


@pytest.mark.usefixtures("nvcc")
def test_the_library_is_built_and_loads_without_a_driver():
    library = runtime.load_library()
    assert library.n2sr_cuda_scratch_bytes() > 0
    assert library.n2sr_cuda_error(2).decode() == "out of memory"
