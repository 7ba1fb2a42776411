"""The viewer: what it serves, to whom, and what a browser makes of it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner

from n2sr_deploy import read_frame
from n2sr_deploy.cli import main
from n2sr_deploy.errors import SettingError
from n2sr_deploy.stream import LiveResult
from n2sr_deploy.stream.viewer import ViewerSink
from tests.fake_stream import live_frame

RECORD = {"n2sr_version": "1", "model": "sample.onnx", "backend": "ORT", "n_samples": 4}


def result_of(index=0, shape=(64, 96), **changes):
    frame = live_frame(index, shape, pixel_size=(0.02, 0.02), unit="nm", metadata={"a": 1})
    mean = frame.pixels.astype(np.float32) + 0.5
    return LiveResult(
        **{"noisy": frame, "mean": mean, "std": mean / 9, "record": RECORD, **changes}
    )


@pytest.fixture
def viewer():
    viewer = ViewerSink(told=lambda: {"fps": 12.5, "latency_ms": 31.0, "counts": {"dropped": 3}})
    viewer.open()
    with closing(viewer):
        yield viewer


def get(viewer, path, method="GET", **headers):
    request = urllib.request.Request(viewer.url.split("/?")[0].rstrip("/") + path, method=method)
    for name, value in headers.items():
        request.add_header(name, value)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, answer.read()


def unpacked(body):
    (length,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + length])
    images = np.frombuffer(body, "<f4", offset=4 + length).reshape(-1, *header["shape"])
    return header, images


def test_the_page_needs_nothing_from_elsewhere(viewer):
    status, body = get(viewer, "/")
    assert status == 200
    page = body.decode()
    assert "http://" not in page
    assert "https://" not in page
    assert "import " not in page


def test_a_frame_is_sent_with_all_that_is_known(viewer):
    result = result_of(7)
    viewer.write(result)
    header, images = unpacked(get(viewer, "/frame?after=0")[1])
    assert np.array_equal(images[0], result.noisy.pixels)
    assert np.array_equal(images[1], result.mean)
    assert np.array_equal(images[2], result.std)
    assert header["index"] == 7
    assert header["record"] == RECORD
    assert (header["pixel_size"], header["unit"]) == ([0.02, 0.02], "nm")
    told = {"fps": 12.5, "latency_ms": 31.0, "counts": {"dropped": 3}}
    assert header["told"] == {**told, "run": viewer.run_id, "frozen": False}


def test_a_part_is_sent_reduced_by_means(viewer):
    result = result_of(0, (200, 300))
    viewer.write(result)
    query = "/frame?after=0&top=40&left=60&height=100&width=120&side=60"
    header, images = unpacked(get(viewer, query)[1])
    assert header["block"] == 2
    assert header["part"] == [40, 60, 100, 120]
    wanted = result.mean[40:140, 60:180].reshape(50, 2, 60, 2).mean(axis=(1, 3))
    assert np.allclose(images[1], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "query",
    [
        "top=-5&left=9999&height=9999&width=-3&side=1",
        "top=x&side=99999999",
        "top=63&left=95&height=1&width=1",
        "height=1&width=96&side=16",
    ],
)
def test_parts_that_make_no_sense_are_answered_with_what_there_is(viewer, query):
    viewer.write(result_of())
    header, images = unpacked(get(viewer, f"/frame?after=0&{query}")[1])
    assert images.size > 0
    top, left, height, width = header["part"]
    assert 0 <= top < 64
    assert 0 <= left < 96
    assert top + height <= 64
    assert left + width <= 96


def test_frames_without_a_spread(viewer):
    viewer.write(result_of(std=None))
    header, images = unpacked(get(viewer, "/frame?after=0")[1])
    assert not header["has_std"]
    assert len(images) == 2


def test_who_asks_gets_the_next_frame_and_nobody_copies_for_nobody(viewer):
    viewer.write(result_of(0))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(get(viewer, "/frame?after=1")))
    asking.start()
    time.sleep(0.2)
    viewer.write(result_of(1))
    asking.join()
    assert unpacked(answers[0][1])[0]["index"] == 1
    for index in range(2, 6):
        viewer.write(result_of(index))
    assert viewer.shown.result.noisy.index == 1, "nobody waited"
    assert get(viewer, "/frame?after=99")[0] == 202, "none came in time"
    header, _ = unpacked(get(viewer, "/frame?after=99&again=1")[1])
    assert header["index"] == 1


def test_what_is_shown_can_be_frozen_and_saved(viewer, tmp_path):
    result = result_of(3)
    viewer.write(result)
    get(viewer, "/freeze?on=1", "POST")
    time.sleep(0.6)
    viewer.write(result_of(4))
    _, body = get(viewer, "/save", "POST")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.namelist() == ["noisy.tif", "denoised.tif", "spread.tif", "metadata.json"]
        archive.extractall(tmp_path)
    noisy = read_frame(tmp_path / "noisy.tif")
    assert np.array_equal(noisy.pixels, result.noisy.pixels)
    assert noisy.pixel_size == pytest.approx((0.02, 0.02))
    assert np.array_equal(read_frame(tmp_path / "denoised.tif").pixels, result.mean)
    told = json.loads((tmp_path / "metadata.json").read_text())
    assert told["index"] == 3
    assert told["metadata"] == {"a": 1, "n2sr": RECORD}
    get(viewer, "/freeze?on=0", "POST")
    viewer.write(result_of(5))
    assert viewer.shown.result.noisy.index == 5


def test_a_frame_saved_before_there_is_a_model_is_not_called_denoised(viewer):
    viewer.write(result_of(std=None, record={"n2sr_version": "1", "model": None}))
    _, body = get(viewer, "/save", "POST")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.namelist() == ["noisy.tif", "metadata.json"]


def refused(viewer, path, **headers):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(viewer, path, **headers)
    caught.value.close()
    return caught.value.code


def test_a_page_elsewhere_cannot_read_frames(viewer):
    viewer.write(result_of())
    assert refused(viewer, "/frame?after=0", Host="evil.example:80") == 403
    assert get(viewer, "/frame?after=0", Host="localhost")  # of a port that browsers leave out
    assert refused(viewer, "/nothing") == 404
    assert refused(viewer, "/freeze?on=1", method="POST", Origin="https://evil.example") == 403
    assert not viewer.is_frozen
    assert refused(viewer, "/save", Host="evil.example") == 403


def test_other_machines_need_the_token():
    viewer = ViewerSink(host="0.0.0.0", token="secret")
    viewer.open()
    with closing(viewer):
        viewer.write(result_of())
        assert viewer.url.endswith("/?token=secret")
        assert refused(viewer, "/frame?after=0") == 403
        assert refused(viewer, "/frame?after=0&token=guess") == 403
        assert get(viewer, "/frame?after=0&token=secret")[0] == 200
    made_up = ViewerSink(host="0.0.0.0")
    assert len(made_up.url.partition("token=")[2]) > 15
    made_up.close()


def test_the_command_refuses_others_without_a_token():
    arguments = ["stream", "sim:?frames=1", "--view", "--listen", "0.0.0.0"]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, "needs a --token" in done.output) == (2, True)


def test_a_port_that_is_taken_is_told(viewer):
    port = int(viewer.url.rsplit(":", 1)[1].rstrip("/"))
    with pytest.raises(SettingError, match="See --listen and --view-port"):
        ViewerSink(port)


def test_frames_are_copied_only_where_somebody_looks(viewer, monkeypatch):
    from n2sr_deploy.stream.viewer import server

    copied = []
    plain = server._copied
    monkeypatch.setattr(server, "_copied", lambda result: copied.append(1) or plain(result))
    monkeypatch.setattr(server, "_COPIES_EVERY_S", 1e9)
    with socket.create_connection(("127.0.0.1", int(viewer.url.rsplit(":", 1)[1].rstrip("/")))):
        for index in range(50):  # a browser that asks for nothing holds nobody
            viewer.write(result_of(index))
    assert len(copied) == 1


def test_a_page_that_is_closed_amid_an_answer_says_nothing(viewer, capfd, caplog):
    viewer.write(result_of(0, (512, 512)))
    port = int(viewer.url.rsplit(":", 1)[1].rstrip("/"))
    for _ in range(5):
        page = socket.create_connection(("127.0.0.1", port))
        page.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        page.sendall(b"GET /frame?after=0 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\nGET /fra")
        page.recv(100)
        page.close()  # with a reset
    time.sleep(0.3)
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert get(viewer, "/frame?after=0")[0] == 200


# in a real browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """Headless Chromium, by its debugging protocol over a pipe of WebSocket frames."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [
                CHROMIUM,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                *("--disable-component-update", "--remote-debugging-port=0"),
                *(f"--user-data-dir={folder}", "--window-size=1400,700", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stderr:
            if "DevTools listening on" in line:
                self.port = int(line.rsplit(":", 1)[1].split("/")[0])
                break
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/json", timeout=20) as answer:
            target = next(page for page in json.load(answer) if page["type"] == "page")
        path = target["webSocketDebuggerUrl"].split(str(self.port), 1)[1]
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        key = base64.b64encode(b"n2sr of the tests").decode()[:24]
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass
        self.n_calls = 0

    def call(self, method, **parameters):
        self.n_calls += 1
        text = json.dumps({"id": self.n_calls, "method": method, "params": parameters}).encode()
        head = b"\x81" + (
            bytes([0x80 | len(text)])
            if len(text) < 126
            else bytes([0x80 | 126]) + struct.pack(">H", len(text))
        )
        self.socket.sendall(head + b"\0\0\0\0" + text)
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self.n_calls:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self):
        parts = []
        while True:
            first, length = self.file.read(2)
            if length == 126:
                (length,) = struct.unpack(">H", self.file.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.file.read(8))
            parts.append(self.file.read(length))
            if first & 0x80:
                return b"".join(parts)

    def evaluate(self, script):
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, script, seconds=20.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.evaluate(script):
                return found
            time.sleep(0.1)
        raise AssertionError(f"{script} did not become true")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        self.file.close()
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.process.stderr.close()


