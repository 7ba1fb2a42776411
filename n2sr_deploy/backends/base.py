"""What every backend gives the denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from n2sr_deploy.sampling import FloatArray


class Backend(Protocol):
    """A network loaded and ready: loaded once, run often, closed at the end."""

    @property
    def name(self) -> str:
        """As users know it, with its device and arithmetic: ``OpenVINO (CPU, float32)``."""

    def infer(self, subsampled: FloatArray, out: FloatArray) -> None:
        """Run the network.

        Parameters
        ----------
        subsampled
            (M, 1, H / stride_y, W / stride_x) float32, standardised, C-contiguous.
        out
            (M, 1, H, W) float32, C-contiguous, to fill.

        Raises
        ------
        ModelError
            When the library fails, the arrays do not fit the network, or the backend was closed.
        """

    def close(self) -> None:
        """Release what the backend holds; it cannot be used afterwards. Closing twice is fine."""
