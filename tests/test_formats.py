"""Frames come back from files as they went in; what is no frame is refused with a sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tracemalloc
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest
import tifffile

import n2sr_deploy
import n2sr_train
from n2sr_deploy import Frame, files, measure_noise, read_frame, repair, write_frame
from n2sr_deploy.errors import (
    FileFormatError,
    FrameError,
    InputFileError,
    N2SRError,
    OutputError,
    SettingError,
)
from n2sr_deploy.formats import check_writable, open_frames, write_frames
from n2sr_deploy.formats.base import Axis
from n2sr_deploy.learning import LearnOptions
from n2sr_train import learn_checkpoint
from tests.conftest import REPOSITORY, SHARED_DATA, random_pixels

if TYPE_CHECKING:
    from pathlib import Path


def frame_of(dtype="float32", **known):
    return Frame(pixels=random_pixels((20, 30), dtype), **known)


LONG_LINE = " ".join(f"word{i}" for i in range(40))  # longer than three labels of MRC


@pytest.mark.parametrize("suffix", [".tif", ".mrc"])
@pytest.mark.parametrize("unit", ["nm", "Å", "µm", "pm", "m"])
def test_pixel_size_survives(tmp_path, suffix, unit):
    frame = frame_of(pixel_size=(0.0127, 0.0254), unit=unit)
    write_frame(tmp_path / f"a{suffix}", frame)
    back = read_frame(tmp_path / f"a{suffix}")
    in_nm = {"nm": 1, "Å": 0.1, "µm": 1e3, "pm": 1e-3, "m": 1e9}
    assert back.pixel_size is not None
    found = [size * in_nm[back.unit] for size in back.pixel_size]
    assert found == pytest.approx([0.0127 * in_nm[unit], 0.0254 * in_nm[unit]], rel=1e-5)
    assert np.array_equal(back.pixels, frame.pixels)


@pytest.mark.parametrize("spelled", ["microns", "Micrometers", "micrometre"])
def test_lengths_spelled_out_are_known(tmp_path, spelled):
    write_frame(tmp_path / "a.mrc", frame_of(pixel_size=(0.25, 0.5), unit=spelled))
    with mrcfile.open(tmp_path / "a.mrc") as file:
        assert file.voxel_size.tolist()[:2] == (5000.0, 2500.0)


@pytest.mark.parametrize("suffix", [".tif", ".mrc", ".npy"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32"])
def test_pixels_survive(tmp_path, suffix, dtype):
    pixels = random_pixels((20, 30), dtype)
    if np.dtype(dtype).itemsize == 4:
        pixels = (pixels.astype(np.float64) // 2**10).astype(dtype)  # exact in float32
    write_frame(tmp_path / f"a{suffix}", Frame(pixels=pixels))
    back = read_frame(tmp_path / f"a{suffix}")
    assert np.array_equal(back.pixels, pixels)
    assert back.pixel_size is None


def test_history_survives_in_tiff_and_mrc(tmp_path):
    frame = frame_of(history=("dark subtracted", LONG_LINE))
    for name in ("a.tif", "a.mrc"):
        write_frame(tmp_path / name, frame)
        back = read_frame(tmp_path / name)
        assert back.history == ("dark subtracted", LONG_LINE)


def test_big_endian_and_unusual_types_are_widened_without_loss():
    for dtype, kept in (
        (">u2", "uint16"),
        (">f4", "float32"),
        ("bool", "uint8"),
        ("int8", "int16"),
        ("float16", "float32"),
        ("int64", "float64"),
        ("uint64", "float64"),
    ):
        pixels = np.arange(600).reshape(20, 30).astype(dtype)
        frame = Frame(pixels=pixels)
        assert frame.pixels.dtype == np.dtype(kept)
        assert np.array_equal(frame.pixels, pixels)


@pytest.mark.parametrize("kind", ["imagej", "plain", "ome", "compressed", "bigtiff"])
def test_one_frame_of_a_tiff_stack(tmp_path, kind):
    stack = random_pixels((5, 20, 30), "uint16")
    options = {
        "imagej": {
            "imagej": True,
            "metadata": {"axes": "TYX", "unit": "nm"},
            "resolution": (50, 25),
        },
        "plain": {"photometric": "minisblack"},
        "ome": {
            "ome": True,
            "metadata": {"axes": "TYX", "PhysicalSizeX": 0.02, "PhysicalSizeXUnit": "nm"},
        },
        "compressed": {"compression": "zlib", "photometric": "minisblack"},
        "bigtiff": {"bigtiff": True, "photometric": "minisblack"},
    }[kind]
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(path, stack, **options)
    for index in (0, 3):
        frame = read_frame(path, index)
        assert np.array_equal(frame.pixels, stack[index])
        assert (frame.index, frame.n_frames) == (index, 5)
    if kind == "imagej":
        assert frame.pixel_size == pytest.approx((0.04, 0.02))
        assert frame.unit == "nm"
    if kind == "ome":
        assert frame.pixel_size == pytest.approx((0.02, 0.02))
    with pytest.raises(
        FileFormatError, match=r"holds 5 frames.*Choose it with index=0 to index=4$"
    ):
        read_frame(path)
    with pytest.raises(FileFormatError, match="has no frame 5"):
        read_frame(path, 5)


@pytest.mark.parametrize("ending", ["tif", "mrc", "npy"])
@pytest.mark.parametrize("kind", [np.asarray, list, iter])
def test_arrays_are_written_as_frames_are(tmp_path, ending, kind):
    """It ended with: 'numpy.ndarray' object has no attribute 'pixels'."""
    stack = np.arange(3 * 20 * 30, dtype=np.float32).reshape(3, 20, 30)
    path = tmp_path / f"stack.{ending}"
    with pytest.raises(OutputError, match="is for 1 frame, but more came; give axes"):
        write_frames(path, kind(stack))
    write_frames(path, kind(stack), (Axis(name="time", size=3),))
    with open_frames(path) as opened:
        assert np.array_equal([frame.pixels for frame in opened], stack)
    with pytest.raises(FrameError, match="frame is complex"):
        write_frames(tmp_path / "x.mrc", kind(stack * 1j))


def test_one_grey_channel_is_no_axis_of_frames(tmp_path):
    """(H, W, 1) was read as H frames of W x 1."""
    pixels = np.arange(2 * 20 * 30).reshape(2, 20, 30, 1)
    for shape, n_frames in (((20, 30, 1), 1), ((2, 20, 30, 1), 2)):
        np.save(tmp_path / "grey.npy", pixels.ravel()[: np.prod(shape)].reshape(shape))
        with open_frames(tmp_path / "grey.npy") as opened:
            assert (len(opened), opened.shape) == (n_frames, (20, 30))
            assert np.array_equal(opened.read(n_frames - 1).pixels, pixels[n_frames - 1, ..., 0])


@pytest.mark.parametrize("suffix", [".mrc", ".npy"])
def test_one_frame_of_other_stacks(tmp_path, suffix):
    stack = random_pixels((5, 20, 30), "int16")
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, stack)
    else:
        with mrcfile.new(path) as file:
            file.set_data(stack)
    assert np.array_equal(read_frame(path, 4).pixels, stack[4])
    with pytest.raises(FileFormatError, match="holds 5 frames"):
        read_frame(path)
    with pytest.raises(FileFormatError, match="no frame -1"):
        read_frame(path, -1)


def test_one_frame_of_a_large_array_in_fortran_s_order_is_not_all_of_it(tmp_path):
    pixels = random_pixels((4, 8, 128, 128), "uint16")
    np.save(tmp_path / "a.npy", np.asfortranarray(pixels))
    tracemalloc.start()
    try:
        with open_frames(tmp_path / "a.npy") as opened:
            frame = opened.read(9)
        assert tracemalloc.get_traced_memory()[1] < pixels.nbytes // 4
    finally:
        tracemalloc.stop()
    assert np.array_equal(frame.pixels, pixels[1, 1])


def test_a_file_is_known_by_its_content_not_its_name(tmp_path):
    write_frame(tmp_path / "a.tif", frame_of())
    renamed = (tmp_path / "a.tif").rename(tmp_path / "a.dat")
    assert read_frame(renamed).shape == (20, 30)


def test_the_shipped_pair_reads_with_its_pixel_size():
    frame = read_frame(REPOSITORY / "examples" / "nist_haadf_pair_512.mrc", 1)
    assert frame.shape == (512, 512)
    assert frame.pixel_size == pytest.approx((7.88, 7.88))
    assert frame.unit == "Å"


def test_not_an_image(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileFormatError, match="not an image n2sr reads; it reads TIFF"):
        read_frame(tmp_path / "notes.txt")
    with pytest.raises(InputFileError, match="does not exist"):
        read_frame(tmp_path / "missing.tif")
    with pytest.raises(InputFileError, match="is a folder"):
        read_frame(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((20, 30, 3), np.uint8), "colour image"),
        (np.zeros((20, 30), np.complex64), "complex"),
        (np.zeros((0, 30)), "empty"),
        (np.zeros((2, 2, 20, 30)), r"but n2sr takes one frame \(H, W\). Choose one of its frames"),
        (np.full((20, 30), np.nan), "nothing but NaN or infinite pixels"),
        (
            np.where(np.eye(20, 30) == 1, np.inf, 0),
            "20 NaN or infinite pixels of 600; replace each",
        ),
        (
            np.pad(np.eye(20, 30), ((2, 0), (1, 3)), constant_values=np.nan),
            "crop it to rows 2 to 21 and columns 1 to 30, which are whole, first",
        ),
        (np.array([["a", "b"]]), "takes numbers"),
    ],
)
def test_what_is_no_frame(pixels, message):
    with pytest.raises(FrameError, match=message):
        Frame(pixels=pixels)


def test_colour_and_complex_files(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    with pytest.raises(FrameError, match=r"rgb.tif is a colour image"):
        read_frame(tmp_path / "rgb.tif")
    np.save(tmp_path / "c.npy", np.zeros((20, 30), np.complex64))
    with pytest.raises(FrameError, match="complex"):
        read_frame(tmp_path / "c.npy")
    np.save(tmp_path / "o.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(FileFormatError, match="Python objects"):
        read_frame(tmp_path / "o.npy")


@pytest.mark.parametrize("size", [(0.0, 1.0), (-1.0, 1.0), (np.inf, 1.0), (np.nan, 1.0)])
def test_a_pixel_size_that_makes_no_sense_is_taken_as_unknown(size, caplog):
    frame = frame_of(pixel_size=size, unit="nm")
    assert frame.pixel_size is None
    assert "makes no sense" in caplog.text


def test_an_ome_file_with_a_senseless_or_damaged_header(tmp_path):
    pixels = random_pixels((20, 30), "uint16")
    sizes = {"PhysicalSizeX": 0, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(tmp_path / "zero.ome.tif", pixels, ome=True, metadata=sizes)
    assert read_frame(tmp_path / "zero.ome.tif").pixel_size is None
    sizes = {
        "PhysicalSizeX": 2.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.003,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(tmp_path / "two.ome.tif", pixels, ome=True, metadata=sizes)
    assert read_frame(tmp_path / "two.ome.tif").pixel_size == pytest.approx((3.0, 2.0))
    broken = (tmp_path / "two.ome.tif").read_bytes().replace(b"<Pixels", b"<Pix<ls")
    (tmp_path / "broken.ome.tif").write_bytes(broken)
    with contextlib.suppress(FileFormatError):  # tifffile may read on as plain TIFF
        assert read_frame(tmp_path / "broken.ome.tif").shape == (20, 30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])  # ImageJ's and plain TIFF
@pytest.mark.parametrize("side", [1e-12, 1e30])
def test_a_pixel_size_that_no_ratio_can_tell_is_kept_all_the_same(tmp_path, dtype, side):
    frame = frame_of(dtype, pixel_size=(side, 2 * side), unit="nm")
    write_frame(tmp_path / "a.tif", frame)
    assert read_frame(tmp_path / "a.tif").pixel_size == (side, 2 * side)


def test_a_frame_the_format_cannot_hold_is_refused(tmp_path, monkeypatch):
    def too_much(path, *_, **__):
        path.write_bytes(b"half of it")
        raise ValueError("too much")

    monkeypatch.setattr(tifffile, "imwrite", too_much)
    frame = frame_of()
    with pytest.raises(OutputError, match="cannot hold this frame as TIFF"):
        write_frame(tmp_path / "a.tif", frame)
    assert list(tmp_path.iterdir()) == []


def test_a_compression_that_needs_another_package_says_so(tmp_path, monkeypatch):
    def no_codec(*_, **__):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    tifffile.imwrite(tmp_path / "a.tif", random_pixels((20, 30), "uint8"))
    monkeypatch.setattr("n2sr_deploy.formats.tiff._pixels", no_codec)
    with pytest.raises(FileFormatError, match="pip install imagecodecs"):
        read_frame(tmp_path / "a.tif")


def test_arrays_are_taken_wherever_frames_are(tmp_path, noisy):
    """A camera gives arrays; each ended with an AttributeError."""
    pixels = noisy.pixels
    assert np.array_equal(repair(pixels).frame.pixels, repair(noisy).frame.pixels)
    assert measure_noise(pixels) == measure_noise(noisy)
    second = noisy.pixels[::-1]
    assert measure_noise(pixels, second) == measure_noise(noisy, Frame(pixels=second))
    write_frame(tmp_path / "a.tif", pixels)
    assert np.array_equal(read_frame(tmp_path / "a.tif").pixels, pixels)
    checkpoint = learn_checkpoint(pixels, LearnOptions(preset="fast", steps=1))
    assert checkpoint.summary["frame_shape"] == list(pixels.shape)
    with pytest.raises(FrameError, match=r"shape \(3, 40, 40\)"):
        repair(np.zeros((3, 40, 40)))


def test_masked_pixels_are_refused():
    """The mask was left out without a word."""
    masked = np.ma.masked_greater(np.arange(1600.0).reshape(40, 40), 1500)
    with pytest.raises(FrameError, match="frame has 99 masked pixels of 1600; replace each"):
        Frame(pixels=masked)
    assert Frame(pixels=np.ma.array(np.eye(40))).shape == (40, 40)


def test_public_names_are_listed():
    for package in (n2sr_deploy, n2sr_train):
        assert set(package.__all__) <= set(dir(package))


def test_constant_frame_has_no_statistics():
    for value in (0.0, 7.0, 1e9):
        with pytest.raises(FrameError, match="constant"):
            Frame(pixels=np.full((40, 40), value)).mean_and_std()


@pytest.mark.parametrize("scale", [1e38, 1e160, 1e300])
def test_values_too_large_for_the_result_are_refused(scale):
    pixels = np.random.default_rng(0).normal(size=(40, 40)) * scale
    with pytest.raises(FrameError, match="too large for float32"):
        Frame(pixels=pixels).mean_and_std()


def test_values_beyond_float32_are_refused_before_anything_overflows():
    """NumPy warned nine times before the error."""
    with pytest.raises(FrameError, match=r"too large for float32 results \(up to 1e\+202\)"):
        Frame(pixels=np.array([[1.0, -1e202]]))


def test_float32_frames_far_from_zero_have_exact_statistics():
    pixels = (1.7e7 + 200 * np.random.default_rng(0).normal(size=(64, 64))).astype(np.float32)
    exact = pixels.astype(np.float64)
    mean, std = Frame(pixels=pixels).mean_and_std()
    assert (mean, std) == pytest.approx((exact.mean(), exact.std()), rel=1e-12)


def test_variation_that_float32_cannot_show_is_refused():
    pixels = 1e9 + np.random.default_rng(0).normal(size=(40, 40))
    with pytest.raises(FrameError, match=r"varies by .* too little for float32.* subtract 1e\+09"):
        Frame(pixels=pixels).mean_and_std()


def test_statistics_of_large_counts_keep_their_digits():
    pixels = random_pixels((50, 70), "uint32")
    mean, std = Frame(pixels=pixels).mean_and_std()
    assert mean == pytest.approx(pixels.mean(dtype=np.float64), rel=1e-12)
    assert std == pytest.approx(pixels.astype(np.float64).std(), rel=1e-10)


def test_an_existing_file_stays_unless_it_may_be_overwritten(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"exists already; choose another name"):
        write_frame(path, frame_of())
    assert path.read_bytes() == b"precious"
    write_frame(path, frame_of(), overwrite=True)
    assert read_frame(path).shape == (20, 30)


def test_unwritable_places(tmp_path):
    with pytest.raises(OutputError, match=r"does not exist; create it first"):
        write_frame(tmp_path / "no" / "a.tif", frame_of())
    with pytest.raises(OutputError, match="does not write; it writes TIFF"):
        write_frame(tmp_path / "a.jpg", frame_of())
    (tmp_path / "b.tif").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_frame(tmp_path / "b.tif", frame_of(), overwrite=True)


def test_names_that_the_system_refuses_are_told(tmp_path):
    circle = tmp_path / "circle.tif"
    circle.symlink_to(circle)
    for path in (tmp_path / ("a" * 300 + ".tif"), circle, tmp_path / "a\0b.tif"):
        with pytest.raises(InputFileError, match=r"cannot be used: .*; name another file"):
            read_frame(path)
        with pytest.raises(OutputError, match=r"cannot be used: .*; name another file"):
            check_writable(path, overwrite=True)
        with pytest.raises(InputFileError, match="cannot be used"):
            check_writable(tmp_path / "b.tif", overwrite=True, inputs=[path])


def test_a_link_that_leads_nowhere_is_told_before_the_work(tmp_path):
    (tmp_path / "a.tif").symlink_to(tmp_path / "gone.tif")
    with pytest.raises(OutputError, match="exists already"):
        check_writable(tmp_path / "a.tif", overwrite=False)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def disk_is_full(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    for failure, seen in ((disk_is_full, OutputError), (lambda _: 1 / 0, ZeroDivisionError)):
        with pytest.raises(seen), files.replacing(path, overwrite=True) as temporary:
            failure(temporary)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".mrc", ".hspy", ".emd"])
def test_where_the_disk_is_full_is_found_out_before_a_library_crashes(
    tmp_path, monkeypatch, ending
):
    """A mapped file ended the program with a bus error, HDF5 with a segmentation fault."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("n2sr_deploy.files.os.posix_fallocate", full, raising=False)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**24)
    monkeypatch.setattr("n2sr_deploy.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="No space left on device; no part of it is left"):
        write_frame(tmp_path / f"a{ending}", frame_of())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no such call")
@pytest.mark.parametrize("free", [2**24, 2**26])
def test_a_file_system_that_cannot_claim_room_is_asked_for_it(tmp_path, monkeypatch, free):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("n2sr_deploy.files.os.posix_fallocate", unknown)
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr("n2sr_deploy.files.shutil.disk_usage", lambda _: usage)
    if free > 2**24:
        write_frame(tmp_path / "a.mrc", frame_of())
    else:
        with pytest.raises(OutputError, match="No space left on device"):
            write_frame(tmp_path / "a.mrc", frame_of())


def test_a_format_may_be_told_not_to_warn(tmp_path, caplog):
    frame = frame_of(pixel_size=(0.1, 0.1), unit="nm")
    write_frame(tmp_path / "a.npy", frame)
    assert "keeps no pixel size" in caplog.text
    caplog.clear()
    write_frame(tmp_path / "b.npy", frame, tells=False)
    assert not caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_frame(tmp_path):
    """Opening it waited for ever."""
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(InputFileError, match="no regular file"):
        read_frame(tmp_path / "a.tif")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, links):
    """On file systems without hard links, as of many shares and sticks, it was."""

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr("n2sr_deploy.files.os.link", no_links)
    path = tmp_path / "a.bin"

    def write_while_another_does():
        with files.replacing(path, overwrite=False) as temporary:
            temporary.write_bytes(b"mine")
            path.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="exists already"):
        write_while_another_does()
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    with files.replacing(path, overwrite=False) as temporary:
        temporary.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"


