"""Sources and sinks one by one, each by its own protocol, and what all of them owe a stream."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from n2sr_deploy import Frame, files, read_frame
from n2sr_deploy.cli import main
from n2sr_deploy.errors import (
    BadFrameError,
    ConnectionLostError,
    EndOfStreamError,
    FileFormatError,
    FrameError,
    InputFileError,
    NotChosenError,
    OutputError,
    SettingError,
)
from n2sr_deploy.formats import write_frame
from n2sr_deploy.frame import Intensity
from n2sr_deploy.stream import LiveResult
from n2sr_deploy.stream.addresses import open_sink, open_source
from n2sr_deploy.stream.base import MAX_FRAME_BYTES
from n2sr_deploy.stream.viewer import ViewerSink
from n2sr_deploy.stream.zmq_frames import decoded, encoded
from tests.conftest import REPOSITORY, random_pixels
from tests.fake_stream import live_frame

RECORD = {
    "n2sr_version": "1",
    "model": "a model",
    "weights_sha256": "ab",
    "n_samples": 4,
    "seed": 0,
    "backend": "ort",
    "pattern": "cell, stride 2 x 2",
}


def result_of(frame, **changes):
    mean = frame.pixels.astype(np.float32) + 1
    return LiveResult(
        **{"noisy": frame, "mean": mean, "std": mean / 10, "record": RECORD, **changes}
    )


def read_until(source, seconds=5.0):
    """The next frame, within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        frame = source.read(0.1)
        if frame is not None:
            return frame
    raise AssertionError("no frame came")


# the header over ZeroMQ


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
def test_a_message_is_decoded_as_it_was_encoded(dtype):
    frame = live_frame(
        7,
        pixel_size=(0.02, 0.03),
        unit="nm",
        source_time_s=1e9 + 0.25,
        valid_rows=(3, 30),
    )
    pixels = random_pixels((33, 65), dtype)
    found = decoded(encoded(pixels, frame, {"stage": {"x": [1, 2]}}), 0)
    assert np.array_equal(found.pixels, pixels)
    assert found.pixels.dtype == pixels.dtype
    for name in ("index", "pixel_size", "unit", "source_time_s", "valid_rows"):
        assert getattr(found, name) == getattr(frame, name)
    assert found.metadata == {"stage": {"x": [1, 2]}}


def message(pixels=None, **header):
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4) if pixels is None else pixels
    told = {"htype": "dimage_d-1.0", "shape": [4, 3], "type": "uint16", "encoding": "<", **header}
    return [json.dumps(told).encode(), pixels.tobytes()]


def test_thirty_lines_of_python_are_enough_for_a_sender():
    found = decoded([b'{"shape": [4, 3], "type": "uint16"}', message()[1]], 5)
    assert found.index == 5
    assert found.pixels.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_big_endian_pixels():
    big = np.arange(12, dtype=">u2").reshape(3, 4)
    found = decoded(message(big, encoding=">"), 0)
    assert found.pixels.dtype == np.dtype("uint16")
    assert found.pixels[2, 3] == 11


def test_a_simplon_series():
    assert decoded([b'{"htype": "dheader-1.0", "series": 3}', b"{}"], 0) is None
    assert decoded([b'{"bit_depth_image": 16, "beam_center_x": 0.0}'], 0) is None
    assert decoded([b'{"htype": "dseries_end-1.0", "series": 3}'], 0) is None
    first = json.dumps({"htype": "dimage-1.0", "series": 3, "frame": 41, "hash": "x"}).encode()
    found = decoded([first, *message(), b'{"htype": "dconfig-1.0"}'], 0)
    assert found.index == 41
    assert found.series == "3"
    assert found.metadata == {"series": 3, "config": {"htype": "dconfig-1.0"}}


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_compressed_pixels(dtype):
    bitshuffle = pytest.importorskip("bitshuffle")
    pixels = random_pixels((64, 48), dtype)
    blob = np.concatenate([np.zeros(12, np.uint8), bitshuffle.compress_lz4(pixels)])
    bits = 8 * pixels.itemsize
    header = {"shape": [48, 64], "type": dtype, "encoding": f"bs{bits}-lz4<"}
    found = decoded(message(blob, **header), 0)
    assert np.array_equal(found.pixels, pixels)
    rng = np.random.default_rng(0)
    for _ in range(300):  # the library trusts what it is given, and would end the process
        damaged = blob.copy()
        at = rng.integers(damaged.size)
        damaged[at] ^= rng.integers(1, 256)
        cut = damaged[: rng.integers(damaged.size)] if rng.random() < 0.5 else damaged
        with contextlib.suppress(BadFrameError):
            decoded(message(cut, **header), 0)
    for n in (0, 3, 12, 13, 16, 50):
        with pytest.raises(BadFrameError):
            decoded(message(blob[:n], **header), 0)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([], "a message of 0 parts"),
        ([b"not json", b""], "is no JSON"),
        ([b"[1, 2]", b""], "no JSON object but list"),
        ([b"{}", b""], "None is no pair of numbers"),
        (message(shape=[4]), "is no pair"),
        (message(shape=[0, 3]), "at least a pixel"),
        (message(shape=[-4, 3]), "shape is -4, but must be a whole number"),
        (message(shape=[4.0, 3]), "shape is 4.0, but must be a whole number"),
        (message(shape=[4, 30]), "24 bytes of pixels, but 30 x 4 uint16 has 240"),
        (message(shape=[2**40, 2**40]), "is larger than"),
        (message(type="complex64"), "type is 'complex64', but must be one of"),
        (message(type=["uint16"]), "type is"),
        (message(encoding="gzip<"), "encoding is 'gzip<'"),
        (message(encoding="bs32-lz4<"), "encoding is 'bs32-lz4<', but for uint16"),
        (message(frame=-1), "frame is -1"),
        (message(frame=True), "frame is True"),
        (message(metadata=[1]), "metadata is list"),
        (message(source_time_s="now"), "'now' is no number"),
        (message(pixel_size=[1]), "is no pair"),
        (message(valid_rows=[2, 9]), "but the frame has 3 rows"),
        ([b"[" * 100_000, b""], "is no JSON"),
        ([b" " * 2**21, b""], "a header of 2097152 bytes"),
    ],
)
def test_damaged_messages_are_told(parts, told):
    with pytest.raises(BadFrameError, match=told.replace("[", r"\[").replace("(", r"\(")):
        decoded(parts, 0)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_are_a_frame_or_told(parts):
    with contextlib.suppress(BadFrameError):
        decoded(parts, 0)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_NAMES = st.sampled_from(
    ["htype", "shape", "type", "encoding", "frame", "metadata", "pixel_size", "valid_rows", "unit"]
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(_NAMES, _JSON), st.binary(max_size=64))
def test_any_header_is_a_frame_or_told(changes, blob):
    header = {"shape": [4, 3], "type": "uint16", **changes}
    try:
        found = decoded([json.dumps(header).encode(), blob], 0)
    except BadFrameError:
        return
    assert found is None or found.pixels.nbytes <= MAX_FRAME_BYTES


