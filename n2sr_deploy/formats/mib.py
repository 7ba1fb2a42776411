"""Merlin's MIB (Medipix): each frame after a line of text that tells its shape and type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.errors import FileFormatError, FrameError
from n2sr_deploy.formats.base import (
    Axis,
    Format,
    FrameFile,
    only_signal,
)
from n2sr_deploy.frame import FrameInfo
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.sampling import AnyArray

_TYPES = {"U08": ">u1", "U8": ">u1", "U16": ">u2", "U32": ">u4", "U64": ">u8"}
_LONGEST = 4096  # of a header, bytes
_LARGEST_TEXT = 2**16  # of the .hdr file beside, bytes


def _open(path: Path, signal: str | None) -> FrameFile:
    only_signal(path, signal)
    fields = _header(path)
    frames = _frames(path, fields)
    pixels = frames.dtype["pixels"]
    return FrameFile(
        path,
        shape=pixels.shape,
        dtype=pixels.base,
        pixels=lambda index: np.array(frames[index]["pixels"][::-1]),  # the last row comes first
        axes=(Axis(name="frame", size=len(frames)),) if len(frames) > 1 else (),
        info=FrameInfo(
            acquisition={"detector": "Merlin", "date_time": fields[9].strip()}
            | _exposure(fields[10]),
            metadata={"Merlin": {"header": ",".join(fields).strip(), "hdr": _beside(path)}},
        ),
    )


def _header(path: Path) -> list[str]:
    """The fields of the first frame's."""
    with path.open("rb") as file:
        fields = file.read(_LONGEST).split(b"\0")[0].decode("ascii", "replace").split(",")
    if fields[0] != "MQ1" or len(fields) < 12:
        raise FileFormatError(f"{path} is no Merlin file: it does not begin with MQ1")
    return fields


def _frames(path: Path, fields: list[str]) -> AnyArray:
    """All frames, each a header and pixels, still in the file."""
    length, width, height, kind = int(fields[2]), int(fields[4]), int(fields[5]), fields[6]
    if kind not in _TYPES:
        raise FrameError(
            f"{path} has pixels of Merlin's type {kind}, but n2sr takes {', '.join(_TYPES)}; "
            "save it without raw mode"
        )
    if min(length, width, height) < 1 or length > _LONGEST:
        raise FileFormatError(
            f"{path} says its frames are {height} x {width} pixels after {length} bytes of header"
        )
    each = np.dtype([("head", f"V{length}"), ("pixels", _TYPES[kind], (height, width))])
    size = path.stat().st_size
    if size < each.itemsize or size % each.itemsize:
        raise FileFormatError(
            f"{path} is truncated: its {counted(size, 'byte')} are no whole number of frames of "
            f"{each.itemsize} bytes"
        )
    return np.memmap(path, each, mode="r")


def _beside(path: Path) -> dict[str, str]:
    """What the .hdr file beside it tells."""
    beside = path.with_suffix(".hdr")
    if not beside.exists():
        return {}
    return _lines(beside.read_bytes()[:_LARGEST_TEXT].decode("latin-1"))


def refuse_hdr(path: Path) -> None:
    """Raise FileFormatError of Merlin's .hdr file, which tells of frames and holds none."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        is_hdr = file.read(4) == b"HDR,"
    if is_hdr and path.suffix.lower() == ".hdr":
        raise FileFormatError(
            f"{path} only describes what Merlin measured; open the .mib file beside it, "
            f"{path.with_suffix('.mib').name}"
        )


def _exposure(text: str) -> dict[str, float | str]:
    try:
        return {"exposure_s": float(text)}
    except ValueError:
        return {}


def _lines(text: str) -> dict[str, str]:
    """Of a .hdr file: what stands before and after each line's first colon and tab."""
    pairs = (line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    return {name.strip(): value.strip() for name, value in pairs}


FORMAT = Format(
    name="Merlin",
    extensions=(".mib",),
    recognises=lambda _, head: head.startswith(b"MQ1,"),
    open=_open,
)
