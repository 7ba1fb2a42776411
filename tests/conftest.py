"""What several tests share."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from n2sr_deploy import kernels as loading
from n2sr_deploy.frame import Frame

if TYPE_CHECKING:
    from n2sr_deploy.model import ExportedModel

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        choices=("extras", "gpu", "nvcc"),
        default=[],
        help="fail, instead of skipping tests, where this is missing: a library of the extra dev, "
        "a CUDA GPU, the CUDA compiler; may be given several times",
    )
    parser.addoption(
        "--require-gpu", dest="require", action="append_const", const="gpu", help="--require gpu"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts the tests in the background has Ctrl-C ignored, and so have the processes
    # that they start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "extras" in config.getoption("--require"):
        skipping, patch = pytest.importorskip, pytest.MonkeyPatch()

        def required(name: str, **how: Any) -> Any:
            """Only what the system is without is skipped for, like `resource` on Windows."""
            is_of_python = name in sys.stdlib_module_names
            return skipping(name, **how) if is_of_python else importlib.import_module(name)

        patch.setattr(pytest, "importorskip", required)
        config.add_cleanup(patch.undo)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if torch.cuda.is_available():
        return
    if "gpu" in config.getoption("--require"):
        raise pytest.UsageError("--require gpu, but PyTorch sees no CUDA GPU")
    for item in gpu_tests:
        item.add_marker(pytest.mark.skip(reason="PyTorch sees no CUDA GPU"))


@pytest.fixture(scope="session")
def nvcc(pytestconfig) -> str:
    """The CUDA compiler."""
    found = shutil.which("nvcc")
    if found is None and "nvcc" in pytestconfig.getoption("--require"):
        pytest.fail("--require nvcc, but there is no nvcc on the PATH")
    return found or pytest.skip("no nvcc here")


@pytest.fixture(autouse=True)
def _no_thread_left():
    """A test that leaves a thread running fails."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and not t.daemon and t.is_alive()]
    assert not left, f"threads left running: {left}"


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory):
    """Templates of the tests stay out of the user's cache; tests beside each other share one."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    patch = pytest.MonkeyPatch()
    patch.setenv("N2SR_CACHE_DIR", str(folder / "cache"))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def noisy() -> Frame:
    """A small noisy phantom: (96, 128) float32."""
    from n2sr_deploy.phantom import clean_phantom, noisy_draw

    clean = clean_phantom((96, 128), spacing=12)
    pixels = noisy_draw(clean, gain=0.02, read_noise=0.02)
    return Frame(pixels=pixels, pixel_size=(0.02, 0.03), unit="nm")


def tiny_config(**changes):
    """A configuration that trains in a second or two."""
    from dataclasses import replace

    from n2sr_train.config import NetworkConfig, TrainingConfig

    return replace(
        TrainingConfig(),
        **{
            "network": NetworkConfig(channels=(4, 4, 4)),
            "patch": 64,
            "batch": 2,
            "steps": 12,
            "n_samples": 4,
            "validation_every": 4,
            "device": "cpu",
            **changes,
        },
    )


@pytest.fixture(scope="session")
def checkpoint(noisy):
    from n2sr_train import train

    return train(noisy, tiny_config())


@pytest.fixture(scope="session")
def model(checkpoint) -> ExportedModel:
    from n2sr_train import export_model

    return export_model(checkpoint)


@pytest.fixture(scope="session")
def model_path(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "sample.onnx"
    model.save(path)
    return path


@pytest.fixture(scope="session")
def checkpoint_path(checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "sample.safetensors"
    checkpoint.save(path)
    return path


@pytest.fixture(params=["reference", "compiled"])
def kernels(request, monkeypatch):
    """Both implementations of the sub-sampler, in turn."""
    from n2sr_deploy import reference

    if request.param == "reference":
        wanted = loading.Loaded(reference, "compiled not wanted", False)
        monkeypatch.setattr(loading, "loaded", lambda: wanted)
    elif loading.kernels() is reference:
        pytest.skip("the kernels are not built")
    return loading.kernels()


@pytest.fixture
def compiled():
    """The compiled kernels; without them there is nothing to compare."""
    from n2sr_deploy import reference

    if loading.kernels() is reference:
        pytest.skip(loading.describe_kernels())
    return loading.kernels()


def random_pixels(shape, dtype, seed=0):
    """Pixels that use the type's range."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(1e3, 3e2, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
