"""What microscopes write comes in whole: pixels, the right way round, calibrated, with all told."""

from __future__ import annotations

import gc
import struct
import sys
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
import tifffile

from n2sr_deploy import open_frames, read_frame, write_frame
from n2sr_deploy.describing import describe_network
from n2sr_deploy.errors import FileFormatError, FrameError, MissingExtraError
from n2sr_deploy.formats import em
from tests import fake_formats
from tests.conftest import random_pixels

_MICROSCOPE = {
    "Name": "Titan",
    "Voltage": 300000.0,
    "Indicated Magnification": 1e6,
    "STEM Camera Length": 91.0,
    "Emission Current (µA)": 5.5,
    "Illumination Mode": "STEM",
    "Stage Position": {"Stage X": 785.0, "Stage Alpha": 1.5},
}
_TAGS = {
    "Microscope Info": _MICROSCOPE,
    "DataBar": {"Acquisition Date": "1/10/2025", "Acquisition Time": "4:20 PM"},
    "DigiScan": {"Sample Time": 16.0},
}
_THUMBNAIL = {"name": "thumbnail", "pixels": random_pixels((8, 8), "uint32"), "type": 23}


def dm_image(pixels, **known):
    calibrations = [(0.0127, 2.0, "nm"), (0.0254, 0.0, "nm"), (2.0, 45.0, "deg")][: pixels.ndim]
    return {"name": "HAADF", "pixels": pixels, "calibrations": calibrations, "tags": _TAGS, **known}


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32"])
def test_digitalmicrograph(tmp_path, version, dtype):
    pixels = random_pixels((20, 30), dtype)
    path = tmp_path / f"a.dm{version}"
    image = dm_image(pixels, brightness=(0.5, 100.0, "e-"))
    path.write_bytes(fake_formats.dm([_THUMBNAIL, image], version=version))
    frame = read_frame(path)
    assert np.array_equal(frame.pixels, pixels)
    assert frame.pixel_size == pytest.approx((0.0254, 0.0127))
    assert frame.unit == "nm"
    assert frame.origin == pytest.approx((0.0, -0.0254))
    assert frame.intensity is not None
    assert (frame.intensity.scale, frame.intensity.offset) == (0.5, 100.0)
    assert frame.intensity.unit == "e-"
    assert frame.acquisition == pytest.approx(
        {
            "microscope": "Titan",
            "mode": "STEM",
            "date_time": "1/10/2025 4:20 PM",
            "beam_energy_kev": 300.0,
            "magnification": 1e6,
            "camera_length_mm": 91.0,
            "dwell_time_s": 16e-6,
            "stage_x_mm": 0.785,
            "stage_tilt_alpha_deg": 1.5,
        }
    )
    tags = frame.metadata["DM"]["ImageTags"]
    assert tags["Microscope Info"]["Stage Position"]["Stage X"] == 785.0


def test_a_tilt_series_of_digitalmicrograph(tmp_path):
    stack = random_pixels((5, 20, 30), "uint16")
    (tmp_path / "a.dm4").write_bytes(fake_formats.dm([_THUMBNAIL, dm_image(stack)]))
    with open_frames(tmp_path / "a.dm4") as opened:
        (axis,) = opened.axes
        assert (axis.name, axis.size, axis.scale, axis.offset, axis.unit) == (
            *("tilt", 5, 2.0, -90.0, "deg"),
        )
        assert all(np.array_equal(frame.pixels, stack[frame.index]) for frame in opened)


def test_a_signal_of_several_is_chosen_by_name(tmp_path):
    first, second = (random_pixels((20, 30 + i), "uint16") for i in range(2))
    spectrum = {"name": "EELS", "pixels": random_pixels((1, 64), "float32")[0]}
    images = [dm_image(first), dm_image(second), spectrum]
    (tmp_path / "a.dm4").write_bytes(fake_formats.dm(images))
    with pytest.raises(FileFormatError, match=r"holds 2 signals.*--signal: 'HAADF', 'HAADF \(2\)'"):
        read_frame(tmp_path / "a.dm4")
    chosen = read_frame(tmp_path / "a.dm4", signal="HAADF (2)")
    assert np.array_equal(chosen.pixels, second)
    with pytest.raises(FileFormatError, match="has no signal 'EELS'"):
        read_frame(tmp_path / "a.dm4", signal="EELS")


