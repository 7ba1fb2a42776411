"""From every format n2sr reads into every format it writes: RosettaSciIO finds all of it there."""

from __future__ import annotations

import importlib

import dask
import mrcfile
import numpy as np
import pytest
import tifffile

from n2sr_deploy import Frame, open_frames, write_frames
from n2sr_deploy.formats.base import Axis
from n2sr_deploy.formats.units import nanometres
from tests import fake_formats
from tests.conftest import random_pixels

rsciio = pytest.importorskip("rsciio")

_N, _SHAPE, _STEP, _ORIGIN = 3, (20, 30), (0.1, 0.25), (-1.0, 2.5)
_STACK = random_pixels((_N, *_SHAPE), "uint16")
_TIME = {"name": "time", "size": _N, "scale": 0.5, "offset": 0.0, "units": "s", "navigate": True}
_ROWS, _COLUMNS = (
    {"name": n, "size": s, "scale": d, "offset": o, "units": "nm", "navigate": False}
    for n, s, d, o in zip("yx", _SHAPE, _STEP, _ORIGIN, strict=True)
)


def _by_rosettasciio(plugin):
    signal = {
        "data": _STACK,
        "axes": [{**axis, "index_in_array": i} for i, axis in enumerate((_TIME, _ROWS, _COLUMNS))],
        "metadata": {
            "General": {"title": "a"},
            "Signal": {"signal_type": ""},
            "_HyperSpy": {"Folding": {"unfolded": False, "signal_unfolded": False}},
        },
        "original_metadata": {"gun": {"name": "X-FEG"}},
        "learning_results": {},
        "tmp_parameters": {},
        "package_info": {},
        "attributes": {"_lazy": False, "ragged": False},
        "models": {},
    }
    return lambda path: importlib.import_module(f"rsciio.{plugin}").file_writer(str(path), signal)


def _dm(version):
    axes = [(_STEP[1], -_ORIGIN[1] / _STEP[1], "nm"), (_STEP[0], -_ORIGIN[0] / _STEP[0], "nm")]
    image = {"name": "HAADF", "pixels": _STACK, "calibrations": [*axes, (0.5, 0.0, "s")]}
    return lambda path: path.write_bytes(fake_formats.dm([image], version=version))


def _imagej(path):
    tifffile.imwrite(
        path,
        _STACK,
        imagej=True,
        resolution=(1 / _STEP[1], 1 / _STEP[0]),
        metadata={"axes": "TYX", "unit": "nm", "finterval": 0.5},
    )


def _ome(path):
    sizes = {"PhysicalSizeX": _STEP[1], "PhysicalSizeY": _STEP[0]}
    units = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(path, _STACK, ome=True, metadata={"axes": "TYX", **sizes, **units})


def _mrc(path):
    with mrcfile.new(path) as file:
        file.set_data(_STACK)
        file.set_image_stack()
        file.voxel_size = (_STEP[1] * 10, _STEP[0] * 10, 0)


def _by_n2sr(path):
    frames = [Frame(pixels=p, pixel_size=_STEP, unit="nm", origin=_ORIGIN) for p in _STACK]
    write_frames(path, frames, (Axis(name="time", size=_N, scale=0.5, unit="s"),))


# What a file says of the origin and of the frames' axis, where its format has a place for it.
SOURCES = {
    "imagej.tif": (_imagej, "time"),
    "ome.tif": (_ome, ""),
    "rosettasciio.tif": (_by_rosettasciio("tiff"), "origin"),
    "plain.mrc": (_mrc, ""),
    "a.dm3": (_dm(3), "origin time"),
    "a.dm4": (_dm(4), "origin time"),
    "rosettasciio.emd": (_by_rosettasciio("emd"), "origin time"),
    "rosettasciio.hspy": (_by_rosettasciio("hspy"), "origin time"),
    "ours.tif": (_by_n2sr, "origin time"),
    "ours.mrc": (_by_n2sr, "origin time"),
    "ours.emd": (_by_n2sr, "origin time"),
    "ours.hspy": (_by_n2sr, "origin time"),
    "ours.zspy": (_by_n2sr, "origin time"),
}
TARGETS = {".tif": "tiff", ".mrc": "mrc", ".emd": "emd", ".hspy": "hspy", ".zspy": "zspy"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, (write, _) in SOURCES.items():
        write(folder / name)
    return folder


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.filterwarnings("ignore")
def test_every_pair_of_formats(sources, tmp_path, name, suffix):
    told = SOURCES[name][1]
    with open_frames(sources / name) as opened:
        step = np.multiply(opened.info.pixel_size, nanometres(opened.info.unit))
        assert step == pytest.approx(_STEP)
        if "origin" in told:
            assert opened.info.origin == pytest.approx(_ORIGIN)
        if "time" in told:
            (axis,) = opened.axes
            assert (axis.name, axis.scale, axis.unit[0]) == ("time", 0.5, "s")
        write_frames(tmp_path / f"a{suffix}", opened, opened.axes)
    reader = importlib.import_module(f"rsciio.{TARGETS[suffix]}").file_reader
    with dask.config.set(scheduler="synchronous"):  # else it leaves threads
        (found,) = reader(str(tmp_path / f"a{suffix}"))
    assert np.array_equal(found["data"], _STACK)
    time, rows, columns = found["axes"]
    for axis, step, origin in zip((rows, columns), _STEP, _ORIGIN, strict=True):
        nm = nanometres(str(axis["units"]))
        assert axis["scale"] * nm == pytest.approx(step, rel=1e-5)
        if "origin" in told and suffix != ".mrc":  # whose origin its reader leaves out
            assert axis["offset"] * nm == pytest.approx(origin, rel=1e-5)
    if "time" in told and suffix != ".mrc":  # which has no place for it
        assert time["scale"] == pytest.approx(0.5)


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("name", SOURCES)
def test_every_pair_comes_back_to_n2sr_whole(sources, tmp_path, name, suffix):
    with open_frames(sources / name) as opened:
        write_frames(tmp_path / f"a{suffix}", opened, opened.axes)
        with open_frames(tmp_path / f"a{suffix}") as back:
            assert back.dtype == opened.dtype
            assert back.info.unit == opened.info.unit
            assert back.info.pixel_size == pytest.approx(opened.info.pixel_size)
            assert back.info.origin == pytest.approx(opened.info.origin)
            assert [axis.size for axis in back.axes] == [axis.size for axis in opened.axes]
            assert [axis.unit for axis in back.axes] == [axis.unit for axis in opened.axes]
            assert np.array_equal([f.pixels for f in back], [f.pixels for f in opened])


def test_tifffile_finds_imagejs_calibration(sources, tmp_path):
    with open_frames(sources / "a.dm4") as opened:
        write_frames(tmp_path / "a.tif", opened, opened.axes)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_imagej
        assert file.series[0].axes == "TYX"
        assert file.imagej_metadata["unit"] == "nm"
        assert file.imagej_metadata["finterval"] == 0.5
        tags = file.pages[0].tags
        width, height = (np.divide(*tags[n].value) for n in ("XResolution", "YResolution"))
        assert (1 / height, 1 / width) == pytest.approx(_STEP, rel=1e-6)
        assert tags[65009].value == pytest.approx(_STEP[1])
        assert tags[65010].value == pytest.approx(_STEP[0])
