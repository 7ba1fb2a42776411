"""What is told of a denoised file: its history and record, its noise, what rounding lost."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.formats.units import size_in_nm
from n2sr_deploy.noise import SMALLEST, choose_pattern, measure_noise, middle_of
from n2sr_deploy.version import VERSION
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from n2sr_deploy.denoise_options import DenoiseOptions
    from n2sr_deploy.displaced_rows import Hum
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.mending import Mended
    from n2sr_deploy.model import ModelMetadata
    from n2sr_deploy.noise import Noise
    from n2sr_deploy.sampling import AnyArray, FloatArray
    from n2sr_deploy.uncertainty import Uncertainty

_log = logging.getLogger("n2sr")
_TOLD_CLIPPED, _TOLD_SHIFT = 1e-3, 1e-3  # shares from which rounding is worth a warning
_TOLD_FRAMES = 20
_MAGNIFIED = 1.25  # times, from which a network sees other structures than it has learned
_REPAIRED = (
    "hot pixels replaced by the median of their surroundings, offsets of rows and columns "
    "subtracted and rows that hum displaced put straight in each frame that had them"
)
_LOST = 1.3  # times the noise's power is left out: of what networks have learned 0.9 to 1.1
_MEAN, _ERROR = "mean", "standard error"


def noise_of(mended: Mended, model: ModelMetadata) -> Noise | None:
    """The frame's noise; a warning where the model was trained for noise of another kind.

    A model that keeps rows apart, or farther apart, does no harm where the noise is white; one
    that does not leaves streaks where it is not.
    """
    if min(mended.noisy.shape) < SMALLEST:
        return None
    noise = measure_noise(mended.noisy, repaired=mended.repaired)
    pattern, _, _ = choose_pattern(noise)
    too_near = pattern.name != model.pattern.name or pattern.group_size > model.pattern.group_size
    if pattern.name != "cell" and too_near:
        _log.warning(
            "the frame has %s; it asks for pattern %s, but the model was trained with pattern %s: "
            "noise may stay. Train one on a frame of this kind",
            noise.describe(),
            pattern,
            model.pattern,
        )
    return noise


def tell_what_is_lost(noise: Noise, noisy: AnyArray, denoised: AnyArray) -> None:
    """Warn where a model leaves more out of a frame than its noise: it does not know the specimen.

    Signal that is weak beside the noise is lost unseen; a report looks closer.

    Parameters
    ----------
    noise
        Of the frame.
    noisy, denoised
        (H, W) in counts, both without hot pixels, and both with offsets of lines or without.
    """
    before, after = middle_of(noisy), middle_of(denoised)
    mean = float(denoised.mean(dtype=np.float64))
    rows, columns = (np.square(np.hanning(n + 2)[1:-1]) for n in after.shape)
    # As the noise was weighed when it was measured: where no gain is told, most in the middle.
    left_out = rows @ np.square(before - after) @ columns
    expected = rows @ np.square(noise.std_at(after, mean)) @ columns
    if noise.is_negligible or left_out < _LOST * expected:
        return
    _log.warning(
        "what the model takes out of the frame has %.1f times the power of its noise, so signal "
        "is lost: it was trained on a frame of another kind. Train one on this frame, or see with "
        "n2sr report what is lost",
        left_out / expected,
    )


def tell_what_does_not_fit(frame: Frame, model: ModelMetadata) -> None:
    """Warn where a frame is no raw one, or was taken at another magnification than the model's."""
    if frame.is_denoised:
        _log.warning(
            "the frame is a result of n2sr: denoising it again only blurs it; take the noisy one"
        )
    size = size_in_nm(frame.pixel_size, frame.unit)
    learned = size_in_nm(model.pixel_size, model.unit)
    if size is None or learned is None:
        return
    ratio = max(max(a / b, b / a) for a, b in zip(size, learned, strict=True))
    if ratio > _MAGNIFIED:
        _log.warning(
            "pixels are of %.4g x %.4g nm, but the model was trained on ones of %.4g x %.4g nm: "
            "it may miss what it has not seen at that magnification. Train one on a frame of this "
            "kind",
            *size,
            *learned,
        )


def constant_frames(indexes: Sequence[int]) -> str:
    """That they were left, in a sentence."""
    told = ", ".join(map(str, indexes[:_TOLD_FRAMES]))
    more = len(indexes) - _TOLD_FRAMES
    return (
        f"{counted(len(indexes), 'frame')} left as read, since every pixel is the same: {told}"
        + (f" and {more} more" if more > 0 else "")
    )


class Rounding:
    """What rounding to integers did to the intensities."""

    def __init__(self) -> None:
        self._n_pixels = self._n_clipped = 0
        self._before = self._after = 0.0

    def add(self, before: AnyArray, after: AnyArray) -> None:
        """Of one frame more."""
        self._n_pixels += before.size
        self._n_clipped += int(np.count_nonzero(np.abs(before - after.astype(np.float64)) > 0.5))
        self._before += float(before.sum(dtype=np.float64))
        self._after += float(after.sum(dtype=np.float64))

    def tell(self) -> None:
        """Warn where it changed them."""
        if not self._n_pixels:
            return
        clipped = self._n_clipped / self._n_pixels
        shift = abs(self._after - self._before) / max(abs(self._before), 1e-30)
        if clipped > _TOLD_CLIPPED or shift > _TOLD_SHIFT:
            _log.warning(
                "--dtype same clipped %.2g %% of the pixels and rounded the rest: the mean went "
                "from %.4g to %.4g; leave it out to keep the intensities",
                100 * clipped,
                self._before / self._n_pixels,
                self._after / self._n_pixels,
            )


