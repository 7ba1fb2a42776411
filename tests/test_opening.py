"""Which denoiser is opened: on a GPU where that works, else on the CPU."""

from __future__ import annotations

import logging
from contextlib import closing
from importlib.metadata import metadata

import numpy as np
import pytest
from click.testing import CliRunner

from n2sr_deploy import Denoiser, Frame, FramePipeline, bench, doctor, open_denoiser
from n2sr_deploy import opening as opening_module
from n2sr_deploy.backends import choosing
from n2sr_deploy.cli import main
from n2sr_deploy.cuda.driver import Driver
from n2sr_deploy.errors import (
    DeviceError,
    FrameError,
    MissingExtraError,
    ModelError,
    SettingError,
)
from n2sr_deploy.formats import read_frame, write_frame
from n2sr_deploy.pipeline import Program
from n2sr_deploy.stream import StreamRunner, denoising
from n2sr_deploy.stream.denoising import LiveDenoiser
from n2sr_deploy.version import VERSION
from tests.fake_device import FakeDevice, FakeNetwork
from tests.fake_stream import FakeSink, FakeSource, live_frame

SHAPE = (96, 128)


@pytest.fixture
def gpu(monkeypatch, model):
    """A GPU that is none, with networks that work unless a test says otherwise."""
    device = FakeDevice()

    class GPU:
        def __init__(self):
            self.device = device
            self.networks = []

        def put(self, **networks):
            """What each backend on the GPU is: a network, or an error."""

            def loader(kind):
                if isinstance(kind, MissingExtraError):
                    raise kind

                def load(onnx, device, precision, stride):
                    if isinstance(kind, Exception):
                        raise kind
                    network = FakeNetwork(model, device, **kind)
                    network.name = next(name for name, k in networks.items() if k is kind)
                    self.networks.append(network)
                    return network

                return load

            on_gpu = {name: (lambda kind=kind: loader(kind)) for name, kind in networks.items()}
            monkeypatch.setattr(choosing, "ON_GPU", on_gpu)
            monkeypatch.setattr(opening_module, "ON_GPU", on_gpu)

    monkeypatch.setattr(opening_module, "CudaDevice", lambda: device)
    monkeypatch.setattr(opening_module, "find_driver", lambda: None)
    yield GPU()
    assert not device.memory | device.pins | device.streams


def test_the_first_that_works_on_a_gpu_is_taken(gpu, model, caplog):
    caplog.set_level(logging.INFO, "n2sr")
    gpu.put(
        missing=MissingExtraError("backend missing", "missing", "missing"),
        broken=ModelError("it is broken"),
        unbuilt={"shapes": []},
        works={},
        later={},
    )
    with open_denoiser(model, shape=SHAPE) as denoiser:
        assert isinstance(denoiser, FramePipeline)
        assert denoiser.name == "works"
        assert denoiser.model is model
    assert "backend broken is left out: it is broken" in caplog.text
    assert "backend unbuilt is left out: the network was not built for" in caplog.text
    why = "since missing is not installed, broken fails, unbuilt fails"
    assert f"backend: works, {why}" in caplog.text
    assert all(network.closed for network in gpu.networks)


def test_whatever_a_backend_on_the_gpu_raises_the_next_is_taken(gpu, model, caplog):
    errors = [kind("as no n2sr error") for kind in (ImportError, OSError, RuntimeError, TypeError)]
    gpu.put(**{f"broken{n}": error for n, error in enumerate(errors)}, works={})
    with open_denoiser(model, shape=SHAPE) as denoiser:
        assert denoiser.name == "works"
    for n, error in enumerate(errors):
        assert f"backend broken{n} is left out: {error!r}" in caplog.text


def test_where_nothing_works_on_the_gpu_the_cpu_is_taken(gpu, model):
    gpu.put(broken=ModelError("it is broken"))
    with open_denoiser(model, shape=SHAPE) as denoiser:
        assert isinstance(denoiser, Denoiser)
        assert "CPU" in denoiser.name


def test_without_a_gpu_the_cpu_is_taken(model, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "n2sr")

    def none():
        raise DeviceError("no NVIDIA driver")

    monkeypatch.setattr(opening_module, "find_driver", none)
    monkeypatch.setattr(opening_module, "CudaDevice", none)
    with open_denoiser(model, shape=SHAPE) as denoiser:
        assert isinstance(denoiser, Denoiser)
    assert "no GPU is used: no NVIDIA driver" in caplog.text
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        open_denoiser(model, "cuda")


