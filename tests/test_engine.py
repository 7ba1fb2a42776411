"""Engines: their key and cache, their building, and what loads them."""

from __future__ import annotations

import errno
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import time
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from n2sr_deploy import building, doctor, engine
from n2sr_deploy.backends import tensorrt as backend
from n2sr_deploy.backends import tensorrt_build, tensorrt_library
from n2sr_deploy.backends.tensorrt import TensorRTNetwork, engine_key
from n2sr_deploy.backends.tensorrt_build import (
    build_plan,
    check_engine,
    check_network,
    check_plan,
)
from n2sr_deploy.cli import main
from n2sr_deploy.engine import EngineKey
from n2sr_deploy.errors import (
    DeviceError,
    MissingExtraError,
    ModelError,
    OutOfDeviceMemoryError,
    OutputError,
)
from n2sr_deploy.layout import input_shapes
from n2sr_deploy.pipeline import FramePipeline, Program
from tests.conftest import REPOSITORY
from tests.fake_device import FakeDevice, FakeNetwork
from tests.fake_tensorrt import SHAPE, FakeEngine, FakeGPU, FakeRTX, FakeRTXEngine, FakeTensorRT

ON_POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")
PROPS = {"n2sr.preset": '"fast"'}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("N2SR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def a_key(**changes):
    return replace(
        EngineKey(
            onnx_sha256="0" * 64,
            library="tensorrt",
            library_version="11.4.0",
            gpu="NVIDIA H100",
            capability="9.0",
            driver="580.65.06",
            precision="fp16",
            shape=SHAPE,
            options="as ever",
        ),
        **changes,
    )


# the cache


def test_an_engine_is_found_again(cache):
    path = engine.keep(a_key(), b"a plan", PROPS)
    assert path == engine.path_of(a_key())
    assert engine.find(a_key()) == b"a plan"
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["model"] == PROPS
    assert told["key"]["gpu"] == "NVIDIA H100"


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "1" * 64},
        {"library": "tensorrt_rtx"},
        {"library_version": "11.4.1"},
        {"gpu": "NVIDIA H200"},
        {"capability": "10.0"},
        {"driver": "590.1"},
        {"precision": "fp32"},
        {"shape": (4, 1, 64, 48)},
        {"options": "other"},
    ],
)
def test_another_anything_is_another_engine(cache, change):
    engine.keep(a_key(), b"a plan", PROPS)
    assert engine.find(a_key(**change)) is None


def test_the_engine_that_comes_nearest_is_told(cache):
    assert engine.why_not(a_key()) == ""
    engine.keep(a_key(), b"a plan", PROPS)
    assert engine.why_not(a_key(gpu="NVIDIA H200", driver="590.1")) == (
        f"{a_key().name} was built for gpu NVIDIA H100, driver 580.65.06; "
        "this is NVIDIA H200, 590.1. "
    )
    assert engine.why_not(a_key(onnx_sha256="1" * 64)) == ""


@ON_POSIX
@pytest.mark.parametrize("what", ["plan", "json", "folder"])
def test_what_others_can_write_is_not_trusted(cache, what):
    path = engine.keep(a_key(), b"a plan", PROPS)
    opened = {"plan": path, "json": path.with_suffix(".json"), "folder": path.parent}[what]
    opened.chmod(0o777)
    with pytest.raises(ModelError, match=r"can be written by other users.*chmod go-w"):
        engine.find(a_key())
    opened.chmod(0o755)
    assert engine.find(a_key()) == b"a plan"


@ON_POSIX
def test_what_belongs_to_another_user_is_not_trusted(cache, monkeypatch):
    engine.keep(a_key(), b"a plan", PROPS)
    own = engine.os.getuid()
    monkeypatch.setattr(engine.os, "getuid", lambda: own + 1)
    with pytest.raises(ModelError, match="belongs to another user"):
        engine.find(a_key())
    with pytest.raises(OutputError, match="belongs to another user"):
        engine.keep(a_key(), b"a plan", PROPS)


@ON_POSIX
@pytest.mark.parametrize("part", ["plan", "kernels"])
def test_what_is_read_is_what_was_checked(cache, monkeypatch, part):
    """A file that was checked by its path could be another when it was opened."""
    path = engine.keep(a_key(), b"a plan", PROPS).with_suffix(f".{part}")
    engine.keep_kernels(a_key(), b"compiled")
    own, other, swapped = path.read_bytes(), path.with_suffix(".other"), []
    other.write_bytes(b"another's")
    other.chmod(0o666)
    stat, fstat = os.stat, os.fstat

    def swapping(look):
        def looked(at, **how):
            """As it was; then another file lies in its place."""
            found = look(at, **how)
            if not swapped and os.path.samestat(found, stat(path)):
                swapped.append(other.replace(path))
            return found

        return looked

    monkeypatch.setattr(os, "stat", swapping(stat))
    monkeypatch.setattr(os, "fstat", swapping(fstat))
    find = {"plan": engine.find, "kernels": engine.find_kernels}[part]
    assert find(a_key()) == {"plan": b"a plan", "kernels": b"compiled"}[part]
    assert swapped
    assert path.read_bytes() != own


