"""Results into files: ``folder:``, ``stack:``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tifffile

from n2sr_deploy import files, formats
from n2sr_deploy.errors import OutputError, SettingError
from n2sr_deploy.formats.base import Output
from n2sr_deploy.formats.record import to_json
from n2sr_deploy.formats.tiff_writing import pixels_per_centimetre
from n2sr_deploy.frame import Frame, FrameInfo
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.stream.addresses import Address
    from n2sr_deploy.stream.base import LiveResult

_log = logging.getLogger("n2sr")
_OUTPUTS = ".tif", ".mrc", ".npy"
_LOG = "frames.jsonl"


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
        self._with_std = address.flag("std")
        if not address.target:
            raise SettingError("folder: needs a folder, like folder:denoised/")
        files.check_folder(self._folder)
        # Units that were written: what the format loses of each is told once.
        self._told: set[str | None] = set()

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
            raise OutputError(f"{folder} cannot be made: {files.why(error)}") from error
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
            path = self._run / f"{noisy.index:08}{ending}{self._suffix}"
            formats.write_frame(path, frame, tells=frame.unit not in self._told)
            if frame.pixel_size is not None:
                self._told.add(frame.unit)
        try:
            with (self._run / _LOG).open("a") as file:
                file.write(json.dumps(told_of(result), default=str) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._run / _LOG}: {files.why(error)}") from error

    def close(self) -> None:
        """Every file is complete already."""


class StackSink:
    """All frames in one file that can be read while it grows, and after a crash: ``stack:out.tif``.

    A TIFF file (BigTIFF) of float32 pages; what is known of a frame stands in its page's
    description, as JSON. A file that is there already is not replaced: frames go to ``out-2.tif``,
    and so do frames of another size, which are no pages of one stack.
    """

    def __init__(self, address: Address) -> None:
        address.check_options()
        self.name = address.text
        self._path = Path(address.target)
        if self._path.suffix.lower() not in (".tif", ".tiff"):
            raise SettingError(f"{address.text} must end in .tif")
        files.check_name(self._path, OutputError)
        files.check_folder(self._path.parent)
        self._empty: _Stack | None = None
        self._stacks: dict[Shape, _Stack] = {}

    def open(self) -> None:
        """Make the file, or go on with the one that this stream has made."""
        if self._empty is None and not self._stacks:
            self._empty = self._begun()

    def _begun(self) -> _Stack:
        number, path = 1, self._path
        while path.exists():
            number += 1
            path = self._path.with_stem(f"{self._path.stem}-{number}")
        return _Stack(path)

    def write(self, result: LiveResult) -> None:
        """Append a page to the stack of its size."""
        shape = result.noisy.shape
        stack = self._stacks.get(shape)
        if stack is None:
            stack, self._empty = self._empty or self._begun(), None
            self._stacks[shape] = stack
            if stack.path != self._path:
                _log.info("frames of %d x %d pixels go into %s", *shape, stack.path)
        try:
            stack.append(result)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write to {self.name}: {files.why(error)}") from error

    def close(self) -> None:
        """Close the files."""
        stacks = [*self._stacks.values(), *([self._empty] if self._empty is not None else [])]
        self._stacks, self._empty = {}, None
        with contextlib.ExitStack() as closing:  # each, whatever becomes of the others
            for stack in stacks:
                closing.callback(stack.close)


class _Stack:
    """One of its files, new, for frames of one size."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("x+b", buffering=0)  # a page is in the file once it is written
        except OSError as error:
            raise OutputError(f"{path} cannot be made: {files.why(error)}") from error
        try:
            self._writer = tifffile.TiffWriter(file, bigtiff=True)
        except OSError as error:
            file.close()
            path.unlink()
            raise OutputError(f"{path} cannot be made: {files.why(error)}") from error
        self.path, self._file, self._is_empty = path, file, True

    def append(self, result: LiveResult) -> None:
        """Write a page."""
        info = _info(result, "mean")
        self._writer.write(
            result.mean,
            contiguous=False,
            photometric="minisblack",
            metadata=None,
            description=_description(result, info),
            **pixels_per_centimetre(info),
        )
        self._is_empty = False

    def close(self) -> None:
        """Close the file; without a frame it is no image, and goes."""
        with self._file as file:
            made = os.fstat(file.fileno())
            self._writer.close()
        if self._is_empty:
            with contextlib.suppress(OSError):
                if os.path.samestat(made, self.path.stat()):  # nobody has put another there
                    self.path.unlink()


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
