"""EMD, HyperSpy's files and other HDF5: as others wrote them, and as others read ours."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest

from n2sr_deploy import Frame, read_frame
from n2sr_deploy.errors import (
    FileFormatError,
    FrameError,
    InputFileError,
    MissingExtraError,
    OutputError,
)
from n2sr_deploy.formats import open_frames, write_frame, write_frames
from n2sr_deploy.formats.base import Axis
from n2sr_deploy.frame import Intensity
from tests.conftest import SHARED_DATA, random_pixels

h5py = pytest.importorskip("h5py", reason="the extra `formats` is not installed")
zarr = pytest.importorskip("zarr", reason="the extra `formats` is not installed")

WRITTEN = [".emd", ".hspy", ".zspy"]
SHAPE = (20, 30)
TIME = Axis(name="time", size=3, scale=0.5, offset=2.0, unit="s")
TILT = Axis(name="tilt", size=2, scale=-1.5, offset=60.0, unit="deg")

KNOWN = {
    "pixel_size": (0.1, 0.25),
    "unit": "nm",
    "origin": (3.0, -1.3),
    "intensity": Intensity(scale=0.5, offset=12.0, unit="e-"),
    "acquisition": {
        "microscope": "Titan",
        "detector": "HAADF",
        "mode": "STEM",
        "date_time": "2024-05-06T07:08:09",
        "beam_energy_kev": 300.0,
        "beam_current_na": 0.05,
        "convergence_mrad": 21.4,
        "magnification": 5.1e6,
        "camera_length_mm": 91.0,
        "exposure_s": 1.5,
        "dwell_time_s": 1e-6,
        "stage_x_mm": 0.1,
        "stage_y_mm": -0.2,
        "stage_z_mm": 0.003,
        "stage_tilt_alpha_deg": 12.5,
        "stage_tilt_beta_deg": -3.0,
    },
    "metadata": {
        "scan": {"lines": [1, 2, "x", None, [], {"deep": 1.5}], "a/b": "µ", "": 1},
        "values": [1.5, 2.5],
        "names": ["a", "b"],
        "nothing": None,
        "is_good": True,
        "large": 2**70,
        "nul": "a\0b",
    },
    "history": ("dark subtracted", "denoised\nby n2sr"),
}


@pytest.mark.parametrize("ending", ["emd", "hspy", "zspy"])
def test_axes_named_x_and_y_do_not_turn_the_image(tmp_path, ending):
    frame = Frame(pixels=random_pixels((20, 30), "uint16"), axis_names=("x", "y"))
    write_frame(tmp_path / f"a.{ending}", frame)
    assert np.array_equal(read_frame(tmp_path / f"a.{ending}").pixels, frame.pixels)


@pytest.mark.parametrize("ending", ["emd", "hspy", "zspy"])
def test_a_scan_of_diffraction_patterns_keeps_its_four_axes(tmp_path, ending):
    """Their names became y, x, y, x, and of an EMD the scan was taken for the frames."""
    path = tmp_path / f"a.{ending}"
    axes = Axis(name="y", size=2), Axis(name="x", size=3)
    known = {"axis_names": ("ky", "kx"), "pixel_size": (0.1, 0.1), "unit": "1/nm"}
    written = [
        Frame(pixels=random_pixels((20, 30), "uint16", seed=n), index=n, n_frames=6, **known)
        for n in range(6)
    ]
    write_frames(path, written, axes)
    with open_frames(path) as opened:
        assert (opened.shape, opened.axes) == ((20, 30), axes)
        for frame in written:
            found = opened.read(frame.index)
            assert np.array_equal(found.pixels, frame.pixels)
            assert found.axis_names == ("ky", "kx")
    if ending == "hspy":
        with h5py.File(path) as file:
            (group,) = file["Experiments"].values()
            names = [group[f"axis-{n}"].attrs["name"] for n in range(4)]
        assert names == ["y", "x", "ky", "kx"]


def stack_of(n_frames, dtype="uint16", **known):
    return [
        Frame(pixels=random_pixels(SHAPE, dtype, seed), **known or KNOWN)
        for seed in range(n_frames)
    ]


def same_info(frame, known=KNOWN):
    return {name: getattr(frame, name) for name in known} == known


def read_by_rosettasciio(path):
    plugin = importlib.import_module(f"rsciio.{path.suffix[1:]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plugin.file_reader(str(path))


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("axes", [(), (TIME,), (TILT, TIME)])
def test_round_trip_keeps_all(tmp_path, suffix, axes):
    n_frames = int(np.prod([axis.size for axis in axes], dtype=int))
    frames = stack_of(n_frames)
    write_frames(tmp_path / f"a{suffix}", frames, axes)
    with open_frames(tmp_path / f"a{suffix}") as back:
        assert back.axes == axes
        assert (len(back), back.shape, back.dtype) == (n_frames, SHAPE, np.uint16)
        for frame, original in zip(back, frames, strict=True):
            assert np.array_equal(frame.pixels, original.pixels)
            assert same_info(frame)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
def test_pixels_keep_their_type(tmp_path, suffix, dtype):
    frame = Frame(pixels=random_pixels(SHAPE, dtype))
    write_frame(tmp_path / f"a{suffix}", frame)
    back = read_frame(tmp_path / f"a{suffix}")
    assert back.pixels.dtype == np.dtype(dtype)
    assert np.array_equal(back.pixels, frame.pixels)
    assert (back.pixel_size, back.unit, back.origin) == (None, None, (0.0, 0.0))


@pytest.mark.parametrize("suffix", WRITTEN)
def test_rosettasciio_reads_ours_calibrated(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    frames = stack_of(3)
    write_frames(path, frames, (TIME,))
    (found,) = read_by_rosettasciio(path)
    axes = {axis["name"]: axis for axis in found["axes"]}
    for name, size, scale, offset, unit in (
        ("time", 3, 0.5, 2.0, "s"),
        ("y", 20, 0.1, 3.0, "nm"),
        ("x", 30, 0.25, -1.3, "nm"),
    ):
        axis = axes[name]
        assert (axis["size"], axis["units"]) == (size, unit)
        assert (axis["scale"], axis["offset"]) == pytest.approx((scale, offset))
    assert [axis["name"] for axis in found["axes"]] == ["time", "y", "x"]
    assert np.array_equal(found["data"], [frame.pixels for frame in frames])
    if suffix == ".emd":
        assert found["original_metadata"]["microscope"]["high tension"] == 300e3
        return
    assert [axis["navigate"] for axis in found["axes"]] == [True, False, False]
    tem = found["metadata"]["Acquisition_instrument"]["TEM"]
    assert (tem["beam_energy"], tem["camera_length"], tem["Stage"]["tilt_alpha"]) == (300, 91, 12.5)
    assert found["metadata"]["General"]["date"] == "2024-05-06"
    noise = found["metadata"]["Signal"]["Noise_properties"]["Variance_linear_model"]
    assert (noise["gain_factor"], noise["gain_offset"]) == (0.5, 12.0)
    assert found["original_metadata"]["names"] == ["a", "b"]
    assert found["original_metadata"]["scan"]["lines"][5] == {"deep": 1.5}


def test_ncempy_reads_our_emd_calibrated(tmp_path):
    emd = pytest.importorskip("ncempy.io.emd", reason="ncempy is not installed")
    frames = stack_of(3)
    write_frames(tmp_path / "a.emd", frames, (TIME,))
    with emd.fileEMD(tmp_path / "a.emd") as opened:
        data, dims = opened.get_emdgroup(0)
    assert np.array_equal(data.T, [frame.pixels for frame in frames])
    assert [(name, unit) for _, name, unit in dims] == [
        ("x", "[n_m]"),
        ("y", "[n_m]"),
        ("time", "[s]"),
    ]
    assert dims[1][0] == pytest.approx(3.0 + 0.1 * np.arange(20))
    assert dims[0][0] == pytest.approx(-1.3 + 0.25 * np.arange(30))


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_long_stack_is_written_and_read_in_little_memory(tmp_path, suffix):
    n_frames, shape = 200, (256, 256)
    frame = Frame(pixels=random_pixels(shape, "uint16"))
    axis = Axis(name="time", size=n_frames)
    write_frames(tmp_path / f"warm{suffix}", [frame])  # what imports take does not count
    read_frame(tmp_path / f"warm{suffix}")
    tracemalloc.start()
    write_frames(tmp_path / f"a{suffix}", (frame for _ in range(n_frames)), (axis,))
    with open_frames(tmp_path / f"a{suffix}") as opened:
        assert sum(1 for _ in opened) == n_frames
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * frame.pixels.nbytes < n_frames * frame.pixels.nbytes / 10


def ncem(path, pixels, dims, where="data/a", units="[n_m]", scale=0.5):
    """A file of NCEM's kind; dims are named in the array's order."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group(where)
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=pixels)
        for i, name in enumerate(dims, 1):
            n = pixels.shape[i - 1]
            dim = group.create_dataset(f"dim{i}", data=np.arange(n) * scale * i + 1)
            dim.attrs["name"], dim.attrs["units"] = np.bytes_(name), np.bytes_(units)
        for name in ("microscope", "sample", "user", "comments"):
            file.create_group(name).attrs["name"] = name


