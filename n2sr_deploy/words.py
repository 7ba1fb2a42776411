"""Words of messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number and its noun, as in ``1 frame`` and ``2 frames``; nouns that take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def are(number: int) -> str:
    """``is`` of one, ``are`` of more."""
    return "is" if number == 1 else "are"
