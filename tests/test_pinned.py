"""Memory that results lie in, and the threads that copy frames, on a GPU that is none."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from n2sr_deploy.cuda import copying
from n2sr_deploy.cuda.copying import Copier
from n2sr_deploy.cuda.pinned import PinnedPool
from n2sr_deploy.errors import DeviceError
from tests.conftest import random_pixels
from tests.fake_device import FakeDevice

VIEWS = {
    "itself": lambda array: array,
    "one of another type": lambda array: array.view(np.float32).reshape(4, -1),
    "a slice of a slice": lambda array: array[8:][4:16],
    "one of no elements": lambda array: array[:0],
    "turned and strided": lambda array: array.view(np.uint16).reshape(8, -1)[::2, ::3].T,
    "read-only": lambda array: np.broadcast_to(array, (3, array.size)),
    "of another library": lambda array: memoryview(array)[4:8],
    "an interface": lambda array: np.asarray(memoryview(array)),
    "in a cycle": lambda array: in_a_cycle(array),
}


def in_a_cycle(array):
    cycle = [array]
    cycle.append(cycle)
    return cycle


@pytest.fixture
def device():
    device = FakeDevice()
    yield device
    assert not device.pins, "pinned memory was not given back"


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("is_closed", [False, True])
def test_memory_comes_back_when_the_last_view_is_dropped_and_only_then(device, view, is_closed):
    pool = PinnedPool(device, 2)
    array = pool.take(64)
    array[:] = 1
    look = VIEWS[view](array)
    if is_closed:
        pool.close()
    del array
    assert pool.n_lent == len(device.pins) == 1
    assert all((memory == 1).all() for memory in device.pins.values())
    del look
    gc.collect()
    assert pool.n_lent == 0
    assert len(device.pins) == (0 if is_closed else 1)
    pool.close()


def test_memory_of_a_size_is_used_again_and_the_rest_goes_first(device):
    pool = PinnedPool(device, 2)
    arrays = [pool.take(n) for n in (64, 64, 32)]
    places = {array.ctypes.data for array in arrays[:2]}
    del arrays
    assert len(device.pins) == 3, "nothing is released where a frame may be under way"
    first, second = pool.take(64), pool.take(64)
    assert {first.ctypes.data, second.ctypes.data} == places
    others = [pool.take(n) for n in (16, 16)]
    del first, second, others
    pool.take(16)
    assert sorted(memory.nbytes for memory in device.pins.values()) in ([16, 16, 64], [16, 16])
    pool.close()


def test_a_gpu_that_has_failed_disturbs_nobody_who_drops_results(device, monkeypatch, caplog):
    def fail(memory):
        raise DeviceError("the GPU failed (an illegal address)")

    pool = PinnedPool(device, 0)
    arrays = [pool.take(64) for _ in range(3)]
    monkeypatch.setattr(device, "unpin", fail)
    with caplog.at_level("DEBUG", logger="n2sr"):
        arrays.pop()
        arrays.append(pool.take(32))
        arrays.pop(0)
        pool.close()
        arrays.clear()  # what is raised now, pytest makes an error
    assert caplog.text.count("an illegal address") == 4
    assert pool.n_lent == 0
    device.pins.clear()


def test_memory_dropped_in_other_threads_is_neither_lost_nor_lent_twice(device):
    """Also where garbage is collected at any moment."""
    pool = PinnedPool(device, 8)
    held = [[] for _ in range(3)]
    is_over = threading.Event()

    def drop(mine):
        while not is_over.is_set() or mine:
            if mine:
                array, number = mine.pop()
                assert (array == number).all()

    threads = [threading.Thread(target=drop, args=(mine,)) for mine in held]
    for thread in threads:
        thread.start()
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for n in range(1500):
            array = pool.take(64 if n % 5 else 32)
            array[:] = n % 251
            if n % 4 == 3:
                in_a_cycle(array)
            else:
                held[n % 4].append((array, n % 251))
            del array
    finally:
        gc.set_threshold(*before)
        is_over.set()
        for thread in threads:
            thread.join()
    gc.collect()
    assert pool.n_lent == 0
    pool.close()


def test_the_end_of_a_process_that_holds_results_is_quiet():
    code = """
import numpy as np
from n2sr_deploy.cuda.pinned import PinnedPool

class Dead:
    def pinned(self, n_bytes): return np.zeros(n_bytes, np.uint8)
    def unpin(self, memory): raise RuntimeError("there is no driver any more")

pool = PinnedPool(Dead(), 2)
kept = pool.take(64).view(np.float32)
pool.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr


@pytest.fixture(params=[1, 2, 16])
def copier(request, monkeypatch):
    """On machines with as many processors, and so that small arrays are large."""
    monkeypatch.setattr(copying, "cores_allowed", lambda: request.param)
    monkeypatch.setattr(copying, "_SHARED", 1024)
    monkeypatch.setattr(copying, "_PART", 512)
    copier = Copier()
    yield copier
    copier.close()


@pytest.mark.parametrize("dtypes", ["uint16 uint16", "int32 float32", "float64 float32"])
@pytest.mark.parametrize("shape", [(2, 3), (64, 64), (3, 5000), (701, 33)])
def test_every_pixel_is_copied(copier, dtypes, shape):
    source, to = dtypes.split()
    for seed in range(5):
        pixels = random_pixels(shape, source, seed)
        copied = np.zeros(shape, to)
        copier.copy(copied, pixels)
        assert np.array_equal(copied, pixels.astype(to))
    copier.copy(copied, pixels[::-1])
    assert np.array_equal(copied, pixels[::-1].astype(to))


def test_no_more_threads_than_processors_or_four_and_none_after_the_end(copier):
    before = threading.active_count()
    pixels = random_pixels((200, 200), "uint16")
    for _ in range(9):
        copier.copy(np.zeros_like(pixels), pixels)
    assert threading.active_count() - before <= min(4, copying.cores_allowed()) - 1
    copier.close()
    assert threading.active_count() == before


def test_small_frames_need_no_threads():
    before = threading.active_count()
    pixels = random_pixels((1024, 1024), "uint16")
    copier = Copier()
    copier.copy(np.zeros_like(pixels), pixels)
    assert threading.active_count() == before


def test_helpers_that_are_kept_waiting_delay_nothing(copier):
    pixels = random_pixels((200, 200), "uint16")
    copied = np.zeros_like(pixels)
    copier.copy(copied, pixels)
    helpers, go_on = copier._helpers, threading.Event()
    for _ in range(4 if helpers else 0):
        helpers.submit(go_on.wait)
    copied[:] = 0
    copier.copy(copied, pixels)
    assert np.array_equal(copied, pixels)
    go_on.set()


def test_what_numpy_warns_of_is_the_callers_to_decide(copier):
    large = np.full((200, 200), 1e300)
    copied = np.zeros(large.shape, np.float32)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        copier.copy(copied, large)
    for _ in range(9):
        with np.errstate(over="ignore"):
            copier.copy(copied, large)  # pytest makes warnings errors
    assert np.isinf(copied).all()