@pytest.mark.parametrize(
    ("dims", "order"),
    [
        ("yx", "yx"),
        ("xy", "yx"),
        (("time", "y", "x"), ("time", "y", "x")),
        (("y", "x", "time"), ("time", "y", "x")),
        (("x", "y", "time"), ("time", "y", "x")),
        (("x", "y", "time", "tilt"), ("tilt", "time", "y", "x")),
        (("", "", "frame"), ("frame", "", "")),
        (("", "", ""), None),
    ],
)
def test_axes_of_ncem_files_come_by_their_names(tmp_path, dims, order):
    shape = (4, 20, 30, 2)[: len(dims)] if len(dims) > 2 else SHAPE
    pixels = random_pixels(shape, "uint16")
    ncem(tmp_path / "a.emd", pixels, dims)
    if dims == ("", "", "frame"):
        transposed = (2, 0, 1)
    else:
        transposed = range(len(dims)) if order is None else [dims.index(name) for name in order]
    expected = pixels.transpose(*transposed)
    expected = expected.reshape(-1, *expected.shape[-2:])
    with open_frames(tmp_path / "a.emd") as opened:
        found = [frame.pixels for frame in opened]
        assert np.array_equal(found, expected)
        steps = [0.5 * (1 + i) for i in transposed]
        assert opened.info.pixel_size == pytest.approx(steps[-2:])
        assert [axis.scale for axis in opened.axes] == pytest.approx(steps[:-2])
        assert opened.info.unit == "nm"
        assert opened.info.origin == pytest.approx((1.0, 1.0))
        assert opened.info.metadata["sample"] == {"name": "sample"}


