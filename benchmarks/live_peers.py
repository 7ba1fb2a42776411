"""Live streams from other people's senders, and with senders and receivers that are killed.

Each measure of `benchmarks.live` here must end with nothing wrong, nothing twice and nothing
unaccounted for. The other people's have an environment of their own: make setup-peers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.live_process import numbered
from n2sr_deploy.stream import StreamRunner
from n2sr_deploy.stream.addresses import open_sink, open_source
from n2sr_deploy.stream.denoising import LiveDenoiser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from n2sr_deploy.stream import LiveResult

REPOSITORY = Path(__file__).parents[1]
PEERS = REPOSITORY / ".venv-peers" / "bin"
SIMULATOR = PEERS / "pvapy-ad-sim-server"
_KILLED = 20  # times
_QUIET_S = 5.0


def check_peers() -> None:
    """Exit where their environment is not there."""
    if not SIMULATOR.exists():
        raise SystemExit(f"{SIMULATOR} is not there; make it with: make setup-peers")


def _process(python: Path | str, *arguments: Any, **settings: Any) -> subprocess.Popen[str]:
    command = [str(python), "-m", "benchmarks.live_process", *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, **settings)


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    with process:
        try:
            yield process
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class _Watching:
    """A sink that looks at every frame."""

    name = "watching"

    def __init__(self, wanted: Callable[[int], Any]) -> None:
        self._wanted = wanted
        self.indices: list[int] = []
        self.wrong = 0
        self.came_s = time.monotonic()

    def open(self) -> None: ...

    def close(self) -> None: ...

    def write(self, result: LiveResult) -> None:
        index = result.noisy.index
        self.wrong += not np.array_equal(result.noisy.pixels, self._wanted(index))
        self.indices.append(index)
        self.came_s = time.monotonic()

    def wait(self, n_frames: int) -> None:
        """Until so many have come in all, or none for a while."""
        while len(self.indices) < n_frames and time.monotonic() - self.came_s < _QUIET_S:
            time.sleep(0.05)


@contextlib.contextmanager
def _running(runner: StreamRunner) -> Iterator[dict[str, Any]]:
    """The stream beside what is done; its counts are there afterwards."""
    counts: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: counts.update(runner.run()["counts"]))
    thread.start()
    try:
        yield counts
    finally:
        runner.stop()
        thread.join()


def _twice(indices: list[int]) -> int:
    return len(indices) - len(set(indices))


def simplon(n_frames: int = 2000, period_us: int = 5000) -> dict[str, Any]:
    """Compressed frames by DECTRIS' protocol, from LiberTEM's simulator."""
    check_peers()
    sink = _Watching(lambda index: np.full((512, 512), index, np.uint16))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    sender = _process(PEERS / "python", "simplon", n_frames, period_us, **pipes)
    with _killed_at_the_end(sender):
        uri = sender.stdout.readline().strip() if sender.stdout else ""
        source = open_source(f"zmq://{uri.removeprefix('tcp://')}")
        with _running(StreamRunner(source, [sink], LiveDenoiser(), policy="all")) as counts:
            sink.came_s = time.monotonic()
            sink.wait(n_frames)
    return {
        "sent": n_frames,
        "came_out": len(sink.indices),
        "wrong": sink.wrong,
        "in_order": sink.indices == list(range(n_frames)),
        "damaged": counts.get("damaged", 0),
    }


def micromanager() -> dict[str, Any]:
    """Micro-Manager's simulated camera."""
    check_peers()
    done = _process(PEERS / "python", "micromanager", stdout=subprocess.PIPE)
    told, _ = done.communicate()
    if done.returncode:
        raise SystemExit("the stream from Micro-Manager failed; see above")
    found: dict[str, Any] = json.loads(told)
    return found


def killed_source() -> dict[str, Any]:
    """A ZeroMQ sender killed and started again."""
    port, began_s, chance = _free_port(), time.time(), random.Random(0)
    sink = _Watching(numbered)
    source = open_source(f"zmq://127.0.0.1:{port}")
    with _running(StreamRunner(source, [sink], LiveDenoiser(), policy="all")) as counts:
        for _ in range(_KILLED):
            before = len(sink.indices)
            with _killed_at_the_end(_process(sys.executable, "send", port, began_s)):
                sink.came_s = time.monotonic() + 10
                sink.wait(before + chance.randrange(20, 100))
            time.sleep(chance.uniform(0, 0.5))
    indices = sink.indices
    return {
        "killed": _KILLED,
        "connections_lost": counts.get("connections lost", 0),
        "came_out": len(indices),
        "wrong": sink.wrong,
        "twice": _twice(indices),
        "gaps": counts.get("gaps", 0),
        "missing": counts.get("missing", 0),
        "unaccounted": indices[-1] - indices[0] + 1 - len(indices) - counts.get("missing", 0),
    }