def test_a_gpu_that_cannot_be_used_is_told(gpu, model, monkeypatch, caplog):
    def old():
        raise DeviceError("the NVIDIA driver (470) supports CUDA 11.4")

    monkeypatch.setattr(opening_module, "CudaDevice", old)
    with open_denoiser(model, shape=SHAPE) as denoiser:
        assert isinstance(denoiser, Denoiser)
    assert "the GPU is not used: the NVIDIA driver (470)" in caplog.text


def test_a_backend_on_the_gpu_that_is_named_is_taken_or_told(gpu, model, noisy):
    gpu.put(works={}, broken=ModelError("it is broken"))
    with open_denoiser(model, "works", n_in_flight=2) as denoiser:
        denoiser.submit(noisy)
        denoiser.submit(noisy)
    with pytest.raises(ModelError, match="it is broken"):
        open_denoiser(model, "broken")


@pytest.mark.parametrize("backend", ["auto", "works", "ort"])
@pytest.mark.parametrize(
    ("shape", "n_samples", "error", "told"),
    [
        ((4, 4), None, FrameError, "frame is 4 x 4 pixels, but this model needs at least 8 x 8"),
        (SHAPE, 0, SettingError, "n_samples is 0, but must be 1 to 1024"),
        (SHAPE, 1025, SettingError, "n_samples is 1025"),
    ],
)
def test_frames_that_no_model_denoises_are_refused_before_the_gpu_is_touched(
    gpu, model, backend, shape, n_samples, error, told
):
    gpu.put(works={})
    with pytest.raises(error, match=told):
        open_denoiser(model, backend, shape=shape, n_samples=n_samples)
    assert not gpu.networks
    program = Program(model, FakeNetwork(model, gpu.device), gpu.device)
    frame = Frame(pixels=np.random.default_rng(0).poisson(9, shape).astype(np.uint16))
    with closing(program), pytest.raises(error, match=told):
        program.prepare(frame, n_samples)
    assert not gpu.device.n_allocations


def test_a_live_frame_that_is_too_small_stops_nothing_on_the_gpu(gpu, model, monkeypatch, caplog):
    gpu.put(works={})
    monkeypatch.setattr(denoising, "find_driver", lambda: None)
    shapes = (64, 64), (4, 4), (64, 64)
    sink = FakeSink()
    source = FakeSource([live_frame(n, shape) for n, shape in enumerate(shapes)])
    summary = StreamRunner(source, [sink], LiveDenoiser(model, "a model"), policy="all").run()
    assert sink.indices == [0, 2]
    assert summary["counts"]["refused"] == 1
    assert "frame 1: frame is 4 x 4 pixels, but this model needs at least 8 x 8" in caplog.text
    assert all(result.record["backend"] == "works" for _, _, result in sink.results)
    assert len(gpu.networks) == 1, "it was not opened again"


def test_denoise_and_bench_use_the_gpu(gpu, model, model_path, noisy, tmp_path):
    gpu.put(works={})
    write_frame(tmp_path / "noisy.tif", noisy)
    given = ["denoise", tmp_path / "noisy.tif", "-m", model_path, "-o", tmp_path / "out.tif"]
    done = CliRunner().invoke(main, list(map(str, given)))
    assert done.exit_code == 0, done.output
    out = read_frame(tmp_path / "out.tif")
    assert out.history[-1].endswith("works")
    with Denoiser(model, backend="ort") as denoiser:
        wanted = denoiser.denoise(noisy).mean
    assert np.abs(out.pixels - wanted).max() < 1e-5 * noisy.pixels.std()
    workload = bench.Workload(sizes=[SHAPE], backends=["auto", "ort"], n_frames=3)
    result = bench.measure(model, workload)
    on_gpu, on_cpu = result["rows"]
    assert set(on_gpu["stages_ms"]) == {"enqueue", "gpu"}
    assert on_gpu["own_share"] is None
    assert on_cpu["own_share"] > 0
    lines = bench.table(result)
    heads_of_gpu, heads_of_cpu = (line.split() for line in lines if line.startswith("    ms "))
    assert heads_of_gpu == ["ms", "enqueue", "gpu", "in", "all"]
    assert heads_of_cpu == ["ms", "standardise", "draw", "infer", "merge", "in", "all"]


def test_doctor_tells_of_every_backend():
    told = dict(doctor.report())
    assert "backend tensorrt" in told
    assert told["backend native"].startswith(("works", "missing: "))
    of_rtx = told["backend tensorrt-rtx"]
    if "n2sr[rtx]" not in of_rtx:  # it is installed
        has_driver = not told["GPU"].startswith("none")
        assert ("it cannot be used: no GPU works, see GPU" in of_rtx) != has_driver
    assert told["backend cuda"].startswith(("ONNX Runtime is built for it", "missing: "))


