"""MRC files of others: volumes, extended headers and orders of axes."""

from __future__ import annotations

import base64
import struct

import mrcfile
import numpy as np
import pytest

from n2sr_deploy import open_frames, read_frame, write_frame, write_frames
from n2sr_deploy.errors import FrameError
from n2sr_deploy.formats.base import Axis
from tests.conftest import random_pixels


def test_a_volume_stays_one(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(random_pixels((3, 20, 30), "int16"))
        file.set_volume()
        file.voxel_size = (2.0, 2.0, 3.5)
        file.header.origin.z = 7.0
    with open_frames(tmp_path / "a.mrc") as opened:
        assert opened.axes == (Axis(name="z", size=3, scale=3.5, offset=7.0, unit="Å"),)
        write_frames(tmp_path / "b.mrc", opened, opened.axes)
        axes = opened.axes
    with mrcfile.open(tmp_path / "b.mrc") as file:
        assert file.is_volume()
        assert file.voxel_size.tolist() == pytest.approx((2.0, 2.0, 3.5))
        assert float(file.header.origin.z) == pytest.approx(7.0)
    with open_frames(tmp_path / "b.mrc") as opened:
        assert opened.axes == axes


def test_a_series_in_time_is_no_volume(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(random_pixels((3, 20, 30), "int16"))
        file.set_image_stack()
        file.voxel_size = (2.0, 2.0, 2.0)
    with open_frames(tmp_path / "a.mrc") as opened:
        assert opened.axes == (Axis(name="z", size=3),)
        write_frames(tmp_path / "b.mrc", opened, (Axis(name="time", size=3, unit="s"),))
    with mrcfile.open(tmp_path / "b.mrc") as file:
        assert file.is_image_stack()
        assert file.voxel_size.tolist() == (2.0, 2.0, 2.0), "its depth was 0"


def test_an_unknown_extended_header_is_kept_or_told(tmp_path, caplog):
    told = np.arange(48, dtype="u1").view("V48")
    for name, n_times in (("a", 1), ("b", 10000)):
        with mrcfile.new(tmp_path / f"{name}.mrc") as file:
            file.set_data(random_pixels((20, 30), "int16"))
            file.set_extended_header(np.repeat(told, n_times))
            file.header.exttyp = b"SERI"
    write_frame(tmp_path / "c.tif", read_frame(tmp_path / "a.mrc"))
    kept = read_frame(tmp_path / "c.tif").metadata["MRC"]
    assert kept["exttyp"] == "SERI"
    assert base64.b64decode(kept["extended_header_base64"]) == told.tobytes()
    assert "too large" not in caplog.text
    assert "MRC" not in read_frame(tmp_path / "b.mrc").metadata
    assert "'SERI' of 480000 bytes, too large to be kept" in caplog.text


def test_counts_that_mrc_must_round_are_told(tmp_path, caplog):
    write_frame(tmp_path / "a.mrc", random_pixels((20, 30), "uint8"))
    write_frame(tmp_path / "b.mrc", random_pixels((20, 30), "float64"))
    write_frame(tmp_path / "c.mrc", random_pixels((20, 30), "uint32"), tells=False)
    assert not caplog.text
    write_frame(tmp_path / "d.mrc", random_pixels((20, 30), "uint32"))
    assert "MRC has no uint32 pixels" in caplog.text


@pytest.mark.parametrize(
    ("stamp", "flags", "least", "most", "is_signed"),
    [
        (1146047817, 0, 0.0, 0.0, False),  # IMOD's stamp
        (1146047817, 1, 0.0, 0.0, True),
        (0, 0, 0.0, 100.0, True),
        (0, 0, 0.0, 255.0, False),  # which no signed byte reaches
        (0, 0, -300.0, 255.0, True),  # of other pixels than bytes
        (0, 0, 0.0, 3000.0, True),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_unsigned_bytes_of_imod_are_not_negative(
    tmp_path, stamp, flags, least, most, is_signed, order
):
    signed = random_pixels((20, 30), "int8")
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(signed)
        header = file.header.copy()
    header["dmin"], header["dmax"] = least, most
    head = bytearray(header.astype(header.dtype.newbyteorder(order)).tobytes())
    head[212:216] = b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0"
    head[152:160] = struct.pack(f"{order}ii", stamp, flags)
    (tmp_path / "a.mrc").write_bytes(bytes(head) + signed.tobytes())
    frame = read_frame(tmp_path / "a.mrc")
    assert np.array_equal(frame.pixels, signed if is_signed else signed.view("uint8"))


def test_the_order_of_axes_is_heeded(tmp_path):
    stack = random_pixels((3, 20, 30), "int16")
    for name, order in (("a", (2, 1, 3)), ("b", (3, 1, 2)), ("c", (0, 0, 0))):
        with mrcfile.new(tmp_path / f"{name}.mrc") as file:
            file.set_data(stack)
            file.voxel_size = (2.0, 4.0, 1.0)
            file.header.mapc, file.header.mapr, file.header.maps = order
    frame = read_frame(tmp_path / "a.mrc", 1)
    assert np.array_equal(frame.pixels, stack[1].T)
    assert frame.pixel_size == (4.0, 2.0)
    with pytest.raises(FrameError, match=r"order of axes \(3, 1, 2\).*reorder it first"):
        read_frame(tmp_path / "b.mrc", 1)
    assert np.array_equal(read_frame(tmp_path / "c.mrc", 1).pixels, stack[1])