@pytest.fixture
def browser(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path / "profile")
    with closing(browser):
        yield browser


PIXELS = """(id => { const c = document.getElementById(id).querySelector("canvas");
  const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  let sum = 0;
  for (let i = 0; i < d.length; i += 401) sum = (sum * 31 + d[i]) % 1000003;
  return sum; })"""


def test_the_page_calls_denoised_only_what_is(viewer, browser):
    """Frames that passed before there was a model stood under the title of denoised ones."""
    title = "document.querySelector('#mean figcaption').textContent"
    viewer.write(result_of(0, std=None, record={"n2sr_version": "1", "model": None}))
    browser.call("Page.navigate", url=viewer.url)
    browser.wait_for(f"window.n2sr?.data && {title} === 'not denoised: no model yet'")
    time.sleep(0.6)
    viewer.write(result_of(1))
    browser.wait_for(f"{title} === 'denoised'")


def test_the_toolbar_is_one_line_on_a_small_screen(viewer, browser):
    """Its last button stood alone on a second one at 1300 pixels."""
    record = {"model": "a_long_name_of_a_model.onnx", "backend": "TensorRT for RTX (float16)"}
    viewer.write(result_of(0, record={**record, "n_samples": 4}))
    bar = "[...document.querySelector('header').children].filter(x => x.offsetWidth)"
    middles = f"{bar}.map(x => x.getBoundingClientRect()).map(x => (x.top + x.bottom) / 2)"
    right = f"Math.max(...{bar}.map(x => x.getBoundingClientRect().right))"
    browser.call("Page.navigate", url=viewer.url)
    browser.wait_for("window.n2sr?.data")
    for key, mode, width, is_one_line in (
        ("1", "panels", 1280, True),
        ("2", "slider", 1280, True),
        ("2", "slider", 600, False),
    ):
        size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.press(key)
        browser.wait_for(f"innerWidth === {width} && n2sr.mode === '{mode}'")
        found = browser.evaluate(middles)
        assert (max(found) - min(found) < 2) == is_one_line
        assert browser.evaluate(right) <= width
        assert browser.evaluate("document.getElementById('model').offsetWidth") > 50


