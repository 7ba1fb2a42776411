"""n2sr's own kernels for networks: how they are launched, and on a GPU what they give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from benchmarks.latency import untrained
from n2sr_deploy.backends.native import NativeNetwork
from n2sr_deploy.backends.on_device import DeviceBackend
from n2sr_deploy.backends.onnx_weights import weights_in
from n2sr_deploy.backends.ort import OnnxRuntimeBackend
from n2sr_deploy.cuda.runtime import CudaDevice
from n2sr_deploy.errors import ModelError
from n2sr_deploy.pattern import SamplingPattern
from n2sr_train import export_model
from n2sr_train.config import NetworkConfig, TrainingConfig
from tests.conftest import tiny_config
from tests.fake_device import FakeDevice


@pytest.fixture(params=["fake", pytest.param("GPU", marks=pytest.mark.gpu)])
def gpu(request):
    device = FakeDevice() if request.param == "fake" else CudaDevice()
    yield device
    if request.param == "fake":
        assert not device.memory | device.pins | device.streams


def difference(model, device, shape):
    """Root mean square, in standard deviations of what ONNX Runtime gives."""
    stride = model.metadata.pattern.stride
    given = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    results = np.empty((2, shape[0], 1, shape[2] * stride[0], shape[3] * stride[1]), np.float32)
    backends = (
        OnnxRuntimeBackend(model.onnx, n_threads=2),
        DeviceBackend(NativeNetwork(model.onnx, device, stride), device, stride),
    )
    for backend, result in zip(backends, results, strict=True):
        for _ in range(2):
            backend.infer(given, result)
        backend.close()
    return float(np.sqrt(np.mean(np.square(results[1] - results[0]))) / results[0].std())


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (4, 1, 32, 48), (3, 1, 80, 112)])
@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_presets_give_what_onnx_runtime_gives(gpu, preset, shape):
    model = export_model(untrained(TrainingConfig.named(preset)))
    assert difference(model, gpu, shape) < 2e-3


@pytest.mark.parametrize(
    ("channels", "stride"),
    [
        ((4, 4, 4), (3, 3)),
        ((7, 9), (4, 1)),
        ((8, 24, 40, 56), (2, 2)),
        ((64, 64), (1, 3)),
        ((16, 8, 16, 8, 16, 8), (4, 4)),
    ],
)
def test_networks_of_all_widths_depths_and_strides(gpu, channels, stride):
    pattern = SamplingPattern.named("cell", stride)
    config = tiny_config(network=NetworkConfig(channels=channels), pattern=pattern, patch=128)
    assert difference(export_model(untrained(config)), gpu, (2, 1, 32, 64)) < 2e-3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ensembles_are_averaged(gpu, precision):
    config = tiny_config(network=NetworkConfig(channels=(8, 16, 8), members=3))
    assert difference(export_model(untrained(config), precision), gpu, (2, 1, 24, 20)) < 3e-3


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["fast", "balanced", "best"])
@pytest.mark.parametrize("shape", [(4, 1, 256, 256), (1, 1, 512, 272)])
def test_large_tiles(preset, shape):
    model = export_model(untrained(TrainingConfig.named(preset)))
    assert difference(model, CudaDevice(), shape) < 2e-3


def test_weights_are_read_as_they_were_written():
    config = TrainingConfig.named("fast")
    checkpoint = untrained(config)
    found = weights_in(export_model(checkpoint).onnx)
    for name, tensor in checkpoint.weights.items():
        assert np.array_equal(found[name], tensor.numpy())


def test_other_networks_are_refused():
    device = FakeDevice()
    paper = replace(
        TrainingConfig.named("paper"),
        network=NetworkConfig(architecture="paper", channels=(8, 8)),
    )
    wide = tiny_config(network=NetworkConfig(channels=(8, 72)))
    for config, said in ((paper, "no small U-Net"), (wide, "of 8, 72 channels")):
        model = export_model(untrained(config))
        with pytest.raises(ModelError, match=said):
            NativeNetwork(model.onnx, device, (2, 2))
    assert not device.memory | device.pins | device.streams


@pytest.fixture(scope="module")
def small_model():
    return export_model(untrained(tiny_config(network=NetworkConfig(channels=(12, 12)))))


def with_weights(model, name, values):
    """The model's file with other weights of that name, or without them."""
    graph = onnx.load_from_string(model.onnx)
    for initializer in graph.graph.initializer:
        if initializer.name == name and values is None:
            initializer.name = "elsewhere"
        elif initializer.name == name:
            initializer.CopyFrom(onnx.numpy_helper.from_array(values, name))
    return graph.SerializeToString()


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("down.0.first.weight", np.ones((12, 1, 5, 5), "f4"), r"has shape \(12, 1, 5, 5\), but"),
        ("down.0.second.weight", np.ones((12, 12), "f4"), r"has shape \(12, 12\), but"),
        ("down.1.second.weight", np.ones((24, 12, 3, 3), "f4"), "but a small U-Net's has"),
        ("narrow.0.weight", np.ones((512, 12, 1, 1), "f4"), "but a small U-Net's has"),
        (
            "up.0.first.bias",
            np.ones(13, "f4"),
            r"has shape \(13,\), but a small U-Net's has \(12,\)",
        ),
        ("to_pixels.weight", np.ones((9, 12, 3, 3), "f4"), "but a small U-Net's has"),
        ("up.0.second.weight", np.full((12, 12, 3, 3), 1e5, "f4"), "exceeds float16"),
        ("up.0.second.weight", np.full((12, 12, 3, 3), np.nan, "f4"), "exceeds float16"),
        ("up.0.second.weight", None, "no weights up.0.second.weight"),
        ("down.0.first.weight", np.float32(1), "of 0, 12 channels"),
    ],
)
def test_weights_that_do_not_fit_are_told_before_a_gpu_sees_them(small_model, name, values, said):
    device = FakeDevice()
    with pytest.raises(ModelError, match=said):
        NativeNetwork(with_weights(small_model, name, values), device, (2, 2))
    assert not device.memory | device.pins | device.streams


