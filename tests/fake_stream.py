"""Sources and sinks that do what a test says."""

from __future__ import annotations

import threading
import time

import numpy as np

from n2sr_deploy.errors import EndOfStreamError
from n2sr_deploy.stream.base import LiveFrame


def live_frame(index, shape=(64, 64), dtype=np.uint16, **told):
    pixels = np.random.default_rng(index).poisson(100 + index % 50, shape).astype(dtype)
    return LiveFrame(pixels=pixels, index=index, **told)


class FakeSource:
    """Gives what it is told: frames, errors to raise, seconds to wait, callables."""

    name = "a fake source"

    def __init__(self, items):
        self.items = list(items)
        self.n_opened = self.n_closed = 0
        self.is_open = False

    def open(self):
        assert not self.is_open, "opened twice"
        self.n_opened += 1
        if self.items and isinstance(self.items[0], Refusal):
            raise self.items.pop(0).error
        self.is_open = True

    def read(self, timeout_s):
        assert self.is_open
        if not self.items:
            raise EndOfStreamError("no more")
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        if isinstance(item, (int, float)):
            time.sleep(min(item, timeout_s))
            if item > timeout_s:
                self.items.insert(0, item - timeout_s)
            return None
        return item() if callable(item) else item

    def close(self):
        self.is_open = False
        self.n_closed += 1


class Refusal:
    """What opening raises, once."""

    def __init__(self, error):
        self.error = error


class FakeSink:
    """Keeps what it is given, or does what it is told."""

    def __init__(self, name="a fake sink", *, write=None, opening=()):
        self.name = name
        self.results = []
        self.n_opened = self.n_closed = 0
        self.opening = list(opening)
        self._write = write
        self.lock = threading.Lock()

    def open(self):
        self.n_opened += 1
        if self.opening:
            raise self.opening.pop(0)

    def write(self, result):
        if self._write is not None:
            self._write(result)
        with self.lock:
            self.results.append((result.noisy.index, result.mean.copy(), result))

    def close(self):
        self.n_closed += 1

    @property
    def indices(self):
        with self.lock:
            return [index for index, _, _ in self.results]
