"""Exported model -> engines of this machine: compiled, compared with ONNX Runtime, kept."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy import engine
from n2sr_deploy.backends import open_backend
from n2sr_deploy.backends.base import output_shape
from n2sr_deploy.backends.on_device import DeviceBackend
from n2sr_deploy.backends.tensorrt import TensorRTNetwork, engine_key
from n2sr_deploy.backends.tensorrt_build import build_plan, check_engine
from n2sr_deploy.backends.tensorrt_library import require_capability
from n2sr_deploy.errors import ModelError
from n2sr_deploy.layout import input_shapes
from n2sr_deploy.phantom import phantom_input

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.cuda.runtime import CudaDevice
    from n2sr_deploy.engine import EngineKey
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.pattern import Shape

TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest difference from ONNX Runtime, as a share of the output's standard deviation."""


def build_engines(
    model: ExportedModel,
    library: str,
    size: Shape,
    n_samples: int | None,
    device: CudaDevice,
    *,
    rebuild: bool = False,
    progress: Callable[[str, float], object] | None = None,
) -> list[Path]:
    """Build and keep all engines that frames of one size need.

    Parameters
    ----------
    model
        The exported model; its precision is the engine's.
    library
        ``tensorrt`` or ``tensorrt_rtx``.
    size
        (H, W) of the frames.
    n_samples
        M; None: the model's own.
    device
        The GPU they are built for.
    rebuild
        Whether to build again what is there already.
    progress
        Called with the phase and the share of it that is done.

    Returns
    -------
    The plans' paths.

    Raises
    ------
    MissingExtraError, ModelError
        When the library is missing or broken, or not made for this GPU, cannot compile the model,
        or computes something else than ONNX Runtime.
    OutputError
        When an engine cannot be kept; told before it is built, where that can be known.
    """
    require_capability(library, device)
    paths = []
    for shape in input_shapes(model, size, n_samples or model.metadata.n_samples):
        key = engine_key(model.onnx, library, model.metadata.precision, shape, device)
        if rebuild or engine.find(key) is None:  # one that is there may lie where nobody can write
            _build(model, library, shape, device, key, rebuild=rebuild, progress=progress)
        paths.append(engine.path_of(key))
    return paths


def _build(
    model: ExportedModel,
    library: str,
    shape: InputShape,
    device: CudaDevice,
    key: EngineKey,
    *,
    rebuild: bool,
    progress: Callable[[str, float], object] | None,
) -> None:
    """One engine, unless another process builds it meanwhile."""
    with engine.building(key):
        if rebuild or engine.find(key) is None:
            engine.check_room(len(model.onnx))  # a plan takes as much, and minutes to build
            meta = model.metadata
            plan = build_plan(
                model.onnx, library, meta.precision, shape, meta.pattern.stride, progress
            )
            _verify(model, library, plan, shape, device)
            engine.keep(key, plan, meta.to_props())


def _verify(
    model: ExportedModel, library: str, plan: bytes, shape: InputShape, device: CudaDevice
) -> None:
    """Check its types, and compare with ONNX Runtime, draw by draw of a phantom; or raise."""
    meta = model.metadata
    stride = meta.pattern.stride
    subsampled = phantom_input(shape)
    found = np.empty(output_shape(shape, stride), np.float32)
    network = TensorRTNetwork(
        model.onnx, library, device, meta.precision, stride, plans={shape: plan}
    )
    with contextlib.closing(DeviceBackend(network, device, stride)) as backend:
        if library == "tensorrt":  # of the other, the plan told when it was built
            check_engine(network.engine_information(shape), meta.precision)
        backend.infer(subsampled, found)
    wanted = np.empty_like(found[:1])
    share = 0.0
    with contextlib.closing(open_backend(model.onnx, "ort")) as backend:
        for m in range(shape[0]):
            backend.infer(subsampled[m : m + 1], wanted)
            difference = np.nan_to_num(np.abs(found[m : m + 1] - wanted), nan=np.inf)
            share = max(share, float(difference.max()) / float(wanted.std()))
    if not share <= TOLERANCE[meta.precision]:
        raise ModelError(
            f"the engine's output differs from ONNX Runtime's by {share:.2g} of its standard "
            f"deviation, but at most {TOLERANCE[meta.precision]:g} is allowed for "
            f"{meta.precision}; nothing was kept. Another version of {library} may do better, "
            "or --precision fp32"
        )
