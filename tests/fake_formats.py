"""Small files of formats that n2sr reads and no library in the tests writes."""

from __future__ import annotations

import struct

import numpy as np

# DigitalMicrograph's numbers of a type: of an image's pixels, and of a tag's values.
_DM_PIXELS = {"int16": 1, "float32": 2, "uint8": 6, "int32": 7, "uint16": 10, "uint32": 11}
_DM_VALUES = {"int16": 2, "float32": 6, "uint8": 8, "int32": 3, "uint16": 4, "uint32": 5}


class _Tags:
    """DigitalMicrograph's tags: groups, and values after a line of what they are."""

    def __init__(self, version):
        self._version = version
        self.word = ">I" if version == 3 else ">Q"

    def _entry(self, label, kind, body):
        size = struct.pack(">Q", len(body)) if self._version == 4 else b""
        return struct.pack(">BH", kind, len(label)) + label.encode("latin-1") + size + body

    def _value(self, label, info, data):
        numbers = b"".join(struct.pack(self.word, n) for n in (len(info), *info))
        return self._entry(label, 21, b"%%%%" + numbers + data)

    def group(self, entries):
        head = struct.pack(">BB", 0, 0) + struct.pack(self.word, len(entries))
        return head + b"".join(entries)

    def tag(self, label, known):
        if isinstance(known, dict):
            inner = [self.tag(key, value) for key, value in known.items()]
            return self._entry(label, 20, self.group(inner))
        if isinstance(known, list):
            return self._entry(label, 20, self.group([self.tag("", value) for value in known]))
        if isinstance(known, np.ndarray):
            info = 20, _DM_VALUES[known.dtype.name], known.size
            return self._value(label, info, known.astype(known.dtype.newbyteorder("<")).tobytes())
        if isinstance(known, str):
            text = known.encode("utf-16-le")
            return self._value(label, (20, 4, len(text) // 2), text)
        if isinstance(known, float):
            return self._value(label, (7,), struct.pack("<d", known))
        return self._value(label, (5,), struct.pack("<I", known))


def _calibration(known):
    scale, origin, unit = known
    return {"Origin": float(origin), "Scale": float(scale), "Units": unit}


def _dm_image(known):
    pixels = known["pixels"]
    calibrations = known.get("calibrations", [(1.0, 0.0, "")] * pixels.ndim)
    return {
        "ImageData": {
            "Calibrations": {
                "Brightness": _calibration(known.get("brightness", (1.0, 0.0, ""))),
                "Dimension": [_calibration(axis) for axis in calibrations],
            },
            "Data": pixels.ravel(),
            "DataType": known.get("type") or _DM_PIXELS[pixels.dtype.name],
            "Dimensions": list(pixels.shape[::-1]),
            "PixelDepth": pixels.dtype.itemsize,
        },
        "ImageTags": known.get("tags", {}),
        "Name": known["name"],
    }


def dm(images, *, version=4):
    """A DM3 or DM4 file, as bytes.

    `images`: mappings with ``name`` and ``pixels``, and maybe ``calibrations`` [(scale, origin,
    unit), ...] the fastest axis first, ``brightness`` (scale, origin, unit), ``type`` and ``tags``.
    """
    tags = _Tags(version)
    root = tags.group([tags.tag("ImageList", [_dm_image(known) for known in images])])
    head = struct.pack(">I", version) + struct.pack(tags.word, len(root)) + struct.pack(">I", 1)
    return head + root + bytes(8)


def ser(frames, *, pixel_size=1e-11, offset=0.0, step=1.0, unit="s", name="Time"):
    """A TIA series (n, H, W) of uint16 or float32, as bytes."""
    kind = {"uint16": 2, "float32": 7, "int16": 5}[frames.dtype.name]
    n, height, width = frames.shape
    texts = [text.encode() for text in (name, unit)]
    head = struct.pack("<hhhiiii", 0x4949, 0x0197, 0x0220, 0x4122, 0x4152, n, n)
    dimension = struct.pack("<iddi", n, 0.0, step, 0)
    dimension += b"".join(struct.pack("<i", len(text)) + text for text in texts)
    offsets_at = len(head) + 8 + 4 + len(dimension)
    first = offsets_at + 16 * n
    calibration = struct.pack("<ddi", offset, pixel_size, 0) * 2
    each = [
        calibration + struct.pack("<hii", kind, width, height) + frame[::-1].tobytes()
        for frame in frames
    ]
    starts = [first + sum(map(len, each[:i])) for i in range(n)]
    tags_at = first + sum(map(len, each))
    tags = [tags_at + 8 * i for i in range(n)]
    return b"".join(
        (
            head,
            struct.pack("<q", offsets_at),
            struct.pack("<i", 1),
            dimension,
            struct.pack(f"<{n}q", *starts),
            struct.pack(f"<{n}q", *tags),
            *each,
            *(struct.pack("<ii", 0x4152, i) for i in range(n)),
        )
    )


def mib(frames):
    """Merlin frames (n, H, W) of uint8, uint16 or uint32, as bytes."""
    n, height, width = frames.shape
    kind = {"uint8": "U08", "uint16": "U16", "uint32": "U32"}[frames.dtype.name]
    found = []
    for i in range(n):
        head = f"MQ1,{i + 1:06},00384,01,{width:04},{height:04},{kind},   1x1,01,"
        head += "2026-01-02 03:04:05.678901,0.001000,0,0,0,2.0E+0"
        big_endian = frames[i][::-1].astype(frames.dtype.newbyteorder(">"))
        found.append(head.encode().ljust(384, b"\0") + big_endian.tobytes())
    return b"".join(found)
