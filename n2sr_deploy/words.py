"""Words of messages."""

from __future__ import annotations

import re


def counted(number: int, noun: str) -> str:
    """The number and its noun, as in ``1 frame`` and ``2 frames``; nouns that take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def about(path: str, error: str) -> str:
    """An error with the file it is about, which is named once."""
    # Whole parts of a path: a.tif is not named by /out/data.tif.
    begun, ended = r"(?<![^\s/\\'\"(])", r"(?=[\s/\\'\"),:;]|\.?(?:\s|$))"
    is_named = re.search(begun + re.escape(path) + ended, error) is not None
    return error if is_named else f"{path}: {error}"


def seconds(number: float) -> str:
    """As in ``0.4 s`` and ``64 s``: what took less than a second did not take none."""
    return f"{number:.{0 if round(number) >= 10 else 1}f} s"


def time_left(seconds: float) -> str:
    """As in ``about 3.5 h left``; empty below a second."""
    if seconds < 1:
        return ""
    # Chosen by what is shown, not by what it was before rounding.
    if round(seconds) < 100:
        return f"about {seconds:.0f} s left"
    left, name = (seconds / 60, "min") if round(seconds / 60) <= 90 else (seconds / 3600, "h")
    n_decimals = 1 if round(left, 1) < 10 else 0
    return f"about {left:.{n_decimals}f} {name} left"


def are(number: int) -> str:
    """``is`` of one, ``are`` of more."""
    return "is" if number == 1 else "are"
