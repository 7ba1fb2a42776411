"""n2sr_deploy denoises electron-microscope frames with an exported model, without PyTorch.

    from n2sr_deploy import Denoiser, denoise_frame, read_frame

    with Denoiser.open("sample.onnx") as denoiser:
        denoised = denoise_frame(read_frame("noisy.tif"), denoiser)
    denoised.mean, denoised.std  # (H, W) float32, in counts

Importing this package is quick: each name is imported from its file at its first use.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# ONNX Runtime looks once, when it is imported: unless it is told not to, it reports its use to its
# maker, and keeps an identifier of the computer. A microscope's computer tells nobody anything.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from n2sr_deploy.defects import repair
    from n2sr_deploy.denoiser import Denoised, Denoiser
    from n2sr_deploy.errors import N2SRError
    from n2sr_deploy.formats import open_frames, read_frame, write_frame, write_frames
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.noise import Noise, measure_noise
    from n2sr_deploy.opening import open_denoiser
    from n2sr_deploy.pattern import SamplingPattern
    from n2sr_deploy.pipeline import FramePipeline
    from n2sr_deploy.whole_frame import denoise_frame

__all__ = [
    "Denoised",
    "Denoiser",
    "ExportedModel",
    "Frame",
    "FramePipeline",
    "N2SRError",
    "Noise",
    "SamplingPattern",
    "denoise_frame",
    "measure_noise",
    "open_denoiser",
    "open_frames",
    "read_frame",
    "repair",
    "write_frame",
    "write_frames",
]

_HOME = {
    "Denoised": "denoiser",
    "Denoiser": "denoiser",
    "ExportedModel": "model",
    "Frame": "frame",
    "FramePipeline": "pipeline",
    "N2SRError": "errors",
    "Noise": "noise",
    "SamplingPattern": "pattern",
    "denoise_frame": "whole_frame",
    "measure_noise": "noise",
    "open_denoiser": "opening",
    "open_frames": "formats",
    "read_frame": "formats",
    "repair": "defects",
    "write_frame": "formats",
    "write_frames": "formats",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
