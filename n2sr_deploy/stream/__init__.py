"""Live frames: from a source through the denoiser to sinks."""

from n2sr_deploy.stream.base import LiveFrame, LiveResult, Sink, Source
from n2sr_deploy.stream.denoising import DenoisingOptions, LiveDenoiser
from n2sr_deploy.stream.ring import Policy
from n2sr_deploy.stream.runner import StreamRunner, denoise_stream

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
