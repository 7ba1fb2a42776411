"""A bounded ring of frames between a source and the denoiser, in memory that is used again."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from n2sr_deploy.stream.base import LiveFrame

Policy = Literal["latest", "all"]
"""``latest``: the newest frame wins, older ones are dropped and counted; ``all``: nothing is
dropped, the source waits."""


class Slot:
    """Memory of one frame, in use until everybody who retained it has released it."""

    def __init__(self, ring: FrameRing) -> None:
        self._ring = ring
        self._memory = np.empty(0, np.uint8)
        self._frame: LiveFrame | None = None
        self.n_users = 0

    def fill(self, frame: LiveFrame) -> None:
        """Copy a frame."""
        if self._memory.nbytes < frame.pixels.nbytes:
            self._memory = np.empty(frame.pixels.nbytes, np.uint8)
        own = self._memory[: frame.pixels.nbytes].view(frame.pixels.dtype)
        own = own.reshape(frame.pixels.shape)
        np.copyto(own, frame.pixels)
        self._frame = replace(frame, pixels=own)

    @property
    def frame(self) -> LiveFrame:
        """What it holds."""
        if self._frame is None:
            raise RuntimeError("an empty slot was read")
        return self._frame

    def retain(self) -> None:
        """Keep it for one user more."""
        self._ring.retain(self)

    def release(self) -> None:
        """One user less; the last gives it back."""
        self._ring.release(self)


class FrameRing:
    """Slots that are filled by one thread and taken by another.

    Parameters
    ----------
    n_slots
        How many frames at most, waiting and in use.
    policy
        What happens when they do not suffice. With ``latest`` no more than one frame waits.
    """

    def __init__(self, n_slots: int, policy: Policy) -> None:
        self._policy = policy
        self._changed = threading.Condition()
        self._free = [Slot(self) for _ in range(n_slots)]
        self._waiting: deque[Slot] = deque()
        self._is_closed = False
        self.n_dropped = 0
        """Frames that made place for newer ones, or found none."""

    def put(self, frame: LiveFrame, timeout_s: float) -> bool:
        """Copy a frame into a slot; false when none became free in this time (policy ``all``)."""
        slot = self._place(timeout_s)
        if slot is None:
            return self._policy == "latest"
        slot.fill(frame)
        with self._changed:
            self._waiting.append(slot)
            self._changed.notify_all()
        return True

    def _place(self, timeout_s: float) -> Slot | None:
        end = time.monotonic() + timeout_s
        with self._changed:
            if self._policy == "latest":
                if self._waiting:
                    self.n_dropped += 1
                    return self._waiting.popleft()
                if not self._free:
                    self.n_dropped += 1
                    return None
                return self._free.pop()
            while not self._free:
                left = end - time.monotonic()
                if left <= 0 or self._is_closed:
                    return None
                self._changed.wait(left)
            return self._free.pop()

    def take(self, timeout_s: float) -> Slot | None:
        """The frame that waits longest, with one user; None when none came in this time."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while not self._waiting:
                left = end - time.monotonic()
                if left <= 0 or self._is_closed:
                    return None
                self._changed.wait(left)
            slot = self._waiting.popleft()
            slot.n_users = 1
            return slot

    def retain(self, slot: Slot) -> None:
        """Keep a slot for one user more."""
        with self._changed:
            slot.n_users += 1

    def release(self, slot: Slot) -> None:
        """One user less."""
        with self._changed:
            slot.n_users -= 1
            if slot.n_users == 0:
                self._free.append(slot)
                self._changed.notify_all()

    def close(self) -> None:
        """No frame will be put any more: whoever waits is woken; what waits can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_drained(self) -> bool:
        """Whether it was closed and nothing waits."""
        with self._changed:
            return self._is_closed and not self._waiting
