"""Which denoiser, for a model on this machine: on a GPU where that works, else on the CPU."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from n2sr_deploy.backends import open_network
from n2sr_deploy.backends.choosing import ON_GPU, first_that_works
from n2sr_deploy.cuda.driver import find_driver
from n2sr_deploy.cuda.runtime import CudaDevice
from n2sr_deploy.denoiser import Denoiser, check_frame, check_model
from n2sr_deploy.errors import DeviceError
from n2sr_deploy.frame import Frame
from n2sr_deploy.model import ExportedModel
from n2sr_deploy.phantom import counts_to_try
from n2sr_deploy.pipeline import FramePipeline, Program

if TYPE_CHECKING:
    from n2sr_deploy.pattern import Shape

    Opened = Denoiser | FramePipeline

_log = logging.getLogger("n2sr")


def open_denoiser(
    model: ExportedModel,
    backend: str = "auto",
    *,
    shape: Shape | None = None,
    n_samples: int | None = None,
    n_in_flight: int = 1,
    n_threads: int = 0,
) -> Opened:
    """Open what denoises frames fastest here.

    Parameters
    ----------
    model
        The exported model.
    backend
        One of `n2sr_deploy.backends.BACKENDS`; or ``auto``: a GPU if there is one and something
        runs the model on it, else the CPU. Which it is, and why, is logged.
    shape, n_samples
        Of the frames to come, (H, W), and M: with ``auto``, a GPU is taken only if it denoises a
        frame of these; without `shape`, the CPU is.
    n_in_flight
        How many frames may be in flight on a GPU.
    n_threads
        Of a `Denoiser` on the CPU.

    Returns
    -------
    A `FramePipeline` on a GPU, a `Denoiser` on the CPU. Both have `model`, `name`, `denoise`,
    `close`, and are context managers.

    Raises
    ------
    SettingError, MissingExtraError, ModelError, DeviceError
        When there is no backend of that name, its library is not installed, it cannot load the
        model, or it needs a GPU that does not work.
    FrameError, SettingError
        When the model denoises no frames of this shape, or not with as many draws.
    """
    check_model(model)
    if shape is not None:
        check_frame(model, shape, model.metadata.n_samples if n_samples is None else n_samples)
    if backend in ON_GPU:
        return FramePipeline(_program(model, backend, CudaDevice(), n_in_flight))
    if backend == "auto" and shape is not None:
        pipeline = _pipeline_that_works(model, shape, n_samples, n_in_flight)
        if pipeline is not None:
            return pipeline
    return Denoiser(model, backend=backend, n_threads=n_threads)


def _program(model: ExportedModel, backend: str, device: CudaDevice, n_in_flight: int) -> Program:
    meta = model.metadata
    network = open_network(
        model.onnx, backend, device, precision=meta.precision, stride=meta.pattern.stride
    )
    return Program(model, network, device, n_in_flight)


def _pipeline_that_works(
    model: ExportedModel, shape: Shape, n_samples: int | None, n_in_flight: int
) -> FramePipeline | None:
    """The first, tried on a frame; None, and why, where none does."""
    try:
        find_driver()
    except DeviceError as error:
        _log.debug("no GPU is used: %s", error)  # as on most machines
        return None
    try:
        device = CudaDevice()
    except DeviceError as error:
        _log.warning("the GPU is not used: %s", error)
        return None
    frame = Frame(pixels=counts_to_try(shape))

    def opened(backend: str) -> FramePipeline:
        with ExitStack() as stack:
            program = _program(model, backend, device, n_in_flight)
            stack.callback(program.close)
            program.prepare(frame, n_samples)
            stack.pop_all()
        return FramePipeline(program)

    return first_that_works(ON_GPU, opened)[0]


class Denoisers:
    """Opens denoisers, and keeps the last one for the files that follow. A context manager.

    Not to be shared between threads.

    Parameters
    ----------
    n_threads
        For the kernels and the network on a CPU; 0: one for each core.
    """

    def __init__(self, n_threads: int = 0) -> None:
        self._n_threads = n_threads
        self._kept: tuple[str, str, Shape, Opened] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the denoiser that is open, if one is."""
        if self._kept is not None:
            self._kept[-1].close()
        self._kept = None

    def of_file(self, path: str, backend: str, shape: Shape, n_samples: int | None) -> Opened:
        """The model in a file, on a backend, for frames of a shape: see `open_denoiser`."""
        if self._kept is not None:
            was_path, was_backend, was_shape, denoiser = self._kept
            fits = isinstance(denoiser, Denoiser) or was_shape == shape
            if (was_path, was_backend) == (path, backend) and fits:
                return denoiser
        self.close()
        denoiser = self.of_model(ExportedModel.open(path), backend, shape, n_samples)
        self._kept = path, backend, shape, denoiser
        return denoiser

    def of_model(
        self, model: ExportedModel, backend: str, shape: Shape, n_samples: int | None
    ) -> Opened:
        """A model in memory; whoever asks closes it."""
        return open_denoiser(
            model, backend, shape=shape, n_samples=n_samples, n_threads=self._n_threads
        )