@pytest.mark.parametrize("damaged", ["plan", "json"])
def test_a_damaged_engine_is_told_and_not_used(cache, damaged, caplog):
    path = engine.keep(a_key(), b"a plan", PROPS).with_suffix(f".{damaged}")
    path.write_bytes(path.read_bytes()[:-2])
    assert engine.find(a_key()) is None
    assert "is damaged" in caplog.text
    path.unlink()
    assert engine.find(a_key()) is None
    engine.keep(a_key(), b"a plan", PROPS)
    assert engine.find(a_key()) == b"a plan"


def test_a_folder_that_is_none_is_told(cache):
    cache.parent.mkdir()
    cache.write_text("a file")
    with pytest.raises(OutputError, match=r"engines cannot be kept in .*N2SR_CACHE_DIR"):
        engine.keep(a_key(), b"a plan", PROPS)


@ON_POSIX
def test_whatever_the_umask_others_cannot_write(cache):
    before = os.umask(0)
    try:
        path = engine.keep(a_key(), b"a plan", PROPS)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o077 == 0
    assert engine.find(a_key()) == b"a plan"


def test_what_is_told_of_an_engine_may_be_anything(cache):
    path = engine.keep(a_key(), b"a plan", PROPS).with_suffix(".json")
    for text in ("{}", "[]", '{"n2sr_engine": 1, "key": {}}', '{"n2sr_engine": 1, "key": 3}'):
        path.write_text(text)
        assert engine.find(a_key()) is None
        assert engine.why_not(a_key()) == ""


def test_a_full_disk_leaves_nothing(cache, monkeypatch):
    from pathlib import Path

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"No space left on device\); free some space there, or"):
        engine.keep(a_key(), b"a plan", PROPS)
    assert list(cache.iterdir()) == []


def test_a_new_engine_that_does_not_fit_leaves_the_old_one(cache, monkeypatch):
    from pathlib import Path

    engine.keep(a_key(), b"a plan", PROPS)
    engine.keep_kernels(a_key(), b"compiled")
    before = {path: path.read_bytes() for path in cache.iterdir()}
    write = Path.write_bytes

    def full(self, data):
        if self.suffix == ".plan":
            write(self, data[:4])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"No space left on device\).*N2SR_CACHE_DIR"):
        engine.keep(a_key(), b"a larger plan", PROPS)
    assert engine.find(a_key()) == b"a plan"
    assert engine.find_kernels(a_key()) == b"compiled"
    assert {path: path.read_bytes() for path in cache.iterdir()} == before


@pytest.mark.parametrize("part", ["plan", "json"])
def test_ctrl_c_while_an_engine_is_written_leaves_the_old_one(cache, monkeypatch, part):
    from pathlib import Path

    engine.keep(a_key(), b"a plan", PROPS)
    before = {path: path.read_bytes() for path in cache.iterdir()}
    write = Path.write_bytes

    def interrupted(self, data):
        if self.suffix == f".{part}":
            write(self, data[:4])
            raise KeyboardInterrupt
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.keep(a_key(), b"a larger plan", PROPS)
    assert {path: path.read_bytes() for path in cache.iterdir()} == before


@pytest.fixture
def read_only(cache, monkeypatch):
    """Makes the system refuse what changes the cache's folder; root may write anywhere."""

    def refuse(number):
        opened, make, may = os.open, os.mkdir, os.access
        error = OSError(number, os.strerror(number))

        def is_there(path):
            return str(path).startswith(str(cache.parent))

        def refusing_open(path, flags, *others, **named):
            if is_there(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise error
            return opened(path, flags, *others, **named)

        def refusing_mkdir(path, *others, **named):
            if is_there(path) and not os.path.isdir(path):  # noqa: PTH112
                raise error
            return make(path, *others, **named)

        def access(path, mode, **named):
            return may(path, mode, **named) and not (is_there(path) and mode & os.W_OK)

        monkeypatch.setattr(os, "open", refusing_open)
        monkeypatch.setattr(os, "mkdir", refusing_mkdir)
        monkeypatch.setattr(os, "access", access)

    return refuse


REFUSALS = pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)


@REFUSALS
@pytest.mark.parametrize("is_there", [True, False])
def test_where_nothing_can_be_written_each_step_tells_the_fix(cache, read_only, number, is_there):
    if is_there:
        cache.mkdir(parents=True)
    read_only(number)
    fix = r"engines cannot be kept in .*make it writable, or name another folder with N2SR_CACHE"
    with pytest.raises(OutputError, match=fix), engine.building(a_key()):
        pytest.fail("the lock was taken")
    with pytest.raises(OutputError, match=fix):
        engine.keep(a_key(), b"a plan", PROPS)
    with pytest.raises(OutputError, match=fix):
        engine.keep_kernels(a_key(), b"compiled")
    assert engine.find(a_key()) is None


@pytest.mark.parametrize("refused", ["open", "stat"])
def test_an_engine_that_cannot_be_read_is_told_and_not_used(cache, monkeypatch, caplog, refused):
    from pathlib import Path

    def refuse(self, *how, **more):
        raise PermissionError(13, "Permission denied")

    engine.keep(a_key(), b"a plan", PROPS)
    monkeypatch.setattr(Path, refused, refuse)
    assert engine.find(a_key()) is None
    assert "cannot be read (Permission denied): it is not used" in caplog.text


def _build_slowly(marks, number):
    with engine.building(a_key()):
        if engine.find(a_key()) is None:
            time.sleep(0.5)
            (marks / f"built by {number}").touch()
            engine.keep(a_key(), b"a plan", PROPS)


