"""``pva://CHANNEL``: EPICS areaDetector frames (NTNDArray) over PVAccess, in and out."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy.errors import BadFrameError, ConnectionLostError, MissingExtraError, SettingError
from n2sr_deploy.sampling import PIXEL_TYPES
from n2sr_deploy.stream.base import IMAGES, MAX_FRAME_BYTES, LiveFrame

try:
    from p4p.client.thread import Context, Disconnected
    from p4p.nt import NTNDArray
    from p4p.server import Server
    from p4p.server.thread import SharedPV
except ModuleNotFoundError as error:
    raise MissingExtraError("pva://", "p4p", "live") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.sampling import AnyArray
    from n2sr_deploy.stream.addresses import Address
    from n2sr_deploy.stream.base import LiveResult

_LOOPBACK = "127.0.0.1"
_KNOWN = frozenset(PIXEL_TYPES)


def _channel(address: Address) -> str:
    if not address.target or any(letter.isspace() for letter in address.target):
        raise SettingError(f"{address.text} must be pva://CHANNEL, like pva://13SIM1:Pva1:Image")
    return address.target


class PvaSource:
    """Subscribes to a channel of NTNDArray.

    Options: ``queue``: how many updates wait here, 1 to 10000, default 4; older ones are lost then,
    which shows as gaps. ``EPICS_PVA_ADDR_LIST`` in the environment tells where servers are.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("queue")
        self.name = address.text
        self._channel = _channel(address)
        self._queue_size = int(address.number("queue", 4, 1, 10_000))
        self._context: Context | None = None
        self._n_read = 0

    def open(self) -> None:
        """Subscribe; the channel may appear later."""
        self._updates: queue.Queue[tuple[Any, float]] = queue.Queue(self._queue_size)
        self._context = Context("pva", nt=False)
        self._subscription = self._context.monitor(
            self._channel, self._arrived, notify_disconnect=True
        )
        self._was_connected = False

    def _arrived(self, update: Any) -> None:
        """In a thread of p4p's: it must not wait."""
        arrival_s = time.perf_counter()
        while True:
            try:
                self._updates.put_nowait((update, arrival_s))
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._updates.get_nowait()
            else:
                return

    def read(self, timeout_s: float) -> LiveFrame | None:
        """The next update that has a frame."""
        try:
            update, arrival_s = self._updates.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(update, Disconnected):
            if self._was_connected:
                raise ConnectionLostError("the channel is gone")
            return None  # not there yet
        if isinstance(update, Exception):
            raise ConnectionLostError(f"the channel failed ({update})")
        self._was_connected = True
        frame = decoded(update, self._n_read)
        if frame is None:
            return None
        self._n_read += 1
        return frame.arrived_at(arrival_s)

    def close(self) -> None:
        """Unsubscribe."""
        context, self._context = self._context, None
        if context is not None:
            self._subscription.close()
            context.close()


def decoded(value: Any, index: int) -> LiveFrame | None:
    """An NTNDArray as a frame; None for one without dimensions, as before the first frame.

    Raises
    ------
    BadFrameError
        When it is no NTNDArray of one grey frame.
    """
    try:
        sizes = [int(dimension["size"]) for dimension in value["dimension"]]
        flat = value["value"]
        codec = str(value.get("codec.name", "") or "")
        unique_id = int(value.get("uniqueId", index))
        attributes = {
            str(attribute["name"]): _plain(attribute["value"]) for attribute in value["attribute"]
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadFrameError(f"the channel's value is no NTNDArray ({error!r})") from error
    if not sizes:
        return None
    if codec:
        raise BadFrameError(
            f"frames are compressed ({codec}); switch the codec plugin off, or take the channel "
            "before it"
        )
    if len(sizes) == 3 and 1 in sizes:
        sizes.remove(1)
    if len(sizes) != 2:
        raise BadFrameError(f"a frame of dimensions {sizes}; one grey image (X, Y) was expected")
    return LiveFrame(
        pixels=_pixels(flat, sizes[1], sizes[0]),
        index=unique_id if unique_id >= 0 else index,
        source_time_s=_time(value),
        pixel_size=_pixel_size(attributes),
        unit=attributes.get("pixel_unit"),
        valid_rows=_valid_rows(attributes, sizes[1]),
        metadata=attributes,
    )


def _pixels(flat: Any, height: int, width: int) -> AnyArray:
    pixels = np.asarray(flat)
    if pixels.dtype not in _KNOWN:
        raise BadFrameError(f"pixels are {pixels.dtype}, but must be one of {_names()}")
    if pixels.nbytes > MAX_FRAME_BYTES:
        raise BadFrameError(f"a frame of {pixels.nbytes} bytes; at most {MAX_FRAME_BYTES} are read")
    if pixels.ndim != 1 or pixels.size != height * width or not pixels.size:
        raise BadFrameError(f"{pixels.size} pixels, but the dimensions are {width} x {height}")
    return pixels.reshape(height, width)


def _names() -> str:
    return ", ".join(dtype.name for dtype in PIXEL_TYPES)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool, list, type(None))) else str(value)


