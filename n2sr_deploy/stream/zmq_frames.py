"""Frames over ZeroMQ: what their messages look like, and back.

A message has a JSON header and the pixels, in parts of their own:

    {"htype": "dimage_d-1.0", "shape": [512, 512], "type": "uint16", "encoding": "<", "frame": 0}
    pixels, row by row

``shape`` is [columns, rows], as DECTRIS has it; ``type`` a NumPy name; ``encoding`` ``<`` (little
endian) or ``>``, or ``bs16-lz4<`` and the like where bitshuffle is installed. All that follows is
n2sr's addition and may be left out: ``frame`` (the index), ``source_time_s`` (since 1970),
``pixel_size`` [rows, columns] and ``unit``, ``valid_rows`` [first, end], ``metadata`` (anything).

A SIMPLON stream puts such a part between others: ``dimage-1.0`` (which has the index) before it
and ``dconfig-1.0`` after the pixels, a ``dheader-1.0`` message before all and ``dseries_end-1.0``
at the end. Both are understood.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.errors import BadFrameError
from n2sr_deploy.sampling import PIXEL_TYPES
from n2sr_deploy.stream.base import MAX_FRAME_BYTES, LiveFrame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray

IMAGE = "dimage_d-1.0"
_TYPES = {dtype.name: dtype for dtype in PIXEL_TYPES}
_MAX_HEADER_BYTES = 2**20
_MAX_DEPTH = 32  # objects and arrays within each other
_SERIES = ("dheader-1.0", "dseries_end-1.0")


def decoded(parts: Sequence[bytes | memoryview], index: int) -> LiveFrame | None:
    """A message as a frame.

    Parameters
    ----------
    parts
        Of the message.
    index
        Of the frame, where the message tells none.

    Returns
    -------
    The frame, or None for a message that only tells of a series.

    Raises
    ------
    BadFrameError
        When it is neither.
    """
    views = [memoryview(part).cast("B") for part in parts]
    header = _json(views[0]) if views else {}
    kind = header.get("htype")
    if kind in _SERIES or (len(views) == 1 and "bit_depth_image" in header):
        return None  # the latter is the detector's configuration
    if kind == "dimage-1.0" and len(views) >= 3:
        index = _integer(header.get("frame", index), "frame")
        told = {"series": header["series"]} if "series" in header else {}
        if len(views) >= 4:
            told["config"] = _json(views[3])
        return _image(_json(views[1]), views[2], index, told, series=str(header.get("series")))
    if len(views) < 2:
        raise BadFrameError(f"a message of {len(views)} parts; a header and pixels were expected")
    return _image(header, views[1], index, {})


def told_of_series(parts: Sequence[bytes | memoryview]) -> dict[str, Any]:
    """What a message that only tells of a series has: the detector's configuration.

    Raises
    ------
    BadFrameError
        When it is no JSON.
    """
    told: dict[str, Any] = {}
    for part in parts:
        told |= _json(memoryview(part).cast("B"))
    return told


def _image(
    header: dict[str, Any],
    blob: memoryview,
    index: int,
    told: dict[str, Any],
    series: str | None = None,
) -> LiveFrame:
    shape, dtype = _shape(header.get("shape")), _dtype(header.get("type"))
    metadata = header.get("metadata", {})
    if not isinstance(metadata, dict):
        raise BadFrameError(f"metadata is {type(metadata).__name__}, but must be an object")
    size, rows = header.get("pixel_size"), header.get("valid_rows")
    unit = header.get("unit")
    return LiveFrame(
        pixels=_pixels(header.get("encoding", "<"), blob, shape, dtype),
        index=_integer(header.get("frame", index), "frame"),
        source_time_s=None if "source_time_s" not in header else _number(header["source_time_s"]),
        pixel_size=None if size is None else (_number(_pair(size)[0]), _number(_pair(size)[1])),
        unit=None if unit is None else str(unit),
        valid_rows=None if rows is None else _rows(_pair(rows), shape),
        series=series,
        metadata={**told, **metadata},
    )


def _json(part: memoryview) -> dict[str, Any]:
    if part.nbytes > _MAX_HEADER_BYTES:
        raise BadFrameError(
            f"a header of {part.nbytes} bytes; at most {_MAX_HEADER_BYTES} are read"
        )
    try:
        header = json.loads(bytes(part))
    except (ValueError, RecursionError) as error:
        raise BadFrameError(
            f"a header that is no JSON ({error}); examples/zmq_sender.py shows what to send"
        ) from error
    if not isinstance(header, dict):
        raise BadFrameError(f"a header that is no JSON object but {type(header).__name__}")
    if _is_deep(header):
        raise BadFrameError(f"a header with more than {_MAX_DEPTH} levels within each other")
    return header


def _is_deep(header: dict[str, Any]) -> bool:
    """Whether writing it would exhaust Python's stack, here or in a sink."""
    level: list[Any] = [header]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)