def test_processes_at_once_build_an_engine_once(cache, tmp_path):
    processes = multiprocessing.get_context("spawn")
    workers = [
        processes.Process(target=_build_slowly, args=(tmp_path, number)) for number in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(tmp_path.glob("built by *"))) == 1
    assert engine.find(a_key()) == b"a plan"


def test_a_build_that_ctrl_c_ends_lets_another_process_build(cache, tmp_path):
    with pytest.raises(KeyboardInterrupt) as kept, engine.building(a_key()):
        raise KeyboardInterrupt
    assert kept.tb is not None  # whose frames hold what they held
    other = multiprocessing.get_context("spawn").Process(
        target=_build_slowly, args=(tmp_path, 0), daemon=True
    )
    other.start()
    other.join(60)
    assert other.exitcode == 0
    assert (tmp_path / "built by 0").exists()


def test_a_lock_that_is_never_released_is_told(cache, monkeypatch):
    import threading

    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.05)
    failed = []

    def other():
        try:
            with engine.building(a_key()):
                pass
        except OutputError as error:
            failed.append(str(error))

    with engine.building(a_key()):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another process has been building this engine" in failed[0]


# building, by the real library, which needs no GPU for it


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module", params=["fast", "balanced", "best", "paper"])
def preset_models(request):
    """A preset's network in both precisions."""
    from benchmarks.latency import untrained
    from n2sr_train import export_model

    checkpoint = untrained(request.param)
    return {precision: export_model(checkpoint, precision) for precision in ("fp32", "fp16")}


def test_every_preset_is_compiled_in_both_precisions(rtx, preset_models):
    phases = []
    for precision, model in preset_models.items():
        (shape,) = input_shapes(model, (512, 512), 4)
        assert shape == (4, 1, 256, 256)
        plan = build_plan(
            model.onnx, "tensorrt_rtx", precision, shape, (2, 2), lambda *done: phases.append(done)
        )
        check_plan(plan, precision, shape, (2, 2))
        for told in (
            b'dims={ 4 1 256 256 } mem_prop=0 name="subsampled.1"',
            b'dims={ 4 1 512 512 } mem_prop=0 name="denoised.1"',
        ):
            assert plan.count(told) == 1
        for another, stride in (
            ((4, 1, 256, 128), (2, 2)),
            ((1, 1, 256, 256), (2, 2)),
            (shape, (2, 1)),
        ):
            with pytest.raises(ModelError, match=r"subsampled 4 x 1 x 256 x 256 float, denoised 4"):
                check_plan(plan, precision, another, stride)
        other, weights = {"fp32": ("fp16", "float"), "fp16": ("fp32", "half")}[precision]
        with pytest.raises(ModelError, match=f"weights of type {weights}, but {other} was asked"):
            check_plan(plan, other, shape, (2, 2))
    assert phases
    assert all(0 <= share <= 1 for _, share in phases)


def test_a_plan_of_another_shape_is_refused(rtx, model, monkeypatch):
    """As of a library that builds for another than it was asked for."""
    compiled = tensorrt_build._compiled
    shape, other = (4, 1, 32, 32), (4, 1, 32, 64)

    def for_another(trt, onnx, precision, shape, monitor):
        return compiled(trt, onnx, precision, other, monitor)

    monkeypatch.setattr(tensorrt_build, "_compiled", for_another)
    told = "4 x 1 x 64 x 128 float, but subsampled 4 x 1 x 32 x 32 float, denoised 4 x 1 x 64 x 64"
    with pytest.raises(ModelError, match=told):
        build_plan(model.onnx, "tensorrt_rtx", "fp32", shape, (2, 2))


@pytest.mark.parametrize("asked", ["fp32", "fp16"])
def test_a_library_that_computes_in_another_type_than_the_network_is_refused(
    rtx, checkpoint, asked, monkeypatch
):
    """As one that casts weights would: the network is taken for one of the other type."""
    from n2sr_train import export_model

    monkeypatch.setattr(tensorrt_build, "check_network", lambda *_: None)
    model = export_model(checkpoint, "fp16" if asked == "fp32" else "fp32")
    (shape,) = input_shapes(model, (128, 128), 4)
    with pytest.raises(ModelError, match=f"the engine computes with weights.*{asked} was asked"):
        build_plan(model.onnx, "tensorrt_rtx", asked, shape, (2, 2))


