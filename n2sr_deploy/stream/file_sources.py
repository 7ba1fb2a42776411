"""Frames from files: ``watch:``, ``replay:``."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from n2sr_deploy import formats
from n2sr_deploy.errors import (
    BadFrameError,
    ConnectionLostError,
    EndOfStreamError,
    FileFormatError,
    FrameError,
    InputFileError,
    N2SRError,
    NotChosenError,
    SettingError,
)
from n2sr_deploy.files import check_name
from n2sr_deploy.formats.base import choose
from n2sr_deploy.stream.base import LiveFrame
from n2sr_deploy.stream.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.frame import Frame
    from n2sr_deploy.stream.addresses import Address

_log = logging.getLogger("n2sr")
_LOOKS_EVERY_S = 0.1
_NAMED = 5  # files that were not taken
_NOT_READ = "not read yet"
_ENDINGS = frozenset(ending for known in formats.FORMATS for ending in known.extensions)


def live(frame: Frame, index: int, source_time_s: float | None) -> LiveFrame:
    """A frame of a file as one that arrives now."""
    return LiveFrame(
        pixels=frame.pixels,
        index=index,
        pixel_size=frame.pixel_size,
        unit=frame.unit,
        source_time_s=source_time_s,
        metadata=dict(frame.metadata),
        info=frame.info,
    )


def _read_frame(path: Path, index: int | None = None) -> Frame:
    """One frame of a file; an address chooses none, nor a signal."""
    with _one_signal():
        return formats.read_frame(path, index)


@contextlib.contextmanager
def _one_signal() -> Iterator[None]:
    try:
        yield
    except NotChosenError as error:
        raise FileFormatError(f"{error.held}. Save each as a file of its own") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """By which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", name)  # digits are every other part
    return [(int(part), "") if n % 2 else (0, part) for n, part in enumerate(parts)]


class _Seen(NamedTuple):
    """What a file looked like: another file of the same name looks otherwise."""

    size: int
    changed_ns: int
    number: int
    """The file system's."""


class _Pending(NamedTuple):
    """A file that is not taken yet."""

    seen: _Seen
    since_s: float
    """Since when it has looked so."""
    why: str


