"""What a batch has done so far: one line of JSON for each thing that happened, on the disk at once.

    {"output": "a.tif", "outcome": "started", "input": "/data/a.tif", "size": 8388, ...}
    {"output": "a.tif", "outcome": "done", ..., "seconds": 1.2, "sizes": {"a.tif": 4194}}

The last line of an output counts. A line torn by a kill is cut off at the next start.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from n2sr_deploy import files
from n2sr_deploy.errors import OutputError
from n2sr_deploy.version import VERSION
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_log = logging.getLogger("n2sr")
NAME = "n2sr-batch.jsonl"
_LOCKED_BYTE = 2**40  # beyond any line: Windows locks what others then cannot read


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line."""

    output: str
    """Of the denoised frames, within the batch's folder, with ``/``."""
    outcome: Literal["started", "done", "failed"]
    input: str
    """The path as it was."""
    size: int
    """Bytes of the input."""
    mtime_ns: int
    """When the input was last changed; with path and size, by this an input is known again."""
    settings: Mapping[str, Any]
    """All that decides what comes out."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each file that was written, by its path within the folder."""
    error: str | None = None
    seconds: float | None = None
    attempts: int = 0
    n_threads: int = 0
    """Of the process that did it, where a network was learned: with others it is the same only to
    rounding. 0: not told."""
    warnings: tuple[str, ...] = ()
    n2sr_version: str = VERSION

    def is_of_input(self, other: Entry) -> bool:
        """Whether both are of the same input, and that has not changed."""
        mine, others = (
            (Path(entry.input).resolve(), entry.size, entry.mtime_ns) for entry in (self, other)
        )
        return mine == others

    def is_of_settings(self, other: Entry) -> bool:
        """Whether both are of the same settings."""
        mine, others = (json.dumps(entry.settings, sort_keys=True) for entry in (self, other))
        return mine == others


def std_of(name: str) -> str:
    """The name of an output's standard error: ``a.std.tif`` of ``a.tif``."""
    stem, dot, extension = name.rpartition(".")
    return f"{stem}.std{dot}{extension}"


class Manifest:
    """The manifest of a folder, locked while it is open. A context manager, for any thread.

    The system gives up the lock when the process ends, however it ends.

    Parameters
    ----------
    folder
        Of the results; there must be one.

    Raises
    ------
    OutputError
        When another batch writes into this folder, or the file cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = threading.Lock()
        self.path = folder / NAME
        try:
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; choose another folder"
            ) from error
        try:
            _lock(self._file.fileno(), folder)
            self.entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; another batch may then begin. Of one that began nothing, none stays."""
        is_empty = self._file.seek(0, os.SEEK_END) == 0
        if sys.platform == "win32":  # which keeps open files, also those of a batch that begins now
            self._file.close()
        if is_empty:
            with contextlib.suppress(PermissionError):
                self.path.unlink(missing_ok=True)
        self._file.close()

    def append(self, entries: Sequence[Entry]) -> None:
        """Add lines; they are on the disk when this returns.

        Raises
        ------
        OutputError
            When they cannot be written.
        """
        text = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
        with self._writing:
            try:
                self._write(text.encode())
            except OSError as error:
                raise OutputError(
                    f"cannot write {self.path}: {error.strerror or error}; make room, and the "
                    "same command goes on"
                ) from error
            self.entries.update((entry.output, entry) for entry in entries)

    def _write(self, text: bytes) -> None:
        # Without a buffer: what a full disk refuses now is not tried again when it is closed.
        while text:
            text = text[self._file.write(text) :]
        os.fsync(self._file.fileno())

    def outputs(self) -> set[str]:
        """All that this batch wrote, or may have written, by their paths within the folder."""
        names: set[str] = set()
        for entry in self.entries.values():
            names |= {entry.output, *entry.sizes, std_of(entry.output)}
        return names

    def are_there(self, entry: Entry) -> bool:
        """Whether all that an entry says was written is there, as large as it was."""
        return bool(entry.sizes) and all(
            _size(self._folder / name) == size for name, size in entry.sizes.items()
        )

    def remove_leftovers(self) -> int:
        """Remove what killed runs left of their outputs; tell how many files there were."""
        outputs = [self._folder / name for name in self.outputs()]
        ours: dict[tuple[Path, str | None], Path] = {
            (path.parent, files.mark_of(path)): path for path in outputs
        }
        left: dict[Path, list[Path]] = {}
        for path in self._folder.rglob(".n2sr-*"):
            output = ours.get((path.parent, files.mark_in(path.name)))
            if output is not None:
                left.setdefault(output, []).append(path)
        for output, of_output in left.items():
            files.clear(output, of_output)
        return sum(map(len, left.values()))

    def _read(self) -> dict[str, Entry]:
        self._file.seek(0)
        whole = self._file.read()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            self._file.truncate(end)
        entries: dict[str, Entry] = {}
        n_damaged = 0
        for line in whole[:end].splitlines():
            try:
                values = json.loads(line)
                entry = Entry(**{**values, "warnings": tuple(values["warnings"])})
            except (ValueError, TypeError, LookupError):
                n_damaged += 1
                continue
            entries[entry.output] = entry
        if n_damaged:
            _log.warning(
                "%s has %s that cannot be read; left out", self.path, counted(n_damaged, "line")
            )
        return entries


def _size(path: Path) -> int | None:
    try:
        return files.size_and_mtime(path)[0]
    except OSError:
        return None


def _lock(descriptor: int, folder: Path) -> None:
    """Take the lock of an open file, or say who has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputError(
            f"another batch writes into {folder}; wait for it to end, or choose another folder"
        ) from error
