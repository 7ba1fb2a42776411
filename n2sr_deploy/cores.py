"""The cores of this machine that this process may use."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


def cores_allowed() -> int:
    """How many there are: Slurm, taskset and containers allow some of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(n_jobs: int) -> int:
    """How many threads each of so many processes gets; what OMP_NUM_THREADS says is the most."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    share = max(cores_allowed() // n_jobs, 1)
    return min(share, int(said)) if said.isdigit() and int(said) else share


def at_once(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`function` of each item, in their order, on several cores: NumPy releases Python's lock."""
    n_threads = min(threads_each(1), len(items))
    is_ending = not threading.main_thread().is_alive()  # when Python begins no threads
    if n_threads < 2 or is_ending:
        return [function(item) for item in items]
    with ThreadPoolExecutor(n_threads) as pool:
        # What NumPy warns of is said in the caller's context, which each needs a copy of.
        results = [pool.submit(copy_context().run, function, item) for item in items]
        return [result.result() for result in results]