GPUS = "native, tensorrt, tensorrt-rtx, cuda"


@pytest.mark.parametrize(
    ("working", "told"),
    [
        (
            {"native", "cuda", "openvino", "ort"},
            f"native, the first that works of {GPUS}, openvino, ort; "
            "for models that it cannot run: cuda, openvino, ort",
        ),
        ({"ort"}, f"ort, the first that works of {GPUS}, openvino, ort"),
        (set(), f"none of {GPUS}, openvino, ort works"),
    ],
)
def test_doctor_tells_what_auto_takes(monkeypatch, working, told):
    for name, function in {
        "ort": "_onnxruntime",
        "openvino": "_openvino",
        "native": "_native",
        "cuda": "_cuda",
    }.items():
        found = doctor._Backend(name in working, "as a test has it")
        monkeypatch.setattr(doctor, function, lambda found=found: found)
    monkeypatch.setattr(doctor, "_tensorrt", lambda _: doctor._Backend(False, "missing"))
    assert dict(doctor.report())["backend of auto"] == told


def test_doctor_tells_what_auto_takes_here(model):
    told = dict(doctor.report())["backend of auto"].partition(",")[0]
    opened = [open_denoiser(model, name, shape=SHAPE) for name in ("auto", told)]
    assert opened[0].name == opened[1].name
    for denoiser in opened:
        denoiser.close()


def test_doctor_tells_once_that_there_is_no_driver(monkeypatch):
    def none():
        raise DeviceError("no driver; install one")

    monkeypatch.setattr(doctor, "find_driver", none)
    monkeypatch.setattr("n2sr_deploy.cuda.runtime.find_driver", none)
    told = dict(doctor.report())
    assert told["GPU"] == "none: no driver; install one"
    assert told["backend native"] == "missing: no GPU works, see GPU"
    assert str(told).count("install one") == 1


def test_doctor_advises_nothing_for_a_gpu_where_there_is_none(monkeypatch):
    """It said to put another ONNX Runtime in place, and to install TensorRT and CUDA's toolkit."""

    def none():
        raise DeviceError("no driver")

    def not_installed(library):
        raise MissingExtraError(f"backend {library}", library, library)

    monkeypatch.setattr(doctor, "find_driver", none)
    monkeypatch.setattr(doctor, "import_library", not_installed)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    told = dict(doctor.report())
    for topic in ("backend tensorrt", "backend tensorrt-rtx", "backend cuda"):
        assert told[topic] == "missing: it needs an NVIDIA GPU, and no GPU works, see GPU"


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_a_backend_on_a_gpu_advises_no_package_where_there_is_no_gpu(monkeypatch, name):
    """It said to put another ONNX Runtime in place, or to install TensorRT."""

    def none():
        raise DeviceError("no driver")

    monkeypatch.setattr("n2sr_deploy.cuda.runtime.find_driver", none)
    with pytest.raises(DeviceError, match="no driver"):
        choosing.check_backend(name)


def test_doctor_tells_of_the_libraries_of_every_extra(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    told = dict(doctor.report())
    of_backends, of_developers = {"rtx", "tensorrt"}, {"bench", "demo", "dev"}
    for extra in {*metadata("n2sr").get_all("Provides-Extra")} - of_backends - of_developers:
        names = doctor._required(extra)
        assert names
        for name in names:
            assert f'pip install "n2sr[{extra}]"' in told[name]
    assert {"pyzmq", "openvino"} <= told.keys()
    assert "pip install imagecodecs" in told["imagecodecs"], "which is in no extra"
    assert told["n2sr"] == VERSION, "which em needs, too"


def test_doctor_tells_why_onnx_runtime_has_no_cuda_and_what_to_do(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(doctor, "find_driver", lambda: Driver("580.65", (13, 0), ("Fake GPU",)))
    told = dict(doctor.report())["backend cuda"]
    assert "missing: this ONNX Runtime was built without CUDA; put the other one" in told
    assert "pip install --no-deps onnxruntime-gpu" in told


@pytest.mark.parametrize(
    ("n_cores", "allowed", "told"), [(8, 3, "3 of 8 cores"), (8, 8, "8 cores"), (1, 1, "1 core")]
)
def test_doctor_tells_the_cores_that_n2sr_may_use(monkeypatch, n_cores, allowed, told):
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: n_cores)
    monkeypatch.setattr(
        doctor.os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False
    )
    assert f", {told}, " in doctor._processor()