def test_a_file_without_signals_refuses_a_signal(tmp_path):
    np.save(tmp_path / "a.npy", random_pixels((20, 30), "uint16"))
    with pytest.raises(FileFormatError, match="leave out --signal HAADF"):
        read_frame(tmp_path / "a.npy", signal="HAADF")


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_tia_series(tmp_path, dtype):
    stack = random_pixels((4, 20, 30), dtype)
    (tmp_path / "a_1.ser").write_bytes(fake_formats.ser(stack, offset=-5e-9, step=0.5))
    with open_frames(tmp_path / "a_1.ser") as opened:
        (axis,) = opened.axes
        assert (axis.name, axis.size, axis.scale, axis.unit) == ("time", 4, 0.5, "s")
        assert all(np.array_equal(frame.pixels, stack[frame.index]) for frame in opened)
        frame = opened.read(2)
    assert frame.pixel_size == pytest.approx((0.01, 0.01))
    assert frame.unit == "nm"
    assert frame.origin == pytest.approx((-5.0, -5.0))


def test_an_emi_file_leads_to_its_series_and_tells_the_microscope(tmp_path):
    stack = random_pixels((1, 20, 30), "uint16")
    (tmp_path / "a_1.ser").write_bytes(fake_formats.ser(stack))
    (tmp_path / "a.emi").write_bytes(
        b"\0\1binary<ObjectInfo><AcquireDate>Fri Jan 10 2025</AcquireDate>"
        b"<ExperimentalConditions><MicroscopeConditions><AcceleratingVoltage>200000"
        b"</AcceleratingVoltage></MicroscopeConditions></ExperimentalConditions>"
        b"<ExperimentalDescription><Root><Data><Label>High tension</Label><Unit>kV</Unit>"
        b"<Value>200</Value></Data></Root></ExperimentalDescription>"
        b"<AcquireInfo><DwellTimePath>1e-05</DwellTimePath></AcquireInfo>"
        b"<DetectorRange/></ObjectInfo>\0"
    )
    frame = read_frame(tmp_path / "a.emi")
    assert np.array_equal(frame.pixels, stack[0])
    assert frame.acquisition["beam_energy_kev"] == 200
    assert frame.acquisition["dwell_time_s"] == 1e-5
    (tmp_path / "b.emi").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match=r"b_1.ser is not beside it"):
        read_frame(tmp_path / "b.emi")


@pytest.mark.parametrize(
    ("mode", "told", "size", "unit"),
    [
        ("TEM uP SA Zoom Image", "<CameraNamePath>Eagle</CameraNamePath>", 0.02, "nm"),
        ("TEM uP SA Zoom Diffraction", "<CameraNamePath>Eagle</CameraNamePath>", 0.02, "1/nm"),
        ("STEM nP SA Zoom Diffraction", "<DwellTimePath>1e-05</DwellTimePath>", 0.02, "nm"),
        ("STEM nP SA Zoom Diffraction", "<CameraNamePath>Eagle</CameraNamePath>", 0.02, "1/nm"),
    ],
)
def test_diffraction_patterns_of_tia_are_in_reciprocal_nanometres(tmp_path, mode, told, size, unit):
    told_size = 2e7 if unit == "1/nm" else 2e-11
    series = fake_formats.ser(random_pixels((1, 20, 30), "uint16"), pixel_size=told_size)
    (tmp_path / "a_1.ser").write_bytes(series)
    (tmp_path / "a.emi").write_text(
        "<ObjectInfo><ExperimentalConditions><MicroscopeConditions/></ExperimentalConditions>"
        "<ExperimentalDescription><Root><Data><Label>Mode</Label><Unit></Unit>"
        f"<Value>{mode}</Value></Data></Root></ExperimentalDescription>"
        f"<AcquireInfo>{told}</AcquireInfo><DetectorRange/></ObjectInfo>"
    )
    frame = read_frame(tmp_path / "a_1.ser")
    assert frame.unit == unit
    assert frame.pixel_size == pytest.approx((size, size))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_merlin(tmp_path, dtype):
    stack = random_pixels((3, 16, 24), dtype)
    (tmp_path / "a.mib").write_bytes(fake_formats.mib(stack))
    (tmp_path / "a.hdr").write_text("HDR,\nGain:\tSLGM\nEnd\n")
    with open_frames(tmp_path / "a.mib") as opened:
        assert all(np.array_equal(frame.pixels, stack[frame.index]) for frame in opened)
        assert opened.info.metadata["Merlin"]["hdr"] == {"Gain": "SLGM"}
        assert opened.info.acquisition["exposure_s"] == 0.001


