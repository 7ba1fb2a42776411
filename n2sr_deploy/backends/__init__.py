"""What runs the network: one file for each library, behind one small protocol."""

from n2sr_deploy.backends.base import Backend
from n2sr_deploy.backends.ort import OnnxRuntimeBackend

__all__ = ["Backend", "OnnxRuntimeBackend", "open_backend"]


def open_backend(onnx: bytes, *, n_threads: int = 0) -> Backend:
    """Load an ONNX model into the backend for this machine.

    Parameters
    ----------
    onnx
        The exported model's ONNX file.
    n_threads
        0: as many as the backend wants.

    Returns
    -------
    The backend, ready to infer.

    Raises
    ------
    ModelError
        When the backend cannot load it.
    """
    return OnnxRuntimeBackend(onnx, n_threads=n_threads)
