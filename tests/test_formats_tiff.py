"""TIFF files of others and of n2sr: axes, calibration and images come in and go out as they are."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from n2sr_deploy import Frame, open_frames, read_frame, write_frame, write_frames
from n2sr_deploy.errors import FileFormatError
from n2sr_deploy.formats.base import Axis
from n2sr_deploy.frame import Intensity
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


@pytest.mark.parametrize("dtype", ["float32", "int32"])  # as ImageJ's, and as plain TIFF
@pytest.mark.parametrize(
    ("unit", "spelled"),
    [("1/Å", "1/A"), ("nm⁻¹", "nm^-1"), ("µrad", "urad"), ("目", "?")],
)
def test_units_beyond_ascii_come_back_as_they_were(tmp_path, dtype, unit, spelled):
    frame = Frame(pixels=random_pixels((20, 30), dtype), pixel_size=(0.5, 0.25), unit=unit)
    write_frame(tmp_path / "a.tif", frame)
    back = read_frame(tmp_path / "a.tif")
    assert (back.pixel_size, back.unit) == ((0.5, 0.25), unit)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].tags[65003].value == spelled


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


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int16"])
@pytest.mark.parametrize("shape", [(30, 1), (1, 30)])
def test_a_stack_of_lines_is_whole(tmp_path, dtype, shape):
    lines = random_pixels((2, *shape), dtype)
    write_frames(tmp_path / "a.tif", [Frame(pixels=line) for line in lines], (TIME,))
    with open_frames(tmp_path / "a.tif") as opened:
        assert opened.axes == (TIME,)
        assert all(np.array_equal(frame.pixels, lines[frame.index]) for frame in opened)


def test_time_and_depth_of_ome_are_both_read(tmp_path):
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "nm"}
    sizes |= {"PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 3.0, "PhysicalSizeZUnit": "nm"}
    stack = random_pixels((2, 3, 20, 30), "uint16")
    metadata = {"axes": "TZYX", "TimeIncrement": 250.0, "TimeIncrementUnit": "ms", **sizes}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata=metadata)
    with open_frames(tmp_path / "a.ome.tif") as opened:
        assert opened.axes == (
            Axis(name="time", size=2, scale=250.0, unit="ms"),
            Axis(name="z", size=3, scale=3.0, unit="nm"),
        )


@pytest.mark.parametrize("unit", ["pixel", "reference frame"])
def test_what_ome_counts_in_pixels_has_no_size(tmp_path, unit):
    told = {"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    told |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", random_pixels((20, 30), "uint16"), metadata=told)
    frame = read_frame(tmp_path / "a.ome.tif")
    assert (frame.pixel_size, frame.unit) == (None, None)


def test_ome_s_sides_may_have_units_of_their_own(tmp_path):
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 2.5}
    for unit, size in (("Å", (pytest.approx(0.25), 0.5)), ("pixel", None)):
        told = {**sizes, "PhysicalSizeYUnit": unit}
        pixels = random_pixels((20, 30), "uint16")
        tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata=told)
        frame = read_frame(tmp_path / "a.ome.tif")
        assert (frame.pixel_size, frame.unit) == (size, size and "nm")


@pytest.mark.parametrize("unit", ["pixel", "px", "inch", ""])
def test_what_imagej_counts_in_pixels_or_inches_has_no_size(tmp_path, unit):
    options = {"imagej": True, "resolution": (2, 4), "metadata": {"unit": unit}}
    tifffile.imwrite(tmp_path / "a.tif", random_pixels((20, 30), "uint16"), **options)
    frame = read_frame(tmp_path / "a.tif")
    assert (frame.pixel_size, frame.unit) == (None, None)


@pytest.mark.parametrize(("per_centimetre", "size"), [(300 / 2.54, None), (2e6, (5e-7, 5e-7))])
def test_a_printer_s_resolution_is_no_pixel_size(tmp_path, per_centimetre, size):
    tifffile.imwrite(
        tmp_path / "a.tif",
        random_pixels((20, 30), "uint16"),
        resolution=(per_centimetre, per_centimetre),
        resolutionunit="CENTIMETER",
    )
    frame = read_frame(tmp_path / "a.tif")
    assert frame.pixel_size == (size and pytest.approx(size))
    assert frame.unit == (size and "cm")


def test_signed_counts_of_imagej_are_known_as_such(tmp_path):
    pixels = random_pixels((20, 30), "uint16")
    told = {"axes": "YX", "cf": 0, "c0": -32768.0, "c1": 1.0, "vunit": "Gray Value"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata=told)
    frame = read_frame(tmp_path / "a.tif")
    assert np.array_equal(frame.pixels, pixels)
    assert frame.intensity == Intensity(scale=1.0, offset=32768.0, unit="Gray Value")


def test_a_negative_is_told(tmp_path, caplog):
    pixels = random_pixels((20, 30), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    assert np.array_equal(read_frame(tmp_path / "a.tif").pixels, pixels)
    assert "shows high counts dark (WhiteIsZero)" in caplog.text


def test_the_origin_of_imagej_is_read(tmp_path):
    metadata = {"unit": "nm", "xorigin": 10, "yorigin": -4}
    options = {"imagej": True, "resolution": (2, 4), "metadata": metadata}
    tifffile.imwrite(tmp_path / "a.tif", random_pixels((20, 30), "uint16"), **options)
    frame = read_frame(tmp_path / "a.tif")
    assert frame.pixel_size == pytest.approx((0.25, 0.5))
    assert frame.origin == pytest.approx((1.0, -5.0))


def test_images_of_other_sizes_are_signals(tmp_path):
    small, large = random_pixels((64, 64), "uint16"), random_pixels((2, 96, 96), "uint16")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for pixels in (small, *large):
            file.write(pixels, photometric="minisblack", metadata=None)
    with pytest.raises(FileFormatError, match=r"holds 2 signals.*--signal: 'image 0', 'image 1'"):
        read_frame(tmp_path / "a.tif")
    assert np.array_equal(read_frame(tmp_path / "a.tif", signal="image 0").pixels, small)
    assert np.array_equal(read_frame(tmp_path / "a.tif", signal="0").pixels, small)
    with open_frames(tmp_path / "a.tif", "image 1") as opened:
        assert (opened.signal, opened.signals) == ("image 1", ("image 0", "image 1"))
        assert np.array_equal([frame.pixels for frame in opened], large)


def test_images_of_ome_are_signals_with_their_own_pixel_sizes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for size in (1, 2):
            told = {"Name": "HAADF", "PhysicalSizeX": size, "PhysicalSizeXUnit": "nm"}
            file.write(random_pixels((20, 30 + size), "uint16"), metadata=told)
    first, second = (read_frame(tmp_path / "a.ome.tif", signal=n) for n in ("HAADF", "HAADF (2)"))
    assert (first.shape, first.pixel_size) == ((20, 31), (1.0, 1.0))
    assert (second.shape, second.pixel_size) == ((20, 32), (2.0, 2.0))


def test_a_thumbnail_is_no_signal(tmp_path):
    pixels = random_pixels((64, 64), "uint16")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, metadata=None)
        file.write(pixels[::4, ::4], metadata=None, subfiletype=1)
        file.write(np.zeros((9, 9, 3), np.uint8), photometric="rgb", metadata=None)
    assert np.array_equal(read_frame(tmp_path / "a.tif").pixels, pixels)
    with pytest.raises(FileFormatError, match="no signals to choose from"):
        read_frame(tmp_path / "a.tif", signal="image 1")


@pytest.mark.parametrize("other", ["../secret.tif", "beside.tif", "missing.tif"])
def test_ome_does_not_lead_to_other_files(tmp_path, caplog, other):
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (tmp_path / "secret.tif", folder / "beside.tif"):
        tifffile.imwrite(path, np.full((20, 30), 7, np.uint16), metadata=None)
    mine, its = "urn:uuid:1", "urn:uuid:2"
    each = "".join(
        f'<TiffData FirstT="{i}" IFD="0" PlaneCount="1"><UUID FileName="{name}">{uuid}</UUID>'
        "</TiffData>"
        for i, (name, uuid) in enumerate((("a.ome.tif", mine), (other, its)))
    )
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="30" '
        'SizeY="20" SizeC="1" SizeZ="1" SizeT="2" PhysicalSizeX="2" PhysicalSizeXUnit="nm">'
        f'<Channel ID="Channel:0" SamplesPerPixel="1"/>{each}</Pixels></Image></OME>'
    )
    pixels = random_pixels((20, 30), "uint16")
    tifffile.imwrite(folder / "a.ome.tif", pixels, description=xml, metadata=None)
    with open_frames(folder / "a.ome.tif") as opened:
        assert len(opened) == 1
        assert np.array_equal(opened.read(0).pixels, pixels)
        assert opened.info.pixel_size == (2.0, 2.0)
    assert "names other files" in caplog.text