def test_the_hdr_file_of_merlin_names_the_mib_file(tmp_path):
    """All formats were listed."""
    hdr = tmp_path / "a.hdr"
    hdr.write_text("HDR,\nGain:\tSLGM\nEnd\n")
    for look in (read_frame, describe_network):
        with pytest.raises(FileFormatError, match=r"open the \.mib file beside it, a\.mib$"):
            look(hdr)
    hdr.write_text("ENVI\nsamples = 64\n")  # another program's
    with pytest.raises(FileFormatError, match="is not an image n2sr reads"):
        read_frame(hdr)


def test_raw_mode_of_merlin_is_refused(tmp_path):
    data = fake_formats.mib(random_pixels((1, 16, 24), "uint16")).replace(b",U16,", b",R64,")
    (tmp_path / "a.mib").write_bytes(data)
    with pytest.raises(FrameError, match=r"type R64.*without raw mode"):
        read_frame(tmp_path / "a.mib")


def test_a_reader_that_is_not_installed_tells_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.dm4").write_bytes(fake_formats.dm([dm_image(random_pixels((9, 9), "uint8"))]))
    (tmp_path / "a.blo").write_bytes(b"IMGBLO")
    monkeypatch.setitem(sys.modules, "ncempy.io.dm", None)
    monkeypatch.setitem(sys.modules, "rsciio", None)
    with pytest.raises(MissingExtraError, match=r"DM4 files needs 'ncempy'.*n2sr\[formats\]"):
        read_frame(tmp_path / "a.dm4")
    with pytest.raises(MissingExtraError, match=r".blo files needs 'rosettasciio'.*n2sr\[em\]"):
        read_frame(tmp_path / "a.blo")