# ZeroMQ


@pytest.fixture
def zmq():
    return pytest.importorskip("zmq")


class Sender:
    """A PUSH socket of somebody's."""

    def __init__(self, zmq, port=None):
        self.zmq = zmq
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PUSH)
        self.socket.linger = 0
        if port is None:
            self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        else:
            self.port = port
            self.socket.bind(f"tcp://127.0.0.1:{port}")

    def send(self, frame):
        self.socket.send_multipart(encoded(frame.pixels, frame, dict(frame.metadata)))

    def wait_for_nobody(self):
        """Until it knows that its receivers are gone: it goes on giving to one that has closed."""
        while self.socket.poll(0, self.zmq.POLLOUT):
            time.sleep(0.001)

    def close(self):
        self.context.destroy(linger=0)


def test_frames_come_over_zeromq(zmq):
    sender = Sender(zmq)
    source = open_source(f"zmq://127.0.0.1:{sender.port}?queue=100")
    source.open()
    assert source.read(0.05) is None
    for n in range(20):
        sender.send(live_frame(n, metadata={"n": n}))
    found = [read_until(source) for _ in range(20)]
    assert [frame.index for frame in found] == list(range(20))
    assert np.array_equal(found[7].pixels, live_frame(7).pixels)
    assert found[7].metadata == {"n": 7}
    sender.socket.send_multipart([b"nonsense", b""])
    with pytest.raises(BadFrameError):
        read_until(source)
    sender.send(live_frame(20))
    assert read_until(source).index == 20
    sender.close()
    with pytest.raises(ConnectionLostError, match="sender is gone"):
        read_until(source)
    source.close()
    source.close()


def test_what_was_never_closed_is_collected_without_waiting(zmq):
    """A context that was collected before its sockets waited for them, and the process hung."""
    script = """
import gc
import zmq
from n2sr_deploy.stream.addresses import open_sink, open_source
for _ in range(20):
    with zmq.Context() as context, context.socket(zmq.PUSH) as taken:
        port = taken.bind_to_random_port("tcp://127.0.0.1")
    for open_one in (open_source, open_sink):
        dropped = open_one(f"zmq://127.0.0.1:{port}")
        dropped.open()
        dropped.itself = dropped
        del dropped
        gc.collect()
"""
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True, cwd=REPOSITORY)


def test_what_a_detector_tells_of_a_series_goes_with_its_frames(zmq):
    sender = Sender(zmq)
    source = open_source(f"zmq://127.0.0.1:{sender.port}?queue=100")
    source.open()
    for series in (1, 2):
        head = {"htype": "dheader-1.0", "series": series}
        first = {"htype": "dimage-1.0", "series": series, "frame": 0}
        parts = [json.dumps(first).encode(), *message(), b'{"real_time": 5}']
        sender.socket.send_multipart([json.dumps(head).encode()])
        sender.socket.send_multipart([b'{"bit_depth_image": 16, "count_time": 0.5}'])
        sender.socket.send_multipart(parts)
        sender.socket.send_multipart([b'{"htype": "dseries_end-1.0"}'])
        frame = read_until(source)
        assert frame.series == str(series)
        assert frame.metadata["detector"]["count_time"] == 0.5
        assert frame.metadata["detector"]["series"] == series
        assert frame.metadata["config"] == {"real_time": 5}
    source.close()
    sender.close()


def test_a_sender_that_comes_back_is_read_again(zmq):
    first = Sender(zmq)
    source = open_source(f"zmq://127.0.0.1:{first.port}")
    source.open()
    first.send(live_frame(0))
    assert read_until(source).index == 0
    first.close()
    with pytest.raises(ConnectionLostError):
        read_until(source)
    source.close()
    source.open()
    second = Sender(zmq, first.port)
    second.send(live_frame(1))
    assert read_until(source).index == 1
    source.close()
    second.close()


def test_a_message_that_is_too_large_is_not_taken(zmq, monkeypatch):
    from n2sr_deploy.stream import zeromq

    monkeypatch.setattr(zeromq, "MAX_FRAME_BYTES", 1000)
    sender = Sender(zmq)
    source = open_source(f"zmq://127.0.0.1:{sender.port}")
    source.open()
    sender.send(live_frame(0))
    with pytest.raises(ConnectionLostError):
        read_until(source)
    source.close()
    sender.close()


def test_what_is_published_can_be_subscribed_to(zmq):
    with_port = Sender(zmq)
    with_port.close()
    address = f"zmq://127.0.0.1:{with_port.port}"
    sink, source = open_sink(address), open_source(f"{address}?socket=sub&queue=100")
    sink.open()
    source.open()
    frame = live_frame(3, pixel_size=(0.1, 0.1), unit="nm", metadata={"a": 1})
    found = None
    end = time.monotonic() + 5
    while found is None and time.monotonic() < end:  # until the subscription has arrived
        sink.write(result_of(frame))
        found = source.read(0.05)
    assert np.array_equal(found.pixels, frame.pixels.astype(np.float32) + 1)
    assert found.metadata == {"a": 1, "n2sr": RECORD}
    assert (found.index, found.pixel_size, found.unit) == (3, (0.1, 0.1), "nm")
    sink.close()
    sink.close()
    source.close()


