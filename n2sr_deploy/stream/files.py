"""Frames from files and into files: ``watch:``, ``replay:``, ``folder:``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tifffile

from n2sr_deploy import formats
from n2sr_deploy.errors import (
    BadFrameError,
    ConnectionLostError,
    EndOfStreamError,
    FrameError,
    InputFileError,
    N2SRError,
    OutputError,
    SettingError,
)
from n2sr_deploy.formats.base import Output
from n2sr_deploy.formats.record import to_json
from n2sr_deploy.formats.tiff_writing import pixels_per_centimetre
from n2sr_deploy.frame import Frame, FrameInfo
from n2sr_deploy.stream.base import LiveFrame, LiveResult
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    import io

    from n2sr_deploy.stream.addresses import Address

_log = logging.getLogger("n2sr")
_LOOKS_EVERY_S = 0.1
_OUTPUTS = ".tif", ".mrc", ".npy"
_ENDINGS = frozenset(ending for known in formats.FORMATS for ending in known.extensions)
_LOG = "frames.jsonl"


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


class WatchSource:
    """Files as they appear in a folder, each with one frame.

    A file counts once its size and time have stayed the same for ``settle`` seconds (0 to 60,
    default 0.5) and it can be read; one that stays unreadable for ``patience`` seconds (default 30)
    is reported and left out. Files that are there already count with ``existing=1`` only. Hidden
    files, and files of kinds that n2sr does not read, are passed over. A name that is used again
    is a new file.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("settle", "patience", "existing")
        self.name = address.text
        self._folder = Path(address.target)
        self._settle_s = address.number("settle", 0.5, 0, 60)
        self._patience_s = address.number("patience", 30, 0, 3600)
        self._takes_existing = address.choice("existing", "0", "1") == "1"
        if not address.target:
            raise SettingError("watch: needs a folder, like watch:incoming/")
        self._done: dict[str, _Seen] | None = None
        with contextlib.suppress(ConnectionLostError):  # told when it is opened
            self.open()  # files count from now on, not from when a model has been loaded
        if not self._folder.exists():
            self._done = {}  # nor from when the folder has been made
        self._pending: dict[str, tuple[_Seen, float, float]] = {}
        self._n_read = 0

    def open(self) -> None:
        """Look at the folder."""
        if not self._folder.is_dir():
            raise ConnectionLostError(f"there is no folder {self._folder}")
        if self._done is None:
            self._done = {} if self._takes_existing else self._names()

    def _names(self) -> dict[str, _Seen]:
        found = {}
        try:
            for entry in os.scandir(self._folder):
                ending = Path(entry.name).suffix.lower()
                if ending in _ENDINGS and not entry.name.startswith(".") and entry.is_file():
                    told = entry.stat()
                    found[entry.name] = _Seen(told.st_size, told.st_mtime_ns, told.st_ino)
        except FileNotFoundError as error:
            if not self._folder.exists():
                raise ConnectionLostError(f"{self._folder} cannot be read: {error}") from error
            return {}  # a file went away meanwhile; look again
        except OSError as error:
            raise ConnectionLostError(f"{self._folder} cannot be read: {error}") from error
        return dict(sorted(found.items(), key=lambda item: _natural(item[0])))

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
        now, there = time.monotonic(), self._names()
        self._done = {name: seen for name, seen in self._done.items() if there.get(name) == seen}
        self._pending = {name: told for name, told in self._pending.items() if name in there}
        for name, seen in there.items():
            if name in self._done:
                continue
            before, since, first = self._pending.get(name, (None, now, now))
            if seen != before:
                self._pending[name] = seen, now, first
                since = now
            if now - since >= self._settle_s and seen.size > 0:
                frame = self._read_file(name, seen, now - since > self._patience_s)
                if frame is not None:
                    return frame
        return None

    def _read_file(self, name: str, seen: _Seen, is_late: bool) -> LiveFrame | None:
        done = self._done if self._done is not None else {}
        try:
            frame = formats.read_frame(self._folder / name)
        except (N2SRError, OSError) as error:
            if not is_late:
                return None  # not complete yet
            done[name] = seen
            self._pending.pop(name, None)
            raise BadFrameError(f"{name} cannot be read ({error})") from error
        done[name] = seen
        self._pending.pop(name, None)
        self._n_read += 1
        told = live(frame, self._n_read - 1, seen.changed_ns / 1e9)
        return replace(told, metadata={**told.metadata, "file": name})

    def close(self) -> None:
        """What was read stays read."""


