"""What differs from frame to frame comes through a stack; a record that lies is left aside."""

from __future__ import annotations

import json

import mrcfile
import numpy as np
import pytest
import tifffile

from n2sr_deploy import Frame, open_frames, read_frame, write_frame, write_frames
from n2sr_deploy.cli import main
from n2sr_deploy.formats import record
from n2sr_deploy.formats.base import Axis
from tests.conftest import random_pixels

SUFFIXES = [".tif", ".mrc", ".emd", ".hspy", ".zspy"]
TILTS = [-10.0, 0.0, 10.0]
TILT = Axis(name="tilt", size=3, scale=10.0, offset=-10.0, unit="deg")


@pytest.fixture
def tilt_series(tmp_path):
    """As FEI's microscopes write one."""
    return fei(tmp_path / "series.mrc", TILTS)


def fei(path, tilts, shape=(20, 30)):
    rows = np.zeros(len(tilts), mrcfile.dtypes.get_ext_header_dtype(b"FEI1"))
    rows["Metadata size"], rows["HT"], rows["Alpha tilt"] = rows.itemsize, 2e5, tilts
    with mrcfile.new(path) as file:
        file.set_extended_header(rows)
        file.header.exttyp = b"FEI1"
        file.set_data(random_pixels((len(tilts), *shape), "int16"))
    return path


def tilts_of(path):
    with open_frames(path) as opened:
        assert all(frame.acquisition["beam_energy_kev"] == 200.0 for frame in opened)
        return [frame.acquisition.get("stage_tilt_alpha_deg") for frame in opened]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_frame_keeps_its_own_tilt(tilt_series, tmp_path, suffix):
    with open_frames(tilt_series) as opened:
        assert opened.axes == (TILT,)
        write_frames(tmp_path / f"a{suffix}", opened, opened.axes)
    with open_frames(tmp_path / f"a{suffix}") as opened:
        assert opened.axes == (TILT,)
        write_frames(tmp_path / f"b{suffix}", list(opened), opened.axes)  # and once more
    for name in "ab":
        assert tilts_of(tmp_path / f"{name}{suffix}") == TILTS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_denoised_tilt_series_keeps_its_tilts(tmp_path, model_path, suffix):
    noisy = fei(tmp_path / "noisy.mrc", [-10.0, 0.0, 20.0], (64, 64))
    out, std = tmp_path / f"out{suffix}", tmp_path / f"std{suffix}"
    command = ["denoise", noisy, "-m", model_path, "--stack", "-o", out, "--std", std]
    main([str(part) for part in command], standalone_mode=False)
    assert tilts_of(out) == tilts_of(std) == [-10.0, 0.0, 20.0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_frames_and_missing_values(tmp_path, suffix):
    frames = [Frame(pixels=random_pixels((4, 6), "uint16"), acquisition={"beam_energy_kev": 200.0})]
    frames = [frames[0]] * 3
    told = [{"beam_energy_kev": 200.0, "exposure_s": i / 3} for i in range(3)]
    told[1] = {"beam_energy_kev": 200.0, "date_time": "x"}
    write_frames(tmp_path / f"a{suffix}", iter(frames), (TILT,), acquisitions=told)
    with open_frames(tmp_path / f"a{suffix}") as opened:
        assert [frame.acquisition for frame in opened] == told
    pixels = Frame(pixels=random_pixels((4, 6), "uint16"))
    n = 1000 if suffix != ".zspy" else 20  # each frame is a file
    told = [{"exposure_s": i / 3, "stage_x_mm": i / 7, "date_time": f"{i:030}"} for i in range(n)]
    axis = Axis(name="time", size=n)
    write_frames(tmp_path / f"b{suffix}", iter([pixels] * n), (axis,), acquisitions=told)
    with open_frames(tmp_path / f"b{suffix}") as opened:
        assert list(opened.acquisitions()) == told


def test_one_frame_of_a_series_has_its_own_tilt_only(tilt_series, tmp_path):
    write_frame(tmp_path / "a.tif", read_frame(tilt_series, 2))
    assert read_frame(tmp_path / "a.tif").acquisition["stage_tilt_alpha_deg"] == 10.0


def test_uneven_tilts_are_no_axis(tmp_path):
    with open_frames(fei(tmp_path / "a.mrc", [-10.0, 0.0, 20.0])) as opened:
        assert opened.axes == (Axis(name="z", size=3),)


_WRONG = [
    ("metadata", 5),
    ("acquisition", [1]),
    ("acquisition", {"mode": [1]}),
    ("pixel_size", [1, 2, 3]),
    ("pixel_size", {"a": 1, "b": 2}),
    ("pixel_size", "ab"),
    ("origin", [1]),
    ("origin", None),
    ("unit", 5),
    ("history", "text"),
    ("history", [5]),
    ("intensity", [1]),
    ("intensity", {"scale": "x", "offset": 0, "unit": None}),
    ("axes", [{"name": 1, "size": 1, "unit": None}]),
    ("axes", [{"name": "a", "size": -1, "unit": None}]),
    ("axes", [{"name": "a", "size": 1, "unit": None, "more": 1}]),
    ("acquisition_by_frame", [1]),
    ("acquisition_by_frame", {"exposure_s": [1, 2]}),
    ("pixel_size", [10**400, 1]),
]


@pytest.mark.parametrize(("key", "value"), _WRONG)
def test_a_record_that_lies_is_left_aside(tmp_path, key, value):
    write_frame(tmp_path / "a.tif", Frame(pixels=random_pixels((20, 30), "int16")))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        told = json.loads(file.pages[0].description)
    assert record.from_json(json.dumps(told), Frame(pixels=np.eye(3))) is not None
    told["n2sr"][key] = value
    pixels = random_pixels((20, 30), "int16")
    tifffile.imwrite(tmp_path / "b.tif", pixels, description=json.dumps(told), metadata=None)
    frame = read_frame(tmp_path / "b.tif")
    assert np.array_equal(frame.pixels, pixels)
    assert frame.describe()
    assert frame.history == ()