@pytest.mark.parametrize("when", ["it logs", "it tells of its progress"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_ctrl_c_while_the_library_builds_is_not_lost(rtx, model, monkeypatch, when, number):
    """The library swallowed it and went on, or called it a model that cannot be compiled."""
    before = signal.signal(number, signal.default_int_handler)
    came = []

    def interrupt(*_):
        came.append(1)
        if len(came) == 3:
            signal.raise_signal(number)

    if when == "it logs":
        monkeypatch.setattr(backend, "_log", SimpleNamespace(debug=interrupt))
        progress = None
    else:
        progress = interrupt
    (shape,) = input_shapes(model, (64, 64), 4)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(model.onnx, "tensorrt_rtx", "fp32", shape, (2, 2), progress)
        assert len(came) >= 3
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_inputs_outputs_and_types_are_those_of_the_model(rtx, preset_models):
    logger = backend.open_logger(rtx)
    for precision, model in preset_models.items():
        builder = rtx.Builder(logger)
        network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert rtx.OnnxParser(network, logger).parse(model.onnx)
        (given,), (result,) = (
            [get(i) for i in range(n)]
            for get, n in (
                (network.get_input, network.num_inputs),
                (network.get_output, network.num_outputs),
            )
        )
        assert (given.name, result.name) == ("subsampled", "denoised")
        assert given.dtype == result.dtype == rtx.DataType.FLOAT
        check_network(rtx, network, precision)
        other = "fp16" if precision == "fp32" else "fp32"
        with pytest.raises(ModelError, match=f"not in {other}; export its checkpoint with"):
            check_network(rtx, network, other)


def test_what_is_no_model_is_refused_with_the_parsers_words(rtx):
    with pytest.raises(ModelError, match=r"TensorRT for RTX cannot read the model: .+"):
        build_plan(b"no model", "tensorrt_rtx", "fp32", SHAPE, (2, 2))


def test_a_shape_that_the_network_cannot_take_is_refused(rtx, model):
    with pytest.raises(ModelError, match=r"cannot compile the model: .+"):
        build_plan(model.onnx, "tensorrt_rtx", "fp32", (4, 3, 48, 64), (2, 2))


@pytest.mark.parametrize(
    ("size", "n_samples", "expected"),
    [
        ((64, 64), 4, [(4, 1, 32, 32)]),
        ((60, 64), 4, [(4, 1, 32, 32)]),
        ((64, 96), 16, [(4, 1, 32, 48), (4, 1, 48, 32)]),
        ((64, 64), 16, [(4, 1, 32, 32)]),
        ((64, 64), 6, [(4, 1, 32, 32), (2, 1, 32, 32)]),
    ],
)
def test_engines_are_built_for_what_the_pipeline_asks_for(model, size, n_samples, expected):
    assert model.metadata.n_orientations == 8
    assert input_shapes(model, size, n_samples) == expected
    asked = []

    class Asking(FakeNetwork):
        def context(self, shape, stream):
            asked.append(shape)
            return super().context(shape, stream)

    device = FakeDevice()
    with FramePipeline(Program(model, Asking(model, device), device, 1)) as pipeline:
        pipeline.denoise(np.random.default_rng(0).poisson(9, size).astype(np.uint8), n_samples)
    assert sorted(asked) == sorted(expected)


# the library, as far as it can be asked without a GPU


@pytest.mark.parametrize("capability", [80, 89, 120, 999])
def test_gpus_that_rtx_is_made_for_are_taken(rtx, capability):
    tensorrt_library.require_capability("tensorrt_rtx", gpu_of(capability))


@pytest.mark.parametrize(("capability", "told"), [(75, r"7\.5"), (90, r"9\.0"), (100, r"10\.0")])
def test_a_gpu_that_rtx_is_not_made_for_is_refused_before_anything_is_built(
    rtx, model, capability, told
):
    said = rf"8\.9, 12\.0.*Fake has {told}; try backend native"
    with pytest.raises(ModelError, match=said):
        building.build_engines(model, "tensorrt_rtx", (64, 96), 4, gpu_of(capability))
    with pytest.raises(ModelError, match=said):
        TensorRTNetwork(b"onnx", "tensorrt_rtx", gpu_of(capability), "fp16", (2, 2))


def test_doctor_tells_a_gpu_that_rtx_is_not_made_for(rtx, monkeypatch):
    monkeypatch.setattr(doctor, "CudaDevice", lambda: gpu_of(100))
    assert "has 10.0; try" in dict(doctor.report())["backend tensorrt-rtx"]


def test_a_library_that_is_not_installed_tells_its_extra(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", _not_there)
    with pytest.raises(MissingExtraError, match=r'pip install "n2sr\[rtx\]"'):
        tensorrt_library.import_library("tensorrt_rtx")
    with pytest.raises(MissingExtraError, match=r'pip install "n2sr\[tensorrt\]"'):
        tensorrt_library.import_library("tensorrt")


def _not_there(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_what_is_installed_again_is_what_the_extra_installs(library):
    """n2sr itself, of which no package index knows, was to be."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    first = project["optional-dependencies"][engine.EXTRAS[library]][0]
    assert first.partition(">")[0] == tensorrt_library._PACKAGES[library]


def test_a_broken_library_is_told(monkeypatch):
    def broken(name):
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        ModelError, match=r"TensorRT is broken .*libnvinfer.so.11.*force-reinstall tensorrt-cu13"
    ):
        tensorrt_library.import_library("tensorrt")


def gpu_of(capability):
    gpu = FakeGPU()
    gpu.capability = capability
    return gpu


@pytest.fixture(params=[FakeTensorRT])
def trt(request, monkeypatch):
    trt = request.param()
    trt.install(monkeypatch)
    return trt


def network_of(device=None, plans=None):
    return TensorRTNetwork(b"onnx", "tensorrt", device or FakeGPU(), "fp16", (2, 2), plans)


def keep_engine(onnx=b"onnx"):
    key = engine_key(onnx, "tensorrt", "fp16", SHAPE, FakeGPU())
    assert key.capability == "8.9"
    return engine.keep(key, b"a plan", PROPS)


def test_an_engine_is_run_on_the_stream_it_is_given(cache, trt):
    keep_engine()
    network = network_of()
    assert network.name == "TensorRT 11.4.0 (NVIDIA Fake, fp16)"
    context = network.context(SHAPE, 7)
    context.enqueue(1000, 2000)
    context.enqueue(1000, 2000)
    fake = context._context
    assert fake.addresses == {"subsampled": 1000, "denoised": 2000}
    assert fake.ran_on == [7, 7]
    assert context.is_capturable
    assert list(network._device.memory) == [fake.workspace]
    context.close()
    assert not network._device.memory
    network.close()


def test_an_engine_that_is_not_there_tells_the_command_that_builds_it(cache, trt):
    wanted = "n2sr export MODEL.onnx --engine tensorrt --size 96 128 --samples 4"
    with pytest.raises(ModelError, match=f"There is no engine of this model.*{wanted}"):
        network_of().context(SHAPE, 7)


def test_an_engine_of_another_version_is_refused_and_told(cache, trt):
    keep_engine()
    trt.__version__ = "12.0.0"
    with pytest.raises(ModelError, match=r"library version 11.4.0; this is 12.0.0. There is no"):
        network_of().context(SHAPE, 7)


def test_a_plan_that_the_library_refuses_is_told(cache, trt):
    keep_engine()
    trt.loads, trt.told = False, "the plan is of another version"
    with pytest.raises(ModelError, match=r"of another version.*--overwrite"):
        network_of().context(SHAPE, 7)


def test_failures_of_an_engine_are_told(cache, trt):
    keep_engine()
    trt.contexts = False
    with pytest.raises(DeviceError, match="cannot run the engine here"):
        network_of().context(SHAPE, 7)
    trt.contexts = True
    with pytest.raises(OutOfDeviceMemoryError):
        network_of(FakeGPU(100)).context(SHAPE, 7)
    trt.runs = False
    with pytest.raises(DeviceError, match="TensorRT failed"):
        network_of().context(SHAPE, 7).enqueue(1, 2)


NO_RUNTIME = TypeError("pybind11::init(): factory function returned nullptr")


@pytest.mark.parametrize("raises", [None, NO_RUNTIME, RuntimeError("CUDA error 700")], ids=repr)
@pytest.mark.parametrize("fails", ["starts", "loads", "contexts", "runs"])
def test_whatever_the_library_does_when_it_fails_is_told(cache, trt, fails, raises):
    keep_engine()
    setattr(trt, fails, False)
    trt.told, trt.raises = "told to the logger", raises
    with pytest.raises(ModelError if fails == "loads" else DeviceError) as error:
        network_of().context(SHAPE, 7).enqueue(256, 512)
    assert "told to the logger" in str(error.value)
    assert str(raises or "") in str(error.value)


@pytest.mark.parametrize("raises", [None, RuntimeError("it failed")], ids=repr)
@pytest.mark.parametrize("fails", ["starts", "loads", "contexts", "runs"])
def test_memory_that_only_the_logger_is_told_of_is_known_to_be_missing(cache, trt, fails, raises):
    keep_engine()
    setattr(trt, fails, False)
    trt.told, trt.raises = "Error Code 1: Cuda Runtime (Out Of Memory)", raises
    with pytest.raises(OutOfDeviceMemoryError, match=r"memory is full .*Cuda Runtime"):
        network_of().context(SHAPE, 7).enqueue(256, 512)


@pytest.mark.parametrize(
    ("asked", "other"),
    [
        ("get_tensor_shape", {"subsampled": (4, 1, 48, 48), "denoised": (4, 1, 96, 128)}),
        ("get_tensor_shape", {"subsampled": SHAPE, "denoised": (4, 1, 96, 96)}),
        ("get_tensor_dtype", {"subsampled": "float32", "denoised": "float16"}),
        ("get_tensor_dtype", {"subsampled": "float16", "denoised": "float32"}),
        ("get_tensor_mode", {"subsampled": "out", "denoised": "in"}),
        ("get_tensor_name", {0: "denoised", 1: "denoised"}),
    ],
)
def test_an_engine_that_takes_or_gives_something_else_is_refused(
    cache, trt, monkeypatch, asked, other
):
    keep_engine()
    monkeypatch.setattr(FakeEngine, asked, lambda self, what: other[what])
    network = network_of()
    told = r"engine takes and gives .*, but subsampled \(4, 1, 48, 64\) and denoised \(4, 1, 96, 12"
    with pytest.raises(ModelError, match=told):
        network.context(SHAPE, 7)
    assert not network._device.memory


def test_a_context_whose_memory_is_refused_keeps_none(cache, trt, monkeypatch):
    def refuse(*_):
        raise RuntimeError("it is misaligned")

    keep_engine()
    monkeypatch.setattr(FakeEngine, "set_device_memory", refuse)
    network = network_of()
    with pytest.raises(DeviceError, match=r"cannot use the memory it is given \(it is misaligned"):
        network.context(SHAPE, 7)
    assert not network._device.memory


@pytest.mark.parametrize("inspector", [None, RuntimeError("no inspector")], ids=repr)
def test_an_engine_that_cannot_be_inspected_tells_nothing(cache, trt, monkeypatch, inspector):
    def create(self):
        if inspector:
            raise inspector

    keep_engine()
    monkeypatch.setattr(FakeEngine, "create_engine_inspector", create, raising=False)
    assert network_of().engine_information(SHAPE) == ""


# kernels that were compiled before

on_rtx = pytest.mark.parametrize("trt", [FakeRTX], indirect=True)


def run_once(plans=None):
    """As a process does that runs an engine; its kernels' file."""
    network = network_of(plans=plans)
    network.context(SHAPE, 7).close()
    network.close()
    return engine.path_of(engine_key(b"onnx", "tensorrt", "fp16", SHAPE, FakeGPU())).with_suffix(
        ".kernels"
    )


@on_rtx
def test_kernels_are_compiled_once(cache, trt):
    keep_engine()
    path = run_once()
    assert trt.given == []
    assert os.name == "nt" or path.stat().st_mode & 0o077 == 0
    written = path.stat().st_mtime_ns, path.stat().st_ino
    run_once()
    assert trt.given == [b"compiled"]
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written, "nothing was new"


@on_rtx
@pytest.mark.parametrize(
    "damage", ["cut", pytest.param("open to others", marks=ON_POSIX), "refused"]
)
def test_kernels_that_cannot_be_used_are_told_and_compiled_again(cache, trt, damage, caplog):
    keep_engine()
    path = run_once()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "open to others":
        path.chmod(0o666)
    trt.fits = damage != "refused"
    run_once()
    told = {
        "cut": "is damaged: its kernels are compiled again",
        "open to others": "can be written by other users",
        "refused": "do not fit here: they are compiled again",
    }
    assert told[damage] in caplog.text
    assert trt.given == ([b"compiled"] if damage == "refused" else [])
    caplog.clear()
    trt.fits = True
    run_once()
    assert trt.given[-1] == b"compiled"
    assert not caplog.records


@on_rtx
def test_kernels_that_cannot_be_kept_stop_nothing(cache, trt, monkeypatch, caplog):
    keep_engine()

    def full(*_):
        raise OutputError("the disk is full")

    monkeypatch.setattr(engine, "keep_kernels", full)
    run_once()
    assert "compiled kernels are not kept, the next start is as slow: the disk" in caplog.text


@on_rtx
def test_of_an_engine_that_is_not_kept_no_kernels_are(cache, trt):
    """They were, so that they lay there of an engine that was refused when it was verified."""
    run_once({SHAPE: b"a new plan"})
    assert not list(cache.glob("*.kernels"))


@on_rtx
def test_a_rebuilt_engine_is_not_run_with_the_kernels_of_the_old_one(cache, trt):
    keep_engine()
    path = run_once()
    assert path.exists()
    run_once({SHAPE: b"a new plan"})
    keep_engine()
    assert not path.exists()
    run_once()
    assert trt.given == []


CACHE_FAULTS = pytest.mark.parametrize("raises", [None, RuntimeError("CUDA error 700")], ids=repr)


def failing(trt, raises):
    """What a call of the library does that fails."""

    def call(*_):
        trt.logger.log(1, "told to the logger")
        if raises:
            raise raises

    return call


@on_rtx
@CACHE_FAULTS
@pytest.mark.parametrize(
    "call", ["create_runtime_config", "create_runtime_cache", "set_runtime_cache"]
)
def test_without_a_working_cache_an_engine_runs_all_the_same(
    cache, trt, monkeypatch, caplog, call, raises
):
    keep_engine()
    monkeypatch.setattr(FakeRTXEngine, call, failing(trt, raises))
    path = run_once()
    assert "compiled kernels are not kept, each start is slow" in caplog.text
    assert f"told to the logger{'; CUDA error 700' if raises else ''})" in caplog.text
    assert not path.exists()


@on_rtx
def test_a_cache_that_fails_to_read_what_was_kept_is_filled_again(cache, trt, monkeypatch, caplog):
    keep_engine()
    run_once()
    monkeypatch.setattr(FakeRTXEngine, "deserialize", failing(trt, RuntimeError("broken")))
    run_once()
    assert "do not fit here: they are compiled again" in caplog.text


@on_rtx
@CACHE_FAULTS
def test_a_cache_that_does_not_give_its_kernels_stops_nothing(
    cache, trt, monkeypatch, caplog, raises
):
    keep_engine()
    monkeypatch.setattr(FakeRTXEngine, "serialize", failing(trt, raises))
    path = run_once()
    assert "compiled kernels are not kept, the next start is as slow: TensorRT for" in caplog.text
    assert not path.exists()


@on_rtx
def test_a_context_that_cannot_be_set_up_is_told(cache, trt, monkeypatch):
    keep_engine()
    set_up = "set_execution_context_allocation_strategy"
    monkeypatch.setattr(FakeRTXEngine, set_up, failing(trt, RuntimeError("CUDA error 700")))
    with pytest.raises(DeviceError, match=r"cannot run the engine here \(told to the logger"):
        network_of().context(SHAPE, 7)


def test_without_a_cache_of_kernels_none_is_kept(cache, trt):
    keep_engine()
    assert not run_once().exists()


def test_the_real_library_has_the_cache_that_the_fake_has(rtx):
    assert hasattr(rtx.ICudaEngine, "create_runtime_config")
    of_config = "create_runtime_cache set_runtime_cache set_execution_context_allocation_strategy"
    for kind, names in (
        (rtx.IRuntimeConfig, of_config),
        (rtx.IRuntimeCache, "serialize deserialize"),
    ):
        assert not [name for name in names.split() if not hasattr(kind, name)]


# all of it together, on a GPU that is none


class Compiled(FakeNetwork):
    """An engine that computes what the model does, or something else."""

    error = 0.0
    weights = "Float"

    def __init__(self, onnx, library, device, precision, stride, plans=None):
        super().__init__(self.model, device)
        self.plans = plans

    def context(self, shape, stream):
        context = super().context(shape, stream)
        plain = context.enqueue

        def enqueue(subsampled, outputs):
            plain(subsampled, outputs)
            out_shape = shape[0], 1, 2 * shape[2], 2 * shape[3]
            self.device.enqueue(stream, lambda: self._spoil(outputs, out_shape))

        context.enqueue = enqueue
        return context

    def engine_information(self, shape):
        layers = [{"LayerType": "CaskConvolution", "Weights": {"Type": self.weights}}]
        return json.dumps({"Layers": layers})

    def _spoil(self, outputs, shape):
        self.device.at(outputs, shape, np.float32)[...] += self.error


@pytest.fixture
def compiled(monkeypatch, cache, trt, model):
    """What is compiled; `compiled.error` makes it compute something else."""
    built = []

    def fake_plan(onnx, library, precision, shape, stride, progress=None):
        built.append(shape)
        if progress:
            progress("tactics", 0.5)
        return b"plan for %d" % len(built)

    kind = type("CompiledHere", (Compiled,), {"model": model, "built": built})
    monkeypatch.setattr(building, "build_plan", fake_plan)
    monkeypatch.setattr(building, "TensorRTNetwork", kind)
    return kind


def test_an_engine_is_built_checked_and_kept_once(compiled, model):
    first = building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    again = building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    assert first == again
    assert compiled.built == [(4, 1, 32, 48)]
    building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU(), rebuild=True)
    assert len(compiled.built) == 2
    assert first[0].read_bytes() == b"plan for 2"


def test_a_full_disk_is_told_before_an_engine_is_built(compiled, model, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(model.onnx)))
    with pytest.raises(OutputError, match=r"\(No space left on device\); free some space there"):
        building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    assert not compiled.built


@REFUSALS
def test_a_read_only_folder_is_told_before_an_engine_is_built(compiled, model, read_only, number):
    read_only(number)
    with pytest.raises(OutputError, match=r"make it writable, or name another folder with N2SR_C"):
        building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    assert not compiled.built


@REFUSALS
def test_an_engine_in_a_read_only_folder_is_taken_as_it_is(compiled, model, read_only, number):
    """It was refused, since a lock was taken to look for it."""
    built = building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    read_only(number)
    assert building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU()) == built
    assert len(compiled.built) == 1


def test_ctrl_c_leaves_no_part_of_an_engine_and_no_lock(compiled, model, cache, monkeypatch):
    build = building.build_plan

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "build_plan", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    assert {path.suffix for path in cache.iterdir()} <= {".lock"}
    monkeypatch.setattr(building, "build_plan", build)
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.05)
    (path,) = building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    assert path.read_bytes() == b"plan for 1"
    assert kept.tb is not None  # whose frames hold what they held