def test_an_emd_file_written_by_rosettasciio(tmp_path):
    writer = importlib.import_module("rsciio.emd").file_writer
    pixels = random_pixels((4, *SHAPE), "uint16")
    for named in (True, False):
        path = tmp_path / f"{named}.emd"
        writer(str(path), signal_dict(pixels, named=named))
        with open_frames(path) as opened:
            assert np.array_equal([frame.pixels for frame in opened], pixels)
            assert opened.info.pixel_size == pytest.approx((0.1, 0.25))


def signal_dict(pixels, title="a/b", *, named=True, **metadata):
    """As HyperSpy hands a signal to a writer."""
    names = ("time", "y", "x")[-pixels.ndim :]
    scales = (0.5, 0.1, 0.25)[-pixels.ndim :]
    axes = [
        {
            "_type": "UniformDataAxis",
            "name": name if named else None,
            "scale": scale,
            "offset": 1.5,
            "size": size,
            "units": "s" if name == "time" else "nm",
            "navigate": name == "time",
            "is_binned": False,
        }
        for name, scale, size in zip(names, scales, pixels.shape, strict=True)
    ]
    return {
        "data": pixels,
        "axes": axes,
        "metadata": {"General": {"title": title}, "Signal": {"signal_type": ""}, **metadata},
        "original_metadata": {
            "deep": {"list": [1, "a", {"b": None}], "tuple": (1, 2), "empty": []},
            "text": "µ",
        },
        "attributes": {"_lazy": False},
        "learning_results": {},
        "tmp_parameters": {},
        "models": {},
        "package_info": {"package": "hyperspy", "package_version": "2.3"},
    }


@pytest.mark.parametrize("named", [True, False])
def test_a_hyperspy_file_written_by_rosettasciio(tmp_path, named):
    writer = importlib.import_module("rsciio.hspy").file_writer
    pixels = random_pixels((4, *SHAPE), "float32")
    tem = {"beam_energy": 80.0, "magnification": 1e5, "Stage": {"tilt_alpha": 5.0, "x": 0.5}}
    told = signal_dict(pixels, named=named, Acquisition_instrument={"TEM": tem})
    told["metadata"]["Signal"]["quantity"] = "Electrons (Counts)"
    told["metadata"]["Signal"]["Noise_properties"] = {
        "Variance_linear_model": {"gain_factor": 0.1, "gain_offset": 2.0}
    }
    writer(str(tmp_path / "a.hspy"), told)
    with open_frames(tmp_path / "a.hspy") as opened:
        assert opened.signals == ("a-b",)
        name = "time" if named else "axis 0"
        assert opened.axes == (Axis(name=name, size=4, scale=0.5, offset=1.5, unit="s"),)
        assert np.array_equal([frame.pixels for frame in opened], pixels)
        info = opened.info
    assert (info.pixel_size, info.unit, info.origin) == ((0.1, 0.25), "nm", (1.5, 1.5))
    assert info.intensity == Intensity(scale=0.1, offset=2.0, unit="Counts")
    assert info.acquisition == {
        "beam_energy_kev": 80.0,
        "magnification": 1e5,
        "stage_tilt_alpha_deg": 5.0,
        "stage_x_mm": 0.5,
    }
    assert info.metadata["original_metadata"] == {
        "deep": {"list": [1, "a", {"b": None}], "tuple": [1, 2], "empty": []},
        "text": "µ",
    }


@pytest.mark.parametrize("suffix", [".hspy", ".zspy"])
def test_what_hyperspy_knew_stays_at_its_place(tmp_path, suffix):
    writer = importlib.import_module("rsciio.hspy").file_writer
    writer(str(tmp_path / "a.hspy"), signal_dict(random_pixels(SHAPE, "uint8"), Sample={"d": "Au"}))
    write_frame(tmp_path / f"b{suffix}", read_frame(tmp_path / "a.hspy"))
    (found,) = read_by_rosettasciio(tmp_path / f"b{suffix}")
    assert found["metadata"]["General"]["title"] == "a/b"
    assert found["metadata"]["Sample"] == {"d": "Au"}
    assert found["original_metadata"]["deep"]["list"] == [1, "a", {"b": None}]


def test_what_was_changed_in_hyperspy_since_is_taken(tmp_path):
    path = tmp_path / "a.hspy"
    write_frame(path, stack_of(1)[0])
    with h5py.File(path, "r+") as file:
        (group,) = file["Experiments"].values()
        group["axis-1"].attrs["scale"] = 0.5
        group["metadata/Acquisition_instrument/TEM"].attrs["beam_energy"] = 60.0
    back = read_frame(path)
    assert back.pixel_size == (0.1, 0.5)
    assert back.acquisition["beam_energy_kev"] == 60.0
    assert back.history == KNOWN["history"]


