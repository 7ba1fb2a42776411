"""Files that are cut, flipped or lie: a clear error or a right answer, soon, in little memory."""

from __future__ import annotations

import signal
import tracemalloc
from contextlib import contextmanager

import mrcfile
import numpy as np
import pytest
import tifffile

from n2sr_deploy import Frame, open_frames, read_frame, write_frame, write_frames
from n2sr_deploy.errors import FileFormatError, N2SRError
from n2sr_deploy.formats import FORMATS, em
from n2sr_deploy.formats.base import Axis
from tests import fake_formats
from tests.conftest import random_pixels

pytest.importorskip("ncempy.io.dm")  # loads matplotlib: before memory is measured

_MEMORY = 32 * 2**20  # bytes; the files have some kilobytes
_HANGS_S = 20
_PIXELS = random_pixels((40, 60), "uint16")


def _dm(version):
    image = {"name": "HAADF", "pixels": _PIXELS, "calibrations": [(0.1, 0.0, "nm")] * 2}
    image["tags"] = {"Microscope Info": {"Voltage": 2e5, "Name": "Titan"}}
    return lambda path: path.write_bytes(fake_formats.dm([image], version=version))


def _stack(path):
    frames = [Frame(pixels=_PIXELS, pixel_size=(0.1, 0.1), unit="nm")] * 3
    write_frames(path, frames, (Axis(name="time", size=3, scale=0.5, unit="s"),))


def _ome(path):
    metadata = {"axes": "TYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(path, np.stack([_PIXELS] * 3), ome=True, metadata=metadata)


SMALL_FILES = {
    "a.tif": lambda path: write_frame(path, Frame(pixels=_PIXELS, pixel_size=(1, 1), unit="nm")),
    "stack.tif": _stack,
    "a.ome.tif": _ome,
    "deflated.tif": lambda path: tifffile.imwrite(path, _PIXELS, compression="zlib"),
    "a.mrc": lambda path: write_frame(path, Frame(pixels=_PIXELS, pixel_size=(1, 1), unit="nm")),
    "stack.mrc": _stack,
    "a.npy": lambda path: np.save(path, _PIXELS),
    "a.dm3": _dm(3),
    "a.dm4": _dm(4),
    "a_1.ser": lambda path: path.write_bytes(fake_formats.ser(np.stack([_PIXELS] * 3))),
    "a.mib": lambda path: path.write_bytes(fake_formats.mib(np.stack([_PIXELS] * 3))),
}


@contextmanager
def _within_limits(memory=_MEMORY):
    def hangs(*_):
        raise AssertionError("the reader hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(_HANGS_S)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _read_all(path):
    with open_frames(path) as opened:
        for index in range(min(len(opened), 5)):
            opened.read(index)


@pytest.mark.parametrize("name", SMALL_FILES)
@pytest.mark.filterwarnings("ignore")
def test_a_flipped_file_is_read_or_refused(tmp_path, name):
    path = tmp_path / name
    SMALL_FILES[name](path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    n_refused = 0
    with _within_limits():
        for _ in range(200):
            flipped = bytearray(whole)
            reach = len(whole) if random.random() < 0.5 else min(600, len(whole))
            for place in random.integers(0, reach, random.integers(1, 4)):
                flipped[place] = random.choice(
                    [0, 255, 127, flipped[place] ^ 1 << random.integers(8)]
                )
            path.write_bytes(flipped)
            try:
                _read_all(path)
            except N2SRError:
                n_refused += 1
    assert n_refused  # the headers were hit too


@pytest.mark.parametrize("name", SMALL_FILES)
@pytest.mark.filterwarnings("ignore")
def test_a_cut_file_is_refused(tmp_path, name):
    path = tmp_path / name
    SMALL_FILES[name](path)
    whole = path.read_bytes()
    pixels_end = len(whole) - (200 if name in ("a.dm3", "a.dm4", "a_1.ser") else 0)
    with _within_limits():
        for n_bytes in {0, 3, 8, 100, 600, pixels_end // 2, pixels_end - 400}:
            path.write_bytes(whole[:n_bytes])
            with pytest.raises(FileFormatError, match="a"):
                _read_all(path)


def test_a_header_that_lies_about_its_size_is_refused(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(_PIXELS)
        file.header.nx = file.header.ny = 2**30
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
        )
    merlin = fake_formats.mib(_PIXELS[None]).replace(b",0060,0040,", b",9999,9999,")
    (tmp_path / "a.mib").write_bytes(merlin)
    series = bytearray(fake_formats.ser(_PIXELS[None]))
    at = series.index(b"\x3c\0\0\0\x28\0\0\0")
    series[at : at + 8] = b"\xff\xff\xff\x7f" * 2
    (tmp_path / "a_1.ser").write_bytes(series)
    for name in ("a.mrc", "a.npy", "a.mib", "a_1.ser"):
        with _within_limits(), pytest.raises(FileFormatError, match=name):
            read_frame(tmp_path / name)


@pytest.mark.parametrize("suffix", [ending for known in FORMATS for ending in known.extensions])
@pytest.mark.filterwarnings("ignore")
def test_noise_is_no_frame(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
    by_others = suffix in em.FORMAT.extensions  # who reserve address space as they like
    limits = _within_limits(memory=np.inf) if by_others else _within_limits()
    with limits, pytest.raises(FileFormatError, match="a"):
        read_frame(tmp_path / f"a{suffix}")
