"""The order of a source's frames, by the numbers that it gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from n2sr_deploy.stream.base import LiveFrame
    from n2sr_deploy.stream.statistics import StreamStatistics

_COUNTS_ANEW = 2  # lower numbers in a row that may be late frames


class FrameOrder:
    """Looks at the source's numbers: nothing twice, nothing older, gaps reported."""

    def __init__(self, statistics: StreamStatistics) -> None:
        self._statistics = statistics
        self._last: int | None = None
        self._series: str | None = None
        self._is_new = True
        self._n_lower = 0
        self._n_damaged = 0  # since the last frame that was accepted

    def begins_anew(self) -> None:
        """The source was opened: it may count from the beginning."""
        self._is_new = True

    def damaged(self) -> None:
        """A frame came that could not be read, which has been told: it is no gap."""
        self._n_damaged += 1

    def accepts(self, frame: LiveFrame) -> bool:
        """Whether a frame of this number comes next.

        A few lower numbers in a row are a source that has begun to count anew.
        """
        index, last = frame.index, self._last
        is_new = self._is_new or frame.series != self._series
        is_same_series = frame.series is None or frame.series == self._series
        self._is_new, self._series = False, frame.series
        self._n_lower = self._n_lower + 1 if last is not None and index < last else 0
        if self._n_lower > _COUNTS_ANEW and not is_new:
            message = f"after frame {last} the source counts anew, from {index}"
            self._statistics.trouble("restarts", message)
            is_new = True
        if last is not None and index == last and is_same_series:
            self._is_new = is_new
            self._statistics.trouble("repeated", f"frame {index} came again; left out")
            return False
        if last is not None and index < last and not is_new:
            message = f"frame {index} came after frame {last}; left out"
            self._statistics.trouble("out of order", message)
            return False
        if last is not None and is_same_series:
            self._look_for_gap(last, index)
        self._last, self._n_damaged = index, 0
        return True

    def _look_for_gap(self, last: int, index: int) -> None:
        n_between = index - last - 1
        n_missing = n_between - self._n_damaged
        if n_missing <= 0:
            return
        missing = f"frame {last + 1}" if n_between == 1 else f"frames {last + 1} to {index - 1}"
        some = f"{n_missing} of " if n_missing < n_between else ""
        self._statistics.trouble("gaps", f"{some}{missing} did not come")
        self._statistics.count("missing", n_missing)