@pytest.mark.parametrize("error", [0.1, np.nan])
def test_an_engine_that_computes_something_else_is_not_kept(compiled, model, cache, error):
    compiled.error = error
    with pytest.raises(ModelError, match=r"differs from ONNX Runtime's by .*nothing was kept"):
        building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    assert not list(cache.glob("*.plan"))


def test_an_engine_that_computes_in_another_type_is_not_kept(compiled, model, cache):
    compiled.weights = "Half"
    with pytest.raises(ModelError, match=r"weights of type Half, but fp32 was asked for"):
        building.build_engines(model, "tensorrt", (64, 96), 4, FakeGPU())
    assert not list(cache.glob("*.plan"))


def test_what_an_engine_tells_of_its_weights_is_compared():
    told = '{"Layers": ["a name", {"Weights": {"Type": "%s"}}, {"Weights": {}}, {"Bias": {}}]}'
    check_engine(told % "Float", "fp32")
    check_engine(told % "Half", "fp16")
    with pytest.raises(ModelError, match="type Float, but fp16"):
        check_engine(told % "Float", "fp16")


CONSTANT = b"tensor={ name=w const_payload_size=%d dims={ %s } strides={ 1 } type=%s }\n"
TENSOR = b'tensor={ alignment=32 dims={ %s } name="%s.1" strides={ 9 1 } type=%s }\n'
TAKEN = TENSOR % (b"4 1 48 64", b"subsampled", b"float")
GIVEN = TENSOR % (b"4 1 96 128", b"denoised", b"float")


