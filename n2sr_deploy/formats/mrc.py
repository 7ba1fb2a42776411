"""MRC2014 images and image stacks, by mrcfile."""

from __future__ import annotations

import logging
import textwrap
import warnings
from typing import TYPE_CHECKING

import mrcfile
import numpy as np

from n2sr_deploy.errors import FileFormatError
from n2sr_deploy.formats.base import Format, choose, nanometres
from n2sr_deploy.frame import Frame

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("n2sr")
_ANGSTROM = 0.1  # nm
_LABELS, _LABEL_LENGTH = 10, 80


def _read(path: Path, index: int | None) -> Frame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # small deviations from the standard are common
            file = mrcfile.mmap(path, mode="r", permissive=True)
        with file:
            data = file.data
            if data is None:
                raise FileFormatError(f"{path} is truncated or no MRC file: it has no data block")
            stack = data[None] if data.ndim == 2 else data
            if stack.ndim != 3:
                raise FileFormatError(
                    f"{path} has shape {data.shape}, but n2sr takes an image or a stack of images"
                )
            chosen, n_frames = choose(path, len(stack), index), len(stack)
            pixels = np.array(stack[chosen])
            size = float(file.voxel_size.y), float(file.voxel_size.x)
            labels = tuple(str(label) for label in file.get_labels())
    except (ValueError, OSError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is truncated or no MRC file: {error}") from error
    known = min(size) > 0 and max(size) < np.inf
    others, history = _split(labels)
    return Frame(
        pixels=pixels,
        pixel_size=size if known else None,
        unit="Å" if known else None,
        index=chosen,
        n_frames=n_frames,
        metadata={"labels": others} if others else {},
        history=history,
    )


def _write(path: Path, frame: Frame) -> None:
    pixels = frame.pixels
    if pixels.dtype not in (np.int16, np.uint16, np.float32):
        pixels = pixels.astype(np.float32)  # MRC has no wider mode
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(pixels)
        nm = nanometres(frame.unit)
        if frame.pixel_size is not None and nm is not None:
            height, width = (size * nm / _ANGSTROM for size in frame.pixel_size)
            file.voxel_size = (width, height, 0.0)
        elif frame.pixel_size is not None:
            _log.warning("MRC keeps lengths only: the pixel size in %r is lost", frame.unit)
        labels = [*frame.metadata.get("labels", ()), *_wrapped(frame.history)][-_LABELS:]
        for i, label in enumerate(labels):
            file.header.label[i] = label.encode("ascii", "replace")[:_LABEL_LENGTH]
        file.header.nlabl = len(labels)


def _wrapped(history: tuple[str, ...]) -> list[str]:
    """Each line of history in labels: the first begins with "- ", those it goes on in with "+ "."""
    labels = []
    for line in history:
        parts = textwrap.wrap(line, _LABEL_LENGTH - 2) or [""]
        labels += ["- " + parts[0], *("+ " + part for part in parts[1:])]
    return labels


def _split(labels: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels of others, and the lines of history in n2sr's."""
    others: list[str] = []
    history: list[str] = []
    for label in labels:
        if label.startswith("- "):
            history.append(label[2:])
        elif label.startswith("+ ") and history:
            history[-1] += " " + label[2:]
        else:
            others.append(label)
    return tuple(others), tuple(history)


FORMAT = Format(
    name="MRC",
    extensions=(".mrc", ".mrcs", ".st", ".map"),
    recognises=lambda head: head[208:212] == b"MAP ",
    read=_read,
    write=_write,
)