class ReplaySource:
    """The frames of a file at a chosen rate: ``fps`` (0.001 to 100000, default 25).

    ``loop=N`` repeats them (1 to 1000000, default 1). A frame is late rather than left out.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("fps", "loop")
        self.name = address.text
        self._path = Path(address.target)
        self._period_s = 1 / address.number("fps", 25, 0.001, 1e5)
        self._n_loops = int(address.number("loop", 1, 1, 1e6))
        self._n_read = 0
        self._n_frames = 1
        self._due_s = 0.0
        self._known: list[Frame] = []

    def open(self) -> None:
        """Read the first frame."""
        if not self._path.exists():
            raise InputFileError(f"{self._path} does not exist; check the path")
        if not self._known:
            self._known = [formats.read_frame(self._path, 0)]
            self._n_frames = self._known[0].n_frames
        self._due_s = time.monotonic()

    def read(self, timeout_s: float) -> LiveFrame | None:
        """The next frame, when it is due."""
        if self._n_read == self._n_frames * self._n_loops:
            raise EndOfStreamError("all frames were replayed")
        wait_s = self._due_s - time.monotonic()
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return None
        if wait_s > 0:
            time.sleep(wait_s)
        index = self._n_read
        self._n_read += 1
        self._due_s = max(self._due_s + self._period_s, time.monotonic() - self._period_s)
        try:
            frame = self._frame(index % self._n_frames)
        except FrameError as error:
            raise BadFrameError(f"frame {index % self._n_frames}: {error}") from error
        return live(frame, index, None)

    def _frame(self, number: int) -> Frame:
        """Kept when it comes again."""
        if number < len(self._known):
            return self._known[number]
        frame = formats.read_frame(self._path, number)
        if self._n_loops > 1:
            self._known.append(frame)
        return frame

    def close(self) -> None:
        """Nothing is open."""


class FolderSink:
    """A file for each frame: ``00000012.tif``, and ``.std.tif`` with ``std=1``.

    ``format``: ``tif`` (default), ``mrc`` or ``npy``. Times, metadata and what n2sr did stand in
    ``frames.jsonl``, a line for each frame. Nothing is ever replaced: where frames are already,
    and where a source counts anew, they go into ``run-2``, ``run-3`` and so on.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("format", "std")
        self.name = address.text
        self._folder = Path(address.target)
        self._suffix = "." + address.choice("format", *(name[1:] for name in _OUTPUTS))
        self._with_std = address.choice("std", "0", "1") == "1"
        if not address.target:
            raise SettingError("folder: needs a folder, like folder:denoised/")

    def open(self) -> None:
        """Make the folder."""
        self._begin_run()

    def _begin_run(self) -> None:
        """In the first folder that has no frames yet."""
        number, folder = 1, self._folder
        while (folder / _LOG).exists() or any(folder.glob(f"[0-9]*{self._suffix}")):
            number += 1
            folder = self._folder / f"run-{number}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made: {error}") from error
        self._run = folder
        if number > 1:
            _log.info("there are frames already: these go into %s", folder)

    def write(self, result: LiveResult) -> None:
        """Write a file, whole or not at all, then its line."""
        noisy = result.noisy
        if (self._run / f"{noisy.index:08}{self._suffix}").exists():
            self._begin_run()  # the source counts anew
        images = {"": ("mean", result.mean)}
        if self._with_std and result.std is not None:
            images[".std"] = "spread", result.std
        for ending, (what, pixels) in images.items():
            frame = Frame(pixels=pixels, **vars(_info(result, what)))
            formats.write_frame(self._run / f"{noisy.index:08}{ending}{self._suffix}", frame)
        try:
            with (self._run / _LOG).open("a") as file:
                file.write(json.dumps(told_of(result), default=str) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._run / _LOG}: {error}") from error

    def close(self) -> None:
        """Every file is complete already."""


