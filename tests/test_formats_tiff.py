"""TIFF files of others and of n2sr: axes, calibration and images come in and go out as they are."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from n2sr_deploy import Frame, open_frames, read_frame, write_frames
from n2sr_deploy.formats.base import Axis
from tests.conftest import random_pixels

TIME = Axis(name="time", size=2, scale=0.5, offset=1.0, unit="s")
TILT = Axis(name="tilt", size=3, scale=2.0, offset=-4.0, unit="deg")


def write_stack(path, axes, dtype="uint16", **known):
    n_frames = int(np.prod([axis.size for axis in axes]))
    pixels = random_pixels((n_frames, 20, 30), dtype)
    write_frames(path, [Frame(pixels=one, **known) for one in pixels], axes)
    return pixels


@pytest.mark.parametrize("dtype", ["uint16", "int16"])  # as ImageJ's, and as plain TIFF
@pytest.mark.parametrize("n_axes", [1, 2, 3, 4])
def test_a_stack_keeps_all_its_axes(tmp_path, dtype, n_axes):
    depth, position = Axis(name="z", size=2, scale=3.0, unit="nm"), Axis(name="position", size=2)
    axes = (TIME, TILT, depth, position)[:n_axes]
    pixels = write_stack(tmp_path / "a.tif", axes, dtype)
    with open_frames(tmp_path / "a.tif") as opened:
        assert opened.axes == axes
        assert all(np.array_equal(frame.pixels, pixels[frame.index]) for frame in opened)


def test_two_axes_are_two_for_imagej(tmp_path):
    depth = Axis(name="z", size=3, scale=2.0, offset=4.0, unit="nm")
    write_stack(tmp_path / "a.tif", (TIME, depth), pixel_size=(0.5, 0.5), unit="nm")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert (file.series[0].axes, file.series[0].shape) == ("TZYX", (2, 3, 20, 30))
        told = file.imagej_metadata
    assert (told["finterval"], told["spacing"], told["zorigin"]) == (0.5, 2.0, -2.0)


def test_time_and_depth_of_imagej_are_both_read(tmp_path):
    stack = random_pixels((2, 3, 20, 30), "uint16")
    metadata = {"axes": "TZYX", "finterval": 0.5, "spacing": 2.0, "unit": "nm", "zorigin": 1.0}
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata=metadata)
    with open_frames(tmp_path / "a.tif") as opened:
        assert opened.axes == (
            Axis(name="time", size=2, scale=0.5, unit="s"),
            Axis(name="z", size=3, scale=2.0, offset=-2.0, unit="nm"),
        )


@pytest.mark.parametrize(
    ("axis", "told"),
    [
        (Axis(name="tilt", size=2, scale=2.0, unit="deg"), {}),
        (Axis(name="dose", size=2, scale=2.0), {}),
        (Axis(name="time", size=2, scale=40.0, unit="ms"), {"finterval": 0.04}),
        (Axis(name="z", size=2, scale=2.0, unit="nm"), {"spacing": 2.0}),
        (Axis(name="z", size=2, scale=0.5, unit="µm"), {"spacing": 500.0}),
    ],
)
def test_imagej_gets_steps_in_seconds_or_the_image_s_unit_only(tmp_path, axis, told):
    write_stack(tmp_path / "a.tif", (axis,), pixel_size=(0.5, 0.5), unit="nm")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        found = file.imagej_metadata
    assert {key: found[key] for key in ("finterval", "spacing") if key in found} == told
    with open_frames(tmp_path / "a.tif") as opened:
        assert opened.axes == (axis,)


def test_the_step_goes_into_nanometres_with_the_pixel_size(tmp_path):
    axis = Axis(name="z", size=2, scale=2e-9, unit="m")
    write_stack(tmp_path / "a.tif", (axis,), pixel_size=(5e-10, 5e-10), unit="m")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.imagej_metadata["unit"] == "nm"
        assert file.imagej_metadata["spacing"] == pytest.approx(2.0)


def test_the_origin_of_imagej_is_read(tmp_path):
    metadata = {"unit": "nm", "xorigin": 10, "yorigin": -4}
    options = {"imagej": True, "resolution": (2, 4), "metadata": metadata}
    tifffile.imwrite(tmp_path / "a.tif", random_pixels((20, 30), "uint16"), **options)
    frame = read_frame(tmp_path / "a.tif")
    assert frame.pixel_size == pytest.approx((0.25, 0.5))
    assert frame.origin == pytest.approx((1.0, -5.0))
