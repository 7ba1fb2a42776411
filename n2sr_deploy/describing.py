"""What `n2sr info` tells of a file: in lines for people, and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from n2sr_deploy import files, formats
from n2sr_deploy.defects import measured_part
from n2sr_deploy.errors import FileFormatError, MissingExtraError, ModelError
from n2sr_deploy.formats import mib
from n2sr_deploy.formats.metadata import sought
from n2sr_deploy.frame import Intensity
from n2sr_deploy.model import ExportedModel, is_checkpoint
from n2sr_deploy.noise import SMALLEST, choose_pattern, measure_noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from n2sr_deploy.formats.base import FrameFile
    from n2sr_deploy.frame import Frame

GROUP = "n2sr.descriptions"
"""Of entry points: under a kind of file what takes the path of one and gives `Described`."""
_UNITS = {"kev": "keV", "na": "nA", "mrad": "mrad", "mm": "mm", "s": "s", "deg": "°"}


class Described(NamedTuple):
    """What a file is."""

    lines: list[str]
    """In words; the first is of the file as a whole."""
    facts: dict[str, Any]
    """What JSON can keep; ``kind`` is ``frame``, ``checkpoint`` or ``exported model``."""


def is_frame_file(path: Path) -> bool:
    """Whether it is to be described as a frame; InputFileError where it cannot be read."""
    files.check_input(path, stores=True)
    return not is_checkpoint(path) and formats.is_frame_file(path)


def describe_network(path: Path) -> Described:
    """A checkpoint or exported model.

    Raises
    ------
    FileFormatError
        When it is neither.
    ModelError
        When it is damaged.
    MissingExtraError
        When it is a checkpoint and nothing is installed that reads them.
    """
    if is_checkpoint(path) or path.suffix == ".safetensors":
        return _described_checkpoint(path)
    try:
        model = ExportedModel.open(path)
    except ModelError as error:
        if path.suffix == ".onnx":
            raise
        mib.refuse_hdr(path)
        raise FileFormatError(
            f"{path} is no frame, checkpoint (.safetensors) or exported model (.onnx) that "
            f"n2sr reads; frames it reads from {formats.names()}"
        ) from error
    return Described([model.describe()], {"kind": "exported model", **model.metadata.to_dict()})


def describe_frame(opened: FrameFile, index: int, second: int | None = None) -> Described:
    """Frame `index` of a file, its noise, and the pattern that asks for.

    Parameters
    ----------
    opened
        The file.
    index
        Of the frame, from 0.
    second
        Another frame of the same area: the noise is then measured from the difference.

    Raises
    ------
    N2SRError
        When there is no such frame, or it cannot be read.
    """
    frame = opened.read(index)
    noise = _noise(frame, None if second is None else opened.read(second))
    told = _of_file(opened, frame)
    return Described(
        [frame.describe(), *told.lines, *noise.lines],
        {"kind": "frame", **told.facts, **noise.facts},
    )


def _of_file(opened: FrameFile, frame: Frame) -> Described:
    """What the file tells, the noise apart."""
    axes = [
        f"axis of the frames: {axis.name}, {axis.size} from {axis.offset:g} by {axis.scale:g} "
        f"{axis.unit or ''}".rstrip()
        for axis in opened.axes
    ]
    signals = [f"signals: {', '.join(opened.signals)}"] if len(opened.signals) > 1 else []
    told = ", ".join(_in_words(name, value) for name, value in frame.acquisition.items())
    known = frame.intensity
    means = known is not None and known != Intensity()
    lines = [
        *signals,
        *axes,
        *([f"a count means: {_meaning(known)}"] if known is not None and means else []),
        *([f"acquired with: {told}"] if told else []),
        *(
            [f"metadata (--metadata prints it): {', '.join(frame.metadata)}"]
            if frame.metadata
            else []
        ),
        *(f"history: {line}" for line in frame.history),
    ]
    facts = {
        "shape": frame.shape,
        "dtype": str(frame.pixels.dtype),
        "index": frame.index,
        "n_frames": frame.n_frames,
        "axes": [asdict(axis) for axis in opened.axes],
        "signal": opened.signal,
        "signals": opened.signals,
        "lowest": frame.pixels.min(),
        "highest": frame.pixels.max(),
        "mean": frame.pixels.mean(dtype=float),
        "pixel_size": frame.pixel_size,
        "unit": frame.unit,
        "origin": frame.origin,
        "axis_names": frame.axis_names,
        "intensity": None if known is None else asdict(known),
        "acquisition": dict(frame.acquisition),
        "history": frame.history,
    }
    return Described(lines, facts)


def _meaning(intensity: Intensity) -> str:
    """Of a count: ``(count - 3) * 2 e-``; no word of an offset or factor that changes nothing."""
    offset = intensity.offset
    counts = f"(count {'+' if offset < 0 else '-'} {abs(offset):g})" if offset else "count"
    is_told = intensity.scale != 1 or intensity.unit
    factor = f" * {intensity.scale:g}" if is_told else ""
    return f"{counts}{factor} {intensity.unit or ''}".rstrip()


def _in_words(name: str, value: float | str) -> str:
    """``beam_energy_kev``, 300.0 as beam energy 300 keV."""
    if not isinstance(value, float):
        return f"{name.replace('_', ' ')} {value}"
    what, _, unit = name.rpartition("_")
    if unit not in _UNITS:
        return f"{name.replace('_', ' ')} {value:g}"
    return f"{what.replace('_', ' ')} {value:g} {_UNITS[unit]}"


def _noise(frame: Frame, second: Frame | None) -> Described:
    """What the noise is, and the pattern it asks for; or why that is not told."""
    why_not = _why_no_noise(frame, second)
    if why_not is not None:
        untold = dict.fromkeys(("noise", "pattern", "stride", "margin"))
        return Described([why_not], {**untold, "remark": why_not})
    part = measured_part(frame.pixels)  # as a training takes it
    if second is not None and second.shape == frame.shape:
        second = second.cropped(*part)
    noise = measure_noise(frame.cropped(*part), second)
    pattern, margin, why = choose_pattern(noise)
    chosen = {"pattern": pattern.name, "stride": pattern.stride, "margin": margin}
    return Described(
        [f"found: {noise.describe()}", why],
        {"noise": noise.to_dict(), **chosen, "remark": why},
    )


def _why_no_noise(frame: Frame, second: Frame | None) -> str | None:
    """Why none is to be measured."""
    if frame.is_denoised:
        result = sought(frame.metadata, "n2sr/result")
        if result in ("standard error", "spread"):  # the latter of a stream's draws
            return f"the {result} of a frame that n2sr denoised"
        return "denoised by n2sr: what is left of its noise is told by n2sr report"
    part = frame.cropped(*measured_part(frame.pixels))
    if second is None and part.pixels.min() == part.pixels.max():
        return f"constant: every pixel is {part.pixels[0, 0]:g}"
    if min(part.shape) < SMALLEST:
        return f"too small to measure its noise, for which {SMALLEST} x {SMALLEST} are needed"
    return None


def _described_checkpoint(path: Path) -> Described:
    """By the package that reads checkpoints."""
    for entry_point in entry_points(group=GROUP, name="checkpoint"):
        describer: Callable[[Path], Described] = entry_point.load()
        return describer(path)
    raise MissingExtraError("reading a checkpoint", "n2sr_train", "train")