class StackSink:
    """All frames in one file that can be read while it grows, and after a crash: ``stack:out.tif``.

    A TIFF file (BigTIFF) of float32 pages; what is known of a frame stands in its page's
    description, as JSON. A file that is there already is not replaced: frames go to ``out-2.tif``.
    """

    def __init__(self, address: Address) -> None:
        address.check_options()
        self.name = address.text
        self._path = Path(address.target)
        if self._path.suffix.lower() not in (".tif", ".tiff"):
            raise SettingError(f"{address.text} must end in .tif")
        self._file: io.FileIO | None = None

    def open(self) -> None:
        """Make the file, or go on with the one that this stream has made."""
        if self._file is not None:
            return
        number, path = 1, self._path
        while path.exists():
            number += 1
            path = self._path.with_stem(f"{self._path.stem}-{number}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("x+b", buffering=0)  # a page is in the file once it is written
        except OSError as error:
            raise OutputError(f"{path} cannot be made: {error}") from error
        self._made, self._is_empty = path, True
        self._writer = tifffile.TiffWriter(self._file, bigtiff=True)
        if number > 1:
            _log.info("%s exists already: frames go into %s", self._path, path)

    def write(self, result: LiveResult) -> None:
        """Append a page."""
        info = _info(result, "mean")
        try:
            self._writer.write(
                result.mean,
                contiguous=False,
                photometric="minisblack",
                metadata=None,
                description=_description(result, info),
                **pixels_per_centimetre(info),
            )
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write to {self.name}: {error}") from error
        self._is_empty = False

    def close(self) -> None:
        """Close the file; without a frame it is no image, and goes."""
        file, self._file = self._file, None
        if file is None:
            return
        with file:
            made = os.fstat(file.fileno())
            self._writer.close()
        if self._is_empty:
            with contextlib.suppress(OSError):
                if os.path.samestat(made, self._made.stat()):  # nobody has put another there
                    self._made.unlink()


def _info(result: LiveResult, what: str) -> FrameInfo:
    """What the file of a result tells; `what`: ``mean`` or ``spread`` of the draws."""
    noisy, record = result.noisy, dict(result.record)
    version, which = record.pop("n2sr_version"), f"frame {noisy.index} of a stream"
    begun, history, metadata = f"n2sr {version}:", [*noisy.info.history], dict(noisy.metadata)
    if record["model"] is None:
        history.append(f"{begun} {which} passed through, as no model was there yet")
    else:
        n_hot = record.get("n_hot_pixels", 0)
        if n_hot:
            history.append(
                f"{begun} {counted(n_hot, 'hot pixel')} replaced by the median of good ones around"
            )
        history.append(
            f"{begun} {what} of {counted(record['n_samples'], 'draw')}, seed {record['seed']}, "
            f"{which}, pattern {record['pattern']}, weights {record['weights_sha256'][:12]} of "
            f"{record['model']}, {record['backend']}"
        )
        # Offsets of lines stay in a stream, so a frame without hot pixels was not repaired.
        own = {"version": version, "result": what, "frames": which, "repair": n_hot > 0}
        metadata["n2sr"] = {**own, **record}
    intensity = noisy.info.intensity
    if intensity is not None and what == "spread":
        intensity = intensity.of_spread()
    return replace(
        noisy.info,
        intensity=intensity,
        pixel_size=noisy.pixel_size,
        unit=noisy.unit,
        history=tuple(history),
        metadata=metadata,
    )


def _description(result: LiveResult, info: FrameInfo) -> str:
    """Of a page: what n2sr reads from files of its own, and all that is known."""
    own = Output(
        info=info,
        axes=(),
        shape=result.noisy.shape,
        dtype=result.mean.dtype,
        pixels=iter(()),
    )
    return json.dumps({**json.loads(to_json(own)), **told_of(result)}, default=str)


def told_of(result: LiveResult) -> dict[str, Any]:
    """All that is known of a result but its pixels, as JSON keeps it."""
    noisy = result.noisy
    return {
        "index": noisy.index,
        "series": noisy.series,
        "source_time_s": noisy.source_time_s,
        "arrival_time_s": noisy.arrival_time_s,
        "pixel_size": noisy.pixel_size,
        "unit": noisy.unit,
        "valid_rows": noisy.valid_rows,
        "metadata": result.metadata,
    }
