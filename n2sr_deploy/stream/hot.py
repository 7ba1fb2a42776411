"""Pixels of a stream that are hot in frame after frame, and their mending."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.defects import hot_pixels

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, BoolArray, Shape

_LOOKED_AT = 3  # frames that a pixel must be hot in: a detector's, not an x-ray's
_SURROUNDINGS = 9  # good pixels whose median it becomes; odd, so that it is one of them
_WITHIN = 3  # pixels


class HotPixels:
    """Finds them in a few frames of one shape, beside the stream, and mends those that come then.

    Used by one thread.
    """

    def __init__(self) -> None:
        self._search: _Search | None = None
        self._thread: threading.Thread | None = None  # one at a time, whatever for

    def mended(self, pixels: AnyArray) -> tuple[AnyArray, int]:
        """A frame without those that are known, and how many they are.

        Parameters
        ----------
        pixels
            (H, W); never written to, and given back where nothing is to be mended.
        """
        found = self._search.found if self._search is not None else None
        if found is None or found.shape != pixels.shape or not found.places.size:
            return pixels, 0
        mended = pixels.copy()
        mended.flat[found.places] = np.median(pixels.reshape(-1)[found.around], axis=1)
        return mended, found.places.size

    def look_at(self, pixels: AnyArray) -> None:
        """Look at a frame that could be denoised, if that is needed; another shape begins anew."""
        if self._search is None or self._search.shape != pixels.shape:
            self._search = _Search(pixels.shape)
        is_looking = self._thread is not None and self._thread.is_alive()
        if self._search.n_left and not is_looking:
            self._thread = threading.Thread(
                target=self._search.look, args=(pixels.copy(),), name="n2sr hot pixels", daemon=True
            )
            self._thread.start()

    def begin_anew(self) -> None:
        """Forget what was found."""
        self._search = None

    def close(self) -> None:
        """Wait until nothing is looked at any more."""
        if self._thread is not None:
            self._thread.join()


class _Found(NamedTuple):
    """Flat indices of hot pixels (n,) and of good ones around each (n, 9), in frames of a shape."""

    shape: Shape
    places: AnyArray
    around: AnyArray


class _Search:
    """What was hot in all frames that were looked at, one after another."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
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
    return _Found(hot.shape, np.array(places, np.intp), np.array(around, np.intp))
