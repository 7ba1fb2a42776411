"""Live frames: from a source through the denoiser to sinks."""

from n2sr_deploy.stream.base import LiveFrame, LiveResult, Sink, Source
from n2sr_deploy.stream.denoising import DenoisingOptions, LiveDenoiser
from n2sr_deploy.stream.generator import denoise_stream
from n2sr_deploy.stream.ring import Policy
from n2sr_deploy.stream.runner import StreamRunner

__all__ = [
    "DenoisingOptions",
    "LiveDenoiser",
    "LiveFrame",
    "LiveResult",
    "Policy",
    "Sink",
    "Source",
    "StreamRunner",
    "denoise_stream",
]
