"""Whether a model fits the frames of a stream: looked at once, beside it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.errors import FrameError
from n2sr_deploy.frame import Frame
from n2sr_deploy.mending import mend
from n2sr_deploy.provenance import noise_of, tell_what_does_not_fit, tell_what_is_lost

if TYPE_CHECKING:
    from n2sr_deploy.model import ModelMetadata
    from n2sr_deploy.sampling import FloatArray
    from n2sr_deploy.stream.base import LiveFrame


class Fit:
    """Warns as `n2sr denoise` does, by the first frame. Used by one thread.

    Parameters
    ----------
    repairs
        Whether hot pixels and offsets of lines are left out of what is measured.
    """

    def __init__(self, *, repairs: bool) -> None:
        self._repairs = repairs
        self._thread: threading.Thread | None = None

    def look_at(self, frame: LiveFrame, denoised: FloatArray, model: ModelMetadata) -> None:
        """Look at a frame and what became of it, if none has been; in a thread, as it takes long.

        Parameters
        ----------
        frame, denoised
            (H, W) in counts.
        """
        if self._thread is not None:
            return
        copied = Frame(
            pixels=frame.pixels.copy(),  # whose memory is used again meanwhile
            pixel_size=frame.pixel_size,
            unit=frame.unit,
            metadata=frame.metadata,
        )
        self._thread = threading.Thread(
            target=self._look, args=(copied, denoised.copy(), model), name="n2sr fit", daemon=True
        )
        self._thread.start()

    def _look(self, frame: Frame, denoised: FloatArray, model: ModelMetadata) -> None:
        try:
            mended = mend(frame, repairs=self._repairs)
            noise = noise_of(mended, model)
        except FrameError:  # of noise that cannot be measured nothing is told
            return
        repaired = mended.repaired
        # Live frames have their offsets of lines, which a network averages away more or less.
        has_offsets = repaired.row_offsets.any() or repaired.column_offsets.any()
        if noise is not None and self._repairs and not has_offsets:
            mean = denoised[mended.part]
            tell_what_is_lost(noise, np.where(repaired.hot, mean, mended.noisy.pixels), mean)
        tell_what_does_not_fit(mended.noisy, model)

    def close(self) -> None:
        """Wait until nothing is looked at any more."""
        if self._thread is not None:
            self._thread.join()
