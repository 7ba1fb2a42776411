"""What a stream counts and measures, for Prometheus."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from n2sr_deploy.errors import MissingExtraError, SettingError

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ModuleNotFoundError as error:
    raise MissingExtraError("--metrics-port", "prometheus-client", "live") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.stream.runner import StreamRunner


class _Collector:
    def __init__(self, runner: StreamRunner) -> None:
        self._runner = runner

    def collect(self) -> Iterator[Any]:
        """Asked whenever Prometheus asks."""
        summary = self._runner.statistics.summary()
        counts = {**summary["counts"], "dropped": self._runner.n_dropped}
        frames = CounterMetricFamily(
            "n2sr_frames", "Frames, by what became of them", labels=["what"]
        )
        for what, n in counts.items():
            frames.add_metric([what], n)
        yield frames
        stages = GaugeMetricFamily(
            "n2sr_latency_seconds", "Of the latest frames", labels=["stage", "quantile"]
        )
        for stage, times in summary["stages_ms"].items():
            for name, milliseconds in times.items():
                stages.add_metric([stage, f"0.{name.removeprefix('p')}"], milliseconds / 1e3)
        yield stages
        yield GaugeMetricFamily(
            "n2sr_fps", "Frames denoised or passed a second", self._runner.statistics.fps
        )


@contextmanager
def serve(runner: StreamRunner, port: int) -> Iterator[None]:
    """Serve on a port of 127.0.0.1 while the block runs.

    Raises
    ------
    SettingError
        When the port cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(runner))
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        raise SettingError(
            f"--metrics-port {port} cannot be had ({error.strerror}); "
            + ("end the program that has it, or " if is_taken else "")
            + "name another port"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
