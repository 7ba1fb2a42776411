"""What every backend gives the denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from n2sr_deploy.sampling import FloatArray


class Backend(Protocol):
    """A network loaded and ready: loaded once, run often, closed at the end."""

    @property
    def name(self) -> str:
        """As users know it, with its device: ``ONNX Runtime (CPU)``."""

    def infer(self, subsampled: FloatArray) -> FloatArray:
        """Run the network.

        Parameters
        ----------
        subsampled
            (M, 1, H / stride_y, W / stride_x) float32, standardised, C-contiguous.

        Returns
        -------
        (M, 1, H, W) float32, C-contiguous.

        Raises
        ------
        ModelError
            When the library fails, or the backend was closed.
        """

    def close(self) -> None:
        """Release what the backend holds; it cannot be used afterwards."""
