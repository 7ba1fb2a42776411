"""What every backend owes the denoiser, and how one is chosen."""

from __future__ import annotations

import builtins
import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from n2sr_deploy import Denoiser
from n2sr_deploy.backends import BACKENDS, choosing, open_backend
from n2sr_deploy.errors import MissingExtraError, ModelError, SettingError


@pytest.fixture(params=sorted(BACKENDS))
def name(request):
    """Each backend by its name, skipped where its library is not installed."""
    if request.param.startswith("openvino"):
        pytest.importorskip("n2sr_deploy.backends.openvino")
    return request.param


@pytest.fixture
def backend(name, model):
    backend = open_backend(model.onnx, name, n_threads=1)
    yield backend
    backend.close()


def expected(model, subsampled):
    """By ONNX Runtime without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.onnx, options)
    return session.run(None, {session.get_inputs()[0].name: subsampled})[0]


def random_input(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def tolerance(backend):
    return 0.02 if "bfloat16" in backend.name else 1e-4


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (4, 1, 16, 24), (7, 1, 4, 32)])
def test_the_network_is_run(backend, model, shape):
    subsampled = random_input(*shape)
    before = subsampled.copy()
    wanted = expected(model, subsampled)
    out = np.full_like(wanted, np.nan)
    backend.infer(subsampled, out)
    assert np.abs(out - wanted).max() < tolerance(backend) * wanted.std()
    assert np.array_equal(subsampled, before)


def test_the_same_input_gives_the_same_output(backend):
    subsampled = random_input(4, 1, 16, 16)
    first, second = np.empty((2, 4, 1, 32, 32), np.float32)
    backend.infer(subsampled, first)
    backend.infer(random_input(2, 1, 8, 8), np.empty((2, 1, 16, 16), np.float32))
    backend.infer(subsampled, second)
    assert np.array_equal(first, second)


def test_many_shapes_one_after_another(backend, model):
    """More than a backend keeps compiled."""
    for n in [4, 8, 12, 16, 20, 24, 4]:
        subsampled = random_input(2, 1, n, 8)
        wanted = expected(model, subsampled)
        out = np.empty_like(wanted)
        backend.infer(subsampled, out)
        assert np.abs(out - wanted).max() < tolerance(backend) * wanted.std()


def test_nothing_is_written_beside_the_output(backend):
    around = np.full((6, 1, 32, 32), 7, np.float32)
    backend.infer(random_input(4, 1, 16, 16), around[1:5])
    assert (around[[0, 5]] == 7).all()
    assert not (around[1:5] == 7).any()


def test_arrays_that_do_not_fit_the_network_are_refused(backend):
    with pytest.raises(ModelError, match="failed on input of shape"):
        backend.infer(random_input(1, 1, 16, 16), np.empty((1, 1, 30, 32), np.float32))
    with pytest.raises(ModelError, match="failed on input of shape"):
        backend.infer(random_input(1, 2, 16, 16), np.empty((1, 1, 32, 32), np.float32))
    backend.infer(random_input(1, 1, 16, 16), np.empty((1, 1, 32, 32), np.float32))


def test_a_closed_backend_says_so(name, model):
    backend = open_backend(model.onnx, name)
    backend.close()
    backend.close()
    with pytest.raises(ModelError, match="was closed"):
        backend.infer(random_input(1, 1, 8, 8), np.empty((1, 1, 16, 16), np.float32))


@pytest.mark.parametrize("onnx", [b"", b"no model at all", b"\0" * 1000])
def test_what_is_no_model_is_refused(name, onnx):
    with pytest.raises(ModelError, match="cannot load it"):
        open_backend(onnx, name)


def test_denoising_is_the_same_on_every_backend(name, model, noisy):
    with Denoiser(model, backend="ort") as plain, Denoiser(model, backend=name) as other:
        wanted, found = plain.denoise(noisy, 12), other.denoise(noisy, 12)
        allowed = 0.02 if "bfloat16" in other.backend.name else 1e-4
    assert np.abs(found.mean - wanted.mean).max() < allowed * noisy.pixels.std()
    assert np.abs(found.std - wanted.std).max() < allowed * noisy.pixels.std()


class Fake:
    """A backend that works, or fails."""

    def __init__(self, name, fails=False):
        self.name, self.fails, self.closed = name, fails, False

    def infer(self, subsampled, out):
        if self.fails:
            raise ModelError(f"{self.name} failed on input of shape {subsampled.shape}")

    def close(self):
        self.closed = True


def missing(onnx, n_threads):
    raise MissingExtraError("backend missing", "missing", "missing")


@pytest.fixture
def choose(monkeypatch, model):
    """Chooses among fakes, the first the fastest."""

    def choose(*fakes, **others):
        loaders = others | {fake.name: lambda onnx, n_threads, fake=fake: fake for fake in fakes}
        monkeypatch.setattr(choosing, "BACKENDS", loaders)
        monkeypatch.setattr(choosing, "_FASTEST_FIRST", tuple(loaders))
        return open_backend(model.onnx)

    return choose


def test_the_first_backend_that_works_is_taken(choose, caplog):
    caplog.set_level(logging.INFO, "n2sr")
    first = Fake("first")
    assert choose(first, Fake("second", fails=True)) is first
    assert not first.closed
    assert "backend: first, the fastest" in caplog.text


def test_a_backend_that_dies_at_warm_up_is_told_and_the_next_taken(choose, caplog):
    caplog.set_level(logging.INFO, "n2sr")
    broken, sound = Fake("broken", fails=True), Fake("sound")
    assert choose(broken, sound) is sound
    assert broken.closed
    assert "backend broken is left out: broken failed" in caplog.text
    assert "backend: sound, since broken fails" in caplog.text


def test_a_backend_that_is_not_installed_is_passed_over(choose, caplog):
    caplog.set_level(logging.INFO, "n2sr")
    sound = Fake("sound")
    assert choose(sound, absent=missing) is sound
    assert "backend: sound, since absent is not installed" in caplog.text
    assert "left out" not in caplog.text


def test_no_backend_at_all_is_an_error(choose):
    with pytest.raises(ModelError, match=r"no backend can run this model \(.*see: n2sr doctor"):
        choose(Fake("a", fails=True), Fake("b", fails=True))


def test_a_backend_that_dies_later_raises(model, noisy):
    class Dying(Fake):
        def infer(self, subsampled, out):
            raise ModelError("the library failed")

    with Denoiser(model, backend=Dying("dying")) as denoiser, pytest.raises(ModelError):
        denoiser.denoise(noisy)


def test_an_unknown_backend_is_refused(model):
    with pytest.raises(SettingError, match="did you mean 'openvino'"):
        open_backend(model.onnx, "openvin")


def test_a_backend_that_is_not_installed_tells_its_extra(model, monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith(("openvino", "n2sr_deploy.backends.openvino")):
            raise ModuleNotFoundError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'n2sr\[openvino\]'"):
        open_backend(model.onnx, "openvino")
    assert "ONNX Runtime" in open_backend(model.onnx).name


def test_a_model_of_rows_is_warmed_up_by_its_stride(noisy):
    from n2sr_deploy import SamplingPattern
    from n2sr_train import export_model, train
    from tests.conftest import tiny_config

    config = tiny_config(pattern=SamplingPattern.named("row"), steps=1)
    with Denoiser(export_model(train(noisy, config))) as denoiser:
        assert np.isfinite(denoiser.denoise(noisy).mean).all()


def test_heavy_libraries_are_imported_where_they_are_used_only():
    import subprocess
    import sys

    code = (
        "import sys, n2sr_deploy, n2sr_deploy.cli, n2sr_deploy.backends; "
        "print([m for m in ('onnxruntime', 'openvino', 'torch') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert found.stdout.strip() == "[]"


def test_openvino_tells_nobody_that_it_is_used():
    """Imported as it comes, it sends an event to Google Analytics from a thread."""
    pytest.importorskip("n2sr_deploy.backends.openvino")
    import subprocess
    import sys

    code = (
        "import sys, threading, n2sr_deploy.backends.openvino; "
        "print(threading.active_count(), sys.modules['openvino_telemetry'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "None"]
