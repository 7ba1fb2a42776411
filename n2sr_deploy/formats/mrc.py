"""MRC2014 images and image stacks, by mrcfile."""

from __future__ import annotations

import base64
import logging
import math
import textwrap
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mrcfile
import numpy as np

from n2sr_deploy import files
from n2sr_deploy.errors import FileFormatError, FrameError
from n2sr_deploy.formats import record
from n2sr_deploy.formats.base import (
    Axis,
    Format,
    FrameFile,
    Output,
    n_places,
    only_signal,
)
from n2sr_deploy.formats.metadata import plain_values
from n2sr_deploy.formats.units import nanometres
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from pathlib import Path

    from n2sr_deploy.formats.base import ByFrame
    from n2sr_deploy.sampling import AnyArray

_log = logging.getLogger("n2sr")
_ORDER, _TRANSPOSED = (1, 2, 3), (2, 1, 3)  # which axes columns, rows and sections are
_LARGEST_EXTENDED = 2**18  # bytes
_ANGSTROM = 0.1  # nm
_UNEVEN = 0.05  # of a step of tilt; stages are not exact
_LABELS, _LABEL_LENGTH = 10, 80
_OURS = b"N2SR"  # the kind of extended header that holds a record
_IMOD_AT, _IMOD, _SIGNED = 152, 1146047817, 1  # IMOD's stamp in the header, before its flags
_MOST_SIGNED, _MOST_UNSIGNED = 127, 255  # counts of a byte
# Of FEI's extended header, one row a frame: its name, ours, and the factor to our unit.
_FEI = (
    ("HT", "beam_energy_kev", 1e-3),
    ("Dwell time", "dwell_time_s", 1.0),
    ("Integration time", "exposure_s", 1.0),
    ("Magnification", "magnification", 1.0),
    ("X-Stage", "stage_x_mm", 1e3),
    ("Y-Stage", "stage_y_mm", 1e3),
    ("Z-Stage", "stage_z_mm", 1e3),
    ("Alpha tilt", "stage_tilt_alpha_deg", 1.0),
    ("Beta tilt", "stage_tilt_beta_deg", 1.0),
)


