"""Sources and sinks by their addresses: ``zmq://127.0.0.1:9999``, ``replay:stack.mrc?fps=25``.

Other packages join theirs through the entry-point groups ``n2sr.sources`` and ``n2sr.sinks``: under
the scheme's name, a callable that takes an `Address` and gives a `Source` or `Sink`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from n2sr_deploy.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from n2sr_deploy.stream.base import Sink, Source


@dataclass(frozen=True, kw_only=True)
class Address:
    """``scheme:target?option=value&...``; the target of ``scheme://x`` is ``x``."""

    text: str
    """All of it."""
    scheme: str
    target: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Take it apart.

        Raises
        ------
        SettingError
            When it has no scheme.
        """
        scheme, colon, rest = text.partition(":")
        is_drive = len(scheme) == 1  # of Windows
        if not colon or not scheme.isidentifier() or is_drive:
            raise SettingError(
                f"{text!r} is no address; it begins with a scheme, like zmq://127.0.0.1:9999, "
                "watch:folder/ (to take frames from), folder:denoised/ or stack:denoised.tif (to "
                "hand them to)"
            )
        target, _, query = rest.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        return cls(text=text, scheme=scheme, target=target.removeprefix("//"), options=options)

    def check_options(self, *known: str) -> None:
        """Raise SettingError when there is an option of another name."""
        for name in self.options:
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise SettingError(f"{self.text} has no option {name!r}; {has}")

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """An option that is a number within bounds.

        Raises
        ------
        SettingError
            When it is none, or out of bounds.
        """
        text = self.options.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise SettingError(
                f"{name} is {text!r} in {self.text}, but must be {low:g} to {high:g}"
            )
        return value

    def choice(self, name: str, *known: str) -> str:
        """An option that is one of these words; the first is the default.

        Raises
        ------
        SettingError
            When it is none of them.
        """
        value = self.options.get(name, known[0])
        if value not in known:
            raise SettingError(
                f"{name} is {value!r} in {self.text}, but must be one of {', '.join(known)}"
            )
        return value

    def flag(self, name: str) -> bool:
        """An option that is 0, the default, or 1; SettingError of another."""
        return self.choice(name, "0", "1") == "1"


def open_source(text: str) -> Source:
    """The source of an address; not connected yet.

    Raises
    ------
    SettingError
        When there is none of that scheme, or an option is wrong.
    MissingExtraError
        When its library is not installed.
    """
    source: Source = _made(text, "n2sr.sources", "source")
    return source


def open_sink(text: str) -> Sink:
    """The sink of an address; not connected yet.

    Raises
    ------
    SettingError
        When there is none of that scheme, or an option is wrong.
    OutputError
        When it writes files, and they cannot be written there.
    MissingExtraError
        When its library is not installed.
    """
    sink: Sink = _made(text, "n2sr.sinks", "sink")
    return sink


def _made(text: str, group: str, kind: str) -> Any:
    address = Address.parse(text)
    known: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group=group)}
    if address.scheme not in known:
        raise SettingError(
            f"there is no {kind} {address.scheme!r} ({text}); there are {', '.join(sorted(known))}"
        )
    return known[address.scheme].load()(address)
