"""A process that ends with the one that started it, however that ended."""

from __future__ import annotations

import os
import shutil
import threading

READY = "ready"  # what a process says before `wait_until_told`
_told = threading.Event()


def parents_pipe() -> int:
    """Take the standard input, a pipe of the parent's, away from libraries; give its descriptor.

    They ask about it as they are loaded, which on Windows waits for as long as it is being read.
    """
    parents = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return parents


def end_with_parent(removes: str | None = None) -> None:
    """End this process as soon as its standard input, a pipe of its parent's, is closed.

    The system closes it when the parent is gone, by SIGKILL too, and on every platform; it does so
    without any work that could be stuck, so nothing else is tidied up.

    Parameters
    ----------
    removes
        A folder of the parent's, which can no longer remove it.
    """
    parents = parents_pipe()

    def wait() -> None:
        while os.read(parents, 1):
            _told.set()
        if removes is not None:
            shutil.rmtree(removes, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, name="n2sr lifeline", daemon=True).start()


def wait_until_told() -> None:
    """Wait until the parent of `end_with_parent` has written something."""
    _told.wait()
