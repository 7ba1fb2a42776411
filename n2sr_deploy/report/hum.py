"""Peaks that hum makes in the spectrum of a noisy frame, by displacing its lines."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.report.findings import Peak
    from n2sr_deploy.sampling import AnyArray, BoolArray

_BEYOND = 2.0  # times as far out as any peak that is kept: no crystal lacks all between
_IN_LINE = 1.5  # frequencies by which two peaks may be off a line along an axis
_REACH = 4  # frequencies around a peak, which a small particle makes wide


def told_from_hum(peaks: Sequence[Peak], power: AnyArray) -> list[Peak]:
    """The peaks, and those called so that hum makes in the noisy frame only.

    Lines that it displaced give each strong peak of a lattice two more, hum's frequency away along
    an axis. They are far beyond the lattice's own that the result keeps, two of them or more at one
    distance, and nothing is at that distance from zero frequency, where a crystal has a peak.

    Parameters
    ----------
    peaks
        Of noisy and denoised frame.
    power
        (H, W) of the noisy frame, in units of the noise's.
    """
    kept = [
        (sign * np.array(peak.frequency), peak.strength)
        for peak in peaks
        if peak.state == "kept"
        for sign in (1, -1)
    ]
    farthest = max((np.hypot(*place) for place, _ in kept), default=np.inf)
    beside: dict[tuple[int, int], set[int]] = defaultdict(set)  # which, by axis and distance
    for (n, peak), axis in product(enumerate(peaks), (0, 1)):
        if (
            peak.state not in ("weakened", "lost")
            or np.hypot(*peak.frequency) <= _BEYOND * farthest
        ):
            continue
        distances = []
        for place, strength in kept:
            apart = np.abs((peak.frequency - place + 0.5) % 1 - 0.5) * power.shape
            if apart[1 - axis] < _IN_LINE and peak.strength < strength:
                distances.append(round(apart[axis]))
        from_zero = power[:, 0] if axis == 0 else power[0]
        if all(from_zero[distance] < peak.strength for distance in distances):
            for distance, near in product(distances, (-1, 0, 1)):
                beside[axis, distance + near].add(n)
    hum = max(beside.values(), key=len, default=set())
    if len(hum) < 2:
        return list(peaks)
    return [replace(peak, state="hum") if n in hum else peak for n, peak in enumerate(peaks)]


def frequencies_of_hum(peaks: Sequence[Peak], shape: Shape) -> BoolArray:
    """(H, W): those of its peaks, and around them."""
    found = np.zeros(shape, np.bool_)
    around = np.arange(-_REACH, _REACH + 1)
    for peak, sign in product(peaks, (1, -1)):
        if peak.state == "hum":
            y, x = (round(sign * f * n) for f, n in zip(peak.frequency, shape, strict=True))
            found[np.ix_((y + around) % shape[0], (x + around) % shape[1])] = True
    return found
