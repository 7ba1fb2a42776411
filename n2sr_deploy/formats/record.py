"""What a file's own format has no place for: kept in it as JSON, and read back from there."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from n2sr_deploy.formats.base import Axis, n_places
from n2sr_deploy.formats.metadata import plain_values
from n2sr_deploy.formats.units import ascii_unit, nanometres
from n2sr_deploy.frame import FrameInfo, Intensity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from n2sr_deploy.formats.base import (
        ByFrame,
        Output,
    )

_KEY = "n2sr"
_ROUNDED = 1e-5  # by TIFF's ratios of integers and MRC's float32


class Kept(NamedTuple):
    """What a record tells."""

    info: FrameInfo
    axes: tuple[Axis, ...]
    by_frame: ByFrame
    """What of the acquisition differs from frame to frame: a value a frame, None where it has
    none."""


def to_json(output: Output) -> str:
    """Everything that is known, beside the pixels."""
    info = output.info
    values = {
        "pixel_size": info.pixel_size,
        "unit": info.unit,
        "origin": info.origin,
        "axis_names": info.axis_names,
        "intensity": asdict(info.intensity) if info.intensity else None,
        "acquisition": dict(info.acquisition),
        "axes": [asdict(axis) for axis in output.axes],
        "history": info.history,
        "metadata": info.metadata,
    }
    if output.by_frame:
        values["acquisition_by_frame"] = dict(output.by_frame)
    return json.dumps({_KEY: plain_values(values)})  # ASCII: TIFF has no other texts


def from_json(text: str, fallback: FrameInfo) -> Kept | None:
    """What `to_json` wrote; None when it was not n2sr.

    Where the pixel size in `fallback`, read from the format's own place, differs from the
    record's, somebody changed it since: theirs is taken.
    """
    try:
        kept = _checked(json.loads(text)[_KEY])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return kept._replace(info=_calibrated(kept.info, fallback))


def differing(acquisitions: Iterable[Mapping[str, float | str]]) -> ByFrame:
    """What differs from frame to frame: a value a frame, None where it has none."""
    first: dict[str, float | str] = {}
    found: dict[str, list[float | str | None]] = {}
    n_frames = 0
    for n_frames, acquisition in enumerate(acquisitions, 1):
        if n_frames == 1:
            first = dict(acquisition)
        for name in {*first, *acquisition} - set(found):
            if acquisition.get(name) != first.get(name):
                found[name] = [first.get(name)] * (n_frames - 1)
        for name, values in found.items():
            values.append(acquisition.get(name))
    return dict(sorted(found.items()))


def _checked(values: dict[str, Any]) -> Kept:
    """A record of which nothing lies about its kind.

    Raises
    ------
    ValueError, LookupError, TypeError, AttributeError, OverflowError
        When something does.
    """
    size, intensity = values["pixel_size"], values["intensity"]
    info = FrameInfo(
        pixel_size=None if size is None else _pair(size),
        unit=_text_or_none(values["unit"]),
        origin=_pair(values["origin"]),
        axis_names=_names(values.get("axis_names", ["y", "x"])),
        intensity=None if intensity is None else Intensity(**_numbers_and_unit(intensity)),
        acquisition={name: _told(value) for name, value in values["acquisition"].items()},
        metadata=dict(values["metadata"].items()),
        history=tuple(_of_type(line, str) for line in _of_type(values["history"], list)),
    )
    axes = tuple(_axis(axis) for axis in _of_type(values["axes"], list))
    n_frames = n_places(axes)
    by_frame = {
        name: [None if value is None else _told(value) for value in _of_type(column, list)]
        for name, column in values.get("acquisition_by_frame", {}).items()
    }
    if any(len(column) != n_frames for column in by_frame.values()):
        raise ValueError(by_frame)
    return Kept(info, axes, by_frame)


def _of_type(value: Any, *types: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(value)
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(_of_type(value, str))


def _number(value: Any) -> float:
    return float(_of_type(value, int, float))


def _told(value: Any) -> float | str:
    return value if isinstance(value, str) else _number(value)


def _pair(values: Any) -> tuple[float, float]:
    first, second = _of_type(values, list)
    return _number(first), _number(second)


def _names(values: Any) -> tuple[str, str]:
    first, second = _of_type(values, list)
    return str(_of_type(first, str)), str(_of_type(second, str))


def _numbers_and_unit(values: dict[str, Any]) -> dict[str, Any]:
    unit = _text_or_none(values["unit"])
    return {name: _number(value) for name, value in values.items() if name != "unit"} | {
        "unit": unit
    }


def _axis(values: dict[str, Any]) -> Axis:
    name, size = _of_type(values["name"], str), _of_type(values["size"], int)
    if size < 1:
        raise ValueError(size)
    others = {key: value for key, value in values.items() if key not in ("name", "size")}
    return Axis(name=name, size=size, **_numbers_and_unit(others))


def _calibrated(info: FrameInfo, now: FrameInfo) -> FrameInfo:
    if now.pixel_size is None or _same_size(info, now):
        return info
    return replace(info, pixel_size=now.pixel_size, unit=now.unit, origin=now.origin)


def _same_size(one: FrameInfo, other: FrameInfo) -> bool:
    if one.pixel_size is None or other.pixel_size is None:
        return False
    nm = nanometres(one.unit), nanometres(other.unit)
    if nm[0] is None or nm[1] is None:
        factor = 1.0 if ascii_unit(one.unit) == ascii_unit(other.unit) else math.inf
    else:
        factor = nm[1] / nm[0]
    return np.allclose(one.pixel_size, np.multiply(other.pixel_size, factor), _ROUNDED, 0)