def test_the_page_in_a_browser(viewer, browser, tmp_path):
    stopping = threading.Event()

    def stream():
        index = 0
        while not stopping.wait(0.03):
            viewer.write(result_of(index, (128, 192)))
            index += 1

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        browser.call("Page.navigate", url=viewer.url)
        first = browser.wait_for("window.n2sr?.data?.header.index + 1")
        assert browser.wait_for(f"n2sr.data.header.index + 1 > {first + 3}")
        before = browser.evaluate(f"{PIXELS}('mean')")
        browser.wait_for(f"{PIXELS}('mean') !== {before}")  # the image really changes
        assert browser.evaluate("document.getElementById('model').textContent").startswith(
            "sample.onnx"
        )
        assert "12.5 frames/s" in browser.evaluate("document.body.innerText")
        assert "dropped 3" in browser.evaluate("document.body.innerText")
        assert browser.evaluate("n2sr.bar.length") > 0
        browser.press("f")
        browser.wait_for("document.querySelector('#mean .fft').width === 128")
        browser.press(" ")
        browser.wait_for("n2sr.frozen && !n2sr.freezing && !n2sr.asking")
        frozen = browser.evaluate("n2sr.data.header.index")
        # the slider moves what is seen of each
        browser.press("2")
        browser.wait_for("!document.getElementById('both').hidden")
        middle = browser.evaluate(f"{PIXELS}('both')")
        for _ in range(10):
            browser.press("ArrowRight")
        assert browser.evaluate(f"{PIXELS}('both')") != middle
        assert browser.evaluate("document.getElementById('place').value") == "750"
        assert browser.evaluate("document.getElementById('spectra').disabled")
        # zoom keeps to the frame, and the part is asked for
        browser.press("1")
        browser.press("+")
        browser.wait_for("n2sr.data.header.part[2] < 128")
        assert browser.evaluate("n2sr.data.header.index") == frozen
        saved = browser.evaluate(
            "fetch('/save', {method: 'POST'}).then(a => a.arrayBuffer())"
            ".then(b => btoa(Array.from(new Uint8Array(b), c => String.fromCharCode(c)).join('')))"
        )
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(saved))) as archive:
            assert json.loads(archive.read("metadata.json"))["index"] == frozen
            archive.extractall(tmp_path)
        assert read_frame(tmp_path / "noisy.tif").shape == (128, 192)
        browser.evaluate("HTMLAnchorElement.prototype.click = function() { window.link = this; }")
        browser.press("s")
        browser.wait_for(f"window.link?.download === 'n2sr-{frozen}.zip'")
        browser.press(" ")
        browser.wait_for(f"n2sr.data.header.index > {frozen}")
        assert browser.evaluate("document.getElementById('trouble').textContent") == ""
        browser.screenshot(tmp_path / "viewer.png")
        assert (tmp_path / "viewer.png").stat().st_size > 10_000
    finally:
        stopping.set()
        thread.join()
