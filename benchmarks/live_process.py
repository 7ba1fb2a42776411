"""What `benchmarks.live_peers` starts in processes of their own, to talk with and to kill.

python -m benchmarks.live_process simplon N_FRAMES MICROSECONDS   (in .venv-peers)
python -m benchmarks.live_process micromanager                    (in .venv-peers)
python -m benchmarks.live_process send PORT BEGAN_S
python -m benchmarks.live_process receive sub|pull PORT FILE
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from n2sr_deploy.stream import LiveResult

SENT_EVERY_S = 0.005
_SHAPE = 64, 64


def numbered(index: int) -> np.ndarray[Any, Any]:
    """The frame of this number; a wrong or torn one is not like it."""
    return np.arange(np.prod(_SHAPE), dtype=np.uint16).reshape(_SHAPE) + np.uint16(index % 60_000)


def simplon(n_frames: int, period_us: int) -> None:
    """DECTRIS' protocol, by LiberTEM's simulator: every pixel of frame n is n."""
    from libertem_dectris import DectrisSim

    simulator = DectrisSim.new_mocked("tcp://127.0.0.1", n_frames, period_us, random_port=True)
    print(simulator.get_uri(), flush=True)
    simulator.send_headers()
    simulator.send_frames()
    simulator.send_footer()
    sys.stdin.read()  # what it has sent is lost with it


def send(port: int, began_s: float) -> None:
    """Frames numbered by the clock, so that one that was killed leaves a gap."""
    import zmq

    from n2sr_deploy.stream import LiveFrame
    from n2sr_deploy.stream.zmq_frames import encoded

    socket = zmq.Context().socket(zmq.PUSH)
    socket.bind(f"tcp://127.0.0.1:{port}")
    last = -1
    while True:
        index = int((time.time() - began_s) / SENT_EVERY_S)
        if index > last:
            frame = LiveFrame(pixels=numbered(index), index=index)
            socket.send_multipart(encoded(frame.pixels, frame, {}))
            last = index
        time.sleep(SENT_EVERY_S / 5)


def receive(kind: str, port: int, file: Path) -> None:
    """Write down which frames come, a line each, with whether they are whole."""
    import zmq

    from n2sr_deploy.stream.zmq_frames import decoded

    socket = zmq.Context().socket(zmq.SUB if kind == "sub" else zmq.PULL)
    if kind == "sub":
        socket.subscribe(b"")
    socket.connect(f"tcp://127.0.0.1:{port}")
    with file.open("a", buffering=1) as lines:
        while True:
            frame = decoded(socket.recv_multipart(), 0)
            if frame is not None:
                is_whole = np.array_equal(frame.pixels, numbered(frame.index))
                lines.write(f"{frame.index} {is_whole:d}\n")


_CONFIGURATION = """\
Device,Camera,DemoCamera,DCam
Property,Core,Initialize,1
Property,Core,Camera,Camera
Property,Camera,Mode,Noise
Property,Camera,PixelType,16bit
Property,Camera,OnCameraCCDXSize,128
Property,Camera,OnCameraCCDYSize,128
Property,Camera,Exposure,10
"""


def micromanager() -> None:
    """Micro-Manager's simulated camera into a sink that keeps up, and into one that does not."""
    import mm_test_adapters

    os.environ["MICROMANAGER_PATH"] = mm_test_adapters.device_adapter_path()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "camera.cfg")
        file.write_text(_CONFIGURATION)
        print(json.dumps({"in_time": _camera(file, 500), "overflowing": _camera(file, 300, 1)}))


def _camera(file: Path, n_frames: int, buffer_mb: int | None = None) -> dict[str, Any]:
    """Frames as the library gave them against those that came out.

    With a buffer of so many megabytes the sink pauses, twice, until that has overflowed.
    """
    from pymmcore_plus import CMMCorePlus

    from n2sr_deploy.stream import StreamRunner
    from n2sr_deploy.stream.addresses import open_source
    from n2sr_deploy.stream.denoising import LiveDenoiser

    given: dict[int, np.ndarray[Any, Any]] = {}

    class Core(CMMCorePlus):
        def startContinuousSequenceAcquisition(self, interval: float = 0) -> None:  # noqa: N802
            if buffer_mb is not None:
                self.setCircularBufferMemoryFootprint(buffer_mb)
            super().startContinuousSequenceAcquisition(interval)

        def popNextImageAndMD(self, *asked: Any, **named: Any) -> Any:  # noqa: N802
            pixels, told = super().popNextImageAndMD(*asked, **named)
            given[int(told["ImageNumber"])] = pixels.copy()
            return pixels, told

    from n2sr_deploy.stream import micromanager

    micromanager.CMMCorePlus = Core
    indices: list[int] = []
    wrong = 0

    class Sink:
        name = "compares"

        def open(self) -> None: ...

        def close(self) -> None: ...

        def write(self, result: LiveResult) -> None:
            nonlocal wrong
            index = result.noisy.index
            wrong += not np.array_equal(result.noisy.pixels, given[index])
            indices.append(index)
            if buffer_mb is not None and len(indices) in (n_frames // 3, 2 * n_frames // 3):
                time.sleep(1.5)
            if len(indices) == n_frames:
                threading.Thread(target=runner.stop).start()

    runner = StreamRunner(
        open_source(f"micromanager:{file}"), [Sink()], LiveDenoiser(), policy="all"
    )
    counts = runner.run()["counts"]
    return {
        "received": counts["received"],
        "came_out": len(indices),
        "wrong": wrong,
        "not_in_order": sum(b <= a for a, b in itertools.pairwise(indices)),
        "missing": counts.get("missing", 0),
        "unaccounted": indices[-1] + 1 - len(indices) - counts.get("missing", 0),
        "connections_lost": counts.get("connections lost", 0),
    }


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    if name == "simplon":
        simplon(int(given[0]), int(given[1]))
    elif name == "send":
        send(int(given[0]), float(given[1]))
    elif name == "receive":
        receive(given[0], int(given[1]), Path(given[2]))
    else:
        micromanager()