def plan_of(*of_type, taken=TAKEN, given=GIVEN):
    """As a plan of TensorRT for RTX tells of what it takes and gives, of two convolutions' weights
    and of a bias."""
    dims = b"16 2 3 3", b"24 16 3 3", b"1 16 1 1"
    told = (CONSTANT % (64, d, t) for d, t in zip(dims, of_type, strict=True))
    return b"\0\xff".join([taken, *told, given])


def test_what_a_plan_tells_of_its_weights_is_compared():
    check_plan(plan_of(b"half", b"half", b"half"), "fp16", SHAPE, (2, 2))
    check_plan(plan_of(b"half", b"half", b"float"), "fp16", SHAPE, (2, 2))  # sums may be float
    check_plan(plan_of(b"float", b"float", b"float"), "fp32", SHAPE, (2, 2))
    with pytest.raises(ModelError, match="type float, half, but fp16 was asked for"):
        check_plan(plan_of(b"half", b"float", b"half"), "fp16", SHAPE, (2, 2))
    with pytest.raises(ModelError, match="type half, but fp32 was asked for"):
        check_plan(plan_of(b"half", b"half", b"float"), "fp32", SHAPE, (2, 2))


@pytest.mark.parametrize(
    "other",
    [
        {"taken": TENSOR % (b"4 1 48 64", b"subsampled", b"half")},
        {"given": TENSOR % (b"4 1 96 128", b"denoised", b"half")},
        {"taken": TENSOR % (b"2 1 48 64", b"subsampled", b"float")},
        {"given": TENSOR % (b"4 1 96 64", b"denoised", b"float")},
        {"given": TENSOR % (b"4 1 96 128", b"another", b"float")},
        {"taken": b""},
        {"taken": b"", "given": b""},
        {"given": GIVEN + TENSOR % (b"1 1 96 128", b"denoised", b"float")},
    ],
)
def test_a_plan_that_takes_or_gives_something_else_is_refused(other):
    wanted = "subsampled 4 x 1 x 48 x 64 float, denoised 4 x 1 x 96 x 128 float was asked for"
    with pytest.raises(ModelError, match=f"the engine takes and gives .*, but {wanted}"):
        check_plan(plan_of(b"half", b"half", b"half", **other), "fp16", SHAPE, (2, 2))


