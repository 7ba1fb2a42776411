"""Live frames: from a source through the denoiser to sinks."""

from n2sr_deploy.stream.base import LiveFrame, LiveResult, Sink, Source
from n2sr_deploy.stream.runner import StreamRunner, denoise_stream

__all__ = ["LiveFrame", "LiveResult", "Sink", "Source", "StreamRunner", "denoise_stream"]
