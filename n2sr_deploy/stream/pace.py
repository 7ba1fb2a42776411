"""Frames at a chosen rate, from sources that could give them at any."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from n2sr_deploy.stream.addresses import Address


class Pace:
    """When frames are due, by the option ``fps`` of an address: 0.001 to 100000, default 25.

    One that is not read in time is late, and so are no more than the next two: a source does not
    hurry to make up for a pause.
    """

    def __init__(self, address: Address) -> None:
        self._period_s = 1 / address.number("fps", 25, 0.001, 1e5)
        self._due_s = 0.0

    def begin(self) -> None:
        """The first is due now."""
        self._due_s = time.perf_counter()

    def is_due(self, timeout_s: float) -> bool:
        """Whether the next is due within the time-out: waits for either, and reckons it as read."""
        wait_s = self._due_s - time.perf_counter()
        time.sleep(max(0.0, min(wait_s, timeout_s)))
        if wait_s > timeout_s:
            return False
        self._due_s = max(self._due_s + self._period_s, time.perf_counter() - self._period_s)
        return True