ONE_LAYER = '{"Layers": [{"LayerType": "Myelin"}, "a name"]}'


@pytest.mark.parametrize("information", [ONE_LAYER, "", "no JSON", "{}", "[]", '{"Layers": null}'])
def test_what_does_not_tell_its_precision_is_refused_or_of_an_unseen_library_told(
    information, caplog
):
    check_engine(information, "fp16")
    assert "does not tell the type of its weights: that it computes in fp16" in caplog.text
    with pytest.raises(ModelError, match="does not tell the type of its weights"):
        check_plan(information.encode(), "fp16", SHAPE, (2, 2))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_export_compiles_a_model(compiled, model, model_path, monkeypatch):
    monkeypatch.setattr("n2sr_train.cli.CudaDevice", FakeGPU)
    done = run("export", model_path, "--engine", "tensorrt", "--size", "64", "96")
    assert done.exit_code == 0, done.output
    assert "engine for frames of 64 x 96 on NVIDIA Fake" in done.output
    assert compiled.built == [(4, 1, 32, 48)]


def test_an_engine_is_for_frames_as_the_one_learned_from(compiled, model_path, monkeypatch):
    monkeypatch.setattr("n2sr_train.cli.CudaDevice", FakeGPU)
    done = run("export", model_path, "--engine", "tensorrt")
    assert done.exit_code == 0, done.output
    assert compiled.built == [(4, 1, 48, 64)]


