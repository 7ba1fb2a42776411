"""What every backend owes the denoiser, and how one is chosen."""

from __future__ import annotations

import builtins
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from n2sr_deploy import Denoiser, doctor
from n2sr_deploy.backends import choosing, open_backend, ort
from n2sr_deploy.backends.base import output_shape
from n2sr_deploy.backends.choosing import ON_CPU
from n2sr_deploy.backends.native import NativeNetwork
from n2sr_deploy.backends.on_device import DeviceBackend
from n2sr_deploy.backends.tensorrt import TensorRTNetwork
from n2sr_deploy.backends.tensorrt_build import build_plan
from n2sr_deploy.backends.tensorrt_library import import_library, require_capability
from n2sr_deploy.cli import main
from n2sr_deploy.cuda.runtime import CudaDevice
from n2sr_deploy.errors import (
    DeviceError,
    MissingExtraError,
    ModelError,
    OutOfDeviceMemoryError,
    OutOfMemoryError,
    SettingError,
)
from n2sr_deploy.formats import read_frame, write_frame
from n2sr_deploy.phantom import phantom_input
from tests.fake_device import FakeDevice, FakeNetwork
from tests.fake_tensorrt import FakeGPU, FakeTensorRT, plan_for
from tests.gpus import FAKE, FAKE_NATIVE

FAKE_TENSORRT = "TensorRT on it"
ON_A_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "native")]
TENSORRT = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@pytest.fixture(params=[*ON_CPU, *ON_A_GPU])
def name(request):
    """Each backend by its name, skipped where its library is not installed."""
    if request.param.startswith("openvino"):
        pytest.importorskip("n2sr_deploy.backends.openvino")
    return request.param


class Plans(Mapping):
    """Of engines for every shape of input, each built when it is first asked for."""

    def __init__(self, build):
        self._build, self._built = build, {}

    def __getitem__(self, shape):
        if shape not in self._built:
            self._built[shape] = self._build(shape)
        return self._built[shape]

    def __len__(self):
        return len(self._built)

    def __iter__(self):
        return iter(self._built)


@pytest.fixture(scope="module")
def plans(model):
    """Of each library, kept from test to test."""
    precision, stride = model.metadata.precision, model.metadata.pattern.stride

    def of(library):
        return Plans(lambda shape: build_plan(model.onnx, library, precision, shape, stride))

    return {library: of(library) for library in TENSORRT.values()}


def tensorrt_for(library, model, plans):
    """Opens the real library; skips where it is missing, or not made for this GPU."""
    device, stride = CudaDevice(), model.metadata.pattern.stride
    try:
        import_library(library)
    except MissingExtraError as error:
        pytest.skip(str(error))
    try:
        require_capability(library, device)
    except ModelError as error:
        pytest.skip(str(error))
    given = library, device, model.metadata.precision, stride, plans[library]
    return lambda: DeviceBackend(TensorRTNetwork(model.onnx, *given), device, stride)


@pytest.fixture(
    params=[
        *(*ON_CPU, FAKE, FAKE_NATIVE, FAKE_TENSORRT, *ON_A_GPU),
        *(pytest.param(name, marks=pytest.mark.gpu) for name in TENSORRT),
    ]
)
def opened(request, model, monkeypatch, plans):
    """Opens each kind of backend."""
    if request.param in TENSORRT:
        yield tensorrt_for(TENSORRT[request.param], model, plans)
        return
    if request.param in (FAKE, FAKE_NATIVE, FAKE_TENSORRT):
        device = FakeGPU()
        if request.param == FAKE_TENSORRT:
            FakeTensorRT(FakeNetwork(model, device)).install(monkeypatch)

        def network():
            if request.param == FAKE:
                return FakeNetwork(model, device)
            if request.param == FAKE_NATIVE:
                return NativeNetwork(model.onnx, device, (2, 2))
            given = "tensorrt", device, "fp32", (2, 2), Plans(plan_for)
            return TensorRTNetwork(model.onnx, *given)

        yield lambda: DeviceBackend(network(), device, (2, 2))
        assert not device.memory | device.pins | device.streams
        return
    if request.param.startswith("openvino"):
        pytest.importorskip("n2sr_deploy.backends.openvino")
    yield lambda: open_backend(model.onnx, request.param, n_threads=1)


@pytest.fixture
def backend(opened):
    backend = opened()
    yield backend
    backend.close()


