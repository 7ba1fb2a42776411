"""A process that ends with the one that started it, however that ended."""

from __future__ import annotations

import atexit
import os
import select
import shutil
import threading

READY = "ready"  # what a process says before `wait_until_told`
_REMOVED_IN_S = 10.0
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

    The system closes it when the parent is gone, by SIGKILL too, and on every platform. Nothing is
    tidied up but one folder.

    Parameters
    ----------
    removes
        A folder of the parent's, which can no longer remove it.
    """
    parents = parents_pipe()
    is_closed = threading.Event()

    def wait() -> None:
        while os.read(parents, 1):
            _told.set()
        is_closed.set()
        try:
            if removes is not None:
                shutil.rmtree(removes, ignore_errors=True)
        finally:
            os._exit(1)

    lifeline = threading.Thread(target=wait, name="n2sr lifeline", daemon=True)
    lifeline.start()

    def let_it_end() -> None:
        """What is written to a parent that is gone may end this process first."""
        if os.name == "nt":  # which has no other way to ask a pipe
            is_closed.wait(0.1)
        elif select.select([parents], [], [], 0)[0]:
            is_closed.set()
        if is_closed.is_set():
            lifeline.join(_REMOVED_IN_S)

    atexit.register(let_it_end)


def wait_until_told() -> None:
    """Wait until the parent of `end_with_parent` has written something."""
    _told.wait()
