"""From a source through the denoiser to sinks, one thread for each."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from n2sr_deploy.errors import (
    BadFrameError,
    ConnectionLostError,
    EndOfStreamError,
    FrameError,
    SettingError,
    check_choice,
)
from n2sr_deploy.stream.base import LiveFrame
from n2sr_deploy.stream.order import FrameOrder
from n2sr_deploy.stream.ring import FrameRing, Policy, Slot
from n2sr_deploy.stream.sink_worker import FOR_A_SINK, BackOff, SinkWorker
from n2sr_deploy.stream.statistics import PASSED, StreamStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from n2sr_deploy.stream.base import LiveResult, Sink, Source
    from n2sr_deploy.stream.denoising import LiveDenoiser

_log = logging.getLogger("n2sr")
_TICK_S = 0.2  # how often a thread that waits looks whether it should end
_SILENT_S = 10.0
_WHEN_SILENT = "does it send, and is the address right?"  # unless the source says otherwise


class StreamRunner:
    """Takes frames from a source, denoises them and gives them to sinks, until something ends it.

    Parameters
    ----------
    source
        Where frames come from.
    sinks
        Where results go; a slow or dead one holds neither the others nor, but for `policy`
        ``all`` and ten seconds, the stream.
    denoiser
        What denoises them; it is closed at the end.
    policy
        ``latest``: the newest frame wins, what is dropped is counted. ``all``: nothing is dropped,
        the source waits for the denoiser and the sinks.
    observe
        Called with every result, in the denoising thread: it must be quick.
    patience_s
        With a sink that accepts nothing under policy ``all``, and with sinks at the end; None:
        without bound.

    Raises
    ------
    SettingError
        When the policy, the source, a sink or the denoiser is none.
    """

    def __init__(
        self,
        source: Source,
        sinks: Sequence[Sink],
        denoiser: LiveDenoiser,
        *,
        policy: Policy = "latest",
        observe: Callable[[LiveResult], None] | None = None,
        patience_s: float | None = 10.0,
    ) -> None:
        check_choice("policy", policy, FOR_A_SINK)
        if not all(hasattr(denoiser, name) for name in ("prepare", "denoise", "close")):
            raise SettingError(
                f"denoiser is {denoiser!r:.200}, but must be a LiveDenoiser, as "
                "LiveDenoiser(model) makes one"
            )
        _check_has("source", source, "open", "read", "close")
        if not isinstance(sinks, Iterable):
            raise SettingError(f"sinks is {sinks!r:.200}, but must be a list of sinks")
        sinks = list(sinks)
        for sink in sinks:
            _check_has("sink", sink, "open", "write", "close")
        self.statistics = StreamStatistics()
        self.denoiser = denoiser
        self._source, self._policy, self._observe = source, policy, observe
        self._workers = [SinkWorker(sink, policy, self.statistics, patience_s) for sink in sinks]
        self._told: list[SinkWorker] = []  # of those that were given up
        # Each sink may hold its queue's frames, all of them other ones, and one in its hand.
        n_held = (FOR_A_SINK[policy] + 1) * max(len(sinks), 1)
        self._ring = FrameRing(n_held + 3, policy)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"n2sr {name}", daemon=True)
            for name, work in (("source", self._receive), ("denoiser", self._denoise))
        ]

    def stop(self) -> None:
        """End the stream; what waits is still denoised."""
        self._stopping.set()

    def run(self) -> dict[str, Any]:
        """Run until the source ends or `stop` is called; interrupted after that, leave its sinks.

        A runner runs once.

        Returns
        -------
        What `StreamStatistics.summary` tells.

        Raises
        ------
        N2SRError
            When the source cannot be opened for a reason that will not pass, the denoiser fails, or
            it was run before.
        Exception
            Whatever else was raised in a thread.
        """
        if self._threads[0].ident is not None:
            raise SettingError("this stream was run already; make another StreamRunner")
        self.denoiser.prepare()
        workers = [worker.thread for worker in self._workers]
        for thread in (*self._threads, *workers):
            thread.start()
        try:
            for thread in self._threads:
                while thread.is_alive():
                    thread.join(_TICK_S)
                    self._look_for_failures()
        except (KeyboardInterrupt, SystemExit):
            self._interrupted()
            raise
        finally:
            self.stop()
            self._ring.close()
            for thread in self._threads:
                thread.join()
            for step in (SinkWorker.finish, SinkWorker.wait, SinkWorker.end):
                for worker in self._workers:  # together: patience with them must not add up
                    step(worker)
            self.denoiser.close()
            # Told of a stream that fails, too.
            self.statistics.count("dropped", self._ring.n_dropped)
        self._look_for_failures()
        if self._failure is not None:
            raise self._failure
        return self.statistics.summary()

    def _interrupted(self) -> None:
        """Where it was to end already, it is to end sooner."""
        for worker in self._workers if self._stopping.is_set() else ():
            worker.stop()

    @property
    def n_dropped(self) -> int:
        """Frames that made place for newer ones before they were denoised."""
        return self._ring.n_dropped

    def told(self) -> dict[str, Any]:
        """For the viewer: fps, the latest frame's latency and what was counted."""
        counts = ("received", "denoised", PASSED, "damaged", "refused", "missing")
        told = {name: self.statistics[name] for name in counts}
        shown = {name: n for name, n in told.items() if n or name in ("received", "denoised")}
        latency_s = self.statistics.latest("arrival to denoised")
        return {
            "fps": self.statistics.fps,
            "latency_ms": None if latency_s is None else 1e3 * latency_s,
            "counts": {**shown, "dropped": self._ring.n_dropped},
        }

    def _look_for_failures(self) -> None:
        """A sink that fails by a mistake of its own ends the stream, loudly."""
        for worker in self._workers:
            if worker.failure is not None and self._failure is None:
                self._failure = worker.failure
                self.stop()
        new = [w for w in self._workers if w.gave_up is not None and w not in self._told]
        self._told += new
        if new and len(self._told) == len(self._workers) and self._failure is None:
            self._failure = new.pop().gave_up  # nobody is left to write to; raised, so told there
            self.stop()
        for worker in new:
            _log.warning("%s is given up: %s", worker.sink.name, worker.gave_up)

    @property
    def gave_up(self) -> list[str]:
        """Sinks that were given up, by name."""
        return [worker.sink.name for worker in self._workers if worker.gave_up is not None]

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 raised by `run`
            self._failure = self._failure or error
        finally:
            self.stop()
            self._ring.close()

    # the source's thread

    def _receive(self) -> None:
        back_off = BackOff(self._source.name, self.statistics)
        order = FrameOrder(self.statistics)
        with contextlib.closing(self._source):
            while not self._stopping.is_set():
                try:
                    self._source.open()
                    order.begins_anew()
                    self._read_on(order, back_off)
                except EndOfStreamError:
                    return
                except ConnectionLostError as error:
                    self._source.close()
                    self.statistics.count("connections lost")
                    self._stopping.wait(back_off.failed(error))

    def _read_on(self, order: FrameOrder, back_off: BackOff) -> None:
        """Until the connection is lost or the stream is to end."""
        last_s = time.monotonic()
        while not self._stopping.is_set():
            try:
                frame = self._source.read(_TICK_S)
            except BadFrameError as error:
                back_off.succeeded()
                order.damaged()
                self.statistics.trouble("damaged", f"{self._source.name}: {error}; left out")
                continue
            if not isinstance(frame, LiveFrame | None):
                raise SettingError(
                    f"{self._source.name} gave {type(frame).__name__}, but read must return a "
                    "LiveFrame(pixels=..., index=...), or None where none has come"
                )
            if frame is not None:
                back_off.succeeded()
                last_s = time.monotonic()
                self.statistics.forget("silences")
                self._put(frame, order)
            elif time.monotonic() - last_s > _SILENT_S:
                last_s = time.monotonic()
                message = f"nothing has come from {self._source.name} for {_SILENT_S:.0f} s"
                hint = getattr(self._source, "when_silent", _WHEN_SILENT)
                self.statistics.trouble("silences", f"{message}; {hint}")

    def _put(self, frame: LiveFrame, order: FrameOrder) -> None:
        self.statistics.count("received")
        if not order.accepts(frame):
            return
        while not self._ring.put(frame, _TICK_S):
            if self._stopping.is_set():
                self.statistics.count("dropped")
                return

    # the denoiser's thread

    def _denoise(self) -> None:
        while not self._ring.is_drained:
            slot = self._ring.take(_TICK_S)
            if slot is not None:
                try:
                    self._denoise_one(slot)
                finally:
                    slot.release()

    def _denoise_one(self, slot: Slot) -> None:
        frame = slot.frame
        began = time.perf_counter()
        self.statistics.took("wait", began - frame.arrival_s)
        try:
            result = self.denoiser.denoise(frame)
        except FrameError as error:
            self.statistics.trouble("refused", f"frame {frame.index}: {error}; left out")
            return
        except MemoryError as error:
            told = str(error) or "there is too little memory; close other programs"
            self.statistics.trouble("refused", f"frame {frame.index}: {told}; left out")
            return
        done = time.perf_counter()
        is_denoised = result.std is not None
        if is_denoised:
            self.statistics.took("denoise", done - began)
            self.statistics.took("arrival to denoised", done - frame.arrival_s)
        self.statistics.frame_done(is_denoised=is_denoised)
        for worker in self._workers:
            worker.offer(slot, result)
        if self._observe is not None:
            self._observe(result)


def _check_has(kind: str, given: object, *methods: str) -> None:
    if not all(hasattr(given, name) for name in ("name", *methods)):
        raise SettingError(
            f"{kind} is {given!r:.200}, but must be one, as open_{kind}(address) is, or have name, "
            f"{', '.join(methods[:-1])} and {methods[-1]}, as n2sr_deploy.stream.{kind.title()} "
            "tells"
        )