class Provenance:
    """Gathers what was done to the frames of one file, and tells it.

    Parameters
    ----------
    options
        How they are denoised.
    n_frames
        That the file holds.
    indexes
        Of those that are denoised.
    learned_from
        The frame that one network for all was learned from; None: there is none such.
    blank
        Those of `indexes` that are constant and stay as they are.
    """

    def __init__(
        self,
        options: DenoiseOptions,
        n_frames: int,
        indexes: Sequence[int],
        learned_from: int | None,
        blank: Sequence[int] = (),
    ) -> None:
        self._options, self._n_frames, self._indexes = options, n_frames, indexes
        self._learned_from, self._blank = learned_from, blank
        self._noise: Noise | None = None  # of the first frame, where a model is given
        self._n_added = 0
        self._mended: list[str] = []
        self._hums: list[Hum] = []
        self._uncertainties: list[str] = []
        self.rounding = Rounding()

    def add_frame(self, mended: Mended, model: ModelMetadata) -> None:
        """A frame that is about to be denoised."""
        if mended.repaired.describe():
            self._mended.append(mended.repaired.describe())
        self._n_added += 1
        if self._options.model is not None and self._n_added == 1:
            self._noise = noise_of(mended, model)
            tell_what_does_not_fit(mended.noisy, model)

    def add_denoised(self, mended: Mended, denoised: FloatArray) -> None:
        """What became of the measured part of the frame that was added last."""
        if self._noise is not None and self._n_added == 1 and mended.repairs:
            tell_what_is_lost(self._noise, mended.repaired.frame.pixels, denoised)

    def add_hum(self, hum: Hum | None) -> None:
        """How its rows were displaced, which are put straight; None: they were not."""
        if hum is not None:
            self._hums.append(hum)

    def add_uncertainty(self, uncertainty: Uncertainty) -> None:
        """Its standard error."""
        self._uncertainties.append(uncertainty.describe())

    def of_result(
        self, frame: Frame, mended: Mended, model: ModelMetadata, n_samples: int, backend: str
    ) -> Frame:
        """The denoised frame, with history and record."""
        options, seed = self._options, self._options.learn.seed or 0
        which, history = f"frame {frame.index} of {self._n_frames}", mended.history
        weights: str | None = model.weights_sha256
        hum = self._hums[0] if self._hums and len(self._indexes) == 1 else None
        if hum is not None:
            history = (*history, f"{hum.describe()}: put straight")
        if len(self._indexes) > 1:
            which = f"frames 0 to {self._n_frames - 1}"
            history = (*frame.history, _REPAIRED) if options.learn.repair else frame.history
            weights = None if options.per_frame else weights
        if self._blank:
            history = (*history, constant_frames(self._blank))
        by = f"weights {weights[:12]}" if weights else "each frame's own weights"
        done = (
            f"n2sr {VERSION}: {_MEAN} of {counted(n_samples, 'draw')}, seed {seed}, {which}, "
            f"preset {model.preset}, pattern {model.pattern}, {by}, {backend}"
        )
        learned = dict(model.noise) if model.noise and weights else None
        record = {
            "version": VERSION,
            "result": _MEAN,
            "frames": which,
            "weights_sha256": weights,
            "preset": model.preset,
            "pattern": str(model.pattern),
            "n_samples": n_samples,
            "seed": seed,
            "backend": backend,
            "repair": options.learn.repair,
            "hum": hum.to_dict() if hum is not None else None,
            "dtype": options.dtype,
            "learned_from_frame": self._learned_from,
            "constant_frames": list(self._blank),
            "noise": learned if self._noise is None else self._noise.to_dict(),
        }
        return replace(frame, history=(*history, done), metadata={**frame.metadata, "n2sr": record})

    def tell(self) -> None:
        """Log what a user would not see in the result."""
        self.rounding.tell()
        if len(self._uncertainties) == 1:
            _log.info("%s", self._uncertainties[0])
        n_frames = len(self._indexes)
        if self._hums and n_frames == 1:
            _log.info("%s: put straight", self._hums[0].describe())
        elif self._hums:
            _log.info(
                "put straight: rows that hum displaced in %d of %d frames",
                len(self._hums),
                n_frames,
            )
        if not self._mended or (self._options.model is None and n_frames == 1):
            return  # a training has told it
        if n_frames == 1:
            _log.info("mended: %s", self._mended[0])
        else:
            _log.info(
                "mended: hot pixels or offsets of lines in %d of %d frames",
                len(self._mended),
                n_frames,
            )


def of_standard_error(result: Frame) -> Frame:
    """A denoised frame's history and record, as those of its standard error."""
    record = {**result.metadata["n2sr"], "result": _ERROR, "dtype": "float32"}
    done = result.history[-1].replace(f": {_MEAN} of ", f": {_ERROR} of ", 1)
    intensity = result.intensity
    return replace(
        result,
        intensity=intensity and intensity.of_spread(),
        history=(*result.history[:-1], done),
        metadata={**result.metadata, "n2sr": record},
    )