def _shape(value: Any) -> Shape:
    columns, rows = (_integer(n, "shape") for n in _pair(value))
    if min(rows, columns) < 1:
        raise BadFrameError(f"shape is {value}, but needs at least a pixel along each axis")
    return rows, columns


def _dtype(value: Any) -> np.dtype:
    if not isinstance(value, str) or value not in _TYPES:
        raise BadFrameError(f"type is {value!r}, but must be one of {', '.join(_TYPES)}")
    return _TYPES[value]


def _pixels(encoding: Any, blob: memoryview, shape: Shape, dtype: np.dtype) -> AnyArray:
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > MAX_FRAME_BYTES:
        raise BadFrameError(
            f"a frame of {shape[0]} x {shape[1]} {dtype} is larger than {MAX_FRAME_BYTES} bytes"
        )
    if encoding not in ("<", ">"):
        return _unpacked(encoding, blob, shape, dtype)
    if blob.nbytes != n_bytes:
        raise BadFrameError(
            f"{blob.nbytes} bytes of pixels, but {shape[0]} x {shape[1]} {dtype} has {n_bytes}"
        )
    pixels: AnyArray = np.frombuffer(blob, dtype.newbyteorder(encoding)).reshape(shape)
    return pixels.astype(dtype) if encoding == ">" else pixels


def _unpacked(encoding: Any, blob: memoryview, shape: Shape, dtype: np.dtype) -> AnyArray:
    """DECTRIS' compressions: 8 bytes of size, 4 of block size, then the data."""
    if encoding != f"bs{8 * dtype.itemsize}-lz4<":
        raise BadFrameError(
            f"encoding is {encoding!r}, but for {dtype} must be < or > or bs{8 * dtype.itemsize}-"
            "lz4<; switch the compression off at the detector (or take bslz4)"
        )
    try:
        import bitshuffle
    except ImportError as error:
        raise BadFrameError(
            "compressed frames need bitshuffle; pip install bitshuffle, or switch the compression "
            "off at the detector"
        ) from error
    data = np.frombuffer(blob, np.uint8)[12:]
    _check_blocks(data, math.prod(shape), dtype.itemsize)
    try:
        pixels: AnyArray = bitshuffle.decompress_lz4(data, shape, dtype)
    except Exception as error:
        raise BadFrameError(f"compressed pixels that cannot be unpacked ({error})") from error
    return pixels


def _check_blocks(data: AnyArray, n: int, itemsize: int) -> None:
    """Follow the lengths of the blocks: the library trusts them, and would end the process.

    Blocks have 8192 bytes, the last one what is left in groups of eight elements; each begins
    with its compressed length (four bytes, big endian). Elements beyond the last eight follow as
    they are.
    """
    whole = 8192 // itemsize // 8 * 8
    blocks = n // whole + (n % whole >= 8)
    at = 0
    for _ in range(blocks):
        if at + 4 > data.size:
            raise BadFrameError("compressed pixels that end too early")
        at += 4 + int.from_bytes(data[at : at + 4].tobytes(), "big")
    at += n % 8 * itemsize
    if at != data.size:
        raise BadFrameError(
            f"compressed pixels whose blocks have {at} bytes, but {data.size} have come"
        )


def _pair(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise BadFrameError(f"{value!r} is no pair of numbers")
    return value


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise BadFrameError(f"{name} is {value!r}, but must be a whole number, 0 or above")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise BadFrameError(f"{value!r} is no number that is meant")
    return float(value)


def _rows(value: list[Any], shape: Shape) -> tuple[int, int]:
    first, end = (_integer(row, "valid_rows") for row in value)
    if not first <= end <= shape[0]:
        raise BadFrameError(f"valid_rows is {value}, but the frame has {shape[0]} rows")
    return first, end


def encoded(
    pixels: AnyArray, frame: LiveFrame, metadata: dict[str, Any]
) -> list[bytes | memoryview]:
    """Header and pixels of a message.

    Parameters
    ----------
    pixels
        (H, W), of one of the types that `decoded` takes.
    frame
        Of which all but pixels and metadata is told.
    metadata
        Told instead of the frame's.
    """
    little = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    header: dict[str, Any] = {
        "htype": IMAGE,
        "shape": [pixels.shape[1], pixels.shape[0]],
        "type": pixels.dtype.name,
        "encoding": "<",
        "size": little.nbytes,
        "frame": frame.index,
        "source_time_s": frame.source_time_s,
        "pixel_size": frame.pixel_size,
        "unit": frame.unit,
        "valid_rows": frame.valid_rows,
        "metadata": metadata,
    }
    known = {key: value for key, value in header.items() if value is not None}
    return [json.dumps(known, default=str).encode(), little.data]
