"""What draws and merges here: the compiled kernels, or their definition in NumPy."""

from __future__ import annotations

import functools
import os
import sys
import threading
from importlib import import_module
from typing import Any, NamedTuple

from n2sr_deploy import reference
from n2sr_deploy.openmp import SLEEPING, loaded_with
from n2sr_deploy.words import counted

_loading = threading.Lock()
_lost_threads = threading.Event()


class Loaded(NamedTuple):
    """What was found."""

    kernels: Any
    why_not_compiled: str
    pytorch_sleeps: bool
    """Whether threads of PyTorch, if it comes, will sleep too: on Linux a process has one OpenMP,
    and it looks how to wait when it is loaded."""


def kernels() -> Any:
    """The compiled kernels, or where they cannot be loaded `n2sr_deploy.reference`."""
    return loaded().kernels


def usable_threads(n_threads: int) -> int:
    """So many as asked for (0: one for each core), but 1 where `has_lost_threads`."""
    return 1 if has_lost_threads() else n_threads


def has_lost_threads() -> bool:
    """Whether OpenMP, which the kernels share with PyTorch, would wait for ever for threads.

    A fork, as a worker of a `multiprocessing.Pool`, has none of those that its parent began.
    """
    return _lost_threads.is_set()


def _note_fork() -> None:
    if "torch" in sys.modules or _loaded_once.cache_info().currsize > 0:
        _lost_threads.set()


def loaded() -> Loaded:
    """Load the kernels, not before they are used: a training imports PyTorch first.

    It always has work, and with threads that sleep takes up to twice the time.
    """
    with _loading:
        return _loaded_once()


def pytorch_sleeps() -> bool:
    """Whether frames were denoised before PyTorch came, so that its threads sleep too."""
    return _loaded_once.cache_info().currsize > 0 and _loaded_once().pytorch_sleeps


def describe_kernels() -> str:
    """What draws and merges here, in words."""
    found = loaded()
    if found.kernels is reference:
        why = found.why_not_compiled
        return f"NumPy reference, slow; the compiled kernels cannot be loaded: {why}"
    threads = found.kernels.openmp_threads()
    if not threads:
        return "compiled, without OpenMP"
    return f"compiled, OpenMP on {counted(threads, 'thread')}"


@functools.cache
def _loaded_once() -> Loaded:
    is_first = sys.platform == "linux" and "torch" not in sys.modules
    try:
        # They would spin for milliseconds after each draw on the cores that the network needs, and
        # after each frame on those of whoever sends the next.
        with loaded_with(SLEEPING) as sleep:
            found = import_module("n2sr_deploy._subsample")
    except ImportError as error:
        if os.environ.get("N2SR_REQUIRE_KERNELS") == "1":
            raise
        return Loaded(reference, str(error), pytorch_sleeps=False)
    return Loaded(found, "", is_first and sleep and found.openmp_threads() > 1)


if hasattr(os, "register_at_fork"):  # where there are forks
    os.register_at_fork(after_in_child=_note_fork)