def test_a_name_that_was_claimed_is_given_back_where_renaming_fails(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("n2sr_deploy.files.os.link", refused)
    monkeypatch.setattr("n2sr_deploy.files.Path.replace", refused)

    def write():
        with files.replacing(tmp_path / "a.bin", overwrite=False) as temporary:
            temporary.write_bytes(b"mine")

    with pytest.raises(OutputError, match="no part of it is left"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the measuring data are not here")
def test_awkward_real_files_read_or_are_refused():
    n_read = 0
    for path in sorted(SHARED_DATA.rglob("*")):
        if path.is_file():
            with contextlib.suppress(N2SRError):  # any other error fails the test
                n_read += read_frame(path, 0).pixels.size > 0
    assert n_read >= 4


def test_an_error_is_not_its_own_cause(tmp_path):
    path = tmp_path / "cut.npy"
    path.write_bytes(b"no frame")
    with pytest.raises(FileFormatError) as raised:
        open_frames(path)
    assert raised.value.__cause__ is not raised.value


def test_the_programs_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_frame("noisy.tif", random_pixels((64, 64), "uint16"))
    page = (REPOSITORY / "docs" / "formats.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "formats.md", "exec"), {})
    with open_frames("series.mrc") as opened:
        assert (len(opened), opened.axes[0].scale) == (3, 0.5)


def test_frames_that_no_axis_has_a_place_for_are_told(tmp_path):
    frames = [Frame(pixels=random_pixels((64, 64), "uint16", seed)) for seed in range(2)]
    with pytest.raises(OutputError, match="is for 1 frame, but more came; give axes that have a"):
        write_frames(tmp_path / "two.tif", frames)


def test_one_number_is_no_pixel_size():
    with pytest.raises(SettingError, match=r"pixel_size is 0.1, but must be two numbers"):
        Frame(pixels=np.eye(40), pixel_size=0.1, unit="nm")
