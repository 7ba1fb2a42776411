"""Live streams: overhead, overload, endurance, memory, other people's senders, and what is killed.

    python -m benchmarks.live [--only overhead overload endurance memory pva simplon micromanager
                              killed] [--size 512] [--fps 25]

* overhead: frames through `StreamRunner` against the same frames through `Denoiser` alone.
* overload: ten times as many frames as can be denoised; what is shown must be young, memory flat,
  and every frame accounted for.
* endurance: many small frames into null sinks; memory, threads and open files must not grow.
* memory: many small frames denoised on each backend of the CPU; what the process holds more then.
* pva: pvapy's areaDetector simulator sends, n2sr denoises and serves the result, p4p counts what
  comes out. The simulator has an environment of its own: make setup-peers.
* simplon, micromanager, killed: see `benchmarks.live_peers`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import untrained
from benchmarks.live_peers import SIMULATOR, check_peers, killed, micromanager, simplon
from benchmarks.results import begin_as_deployed, keep_rows, kept_rows, machine
from n2sr_deploy import Denoiser
from n2sr_deploy.backends.choosing import ON_CPU, check_backend
from n2sr_deploy.errors import EndOfStreamError, MissingExtraError
from n2sr_deploy.sampling import LIVE_SAMPLES
from n2sr_deploy.stream import LiveFrame, StreamRunner
from n2sr_deploy.stream.addresses import open_sink, open_source
from n2sr_deploy.stream.denoising import DenoisingOptions, LiveDenoiser
from n2sr_train import export_model

CHANNELS = "N2SRBENCH:In", "N2SRBENCH:Out"


class Ready:
    """A source whose frames lie in memory: as fast as they are taken."""

    name = "frames in memory"

    def __init__(self, shape: tuple[int, int], n_frames: int, period_s: float = 0.0) -> None:
        rng = np.random.default_rng(0)
        self.frames = [rng.poisson(20, shape).astype(np.uint16) for _ in range(8)]
        self.n_frames, self.period_s = n_frames, period_s
        self.n_read = 0

    def open(self) -> None:
        """Begin now."""
        self.due_s = time.monotonic()

    def read(self, timeout_s: float) -> LiveFrame:
        """The next."""
        if self.n_read == self.n_frames:
            raise EndOfStreamError("no more")
        if self.period_s:
            time.sleep(max(self.due_s - time.monotonic(), 0))
            self.due_s += self.period_s
        self.n_read += 1
        return LiveFrame(pixels=self.frames[self.n_read % 8], index=self.n_read - 1)

    def close(self) -> None:
        """Nothing is open."""


def memory_bytes() -> int:
    """Resident, of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def denoiser(size: int) -> LiveDenoiser:
    """Preset fast, as if learned from a frame of this size; weights do not change the time."""
    model = export_model(untrained("fast"))
    metadata = replace(model.metadata, frame_shape=(size, size))
    return LiveDenoiser(replace(model, metadata=metadata), "untrained", DenoisingOptions())


def overhead(size: int, n_frames: int = 60) -> dict[str, Any]:
    """Milliseconds a frame, beside the denoiser's own; frames come slowly enough not to queue."""
    shape = (size, size)
    frames = Ready(shape, 1).frames
    alone = []
    with Denoiser(export_model(untrained("fast"))) as plain:
        for n in range(n_frames):
            began = time.perf_counter()
            plain.denoise(frames[n % 8], LIVE_SAMPLES, frame_index=n)
            alone.append(time.perf_counter() - began)
    bare_s = float(np.median(alone))
    source = Ready(shape, n_frames, 2 * bare_s)
    summary = StreamRunner(source, [open_sink("null:")], denoiser(size), policy="latest").run()
    stages = summary["stages_ms"]
    return {
        "size": size,
        "bare_denoiser_ms": 1e3 * bare_s,
        "in_the_stream_ms": stages["denoise"]["p50"],
        "arrival_to_sink_ms": stages["arrival to null:"]["p50"],
        "overhead_ms": stages["arrival to null:"]["p50"] - stages["denoise"]["p50"],
    }