def expected(model, subsampled):
    """By ONNX Runtime without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.onnx, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: subsampled})[0]


def random_input(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def assert_close(backend, out, wanted):
    """Half precision rounds each pixel at random: all of them tell how far, the worst of many a
    fault in one place."""
    off, unit = np.abs(out - wanted), wanted.std()
    if "float16" in backend.name:  # bfloat16 too
        assert np.sqrt(np.mean(off**2)) < 0.02 * unit
        assert off.max() < 0.1 * unit
    else:
        assert off.max() < 1e-4 * unit


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (4, 1, 16, 24), (7, 1, 4, 32)])
def test_the_network_is_run(backend, model, shape):
    subsampled = phantom_input(shape)  # of noise a good network leaves little but rounding errors
    before = subsampled.copy()
    wanted = expected(model, subsampled)
    out = np.full_like(wanted, np.nan)
    backend.infer(subsampled, out)
    assert_close(backend, out, wanted)
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
        subsampled = phantom_input((2, 1, n, 8))
        wanted = expected(model, subsampled)
        out = np.empty_like(wanted)
        backend.infer(subsampled, out)
        assert_close(backend, out, wanted)


def test_openvino_keeps_what_one_size_of_frames_asks_for(model):
    """Ten draws of oblong frames are 4 and 1 upright and 4 and 1 transposed: two were kept."""
    openvino = pytest.importorskip("n2sr_deploy.backends.openvino")
    compiled = []
    with closing(openvino.OpenVINOBackend(model.onnx, n_threads=1)) as backend:
        for _ in range(2):
            for shape in ((4, 1, 8, 16), (1, 1, 8, 16), (4, 1, 16, 8), (1, 1, 16, 8)):
                backend.infer(phantom_input(shape), np.empty(output_shape(shape, (2, 2)), "f"))
            compiled.append(dict(backend._requests))
    assert len(compiled[0]) == 4
    assert compiled[0] == compiled[1], "none was made anew"


def test_nothing_is_written_beside_the_output(backend):
    around = np.full((6, 1, 32, 32), 7, np.float32)
    backend.infer(random_input(4, 1, 16, 16), around[1:5])
    assert (around[[0, 5]] == 7).all()
    assert not (around[1:5] == 7).any()


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("Failed to allocate memory for requested buffer of size 9", OutOfMemoryError),
        ("std::bad_alloc", OutOfMemoryError),
        ("Could not allocate 9 bytes", OutOfMemoryError),
        ("ensure the pre-allocated shapes match", ModelError),
        ("the graph is wrong", ModelError),
    ],
)
def test_a_network_that_finds_no_memory_says_so(model, monkeypatch, told, error):
    backend = ort.OnnxRuntimeBackend(model.onnx)

    def fail(_):
        raise RuntimeError(told)

    monkeypatch.setattr(backend._session, "run_with_iobinding", fail)
    with pytest.raises(ModelError, match=re.escape(told)) as raised:
        backend.infer(random_input(1, 1, 16, 16), np.empty((1, 1, 32, 32), np.float32))
    assert type(raised.value) is error
    assert isinstance(raised.value, MemoryError) == (error is OutOfMemoryError)


def test_arrays_that_do_not_fit_the_network_are_refused(backend):
    with pytest.raises(ModelError, match="failed on input of shape"):
        backend.infer(random_input(1, 1, 16, 16), np.empty((1, 1, 30, 32), np.float32))
    with pytest.raises(ModelError, match="failed on input of shape"):
        backend.infer(random_input(1, 2, 16, 16), np.empty((1, 1, 32, 32), np.float32))
    backend.infer(random_input(1, 1, 16, 16), np.empty((1, 1, 32, 32), np.float32))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a.astype(np.float64),
        lambda a: a.swapaxes(2, 3),
        lambda a: np.repeat(a, 2, axis=3)[..., ::2],
    ],
)
def test_arrays_whose_memory_would_be_misread_are_refused(backend, wrong):
    subsampled, out = random_input(1, 1, 16, 16), np.zeros((1, 1, 32, 32), np.float32)
    with pytest.raises(ModelError, match="but a backend takes C-contiguous float32"):
        backend.infer(wrong(subsampled), out)
    with pytest.raises(ModelError, match="but a backend takes C-contiguous float32"):
        backend.infer(subsampled, wrong(out))
    out.flags.writeable = False
    with pytest.raises(ModelError, match="read-only"):
        backend.infer(subsampled, out)
    assert not out.any()


def test_a_backend_on_a_gpu_that_cannot_be_opened_closes_its_network(model, monkeypatch):
    device = FakeDevice()
    network = FakeNetwork(model, device)

    def fail():
        raise DeviceError("the GPU failed (stream)")

    monkeypatch.setattr(device, "stream", fail)
    with pytest.raises(DeviceError, match="stream"):
        DeviceBackend(network, device, (2, 2))
    assert network.closed


def test_kernels_that_have_nothing_to_be_compared_with_leave_nothing(model, monkeypatch):
    device = FakeDevice()

    def fail(*_):
        raise ModelError("ONNX Runtime failed")

    monkeypatch.setattr(ort.OnnxRuntimeBackend, "infer", fail)
    with pytest.raises(ModelError, match="ONNX Runtime failed"):
        NativeNetwork(model.onnx, device, (2, 2))
    assert not device.memory | device.pins | device.streams


def test_a_closed_backend_says_so(opened):
    backend = opened()
    backend.close()
    backend.close()
    with pytest.raises(ModelError, match="was closed"):
        backend.infer(random_input(1, 1, 8, 8), np.empty((1, 1, 16, 16), np.float32))


@pytest.mark.parametrize("onnx", [b"", b"no model at all", b"\0" * 1000])
def test_what_is_no_model_is_refused(name, onnx):
    said = {"native": "is no ONNX file|is no small U-Net"}.get(name, "cannot load it")
    with pytest.raises(ModelError, match=said):
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
        if isinstance(self.fails, Exception):
            raise self.fails
        if self.fails:
            raise ModelError(f"{self.name} failed on input of shape {subsampled.shape}")

    def close(self):
        self.closed = True


def missing():
    raise MissingExtraError("backend missing", "missing", "missing")


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture
def choose(monkeypatch, model):
    """Chooses among fakes, the first the fastest."""

    def choose(*fakes, **others):
        loaders = others | {fake.name: lambda fake=fake: lambda *_, **__: fake for fake in fakes}
        monkeypatch.setattr(choosing, "ON_CPU", loaders)
        monkeypatch.setattr(choosing, "FASTEST_FIRST", tuple(loaders))
        return open_backend(model.onnx)

    return choose


def test_the_first_backend_that_works_is_taken(choose, caplog):
    caplog.set_level(logging.INFO, "n2sr")
    first = Fake("first")
    assert choose(first, Fake("second", fails=True)) is first
    assert not first.closed
    assert "backend: first, the first choice" in caplog.text


def test_a_backend_that_dies_at_warm_up_is_told_and_the_next_taken(choose, caplog):
    caplog.set_level(logging.INFO, "n2sr")
    broken, sound = Fake("broken", fails=True), Fake("sound")
    assert choose(broken, sound) is sound
    assert broken.closed
    assert "backend broken is left out: broken failed" in caplog.text
    assert "backend: sound, since broken fails" in caplog.text


RAW = [kind("as no n2sr error") for kind in (ImportError, OSError, RuntimeError, TypeError)]


@pytest.mark.parametrize("error", RAW, ids=repr)
def test_whatever_a_library_raises_the_next_backend_is_taken(choose, caplog, error):
    def unloadable():
        def load(onnx, n_threads):
            raise error

        return load

    dying, sound = Fake("dying", fails=error), Fake("sound")
    assert choose(dying, sound, unloadable=unloadable) is sound
    assert dying.closed
    for name in ("dying", "unloadable"):
        assert f"backend {name} is left out: {error!r}" in caplog.text


def test_a_backend_is_closed_whatever_ends_its_warm_up(choose):
    interrupted = Fake("interrupted")
    interrupted.infer = interrupt
    with pytest.raises(KeyboardInterrupt):
        choose(interrupted)
    assert interrupted.closed


def test_a_backend_that_is_not_installed_is_passed_over(choose, caplog):
    caplog.set_level(logging.INFO, "n2sr")
    sound = Fake("sound")
    assert choose(sound, absent=missing) is sound
    assert "backend: sound, since absent is not installed" in caplog.text
    assert "left out" not in caplog.text


def test_no_backend_at_all_is_an_error(choose):
    with pytest.raises(ModelError, match=r"no backend can run this model \(.*see: n2sr doctor"):
        choose(Fake("a", fails=True), Fake("b", fails=True))


def test_a_backend_that_dies_later_raises_and_the_denoiser_goes_on(model, noisy):
    class DyingOnce(Fake):
        def infer(self, subsampled, out):
            out[...] = 1
            self.fails = not self.fails
            super().infer(subsampled, out)

    with Denoiser(model, backend=DyingOnce("dying")) as denoiser:
        with pytest.raises(ModelError, match="dying failed"):
            denoiser.denoise(noisy, 4)
        denoised = denoiser.denoise(noisy, 4)
    assert np.ptp(denoised.mean) == 0


def test_an_unknown_backend_is_refused(model):
    with pytest.raises(SettingError, match="did you mean 'openvino'"):
        open_backend(model.onnx, "openvin")


def test_a_backend_that_is_not_installed_tells_its_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "n2sr_deploy.backends.openvino", raising=False)
    with pytest.raises(MissingExtraError, match=r'pip install "n2sr\[openvino\]"'):
        open_backend(model.onnx, "openvino")
    backend = open_backend(model.onnx)
    backend.close()
    assert "ONNX Runtime" in backend.name


@pytest.fixture
def broken(monkeypatch):
    """Makes a library one that cannot be loaded."""
    plain = builtins.__import__

    def broken(library, module):
        def imported(name, *args, **kwargs):
            if name == library:
                raise OSError(f"lib{library}.so: file too short")
            return plain(name, *args, **kwargs)

        monkeypatch.delitem(sys.modules, f"n2sr_deploy.backends.{module}", raising=False)
        monkeypatch.delattr(f"n2sr_deploy.backends.{module}", raising=False)
        monkeypatch.setattr(builtins, "__import__", imported)

    return broken


@pytest.mark.parametrize(
    ("name", "library", "told", "topic"),
    [
        ("openvino", "openvino", "OpenVINO is broken", "backend OpenVINO"),
        ("ort", "onnxruntime", "ONNX Runtime is missing or broken", "backend ONNX Runtime"),
    ],
)
def test_a_broken_library_is_told_and_the_next_taken(
    model, monkeypatch, caplog, broken, name, library, told, topic
):
    (other,) = {"openvino", "ort"} - {name}
    if other == "openvino":
        pytest.importorskip("n2sr_deploy.backends.openvino")
    broken(library, name)
    with pytest.raises(ModelError, match=f"{told}.*pip install --force-reinstall {library}"):
        open_backend(model.onnx, name)
    monkeypatch.setattr(choosing, "FASTEST_FIRST", (name, other))
    open_backend(model.onnx).close()
    assert f"backend {name} is left out: {told}" in caplog.text
    assert f"lib{library}.so: file too short" in dict(doctor.report())[topic]


def test_denoise_and_bench_tell_that_onnx_runtime_is_broken(broken, model_path, noisy, tmp_path):
    write_frame(tmp_path / "noisy.tif", noisy)
    broken("onnxruntime", "ort")
    for given in (
        ["denoise", tmp_path / "noisy.tif", "-m", model_path, "-o", tmp_path / "out.tif"],
        ["bench", model_path],
    ):
        done = CliRunner().invoke(main, list(map(str, given)))
        assert done.exit_code == 2, done.output
        assert "Error: ONNX Runtime is missing or broken (libonnxruntime.so" in done.output
        assert "pip install --force-reinstall onnxruntime" in done.output
    assert not (tmp_path / "out.tif").exists()


def test_denoise_takes_the_backend_that_is_named(name, model_path, noisy, tmp_path):
    write_frame(tmp_path / "noisy.tif", noisy)
    given = [tmp_path / "noisy.tif", "-m", model_path, "-o", tmp_path / "out.tif"]
    done = CliRunner().invoke(main, ["denoise", *map(str, given), "--backend", name])
    assert done.exit_code == 0, done.output
    library = {
        "ort": "ONNX Runtime (CPU",
        "cuda": "ONNX Runtime (",
        "native": "n2sr's kernels (",
    }.get(name, "OpenVINO (CPU")
    assert library in read_frame(tmp_path / "out.tif").history[-1]


def test_a_missing_backend_is_told_before_a_training(noisy, tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "ON_CPU", {**ON_CPU, "openvino": missing})
    write_frame(tmp_path / "noisy.tif", noisy)
    given = [tmp_path / "noisy.tif", "-o", tmp_path / "out.tif"]
    done = CliRunner().invoke(main, ["denoise", *map(str, given), "--backend", "openvino"])
    assert done.exit_code == 2
    assert 'pip install "n2sr[missing]"' in done.output
    assert "step" not in done.output


def test_a_model_of_rows_is_warmed_up_by_its_stride(noisy):
    from n2sr_deploy import SamplingPattern
    from n2sr_train import export_model, train
    from tests.conftest import tiny_config

    config = tiny_config(pattern=SamplingPattern.named("row"), steps=1)
    with Denoiser(export_model(train(noisy, config))) as denoiser:
        assert np.isfinite(denoiser.denoise(noisy).mean).all()


def test_heavy_libraries_are_imported_where_they_are_used_only():
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


@pytest.mark.skipif(os.name == "nt", reason="there signals have no stack of their own")
def test_ctrl_c_is_survived_after_openvinos_were_closed(model_path):
    """The stack for signals that the first had made was gone, though the next one put it back."""
    pytest.importorskip("n2sr_deploy.backends.openvino")
    program = (
        "import gc, signal, sys; from pathlib import Path; "
        "from n2sr_deploy.backends.openvino import OpenVINOBackend; "
        "onnx = Path(sys.argv[1]).read_bytes(); "
        "both = [OpenVINOBackend(onnx) for _ in range(2)]; "
        "[(both.pop(0).close(), gc.collect()) for _ in range(2)]; "
        "signal.signal(signal.SIGINT, lambda *_: print('heard')); "
        "signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, model_path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_openvino_tells_nobody_that_it_is_used():
    """Imported as it comes, it sends an event to Google Analytics from a thread."""
    pytest.importorskip("n2sr_deploy.backends.openvino")
    code = (
        "import sys, threading, n2sr_deploy.backends.openvino; "
        "print(threading.active_count(), 'openvino_telemetry' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "False"]


def test_onnx_runtime_tells_nobody_that_it_is_used(tmp_path, model):
    """Unless told before it is imported, it reports its use, and keeps who this computer is."""
    (tmp_path / "model.onnx").write_bytes(model.onnx)
    home = tmp_path / "home"
    home.mkdir()
    others = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    code = (
        "from n2sr_deploy import Denoiser, ExportedModel, Frame; import numpy as np; "
        f"model = ExportedModel.open({str(tmp_path / 'model.onnx')!r}); "
        "Denoiser(model, backend='ort').denoise(Frame(pixels=np.eye(64)))"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env={**others, "XDG_CACHE_HOME": str(home / "cache")}
        | dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA"), str(home)),
        check=True,
    )
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_onnx_runtimes_threads_sleep_where_they_have_no_work(model):
    options = open_backend(model.onnx, "ort")._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("told", "is_of_memory"),
    [
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc(&p, size);", True),
        ("CUDA error cudaErrorMemoryAllocation:out of memory", True),
        ("BFCArena: Failed to allocate memory for requested buffer of size 1073741824", True),
        ("Available memory of 1024 is smaller than requested bytes of 4096", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("CUDNN failure 4003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", False),
        ("libcudnn.so.9: cannot allocate memory in static TLS block", False),
        ("CUDA failure 999: unknown error ; expr=cudaMemGetInfo(&free_memory, &total)", False),
        ("CUDNN failure 3008: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("Failed to find kernel of memory pattern; allocated 3 nodes", False),
    ],
)
def test_only_what_tells_of_full_memory_is_taken_for_it(told, is_of_memory):
    explained = ort._explained(ModelError(told))
    assert isinstance(explained, OutOfDeviceMemoryError) == is_of_memory
    assert told in str(explained)


def test_onnx_runtime_takes_the_cores_that_it_may(model, monkeypatch):
    taken = []
    loaded = ort._load

    def load(onnx, options, providers):
        taken.append(options.intra_op_num_threads)
        return loaded(onnx, options, providers)

    monkeypatch.setattr(ort, "_load", load)
    monkeypatch.setattr(ort.os, "cpu_count", lambda: 8)
    for allowed, n_threads in (({0, 1, 2}, 0), (set(range(8)), 0), ({0}, 5)):
        monkeypatch.setattr(
            ort.os, "sched_getaffinity", lambda _, them=allowed: them, raising=False
        )
        ort.OnnxRuntimeBackend(model.onnx, n_threads=n_threads).close()
    assert taken == [3, 0, 5]
