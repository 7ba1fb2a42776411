"""Ctrl-C and SIGTERM where the exception they raise would be lost, or leave something half done."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

INTERRUPTED = "ended by Ctrl-C before it was done"
INTERRUPTED_CODE = 128 + signal.SIGINT  # as a shell tells it


def ending() -> list[int]:
    """SIGTERM, and on Windows Ctrl-Break, the only one there that another process can send."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)]


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let a handler answer the signals of `ending` during the block.

    Threads other than the main one are not told of signals, so nothing is changed there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in ending()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def held_back(*numbers: int) -> Iterator[list[int]]:
    """Let signals through after the block only, and give those that have come so far.

    Threads other than the main one are not told of signals, so nothing is held back there.

    Parameters
    ----------
    numbers
        Of the signals; those that the process ignores stay ignored.
    """
    came: list[int] = []
    try:
        with _noted(numbers, came):
            yield came
    finally:
        if came:  # of several, the first ends what is done here
            signal.raise_signal(came[0])


@contextmanager
def ignored(*numbers: int) -> Iterator[None]:
    """Let signals come to nothing: what the block does is the end of what they could end."""
    with _noted(numbers, []):
        yield


@contextmanager
def _noted(numbers: Iterable[int], came: list[int]) -> Iterator[None]:
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers if is_main}
    for number, handler in list(before.items()):
        if handler in (None, signal.SIG_IGN):  # None: what is not Python's cannot be set back
            del before[number]
    with ExitStack() as restored:  # all of them, even where one that comes just then raises
        for number, handler in before.items():
            restored.callback(signal.signal, number, handler)
            signal.signal(number, lambda number, _: came.append(number))
        yield