def test_several_experiments_are_signals_and_spectra_are_none(tmp_path):
    path = tmp_path / "a.hspy"
    with h5py.File(path, "w") as file:
        file.attrs["file_format"] = np.bytes_(b"HyperSpy")
        for name, navigate in (("one", (0, 0)), ("two", (0, 0)), ("spectra", (1, 0))):
            group = file.create_group(f"Experiments/{name}")
            group["data"] = random_pixels(SHAPE, "uint8")
            for i, value in enumerate(navigate):
                group.create_group(f"axis-{i}").attrs["navigate"] = bool(value)
    with pytest.raises(FileFormatError, match=r"2 signals.*--signal: 'one', 'two'"):
        open_frames(path)
    assert open_frames(path, "two").signals == ("one", "two")
    with pytest.raises(FileFormatError, match="no signal 'spectra'"):
        open_frames(path, "spectra")


def test_metadata_of_a_folder_store_is_written_a_group_at_once(tmp_path, monkeypatch):
    writes = []
    one_more = zarr.core.attributes.Attributes.__setitem__

    def counted(attributes, key, value):
        writes.append(key)
        one_more(attributes, key, value)

    monkeypatch.setattr(zarr.core.attributes.Attributes, "__setitem__", counted)
    told = {"tags": {f"tag {i}": i for i in range(50)}, "list": list(range(50))}
    pixels = random_pixels(SHAPE, "uint8")
    write_frame(tmp_path / "a.zspy", Frame(pixels=pixels, metadata=told))
    assert len(writes) < 10
    assert read_frame(tmp_path / "a.zspy").metadata == told


def test_a_zipped_zspy(tmp_path):
    write_frame(tmp_path / "a.zspy", stack_of(1)[0])
    shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "a.zspy")
    (tmp_path / "b.zip").rename(tmp_path / "b.zspy")
    assert same_info(read_frame(tmp_path / "b.zspy"))