def test_a_port_that_is_taken_is_tried_again_later(zmq):
    sender = Sender(zmq)
    sink = open_sink(f"zmq://127.0.0.1:{sender.port}")
    with pytest.raises(ConnectionLostError, match=r"port cannot be had.*name another port"):
        sink.open()
    sender.close()
    sink.open()
    sink.close()


def test_a_receiver_that_comes_late_gets_every_frame(zmq):
    from n2sr_deploy.stream import StreamRunner
    from n2sr_deploy.stream.denoising import LiveDenoiser
    from tests.fake_stream import FakeSource

    sender = Sender(zmq)
    sender.close()
    address = f"zmq://127.0.0.1:{sender.port}"
    frames = [live_frame(n) for n in range(30)]
    running = StreamRunner(
        FakeSource(frames), [open_sink(f"{address}?wait=1")], LiveDenoiser(), policy="all"
    )
    counts = {}
    thread = threading.Thread(target=lambda: counts.update(running.run()["counts"]))
    thread.start()
    time.sleep(2.5)
    source = open_source(f"{address}?queue=100")
    source.open()
    assert [read_until(source).index for _ in range(30)] == list(range(30))
    thread.join()
    source.close()
    assert counts[f"written to {address}?wait=1"] == 30


def test_a_sink_that_nobody_reads_ends_with_the_stream(zmq, caplog):
    """One left behind would have its socket closed under it at the program's exit, which aborts."""
    from n2sr_deploy.stream import StreamRunner
    from n2sr_deploy.stream.denoising import LiveDenoiser
    from tests.fake_stream import FakeSource

    sender = Sender(zmq)
    sender.close()
    sink = open_sink(f"zmq://127.0.0.1:{sender.port}?wait=1")
    source = FakeSource([live_frame(n) for n in range(30)])
    running = StreamRunner(source, [sink], LiveDenoiser(), policy="all", patience_s=0.1)
    counts = running.run()["counts"]
    assert counts[f"lost by {sink.name}"] == 30
    assert "accepts nothing" in caplog.text
    assert "left behind" not in caplog.text
    assert not [thread for thread in threading.enumerate() if sink.name in thread.name]


def test_one_receiver_may_get_every_frame(zmq, monkeypatch):
    sender = Sender(zmq)
    sender.close()
    address = f"zmq://127.0.0.1:{sender.port}"
    sink = open_sink(f"{address}?wait=1")
    sink.open()
    source = open_source(f"{address}?queue=100")
    source.open()
    for n in range(30):
        sink.write(result_of(live_frame(n)))
    assert [read_until(source).index for _ in range(30)] == list(range(30))
    source.close()
    sink.close()


# PVAccess


def test_n2sr_after_n2sr_tells_each_thing_once_over_pvaccess(pva):
    first, second = (open_sink(f"pva://N2SR:Chain{n}") for n in (1, 2))
    source, last = (open_source(f"pva://N2SR:Chain{n}") for n in (1, 2))
    for end in (first, second, source, last):
        end.open()
    time.sleep(0.3)
    first.write(result_of(live_frame(3, valid_rows=(2, 9), pixel_size=(0.1, 0.2), unit="nm")))
    between = read_until(source)
    assert between.valid_rows == (2, 9)
    second.write(result_of(between, record={**RECORD, "model": "another"}))
    found = read_until(last)
    assert found.metadata["n2sr_model"] == "another"
    assert (found.valid_rows, found.pixel_size, found.unit) == ((2, 9), (0.1, 0.2), "nm")
    for end in (first, second, source, last):
        end.close()


@pytest.fixture
def pva(monkeypatch):
    pytest.importorskip("p4p")
    import socket

    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        ports = str(tcp.getsockname()[1]), str(udp.getsockname()[1])
    for name, value in {
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_BROADCAST_PORT": ports[1],
        "EPICS_PVAS_SERVER_PORT": ports[0],
        "EPICS_PVAS_BROADCAST_PORT": ports[1],
    }.items():
        monkeypatch.setenv(name, value)


def test_frames_go_out_and_come_in_over_pvaccess(pva):
    sink, source = open_sink("pva://N2SR:Image"), open_source("pva://N2SR:Image?queue=100")
    source.open()
    assert source.read(0.1) is None
    sink.open()
    assert source.read(0.5) is None, "what the channel holds before the first frame is none"
    told = {"pixel_size": (0.02, 0.03), "unit": "nm", "source_time_s": 1.7e9 + 0.25}
    for n in range(5):
        sink.write(
            result_of(live_frame(n, (48, 64), metadata={"gain": 2.5, "mode": "HAADF"}, **told))
        )
        time.sleep(0.05)
    found = [read_until(source) for _ in range(5)]
    assert [frame.index for frame in found] == list(range(5))
    last = found[-1]
    wanted = live_frame(4, (48, 64)).pixels.astype(np.float32) + 1
    assert np.array_equal(last.pixels, wanted)
    assert last.pixel_size == (0.02, 0.03)
    assert last.unit == "nm"
    assert last.source_time_s == pytest.approx(1.7e9 + 0.25, abs=1e-6)
    assert last.metadata["gain"] == 2.5
    assert last.metadata["mode"] == "HAADF"
    assert last.metadata["n2sr_model"] == "a model"
    sink.close()
    with pytest.raises(ConnectionLostError, match="is gone"):
        read_until(source)
    source.close()
    source.close()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_every_type_of_ntndarray(dtype):
    pytest.importorskip("p4p")
    from p4p.nt import NTNDArray

    from n2sr_deploy.stream.pva import decoded as decoded_pva

    pixels = random_pixels((5, 7), dtype)
    found = decoded_pva(NTNDArray().wrap(pixels), 0)
    assert np.array_equal(found.pixels, pixels)