def test_what_rosettasciio_reads_comes_in_by_it(tmp_path):
    ripple = pytest.importorskip("rsciio.ripple")
    stack = random_pixels((3, 20, 30), "uint16")
    axes = [
        {"name": "time", "size": 3, "scale": 0.5, "offset": 1.0, "units": "s", "navigate": True},
        {"name": "y", "size": 20, "scale": 0.2, "offset": 0.0, "units": "nm", "navigate": False},
        {"name": "x", "size": 30, "scale": 0.1, "offset": 0.0, "units": "nm", "navigate": False},
    ]
    metadata = {
        "General": {"title": "a"},
        "Signal": {"signal_type": ""},
        "Acquisition_instrument": {"TEM": {"beam_energy": 200.0}},
    }
    signal = {"data": stack, "axes": axes, "metadata": metadata, "original_metadata": {}}
    ripple.file_writer(str(tmp_path / "a.rpl"), signal)
    with open_frames(tmp_path / "a.rpl") as opened:
        assert all(np.array_equal(frame.pixels, stack[frame.index]) for frame in opened)
        frame = opened.read(0)
    assert frame.pixel_size == pytest.approx((0.2, 0.1))
    assert frame.unit == "nm"


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "float32"])
@pytest.mark.parametrize("suffix", [".tif", ".mrc"])
def test_what_a_microscope_told_survives(tmp_path, suffix, dtype):
    path = tmp_path / "a.dm4"
    path.write_bytes(fake_formats.dm([dm_image(random_pixels((20, 30), dtype) // 2)]))
    frame = read_frame(path)
    write_frame(tmp_path / f"b{suffix}", frame)
    back = read_frame(tmp_path / f"b{suffix}")
    is_held = suffix == ".tif" or dtype != "uint32"  # MRC has no such pixels
    assert back.pixels.dtype == (frame.pixels.dtype if is_held else np.float32)
    assert np.array_equal(back.pixels, frame.pixels.astype(back.pixels.dtype))
    for known in ("pixel_size", "unit", "origin", "intensity", "acquisition", "metadata"):
        assert getattr(back, known) == getattr(frame, known), known


def test_a_tiff_with_feis_tags(tmp_path):
    """As FEI's microscopes write them: an ini file in a tag of their own."""
    told = (
        "[Beam]\r\nHV=15000\r\n[System]\r\nSystemType=Apreo\r\n[Scan]\r\nPixelWidth=2e-09\r\n"
        "PixelHeight=3e-09\r\nDwelltime=1e-06\r\n[Stage]\r\nStageX=0.001\r\n"
    )
    pixels = random_pixels((20, 30), "uint16")
    tag = (34682, "s", 0, told, True)
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[tag], metadata=None)
    frame = read_frame(tmp_path / "a.tif")
    assert np.array_equal(frame.pixels, pixels)
    assert frame.pixel_size == pytest.approx((3.0, 2.0))
    assert frame.unit == "nm"
    assert frame.acquisition == pytest.approx(
        {"beam_energy_kev": 15.0, "microscope": "Apreo", "dwell_time_s": 1e-6, "stage_x_mm": 1.0}
    )
    assert frame.metadata["fei"]["Beam"]["HV"] == 15000


def zeiss_tag(_):
    return b"1\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 1.25 nm\r\n"


def tvips_tag(_):
    first, second = (
        np.zeros((), found)
        for found in (tifffile.TIFF.TVIPS_HEADER_V1, tifffile.TIFF.TVIPS_HEADER_V2)
    )
    first["Version"], second["Magic"] = 2, 0xAAAAAAAA
    second["PixelSizeX"], second["PixelSizeY"] = 0.25, 0.5
    return first.tobytes() + second.tobytes()


def olympus_tag(at):
    head = struct.pack("<4s6x5h6x32sH", b"SIS0", 0, 12, 1, 0, 126, b"a", 1)
    values = struct.pack("<10xhdd8xd2x34s32s", -9, 0.25, 0.5, 1e5, b"", b"")
    return head + struct.pack("<hhI", 1, 1, at + len(head) + 8) + values


@pytest.mark.parametrize(
    ("code", "told", "size"),
    [
        (34118, zeiss_tag, (1.25, 1.25)),
        (37706, tvips_tag, (0.5, 0.25)),
        (33560, olympus_tag, (0.5, 0.25)),
    ],
)
def test_pixel_sizes_of_zeiss_tvips_and_olympus(tmp_path, code, told, size):
    path, pixels, blob = tmp_path / "a.tif", random_pixels((20, 30), "uint16"), told(0)
    tags = [(code, "B", len(blob), blob, True)]
    tifffile.imwrite(path, pixels, extratags=tags, metadata=None)
    written = path.read_bytes()
    path.write_bytes(written.replace(blob, told(written.index(blob))))
    frame = read_frame(path)
    assert np.array_equal(frame.pixels, pixels)
    assert frame.pixel_size == pytest.approx(size)
    assert frame.unit == "nm"


def test_a_tiff_of_digitalmicrograph(tmp_path):
    tags = [(65003 + i, "s", 0, "nm", True) for i in range(2)]
    tags += [(65006, "d", 1, 1.5, True), (65007, "d", 1, -2.0, True)]
    tags += [(65009, "d", 1, 0.25, True), (65010, "d", 1, 0.1, True)]
    tags += [(65022, "s", 0, "e-", True), (65024, "d", 1, 12.0, True), (65025, "d", 1, 0.5, True)]
    pixels = random_pixels((20, 30), "int16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=tags, metadata=None)
    frame = read_frame(tmp_path / "a.tif")
    assert np.array_equal(frame.pixels, pixels)
    assert (frame.pixel_size, frame.unit, frame.origin) == ((0.1, 0.25), "nm", (-2.0, 1.5))
    assert frame.intensity is not None
    assert (frame.intensity.scale, frame.intensity.offset, frame.intensity.unit) == (0.5, 12, "e-")


def test_fei_s_extended_header_of_mrc_tells_the_microscope(tmp_path):
    rows = np.zeros(3, mrcfile.dtypes.get_ext_header_dtype(b"FEI1"))
    rows["Metadata size"], rows["HT"], rows["Alpha tilt"] = rows.itemsize, 2e5, [-2, 0, 2]
    stack = random_pixels((3, 20, 30), "int16")
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_extended_header(rows)
        file.header.exttyp = b"FEI1"
        file.set_data(stack)
    with open_frames(tmp_path / "a.mrc") as opened:
        tilts = [frame.acquisition["stage_tilt_alpha_deg"] for frame in opened]
        assert opened.read(0).acquisition["beam_energy_kev"] == 200.0
    assert tilts == [-2.0, 0.0, 2.0]


@pytest.mark.filterwarnings("error")
def test_a_cut_file_of_digitalmicrograph_leaves_nothing_open(tmp_path):
    whole = fake_formats.dm([dm_image(random_pixels((20, 30), "uint16"))])
    (tmp_path / "a.dm4").write_bytes(whole[:200])
    with pytest.raises(FileFormatError, match=r"a\.dm4 is truncated"):
        read_frame(tmp_path / "a.dm4")
    gc.collect()  # what cannot be closed is told now, which pytest makes an error


def test_a_damaged_emi_file_does_not_take_the_series_with_it(tmp_path, monkeypatch, caplog):
    pixels = random_pixels((1, 20, 30), "uint16")
    (tmp_path / "a_1.ser").write_bytes(fake_formats.ser(pixels))
    (tmp_path / "a.emi").write_bytes(b"<ObjectInfo><a></b></ObjectInfo>")
    for name in ("a_1.ser", "a.emi"):
        caplog.clear()
        assert np.array_equal(read_frame(tmp_path / name).pixels, pixels[0])
        assert "a.emi cannot be read" in caplog.text
    caplog.clear()
    monkeypatch.setitem(sys.modules, "ncempy.io.ser", None)
    assert np.array_equal(read_frame(tmp_path / "a_1.ser").pixels, pixels[0])
    assert "a.emi cannot be read" in caplog.text
    assert "ncempy" in caplog.text


def test_the_series_of_an_emi_file_are_signals(tmp_path):
    series = {n: random_pixels((1, 20, 30 + n), "uint16") for n in (1, 2, 10)}
    for n, pixels in series.items():
        (tmp_path / f"a[1]_{n}.ser").write_bytes(fake_formats.ser(pixels))
    (tmp_path / "a[1].emi").write_bytes(b"<ObjectInfo></ObjectInfo>")
    with pytest.raises(FileFormatError, match=r"3 signals.*'a\[1\]_1', 'a\[1\]_2', 'a\[1\]_10'"):
        read_frame(tmp_path / "a[1].emi")
    with open_frames(tmp_path / "a[1].emi", "a[1]_2") as opened:
        assert opened.signal == "a[1]_2"
        assert len(opened.signals) == 3
        assert np.array_equal(opened.read(0).pixels, series[2][0])


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
@pytest.mark.filterwarnings("ignore")  # it leaves files to the garbage collector
def test_grey_pictures_come_in_by_rosettasciio(tmp_path, suffix):
    pytest.importorskip("rsciio.image")
    imageio = pytest.importorskip("imageio.v3")
    pixels = random_pixels((20, 30), "uint8")
    imageio.imwrite(tmp_path / f"a{suffix}", pixels)
    assert np.array_equal(read_frame(tmp_path / f"a{suffix}").pixels, pixels)


def test_every_reader_of_an_extension_is_tried(tmp_path, monkeypatch):
    rsciio = pytest.importorskip("rsciio")
    pixels = random_pixels((20, 30), "uint16")
    axes = [
        {"name": name, "size": n, "navigate": False} for name, n in zip("yx", (20, 30), strict=True)
    ]

    def refuses(path, lazy=False):
        raise ValueError("not mine")

    def reads(path):
        return [{"data": pixels, "axes": axes}]

    for name, reader in (("first", refuses), ("second", reads)):
        monkeypatch.setitem(sys.modules, f"fake_{name}", SimpleNamespace(file_reader=reader))
    plugins = [
        {"name": name, "file_extensions": ["XML"], "api": f"fake_{name}"}
        for name in ("first", "second")
    ]
    (tmp_path / "a.xml").write_text("<a/>")
    monkeypatch.setattr(rsciio, "IO_PLUGINS", plugins)
    assert np.array_equal(read_frame(tmp_path / "a.xml").pixels, pixels)
    monkeypatch.setattr(rsciio, "IO_PLUGINS", plugins[:1])
    with pytest.raises(FileFormatError, match=r"not mine \(first\)"):
        read_frame(tmp_path / "a.xml")


def test_extensions_of_rosettasciio_are_known_to_it():
    rsciio = pytest.importorskip("rsciio")
    known = {f".{e.lower()}" for plugin in rsciio.IO_PLUGINS for e in plugin["file_extensions"]}
    assert set(em.FORMAT.extensions) <= known