def test_a_folder_store_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.zspy"
    write_frame(path, stack_of(1)[0])
    with pytest.raises(OutputError, match="exists already"):
        write_frame(path, stack_of(1)[0])

    def fails():
        yield stack_of(1)[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_frames(path, fails(), (TIME,), overwrite=True)
    assert same_info(read_frame(path))
    write_frames(path, stack_of(3), (TIME,), overwrite=True)
    assert len(open_frames(path)) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_store_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "a.zspy"

    def frames():
        yield stack_of(1)[0]
        write_frame(path, Frame(pixels=random_pixels(SHAPE, "uint8")))

    with pytest.raises(OutputError, match="exists already"):
        write_frames(path, frames(), (Axis(name="time", size=1),))
    assert read_frame(path).pixels.dtype == np.uint8
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OutputError):
            write_frame(tmp_path / f"a{suffix}", Frame(pixels=random_pixels((300, 300), "int32")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_user_is_never_replaced(tmp_path):
    folder = tmp_path / "a.zspy"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="is a folder"):
        write_frame(folder, stack_of(1)[0], overwrite=True)
    with pytest.raises(InputFileError, match="is a folder"):
        read_frame(folder)
    assert (folder / "thesis.txt").read_text() == "precious"


def velox(path, images, n_metadata=1):
    """A file of Velox's kind: (label, detector, pixels (H, W, N)) of each image."""
    with h5py.File(path, "w") as file:
        file["Version"] = [json.dumps({"format": "Velox", "version": "4"})]
        for i, (label, detector, pixels) in enumerate(images):
            group = file.create_group(f"Data/Image/{i:032x}")
            group["Data"] = pixels
            columns = []
            for frame in range(n_metadata):
                told = json.dumps(velox_metadata(detector, frame)).encode()
                columns.append(np.frombuffer(told.ljust(4000, b"\0"), np.uint8))
            group["Metadata"] = np.stack(columns, axis=1)
            shown = {"display": {"label": label}, "dataPath": f"/Data/Image/{i:032x}"}
            file[f"Presentation/Displays/ImageDisplay/{i:032x}"] = [json.dumps(shown)]
        file["Data/Spectrum/0/Data"] = np.zeros((4096, 1), np.uint16)


def velox_metadata(detector, frame):
    return {
        "Optics": {"AccelerationVoltage": "300000"},
        "Stage": {"Position": {"x": f"{frame}e-6"}, "AlphaTilt": str(np.pi / 6)},
        "Scan": {"DwellTime": "2e-6", "FrameTime": "1.5"},
        "Detectors": {"Detector-0": {"DetectorName": "HAADF", "DetectorType": "ScanningDetector"}},
        "BinaryResult": {
            "Detector": detector,
            "DetectorIndex": "0",
            "PixelSize": {"width": "2e-10", "height": "1e-10"},
            "PixelUnitX": "m",
            "PixelUnitY": "m",
        },
        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1488794201"}},
        "CustomProperties": {"StemMagnification": {"value": "40000"}},
    }


def test_a_velox_file_of_several_signals(tmp_path):
    path = tmp_path / "a.emd"
    stack = random_pixels((*SHAPE, 3), "uint16")
    transform = np.zeros((*SHAPE, 1), [("realFloat", "<f4"), ("imagFloat", "<f4")])
    single = stack[..., :1]
    images = [("HAADF", "HAADF", stack), ("", "BF", single), ("Sr%20K", "EDS", single)]
    velox(path, [*images, ("HAADF", "HAADF", single), ("FFT", "HAADF", transform)], n_metadata=3)
    names = ("HAADF", "BF", "Sr K", "HAADF (2)")
    with pytest.raises(FileFormatError, match="holds 4 signals"):
        open_frames(path)
    with open_frames(path, "HAADF") as opened:
        assert opened.signals == names
        assert np.array_equal([frame.pixels for frame in opened], stack.transpose(2, 0, 1))
        assert opened.axes == (Axis(name="time", size=3, scale=1.5, unit="s"),)
        last = opened.read(2)
    assert last.pixel_size == pytest.approx((0.1, 0.2))
    assert last.unit == "nm"
    assert last.metadata == velox_metadata("HAADF", 2)
    assert last.acquisition == pytest.approx(
        {
            "detector": "HAADF",
            "mode": "STEM",
            "date_time": "2017-03-06T09:56:41+00:00",
            "beam_energy_kev": 300.0,
            "magnification": 40000.0,
            "dwell_time_s": 2e-6,
            "stage_x_mm": 2e-3,
            "stage_tilt_alpha_deg": 30.0,
        }
    )
    for name in names[1:]:
        assert np.array_equal(read_frame(path, signal=name).pixels, stack[..., 0])


@pytest.mark.parametrize("untold", ["nan", "", None])
def test_a_velox_pixel_without_a_width_has_no_size(tmp_path, monkeypatch, caplog, untold):
    """It was a metre wide."""
    told = velox_metadata("HAADF", 0)
    told["BinaryResult"]["PixelSize"]["width"] = untold
    monkeypatch.setattr(f"{__name__}.velox_metadata", lambda *_: told)
    images = [("HAADF", "HAADF", random_pixels((*SHAPE, 1), "uint16"))]
    velox(tmp_path / "a.emd", images, n_metadata=1)
    frame = read_frame(tmp_path / "a.emd")
    assert (frame.pixel_size, frame.unit) == (None, None)
    assert not caplog.text


def test_a_dataset_of_any_hdf5_file(tmp_path):
    path = tmp_path / "a.h5"
    stack = random_pixels((2, 3, *SHAPE), "int16")
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = stack
        file["entry/names"] = ["a", "b"]
        file["entry/matrix"] = np.eye(3)
        file["entry"].attrs["operator"] = b"me"
    with open_frames(path) as opened:
        assert opened.signal == "/entry/data/data"
        assert [axis.size for axis in opened.axes] == [2, 3]
        assert np.array_equal([frame.pixels for frame in opened], stack.reshape(6, *SHAPE))
        assert opened.info.metadata["entry"]["operator"] == "me"
    assert read_frame(path, signal="entry/matrix").shape == (3, 3)
    with pytest.raises(FileFormatError, match=r"no dataset /no; it holds /entry/data/data \(2 x 3"):
        open_frames(path, "no")
    with pytest.raises(FrameError, match="no numbers at /entry/names"):
        open_frames(path, "/entry/names")
    with h5py.File(path, "r+") as file:
        file["entry/other"] = stack[0, 0]
    with pytest.raises(
        FileFormatError, match=r"2 datasets .*/entry/data/data \(2 x 3 x 20 x 30 int16\)"
    ):
        open_frames(path)


def test_nexus_attributes_lead_to_the_signal_and_its_axes(tmp_path):
    path = tmp_path / "a.nxs"
    with h5py.File(path, "w") as file:
        file["entry/raw"] = random_pixels(SHAPE, "uint8")
        group = file.create_group("entry/scan")
        group["counts"] = random_pixels((3, *SHAPE), "uint8")
        group["t"], group["y"] = 0.5 * np.arange(3), 1 + 2.0 * np.arange(20)
        group["x"] = 3.0 * np.arange(30)
        for name, unit in (("t", "s"), ("y", "nm"), ("x", "nm")):
            group[name].attrs["units"] = unit
        group.attrs["NX_class"], group.attrs["signal"] = "NXdata", "counts"
        group.attrs["axes"] = ["t", "y", "x"]
    assert open_frames(path).signal == "/entry/scan/counts"
    with h5py.File(path, "r+") as file:
        file.attrs["default"], file["entry"].attrs["default"] = "entry", "scan"
    with open_frames(path) as opened:
        assert opened.signal == "/entry/scan/counts"
        assert opened.axes == (Axis(name="t", size=3, scale=0.5, unit="s"),)
        info = opened.info
    assert (info.pixel_size, info.unit, info.origin) == ((2.0, 3.0), "nm", (1.0, 0.0))


def test_compressed_by_a_plugin(tmp_path, monkeypatch):
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="the extra `formats` is not installed")
    pixels = random_pixels((64, 64), "uint16")
    for name, filtered in (("b", hdf5plugin.Bitshuffle()), ("c", hdf5plugin.Blosc())):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("data", data=pixels, chunks=(32, 64), compression=filtered)
        assert np.array_equal(read_frame(tmp_path / f"{name}.h5").pixels, pixels)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda _: False)
    with pytest.raises(FileFormatError, match=r'filter 32008 .*pip install "n2sr\[formats\]"'):
        read_frame(tmp_path / "b.h5")


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    write_frame(tmp_path / "a.emd", stack_of(1)[0])
    monkeypatch.setitem(sys.modules, "h5py", None)
    for read in (
        lambda: read_frame(tmp_path / "a.emd"),
        lambda: write_frame(tmp_path / "b.hspy", stack_of(1)[0]),
    ):
        with pytest.raises(MissingExtraError, match=r'pip install "n2sr\[formats\]"'):
            read()


