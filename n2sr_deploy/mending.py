"""A frame as it is denoised: its measured part, mended; and the result put back into its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.defects import measured_part, repair, untouched

if TYPE_CHECKING:
    from n2sr_deploy.defects import Repaired
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.sampling import AnyArray, FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Mended:
    """What of a frame is denoised, and where it lay."""

    noisy: Frame
    """The measured part as it was recorded; the whole frame where nothing is blank."""
    repaired: Repaired
    """The same without hot pixels and offsets."""
    part: tuple[slice, slice]
    """Its rows and columns in the frame."""
    whole: AnyArray
    """(H, W), the frame's pixels."""
    repairs: bool
    """Whether it was to be mended."""

    @property
    def history(self) -> tuple[str, ...]:
        """That of the frame, and what was done to it."""
        return (*self.repaired.frame.history, *self._blank())

    def _blank(self) -> tuple[str, ...]:
        if self.noisy.shape == self.whole.shape:
            return ()
        rows, columns = self.part
        return (
            f"only rows {rows.start} to {rows.stop - 1} and columns {columns.start} to "
            f"{columns.stop - 1} were measured; the rest, blank, stays as it was",
        )

    def put_back(self, inside: FloatArray, around: float | None = None) -> FloatArray:
        """Give the whole frame, (H, W) float32, with what was made of its measured part.

        Parameters
        ----------
        inside
            Of the measured part's shape.
        around
            What the rest becomes; None: what it was.
        """
        if inside.shape == self.whole.shape:
            return inside
        result = self.whole.astype(np.float32)
        if around is not None:
            result[:] = around
        result[self.part] = inside
        return result


def is_blank(frame: Frame) -> bool:
    """Whether nothing of it was measured: a frame that was dropped, or never came.

    Of a stack it stays as it is; alone it is refused.
    """
    return frame.cropped(*measured_part(frame.pixels)).is_constant


def mend(frame: Frame, *, repairs: bool = True) -> Mended:
    """Leave out what was not measured, and mend the rest.

    Parameters
    ----------
    frame
        (H, W) in counts; never written to.
    repairs
        Whether hot pixels are replaced and offsets of rows and columns subtracted.

    Returns
    -------
    The measured part, mended. Deterministic.
    """
    part = measured_part(frame.pixels)
    noisy = frame.cropped(*part)
    repaired = repair(noisy) if repairs else untouched(noisy)
    return Mended(noisy=noisy, repaired=repaired, part=part, whole=frame.pixels, repairs=repairs)