def _open(path: Path, signal: str | None) -> FrameFile:
    only_signal(path, signal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small deviations from the standard are common
        file = mrcfile.mmap(path, mode="r", permissive=True)
    try:
        return _opened(path, file)
    except BaseException:
        file.close()
        raise


def _opened(path: Path, file: Any) -> FrameFile:
    stack = _stack(path, file)
    by_frame: ByFrame = {}
    rows = _fei_rows(file, len(stack))
    info = _info(path, file, is_fei=rows is not None)
    axes = _axes(file, len(stack)) if rows is None else _tilt(rows)
    if rows is not None:
        info = _with_row(info, rows[0])
    kept = record.from_json(_own(file), info)
    if kept is not None:
        info = kept.info
        if n_places(kept.axes) == len(stack):
            axes, by_frame = kept.axes, kept.by_frame

    def info_of(index: int) -> FrameInfo:
        return info if rows is None else _with_row(info, rows[index])

    return FrameFile(
        path,
        shape=stack.shape[1:],
        dtype=stack.dtype,
        pixels=lambda index: np.array(stack[index]),
        axes=axes,
        info=info,
        info_of=info_of,
        by_frame=by_frame,
        closing=file.close,
    )


def _missing(path: Path, file: Any) -> str:
    """What is wrong with a file of which there are no pixels."""
    header = file.header
    try:
        dtype = mrcfile.utils.dtype_from_mode(header.mode)
    except ValueError:
        if not bytes(header.map).startswith(b"MAP"):
            raise  # it is no MRC file
        return f"has pixels of mode {int(header.mode)}, which n2sr cannot read; convert it"
    shape = tuple(int(n) for n in (header.nz, header.ny, header.nx))
    if min(shape) < 1:
        return f"is damaged or no MRC file: it says it has {shape} pixels"
    n_bytes = header.nbytes + int(header.nsymbt) + math.prod(shape) * dtype.itemsize
    size = path.stat().st_size
    return (
        f"is truncated or no MRC file: it says it has {shape} pixels of {dtype}, "
        f"{n_bytes} bytes in all, but has {size}"
    )


def _stack(path: Path, file: Any) -> AnyArray:
    """All frames (N, H, W), still in the file."""
    data = file.data
    if data is None:
        raise FileFormatError(f"{path} {_missing(path, file)}")
    if data.ndim not in (2, 3):
        raise FrameError(
            f"{path} has shape {data.shape}, but n2sr takes an image or a stack of images"
        )
    stack: AnyArray = data[None] if data.ndim == 2 else data
    if stack.dtype == np.int8 and _is_unsigned(file.header):
        stack = stack.view(np.uint8)
    order = tuple(int(file.header[name]) for name in ("mapc", "mapr", "maps"))
    if order == _TRANSPOSED:
        return stack.transpose(0, 2, 1)
    if sorted(order) == sorted(_ORDER) and order != _ORDER:
        raise FrameError(
            f"{path} has the order of axes {order} (MAPC, MAPR, MAPS), but n2sr takes sections "
            f"along z, {_ORDER} or {_TRANSPOSED}; reorder it first"
        )
    return stack


def _is_unsigned(header: Any) -> bool:
    """Whether bytes are unsigned, as IMOD and SerialEM wrote them before MRC2014 settled it."""
    stamp, flags = np.frombuffer(header.tobytes(), header.mode.dtype, 2, _IMOD_AT)
    if stamp == _IMOD:
        return not flags & _SIGNED
    # Only of unsigned bytes, not of other pixels that became bytes since.
    return float(header.dmin) >= 0 and _MOST_SIGNED < float(header.dmax) <= _MOST_UNSIGNED


def _axes(file: Any, n_frames: int) -> tuple[Axis, ...]:
    """Of a stack; a volume's sections lie where the header says."""
    if n_frames == 1:
        return ()
    step, offset = float(file.voxel_size.z), float(file.header.origin.z)
    if not (file.is_volume() and 0 < step < np.inf):
        return (Axis(name="z", size=n_frames),)
    offset = offset if np.isfinite(offset) else 0.0
    return (Axis(name="z", size=n_frames, scale=step, offset=offset, unit="Å"),)


def _info(path: Path, file: Any, *, is_fei: bool) -> FrameInfo:
    size = float(file.voxel_size.y), float(file.voxel_size.x)
    origin = float(file.header.origin.y), float(file.header.origin.x)
    known = min(size) > 0 and max(size) < np.inf
    labels = tuple(str(label) for label in file.get_labels())
    others, history = _split(labels)
    metadata: dict[str, Any] = {"labels": list(others)} if others else {}
    if not is_fei:
        metadata |= _extended_header(path, file)
    return FrameInfo(
        pixel_size=size if known else None,
        unit="Å" if known else None,
        origin=origin if known and np.isfinite(origin).all() else (0.0, 0.0),
        metadata=metadata,
        history=history,
    )


def _extended_header(path: Path, file: Any) -> dict[str, Any]:
    """Another program's, whose meaning n2sr does not know."""
    kind, n_bytes = bytes(file.header.exttyp), int(file.extended_header.nbytes)
    if kind == _OURS or n_bytes == 0:
        return {}
    name = kind.decode("ascii", "replace").strip("\0 ")
    if n_bytes > _LARGEST_EXTENDED:
        _log.warning(
            "%s has an extended header %r of %d bytes, too large to be kept", path, name, n_bytes
        )
        return {}
    told = base64.b64encode(file.extended_header.tobytes()).decode()
    return {"MRC": {"exttyp": name, "extended_header_base64": told}}


def _fei_rows(file: Any, n_frames: int) -> AnyArray | None:
    """FEI's extended header, a row a frame, where there is one."""
    if bytes(file.header.exttyp) not in (b"FEI1", b"FEI2"):
        return None
    try:
        rows: AnyArray = file.indexed_extended_header
    except (ValueError, TypeError, AttributeError):
        return None
    is_whole = rows is not None and rows.dtype.names and len(rows) >= n_frames
    return rows[:n_frames] if is_whole else None


def _tilt(rows: AnyArray) -> tuple[Axis, ...]:
    """The frames' axis: the tilt, where it goes on in even steps."""
    if len(rows) == 1:
        return ()
    tilts = np.asarray(rows["Alpha tilt"], np.float64)
    step = float(tilts[-1] - tilts[0]) / (len(tilts) - 1)
    off = tilts - (tilts[0] + step * np.arange(len(tilts)))
    if not (abs(step) > 0 and np.abs(off).max() <= _UNEVEN * abs(step)):
        return (Axis(name="z", size=len(tilts)),)
    return (Axis(name="tilt", size=len(tilts), scale=step, offset=float(tilts[0]), unit="deg"),)


def _with_row(info: FrameInfo, row: Any) -> FrameInfo:
    """What FEI tells of one frame, added."""
    values = {name: row[name] for name in row.dtype.names}
    acquisition = {
        ours: float(values[name]) * factor for name, ours, factor in _FEI if name in values
    }
    # A stage may stand at 0; what else is 0 was not told.
    told = {key: value for key, value in acquisition.items() if value or key.startswith("stage")}
    metadata = {**info.metadata, "FEI": plain_values(values)}
    return replace(info, acquisition={**info.acquisition, **told}, metadata=metadata)


def _own(file: Any) -> str:
    if bytes(file.header.exttyp) != _OURS:
        return ""
    return bytes(file.extended_header.tobytes()).rstrip(b"\0 ").decode("utf-8", "replace")


def _write(path: Path, output: Output) -> None:
    info = output.info
    shape = (output.n_frames, *output.shape) if output.axes else output.shape
    own = record.to_json(output).encode()
    with mrcfile.new_mmap(
        path,
        shape,
        mrc_mode=mrcfile.utils.mode_from_dtype(output.dtype),
        overwrite=True,
        extended_header=np.frombuffer(own + b" " * (-len(own) % 16), "V16"),
        exttyp=_OURS.decode(),
    ) as file:
        files.claim(path)
        stack = file.data if output.axes else file.data[None]
        seen = _Statistics()
        for index, pixels in enumerate(output.pixels):
            stack[index] = pixels
            seen.add(pixels)
        step = _z_step(output.axes)
        if output.axes and not step:
            file.set_image_stack()
        nm = nanometres(info.unit)
        if info.pixel_size is not None and nm is not None:
            height, width = (size * nm / _ANGSTROM for size in info.pixel_size)
            file.voxel_size = (width, height, step or width)  # of images readers expect cubes
            top, left = (at * nm / _ANGSTROM for at in info.origin)
            file.header.origin.x, file.header.origin.y = left, top
            if step:
                file.header.origin.z = output.axes[0].offset * step / output.axes[0].scale
        elif info.pixel_size is not None and output.tells:
            _log.warning(
                "MRC keeps lengths only: other software will not see the pixel size in %r",
                info.unit,
            )
        labels = [*info.metadata.get("labels", ()), *_wrapped(info.history)][-_LABELS:]
        for i in range(_LABELS):  # mrcfile puts one of its own, with the time
            label = labels[i] if i < len(labels) else ""
            file.header.label[i] = label.encode("ascii", "replace")[:_LABEL_LENGTH]
        file.header.nlabl = len(labels)
        seen.put_into(file.header)


def _z_step(axes: tuple[Axis, ...]) -> float:
    """From section to section of a volume, in ångström; 0 where the frames are no volume."""
    if len(axes) != 1 or axes[0].scale <= 0:
        return 0.0
    nm = nanometres(axes[0].unit)
    return 0.0 if nm is None else axes[0].scale * nm / _ANGSTROM


class _Statistics:
    """Of all pixels, a frame at a time: mrcfile's own would copy a whole stack."""

    def __init__(self) -> None:
        self._least, self._most = np.inf, -np.inf
        self._n, self._sum, self._squares = 0, 0.0, 0.0
        self._about = 0.0  # the first frame's mean, so that squares do not cancel

    def add(self, pixels: AnyArray) -> None:
        """One more frame."""
        if not self._n:
            self._about = float(pixels.mean(dtype=np.float64))
        away = pixels - np.float64(self._about)
        self._n += pixels.size
        self._sum += float(away.sum())
        self._squares += float(np.square(away).sum())
        self._least = min(self._least, float(pixels.min()))
        self._most = max(self._most, float(pixels.max()))

    def put_into(self, header: Any) -> None:
        """As the standard names them."""
        mean = self._sum / self._n
        header.dmin, header.dmax = self._least, self._most
        header.dmean = self._about + mean
        header.rms = max(self._squares / self._n - mean**2, 0.0) ** 0.5


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
    recognises=lambda _, head: head[208:212] == b"MAP ",
    open=_open,
    write=_write,
    types=("int16", "uint16", "float32"),
)