def test_links_stay_in_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = random_pixels(SHAPE, "uint8")
    for place in ("out.h5", "in/part.h5"):
        with h5py.File(tmp_path / place, "w") as file:
            file["x"] = pixels
            file["loop"] = h5py.SoftLink("/loop")
    path = tmp_path / "in" / "a.h5"
    with h5py.File(path, "w") as file:
        file["good"] = h5py.ExternalLink("part.h5", "/x")
        file["outside"] = h5py.ExternalLink("../out.h5", "/x")
        file["absolute"] = h5py.ExternalLink(str(tmp_path / "out.h5"), "/x")
        file["lost"] = h5py.ExternalLink("lost.h5", "/x")
        file["through"] = h5py.SoftLink("/up/x")
        file["up"] = h5py.ExternalLink("../out.h5", "/")
        file["loop"] = h5py.SoftLink("/pool")
        file["pool"] = h5py.SoftLink("/loop")
        file["group/self"] = h5py.SoftLink("/group")
        file["group/hard"] = file["group"]
    assert np.array_equal(read_frame(path).pixels, pixels)
    for name in ("outside", "absolute", "through"):
        with pytest.raises(FileFormatError, match="outside its folder"):
            read_frame(path, signal=name)
    with pytest.raises(FileFormatError, match=r"lost.h5, which is not beside it"):
        read_frame(path, signal="lost")
    with pytest.raises(FileFormatError, match="in circles"):
        read_frame(path, signal="loop")