def overload(size: int, seconds: float = 60.0) -> dict[str, Any]:
    """Ten times too many frames."""
    shape = (size, size)
    with Denoiser(export_model(untrained("fast"))) as plain:
        frame = Ready(shape, 1).frames[0]
        plain.denoise(frame, LIVE_SAMPLES)
        began = time.perf_counter()
        for n in range(5):
            plain.denoise(frame, LIVE_SAMPLES, frame_index=n)
        frame_s = (time.perf_counter() - began) / 5
    period_s = frame_s / 10
    source = Ready(shape, int(seconds / period_s), period_s)
    runner = StreamRunner(source, [open_sink("null:")], denoiser(size), policy="latest")
    memory: list[int] = []
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(1.0):
            memory.append(memory_bytes())

    watching = threading.Thread(target=watch)
    watching.start()
    summary = runner.run()
    stopping.set()
    watching.join()
    counts = summary["counts"]
    quarter = max(len(memory) // 4, 1)
    return {
        "size": size,
        "frame_ms": 1e3 * frame_s,
        "received": counts["received"],
        "denoised": counts["denoised"],
        "dropped": counts["dropped"],
        "unaccounted": counts["received"] - counts["denoised"] - counts["dropped"],
        "frame_times_from_arrival_to_sink_p99": summary["stages_ms"]["arrival to null:"]["p99"]
        / (1e3 * frame_s),
        "memory_growth_bytes": memory[-1] - memory[quarter] if memory else 0,
    }


def endurance(n_frames: int = 100_000, size: int = 32) -> dict[str, Any]:
    """Small frames, passed through as they are."""

    def run(n: int) -> None:
        source, sink = Ready((size, size), n), open_sink("null:")
        StreamRunner(source, [sink], LiveDenoiser(), policy="all").run()

    run(n_frames // 10)
    before = memory_bytes(), threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    began = time.perf_counter()
    run(n_frames)
    seconds = time.perf_counter() - began
    after = memory_bytes(), threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    names = "memory_growth_bytes", "threads_left", "files_left"
    grown = {name: b - a for name, a, b in zip(names, before, after, strict=True)}
    return {"frames": n_frames, "frames_per_s": n_frames / seconds, **grown}


def memory(n_frames: int = 100_000, n_warm_up: int = 5000, size: int = 32) -> dict[str, Any]:
    """Small frames through each backend: resident bytes more than after the first ones.

    Told after each tenth: what settles late is no leak, what grows with every tenth is one.
    """
    model, frames = export_model(untrained("fast")), Ready((size, size), 1).frames
    grown, seconds = {}, {}
    for backend in ON_CPU:
        try:
            check_backend(backend)
        except MissingExtraError as error:
            print(f"{backend}: {error}")
            continue
        with Denoiser(model, backend=backend) as plain:
            for n in range(n_warm_up):
                plain.denoise(frames[n % 8], LIVE_SAMPLES, frame_index=n)
            held, began = [memory_bytes()], time.perf_counter()
            for n in range(n_frames):
                plain.denoise(frames[n % 8], LIVE_SAMPLES, frame_index=n)
                if (n + 1) % (n_frames // 10) == 0:
                    held.append(memory_bytes())
        grown[backend] = [now - held[0] for now in held[1:]]
        seconds[backend] = time.perf_counter() - began
    return {"size": size, "frames": n_frames, "memory_growth_bytes": grown, "seconds": seconds}


def pva(size: int, fps: float, n_frames: int = 1500) -> dict[str, Any]:
    """From pvapy's simulator, and out again."""
    from p4p.client.thread import Context

    check_peers()
    os.environ |= {"EPICS_PVA_ADDR_LIST": "127.0.0.1", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    with tempfile.TemporaryDirectory() as folder:
        stack = Path(folder, "stack.npy")
        frames = np.random.default_rng(0).poisson(20, (50, size, size)).astype(np.uint16)
        np.save(stack, frames)
        runner = StreamRunner(
            open_source(f"pva://{CHANNELS[0]}"),
            [open_sink(f"pva://{CHANNELS[1]}")],
            denoiser(size),
            policy="latest",
        )
        summary: dict[str, Any] = {}
        streaming = threading.Thread(target=lambda: summary.update(runner.run()))
        streaming.start()
        came: list[int] = []
        with Context("pva", nt=False) as context:
            watched = context.monitor(CHANNELS[1], lambda value: came.append(value["uniqueId"]))
            seconds = n_frames / fps
            subprocess.run(
                [
                    *(SIMULATOR, "-dc", "-cn", CHANNELS[0], "-if", stack),
                    *("-fps", str(fps), "-rt", str(seconds), "-std", "5", "-shd", "3"),
                ],
                check=True,
                capture_output=True,
                env={**os.environ, "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1"},
            )
            runner.stop()
            streaming.join()
            watched.close()
    counts = summary["counts"]
    return {
        "size": size,
        "fps": fps,
        "received": counts["received"],
        "missing": counts.get("missing", 0),
        "dropped": counts["dropped"],
        "denoised": counts["denoised"],
        "came_out": len(set(came) - {0}),
        "arrival_to_sink_ms": summary["stages_ms"][f"arrival to pva://{CHANNELS[1]}"],
    }


def keep(name: str, found: dict[str, Any]) -> Path:
    """Keep a measure in the place of the same one before, beside the others."""
    row = {"measure": name, **found, "machine": machine()}
    asked = "measure", "size", "fps"
    others = [
        kept for kept in kept_rows("live") if any(kept.get(key) != row.get(key) for key in asked)
    ]
    return keep_rows("live", [*others, row])


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--fps", type=float, default=25)
    parser.add_argument("--seconds", type=float, default=60, help="of overload and pva")
    measures = {
        "overhead": lambda: overhead(asked.size),
        "overload": lambda: overload(asked.size, asked.seconds),
        "endurance": endurance,
        "memory": memory,
        "pva": lambda: pva(asked.size, asked.fps, int(asked.seconds * asked.fps)),
        "simplon": simplon,
        "micromanager": micromanager,
        "killed": killed,
    }
    parser.add_argument("--only", nargs="+", choices=measures, default=measures)
    asked = parser.parse_args()
    for name in asked.only:
        found = measures[name]()
        print(name, *(f"  {key}: {value}" for key, value in found.items()), sep="\n")
        path = keep(name, found)
    print(f"on {machine()['processor']}; kept in {path}")


if __name__ == "__main__":
    begin_as_deployed()
    main()