class _Numbered:
    """A source of numbered frames, at a rate."""

    name = "numbered frames"

    def __init__(self) -> None:
        self._next = 0

    def open(self) -> None: ...

    def close(self) -> None: ...

    def read(self, timeout_s: float) -> Any:
        from n2sr_deploy.stream import LiveFrame

        time.sleep(0.005)
        self._next += 1
        return LiveFrame(pixels=numbered(self._next - 1), index=self._next - 1)


def killed_sink(kind: str) -> dict[str, Any]:
    """A receiver killed and started again; it subscribes (``sub``) or gets all (``pull``)."""
    port, chance = _free_port(), random.Random(0)
    address = f"zmq://127.0.0.1:{port}?send=noisy" + ("&wait=1" if kind == "pull" else "")
    runner = StreamRunner(
        _Numbered(), [open_sink(address), open_sink("null:")], LiveDenoiser(), policy="all"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "came.txt")
        file.touch()
        with _running(runner) as counts:
            for _ in range(_KILLED):
                wanted = len(file.read_text().splitlines()) + chance.randrange(20, 100)
                end = time.monotonic() + 2 * _QUIET_S
                with _killed_at_the_end(_process(sys.executable, "receive", kind, port, file)):
                    while len(file.read_text().splitlines()) < wanted and time.monotonic() < end:
                        time.sleep(0.02)
                time.sleep(chance.uniform(0, 0.5))
        rows = [line.split() for line in file.read_text().splitlines()]
    indices = [int(index) for index, _ in rows]
    return {
        "killed": _KILLED,
        "passed": counts["passed as they are"],
        "came_out": len(indices),
        "wrong": sum(is_whole != "1" for _, is_whole in rows),
        "twice": _twice(indices),
        "not_in_order": sum(b <= a for a, b in itertools.pairwise(indices)),
        "gaps_the_receivers_see": sum(b > a + 1 for a, b in itertools.pairwise(indices)),
        "lost_by_the_other_sink": counts.get("lost by null:", 0),
    }


def killed_pva(size: int = 128) -> dict[str, Any]:
    """Pvapy's simulator killed and started again; it counts anew each time."""
    check_peers()
    channel, chance = "N2SRBENCH:Killed", random.Random(0)
    os.environ |= {"EPICS_PVA_ADDR_LIST": "127.0.0.1", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    with tempfile.TemporaryDirectory() as folder:
        stack = Path(folder, "stack.npy")
        frames = np.random.default_rng(0).poisson(20, (50, size, size)).astype(np.uint16)
        np.save(stack, frames)
        known = {frame.tobytes() for frame in frames}
        lives: list[list[int]] = []
        sink = _Watching(lambda index: frames[0])
        sink.write = lambda result: _keep(result, sink, known, lives)  # type: ignore[method-assign]
        source = open_source(f"pva://{channel}?queue=1000")
        given = f"-dc -cn {channel} -fps 50 -rt 600 -std 1 -if {stack}"
        command = [str(SIMULATOR), *given.split()]
        with _running(StreamRunner(source, [sink], LiveDenoiser(), policy="all")) as counts:
            for _ in range(_KILLED):
                lives.append([])
                environment = {**os.environ, "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1"}
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                process = subprocess.Popen(command, text=True, env=environment, **quiet)
                with _killed_at_the_end(process):
                    sink.came_s = time.monotonic() + 10
                    sink.wait(len(sink.indices) + chance.randrange(20, 60))
                time.sleep(0.3)  # what was on its way belongs to this life
    return {
        "killed": _KILLED,
        "connections_lost": counts.get("connections lost", 0),
        "lives_with_frames": sum(bool(life) for life in lives),
        "came_out": len(sink.indices),
        "wrong": sink.wrong,
        "twice": sum(map(_twice, lives)),
        "missing": counts.get("missing", 0),
    }


def _keep(result: LiveResult, sink: _Watching, known: set[bytes], lives: list[list[int]]) -> None:
    sink.wrong += result.noisy.pixels.tobytes() not in known
    sink.indices.append(result.noisy.index)
    lives[-1].append(result.noisy.index)
    sink.came_s = time.monotonic()


def killed() -> dict[str, Any]:
    """All of them."""
    return {
        "source": killed_source(),
        "source pva": killed_pva(),
        "sink sub": killed_sink("sub"),
        "sink pull": killed_sink("pull"),
    }
