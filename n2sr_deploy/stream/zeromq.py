"""``zmq://host:port``: frames from a sender, results to subscribers. See `zmq_frames`."""

from __future__ import annotations

import ipaddress
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from n2sr_deploy.errors import ConnectionLostError, MissingExtraError, NotNowError, SettingError
from n2sr_deploy.stream.base import IMAGES, MAX_FRAME_BYTES
from n2sr_deploy.stream.zmq_frames import decoded, encoded, told_of_series

try:
    import zmq
    from zmq.utils.monitor import recv_monitor_message
except ModuleNotFoundError as error:
    raise MissingExtraError("zmq://", "pyzmq", "live") from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.stream.addresses import Address
    from n2sr_deploy.stream.base import LiveFrame, LiveResult


def _endpoint(address: Address) -> str:
    host, colon, port = address.target.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 2**16 or not host:
        raise SettingError(f"{address.text} must be zmq://HOST:PORT, like zmq://127.0.0.1:9999")
    return f"tcp://{host}:{port}"


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class ZmqSource:
    """Connects to a sender, ours or a SIMPLON detector.

    Options: ``socket=pull`` (default) or ``sub``, for a sender that publishes, like `ZmqSink`;
    ``queue``: how many messages wait here, 1 to 10000, default 2; with ``socket=pull`` the sender
    waits when it is full.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("socket", "queue")
        self.name = address.text
        self._endpoint = _endpoint(address)
        self._kind = address.choice("socket", "pull", "sub")
        self._queue = int(address.number("queue", 2, 1, 10_000))
        self._closing: Callable[[], object] | None = None
        self._n_read = 0
        self._detector: dict[str, Any] = {}

    def open(self) -> None:
        """Begin to connect; ZeroMQ itself waits for the sender to appear."""
        context = zmq.Context()
        self._socket = context.socket(zmq.PULL if self._kind == "pull" else zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = self._queue
        self._socket.maxmsgsize = MAX_FRAME_BYTES
        if self._kind == "sub":
            self._socket.subscribe(b"")
        self._monitor = self._socket.get_monitor_socket(
            zmq.Event.DISCONNECTED | zmq.Event.CONNECTED
        )
        self._closing = _closing(self, context, 0, self._socket, self._monitor)
        self._is_lost = False
        self._socket.connect(self._endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def read(self, timeout_s: float) -> LiveFrame | None:
        """The next frame."""
        ready = dict(self._poller.poll(round(1000 * timeout_s)))
        if self._monitor in ready:
            event = recv_monitor_message(self._monitor)["event"]
            self._is_lost = event == zmq.Event.DISCONNECTED
        if self._socket in ready:
            parts = self._socket.recv_multipart(copy=False)
            arrival_s = time.perf_counter()
            frame = self._decoded([part.buffer for part in parts])
            return None if frame is None else frame.arrived_at(arrival_s)
        if self._is_lost:  # and all it had sent was read
            publishes = ", or publishes, as n2sr itself does: then add ?socket=sub"
            hint = publishes if self._kind == "pull" else ""
            raise ConnectionLostError(f"the sender is gone{hint}")
        return None

    def _decoded(self, parts: list[memoryview]) -> LiveFrame | None:
        frame = decoded(parts, self._n_read)
        if frame is None:
            told = told_of_series(parts)
            kind = told.pop("htype", None)
            self._detector = told if kind is not None else {**self._detector, **told}
            return None
        self._n_read += 1
        if frame.series is None or not self._detector:
            return frame
        return replace(frame, metadata={**frame.metadata, "detector": self._detector})

    def close(self) -> None:
        """Disconnect; what waits here, or is sent before the sender has noticed, is lost."""
        if self._closing is not None:
            self._socket.disable_monitor()
            self._closing()
            self._closing = None


def _closing(
    owner: object,
    context: zmq.Context[zmq.Socket[bytes]],
    linger_ms: int,
    *sockets: zmq.Socket[bytes],
) -> Callable[[], object]:
    """What closes them, called at the latest when the owner is no longer there.

    A context that is collected before its sockets waits for them for ever.
    """

    def close() -> None:
        for socket in sockets:
            socket.close(linger=linger_ms)
        context.term()

    return weakref.finalize(owner, close)


class ZmqSink:
    """Publishes results on a port of this machine (PUB).

    Options: ``send=mean`` (default) or ``std`` or ``noisy``; ``queue``: how many messages wait for
    a slow subscriber, 1 to 10000, default 8; further ones are lost to it. ``wait=1``: instead, one
    receiver gets every frame (PUSH), and the stream waits for it.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("send", "queue", "wait")
        self.name = address.text
        self._endpoint = _endpoint(address)
        self._send = address.choice("send", *IMAGES)
        self._waits = address.flag("wait")
        self._queue = int(address.number("queue", 8, 1, 10_000))
        self._closing: Callable[[], object] | None = None
        host = address.target.rpartition(":")[0]
        if not is_local(host):
            raise SettingError(
                f"{address.text} would let other machines listen; take zmq://127.0.0.1:PORT and a "
                "tunnel (ssh -L), since ZeroMQ has no password of its own"
            )

    def open(self) -> None:
        """Bind the port."""
        context = zmq.Context()
        self._socket = context.socket(zmq.PUSH if self._waits else zmq.PUB)
        self._closing = _closing(self, context, 1000, self._socket)
        self._socket.linger = 0
        self._socket.sndhwm = self._queue
        self._socket.sndtimeo = 1000
        try:
            self._socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            in_use = error.errno == zmq.EADDRINUSE
            hint = "; end the program that has it, or name another port" if in_use else ""
            raise ConnectionLostError(f"its port cannot be had: {error}{hint}") from error

    def write(self, result: LiveResult) -> None:
        """Send a message."""
        pixels = result.image(self._send)
        if pixels is None:
            return
        message = encoded(pixels, result.noisy, result.metadata)
        try:
            self._socket.send_multipart(message, copy=True)
        except zmq.Again as error:
            raise NotNowError("no receiver takes its frames") from error

    def close(self) -> None:
        """Release the port, once what was sent is on its way."""
        if self._closing is not None:
            self._closing()
            self._closing = None
