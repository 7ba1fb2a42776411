"""Merlin's MIB (Medipix): each frame after a line of text that tells its shape and type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.errors import FileFormatError, FrameError
from n2sr_deploy.formats.base import Axis, Format, FrameFile, only_signal
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.sampling import AnyArray

_TYPES = {"U08": ">u1", "U8": ">u1", "U16": ">u2", "U32": ">u4", "U64": ">u8"}
_LONGEST = 4096  # of a header, bytes
_LARGEST_TEXT = 2**16  # of the .hdr file beside, bytes


def _open(path: Path, signal: str | None) -> FrameFile:
    only_signal(path, signal)
    with path.open("rb") as file:
        fields = file.read(_LONGEST).split(b"\0")[0].decode("ascii", "replace").split(",")
    if fields[0] != "MQ1" or len(fields) < 12:
        raise FileFormatError(f"{path} is no Merlin file: it does not begin with MQ1")
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
    dtype = np.dtype(_TYPES[kind])
    each = np.dtype([("head", f"V{length}"), ("pixels", dtype, (height, width))])
    size = path.stat().st_size
    if size < each.itemsize or size % each.itemsize:
        raise FileFormatError(
            f"{path} is truncated: it has {size} bytes, which are no whole number of frames of "
            f"{each.itemsize} bytes"
        )
    frames = np.memmap(path, each, mode="r")

    def read(index: int) -> AnyArray:
        return np.array(frames[index]["pixels"][::-1])  # the last row comes first

    beside = path.with_suffix(".hdr")
    text = beside.read_bytes()[:_LARGEST_TEXT].decode("latin-1") if beside.exists() else ""
    return FrameFile(
        path,
        shape=(height, width),
        dtype=dtype,
        pixels=read,
        axes=(Axis(name="frame", size=len(frames)),) if len(frames) > 1 else (),
        info=FrameInfo(
            acquisition={"detector": "Merlin", "date_time": fields[9].strip()}
            | _exposure(fields[10]),
            metadata={"Merlin": {"header": ",".join(fields).strip(), "hdr": _lines(text)}},
        ),
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
