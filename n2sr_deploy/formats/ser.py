"""TIA's SER series; what the EMI file beside them tells, by ncempy.

The series' own header is read here: ncempy allocates what a damaged one says.
"""

from __future__ import annotations

import logging
import re
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from n2sr_deploy.errors import FileFormatError, FrameError, N2SRError
from n2sr_deploy.formats.base import (
    DAMAGE,
    Axis,
    Format,
    FrameFile,
    choose_signal,
    n_places,
    only_signal,
    required,
)
from n2sr_deploy.formats.metadata import acquired, plain_values
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.formats.metadata import Table
    from n2sr_deploy.sampling import AnyArray

_log = logging.getLogger("n2sr")
_MAGIC = b"II\x97\x01"
_IMAGES = 0x4122
_BEFORE_4_7_3 = 0x0210  # of TIA: offsets of 32 bits
_TYPES = {1: "u1", 2: "<u2", 3: "<u4", 4: "i1", 5: "<i2", 6: "<i4", 7: "<f4", 8: "<f8"}
# Before a frame's pixels: offset, step and reference pixel of x, then of y; type; width, height.
_HEAD = struct.Struct("<ddiddihii")
_ACQUISITION: Table = {
    "date_time": "AcquireDate",
    "microscope": "Microscope []",
    "mode": "Mode []",
    "beam_energy_kev": ("High tension [kV]", 1.0),
    "magnification": ("Magnification [x]", 1.0),
    "camera_length_mm": ("Camera length [m]", 1e3),
    "dwell_time_s": ("DwellTimePath", 1.0),
    "stage_x_mm": ("Stage X [um]", 1e-3),
    "stage_y_mm": ("Stage Y [um]", 1e-3),
    "stage_z_mm": ("Stage Z [um]", 1e-3),
    "stage_tilt_alpha_deg": ("Stage A [deg]", 1.0),
    "stage_tilt_beta_deg": ("Stage B [deg]", 1.0),
}


def _open(path: Path, signal: str | None) -> FrameFile:
    path, signals = _series_of(path, signal)
    with path.open("rb") as file:
        axes, offsets = _header(path, file)
    told = _emi(path)
    unit, per_metre = _calibrated_in(told)
    x, y, dtype, shape = _head(path, offsets[0])

    def read(index: int) -> AnyArray:
        _, _, dtype, found = _head(path, offsets[index])
        if found != shape:
            raise FileFormatError(
                f"frame {index} of {path} is {found[0]} x {found[1]} pixels, but frame 0 is "
                f"{shape[0]} x {shape[1]}"
            )
        start = offsets[index] + _HEAD.size
        stored = np.memmap(path, dtype, mode="r", offset=start, shape=found)
        return np.array(stored[::-1])  # the last row comes first

    return FrameFile(
        path,
        shape=shape,
        dtype=np.dtype(dtype),
        pixels=read,
        axes=axes,
        info=FrameInfo(
            pixel_size=(y.scale * per_metre, x.scale * per_metre),
            unit=unit,
            origin=(y.offset * per_metre, x.offset * per_metre),
            acquisition=acquired(told, _ACQUISITION),
            metadata={"EMI": told} if told else {},
        ),
        signal=path.stem if signals else None,
        signals=signals,
    )


def emi_of(path: Path) -> Path:
    """The EMI that a SER file belongs to: ``s.emi`` of ``s_1.ser``."""
    return path.with_name(f"{path.stem.rpartition('_')[0]}.emi")


def _emi(path: Path) -> dict[str, Any]:
    """What ``sample.emi`` tells of ``sample_1.ser``; nothing where it is away or damaged."""
    beside = emi_of(path)
    if not beside.exists():
        return {}
    try:
        ser = required("ncempy.io.ser", "reading EMI files", "ncempy", "formats")
        told: dict[str, Any] = plain_values(ser.read_emi(beside))
    except (*DAMAGE, N2SRError, SyntaxError, struct.error) as error:  # ParseError is a SyntaxError
        _log.warning("%s cannot be read, so the microscope is not known: %s", beside, error)
        return {}
    return told


def _calibrated_in(told: dict[str, Any]) -> tuple[str, float]:
    """The unit of TIA's calibration, which does not name it: nm, or 1/nm of diffraction patterns.

    And how many there are in TIA's own, which are m and 1/m. The projector stands in diffraction
    for scanned images too; those in STEM that a camera took are patterns.
    """
    mode = str(told.get("Mode []") or "")
    is_pattern = "CameraNamePath" in told if "STEM" in mode else "Diffraction" in mode
    return ("1/nm", 1e-9) if is_pattern else ("nm", 1e9)


