"""Checkpoint to ONNX: the same numbers, dynamic sizes, whole metadata, quick the second time."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from n2sr_deploy import ExportedModel, Frame
from n2sr_deploy.backends import open_backend
from n2sr_deploy.errors import ModelError, OutputError, SettingError
from n2sr_train import export as export_module
from n2sr_train import export_model, train
from n2sr_train.config import TrainingConfig
from n2sr_train.network import build_network
from tests.conftest import tiny_config


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (3, 1, 8, 20), (7, 1, 32, 4)])
def test_any_number_of_samples_and_any_size(checkpoint, precision, shape):
    exported = export_model(checkpoint, precision)
    network = build_network(checkpoint.config.network, (2, 2), 0)
    network.load_state_dict(checkpoint.weights)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    found = np.empty_like(expected)
    backend = open_backend(exported.onnx, "ort")
    backend.infer(x, found)
    backend.close()
    allowed = {"fp32": 1e-4, "fp16": 1e-2}[precision] * expected.std()
    assert np.abs(found - expected).max() < allowed


def test_fp16_is_float16_inside_and_half_the_size(checkpoint, model):
    half = export_model(checkpoint, "fp16")
    types = {
        i.data_type
        for i in onnx.load_from_string(half.onnx).graph.initializer
        if i.name.endswith("weight")
    }
    assert types == {onnx.TensorProto.FLOAT16}
    assert len(half.onnx) < len(model.onnx)
    assert half.metadata.precision == "fp16"


def test_metadata_comes_back(model, model_path, checkpoint):
    opened = ExportedModel.open(model_path)
    assert opened.metadata == model.metadata
    meta = opened.metadata
    assert meta.weights_sha256 == checkpoint.weights_sha256
    assert (meta.pad_multiple, meta.n_samples, meta.preset) == ((8, 8), 4, "balanced")
    assert (meta.pixel_size, meta.unit) == ((0.02, 0.03), "nm")
    assert meta.frame_shape == (96, 128)
    assert "96 x 128 pixels, pixel 0.02 x 0.03 nm" in opened.describe()
    assert "preset balanced, fp32" in opened.describe()


def test_the_graph_holds_no_trace_of_this_machine(model):
    text = model.onnx.decode("latin-1")
    for word in ("/home/", "/root/", ".py", "site-packages", "stack_trace", "n2sr_train"):
        assert word not in text


def test_the_graph_knows_names_and_dynamic_sizes(model):
    graph = onnx.load_from_string(model.onnx).graph
    assert [value.name for value in graph.input] == ["subsampled"]
    assert [value.name for value in graph.output] == ["denoised"]
    dims = graph.input[0].type.tensor_type.shape.dim
    assert [bool(dim.dim_param) for dim in dims] == [True, False, True, True]


def test_the_second_export_uses_the_template(checkpoint, monkeypatch):
    first = export_model(checkpoint)
    export_module._template.cache_clear()  # as in a new process
    monkeypatch.setattr(export_module, "_export_template", None)
    assert export_model(checkpoint).onnx == first.onnx


def test_a_damaged_template_is_made_again(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("N2SR_CACHE_DIR", str(tmp_path))
    export_module._template.cache_clear()
    first = export_model(checkpoint)
    (template,) = (tmp_path / "templates").iterdir()
    template.write_bytes(b"damaged")
    export_module._template.cache_clear()
    assert export_model(checkpoint).onnx == first.onnx
    assert template.read_bytes() != b"damaged"


def test_a_cache_folder_that_cannot_be_used_is_no_obstacle(checkpoint, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("N2SR_CACHE_DIR", str(tmp_path / "file"))
    export_module._template.cache_clear()
    assert export_model(checkpoint).metadata.preset == "balanced"


def test_a_model_that_differs_from_pytorch_is_refused_and_the_error_says_where(
    checkpoint, monkeypatch
):
    put_in = export_module._put_in_weights

    def with_a_slip(graph, weights):
        name = "to_pixels.bias"
        put_in(graph, {**weights, name: weights[name] + torch.tensor([0.0, 0.0, 0.0, 1.0])})

    monkeypatch.setattr(export_module, "_put_in_weights", with_a_slip)
    with pytest.raises(
        ModelError, match=r"differs from PyTorch by 1 .*most at \(\d, 0, \d+, \d+\)"
    ):
        export_model(checkpoint)


def test_a_model_that_gives_nan_is_refused(checkpoint):
    weights = {name: tensor * np.nan for name, tensor in checkpoint.weights.items()}
    with pytest.raises(ModelError, match="differs from PyTorch by inf"):
        export_model(replace(checkpoint, weights=weights))


def test_weights_of_another_network_are_refused(checkpoint):
    weights = dict(checkpoint.weights)
    weights.pop("to_pixels.bias")
    with pytest.raises(ModelError, match="do not fit"):
        export_model(replace(checkpoint, weights=weights))


def test_an_unknown_precision_is_refused(checkpoint):
    with pytest.raises(SettingError, match="must be one of fp32, fp16"):
        export_model(checkpoint, "int8")


def with_props(model, change):
    graph = onnx.load_from_string(model.onnx)
    props = {p.key: p.value for p in graph.metadata_props}
    change(props)
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, props)
    return graph.SerializeToString()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.clear(), "without n2sr's metadata"),
        (lambda p: p.update({"n2sr.format_version": "99"}), "model format 99"),
        (lambda p: p.pop("n2sr.pattern"), "damaged metadata"),
        (lambda p: p.update({"n2sr.stride": "[2]"}), "damaged metadata"),
        (lambda p: p.update({"n2sr.stride": '"ab"'}), "damaged metadata"),
        (
            lambda p: p.update({"n2sr.colour": '"red"'}),
            "by a later n2sr: this one does not know what col",
        ),
        (lambda p: p.update({"n2sr.steps": '"many"'}), "damaged metadata"),
        (lambda p: p.update({"n2sr.kept_step": '{"a": 1}'}), "damaged metadata"),
        (lambda p: p.update({"n2sr.n_samples": "not json"}), "damaged metadata"),
        (lambda p: p.update({"n2sr.n_samples": json.dumps("four")}), "damaged metadata"),
        (lambda p: p.update({"n2sr.pad_multiple": "[0, 8]"}), "damaged metadata"),
        (lambda p: p.update({"n2sr.pad_multiple": "[8, Infinity]"}), "damaged metadata"),
        (lambda p: p.update({"n2sr.pad_multiple": "[7, 8]"}), "damaged metadata"),
        (lambda p: p.update({"n2sr.pixel_size": "[0.0, 0.1]"}), "damaged metadata"),
        (lambda p: p.update({"n2sr.frame_shape": "[64]"}), "damaged metadata"),
        (lambda p: p.update({"n2sr.validation_error": '"low"'}), "damaged metadata"),
        (lambda p: p.update({"n2sr.frame_shape": "[64, 0]"}), "damaged metadata"),
        (lambda p: p.update({"n2sr.frame_shape": "[64, 1000000000]"}), "damaged metadata"),
    ],
)
def test_models_with_other_metadata_are_refused(model, tmp_path, change, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(with_props(model, change))
    with pytest.raises(ModelError, match=message):
        ExportedModel.open(path)


def test_a_model_whose_weights_are_damaged_is_refused(model, tmp_path):
    """It was run, and gave what it gave."""
    graph = onnx.load_from_string(model.onnx)
    largest = max(graph.graph.initializer, key=lambda weights: len(weights.raw_data)).raw_data
    at = model.onnx.index(largest) + len(largest) // 2
    damaged = bytearray(model.onnx)
    damaged[at] ^= 1
    path = tmp_path / "m.onnx"
    path.write_bytes(damaged)
    with pytest.raises(ModelError, match=r"m.onnx is damaged: its network is not the one that was"):
        ExportedModel.open(path)
    before = with_props(model, lambda props: props.pop("n2sr.graph_sha256"))
    path.write_bytes(before)
    assert ExportedModel.open(path).metadata.graph_sha256 is None


def test_a_model_tells_how_its_training_ended(model, checkpoint, tmp_path):
    """Only the training's last line told it."""
    (error,) = (e["validation_error"] for e in checkpoint.history if e["step"] == 12)
    told = f"in 12 steps, kept from step 12, validation error {error:.4f}; weights"
    assert told in model.describe()
    old = tmp_path / "old.onnx"
    noted = "n2sr.steps", "n2sr.kept_step", "n2sr.validation_error"
    old.write_bytes(with_props(model, lambda props: [props.pop(key) for key in noted]))
    assert "12 step" not in ExportedModel.open(old).describe()


def test_an_existing_model_is_not_replaced(model, model_path):
    with pytest.raises(OutputError, match="exists already"):
        model.save(model_path)


@pytest.mark.parametrize(("shape", "n_orientations"), [((96, 128), 8), ((40, 128), 4)])
def test_draws_are_only_laid_as_the_network_learned_to_see_them(shape, n_orientations):
    """Long patches are never transposed in training."""
    frame = Frame(pixels=np.random.default_rng(0).normal(size=shape))
    model = export_model(train(frame, tiny_config(steps=1)))
    assert model.metadata.n_orientations == n_orientations


def test_a_checkpoint_of_when_turns_could_be_left_out_is_read(checkpoint):
    config = TrainingConfig.from_dict({**checkpoint.config.to_dict(), "turns": False})
    assert config == checkpoint.config
    older = replace(checkpoint, config=config, summary={**checkpoint.summary, "turns": 1})
    assert export_model(older).metadata.n_orientations == 4