def test_ntndarrays_that_are_no_frame():
    pytest.importorskip("p4p")
    from p4p.nt import NTNDArray, NTScalar

    from n2sr_deploy.stream.pva import decoded as decoded_pva

    empty = NTNDArray().wrap(np.zeros((2, 2), np.uint8))
    empty["dimension"] = []
    assert decoded_pva(empty, 0) is None
    with pytest.raises(BadFrameError, match="no NTNDArray"):
        decoded_pva(NTScalar("d").wrap(3.0), 0)
    short = NTNDArray().wrap(np.zeros((2, 2), np.uint8))
    short["value"] = np.zeros(3, np.uint8)
    with pytest.raises(BadFrameError, match="3 pixels, but the dimensions are 2 x 2"):
        decoded_pva(short, 0)
    coloured = NTNDArray().wrap(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(BadFrameError, match="one grey image"):
        decoded_pva(coloured, 0)
    packed = NTNDArray().wrap(np.zeros((2, 2), np.uint8))
    packed["codec.name"] = "jpeg"
    with pytest.raises(BadFrameError, match=r"compressed \(jpeg\)"):
        decoded_pva(packed, 0)


# files


def a_frame(n=0, shape=(40, 50)):
    return Frame(pixels=live_frame(n, shape).pixels, pixel_size=(0.1, 0.1), unit="nm")


def test_files_that_appear_are_read_once_and_in_order(tmp_path):
    write_frame(tmp_path / "before.tif", a_frame())
    source = open_source(f"watch:{tmp_path}?settle=0.1")
    source.open()
    assert source.read(0.3) is None
    for n in range(3):
        write_frame(tmp_path / f"{n}.tif", a_frame(n))
    found = [read_until(source) for _ in range(3)]
    assert [frame.metadata["file"] for frame in found] == ["0.tif", "1.tif", "2.tif"]
    assert [frame.index for frame in found] == [0, 1, 2]
    assert np.array_equal(found[2].pixels, a_frame(2).pixels)
    assert found[0].pixel_size == (0.1, 0.1)
    assert abs(found[0].source_time_s - time.time()) < 60
    assert source.read(0.3) is None
    source.close()


def test_names_that_the_system_refuses_are_told_when_they_are_given(tmp_path):
    """A stream learned a network before its sink could not be opened."""
    for open_one, refused, addresses in (
        (open_source, InputFileError, ("watch:{}", "replay:{}.tif")),
        (open_sink, OutputError, ("folder:{}", "stack:{}.tif")),
    ):
        for address in addresses:
            with pytest.raises(refused, match="cannot be used: File name too long"):
                open_one(address.format(tmp_path / ("a" * 300)))


def test_files_count_from_when_the_source_is_made_and_by_their_numbers(tmp_path):
    """A model is loaded between that and its opening."""
    write_frame(tmp_path / "old.npy", a_frame(0))
    source = open_source(f"watch:{tmp_path}?settle=0")
    for n in (10, 9, 1):
        write_frame(tmp_path / f"frame{n}.npy", a_frame(n))
    source.open()
    found = [read_until(source).metadata["file"] for _ in range(3)]
    assert found == ["frame1.npy", "frame9.npy", "frame10.npy"]
    assert source.read(0.2) is None


def test_what_a_file_tells_comes_with_its_frame_and_goes_into_the_result(tmp_path):
    told = {
        "origin": (1.0, 2.0),
        "intensity": Intensity(scale=256.0, offset=100.0, unit="e"),
        "acquisition": {"beam_energy_kev": 300.0},
        "history": ("cropped",),
    }
    noisy = Frame(pixels=live_frame(0).pixels, pixel_size=(0.1, 0.1), unit="nm", **told)
    (tmp_path / "in").mkdir()
    write_frame(tmp_path / "in" / "a.tif", noisy)
    source = open_source(f"watch:{tmp_path / 'in'}?settle=0&existing=1")
    sinks = [
        open_sink(f"folder:{tmp_path / 'out'}?std=1"),
        open_sink(f"stack:{tmp_path / 'all.tif'}"),
    ]
    source.open()
    frame = read_until(source)
    for sink in sinks:
        sink.open()
        sink.write(result_of(frame))
        sink.close()
    for path in (tmp_path / "out" / "00000000.tif", tmp_path / "all.tif"):
        found = read_frame(path)
        assert (found.origin, found.intensity) == (noisy.origin, noisy.intensity)
        assert found.acquisition == noisy.acquisition
        assert found.history[0] == "cropped"
        assert len(found.history) == 2
    spread = read_frame(tmp_path / "out" / "00000000.std.tif")
    assert spread.intensity == Intensity(scale=256.0, unit="e")


def test_files_of_a_folder_that_is_made_later_all_count(tmp_path):
    source = open_source(f"watch:{tmp_path / 'in'}?settle=0")
    (tmp_path / "in").mkdir()
    write_frame(tmp_path / "in" / "a.npy", a_frame(0))
    source.open()
    assert read_until(source).metadata["file"] == "a.npy"


def test_a_folder_must_be_named(tmp_path):
    """Of a file it was told for ever that there is no such folder."""
    with pytest.raises(SettingError, match="needs a folder"):
        open_source("watch:")
    (tmp_path / "x.tif").write_bytes(b"")
    with pytest.raises(InputFileError, match=r"x\.tif is a file, but watch: needs a folder"):
        open_source(f"watch:{tmp_path / 'x.tif'}")


def test_files_that_are_there_count_if_asked_for(tmp_path):
    write_frame(tmp_path / "before.tif", a_frame())
    source = open_source(f"watch:{tmp_path}?settle=0&existing=1")
    source.open()
    assert read_until(source).metadata["file"] == "before.tif"


def test_a_file_counts_once_it_is_complete(tmp_path):
    write_frame(tmp_path / "whole.tif", a_frame())
    content = (tmp_path / "whole.tif").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    source = open_source(f"watch:{folder}?settle=0.3")
    source.open()
    with (folder / "slow.tif").open("wb") as file:
        for start in range(0, len(content), len(content) // 5 + 1):
            file.write(content[start : start + len(content) // 5 + 1])
            file.flush()
            assert source.read(0.15) is None
    assert read_until(source).metadata["file"] == "slow.tif"


def test_a_file_that_is_renamed_into_place(tmp_path):
    source = open_source(f"watch:{tmp_path}?settle=0")
    source.open()
    write_frame(tmp_path / "x.tif", a_frame())
    (tmp_path / "x.tif").rename(tmp_path / ".part")
    assert source.read(0.2) is None, "hidden files do not count"
    (tmp_path / ".part").rename(tmp_path / "x.tif")
    assert read_until(source).metadata["file"] == "x.tif"


def test_a_file_that_stays_broken_is_told_and_left_out(tmp_path):
    source = open_source(f"watch:{tmp_path}?settle=0.05&patience=0.3")
    source.open()
    (tmp_path / "broken.tif").write_bytes(b"II*\0 half a file")
    with pytest.raises(BadFrameError, match=r"broken\.tif cannot be read"):
        read_until(source)
    write_frame(tmp_path / "sound.tif", a_frame())
    assert read_until(source).metadata["file"] == "sound.tif"


def test_what_holds_several_is_refused_without_options_that_a_stream_has_not(tmp_path):
    """It advised --frame, or --signal."""
    stack, signals = tmp_path / "stack.npy", tmp_path / "signals.tif"
    np.save(stack, np.ones((3, 40, 40), np.float32))
    with tifffile.TiffWriter(signals) as file:
        for shape in ((40, 40), (50, 50)):
            file.write(np.ones(shape, np.float32))
    fix = r"Save each as a file of its own(?!.*--)"
    source = open_source(f"watch:{tmp_path}?settle=0.05&patience=0.1&existing=1")
    for told in (r"holds 2 signals", r"holds 3 frames"):
        with pytest.raises(BadFrameError, match=f"{told}, but n2sr takes one. {fix}"):
            read_until(source)
    with pytest.raises(FileFormatError, match=f"holds 2 signals, but n2sr takes one. {fix}"):
        open_source(f"replay:{signals}").open()
    with pytest.raises(NotChosenError, match=r"index=0 to index=2$") as raised:
        read_frame(stack)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_files_that_were_never_taken_are_told_at_the_end(tmp_path, caplog):
    source = open_source(f"watch:{tmp_path}?settle=0&patience=60")
    source.open()
    (tmp_path / "broken.tif").write_bytes(b"II*\0 half a file")
    (tmp_path / "empty.tif").touch()
    assert source.read(0.2) is None
    source.close()
    told = f"not taken from {tmp_path}: broken.tif (holds no image), empty.tif (empty)"
    assert told in caplog.text
    caplog.clear()
    for n in range(8):  # nor those that it had no time for
        write_frame(tmp_path / f"{n}.tif", a_frame())
    source.close()
    named = ", ".join(f"{n}.tif (not read yet)" for n in range(5))
    assert f"{named} and 5 more" in caplog.text


def test_a_folder_that_went_away_tells_of_no_files(tmp_path, caplog):
    folder = tmp_path / "there"
    folder.mkdir()
    source = open_source(f"watch:{folder}?settle=0")
    source.open()
    (folder / "broken.tif").write_bytes(b"II*\0 half a file")
    assert source.read(0.2) is None
    folder.rename(tmp_path / "away")
    with pytest.raises(ConnectionLostError):
        source.read(0.2)
    (tmp_path / "away").rename(folder)
    source.close()  # to be opened again
    assert "not taken" not in caplog.text
    source.open()
    source.close()
    assert "not taken" in caplog.text


def test_a_name_that_is_used_again_is_a_new_file(tmp_path):
    source = open_source(f"watch:{tmp_path}?settle=0")
    source.open()
    for n in range(3):
        write_frame(tmp_path / "live.tif", a_frame(n))
        assert np.array_equal(read_until(source).pixels, a_frame(n).pixels)
        (tmp_path / "live.tif").unlink()
        assert source.read(0.15) is None


def test_a_file_that_is_replaced_in_place_is_a_new_file(tmp_path):
    (tmp_path / "in").mkdir()
    source = open_source(f"watch:{tmp_path / 'in'}?settle=0")
    source.open()
    for n in range(4):
        write_frame(tmp_path / "next.tif", a_frame(n))
        (tmp_path / "next.tif").replace(tmp_path / "in" / "live.tif")
        assert np.array_equal(read_until(source).pixels, a_frame(n).pixels)
    assert source.read(0.15) is None


def test_other_files_are_passed_over(tmp_path):
    source = open_source(f"watch:{tmp_path}?settle=0&patience=0")
    source.open()
    (tmp_path / "x.mdoc").write_text("a sidecar")
    assert source.read(0.3) is None


def test_a_link_in_a_circle_hides_no_other_file(tmp_path):
    source = open_source(f"watch:{tmp_path}?settle=0")
    source.open()
    (tmp_path / "circle.tif").symlink_to("circle.tif")
    write_frame(tmp_path / "x.tif", a_frame())
    assert read_until(source).metadata["file"] == "x.tif"


class Listed(list):
    """A folder's entries, as `os.scandir` gives them; ``goes.npy`` has gone since."""

    def __init__(self, folder, scandir=os.scandir):
        super().__init__(scandir(folder))
        Path(folder, "goes.npy").unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.clear()


def test_a_file_that_goes_while_it_is_looked_at_brings_no_other_back(tmp_path, monkeypatch):
    source = open_source(f"watch:{tmp_path}?settle=0")
    source.open()
    write_frame(tmp_path / "first.npy", a_frame(0))
    assert read_until(source).index == 0
    write_frame(tmp_path / "goes.npy", a_frame(1))
    monkeypatch.setattr(os, "scandir", Listed)
    assert source.read(0.3) is None


def test_a_folder_that_goes_and_comes_back(tmp_path):
    folder = tmp_path / "in"
    source = open_source(f"watch:{folder}?settle=0")
    with pytest.raises(ConnectionLostError, match="there is no folder"):
        source.open()
    folder.mkdir()
    source.open()
    folder.rmdir()
    with pytest.raises(ConnectionLostError, match="cannot be read"):
        source.read(0.1)
    folder.mkdir()
    source.open()
    write_frame(folder / "x.tif", a_frame())
    assert read_until(source).index == 0


def test_a_stack_is_replayed_at_its_rate(tmp_path):
    stack = np.stack([live_frame(n, (32, 40)).pixels for n in range(4)])
    np.save(tmp_path / "stack.npy", stack)
    source = open_source(f"replay:{tmp_path / 'stack.npy'}?fps=50&loop=2")
    source.open()
    began = time.monotonic()
    found = [read_until(source) for _ in range(8)]
    assert time.monotonic() - began > 7 / 50 - 0.01
    assert [frame.index for frame in found] == list(range(8))
    assert np.array_equal(found[6].pixels, stack[2])
    with pytest.raises(EndOfStreamError):
        source.read(0.1)
    with pytest.raises(InputFileError, match="does not exist"):
        open_source(f"replay:{tmp_path / 'none.npy'}").open()


def test_a_frame_that_cannot_be_replayed_is_left_out_each_time(tmp_path):
    """The first ended the stream; after another, frames came in each other's place."""
    stack = np.stack([live_frame(n, (32, 40)).pixels.astype(np.float32) for n in range(4)])
    stack[[0, 2], 5, 5] = np.nan
    np.save(tmp_path / "stack.npy", stack)
    source = open_source(f"replay:{tmp_path / 'stack.npy'}?fps=1000&loop=2")
    source.open()
    found = {}
    for _ in range(8):
        with contextlib.suppress(BadFrameError):
            frame = read_until(source)
            found[frame.index] = frame.pixels
    assert list(found) == [1, 3, 5, 7]
    with pytest.raises(EndOfStreamError):
        source.read(1.0)
    assert all(np.array_equal(pixels, stack[index % 4]) for index, pixels in found.items())


def test_a_replay_of_which_no_frame_can_be_used_says_why(tmp_path):
    from n2sr_deploy.stream import LiveDenoiser, StreamRunner

    np.save(tmp_path / "stack.npy", np.full((2, 32, 40), np.nan, np.float32))
    source = open_source(f"replay:{tmp_path / 'stack.npy'}?fps=1000&loop=1000")
    with pytest.raises(FrameError, match=r"frame 1 of 2.*NaN"):
        StreamRunner(source, [open_sink("null:")], LiveDenoiser(), policy="all").run()


@pytest.mark.parametrize("ending", ["tif", "mrc", "npy"])
def test_results_as_files(tmp_path, ending):
    sink = open_sink(f"folder:{tmp_path / 'a' / 'b'}?format={ending}")
    sink.open()
    frame = live_frame(12, pixel_size=(0.1, 0.2), unit="nm")
    sink.write(result_of(frame))
    found = read_frame(tmp_path / "a" / "b" / f"00000012.{ending}")
    assert np.array_equal(found.pixels, frame.pixels.astype(np.float32) + 1)
    if ending != "npy":
        assert found.pixel_size == pytest.approx((0.1, 0.2))
        assert found.is_denoised
        assert found.metadata["n2sr"]["weights_sha256"] == "ab"
        assert found.history == (
            "n2sr 1: mean of 4 draws, seed 0, frame 12 of a stream, pattern cell, stride 2 x 2, "
            "weights ab of a model, ort",
        )
    for run in ("run-2", "run-3"):  # a source that counts anew replaces nothing
        sink.write(result_of(frame))
        assert (tmp_path / "a" / "b" / run / f"00000012.{ending}").exists()
    sink.close()
    again = open_sink(f"folder:{tmp_path / 'a' / 'b'}?format={ending}")
    again.open()
    again.write(result_of(frame))
    assert (tmp_path / "a" / "b" / "run-4" / "frames.jsonl").exists()


def test_a_growing_stack_can_be_read_at_any_time(tmp_path):
    import tifffile

    path = tmp_path / "new" / "out.tif"
    sink = open_sink(f"stack:{path}")
    sink.open()
    for n in range(4):
        frame = live_frame(n, pixel_size=(0.02, 0.02), unit="nm", metadata={"n": n})
        sink.write(result_of(frame))
        (tmp_path / "crashed.tif").write_bytes(path.read_bytes() + b"half a page")
        with tifffile.TiffFile(tmp_path / "crashed.tif") as read:
            assert len(read.pages) == n + 1
            told = json.loads(read.pages[n].description)
            assert np.array_equal(read.pages[n].asarray(), frame.pixels.astype(np.float32) + 1)
        assert told["index"] == n
        assert told["metadata"] == {"n": n, "n2sr": RECORD}
    sink.close()
    found = read_frame(path, 2)
    assert np.array_equal(found.pixels, live_frame(2).pixels.astype(np.float32) + 1)
    assert found.n_frames == 4
    assert found.unit == "nm"
    assert found.pixel_size == pytest.approx((0.02, 0.02))
    assert found.is_denoised
    assert "mean of 4 draws, seed 0, frame 2 of a stream" in found.history[0]
    again = open_sink(f"stack:{path}")
    again.open()
    again.write(result_of(live_frame(0)))
    again.close()
    assert (tmp_path / "new" / "out-2.tif").exists()
    with pytest.raises(SettingError, match=r"must end in \.tif"):
        open_sink("stack:out.mrc")


def test_each_frame_of_a_stack_tells_what_was_done_to_it(tmp_path):
    """A network may have been learned, or another one, in the middle of a stream."""
    path = tmp_path / "out.tif"
    sink = open_sink(f"stack:{path}")
    sink.open()
    raw = {"n2sr_version": "1", "model": None}
    sink.write(result_of(live_frame(0), record=raw, std=None))
    sink.write(result_of(live_frame(1), record={**RECORD, "n_hot_pixels": 2}))
    sink.write(result_of(live_frame(2), record={**RECORD, "weights_sha256": "cd"}))
    sink.close()
    frames = [read_frame(path, n) for n in range(3)]
    assert [frame.is_denoised for frame in frames] == [False, True, True]
    assert [frame.metadata["n2sr"]["weights_sha256"] for frame in frames[1:]] == ["ab", "cd"]
    assert [frame.metadata["n2sr"]["repair"] for frame in frames[1:]] == [True, False]
    assert frames[1].history[0] == "n2sr 1: 2 hot pixels replaced by the median of good ones around"
    assert [len(frame.history) for frame in frames] == [1, 2, 1]


def test_a_stack_that_cannot_begin_leaves_no_file(tmp_path, monkeypatch):
    """On a full disk its end asked for a writer that was never made."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("n2sr_deploy.stream.file_sinks.tifffile.TiffWriter", full)
    sink = open_sink(f"stack:{tmp_path / 'out.tif'}")
    with pytest.raises(OutputError, match="No space left on device"):
        sink.open()
    sink.close()
    assert not list(tmp_path.iterdir())


def test_frames_of_another_size_are_no_pages_of_a_stack(tmp_path, caplog):
    """They went into one file, which then held 2 signals."""
    caplog.set_level("INFO", "n2sr")
    sink = open_sink(f"stack:{tmp_path / 'out.tif'}")
    sink.open()
    for n in range(6):  # they may take turns
        sink.write(result_of(live_frame(n, ((64, 64), (32, 40))[n % 2])))
    sink.close()
    for name, shape in (("out.tif", (64, 64)), ("out-2.tif", (32, 40))):
        found = read_frame(tmp_path / name, 0)
        assert (found.shape, found.n_frames) == (shape, 3)
    assert caplog.text.count("frames of 32 x 40 pixels go into") == 1


def test_what_numpy_counts_on_a_full_disk_is_no_space_left():
    counted = OSError("16384 requested and 9000 written")
    assert files.why(counted) == "No space left on device"
    assert files.why(OSError(30, "Read-only file system", "ro/f")) == "Read-only file system"
    assert files.why(OSError("something else")) == "something else"
    assert files.why(ValueError("no number")) == "no number"


def test_what_a_format_cannot_keep_is_told_once(tmp_path, caplog):
    sink = open_sink(f"folder:{tmp_path}?format=npy")
    sink.open()
    sink.write(result_of(live_frame(0)))  # has nothing to lose
    for n in range(1, 4):
        sink.write(result_of(live_frame(n, pixel_size=(0.1, 0.2), unit="nm")))
    assert caplog.text.count("keeps no pixel size") == 1


def test_a_stack_without_a_frame_leaves_no_file(tmp_path):
    sink = open_sink(f"stack:{tmp_path / 'out.tif'}")
    sink.open()
    sink.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be renamed there")
def test_a_file_that_somebody_put_in_its_place_stays(tmp_path):
    path = tmp_path / "out.tif"
    sink = open_sink(f"stack:{path}")
    sink.open()
    path.rename(tmp_path / "moved.tif")
    path.write_text("somebody's")
    sink.close()
    assert path.read_text() == "somebody's"


def test_the_spread_is_told_as_such(tmp_path):
    sink = open_sink(f"folder:{tmp_path}?std=1")
    sink.open()
    sink.write(result_of(live_frame(3)))
    path = tmp_path / "00000003.std.tif"
    assert read_frame(path).history[-1].startswith("n2sr 1: spread of 4 draws, seed 0")
    told = CliRunner().invoke(main, ["info", str(path)]).output
    assert "the spread of a frame that n2sr denoised" in told


def test_frames_that_passed_through_are_no_results(tmp_path):
    sink = open_sink(f"folder:{tmp_path}")
    sink.open()
    record = {"n2sr_version": "1", "model": None}
    sink.write(result_of(live_frame(3), record=record, std=None))
    found = read_frame(tmp_path / "00000003.tif")
    assert not found.is_denoised
    assert found.history == (
        "n2sr 1: frame 3 of a stream passed through, as no model was there yet",
    )


@pytest.mark.skipif(os.name != "posix", reason="paths of POSIX")
def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    sink = open_sink(f"folder:{tmp_path / 'file'}")
    (tmp_path / "file").touch()  # since it was asked for
    with pytest.raises(OutputError, match=r"cannot be made: [A-Z][a-z ]+$"):
        sink.open()


@pytest.mark.parametrize("address", ["folder:file", "folder:file/out", "stack:file/out/all.tif"])
def test_a_file_in_the_place_of_a_sinks_folder_is_told_before_a_frame_comes(
    tmp_path, monkeypatch, address
):
    """The stream began, frames were lost, and then it was said that the file exists."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(OutputError, match=r"^file is a file, but must be a folder"):
        open_sink(address)


@pytest.mark.parametrize("address", ["folder:disk", "folder:disk/out", "stack:disk/out/all.tif"])
def test_a_sinks_folder_that_takes_no_files_is_told_before_a_frame_comes(
    tmp_path, monkeypatch, address
):
    monkeypatch.chdir(tmp_path)
    Path("disk").mkdir()
    monkeypatch.setattr("n2sr_deploy.files._takes_files", lambda folder: folder != Path("disk"))
    with pytest.raises(OutputError, match="the folder disk cannot be written to"):
        open_sink(address)
    assert not list(Path("disk").iterdir())


# Micro-Manager


def test_the_micromanager_source_without_its_library_tells_the_extra():
    from n2sr_deploy.errors import MissingExtraError

    try:
        import pymmcore_plus  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match=r"n2sr\[micromanager\]"):
            open_source("micromanager:demo")
    else:
        with pytest.raises(InputFileError, match="does not exist"):
            open_source("micromanager:nowhere.cfg").open()


# all of it at once


def test_a_stream_over_zeromq_in_and_out(zmq, model):
    from n2sr_deploy import Denoiser
    from n2sr_deploy.stream import StreamRunner
    from n2sr_deploy.stream.denoising import DenoisingOptions, LiveDenoiser

    sender = Sender(zmq)
    out = Sender(zmq)
    out.close()
    running = StreamRunner(
        open_source(f"zmq://127.0.0.1:{sender.port}?queue=50"),
        [open_sink(f"zmq://127.0.0.1:{out.port}?wait=1")],
        LiveDenoiser(model, "m", DenoisingOptions(backend="ort")),
        policy="all",
    )
    thread = threading.Thread(target=running.run)
    thread.start()
    receiver = open_source(f"zmq://127.0.0.1:{out.port}?queue=50")
    receiver.open()
    for n in range(25):
        sender.send(live_frame(n))
    found = [replace(f, pixels=f.pixels.copy()) for f in (read_until(receiver) for _ in range(25))]
    running.stop()
    thread.join()
    receiver.close()
    sender.close()
    assert [frame.index for frame in found] == list(range(25))
    with Denoiser(model, backend="ort") as denoiser:
        wanted = denoiser.denoise(live_frame(9).pixels, frame_index=9).mean
    assert np.array_equal(found[9].pixels, wanted)


# what all sources and all sinks owe


class Opened:
    """An address that gives frames, by its scheme; what makes it give the next, and know that a
    reader has left."""

    def __init__(self, scheme, tmp_path, request):
        self.n_sent = 0
        self.give = self.is_left = self.none
        if scheme == "zmq":
            self.sender = Sender(request.getfixturevalue("zmq"))
            request.addfinalizer(self.sender.close)
            self.address = f"zmq://127.0.0.1:{self.sender.port}"
            self.give, self.is_left = self.send, self.sender.wait_for_nobody
        elif scheme == "pva":
            request.getfixturevalue("pva")
            self.sink = open_sink("pva://N2SR:Contract")
            self.sink.open()
            request.addfinalizer(self.sink.close)
            self.address = "pva://N2SR:Contract"
            self.give = self.post
        elif scheme == "watch":
            self.folder = tmp_path
            self.address = f"watch:{tmp_path}?settle=0"
            self.give = self.drop
        elif scheme == "replay":
            np.save(tmp_path / "stack.npy", np.stack([live_frame(n).pixels for n in range(9)]))
            self.address = f"replay:{tmp_path / 'stack.npy'}?fps=1000"
        else:
            self.address = "sim:?size=64&fps=1000"

    def none(self):
        """It gives frames by itself, and to nobody in particular."""

    def send(self):
        self.sender.send(live_frame(self.n_sent))
        self.n_sent += 1

    def post(self):
        time.sleep(0.2)  # until it is subscribed to
        self.sink.write(result_of(live_frame(self.n_sent)))
        self.n_sent += 1

    def drop(self):
        write_frame(self.folder / f"{self.n_sent}.npy", a_frame(self.n_sent))
        self.n_sent += 1


@pytest.fixture(params=["zmq", "pva", "watch", "replay", "sim"])
def given_source(request, tmp_path):
    return Opened(request.param, tmp_path, request)


def test_a_source_reads_closes_and_opens_again(given_source):
    source = open_source(given_source.address)
    assert source.name == given_source.address
    source.close()  # before it was opened
    indices = []
    for _ in range(2):
        source.open()
        given_source.give()
        frame = read_until(source)
        assert frame.pixels.ndim == 2
        assert abs(frame.arrival_s - time.perf_counter()) < 5
        assert abs(frame.arrival_time_s - time.time()) < 5
        json.dumps(dict(frame.metadata))
        indices.append(frame.index)
        source.close()
        source.close()
        given_source.is_left()  # else a ZeroMQ sender gave its next frame to who had left
    assert indices[1] >= indices[0]


def test_reading_returns_when_nothing_comes(given_source):
    if given_source.address.startswith(("replay", "sim")):
        pytest.skip("it always has a frame")
    source = open_source(given_source.address)
    source.open()
    began = time.monotonic()
    assert source.read(0.1) is None
    assert time.monotonic() - began < 5
    source.close()


@pytest.fixture(params=["zmq", "pva", "folder", "stack", "viewer", "null"])
def sink(request, tmp_path):
    addresses = {
        "pva": "pva://N2SR:Contract",
        "folder": f"folder:{tmp_path / 'out'}",
        "stack": f"stack:{tmp_path / 'out.tif'}",
        "null": "null:",
    }
    if request.param in ("zmq", "pva"):
        library = request.getfixturevalue(request.param)
    if request.param == "zmq":
        sender = Sender(library)
        sender.close()
        addresses["zmq"] = f"zmq://127.0.0.1:{sender.port}"
    sink = ViewerSink() if request.param == "viewer" else open_sink(addresses[request.param])
    with contextlib.closing(sink):
        yield sink


def test_a_sink_writes_closes_and_opens_again_and_changes_nothing(sink):
    sink.close()  # before it was opened
    strange = {"text": "\ud800", "large": 2**70, "nested": {"a": [1, None]}, "nan": float("nan")}
    for index in (3, 4):
        sink.open()
        frame = live_frame(index, source_time_s=1e14, metadata=strange)
        result = result_of(frame)
        before = result.mean.copy(), frame.pixels.copy()
        sink.write(result)
        sink.write(result_of(live_frame(index + 10, (33, 65), np.float32), std=None))
        assert np.array_equal(result.mean, before[0])
        assert np.array_equal(frame.pixels, before[1])
        sink.close()
        sink.close()


def nested(levels):
    return json.loads('{"a":' * levels + "0" + "}" * levels)


@pytest.mark.parametrize(
    "header",
    [
        {"pixel_size": [0, 0], "unit": "nm"},
        {"pixel_size": [-1, 0.1], "unit": "nm"},
        {"pixel_size": [1e-12, 1e-12], "unit": "nm"},
        {"pixel_size": [1e14, 1e14], "unit": "um"},
        {"metadata": {"\ud800": "\ud800"}},
        {"metadata": {"n2sr_model": "before", "pixel_height": 3, "valid_rows_end": "x"}},
        {"metadata": nested(31)},
    ],
)
def test_a_sink_takes_whatever_the_decoder_lets_through(sink, header):
    sink.open()
    sink.write(result_of(decoded(message(**header), 0)))
    sink.close()


@pytest.mark.parametrize("metadata", [nested(32), nested(600), {"a": [[[nested(29)]]]}])
def test_a_header_too_deep_for_a_sink_is_refused(metadata):
    with pytest.raises(BadFrameError, match="more than 32 levels"):
        decoded(message(metadata=metadata), 0)


_VALUES = st.sampled_from(
    [np.zeros(12, np.uint16), np.zeros(0, np.uint8), np.zeros(12, complex), None, "text", 3.5]
)
_SIZES = st.lists(st.integers(-5, 2**40) | st.text(max_size=3) | st.none(), max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    value=_VALUES,
    sizes=_SIZES,
    codec=st.text(max_size=4) | st.none(),
    unique_id=st.integers(-(2**40), 2**40) | st.text(max_size=3),
    attributes=st.none() | st.lists(st.dictionaries(st.text(max_size=4), _JSON), max_size=3),
)
def test_any_ntndarray_is_a_frame_or_told(value, sizes, codec, unique_id, attributes):
    pytest.importorskip("p4p")
    from n2sr_deploy.stream.pva import decoded as decoded_pva

    given_value = {
        "value": value,
        "dimension": [{"size": size} for size in sizes],
        "codec.name": codec,
        "uniqueId": unique_id,
        "attribute": attributes,
    }
    with contextlib.suppress(BadFrameError):
        decoded_pva(given_value, 0)
