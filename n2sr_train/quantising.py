"""Exported model -> the same in eight bits for CPUs, kept only where that costs next to nothing.

Weights are rounded to 7 bits by the range of each channel, activations to 8 by the least and the
greatest that the network makes of some draws of the frame it was learned from:
docs/decisions/0008-backends.md.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnxruntime import quantization

from n2sr_deploy.denoiser import Denoiser
from n2sr_deploy.errors import FrameError, ModelError
from n2sr_deploy.mending import mend
from n2sr_deploy.model import INPUT_NAME, ExportedModel
from n2sr_deploy.noise import SMALLEST, measure_noise, middle_of
from n2sr_deploy.uncertainty import Twin

if TYPE_CHECKING:
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.mending import Mended
    from n2sr_deploy.sampling import FloatArray

LARGEST_LOSS_DB = 0.1
_N_CALIBRATION = 8  # draws
_SAME_NOISE = 1.05  # times


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantised:
    """A model in eight bits that has passed."""

    model: ExportedModel
    loss_db: float
    """By how much its mean squared error exceeds the float32 model's, at M of live frames; an
    estimate."""


def quantised(model: ExportedModel, frame: Frame) -> Quantised:
    """Make a model one in eight bits, and see what that costs.

    Parameters
    ----------
    model
        An exported model, fp32.
    frame
        (H, W) in counts: the noisy frame that it was learned from, as it was recorded; mended as
        `n2sr denoise` does.

    Returns
    -------
    The model, which runs on CPUs only, and its loss. Deterministic on one machine.

    Raises
    ------
    FrameError
        When the frame is of another size or noise than the one learned from, or a result of n2sr.
    ModelError
        When the model is not fp32, or `LARGEST_LOSS_DB` or more would be lost.
    """
    if frame.is_denoised:
        raise FrameError(
            "the frame is a result of n2sr, but activations are measured on a noisy one; give the "
            "frame that the network was learned from"
        )
    learned_from = model.metadata.frame_shape
    if learned_from not in (None, frame.shape):
        raise FrameError(
            f"frame has shape {frame.shape}, but the network was learned from one of "
            f"{learned_from}; give that one"
        )
    whole = mend(frame)
    _check_noise(whole, model)
    mended = whole.repaired.frame
    in_int8 = rounded(model, mended)
    loss_db = _loss_db(model, in_int8, mended)
    if not loss_db < LARGEST_LOSS_DB:
        raise ModelError(
            f"eight bits would cost {loss_db:.2g} dB on this frame (less than {LARGEST_LOSS_DB} is "
            "allowed): it has too little noise for them; export with --precision fp32"
        )
    return Quantised(model=in_int8, loss_db=loss_db)


def _check_noise(mended: Mended, model: ExportedModel) -> None:
    """Raise FrameError where the noise says that it is another frame."""
    learned_from = model.metadata.noise
    if learned_from is None or min(mended.noisy.shape) < SMALLEST:
        return
    std = measure_noise(mended.noisy, repaired=mended.repaired).std
    if not learned_from["std"] <= _SAME_NOISE * std <= _SAME_NOISE**2 * learned_from["std"]:
        raise FrameError(
            f"the frame's noise has std {std:.3g}, but that of the frame the network was learned "
            f"from {learned_from['std']:.3g}; give that frame"
        )


def rounded(model: ExportedModel, frame: Frame) -> ExportedModel:
    """The model in eight bits, whatever that costs.

    Parameters
    ----------
    model, frame
        As `quantised` takes them, the frame mended.

    Raises
    ------
    ModelError
        When the model is not fp32.
    """
    if model.metadata.precision != "fp32":
        raise ModelError(
            f"the model is {model.metadata.precision}, but only fp32 is made int8; export its "
            "checkpoint again"
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("fp32.onnx", "folded.onnx", "int8.onnx")]
        paths[0].write_bytes(model.onnx)
        quantization.quant_pre_process(*paths[:2], skip_symbolic_shape=True)
        quantization.quantize_static(
            *paths[1:],
            _Draws(model, frame),
            per_channel=True,
            reduce_range=True,  # processors without VNNI clip sums of two 8 x 8-bit products
        )
        graph = onnx.load(paths[2])
    metadata = replace(model.metadata, precision="int8")
    onnx.helper.set_model_props(graph, metadata.to_props())
    return ExportedModel(onnx=graph.SerializeToString(), metadata=metadata)


class _Draws(quantization.CalibrationDataReader):  # type: ignore[misc]
    """What the network is given of a frame, draw by draw."""

    def __init__(self, model: ExportedModel, frame: Frame) -> None:
        seen = _Seen()
        with Denoiser(model, backend=seen, batch_size=1) as denoiser:
            denoiser.denoise(frame, _N_CALIBRATION, seed=1)
        self._left = iter(seen.inputs)

    def get_next(self) -> dict[str, FloatArray] | None:
        """None at the end."""
        return next(({INPUT_NAME: one} for one in self._left), None)


class _Seen:
    """A backend that keeps its input."""

    name = "none"

    def __init__(self) -> None:
        self.inputs: list[FloatArray] = []

    def infer(self, subsampled: FloatArray, out: FloatArray) -> None:
        """Nobody looks at the output."""
        self.inputs.append(subsampled.copy())
        out[:] = 0

    def close(self) -> None:
        """Nothing."""


def _loss_db(model: ExportedModel, in_int8: ExportedModel, frame: Frame) -> float:
    """By how much the mean squared error grows.

    What rounding adds is measured on the frame, the error before on its twin. They are taken as
    independent; on a single frame chance makes it 0.05 dB more or less.
    """
    n_samples = model.metadata.n_live_samples
    with Denoiser(model, backend="ort") as own, Denoiser(in_int8, backend="ort") as other:
        twin = Twin.of(frame, own.denoise(frame, n_samples))
        if twin is None:
            raise ModelError(
                "what eight bits cost cannot be measured on a frame that is without noise, or "
                "smaller than 48 x 48 pixels; export with --precision fp32"
            )
        added, error = (
            float(np.mean(np.square(result - twin.truth)))
            for result in (
                middle_of(other.denoise(frame, n_samples).mean),
                own.denoise(twin.noisy, n_samples).mean,
            )
        )
    return 10 * math.log10(1 + added / error)
