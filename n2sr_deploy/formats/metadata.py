"""A file's own metadata: nested mappings as JSON keeps them, and what is sought in them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    Table = Mapping[str, tuple[str, float] | str]
    """Where names of `FrameInfo.acquisition` lie in nested mappings, ``a/b/c``; a number's also
    with what it is multiplied by."""

# Where HyperSpy keeps what `FrameInfo.acquisition` names, below an instrument; its own units.
HYPERSPY: Table = {
    "microscope": "microscope",
    "detector": "Detector/detector_type",
    "mode": "acquisition_mode",
    "beam_energy_kev": ("beam_energy", 1.0),
    "beam_current_na": ("beam_current", 1.0),
    "convergence_mrad": ("convergence_angle", 1.0),
    "magnification": ("magnification", 1.0),
    "camera_length_mm": ("camera_length", 1.0),
    "exposure_s": ("Detector/Camera/exposure", 1.0),
    "dwell_time_s": ("dwell_time", 1.0),
    "stage_x_mm": ("Stage/x", 1.0),
    "stage_y_mm": ("Stage/y", 1.0),
    "stage_z_mm": ("Stage/z", 1.0),
    "stage_tilt_alpha_deg": ("Stage/tilt_alpha", 1.0),
    "stage_tilt_beta_deg": ("Stage/tilt_beta", 1.0),
}

LARGEST = 4096  # elements of an array that counts as metadata
_NOTHING = ("", "unknown")  # what programs write that do not know


def plain_values(value: Any) -> Any:
    """The value as JSON can keep it: mappings, lists, numbers, strings.

    Arrays of more than `LARGEST` elements (thumbnails, gain references) are told by their shape.
    """
    if isinstance(value, dict):
        return {str(key): plain_values(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(inner) for inner in value]
    if isinstance(value, np.ndarray):
        if value.size > LARGEST:
            return f"array of shape {value.shape}, {value.dtype}, left out"
        return plain_values(value.tolist())
    if isinstance(value, np.generic):
        return plain_values(value.item())
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip("\0")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def finite(value: Any) -> Any:
    """Plain values with None for what JSON has no word for: NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sought(metadata: Mapping[str, Any], path: str) -> Any:
    """What lies at ``a/b/c`` in nested mappings; None where nothing does."""
    found: Any = metadata
    for name in path.split("/"):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


def acquired(metadata: Mapping[str, Any], table: Table) -> dict[str, float | str]:
    """`FrameInfo.acquisition` from a file's own metadata.

    Parameters
    ----------
    metadata
        Nested mappings.
    table
        Where its names lie in there.
    """
    values: dict[str, float | str] = {}
    for name, where in table.items():
        path, factor = where if isinstance(where, tuple) else (where, None)
        found = sought(metadata, path)
        if found is None or isinstance(found, (dict, list)) or str(found).lower() in _NOTHING:
            continue
        if factor is None:
            values[name] = str(found)
            continue
        try:
            number = float(found) * factor
        except (TypeError, ValueError):
            continue
        if np.isfinite(number):
            values[name] = number
    return values


def hyperspy_acquisition(metadata: Mapping[str, Any]) -> dict[str, float | str]:
    """`FrameInfo.acquisition` from HyperSpy's metadata, of a SEM or a TEM."""
    found: dict[str, float | str] = {}
    for instrument in ("SEM", "TEM"):
        told = sought(metadata, f"Acquisition_instrument/{instrument}")
        found |= acquired(told, HYPERSPY) if isinstance(told, dict) else {}
    date, time = (sought(metadata, f"General/{key}") for key in ("date", "time"))
    if isinstance(date, str) and date:
        found["date_time"] = f"{date}T{time}" if isinstance(time, str) and time else date
    return found


def date_time_of(seconds: float) -> dict[str, float | str]:
    """``date_time`` of seconds since 1970, where there are any."""
    try:
        began = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return {}
    return {"date_time": began.isoformat(timespec="seconds")} if seconds > 0 else {}