def _header(path: Path, file: BinaryIO) -> tuple[tuple[Axis, ...], tuple[int, ...]]:
    """Of the series: along which axes its frames lie, and at which byte each begins."""

    def numbers(form: str) -> tuple[Any, ...]:
        wanted = struct.Struct("<" + form)
        if wanted.size > path.stat().st_size:
            raise FileFormatError(f"{path} is truncated or damaged: it says it is larger")
        read = file.read(wanted.size)
        if len(read) < wanted.size:
            raise FileFormatError(f"{path} is truncated: it ends within its header")
        return wanted.unpack(read)

    if file.read(len(_MAGIC)) != _MAGIC:
        raise FileFormatError(f"{path} is no series of TIA: its first bytes are others")
    version, kind, _, _, n_frames = numbers("hiiii")
    offset = "i" if version == _BEFORE_4_7_3 else "q"
    offsets_at, n_axes = numbers(offset + "i")
    if kind != _IMAGES:
        raise FrameError(f"{path} holds spectra, but n2sr takes images")
    if n_frames < 1:
        raise FileFormatError(f"{path} holds no frame")
    axes = []
    for _ in range(n_axes):
        size, at, step, reference, length = numbers("iddii")
        name = numbers(f"{max(length, 0)}s")[0].decode("latin-1").strip().lower()
        (length,) = numbers("i")
        unit = numbers(f"{max(length, 0)}s")[0].decode("latin-1").strip()
        axes.append(
            Axis(
                name=name or "frame",
                size=size,
                scale=step,
                offset=at - reference * step,
                unit=unit or None,
            )
        )
    file.seek(offsets_at)
    return _frame_axes(axes, n_frames), numbers(f"{n_frames}{offset}")


def _series_of(path: Path, signal: str | None) -> tuple[Path, tuple[str, ...]]:
    """The SER file; of an EMI file, the one named of those beside it, and all their names."""
    if path.suffix.lower() != ".emi":
        only_signal(path, signal)
        return path, ()
    number = re.compile(re.escape(path.stem) + r"_(\d+)", re.IGNORECASE)
    found = {
        beside.stem: beside
        for beside in path.parent.iterdir()
        if beside.suffix.lower() == ".ser" and number.fullmatch(beside.stem)
    }
    if not found:
        raise FileFormatError(f"{path} holds no pixels, and {path.stem}_1.ser is not beside it")
    names = tuple(sorted(found, key=lambda name: int(name.rpartition("_")[2])))
    if len(names) == 1:
        only_signal(path, signal)
        return found[names[0]], ()
    return found[choose_signal(path, names, signal)], names


def _head(path: Path, offset: int) -> tuple[Axis, Axis, str, tuple[int, int]]:
    """Of the frame at `offset`: x, y, type and (H, W), checked against the file's length.

    x and y are in TIA's own unit.
    """
    with path.open("rb") as file:
        file.seek(offset)
        *calibration, number, width, height = _HEAD.unpack(file.read(_HEAD.size))
    if number not in _TYPES:
        raise FrameError(f"{path} has pixels of TIA's type {number}, but n2sr takes real numbers")
    dtype = _TYPES[number]
    n_bytes = width * height * np.dtype(dtype).itemsize
    left = path.stat().st_size - offset - _HEAD.size
    if min(width, height) < 1 or n_bytes > left:
        raise FileFormatError(
            f"{path} is truncated: a frame of {height} x {width} pixels needs {n_bytes} bytes, "
            f"but {left} are left"
        )
    x, y = (
        Axis(
            name=name,
            size=size,
            scale=step,
            offset=at - reference * step,
        )
        for name, size, (at, step, reference) in (
            ("x", width, calibration[:3]),
            ("y", height, calibration[3:]),
        )
    )
    return x, y, dtype, (height, width)


def _frame_axes(axes: list[Axis], n_frames: int) -> tuple[Axis, ...]:
    """TIA's own where the series was recorded to its end; TIA names the fastest first."""
    if n_frames == 1:
        return ()
    if n_places(tuple(axes)) != n_frames:
        return (Axis(name="frame", size=n_frames),)
    return tuple(reversed(axes))


FORMAT = Format(
    name="TIA",
    extensions=(".ser", ".emi"),
    recognises=lambda _, head: head[:4] == _MAGIC,
    open=_open,
)