def _time(value: Any) -> float | None:
    seconds = value.get("timeStamp.secondsPastEpoch", 0)
    nanoseconds = value.get("timeStamp.nanoseconds", 0)
    return float(seconds) + 1e-9 * float(nanoseconds) if seconds else None


def _valid_rows(attributes: dict[str, Any], height: int) -> tuple[int, int] | None:
    first, end = attributes.get("valid_rows_first"), attributes.get("valid_rows_end")
    if not isinstance(first, int) or not isinstance(end, int) or not 0 <= first <= end <= height:
        return None
    return first, end


def _pixel_size(attributes: dict[str, Any]) -> tuple[float, float] | None:
    sizes = attributes.get("pixel_height"), attributes.get("pixel_width")
    if not all(isinstance(size, (int, float)) and math.isfinite(size) for size in sizes):
        return None
    return float(sizes[0]), float(sizes[1])  # type: ignore[arg-type]


class PvaSink:
    """Serves results as an NTNDArray channel, to programs of this machine.

    Options: ``send=mean`` (default) or ``std`` or ``noisy``. PVAccess has no password, so other
    machines are left to EPICS's gateway, which knows who may see what (docs/live/pvaccess.md).
    """

    def __init__(self, address: Address) -> None:
        address.check_options("send")
        self.name = address.text
        self._channel = _channel(address)
        self._send = address.choice("send", *IMAGES)
        self._server: Server | None = None

    def open(self) -> None:
        """Serve the channel."""
        nothing = NTNDArray().wrap(np.zeros((1, 1), np.float32))
        nothing["dimension"] = []  # before the first frame
        self._pv = SharedPV(initial=nothing)
        conf = {
            "EPICS_PVAS_INTF_ADDR_LIST": _LOOPBACK,
            "EPICS_PVAS_BEACON_ADDR_LIST": _LOOPBACK,
            "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
            **{
                name: os.environ[name]
                for name in ("EPICS_PVAS_SERVER_PORT", "EPICS_PVAS_BROADCAST_PORT")
                if name in os.environ
            },
        }
        try:
            self._server = Server(providers=[{self._channel: self._pv}], conf=conf, useenv=False)
        except RuntimeError as error:
            raise ConnectionLostError(f"the channel cannot be served: {error}") from error

    def write(self, result: LiveResult) -> None:
        """Post a frame."""
        pixels = result.image(self._send)
        if pixels is not None:
            self._pv.post(_encoded(pixels, result))

    def close(self) -> None:
        """Serve nothing any more."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
            self._pv.close(destroy=True)


def _encoded(pixels: AnyArray, result: LiveResult) -> Any:
    """An NTNDArray; the source's time and number are kept, what is known becomes attributes."""
    noisy = result.noisy
    value = NTNDArray().wrap(np.ascontiguousarray(pixels))
    value["uniqueId"] = noisy.index % 2**31
    taken_s = noisy.source_time_s or noisy.arrival_time_s
    if not 0 <= taken_s < 2**62:
        taken_s = noisy.arrival_time_s
    for stamp in ("timeStamp", "dataTimeStamp"):
        value[f"{stamp}.secondsPastEpoch"] = int(taken_s)
        value[f"{stamp}.nanoseconds"] = int((taken_s % 1) * 1e9)
    value["attribute"] = [
        {
            "name": _as_text_or_number(name),
            "value": _as_text_or_number(told),
            "descriptor": "",
            "source": "n2sr",
        }
        for name, told in dict(_told(result)).items()
    ]
    return value


def _told(result: LiveResult) -> Iterator[tuple[str, Any]]:
    """What is told of a result; a later one of the same name counts: n2sr may come after n2sr."""
    noisy = result.noisy
    yield from noisy.metadata.items()
    if noisy.pixel_size is not None:
        yield "pixel_height", noisy.pixel_size[0]
        yield "pixel_width", noisy.pixel_size[1]
        yield "pixel_unit", noisy.unit or ""
    if noisy.valid_rows is not None:
        yield "valid_rows_first", noisy.valid_rows[0]
        yield "valid_rows_end", noisy.valid_rows[1]
    for name, value in result.record.items():
        yield f"n2sr_{name}" if not name.startswith("n2sr") else name, value


def _as_text_or_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        value = str(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = str(value)
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
