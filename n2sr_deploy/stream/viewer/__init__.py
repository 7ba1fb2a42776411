"""The viewer: a page on this machine that shows frames as they are denoised."""

from n2sr_deploy.stream.viewer.server import ViewerSink

__all__ = ["ViewerSink"]