def test_members_that_are_not_alike_are_refused():
    config = tiny_config(network=NetworkConfig(channels=(8, 8), members=2))
    model = export_model(untrained(config))
    name = "members.1.down.1.first.weight"
    other = with_weights(model, name, np.ones((16, 8, 3, 3), "f4"))
    with pytest.raises(ModelError, match=r"down.1.first.weight in the model has shape \(16, 8"):
        NativeNetwork(other, FakeDevice(), (2, 2))


def test_a_flat_output_is_no_division_by_zero(small_model):
    flat = with_weights(small_model, "to_pixels.weight", np.zeros((4, 12, 3, 3), "f4"))
    device = FakeDevice()
    network = NativeNetwork(flat, device, (2, 2))  # both give the same
    network.close()
    assert not device.memory | device.pins | device.streams


def test_a_gpu_that_has_failed_is_closed_without_another_error(small_model):
    device = FakeDevice()
    network = NativeNetwork(small_model.onnx, device, (2, 2))
    device.is_lost = True
    network.close()
    assert not device.memory


def test_a_lying_header_costs_no_memory():
    tensor = onnx.TensorProto(name="down.0.first.weight", data_type=1, dims=[0, 2**40])
    tensor.raw_data = b"1234"
    graph = onnx.GraphProto(initializer=[tensor])
    with pytest.raises(ModelError, match=r"damaged: 4 bytes for shape \(0, 1099511627776\)"):
        weights_in(onnx.ModelProto(graph=graph).SerializeToString())


def test_a_gpu_that_is_too_old_is_told():
    device = FakeDevice()
    device.capability = 75
    with pytest.raises(ModelError, match=r"capability 7.5, .* need 8.0 \(Ampere\)"):
        NativeNetwork(b"", device, (2, 2))


def test_a_file_that_holds_another_network_is_found_out(monkeypatch):
    """Here one whose activation has another slope."""
    monkeypatch.setattr("n2sr_train.network._SLOPE", 0.3)
    config = tiny_config(network=NetworkConfig(channels=(12, 20)))
    model = export_model(untrained(config))
    device = FakeDevice()
    with pytest.raises(ModelError, match="away from ONNX Runtime, whose output has"):
        NativeNetwork(model.onnx, device, (2, 2))
    assert not device.memory | device.pins | device.streams


def test_damaged_files_are_told():
    with pytest.raises(ModelError, match="no ONNX file"):
        weights_in(b"\x3a\xff\xff\xff\xff")
