"""One sink in a thread of its own: what it is given, what it loses, and when it is tried again."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from n2sr_deploy.errors import ConnectionLostError, N2SRError, NotNowError

if TYPE_CHECKING:
    from n2sr_deploy.stream.base import LiveResult, Sink
    from n2sr_deploy.stream.ring import Policy, Slot
    from n2sr_deploy.stream.statistics import StreamStatistics

_log = logging.getLogger("n2sr")
_TICK_S = 0.2  # how often a thread that waits looks whether it should end
_GIVES_UP_S = 5.0  # the most a sink may need to notice that it should stop; ZeroMQ's needs two
_BACK_OFF_S = 0.5, 10.0  # between tries to connect: at first, and at most
FOR_A_SINK = {"latest": 1, "all": 8}  # results that wait for a sink


class _Offer(NamedTuple):
    slot: Slot
    result: LiveResult


class SinkWorker:
    """Gives results to one sink, in a thread of its own."""

    def __init__(
        self, sink: Sink, policy: Policy, statistics: StreamStatistics, patience_s: float | None
    ) -> None:
        self.sink, self._policy, self._statistics = sink, policy, statistics
        self._patience_s = patience_s
        self._offers: deque[_Offer] = deque()
        self._changed = threading.Condition()
        self._is_finishing = self._is_stopped = self._is_stuck = self._is_out = False
        self.thread = threading.Thread(target=self._run, name=f"n2sr sink {sink.name}", daemon=True)
        self.failure: BaseException | None = None
        self.gave_up: N2SRError | None = None
        self._accepted_s = self._full_s = self._finishing_s = self._stopped_s = time.monotonic()
        self._back_off = BackOff(sink.name, statistics)
        self._is_open = False

    def offer(self, slot: Slot, result: LiveResult) -> None:
        """Queue a result, and give back what finds no place."""
        slot.retain()
        with self._changed:
            if self._policy == "all" and not self._is_stuck:
                self._changed.wait_for(self._has_room, self._patience_left_s(self._full_s))
                if not self._has_room():
                    self._is_stuck = True
                    _log.warning(
                        "%s accepts nothing; its frames are lost until it does", self.sink.name
                    )
            while self._offers and not self._has_room():
                self._offers.popleft().slot.release()
                self._statistics.count(f"lost by {self.sink.name}")
            if self._is_out:
                slot.release()
                self._statistics.count(f"lost by {self.sink.name}")
                return
            self._offers.append(_Offer(slot, result))
            if not self._has_room():
                self._full_s = time.monotonic()
            self._changed.notify_all()

    def _patience_left_s(self, since_s: float) -> float | None:
        """With a sink that does nothing since then, so that several are waited for at once."""
        if self._patience_s is None:
            return None
        return max(since_s + self._patience_s - time.monotonic(), 0.0)

    def _has_room(self) -> bool:
        return len(self._offers) < FOR_A_SINK[self._policy] or self._is_stopped or self._is_out

    def finish(self) -> None:
        """Write what is queued, then end, at the latest when patience does."""
        with self._changed:
            self._is_finishing = True
            self._finishing_s = time.monotonic()
            self._changed.notify_all()

    def wait(self) -> None:
        """Until it has ended, or its sink has accepted nothing for as long as patience lasts."""
        while self.thread.is_alive():
            left_s = self._patience_left_s(max(self._accepted_s, self._finishing_s))
            if left_s == 0:
                break
            self.thread.join(left_s)
        self.stop()

    def stop(self) -> None:
        """Write nothing more; what is queued is lost."""
        with self._changed:
            self._is_stopped, self._patience_s = True, 0.0
            self._stopped_s = time.monotonic()
            self._changed.notify_all()

    def end(self) -> None:
        """Leave behind what does not return."""
        self.thread.join(max(self._stopped_s + _GIVES_UP_S - time.monotonic(), 0.0))
        if self.thread.is_alive():
            _log.warning("%s does not return; it is left behind", self.sink.name)
            with self._changed:
                n_lost = len(self._offers) + 1  # and the one in its hand
            self._statistics.count(f"lost by {self.sink.name}", n_lost)

    def _run(self) -> None:
        try:
            with contextlib.closing(self.sink):
                self._write_all()
        except N2SRError as error:
            self.gave_up = error  # told by the runner
        except BaseException as error:  # noqa: BLE001 raised by the runner
            self.failure = error
        finally:
            with self._changed:
                self._is_out = True
                while self._offers:
                    self._offers.popleft().slot.release()
                    self._statistics.count(f"lost by {self.sink.name}")
                self._changed.notify_all()

    def _write_all(self) -> None:
        while not self._is_stopped:
            if not self._is_open and not self._opened():
                if self._is_finishing and (self._policy == "latest" or not self._offers):
                    return
                continue
            offer = self._next()
            if offer is not None:
                try:
                    self._write(offer)
                finally:
                    offer.slot.release()
            elif self._is_finishing:
                return

    def _opened(self) -> bool:
        """Whether it could be opened now; waits a while where not."""
        try:
            self.sink.open()
        except ConnectionLostError as error:
            self._pause(self._back_off.failed(error))
            return False
        self._is_open = True
        self._back_off.succeeded()
        return True

    def _write(self, offer: _Offer) -> None:
        """With policy ``all`` until it is accepted, or the stream is at its end."""
        while True:
            try:
                self.sink.write(offer.result)
            except ConnectionLostError as error:
                self.sink.close()
                self._is_open = False
                self._pause(self._back_off.failed(error))
            except NotNowError as error:
                _log.debug("%s: %s", self.sink.name, error)
            else:
                self._accepted(offer.result)
                return
            if self._policy == "latest" or self._is_stopped:
                self._statistics.count(f"lost by {self.sink.name}")
                return
            while not self._is_open and not self._is_stopped:
                self._opened()

    def _accepted(self, result: LiveResult) -> None:
        self._is_stuck = False
        self._accepted_s = time.monotonic()
        self._statistics.count(f"written to {self.sink.name}")
        waited_s = time.perf_counter() - result.noisy.arrival_s
        self._statistics.took(f"arrival to {self.sink.name}", waited_s)

    def _next(self) -> _Offer | None:
        with self._changed:
            self._changed.wait_for(lambda: self._offers or self._is_finishing, _TICK_S)
            offer = self._offers.popleft() if self._offers else None
            self._changed.notify_all()
            return offer

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_stopped or (self._is_finishing and self._policy == "latest"),
                seconds,
            )


class BackOff:
    """How long to wait until something is tried again; tells once that it is away, and is back."""

    def __init__(self, name: str, statistics: StreamStatistics) -> None:
        self._name, self._statistics = name, statistics
        self._wait_s = _BACK_OFF_S[0]
        self._was_told = False

    def failed(self, error: ConnectionLostError) -> float:
        """Seconds to wait."""
        if not self._was_told:
            _log.warning("%s is away (%s); it is tried again and again", self._name, error)
            self._was_told = True
        self._statistics.count(f"tries of {self._name}")
        wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, _BACK_OFF_S[1])
        return wait_s

    def succeeded(self) -> None:
        """It is there."""
        if self._was_told:
            _log.warning("%s is back", self._name)
        self._was_told = False
        self._wait_s = _BACK_OFF_S[0]
