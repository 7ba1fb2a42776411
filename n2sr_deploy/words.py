"""Words of messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number and its noun, as in ``1 frame`` and ``2 frames``; nouns that take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def about(path: str, error: str) -> str:
    """An error with the file it is about, which is named once."""
    return error if path in error else f"{path}: {error}"


def time_left(seconds: float) -> str:
    """Of a bar, as in ``about 3.5 h left``; empty below a second."""
    if seconds < 1:
        return ""
    for limit, unit, name in ((5400, 3600, "h"), (100, 60, "min")):
        if seconds > limit:
            left = seconds / unit
            return f"about {left:.1f} {name} left" if left < 10 else f"about {left:.0f} {name} left"
    return f"about {seconds:.0f} s left"


def are(number: int) -> str:
    """``is`` of one, ``are`` of more."""
    return "is" if number == 1 else "are"
