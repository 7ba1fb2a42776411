"""Whether what is left between noisy and denoised frames still looks like the noise it was."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from n2sr_deploy.stream.base import LiveResult

_LOOKS_EVERY_S = 0.5  # at the residual
_SIDE = 256  # pixels of the part that is looked at
_BASELINE = 8  # looks at a new model's residual, to know what is usual
_CHANGED = 6  # looks in a row that are unusual, after which the scene or dose has changed
_RATIO, _CORRELATION = 1.3, 0.06  # of variances, and by how much neighbours' correlation changes
_CLIPPED_AT = 6.0  # deviations of the residual; beyond are hot pixels, which have all the variance
_QUANTILE, _DEVIATIONS = 0.99, 2.576  # of normal noise; a median would see no sparse counts


class _Look(NamedTuple):
    """At the residual of a frame."""

    variance: float
    along_rows: float
    along_columns: float


class ResidualWatch:
    """Looks at what is left between noisy and denoised frames, now and then.

    While the model fits, that is noise: its variance and the correlation of neighbours stay as they
    were when the model was new. Signal that is left, or another dose, changes them.
    """

    def __init__(self) -> None:
        self._usual: list[_Look] = []
        self._n_unusual = 0
        self._looked_s = 0.0

    def sees_change(self, result: LiveResult) -> bool:
        """Look, if it is time to; whether the looks have been unusual for a while."""
        now = time.monotonic()
        if now - self._looked_s < _LOOKS_EVERY_S:
            return False
        self._looked_s = now
        return self.is_unusual(result)

    def is_unusual(self, result: LiveResult) -> bool:
        """Look; whether this and the looks before it were unusual, in a row."""
        look = _look(result)
        if len(self._usual) < _BASELINE:
            self._usual.append(look)
            return False
        variance, along_rows, along_columns = np.median(np.array(self._usual), axis=0)
        ratio = max(look.variance, variance) / max(min(look.variance, variance), 1e-30)
        moved = max(abs(look.along_rows - along_rows), abs(look.along_columns - along_columns))
        is_unusual = ratio > _RATIO or moved > _CORRELATION
        self._n_unusual = self._n_unusual + 1 if is_unusual else 0
        return self._n_unusual >= _CHANGED


def _look(result: LiveResult) -> _Look:
    """At the middle of the frame; the residual is clipped, since noisy frames keep hot pixels."""
    middle = tuple(
        slice(max((n - _SIDE) // 2, 0), max((n - _SIDE) // 2, 0) + _SIDE) for n in result.mean.shape
    )
    residual = result.noisy.pixels[middle].astype(np.float64) - result.mean[middle]
    residual -= np.median(residual)
    limit = _CLIPPED_AT * float(np.quantile(np.abs(residual), _QUANTILE)) / _DEVIATIONS
    if limit > 0:  # else nearly all are equal
        residual = np.clip(residual, -limit, limit)
    residual -= residual.mean()
    variance = float(np.mean(residual**2))
    if variance == 0:
        return _Look(0.0, 0.0, 0.0)
    return _Look(
        variance,
        float(np.mean(residual[:, 1:] * residual[:, :-1])) / variance,
        float(np.mean(residual[1:] * residual[:-1])) / variance,
    )
