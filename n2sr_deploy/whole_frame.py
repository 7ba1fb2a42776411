"""A frame as the commands denoise it: mended before, and put together again after."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.displaced_rows import straightened
from n2sr_deploy.errors import SettingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.mending import mend
from n2sr_deploy.scan_hum import put_straight

if TYPE_CHECKING:
    from n2sr_deploy.denoiser import Denoised
    from n2sr_deploy.displaced_rows import Hum
    from n2sr_deploy.mending import Mended
    from n2sr_deploy.opening import Opened
    from n2sr_deploy.sampling import AnyArray, FloatArray


class Whole(NamedTuple):
    """What became of a frame, with what was not measured of it."""

    mended: Mended
    """The frame before it was denoised."""
    mean: FloatArray
    """(H, W) float32, in counts; what was not measured is as it was."""
    hum: Hum | None
    """How its rows were displaced, which are put straight; None: they were not."""

    def std(self, of_measured_part: FloatArray) -> FloatArray:
        """The standard deviation or error that belongs to `mean`; 0 where nothing was measured."""
        std = of_measured_part
        if self.hum is not None:
            std = np.maximum(straightened(std, self.hum), 0)
        return self.mended.put_back(std, 0.0)


def denoise_frame(
    frame: Frame | AnyArray,
    denoiser: Opened,
    n_samples: int | None = None,
    *,
    seed: int = 0,
    frame_index: int | None = None,
    repaired: bool = True,
) -> Denoised:
    """Denoise a frame as ``n2sr denoise`` does.

    Blank edges and rows that were not scanned are left out, hot pixels replaced and offsets of
    rows and columns subtracted before; rows that hum displaced are put straight after.

    Parameters
    ----------
    frame
        (H, W) in counts; never written to.
    denoiser
        As `open_denoiser` or `Denoiser.open` gives.
    n_samples, seed, frame_index
        As `Denoiser.denoise` takes them.
    repaired
        Whether anything is mended or put straight.

    Returns
    -------
    Of the whole frame; the standard deviation over the draws is 0 where nothing was measured.

    Raises
    ------
    FrameError, SettingError, ModelError, DeviceError
        As the denoiser's `denoise` does.
    """
    if not hasattr(denoiser, "denoise"):
        raise SettingError(
            f"denoiser is {denoiser!r:.200}, but must be one, as Denoiser.open(path) gives"
        )
    mended = mend(Frame.of(frame), repairs=repaired)
    noisy = mended.repaired.frame
    denoised = denoiser.denoise(noisy, n_samples, seed=seed, frame_index=frame_index)
    whole = put_together(mended, denoised.mean)
    return replace(denoised, mean=whole.mean, std=whole.std(denoised.std))


def put_together(mended: Mended, mean: FloatArray) -> Whole:
    """Put rows straight, where that was asked for, and the measured part back into its place.

    Parameters
    ----------
    mended
        The frame before it was denoised.
    mean
        Of its measured part, denoised, float32.
    """
    mean, hum = put_straight(mean) if mended.repairs else (mean, None)
    return Whole(mended, mended.put_back(mean), hum)
