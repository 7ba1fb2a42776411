"""Pinned memory for results: the caller's as long as an array looks into it, then used again."""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.cuda.device import quietly

if TYPE_CHECKING:
    from n2sr_deploy.cuda.device import Device
    from n2sr_deploy.sampling import FloatArray, UInt8Array

_MOST_LENT = 2**31  # bytes; what is pinned, the system cannot use for anything else


class _Lent:
    """What arrays over lent memory have as their base, whichever views lie between."""

    __slots__ = ("__array_interface__", "__weakref__")

    def __init__(self, memory: UInt8Array) -> None:
        self.__array_interface__ = memory.__array_interface__


class PinnedPool:
    """Lends pinned memory, which comes back by itself when no array looks into it any more.

    One thread at a time may take some; the last array may be dropped in any thread, and whenever
    Python collects garbage. So what is run then takes no lock and raises nothing.

    Parameters
    ----------
    device
        What pins the memory.
    n_kept
        How many pieces of memory may lie unused; the others are unpinned.
    """

    def __init__(self, device: Device, n_kept: int) -> None:
        self._device, self._n_kept = device, n_kept
        self._n_pinned = 0
        self._free: deque[UInt8Array] = deque()  # what came back last is last
        self._is_closed = False

    @property
    def n_lent(self) -> int:
        """How many pieces are in use."""
        return self._n_pinned - len(self._free)

    def take(self, n_bytes: int) -> UInt8Array:
        """Memory (n_bytes,) for an array that others may keep; what it holds is undefined."""
        memory = self._unused(n_bytes)
        if memory is None:
            memory = self._device.pinned(n_bytes)
            self._n_pinned += 1
        self._unpin_all_but(self._n_kept)
        lent = _Lent(memory)
        weakref.finalize(lent, self._take_back, memory).atexit = False  # the process's end will do
        return np.asarray(lent)

    def _unused(self, n_bytes: int) -> UInt8Array | None:
        for _ in range(len(self._free)):
            memory = self._free.pop()
            if memory.nbytes == n_bytes:
                return memory
            self._free.appendleft(memory)  # the first to go
        return None

    def kept(self, array: FloatArray) -> FloatArray:
        """An array in lent memory, for a caller to keep; a copy, once it keeps a lot of them.

        Pinning more for each would take longer than copying, and the machine's memory.
        """
        return array.copy() if self.n_lent * array.nbytes > _MOST_LENT else array

    def _take_back(self, memory: UInt8Array) -> None:
        self._free.append(memory)
        if self._is_closed:
            self._unpin_all_but(0)

    def _unpin_all_but(self, n_kept: int) -> None:
        while len(self._free) > n_kept:
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread was faster
                return
            self._n_pinned -= 1
            quietly(self._device.unpin, memory)

    def close(self) -> None:
        """Unpin what is unused now, and the rest when it comes back."""
        self._is_closed = True
        self._unpin_all_but(0)
