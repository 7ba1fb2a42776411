"""Pixels of a stream that are hot in frame after frame, and their mending."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.hot_pixels import hot_pixels

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, BoolArray

_log = logging.getLogger("n2sr")
_LOOKED_AT = 3  # frames that a pixel must be hot in: a detector's, not an x-ray's
_SURROUNDINGS = 9  # good pixels whose median it becomes; odd, so that it is one of them
_WITHIN = 3  # pixels
_SHAPES = 8  # whose hot pixels are known at a time: streams may alternate


class HotPixels:
    """Finds them in a few frames of each shape, beside the stream, and mends those that come then.

    Used by one thread.
    """

    def __init__(self) -> None:
        self._searches: dict[tuple[int, ...], _Search] = {}  # by shape, the newest last
        self._has_failed = False
        self._thread: threading.Thread | None = None  # one at a time, whatever for

    def mended(self, pixels: AnyArray) -> tuple[AnyArray, int]:
        """A frame without those that are known, and how many they are.

        Parameters
        ----------
        pixels
            (H, W); never written to, and given back where nothing is to be mended.
        """
        search = self._searches.get(pixels.shape)
        found = search.found if search is not None else None
        if found is None or not found.places.size:
            return pixels, 0
        mended = pixels.copy()
        mended.flat[found.places] = np.median(pixels.reshape(-1)[found.around], axis=1)
        return mended, found.places.size

    def look_at(self, pixels: AnyArray) -> None:
        """Look at a frame that could be denoised, if that is needed; a new shape begins anew."""
        if self._has_failed:
            return
        search = self._searches.pop(pixels.shape, None) or _Search(pixels.shape)
        self._searches[pixels.shape] = search
        if len(self._searches) > _SHAPES:
            del self._searches[next(iter(self._searches))]
        is_looking = self._thread is not None and self._thread.is_alive()
        if search.n_left and not is_looking:
            self._thread = threading.Thread(
                target=self._look, args=(search, pixels.copy()), name="n2sr hot pixels", daemon=True
            )
            self._thread.start()

    def _look(self, search: _Search, pixels: AnyArray) -> None:
        try:
            search.look(pixels)
        except Exception as error:  # noqa: BLE001 - whatever it is, each frame would meet it anew
            self._has_failed = True
            _log.warning(
                "hot pixels cannot be looked for (%s: %s); no more are replaced until there is "
                "another model",
                type(error).__name__,
                error,
            )

    def begin_anew(self) -> None:
        """Forget what was found."""
        self._searches.clear()
        self._has_failed = False

    def close(self) -> None:
        """Wait until nothing is looked at any more."""
        if self._thread is not None:
            self._thread.join()


class _Found(NamedTuple):
    """Flat indices of hot pixels (n,) and of good ones around each (n, 9)."""

    places: AnyArray
    around: AnyArray


class _Search:
    """What was hot in all frames that were looked at, one after another."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._hot = np.ones(shape, np.bool_)
        self.n_left = _LOOKED_AT
        self.found: _Found | None = None

    def look(self, pixels: AnyArray) -> None:
        """Look at a frame."""
        self._hot &= hot_pixels(pixels)
        self.n_left -= 1
        if not self.n_left:
            self.found = _with_surroundings(self._hot)


def _with_surroundings(hot: BoolArray) -> _Found:
    """The hot pixels that have good ones around, and the nearest of these."""
    places, around = [], []
    for y, x in np.argwhere(hot):
        top, left = max(y - _WITHIN, 0), max(x - _WITHIN, 0)
        good = np.argwhere(~hot[top : y + _WITHIN + 1, left : x + _WITHIN + 1])
        good += np.array([top, left])
        if not len(good):
            continue
        nearest = good[np.argsort(((good - (y, x)) ** 2).sum(axis=1), kind="stable")]
        places.append(y * hot.shape[1] + x)
        around.append(np.resize(nearest @ (hot.shape[1], 1), _SURROUNDINGS))
    return _Found(np.array(places, np.intp), np.array(around, np.intp))