class WatchSource:
    """Files as they appear in a folder, each with one frame.

    A file counts once its size and time have stayed the same for ``settle`` seconds (0 to 60,
    default 0.5) and it can be read; one that stays unreadable for ``patience`` seconds (default 30)
    is reported and left out. Files that are there already count with ``existing=1`` only. Hidden
    files, and files of kinds that n2sr does not read, are passed over. A name that is used again
    is a new file. A folder that is not there is waited for; all its files count.
    """

    when_silent = "it is still watched"

    def __init__(self, address: Address) -> None:
        address.check_options("settle", "patience", "existing")
        self.name = address.text
        self._folder = Path(address.target)
        self._settle_s = address.number("settle", 0.5, 0, 60)
        self._patience_s = address.number("patience", 30, 0, 3600)
        self._takes_existing = address.flag("existing")
        if not address.target:
            raise SettingError("watch: needs a folder, like watch:incoming/")
        check_name(self._folder, InputFileError)
        self._done: dict[str, _Seen] | None = None
        self._is_lost = False  # so it will be opened again
        with contextlib.suppress(ConnectionLostError):  # told when it is opened
            self.open()  # files count from now on, not from when a model has been loaded
        if not self._folder.exists():
            self._done = {}  # nor from when the folder has been made
        self._pending: dict[str, _Pending] = {}
        self._n_read = 0

    def open(self) -> None:
        """Look at the folder."""
        self._is_lost = True
        if not self._folder.exists():  # acquisition programs make it with the first frame
            raise ConnectionLostError(
                f"there is no folder {self._folder}; check the path, or make it: files count from "
                "then on"
            )
        if not self._folder.is_dir():
            raise InputFileError(f"{self._folder} is a file, but watch: needs a folder; name its")
        if self._done is None:
            self._done = {} if self._takes_existing else self._names()
        self._is_lost = False

    def _names(self) -> dict[str, _Seen]:
        found = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    ending = Path(entry.name).suffix.lower()
                    if ending in _ENDINGS and not entry.name.startswith("."):
                        found[entry.name] = self._seen(entry)
        except OSError as error:
            raise ConnectionLostError(f"{self._folder} cannot be read: {error}") from error
        there = {name: seen for name, seen in found.items() if seen is not None}
        return dict(sorted(there.items(), key=lambda item: _natural(item[0])))

    def _seen(self, entry: os.DirEntry[str]) -> _Seen | None:
        """None of what is no file, went away meanwhile, or cannot be looked at: others can be."""
        try:
            if not entry.is_file():
                return None
            told = entry.stat()
        except OSError:
            self._folder.stat()  # raises where it is the folder that is away
            return None
        return _Seen(told.st_size, told.st_mtime_ns, told.st_ino)

    def read(self, timeout_s: float) -> LiveFrame | None:
        """The next file that is complete, by name where several are."""
        end = time.monotonic() + timeout_s
        while True:
            frame = self._look()
            if frame is not None or time.monotonic() + _LOOKS_EVERY_S > end:
                return frame
            time.sleep(_LOOKS_EVERY_S)

    def _look(self) -> LiveFrame | None:
        if self._done is None:
            raise ConnectionLostError("it is closed")
        self._is_lost = True
        now, there = time.monotonic(), self._names()
        self._is_lost = False
        self._done = {name: seen for name, seen in self._done.items() if there.get(name) == seen}
        self._pending = {name: told for name, told in self._pending.items() if name in there}
        for name, seen in there.items():
            if name in self._done:
                continue
            if name not in self._pending or self._pending[name].seen != seen:
                self._pending[name] = _Pending(seen, now, _NOT_READ if seen.size else "empty")
            same_s = now - self._pending[name].since_s
            if same_s >= self._settle_s and seen.size > 0:
                frame = self._read_file(name, seen, is_late=same_s > self._patience_s)
                if frame is not None:
                    return frame
        return None

    def _read_file(self, name: str, seen: _Seen, *, is_late: bool) -> LiveFrame | None:
        done = self._done if self._done is not None else {}
        try:
            frame = _read_frame(self._folder / name)
        except (N2SRError, OSError) as error:
            if not is_late:  # it may not be complete yet
                self._pending[name] = self._pending[name]._replace(why=str(error))
                return None
            done[name] = seen
            self._pending.pop(name, None)
            raise BadFrameError(f"{name} cannot be read ({error})") from error
        done[name] = seen
        self._pending.pop(name, None)
        self._n_read += 1
        told = live(frame, self._n_read - 1, seen.changed_ns / 1e9)
        return replace(told, metadata={**told.metadata, "file": name})

    def close(self) -> None:
        """What was read stays read. Tell what was not, unless the folder is lost: it may return."""
        pending, self._pending = self._pending, {}
        if self._is_lost or self._done is None:
            return
        left = []
        with contextlib.suppress(ConnectionLostError):
            for name, seen in self._names().items():
                if self._done.get(name) != seen:
                    known = pending.get(name)
                    why = known.why if known is not None and known.seen == seen else _NOT_READ
                    left.append(f"{name} ({why.removeprefix(f'{self._folder / name} ')})")
        if left:
            more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
            named = ", ".join(left[:_NAMED])
            _log.warning("not taken from %s: %s%s", self._folder, named, more)


class ReplaySource:
    """The frames of a file at a chosen rate: ``fps`` (0.001 to 100000, default 25).

    ``loop=N`` repeats them (1 to 1000000, default 1). A frame is late rather than left out.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("fps", "loop")
        self.name = address.text
        self._path = Path(address.target)
        check_name(self._path, InputFileError)
        self._pace = Pace(address)
        self._n_loops = int(address.number("loop", 1, 1, 1e6))
        self._n_read = 0
        self._n_frames = 1
        self._known: dict[int, Frame] = {}
        self._why_none: FrameError | None = None
        self._has_any = False

    def open(self) -> None:
        """Look how many there are."""
        if not self._path.exists():
            raise InputFileError(f"{self._path} does not exist; check the path")
        with _one_signal(), formats.open_frames(self._path) as opened:
            choose(self._path, len(opened), 0)  # there is one
            self._n_frames = len(opened)
        self._pace.begin()

    def read(self, timeout_s: float) -> LiveFrame | None:
        """The next frame, when it is due.

        Where all were refused, the last one's error is raised.
        """
        if self._why_none is not None and not self._has_any and self._n_read == self._n_frames:
            raise self._why_none
        if self._n_read == self._n_frames * self._n_loops:
            raise EndOfStreamError("all frames were replayed")
        if not self._pace.is_due(timeout_s):
            return None
        index = self._n_read
        self._n_read += 1
        try:
            frame = self._frame(index % self._n_frames)
        except FrameError as error:
            self._why_none = error
            raise BadFrameError(str(error)) from error  # which names file and frame
        self._has_any = True
        return live(frame, index, None)

    def _frame(self, number: int) -> Frame:
        """Kept when it comes again."""
        if number in self._known:
            return self._known[number]
        frame = _read_frame(self._path, number)
        if self._n_loops > 1:
            self._known[number] = frame
        return frame

    def close(self) -> None:
        """Nothing is open."""
