"""What a file's own format has no place for: kept in it as JSON, and read back from there."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np

from n2sr_deploy.formats.base import Axis, nanometres, plain_values
from n2sr_deploy.frame import FrameInfo, Intensity

_KEY = "n2sr"
_ROUNDED = 1e-5  # by TIFF's ratios of integers and MRC's float32


def to_json(info: FrameInfo, axes: tuple[Axis, ...] = ()) -> str:
    """Everything that is known, beside the pixels."""
    values = {
        "pixel_size": info.pixel_size,
        "unit": info.unit,
        "origin": info.origin,
        "intensity": asdict(info.intensity) if info.intensity else None,
        "acquisition": dict(info.acquisition),
        "axes": [asdict(axis) for axis in axes],
        "history": info.history,
        "metadata": info.metadata,
    }
    return json.dumps({_KEY: plain_values(values)})  # ASCII: TIFF has no other texts


def from_json(text: str, fallback: FrameInfo) -> tuple[FrameInfo, tuple[Axis, ...]] | None:
    """What `to_json` wrote; None when it was not n2sr.

    Where the pixel size in `fallback`, read from the format's own place, differs from the
    record's, somebody changed it since: theirs is taken.
    """
    try:
        values = json.loads(text)[_KEY]
        size = values["pixel_size"]
        info = FrameInfo(
            pixel_size=tuple(size) if size else None,
            unit=values["unit"],
            origin=tuple(values["origin"]),
            intensity=Intensity(**values["intensity"]) if values["intensity"] else None,
            acquisition=values["acquisition"],
            metadata=values["metadata"],
            history=tuple(map(str, values["history"])),
        )
        axes = tuple(Axis(**axis) for axis in values["axes"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return _calibrated(info, fallback), axes


def _calibrated(info: FrameInfo, now: FrameInfo) -> FrameInfo:
    if now.pixel_size is None or _same_size(info, now):
        return info
    return replace(info, pixel_size=now.pixel_size, unit=now.unit, origin=now.origin)


def _same_size(one: FrameInfo, other: FrameInfo) -> bool:
    if one.pixel_size is None or other.pixel_size is None:
        return False
    nm = nanometres(one.unit), nanometres(other.unit)
    if nm[0] is None or nm[1] is None:
        factor = 1.0 if one.unit == other.unit else math.inf
    else:
        factor = nm[1] / nm[0]
    return np.allclose(one.pixel_size, np.multiply(other.pixel_size, factor), _ROUNDED, 0)
