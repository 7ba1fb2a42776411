"""Eight bits: what is in the file, who runs it, and what it may cost."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from n2sr_deploy import Denoiser, ExportedModel, Frame, write_frame
from n2sr_deploy.backends import open_backend, open_network
from n2sr_deploy.backends.choosing import ON_GPU
from n2sr_deploy.cli import main
from n2sr_deploy.errors import FrameError, ModelError
from n2sr_deploy.noise import measure_noise
from n2sr_deploy.phantom import clean_phantom, noisy_draw, phantom_input
from n2sr_train import LearnOptions, export_model, learn_checkpoint, quantised, quantising
from n2sr_train.config import NetworkConfig
from n2sr_train.export import exported_weights
from tests.fake_device import FakeDevice


@pytest.fixture(scope="module")
def in_int8(model, noisy):
    return quantised(model, noisy)


@pytest.fixture
def run(tmp_path, monkeypatch, noisy):
    """Export in a folder where noisy.npy is."""
    monkeypatch.chdir(tmp_path)
    write_frame("noisy.npy", noisy)

    def run(*arguments):
        return CliRunner().invoke(main, ["export", *map(str, arguments)])

    return run


def with_rms(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def test_all_weights_and_activations_of_convolutions_are_eight_bits(in_int8, model):
    graph = onnx.load_from_string(in_int8.model.onnx).graph
    made_by = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    own = onnx.load_from_string(model.onnx).graph.node
    assert len(convolutions) == sum(node.op_type == "Conv" for node in own) > 0
    for node in convolutions:
        given, weights = (made_by[name] for name in node.input[:2])
        assert (given.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert made_by[given.input[0]].op_type == "QuantizeLinear"
        values, scales = (constant(graph, name) for name in weights.input[:2])
        assert values.dtype == np.int8
        assert np.abs(values.astype(int)).max() <= 64  # else processors without VNNI clip sums
        assert scales.shape == (len(values),)


def constant(graph, name):
    return onnx.numpy_helper.to_array(next(i for i in graph.initializer if i.name == name))


def test_the_rest_is_as_it_was_exported(in_int8, model, tmp_path):
    in_int8.model.save(tmp_path / "int8.onnx")
    opened = ExportedModel.open(tmp_path / "int8.onnx")
    assert opened.metadata == replace(model.metadata, precision="int8")
    assert ", int8, " in opened.describe()
    assert b"/tmp" not in opened.onnx
    graph = onnx.load_from_string(opened.onnx).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["subsampled", "denoised"]


def test_the_same_frame_gives_the_same_model(in_int8, model, noisy):
    assert quantising.rounded(model, noisy).onnx == in_int8.model.onnx


@pytest.mark.parametrize("backend", ["ort", "openvino", "openvino-float32"])
def test_backends_on_the_cpu_run_it(backend, in_int8, model, noisy):
    if backend.startswith("openvino"):
        pytest.importorskip("n2sr_deploy.backends.openvino")
    with Denoiser(in_int8.model, backend=backend) as denoiser:
        found = denoiser.denoise(noisy).mean
        assert ("int8 and " in denoiser.name) == backend.startswith("openvino")
    with Denoiser(model, backend="ort") as denoiser:
        wanted = denoiser.denoise(noisy).mean
    assert 0 < with_rms(found - wanted) < 0.1 * wanted.std()


@pytest.mark.parametrize("name", ON_GPU)
def test_backends_on_the_gpu_refuse_it(name):
    with pytest.raises(ModelError, match="the model is int8, which runs on the CPU only; for a"):
        open_network(b"", name, FakeDevice(), precision="int8", stride=(2, 2))


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (5, 1, 12, 20)])
def test_it_takes_any_number_of_draws_of_any_size(in_int8, model, shape):
    given = phantom_input(shape)
    results = np.empty((2, shape[0], 1, 2 * shape[2], 2 * shape[3]), np.float32)
    for each, result in zip((model, in_int8.model), results, strict=True):
        with closing(open_backend(each.onnx, "ort")) as backend:
            backend.infer(given, result)
    assert with_rms(results[1] - results[0]) < 0.1 * results[0].std()


def test_what_it_costs_is_told_about_right():
    """Of a network that denoises well, since it begins with what n2sr carries. How rounding and the
    error before go together is by chance, and other in each frame: that is left out."""
    clean = clean_phantom((256, 256), spacing=12)
    frame = Frame(pixels=noisy_draw(clean, gain=0.005, read_noise=0.005))
    own = export_model(learn_checkpoint(frame, LearnOptions(preset="fast", steps=30, device="cpu")))
    found = quantised(own, frame)
    means = []
    for each in (own, found.model):
        with Denoiser(each, backend="ort") as denoiser:
            means.append(denoiser.denoise(frame, 4).mean)
    added, error = np.mean((means[1] - means[0]) ** 2), np.mean((means[0] - clean) ** 2)
    assert 0.5 < found.loss_db / (10 * np.log10(1 + added / error)) < 2
    assert len(found.model.onnx) < 0.4 * len(own.onnx)


def test_too_great_a_loss_is_refused_and_leaves_no_file(
    run, checkpoint_path, tmp_path, monkeypatch
):
    monkeypatch.setattr(quantising, "LARGEST_LOSS_DB", 1e-6)
    done = run(
        checkpoint_path, "-o", "int8.onnx", "--precision", "int8", "--calibrate", "noisy.npy"
    )
    assert done.exit_code == 2
    assert "eight bits would cost" in done.output
    assert "too little noise for them; export with --precision fp32" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["noisy.npy"]


def test_a_frame_that_tells_nothing_of_the_loss_is_refused(model):
    clean = Frame(pixels=clean_phantom((96, 128), spacing=12))
    with pytest.raises(ModelError, match="cannot be measured on a frame that is without noise"):
        quantised(model, clean)


def test_a_frame_that_the_network_was_not_learned_from_is_refused(model, noisy):
    other = noisy.cropped(slice(0, 64), slice(0, 128))
    with pytest.raises(FrameError, match=r"shape \(64, 128\), but .* one of \(96, 128\)"):
        quantised(model, other)
    with pytest.raises(FrameError, match="is a result of n2sr"):
        quantised(model, replace(noisy, metadata={"n2sr": {}}))


def test_a_frame_of_other_noise_is_refused(model, noisy):
    std = measure_noise(noisy).std
    for learned_from, is_taken in ((std, True), (1.2 * std, False), (std / 1.2, False)):
        metadata = replace(model.metadata, noise={"std": learned_from})
        known = replace(model, metadata=metadata)
        if is_taken:
            assert quantised(known, noisy).model.metadata.precision == "int8"
        else:
            with pytest.raises(FrameError, match=r"noise has std .* learned from .* give that"):
                quantised(known, noisy)


def test_only_float32_is_rounded(checkpoint, in_int8, noisy):
    for model in (export_model(checkpoint, "fp16"), in_int8.model):
        with pytest.raises(ModelError, match="but only fp32 is made int8"):
            quantised(model, noisy)


def test_no_training_begins_with_rounded_weights(in_int8):
    with pytest.raises(ModelError, match="weights are rounded to int8"):
        exported_weights(in_int8.model, NetworkConfig(channels=(4, 4, 4)))


def test_export_tells_what_it_costs(run, checkpoint_path, in_int8):
    done = run(
        checkpoint_path, "-o", "int8.onnx", "--precision", "int8", "--calibrate", "noisy.npy"
    )
    assert done.exit_code == 0, done.output
    told = f"; eight bits cost {in_int8.loss_db:.2f} dB on a frame like that"
    assert ", int8, " in done.output
    assert told in done.output
    assert ExportedModel.open("int8.onnx").metadata.precision == "int8"


def test_the_frame_may_be_one_of_a_stack(run, checkpoint_path, noisy):
    np.save("stack.npy", np.stack([np.zeros_like(noisy.pixels), noisy.pixels]))
    int8 = ["--precision", "int8", "--calibrate", "stack.npy"]
    done = run(checkpoint_path, "-o", "int8.onnx", *int8, "--frame", "1")
    assert done.exit_code == 0, done.output


def test_int8_is_made_of_a_checkpoint(run, model):
    model.save("own.onnx")
    done = run("own.onnx", "-o", "int8.onnx", "--precision", "int8", "--calibrate", "noisy.npy")
    assert done.exit_code == 2
    assert "int8 is made of the checkpoint that training wrote (.safetensors)" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int8"], "name it: --calibrate NOISY"),
        (["--calibrate", "noisy.npy"], "--calibrate is for --precision int8"),
        (["--frame", "1"], "--frame is for --precision int8"),
        (
            ["--precision", "fp16", "--calibrate", "noisy.npy"],
            "--calibrate is for --precision int8",
        ),
        (
            ["--precision", "int8", "--calibrate", "noisy.npy", "--engine", "tensorrt"],
            "runs on the CPU only; leave out --engine",
        ),
        (["--precision", "int8", "--calibrate", "none.npy"], "none.npy"),
        (["--precision", "int8", "--calibrate", "text.tif"], "text.tif"),
        (["--precision", "int8", "--calibrate", "stack.npy"], "stack.npy"),
    ],
)
def test_what_makes_no_sense_is_told_before_any_work(
    run, checkpoint_path, tmp_path, monkeypatch, arguments, said
):
    monkeypatch.setattr("n2sr_train.export.export_model", lambda *_: pytest.fail("exported"))
    (tmp_path / "text.tif").write_text("no image")
    np.save(tmp_path / "stack.npy", np.zeros((3, 96, 128), np.float32))
    done = run(checkpoint_path, "-o", "int8.onnx", *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "int8.onnx").exists()