def test_what_a_file_names_lies_beside_it_not_beside_a_link_to_it(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "work").mkdir()
    pixels = random_pixels(SHAPE, "uint8")
    with h5py.File(tmp_path / "raw" / "part.h5", "w") as file:
        file["x"] = pixels
    with h5py.File(tmp_path / "raw" / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("part.h5", "/x")
        layout = h5py.VirtualLayout(SHAPE, np.uint8)
        layout[:] = h5py.VirtualSource("part.h5", "x", SHAPE)
        file.create_virtual_dataset("virtual", layout)
    (tmp_path / "work" / "a.h5").symlink_to(tmp_path / "raw" / "a.h5")
    for name in ("linked", "virtual"):
        assert np.array_equal(read_frame(tmp_path / "work" / "a.h5", signal=name).pixels, pixels)


def test_virtual_datasets(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.h5"
    pixels = random_pixels((2, *SHAPE), "uint8")
    for i, place in enumerate(("in/0.h5", "in/1.h5", "out.h5")):
        with h5py.File(tmp_path / place, "w") as file:
            file["x"] = pixels[i % 2]
    with h5py.File(path, "w") as file:
        for name, second in (("good", "1.h5"), ("lost", "2.h5"), ("outside", "../out.h5")):
            layout = h5py.VirtualLayout((2, *SHAPE), np.uint8)
            for i, source in enumerate(("0.h5", second)):
                layout[i] = h5py.VirtualSource(source, "x", SHAPE)
            file.create_virtual_dataset(name, layout)
        layout = h5py.VirtualLayout((30000, 30000), np.uint8)
        layout[:20, :30] = h5py.VirtualSource("0.h5", "x", SHAPE)
        file.create_virtual_dataset("large", layout)
    assert np.array_equal(read_frame(path, 1, "good").pixels, pixels[1])
    with pytest.raises(FileFormatError, match="600 bytes are stored for it"):
        open_frames(path, "large")
    with pytest.raises(FileFormatError, match=r"2.h5, which is not beside it"):
        open_frames(path, "lost")
    with pytest.raises(FileFormatError, match="outside its folder"):
        open_frames(path, "outside")


def test_a_small_file_that_says_it_is_large_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, shape, options in (
            ("huge", (10**6, 10**6), {"chunks": (1000, 1000)}),
            ("large", (30000, 30000), {"chunks": (1000, 1000)}),
            ("one", (30000, 30000), {"chunks": (30000, 30000), "compression": "gzip"}),
            ("contiguous", (30000, 30000), {}),
        ):
            file.create_dataset(name, shape, "f4", **options)
        file["large"][:10, :10] = 1
    for name in ("huge", "large", "one", "contiguous"):
        with pytest.raises(FileFormatError, match=r"says its frames are|bytes are stored for it"):
            read_frame(path, signal=name)


def test_attributes_of_wrong_kinds(tmp_path):
    path = tmp_path / "a.emd"
    ncem(path, random_pixels(SHAPE, "uint8"), "yx")
    with h5py.File(path, "r+") as file:
        group = file["data/a"]
        group["dim1"].attrs["units"] = 7
        group["dim2"].attrs["name"] = [1.0, 2.0]
        group["dim2"][:] = np.nan
        file["microscope"].attrs["high tension"] = "very high"
        file["microscope"].attrs["reference"] = file["data"].ref
        file["microscope"].attrs["empty"] = h5py.Empty("f4")
    assert read_frame(path).pixel_size is None
    path = tmp_path / "a.hspy"
    write_frame(path, stack_of(1)[0])
    with h5py.File(path, "r+") as file:
        (group,) = file["Experiments"].values()
        group["axis-0"].attrs["scale"], group["axis-1"].attrs["scale"] = np.nan, "wide"
        group["metadata/n2sr"].attrs["record"] = '{"n2sr": 3}'
        group["metadata/Signal"].attrs["Noise_properties"] = 3
    assert read_frame(path).shape == SHAPE


@pytest.mark.parametrize("untold", [np.nan, 0.0, "px"])
def test_what_tells_no_size_is_not_taken_for_one(tmp_path, untold):
    frame = Frame(pixels=random_pixels(SHAPE, "uint8"), pixel_size=(1.0, 1.0), unit="nm")
    write_frame(tmp_path / "a.emd", frame)
    with h5py.File(tmp_path / "a.emd", "r+") as file:
        del file.attrs["n2sr"]
        for dim in (file["data/frame/dim1"], file["data/frame/dim2"]):
            if untold == "px":
                dim.attrs["units"] = untold
            else:
                dim[:] = untold
    write_frame(tmp_path / "a.hspy", frame)
    with h5py.File(tmp_path / "a.hspy", "r+") as file:
        (group,) = file["Experiments"].values()
        del group["metadata/n2sr"]
        for axis in (group["axis-0"], group["axis-1"]):
            axis.attrs["units" if untold == "px" else "scale"] = untold
    for path in (tmp_path / "a.emd", tmp_path / "a.hspy"):
        back = read_frame(path)
        assert (back.pixel_size, back.unit) == (None, None)
        assert np.array_equal(back.pixels, frame.pixels)


def test_an_axis_without_a_scale_has_no_places(tmp_path):
    """A stack of HyperSpy's came with all its frames at one time."""
    write_frames(
        tmp_path / "a.hspy", stack_of(3), (Axis(name="time", size=3, offset=2.0, unit="s"),)
    )
    with h5py.File(tmp_path / "a.hspy", "r+") as file:
        (group,) = file["Experiments"].values()
        del group["metadata/n2sr"]
        group["axis-0"].attrs["scale"] = np.nan
    with open_frames(tmp_path / "a.hspy") as opened:
        assert opened.axes == (Axis(name="time", size=3),)


def test_many_objects_and_deep_groups_end(tmp_path, monkeypatch):
    monkeypatch.setattr("n2sr_deploy.formats.hdf5_file._MOST_OBJECTS", 300)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = random_pixels(SHAPE, "uint8")
        file.create_group("/".join("d" * 300))
        for i in range(1000):
            file.create_group(f"many/{i}")
    assert read_frame(tmp_path / "a.h5").shape == SHAPE


READER = """
import resource, sys, warnings
from n2sr_deploy import read_frame
from n2sr_deploy.errors import FileFormatError, FrameError, MissingExtraError
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
for name in sys.argv[1:]:
    print(name, flush=True)
    try:
        read_frame(name, 0)
    except (FileFormatError, FrameError):
        pass
print("whole")
"""


def read_in_a_process(paths):
    """Names of files at which the process ended without being asked to, or did not end."""
    left, fatal = [str(path) for path in paths], []
    while left:
        with subprocess.Popen(
            [sys.executable, "-c", READER, *left],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                stdout, stderr = process.communicate()
        *seen, last = stdout.split()
        if last == "whole":
            break
        if process.returncode > 0:  # an exception that is none of n2sr's
            pytest.fail(f"{last}: {stderr[-2000:]}")
        fatal.append(last)
        left = left[len(seen) + 1 :]
    return fatal


def test_damaged_files_are_refused_or_read(tmp_path):
    """Cut or with some bytes changed: a sentence or an image, no crash and no hang.

    Of thousands more, single ones crash or hang libhdf5 itself, in texts of variable length.
    """
    rng = np.random.default_rng(0)
    frames = stack_of(3)
    for suffix in (".emd", ".hspy"):
        write_frames(tmp_path / f"whole{suffix}", frames, (TIME,))
    velox(tmp_path / "velox.emd", [("HAADF", "HAADF", random_pixels((*SHAPE, 2), "uint16"))])
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        file.create_dataset("a", data=frames[0].pixels, chunks=(10, 30), compression="gzip")
    damaged = []
    for whole in sorted(tmp_path.iterdir()):
        data = np.frombuffer(whole.read_bytes(), np.uint8)
        for i in range(60):
            changed = data.copy()
            at = rng.integers(0, min(len(data), 8192 if i % 2 else len(data)), 1 + i % 4)
            changed[at] ^= rng.integers(1, 256, len(at), dtype=np.uint8)
            end = len(data) if i % 5 else int(rng.integers(0, len(data)))
            damaged.append(tmp_path / f"{i}-{whole.name}")
            damaged[-1].write_bytes(changed[:end].tobytes())
    assert read_in_a_process(damaged) == []


def test_damaged_folder_stores_are_refused_or_read(tmp_path):
    rng = np.random.default_rng(0)
    write_frames(tmp_path / "a.zspy", stack_of(3), (TIME,))
    parts = [part for part in sorted((tmp_path / "a.zspy").rglob("*")) if part.is_file()]
    for i in range(75):
        part = parts[i % len(parts)]
        whole = part.read_bytes()
        changed = np.frombuffer(whole, np.uint8).copy()
        changed[rng.integers(0, len(changed), 1 + i % 3)] ^= np.uint8(1 << (i % 8))
        part.write_bytes(changed.tobytes()[: None if i % 4 else int(rng.integers(len(changed)))])
        with contextlib.suppress(FileFormatError, FrameError, InputFileError):
            read_frame(tmp_path / "a.zspy", 0)
        part.write_bytes(whole)
    assert same_info(read_frame(tmp_path / "a.zspy", 0))


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the measuring data are not here")
def test_real_files():
    real, edge = SHARED_DATA / "real", SHARED_DATA / "edge"
    haadf = read_frame(real / "haadf_xy_order.emd")
    assert haadf.pixel_size == pytest.approx((0.012246, 0.012246), rel=1e-4)
    assert haadf.acquisition["beam_energy_kev"] == 200.0
    columns = np.diff(haadf.pixels.astype(float), axis=0)
    rows = np.diff(haadf.pixels.astype(float), axis=1)
    along = np.corrcoef(columns[:, 1:].ravel(), columns[:, :-1].ravel())[0, 1]
    across = np.corrcoef(rows[1:].ravel(), rows[:-1].ravel())[0, 1]
    assert along > 0.3 > 0.1 > across  # the fast scan is along the rows
    with open_frames(real / "abf_SrTiO3_5frames.hspy") as opened:
        assert opened.axes == (Axis(name="z", size=5, offset=10.0),)
        assert opened.read(4).pixel_size == pytest.approx((0.0092024, 0.0092024))
    velox_frame = read_frame(edge / "debhyperspy_fei_emd_image.emd")
    assert velox_frame.pixel_size == pytest.approx((5.3024, 5.3024), rel=1e-4)
    assert velox_frame.acquisition["microscope"] == "Talos"


@pytest.mark.parametrize("suffix", [".hspy", ".nxs", ".emd"])
@pytest.mark.parametrize("falls", [(True, False), (False, True), (True, True)])
def test_places_that_fall_are_where_the_file_says(tmp_path, suffix, falls):
    pixels, path = random_pixels(SHAPE, "uint8"), tmp_path / f"a{suffix}"
    steps = [-0.1 if falls[0] else 0.1, -0.25 if falls[1] else 0.25]
    places = [6.3 + step * np.arange(n) for step, n in zip(steps, SHAPE, strict=True)]
    if suffix == ".nxs":
        with h5py.File(path, "w") as file:
            group = file.create_group("scan")
            group["counts"], group["y"], group["x"] = pixels, *places
            group["y"].attrs["units"] = group["x"].attrs["units"] = "nm"
            group.attrs["NX_class"], group.attrs["signal"] = "NXdata", "counts"
            group.attrs["axes"] = ["y", "x"]
    else:
        write_frame(path, Frame(pixels=pixels))
    if suffix == ".hspy":
        with h5py.File(path, "r+") as file:
            (group,) = file["Experiments"].values()
            for i, step in enumerate(steps):
                group[f"axis-{i}"].attrs.update({"scale": step, "offset": 6.3, "units": "nm"})
    if suffix == ".emd":
        with h5py.File(path, "r+") as file:
            for dim, along in (("dim1", places[1]), ("dim2", places[0])):
                file[f"data/frame/{dim}"][:] = along
                file[f"data/frame/{dim}"].attrs["units"] = "[n_m]"
    frame = read_frame(path)
    for axis in (0, 1):
        at = frame.origin[axis] + frame.pixel_size[axis] * np.arange(SHAPE[axis])
        assert at == pytest.approx(np.sort(places[axis]))
    order = tuple(slice(None, None, -1 if one else 1) for one in falls)
    assert np.array_equal(frame.pixels, pixels[order])


@pytest.mark.parametrize("name", ["a.emd", "a.hspy", "a.h5"])
def test_what_only_its_extension_calls_hdf5_is_refused_in_our_words(tmp_path, name):
    (tmp_path / name).write_bytes(b"no image" * 200)
    with pytest.raises(FileFormatError, match=rf"{name} is named as \w+ is, but holds") as told:
        open_frames(tmp_path / name)
    assert isinstance(told.value.__cause__, OSError), "the library's words stay as the cause"
