"""What comes from a source, what goes to a sink, and what both must do."""

from __future__ import annotations

import math
import operator
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from n2sr_deploy.errors import BadFrameError
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray, FloatArray

MAX_FRAME_BYTES = 2**30
"""Of one frame's pixels; whatever says it is larger is refused before memory is asked for."""


IMAGES = "mean", "std", "noisy"
"""What a sink may send of a `LiveResult`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveFrame:
    """A frame as it arrived."""

    pixels: AnyArray
    """(H, W). A source may reuse the memory when it is read again."""
    index: int
    """The source's own number; it rises by one from frame to frame where none is lost."""
    pixel_size: tuple[float, float] | None = None
    """Height and width of a pixel in `unit`."""
    unit: str | None = None
    source_time_s: float | None = None
    """When it was taken, by the source's clock, in seconds since 1970."""
    arrival_s: float = field(default_factory=time.perf_counter)
    """When it had arrived, by `time.perf_counter`: the other clock of Python 3.11 and 3.12 goes in
    steps of 16 ms on Windows."""
    arrival_time_s: float = field(default_factory=time.time)
    """The same in seconds since 1970."""
    valid_rows: tuple[int, int] | None = None
    """Of a scan that is not complete: the first row that is new and the first that is not."""
    series: str | None = None
    """Of a source that counts anew in each series: which one."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else the source told, by its own names; of types that JSON has."""
    info: FrameInfo = field(default_factory=FrameInfo)
    """What the file that it comes from tells of origin, intensity, microscope and history; of the
    rest the frame's own fields count."""

    def __post_init__(self) -> None:
        """Refuse what is no image, with BadFrameError."""
        size = self.pixel_size
        if size is not None and not all(math.isfinite(side) and side > 0 for side in size):
            # An uncalibrated microscope says 0, in frame after frame.
            object.__setattr__(self, "pixel_size", None)
            object.__setattr__(self, "unit", None)
        if np.ma.is_masked(self.pixels):
            raise BadFrameError("pixels of which some are masked; replace them first")
        try:
            object.__setattr__(self, "pixels", np.asarray(self.pixels))
        except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU
            raise BadFrameError(f"pixels that NumPy makes no array of ({error})") from error
        object.__setattr__(self, "index", _plain(self.index))
        if self.pixels.dtype.kind not in "biuf":
            raise BadFrameError(
                f"pixels of type {self.pixels.dtype}; an array of real numbers was expected"
            )
        if self.pixels.ndim != 2 or not self.pixels.size:
            raise BadFrameError(
                f"pixels of shape {self.pixels.shape}; one grey image (H, W) was expected"
            )

    @property
    def shape(self) -> Shape:
        """(H, W)."""
        height, width = self.pixels.shape
        return height, width

    def arrived_at(self, arrival_s: float) -> LiveFrame:
        """The same, which had arrived before it was decoded."""
        since_s = self.arrival_s - arrival_s
        return replace(self, arrival_s=arrival_s, arrival_time_s=self.arrival_time_s - since_s)


def _plain(index: Any) -> int:
    """Python's integer for NumPy's, which overflow and which JSON has not."""
    try:
        return operator.index(index)
    except TypeError as error:
        raise BadFrameError(f"index {index!r:.100}; a whole number was expected") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveResult:
    """A frame and what was made of it. Valid until the sink's `write` returns."""

    noisy: LiveFrame
    """As it arrived."""
    mean: FloatArray
    """(H, W) float32: denoised; or, while there is no model yet, the noisy frame."""
    std: FloatArray | None
    """(H, W) float32: the spread of the draws; None while there is no model yet."""
    record: Mapping[str, Any]
    """What n2sr did: ``n2sr_version``, ``model`` (its name; None: none yet), ``weights_sha256``,
    ``n_samples``, ``seed``, ``backend``, ``pattern``, ``n_hot_pixels`` (replaced before it was
    denoised; missing where nothing is mended: with ``--no-repair``, and while there is no model);
    of types that JSON has."""

    def image(self, which: str) -> AnyArray | None:
        """One of `IMAGES`, (H, W); None while it is not there."""
        return {"mean": self.mean, "std": self.std, "noisy": self.noisy.pixels}[which]

    @property
    def metadata(self) -> dict[str, Any]:
        """All that is known, what n2sr did under ``n2sr``."""
        return {**self.noisy.metadata, "n2sr": dict(self.record)}


class Source(Protocol):
    """Where frames come from. Used by one thread, but for `name`.

    It may have a `when_silent`: what to tell a user when nothing has come for a while.
    """

    @property
    def name(self) -> str:
        """For messages: its address."""

    def open(self) -> None:
        """Connect; again after `close`.

        Raises
        ------
        ConnectionLostError
            When there is nobody (yet); it is tried again, less and less often.
        N2SRError
            When trying again cannot help: the stream ends.
        """

    def read(self, timeout_s: float) -> LiveFrame | None:
        """The next frame, or None when none has come in this time.

        Raises
        ------
        BadFrameError
            When what came is no frame; it is counted, and reading goes on.
        ConnectionLostError
            When the connection is lost: the source is closed and opened again.
        EndOfStreamError
            When no more will come.
        """

    def close(self) -> None:
        """Disconnect; closing twice is fine."""


class Sink(Protocol):
    """Where results go. Used by one thread of its own, but for `name`."""

    @property
    def name(self) -> str:
        """For messages: its address."""

    def open(self) -> None:
        """Get ready; again after `close`.

        Raises
        ------
        ConnectionLostError
            When it cannot be reached (yet); it is tried again, less and less often.
        N2SRError
            When trying again cannot help: the stream goes on without it.
        """

    def write(self, result: LiveResult) -> None:
        """Accept a result; keep nothing of its arrays after returning.

        Raises
        ------
        ConnectionLostError
            When the connection is lost: the sink is closed and opened again; with policy ``all``
            the same result is written again then, else it is counted as lost.
        NotNowError
            When it has no room now: with policy ``all`` the same result is offered again, else it
            is counted as lost.
        N2SRError
            When the sink cannot go on: it is closed, the stream goes on without it.
        """

    def close(self) -> None:
        """Finish what is written; closing twice is fine."""
