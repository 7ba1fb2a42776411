"""Frames copied by several threads at once: one alone does not use a machine's memory up."""

from __future__ import annotations

import contextvars
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.cores import cores_allowed

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray

_SHARED = 2**22  # bytes, from which on that is faster: waking a thread takes some 0.1 ms
_PART = 2**20  # bytes of a copy that a thread does at a time
_MOST_THREADS = 4


class Copier:
    """Copies arrays, large ones with the help of other threads.

    These are begun when first needed, and ended by `close`.
    """

    def __init__(self) -> None:
        self._n_helpers = min(_MOST_THREADS, cores_allowed()) - 1
        self._helpers: ThreadPoolExecutor | None = None

    def copy(self, to: AnyArray, source: AnyArray) -> None:
        """Copy an array (H, W) to another, converting its values.

        Whoever is free takes the next part. So a machine that is busy, or an interpreter that
        keeps helpers waiting for its lock, delays nothing: the caller does their parts too.
        """
        if to.nbytes < _SHARED or self._n_helpers == 0:
            np.copyto(to, source, casting="unsafe")
            return
        rows = max(1, _PART * len(to) // to.nbytes)
        tops = deque(range(0, len(to), rows))

        def copy_parts() -> None:
            while True:
                try:
                    top = tops.popleft()
                except IndexError:
                    return
                np.copyto(to[top : top + rows], source[top : top + rows], casting="unsafe")

        if self._helpers is None:
            self._helpers = ThreadPoolExecutor(self._n_helpers, "n2sr copying")
        # What NumPy warns of is said in the caller's context, which each needs a copy of.
        helped = [
            self._helpers.submit(contextvars.copy_context().run, copy_parts)
            for _ in range(self._n_helpers)
        ]
        try:
            copy_parts()
            running = [help_ for help_ in helped if not help_.cancel()]
            wait(running)
        except BaseException:  # Ctrl-C too: nobody may write there any more
            tops.clear()
            wait([help_ for help_ in helped if not help_.cancel()])
            raise
        for help_ in running:
            help_.result()

    def close(self) -> None:
        """End the threads. The next large array begins others."""
        helpers, self._helpers = self._helpers, None
        if helpers is not None:
            helpers.shutdown()
