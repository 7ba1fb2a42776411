"""n2sr's own kernels for networks: how they are launched, and on a GPU what they give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from n2sr_deploy.backends.native import NativeNetwork
from n2sr_deploy.backends.on_device import DeviceBackend
from n2sr_deploy.backends.onnx_weights import weights_in
from n2sr_deploy.backends.ort import OnnxRuntimeBackend
from n2sr_deploy.cuda.runtime import CudaDevice
from n2sr_deploy.errors import ModelError
from n2sr_deploy.sampling import SamplingPattern
from n2sr_train import export_model
from n2sr_train.config import NetworkConfig, TrainingConfig
from tests.conftest import tiny_config, untrained
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
    "channels", [(4, 4, 4), (7, 9), (8, 24, 40, 56), (64, 64), (16, 8, 16, 8, 16, 8)]
)
def test_networks_of_all_widths_and_depths(gpu, channels):
    config = tiny_config(network=NetworkConfig(channels=channels))
    assert difference(export_model(untrained(config)), gpu, (2, 1, 32, 64)) < 2e-3


@pytest.mark.parametrize("stride", [(2, 2), (3, 3), (4, 1), (1, 3), (4, 4)])
def test_all_strides(gpu, stride):
    config = tiny_config(pattern=SamplingPattern.named("cell", stride))
    assert difference(export_model(untrained(config)), gpu, (2, 1, 24, 20)) < 2e-3


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
    for config, said in ((paper, "no small U-Net"), (wide, "more than 64 channels")):
        model = export_model(untrained(config))
        with pytest.raises(ModelError, match=said):
            NativeNetwork(model.onnx, device, (2, 2))
    assert not device.memory | device.pins | device.streams


def test_a_gpu_that_is_too_old_is_told():
    device = FakeDevice()
    device.capability = 75
    with pytest.raises(ModelError, match=r"capability 7.5, .* need 8.0 \(Ampere\)"):
        NativeNetwork(b"", device, (2, 2))


def test_a_file_that_holds_another_network_is_found_out(monkeypatch):
    """Here one whose activation has another slope."""
    monkeypatch.setattr("n2sr_train.network._SLOPE", 0.3)
    config = tiny_config(network=NetworkConfig(channels=(12, 12)))
    model = export_model(untrained(config))
    device = FakeDevice()
    with pytest.raises(ModelError, match="standard deviation away from ONNX Runtime"):
        NativeNetwork(model.onnx, device, (2, 2))
    assert not device.memory | device.pins | device.streams


def test_damaged_files_are_told():
    with pytest.raises(ModelError, match="no ONNX file"):
        weights_in(b"\x3a\xff\xff\xff\xff")
