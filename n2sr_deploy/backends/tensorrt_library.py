"""Finds TensorRT or TensorRT for RTX, and tells which GPUs it is made for."""

from __future__ import annotations

import importlib
import signal
from typing import TYPE_CHECKING, Any

from n2sr_deploy.cuda.device import dotted
from n2sr_deploy.engine import EXTRAS, option_of
from n2sr_deploy.errors import MissingExtraError, ModelError
from n2sr_deploy.signals import ending, held_back

if TYPE_CHECKING:
    from n2sr_deploy.cuda.runtime import CudaDevice

LIBRARIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
_PACKAGES = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13"}
_OLDEST = 10, 13
_OLDEST_OF_RTX = 80  # it builds for Turing (75) only where told so, and then for nothing else


def import_library(library: str) -> Any:
    """``tensorrt`` or ``tensorrt_rtx``.

    Raises
    ------
    MissingExtraError
        When it is not installed.
    ModelError
        When it is broken or too old.
    """
    try:
        with held_back(signal.SIGINT, *ending()):  # see `ort`
            trt = importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise _broken(library, error) from error
        raise MissingExtraError(
            f"backend {option_of(library)}", library, EXTRAS[library]
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(library, error) from error
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if library == "tensorrt" and version < _OLDEST:
        raise ModelError(
            f"TensorRT {trt.__version__} is installed, but n2sr needs 10.13 or later; "
            f"pip install --upgrade {_PACKAGES[library]}"
        )
    return trt


def require_capability(library: str, device: CudaDevice) -> None:
    """Refuse a GPU that TensorRT for RTX is not made for; it would tell so only of a built engine.

    Raises
    ------
    MissingExtraError
        When it is not installed.
    ModelError
        When it is broken, or not made for this GPU.
    """
    if library != "tensorrt_rtx":
        return
    trt = import_library(library)
    names = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    named = sorted(int(name.removeprefix("SM")) for name in names)
    known = [capability for capability in named if capability >= _OLDEST_OF_RTX]
    if device.capability not in known and device.capability < known[-1]:
        raise ModelError(
            f"TensorRT for RTX {trt.__version__} is made for GPUs of compute capability "
            f"{', '.join(map(dotted, known))} and later, but {device.name} has "
            f"{dotted(device.capability)}; try backend native, tensorrt, cuda or auto"
        )


def _broken(library: str, error: BaseException) -> ModelError:
    return ModelError(
        f"{LIBRARIES[library]} is broken ({error}); install it again with: "
        f"pip install --force-reinstall {_PACKAGES[library]}"
    )