def test_the_size_must_be_named_where_the_checkpoint_does_not_know_it(
    checkpoint, tmp_path, monkeypatch
):
    """It was told only after the export, which takes half a minute the first time."""
    monkeypatch.setattr("n2sr_train.cli.CudaDevice", FakeGPU)
    monkeypatch.setattr("n2sr_train.export.export_model", lambda *_: pytest.fail("exported"))
    summary = {key: value for key, value in checkpoint.summary.items() if key != "frame_shape"}
    older, output = tmp_path / "older.safetensors", tmp_path / "new.onnx"
    replace(checkpoint, summary=summary).save(older)
    done = run("export", older, "-o", output, "--engine", "tensorrt")
    assert (done.exit_code, "--size H W" in done.output) == (2, True)
    assert not output.exists()


def test_an_engine_of_a_checkpoint_is_for_frames_as_the_one_learned_from(
    compiled, checkpoint_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("n2sr_train.cli.CudaDevice", FakeGPU)
    done = run("export", checkpoint_path, "-o", tmp_path / "new.onnx", "--engine", "tensorrt")
    assert done.exit_code == 0, done.output
    assert compiled.built == [(4, 1, 48, 64)]


def test_export_of_a_checkpoint_compiles_what_it_writes(
    compiled, checkpoint_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("n2sr_train.cli.CudaDevice", FakeGPU)
    output = tmp_path / "new.onnx"
    done = run("export", checkpoint_path, "-o", output, "--engine", "tensorrt", "--size", 64, 64)
    assert done.exit_code == 0, done.output
    assert output.exists()
    assert compiled.built == [(4, 1, 32, 32)]


def test_export_refuses_what_makes_no_sense(model_path, checkpoint_path, tmp_path, monkeypatch):
    done = run("export", model_path, "-o", tmp_path / "b.onnx")
    assert (done.exit_code, "looks like an exported model" in done.output) == (2, True)
    done = run("export", model_path, "-o", tmp_path / "b.onnx", "--engine", "tensorrt")
    assert (done.exit_code, "leave out -o" in done.output) == (2, True)
    done = run("export", checkpoint_path)
    assert (done.exit_code, "-o MODEL.onnx" in done.output) == (2, True)
    monkeypatch.setattr("n2sr_train.cli.CudaDevice", FakeGPU)
    done = run("export", model_path, "--engine", "tensorrt", "--precision", "fp16")
    assert (done.exit_code, "--precision fp16 first" in done.output) == (2, True)


def test_export_without_a_gpu_tells_so_before_any_work(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr("n2sr_deploy.cuda.driver.LIBRARY", "libno-such-driver.so")
    output = tmp_path / "new.onnx"
    done = run("export", checkpoint_path, "-o", output, "--engine", "tensorrt-rtx")
    assert done.exit_code == 2
    assert "no NVIDIA driver" in done.output
    assert not output.exists()
