"""What a stream counts and measures, for its summary, the viewer and Prometheus."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter, deque
from typing import Any

import numpy as np

_log = logging.getLogger("n2sr")
_KEPT = 4096  # of the latest values of a stage
_RATE_OVER_S = 2.0
PASSED = "passed as they are"
"""Count of frames that were handed on before there was a model."""
_MOST_TOLD = 10  # troubles of a kind, however many differ


class StreamStatistics:
    """Counts, latencies and rates. Shared by all threads of a stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter(received=0, denoised=0)
        self._stages: dict[str, deque[float]] = {}
        self._recent: deque[float] = deque(maxlen=_KEPT)
        self._told: dict[str, set[str]] = {}
        self._started = time.perf_counter()

    def count(self, what: str, n: int = 1) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[what] += n

    def trouble(self, kind: str, message: str) -> None:
        """Count something that went wrong, and tell of its first time; numbers make no other."""
        alike = re.sub(r"\b\d+\b", "", message)
        with self._lock:
            self._counts[kind] += 1
            told = self._told.setdefault(kind, set())
            is_new = alike not in told and len(told) < _MOST_TOLD
            if is_new:
                told.add(alike)
        if is_new:
            _log.warning("%s (more like it are only counted)", message)

    def forget(self, kind: str) -> None:
        """Tell of this kind of trouble again when it next comes."""
        with self._lock:
            self._told.pop(kind, None)

    def took(self, stage: str, seconds: float) -> None:
        """Keep how long a stage took."""
        with self._lock:
            self._stages.setdefault(stage, deque(maxlen=_KEPT)).append(seconds)

    def frame_done(self, *, is_denoised: bool) -> None:
        """Another frame has been denoised, or passed as it is."""
        with self._lock:
            self._counts["denoised" if is_denoised else PASSED] += 1
            self._recent.append(time.perf_counter())

    def __getitem__(self, what: str) -> int:
        with self._lock:
            return self._counts[what]

    def latest(self, stage: str) -> float | None:
        """How long a stage took last, in seconds."""
        with self._lock:
            values = self._stages.get(stage)
            return values[-1] if values else None

    @property
    def fps(self) -> float:
        """Frames denoised or passed a second, over the last two seconds."""
        now = time.perf_counter()
        with self._lock:
            n = sum(1 for then in self._recent if now - then < _RATE_OVER_S)
        return n / min(_RATE_OVER_S, max(now - self._started, 1e-9))

    def summary(self) -> dict[str, Any]:
        """As JSON keeps it: seconds, fps, counts, and p50, p95, p99 of each stage in ms.

        Percentiles are those of the latest 4096 frames.
        """
        with self._lock:
            counts = dict(sorted(self._counts.items()))
            stages = {stage: np.array(values) for stage, values in self._stages.items()}
            seconds = time.perf_counter() - self._started
        return {
            "seconds": seconds,
            "fps": (counts["denoised"] + counts.get(PASSED, 0)) / max(seconds, 1e-9),
            "counts": counts,
            "stages_ms": {
                stage: dict(
                    zip(
                        ("p50", "p95", "p99"),
                        (1e3 * np.percentile(values, (50, 95, 99))).tolist(),
                        strict=True,
                    )
                )
                for stage, values in stages.items()
            },
        }


def described(summary: dict[str, Any]) -> list[str]:
    """A summary as lines of text."""
    counts = {"received": 0, "denoised": 0, "dropped": 0, **summary["counts"]}
    told = ", ".join(f"{name} {n}" for name, n in counts.items())
    lines = [f"{summary['seconds']:.1f} s, {summary['fps']:.1f} frames/s; {told}"]
    for stage, times in summary["stages_ms"].items():
        each = ", ".join(f"{name} {value:.1f}" for name, value in times.items())
        lines.append(f"  {stage.rstrip(':')}: {each} ms")  # as of null:
    return lines
