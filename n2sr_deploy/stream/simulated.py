"""``sim:``, a drifting lattice with Poisson noise, and ``null:``, which keeps nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.errors import EndOfStreamError
from n2sr_deploy.phantom import clean_phantom
from n2sr_deploy.stream.base import LiveFrame
from n2sr_deploy.stream.pace import Pace

if TYPE_CHECKING:
    from n2sr_deploy.sampling import AnyArray, FloatArray
    from n2sr_deploy.stream.addresses import Address
    from n2sr_deploy.stream.base import LiveResult

_NOISE_FIELDS = 16  # drawn beforehand and shifted: drawing anew would take longer than denoising


class SimulatedSource:
    """A phantom that drifts, with Poisson noise: uint16 counts, and a known truth.

    Options: ``size`` (32 to 8192, default 512), ``fps`` (default 25), ``frames`` (default: no end),
    ``dose`` in electrons a pixel (default 20), ``drift`` in pixels a frame (default 0.2),
    ``seed``.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("size", "fps", "frames", "dose", "drift", "seed")
        self.name = address.text
        side = int(address.number("size", 512, 32, 8192))
        self._pace = Pace(address)
        self._n_frames = address.number("frames", float("inf"), 1, float("inf"))
        self._drift = address.number("drift", 0.2, 0, 100)
        seed = int(address.number("seed", 0, 0, 2**31))
        self._dose = address.number("dose", 20, 1e-3, 1e4)
        self._clean = clean_phantom((side, side), seed=seed)
        self._clean *= self._dose / self._clean.mean()
        rng = np.random.default_rng(seed)
        self._noise = rng.standard_normal((_NOISE_FIELDS, side, side)).astype(np.float32)
        self._rng = rng
        self._n_read = 0

    def open(self) -> None:
        """Begin now."""
        self._pace.begin()

    def truth(self, index: int) -> FloatArray:
        """(H, W) float32, the clean frame of this index in counts."""
        moved = round(self._drift * index)
        clean: FloatArray = np.roll(self._clean, (moved, moved // 2), (0, 1))
        return clean

    def read(self, timeout_s: float) -> LiveFrame | None:
        """The next frame, when it is due."""
        if self._n_read >= self._n_frames:
            raise EndOfStreamError("all frames were simulated")
        if not self._pace.is_due(timeout_s):
            return None
        index = self._n_read
        self._n_read += 1
        return LiveFrame(
            pixels=self._noisy(index),
            index=index,
            pixel_size=(0.02, 0.02),
            unit="nm",
            source_time_s=time.time(),
            metadata={"simulated": True, "dose": self._dose},
        )

    def _noisy(self, index: int) -> AnyArray:
        """Counts, by the square root that makes Poisson noise nearly normal (Anscombe).

        The square of normal noise adds a quarter, which is taken off again.
        """
        clean = self.truth(index)
        noise = self._noise[self._rng.integers(_NOISE_FIELDS)]
        noise = np.roll(noise, tuple(self._rng.integers(noise.shape)), (0, 1))
        root = 2 * np.sqrt(clean + 0.375) + noise
        counts: AnyArray = np.clip(np.rint((root / 2) ** 2 - 0.625), 0, 65535).astype(np.uint16)
        return counts

    def close(self) -> None:
        """Nothing is open."""


class NullSink:
    """Accepts everything and keeps nothing."""

    def __init__(self, address: Address) -> None:
        address.check_options()
        self.name = address.text

    def open(self) -> None:
        """Nothing to do."""

    def write(self, result: LiveResult) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Nothing to do."""
