"""What the viewer's server answers with: a frame for the page, a ZIP for whoever saves it.

A frame's answer is a JSON header, its length before it as four bytes (little endian), and then
float32 arrays: noisy, denoised and, if the header says so, spread.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from n2sr_deploy import formats
from n2sr_deploy.frame import Frame
from n2sr_deploy.stream.file_sinks import told_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray, FloatArray
    from n2sr_deploy.stream.base import LiveResult

_LARGEST_SIDE = 2048


class Shown(NamedTuple):
    """A frame in memory of the viewer's own."""

    number: int
    result: LiveResult
    copied_s: float


@dataclass(frozen=True)
class _Part:
    """Of a frame, in pixels, and how many of them become one along each axis."""

    top: int
    left: int
    height: int
    width: int
    block: int

    @classmethod
    def asked(cls, query: Mapping[str, str], shape: Shape) -> _Part:
        """As much of it as there is."""
        number = {
            name: number_of(query, name) for name in ("top", "left", "height", "width", "side")
        }
        top = min(max(number["top"], 0), shape[0] - 1)
        left = min(max(number["left"], 0), shape[1] - 1)
        height = min(number["height"] or shape[0], shape[0] - top)
        width = min(number["width"] or shape[1], shape[1] - left)
        side = min(max(number["side"] or 1024, 16), _LARGEST_SIDE)
        height, width = max(height, 1), max(width, 1)
        return cls(top, left, height, width, max(1, -(-max(height, width) // side)))

    def of(self, image: AnyArray) -> FloatArray:
        """Means over blocks of it, float32; what is left over at the end is cut off."""
        part = image[self.top : self.top + self.height, self.left : self.left + self.width]
        block = min(self.block, *part.shape)
        if block == 1:
            return np.ascontiguousarray(part, np.float32)
        rows, columns = (n // block for n in part.shape)
        blocks = part[: rows * block, : columns * block].reshape(rows, block, columns, block)
        mean: FloatArray = blocks.mean(axis=(1, 3), dtype=np.float32)
        return mean


def number_of(query: Mapping[str, str], name: str) -> int:
    """What a query says; 0 where it says none."""
    try:
        return int(query.get(name, "0"))
    except ValueError:
        return 0


def packed(shown: Shown, query: Mapping[str, str], told: Mapping[str, Any]) -> bytes:
    """A frame's answer."""
    result = shown.result
    part = _Part.asked(query, result.noisy.shape)
    images = [part.of(result.noisy.pixels), part.of(result.mean)]
    if result.std is not None:
        images.append(part.of(result.std))
    header = {
        "number": shown.number,
        "index": result.noisy.index,
        "frame": result.noisy.shape,
        "part": [part.top, part.left, part.height, part.width],
        "block": part.block,
        "shape": images[0].shape,
        "has_std": result.std is not None,
        "dtype": str(result.noisy.pixels.dtype),
        "pixel_size": result.noisy.pixel_size,
        "unit": result.noisy.unit,
        "valid_rows": result.noisy.valid_rows,
        "record": dict(result.record),
        "told": dict(told),
    }
    text = json.dumps(header, default=str).encode()
    text += b" " * (-len(text) % 4)  # the arrays begin at a multiple of four
    return b"".join(
        [struct.pack("<I", len(text)), text, *(image.astype("<f4").tobytes() for image in images)]
    )


def zipped(result: LiveResult) -> bytes:
    """All metadata, the noisy frame, and if it was denoised the result and its spread."""
    memory = io.BytesIO()
    noisy = result.noisy
    history = (f"n2sr: {dict(result.record)}",)
    images: dict[str, tuple[AnyArray, tuple[str, ...]]] = {"noisy": (noisy.pixels, ())}
    if result.std is not None:  # else there was no model yet
        images["denoised"] = result.mean, history
        images["spread"] = result.std, history
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(memory, "w") as archive:
        for name, (pixels, done) in images.items():
            frame = Frame(
                pixels=pixels,
                pixel_size=noisy.pixel_size,
                unit=noisy.unit,
                metadata=noisy.metadata,
                history=done,
            )
            path = Path(folder, f"{name}.tif")
            formats.write_frame(path, frame)
            archive.write(path, path.name)
        archive.writestr("metadata.json", json.dumps(told_of(result), indent=1, default=str))
    return memory.getvalue()
