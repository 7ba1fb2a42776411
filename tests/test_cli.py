"""The command line as users meet it: each command, and each thing that can be wrong."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner

from n2sr_deploy import (
    ExportedModel,
    Frame,
    denoise_file,
    doctor,
    files,
    formats,
    learning,
    read_frame,
    write_frame,
)
from n2sr_deploy.cli import main
from n2sr_deploy.errors import (
    FrameError,
    MissingExtraError,
    NotChosenError,
    OutputError,
    OutputExistsError,
    SettingError,
)
from n2sr_deploy.formats import extensions
from n2sr_deploy.formats.metadata import acquired
from n2sr_deploy.frame import Intensity
from n2sr_deploy.noise import Noise, choose_pattern, measure_noise
from n2sr_deploy.opening import Denoisers
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.version import VERSION
from n2sr_train import Checkpoint, LearnOptions, export_model, learn_checkpoint
from tests.conftest import REPOSITORY

QUICK = ["--steps", "2", "--device", "cpu"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def noisy_file(noisy, tmp_path):
    write_frame(tmp_path / "noisy.tif", noisy)
    return tmp_path / "noisy.tif"


def test_the_whole_chain(run, tmp_path):
    run("simulate", "-o", "noisy.tif", "--clean", "clean.tif", "--size", 96, 128, "--spacing", 12)
    trained = run("train", "noisy.tif", "-o", "s.safetensors", "--steps", 30)
    assert "preset balanced" in trained.stdout
    assert "step 30 of 30" in trained.stderr
    run("export", "s.safetensors", "-o", "s.onnx", "--precision", "fp16")
    run("denoise", "noisy.tif", "-m", "s.onnx", "-o", "out.tif", "--std", "std.tif", "-M", 8)
    noisy, clean, out = (read_frame(f"{name}.tif") for name in ("noisy", "clean", "out"))
    error = [np.mean((image.pixels - clean.pixels) ** 2) for image in (noisy, out)]
    assert error[1] < error[0]
    assert (read_frame("std.tif").pixels > 0).all()
    assert "mean of 8 draws, seed 0" in out.history[-1]
    assert "exported model" in run("info", "s.onnx").stdout
    assert "checkpoint" in run("info", "s.safetensors").stdout
    assert "96 x 128 float32" in run("info", "out.tif").stdout
    at_once = run("train", "noisy.tif", "-o", "at_once.onnx", "--steps", 30)
    assert "learned: checkpoint, preset balanced" in at_once.stderr
    assert "at_once.onnx: exported model, preset balanced" in at_once.stdout
    exported_after = export_model(Checkpoint.open("s.safetensors"))
    assert Path("at_once.onnx").read_bytes() == exported_after.onnx
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "at_once.onnx",
        "clean.tif",
        "noisy.tif",
        "out.tif",
        "s.onnx",
        "s.safetensors",
        "std.tif",
    ]


def test_denoise_in_one_go_keeps_its_network(run, noisy_file):
    """The same frame denoised with it is the same."""
    keep = ["--keep", "kept.onnx"]
    learned = run("denoise", noisy_file, "-o", "a.npy", *QUICK, *keep, "--backend", "ort")
    assert "kept.onnx: exported model, preset balanced" in learned.stdout
    run("denoise", noisy_file, "-o", "b.npy", "-m", "kept.onnx", "--backend", "ort")
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    again = run("denoise", noisy_file, "-o", "c.npy", *QUICK, *keep, code=2)
    assert "kept.onnx exists already" in again.stderr
    assert not Path("c.npy").exists()
    run("denoise", noisy_file, "-o", "c.npy", *QUICK, *keep, "--overwrite")


@pytest.fixture
def full_disk(monkeypatch):
    """No model can be written."""

    def refused(*_, **__):
        raise OutputError("the disk is full")

    monkeypatch.setattr(ExportedModel, "save", refused)


@pytest.fixture
def no_denoising(monkeypatch):
    """It fails after what was learned."""

    def broken(*_, **__):
        raise FrameError("the backend broke")

    monkeypatch.setattr(Denoisers, "of_model", broken)


def test_a_network_that_cannot_be_kept_costs_no_result(run, noisy_file, full_disk):
    done = run("denoise", noisy_file, "-o", "out.npy", *QUICK, "--keep", "kept.onnx", code=1)
    assert "out.npy: denoised" in done.stdout
    assert "nothing was kept in kept.onnx, see above" in done.stderr
    assert Path("out.npy").exists()


def test_a_network_is_kept_before_anything_is_denoised(run, noisy_file, no_denoising):
    failed = run("denoise", noisy_file, "-o", "out.npy", *QUICK, "--keep", "kept.onnx", code=2)
    assert "the backend broke" in failed.stderr
    ExportedModel.open("kept.onnx")


def test_a_network_that_is_not_kept_is_told_whatever_follows(
    run, noisy_file, full_disk, no_denoising
):
    failed = run("denoise", noisy_file, "-o", "out.npy", *QUICK, "--keep", "kept.onnx", code=2)
    assert "what was learned is not kept there: the disk is full" in failed.stderr


def test_a_file_that_came_meanwhile_is_not_replaced(run, noisy_file, monkeypatch):
    learn = denoise_file.learn

    def slow(*arguments):
        Path("kept.onnx").write_text("mine")
        return learn(*arguments)

    monkeypatch.setattr(denoise_file, "learn", slow)
    done = run("denoise", noisy_file, "-o", "out.npy", *QUICK, "--keep", "kept.onnx", code=1)
    assert "what was learned is not kept there: kept.onnx exists already" in done.stderr
    assert Path("kept.onnx").read_text() == "mine"
    (kept,) = Path().glob("kept-*.onnx")
    assert f"what was learned is kept in {kept}" in done.stderr
    ExportedModel.open(kept)


@pytest.mark.parametrize("keep", [[], ["--keep", "kept.onnx"]])
def test_a_result_that_cannot_be_written_costs_no_network(run, noisy_file, monkeypatch, keep):
    """Of a full disk, or one that was taken out: minutes of training were lost."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("n2sr_deploy.formats.tiff.tifffile.imwrite", full)
    failed = run("denoise", noisy_file, "-o", "out.tif", *QUICK, *keep, code=2)
    (kept,) = Path().glob("*.onnx")
    assert kept.name == "kept.onnx" if keep else kept.name.startswith("out-")
    assert (f"what was learned is kept in {kept}" in failed.stderr) == (not keep)
    assert "No space left on device; no part of it is left" in failed.stderr
    again = run("denoise", noisy_file, "-o", "out.npy", "-m", kept)
    assert "out.npy: denoised" in again.stdout


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, RuntimeError])
def test_what_was_learned_is_kept_whatever_keeps_it_from_being_used(
    run, noisy_file, monkeypatch, error
):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(Denoisers, "of_model", broken)
    arguments = ["denoise", str(noisy_file), "-o", "out.tif", *QUICK]
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code
    (kept,) = Path().glob("out-*.onnx")
    assert f"what was learned is kept in {kept}" in failed.stderr
    ExportedModel.open(kept)


def test_a_place_for_the_standard_error_is_made_before_a_training(run, noisy_file, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("n2sr_deploy.denoise_file.tempfile.TemporaryFile", full)
    failed = run("denoise", noisy_file, "-o", "o.tif", "--std", "s.tif", *QUICK, code=2)
    assert failed.stderr.endswith(
        "Error: cannot write s.tif: No space left on device; choose another name\n"
    )
    assert "training" not in failed.stderr


def test_denoise_without_a_model_trains_first(run, noisy_file):
    raw = noisy_file.read_bytes()
    result = run("denoise", noisy_file, "-o", "out.mrc", *QUICK, "--pattern", "row")
    assert "training, step 2 of 2" in result.stderr
    out = read_frame("out.mrc")
    assert out.pixel_size == pytest.approx((0.02, 0.03))
    assert out.unit == "nm"
    assert "pattern row" in out.history[-1]
    assert noisy_file.read_bytes() == raw


def test_a_seed_gives_the_same_result(run, noisy_file, model_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("denoise", noisy_file, "-m", model_path, "-o", f"{name}.npy", "--seed", seed)
    a, b, c = (np.load(f"{name}.npy") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.random.default_rng(0).normal(size=(31, 40)), "too small to measure its noise"),
        (np.full((64, 64), 7.0), "constant: every pixel is 7"),
    ],
    ids=["small", "constant"],
)
def test_info_says_why_it_tells_no_noise(run, pixels, words):
    np.save("frame.npy", pixels)
    assert words in run("info", "frame.npy").stdout


@pytest.mark.parametrize(
    ("intensity", "words"),
    [
        (Intensity(scale=256.0), "count * 256"),
        (Intensity(unit="e-"), "count * 1 e-"),
        (Intensity(scale=0.5, offset=3.0, unit="e-"), "(count - 3) * 0.5 e-"),
        (Intensity(offset=-3.0), "(count + 3)"),
    ],
)
def test_info_says_what_a_count_means(run, noisy, intensity, words):
    """It said "(count - 0) * 256 "."""
    write_frame("noisy.tif", replace(noisy, intensity=intensity))
    assert f"  a count means: {words}\n" in run("info", "noisy.tif").stdout


def test_info_as_json_tells_what_a_program_needs(run, noisy_file, noisy, model_path):
    told = json.loads(run("info", noisy_file, "--json").stdout)
    assert (told["kind"], told["shape"]) == ("frame", list(noisy.shape))
    assert told["mean"] == pytest.approx(float(noisy.pixels.mean()))
    assert Noise.from_dict(told["noise"]) == measure_noise(noisy)
    pattern, margin, why = choose_pattern(measure_noise(noisy))
    assert SamplingPattern.named(told["pattern"], tuple(told["stride"])) == pattern
    assert (told["margin"], told["remark"]) == (margin, why)
    run("train", noisy_file, "-o", "s.safetensors", *QUICK)
    checkpoint = json.loads(run("info", "s.safetensors", "--json").stdout)
    assert checkpoint["config"]["steps"] == checkpoint["history"][-1]["step"]
    run("export", "s.safetensors", "-o", "s.onnx")
    model = json.loads(run("info", "s.onnx", "--json").stdout)
    assert [told["kind"] for told in (checkpoint, model)] == ["checkpoint", "exported model"]
    assert model["weights_sha256"] == checkpoint["weights_sha256"]
    assert model["noise"] == told["noise"]


def test_json_of_a_frame_has_the_same_keys_whatever_is_known_of_it(
    run, noisy, noisy_file, model_path
):
    run("denoise", noisy_file, "-m", model_path, "-o", "denoised.tif", "--std", "std.tif")
    write_frame("constant.tif", np.full((64, 64), 3, np.uint8))
    write_frame("small.tif", noisy.pixels[:40, :40])
    keys = list(json.loads(run("info", noisy_file, "--json").stdout))
    for name in ("denoised.tif", "std.tif", "constant.tif", "small.tif"):
        told = json.loads(run("info", name, "--json").stdout)
        assert list(told) == keys
        untold = told["noise"], told["pattern"], told["stride"], told["margin"]
        assert untold == (None, None, None, None)
        assert told["remark"]


@pytest.mark.parametrize("option", ["--json", "--metadata"])
def test_info_prints_no_number_that_json_has_not(run, noisy, option):
    """NaN is a word of Python's JSON only."""
    write_frame("noisy.tif", replace(noisy, metadata={"drift": math.nan}, origin=(0.0, math.inf)))
    told = run("info", "noisy.tif", option).stdout
    assert "null" in told
    json.loads(told, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_what_a_program_does_not_know_is_not_told():
    table = {"microscope": "name", "detector": "detector", "mode": "mode"}
    told = {"name": "Unknown", "detector": "HAADF", "mode": ""}
    assert acquired(told, table) == {"detector": "HAADF"}


def test_one_frame_of_a_stack(run, noisy, model_path):
    stack = np.stack([noisy.pixels, noisy.pixels * 2 + 5])
    tifffile.imwrite("stack.tif", stack, imagej=True, metadata={"axes": "TYX"})
    run("denoise", "stack.tif", "--frame", 1, "-m", model_path, "-o", "out.tif")
    assert read_frame("out.tif").pixels.mean() == pytest.approx(stack[1].mean(), rel=0.05)
    assert "frame 0 of 2" in run("info", "stack.tif").stdout


def test_doctor_tells_what_matters(run):
    text = run("doctor").stdout
    assert list(json.loads(run("doctor", "--json").stdout)) == [
        line[:22].rstrip() for line in text.splitlines()
    ]
    for topic in ("n2sr ", "kernels", "onnxruntime", "torch", "processor", "GPU", "backend"):
        assert topic in text


def test_doctor_names_no_users_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert doctor._from_home(Path("/home/someone/.cache/n2sr")) == Path("~/.cache/n2sr")
    assert doctor._from_home(Path("/scratch/n2sr")) == Path("/scratch/n2sr")


def test_version_tells_the_kernels(run):
    assert run("--version").stdout.startswith(f"n2sr {VERSION}, kernels: ")


@pytest.mark.parametrize(
    "command",
    [
        [],
        *(
            [c]
            for c in ("train", "export", "denoise", "batch", "bench", "info", "simulate", "doctor")
        ),
    ],
)
def test_help_imports_nothing_heavy(command):
    script = (
        "import sys\nfrom n2sr_deploy.cli import main\n"
        f"try:\n    main({[*command, '--help']!r})\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'matplotlib', 'scipy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout


# ---- bad input: one line that tells the fix, exit code 2, nothing written -------------------


def frames_that_are_wrong(folder):
    rng = np.random.default_rng(0)
    good = rng.normal(size=(64, 64)).astype(np.float32)
    np.save(folder / "complex.npy", good.astype(np.complex64))
    np.save(folder / "empty.npy", good[:0])
    np.save(folder / "small.npy", good[:5])
    np.save(folder / "nan.npy", np.full_like(good, np.nan))
    np.save(folder / "somenan.npy", np.where(good > 2, np.nan, good))
    np.save(folder / "inf.npy", np.where(good > 2, np.inf, good))
    np.save(folder / "constant.npy", np.ones_like(good))
    np.save(folder / "stack.npy", np.stack([good, good]))
    tifffile.imwrite(folder / "rgb.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(folder / "whole.tif", good)
    (folder / "truncated.tif").write_bytes((folder / "whole.tif").read_bytes()[:4000])
    formats.write_frame(folder / "whole.mrc", Frame(pixels=good))
    (folder / "cut.mrc").write_bytes((folder / "whole.mrc").read_bytes()[:-4000])
    (folder / "text.tif").write_text("no image")
    (folder / "text.mrc").write_text("no image" * 200)
    (folder / "text.npy").write_text("no image")
    (folder / "photo.tif").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    (folder / "nothing.dm3").touch()


BAD_FRAMES = {
    "missing.tif": "does not exist; check the path",
    "text.tif": "is named as TIFF is, but holds something else",
    "text.mrc": "is named as MRC is, but holds something else",
    "text.npy": "is truncated, holds Python objects or is another kind of file; save it again",
    "photo.tif": "is a JPEG image, whatever its name says, not TIFF; take the file that the",
    "nothing.dm3": "is empty (0 bytes)",
    "rgb.tif": "convert it to one grey channel",
    "stack.npy": "Choose it with --frame 0 to --frame 1",
    "complex.npy": "save its magnitude",
    "empty.npy": "is empty",
    "small.npy": "needs at least",
    "nan.npy": "frame has nothing but NaN or infinite pixels, so there is nothing to learn or "
    "denoise; take another frame",
    "somenan.npy": "NaN or infinite pixels of 4096; replace each",
    "inf.npy": "NaN or infinite pixels of 4096; replace each",
    "constant.npy": "nothing to learn from it, and nothing to denoise",
    "cut.mrc": "it says it has (1, 64, 64) pixels of float32",
    "truncated.tif": "is truncated, damaged or not what it seems; copy it again, or save it again",
}


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("with_model", [True, False])
def test_bad_frames(run, tmp_path, model_path, name, with_model):
    frames_that_are_wrong(tmp_path)
    before = sorted(tmp_path.iterdir())
    how = ["-m", model_path] if with_model else QUICK
    results = [run("denoise", name, "-o", "out.tif", *how, code=2)]
    if not with_model:
        results.append(run("train", name, "-o", "out.safetensors", *QUICK, code=2))
    for result in results:
        refused(result, BAD_FRAMES[name])
        assert f"Error: {name}" in result.stderr
        assert "backend" not in result.stderr, "it is told before a model is opened"
    assert sorted(tmp_path.iterdir()) == before


def test_completion_goes_on_after_a_misspelt_command():
    asked = {"_N2SR_COMPLETE": "bash_complete", "COMP_WORDS": "n2sr denois --", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from n2sr_deploy.cli import main; main(prog_name='n2sr')"],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


def refused(result, message):
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["denois", "noisy.tif"], "did you mean 'denoise'?"),
        (["denoise", "noisy.tif", "-o", "there.tif"], "exists already; choose another name or"),
        (["denoise", "noisy.tif", "-o", "noisy.tif", "--overwrite"], "is the input itself"),
        (["train", "noisy.tif", "-o", "noisy.tif", "--overwrite"], "is the input itself"),
        (["export", "s.safetensors", "-o", "s.safetensors", "--overwrite"], "is the input itself"),
        (["denoise", "noisy.tif", "-o", "o.tif", "--std", "sub/../o.tif"], "named for two outputs"),
        (["denoise", "noisy.tif", "-o", "no/out.tif"], "create it first"),
        (["denoise", "noisy.tif", "-o", "out.jpg"], "n2sr does not write; it writes TIFF"),
        (["denoise", "noisy.tif", "-o", "out"], "out has no extension to tell its format: TIFF"),
        (["denoise", "noisy.tif", "-o", "out.tif", "--std", "out.tif"], "named for two outputs"),
        (["denoise", "noisy.tif", "-o", "out.tif", "--std", "there.tif"], "exists already"),
        (
            ["denoise", "noisy.tif", "-o", "out.tif", "-M", "0"],
            "--samples is 0, but must be 1 to 1024",
        ),
        (["denoise", "noisy.tif", "-o", "out.tif", "--preset", "bst"], "must be one of"),
        (["denoise", "noisy.tif", "-o", "o.tif", "--keep", "k.tif"], "must end in .onnx"),
        (["denoise", "noisy.tif", "-o", "o.tif", "--keep", "k.onnx", "-m", "m.onnx"], "leave one"),
        (["denoise", "noisy.tif", "-o", "o.tif", "--keep", "k.onnx", "--per-frame"], "leave one"),
        (
            ["denoise", "noisy.tif", "-o", "o.tif", "--keep", "k.onnx", "--init", "k.onnx"],
            "is the input itself",
        ),
        (["denoise", "noisy.tif", "-o", "out.tif", "--stride", "9"], "1 to 4"),
        (["denoise", "noisy.tif", "-o", "out.tif", "--stride", "x"], "is no stride"),
        (["denoise", "noisy.tif", "-o", "out.tif", "--steps", "0"], "steps is 0"),
        (["denoise", "noisy.tif", "-o", "out.tif", "--seconds", "nan"], "seconds is nan"),
        (["denoise", "noisy.tif", "-o", "out.tif", "--device", "cuda:cpu"], "device is 'cuda:cpu'"),
        (["denoise", "noisy.tif", "-o", "out.tif", "--frame", "1"], "has no frame 1"),
        (["denoise", "noisy.tif", "-o", "out.tif", "-m", "no.onnx"], "does not exist"),
        (["denoise", "noisy.tif", "-o", "out.tif", "-m", "noisy.tif"], "is not an ONNX model"),
        (["denoise", "noisy.tif", "-o", "o.tif", "-m", "s.safetensors"], "n2sr export s.safe"),
        (["denoise", "noisy.tif", "-o", "o.tif", "-m", "m.onnx", "--steps", "3"], "leave one out"),
        (["export", "m.onnx", "-o", "out.onnx"], "looks like an exported model"),
        (["export", "noisy.tif", "-o", "out.onnx"], "is not a checkpoint"),
        (["export", "cut.safetensors", "-o", "out.onnx"], "cut off or damaged: copy it again, or"),
        (["export", "m.onnx"], "m.onnx is no checkpoint; if it is an exported model, name what to"),
        (["export", "s.safetensors", "-o", "o.onnx", "-M", "4"], "--samples is about engines"),
        (["export", "s.safetensors", "-o", "o.onnx", "--size", "64", "64"], "--size is about eng"),
        (["denoise", "noisy.tif", "-o", "o.tif", "-m", "cut.onnx"], "cut off or damaged: copy it"),
        (["export", "no.safetensors", "-o", "out.onnx"], "does not exist"),
        (["export", "s.safetensors", "-o", "there.tif"], "exists already"),
        (["train", "noisy.tif", "-o", "there.tif"], "exists already"),
        (["train", "noisy.tif", "-o", "no/s.safetensors"], "create it first"),
        (["denoise", "noisy.tif", "-o", "o.tif", "-M", "1", "--std", "s.tif"], "at least 2 draws"),
        (["train", "noisy.tif", "-o", "out.tif"], "must end in .safetensors or .onnx"),
        (["export", "s.safetensors", "-o", "out.tif"], "must end in .onnx"),
        (["info", "no.tif"], "does not exist"),
        (["info", "cut.onnx"], "cut off or damaged: copy it again, or export it again"),
        (["info", "cut.safetensors"], "cut off or damaged: copy it again, or train again"),
        (["info", "empty.safetensors"], "is not a checkpoint"),
        (["export", "empty.safetensors", "-o", "out.onnx"], "is not a checkpoint"),
        (["export", "empty.safetensors"], "name the model to write: -o"),
        (["info", "m.onnx", "--frame", "0"], "--frame is about frames, but m.onnx is none"),
        (["info", "m.onnx", "--metadata"], "--metadata is about frames"),
        (["info", "m.onnx", "--metadata", "--json"], "--metadata and --json both print JSON"),
        (["info", "s.safetensors", "--second", "1"], "--second is about frames"),
        (["info", "notes.txt"], "is no frame, checkpoint (.safetensors) or exported model"),
        (["info", "notes.txt"], f"frames it reads from {formats.names()}"),
        (["denoise", "notes.txt", "-o", "x.tif"], f"it reads {formats.names()}"),
        (["simulate", "-o", "there.tif"], "exists already"),
        (["simulate", "-o", "out.tif", "--gain", "-1"], "gain is -1"),
        (["simulate", "-o", "out.tif", "--size", "8", "8"], "at least 32 x 32"),
    ],
)
def test_bad_usage(run, tmp_path, noisy, model_path, checkpoint_path, arguments, message):
    write_frame("noisy.tif", noisy)
    (tmp_path / "there.tif").write_bytes(b"precious")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub").mkdir()
    (tmp_path / "m.onnx").write_bytes(model_path.read_bytes())
    (tmp_path / "s.safetensors").write_bytes(checkpoint_path.read_bytes())
    for name in ("m.onnx", "s.safetensors"):
        (tmp_path / f"cut{Path(name).suffix}").write_bytes((tmp_path / name).read_bytes()[:2000])
    (tmp_path / "empty.safetensors").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(run(*arguments, code=2), message)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(run, tmp_path, noisy_file):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(run("denoise", noisy_file, "-o", "locked/out.tif", code=2), "cannot be written to")


def test_a_folder_without_write_permission_is_refused(run, tmp_path, noisy_file, monkeypatch):
    """As above, for root, who may write anywhere: the system's answer is imitated."""
    monkeypatch.setattr("n2sr_deploy.files.os.access", lambda path, mode: not mode & os.W_OK)
    result = run("denoise", noisy_file, "-o", "out.tif", code=2)
    refused(result, "cannot be written to; choose another")


def test_an_input_without_read_permission_is_refused(run, noisy_file, monkeypatch):
    monkeypatch.setattr("n2sr_deploy.files.os.access", lambda path, mode: not mode & os.R_OK)
    refused(run("info", noisy_file, code=2), "check its permissions")


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full here")
def test_a_full_disk_leaves_nothing_behind(run, tmp_path, noisy_file, model_path, monkeypatch):
    def write_to_full_disk(path, *_):
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
            full.write(b"pixels")

    monkeypatch.setattr(
        "n2sr_deploy.formats.tiff.tifffile.imwrite", lambda p, *_, **__: write_to_full_disk(p)
    )
    result = run("denoise", noisy_file, "-m", model_path, "-o", "out.tif", code=2)
    refused(result, "No space left on device; no part of it is left")
    assert list(tmp_path.iterdir()) == [noisy_file]


@pytest.mark.parametrize("is_folder_left", [True, False])
def test_a_training_is_not_lost_for_a_name_that_was_taken_meanwhile(
    run, tmp_path, noisy_file, checkpoint, monkeypatch, is_folder_left
):
    """By another training, say; or the folder's disk is full by now."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    output = tmp_path / "out" / "s.safetensors"

    def learned(*_):
        output.write_bytes(b"another's")
        if not is_folder_left:
            output.unlink()
            output.parent.rmdir()
        return checkpoint

    monkeypatch.setattr("n2sr_train.cli.learn_checkpoint", learned)
    told = " ".join(run("train", noisy_file, "-o", output, code=2).stderr.split())
    advice = "choose another name or pass --overwrite" if is_folder_left else "create it first"
    assert told.endswith(advice)
    (kept,) = (path for path in tmp_path.rglob("s-*.safetensors"))
    assert kept.parent.name == ("out" if is_folder_left else "temporary")
    assert f"what was learned is kept in {kept}" in told
    assert Checkpoint.open(kept).weights_sha256 == checkpoint.weights_sha256
    assert not is_folder_left or output.read_bytes() == b"another's"


@pytest.mark.parametrize("why", ["weights", "memory"])
def test_a_training_that_cannot_be_exported_keeps_its_checkpoint(
    run, noisy_file, tmp_path, checkpoint, monkeypatch, why
):
    def full(*_):
        raise MemoryError("there is none")

    if why == "weights":
        weights = {**checkpoint.weights, "unheard_of": torch.zeros(1)}
        checkpoint = replace(checkpoint, weights=weights)
    else:
        monkeypatch.setattr("n2sr_train.export._template", full)
    monkeypatch.setattr("n2sr_train.cli.learn_checkpoint", lambda *_: checkpoint)
    code = 2 if why == "weights" else 1
    told = " ".join(run("train", noisy_file, "-o", "s.onnx", code=code).stderr.split())
    (kept,) = tmp_path.glob("s-*.safetensors")
    assert ("do not fit its network" if why == "weights" else "not enough memory") in told
    assert f"what was learned is kept in {kept.name}" in told
    assert Checkpoint.open(kept).weights_sha256 == checkpoint.weights_sha256
    assert not (tmp_path / "s.onnx").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
@pytest.mark.parametrize("once_told", [False, True])
def test_an_export_can_be_given_up_but_not_what_was_learned(
    run, noisy_file, tmp_path, checkpoint, monkeypatch, once_told
):
    """Three Ctrl-C went unanswered for the seconds that a first export takes."""

    def interrupted(_):
        os.kill(os.getpid(), signal.SIGINT)
        return exported

    exported = export_model(checkpoint)
    monkeypatch.setattr("n2sr_train.cli.learn_checkpoint", lambda *_: checkpoint)
    monkeypatch.setattr("n2sr_train.cli.exporter", lambda _: interrupted)
    monkeypatch.setattr("n2sr_train.cli.wait_until_told", lambda: None)
    arguments = ["train", noisy_file, "-o", "s.onnx"]
    if once_told:  # by a stream, whose signal came late
        run(*arguments, "--once-told")
        assert Path("s.onnx").read_bytes() == exported.onnx
        return
    told = run(*arguments, code=130).stderr
    (kept,) = tmp_path.glob("s-*.safetensors")
    assert f"what was learned is kept in {kept.name}" in told
    assert Checkpoint.open(kept).weights_sha256 == checkpoint.weights_sha256
    assert not Path("s.onnx").exists()


def test_a_training_beside_a_stream_keeps_nothing_in_its_folder(
    run, noisy_file, tmp_path, checkpoint, monkeypatch
):
    """Which goes with the stream, though it said that there it is kept."""
    odd = replace(checkpoint, weights={})
    monkeypatch.setattr("n2sr_train.cli.learn_checkpoint", lambda *_: odd)
    monkeypatch.setattr("n2sr_train.cli.wait_until_told", lambda: None)
    told = run("train", noisy_file, "-o", "s.onnx", "--once-told", code=2)
    assert "kept" not in told.output.partition("learned: ")[2].partition("\n")[2]
    assert list(tmp_path.iterdir()) == [noisy_file]


def test_a_training_that_can_be_kept_nowhere_says_why(
    run, tmp_path, noisy_file, checkpoint, monkeypatch
):
    def learned(*_):
        monkeypatch.setattr("n2sr_deploy.files.os.access", lambda *_: False)
        return checkpoint

    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr("n2sr_train.cli.learn_checkpoint", learned)
    refused(run("train", noisy_file, "-o", "s.safetensors", code=2), "cannot be written to")


def test_without_the_training_extra_the_error_names_it(run, noisy_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    for arguments in (
        ["denoise", noisy_file, "-o", "out.tif"],
        ["train", noisy_file, "-o", "s.safetensors"],
        ["export", noisy_file, "-o", "s.onnx"],
    ):
        refused(run(*arguments, code=2), 'pip install "n2sr[train]"')


def test_without_what_exports_nothing_is_learned_first(run, noisy_file, monkeypatch):
    """The error came after the training, and what was learned was lost."""
    monkeypatch.setitem(sys.modules, "n2sr_train.export", None)  # as if it could not be imported
    # The command's first: imported now, it would keep what is put into the other.
    monkeypatch.setattr("n2sr_train.cli.learn_checkpoint", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr("n2sr_train.learner.learn_checkpoint", lambda *_: pytest.fail("it trains"))
    for arguments in (
        ["denoise", noisy_file, "-o", "o.tif"],
        ["train", noisy_file, "-o", "o.onnx"],
    ):
        refused(run(*arguments, code=2), 'pip install "n2sr[train]"')


def test_commands_do_not_wait_for_pytorchs_compiler(noisy_file, tmp_path):
    """Importing it and onnxscript takes longer than importing PyTorch itself."""
    from n2sr_train.config import PRESETS
    from n2sr_train.export import _template

    _template(PRESETS["fast"].network, (2, 2), "fp32")  # later exports need neither
    script = (
        "import sys; from n2sr_deploy.cli import main; main(standalone_mode=False); "
        "sys.exit(sorted({'torch._dynamo', 'onnxscript', 'sympy'} & set(sys.modules)) or 0)"
    )
    denoised = tmp_path / "denoised.tif"
    options = ["--preset", "fast", "--pattern", "cell", "--steps", "2", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", script, "denoise", str(noisy_file), "-o", str(denoised), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert denoised.exists()


STRIDES = (
    "but must be 2 to 4 along an axis, and 1 to 4 along the other; 1 along both holds out no pixel"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "0"], "--seconds is 0, but must be 0.1 or more"),
        (["--seconds", "2e9"], "--seconds is 2000000000, but must be 0.1 to 1000000000"),
        (["--steps", "0"], "--steps is 0, but must be a whole number, 1 or more"),
        (
            ["--steps", "200000000"],
            "--steps is 200000000, but must be a whole number, 1 to 100000000",
        ),
        (["--preset", "bst"], "--preset is 'bst', but must be one of fast,"),
        (["--stride", "9"], f"--stride is 9, {STRIDES}"),
        (["--stride", "2,9"], f"--stride is 2,9, {STRIDES}"),
        (["--stride", "9", "--pattern", "row"], f"--stride is 9, {STRIDES}"),
        (["--stride", "1"], f"--stride is 1, {STRIDES}"),
        (
            ["--pattern", "row", "--stride", "1,2"],
            "--stride is 1,2, but pattern row thins one axis",
        ),
        (["--device", "cuda:cpu"], "--device is 'cuda:cpu', but must be auto, cpu, cuda or cuda:N"),
        (["--init", "no.onnx"], "no.onnx does not exist; check the path"),
    ],
)
def test_options_of_a_training_are_refused_before_pytorch_is_imported(
    run, noisy_file, monkeypatch, options, message
):
    """It took four seconds, and the message named no option."""
    monkeypatch.setattr("n2sr_train.learner.import_module", pytest.fail)
    for command in (["train", "-o", "s.safetensors"], ["denoise", "-o", "out.tif"]):
        refused(run(*command, noisy_file, *options, code=2), f"Error: {message}")


def test_python_is_told_of_settings_and_not_of_options(noisy_file, noisy):
    with pytest.raises(SettingError, match=r"^seconds is 0, but must be"):
        learn_checkpoint(noisy, LearnOptions(seconds=0))
    with pytest.raises(OutputExistsError, match=r"choose another name$"):
        write_frame(noisy_file, noisy)
    np.save(noisy_file.with_name("stack.npy"), np.stack([noisy.pixels] * 2))
    with pytest.raises(NotChosenError, match=r"Choose it with index=0 to index=1$"):
        read_frame(noisy_file.with_name("stack.npy"))


@pytest.mark.parametrize("command", ["denoise", "simulate"])
def test_help_names_all_formats_that_are_written(run, command):
    """Of ten that simulate writes it named three."""
    told = run(command, "--help").stdout.split()
    assert all(ending in " ".join(told) for ending in extensions(written=True))


def test_a_command_is_advised_what_it_has(run, noisy, noisy_file, model_path):
    np.save("stack.npy", np.stack([noisy.pixels] * 2))
    chosen = "Choose it with --frame 0 to --frame 1"
    told = run("train", "stack.npy", "-o", "s.safetensors", code=2)
    assert told.stderr.endswith(f"{chosen}\n")
    told = run("denoise", "stack.npy", "-o", "out.tif", code=2)
    assert told.stderr.endswith(f"{chosen}, or denoise all with --stack\n")
    told = run("simulate", "-o", noisy_file, code=2)
    assert told.stderr.endswith("exists already; choose another name or pass --overwrite\n")


def test_without_any_learner_the_error_names_the_extra(noisy, monkeypatch):
    monkeypatch.setattr(learning, "entry_points", lambda **_: ())
    with pytest.raises(MissingExtraError, match=r"n2sr\[train\]"):
        learning.learn(noisy, learning.LearnOptions(), print)


@contextmanager
def training(noisy_file):
    """`n2sr train` of its own process, beside the noisy file, from its first step on."""
    # What runs in the background of a shell is started with SIGINT ignored.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from n2sr_deploy.cli import main; main()"
    )
    command = [sys.executable, "-c", script, "train", str(noisy_file), "-o", "s.safetensors"]
    process = subprocess.Popen(
        [*command, "--device", "cpu"],
        cwd=noisy_file.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # One thread: on a busy machine two of OpenMP's wait for each other for minutes.
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    try:
        while "training, step 1" not in process.stderr.readline():
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_training_leaves_no_half_written_file(noisy_file):
    """Kill it hard in the middle: there is no output, and no temporary file."""
    with training(noisy_file) as process:
        process.kill()
        process.wait(timeout=60)
    assert list(noisy_file.parent.iterdir()) == [noisy_file]


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without telling it")
def test_a_terminated_command_leaves_no_temporary_file(tmp_path, model_path):
    """A stack's may be as large as the stack."""
    frame = np.random.default_rng(0).integers(0, 255, (1, 96, 128), np.uint8)
    np.save(tmp_path / "stack.npy", np.repeat(frame, 3000, axis=0))
    script = "from n2sr_deploy.cli import main; main()"
    options = ["-m", str(model_path), "--stack", "-o", "out.npy"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, "denoise", "stack.npy", *options],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob(".n2sr-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["stack.npy"]


def killed_after(script, folder):
    """A process that ends so, with its output half written."""
    begins = "import os, signal; from pathlib import Path; from n2sr_deploy import files\n"
    ends = "os.kill(os.getpid(), signal.SIGKILL)\n"
    subprocess.run([sys.executable, "-c", begins + script + ends], cwd=folder, check=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows tells no process that is gone")
@pytest.mark.parametrize(
    ("suffix", "command"),
    [
        (".tif", ["simulate"]),
        (".safetensors", ["train", "noisy.tif", *QUICK]),
        (".onnx", ["export", "s.safetensors"]),
    ],
)
def test_what_a_killed_command_left_is_removed_when_its_output_is_written_next(
    run, tmp_path, noisy_file, checkpoint, suffix, command
):
    """What trainings and exports left stayed."""
    checkpoint.save("s.safetensors")
    killed_after(f"files.temporary_of(Path('a{suffix}')).write_bytes(b'half')\n", tmp_path)
    (left,) = tmp_path.glob(".n2sr-*")
    # Of another output, of a process that runs, and what was put aside.
    others = [files.temporary_of(tmp_path / f"{name}{suffix}") for name in "ba"]
    others.append(left.with_name(f"{left.name}-old"))
    for path in others:
        path.write_bytes(b"precious")
    run(*command, "-o", f"b{suffix}")
    assert left.exists()
    run(*command, "-o", f"a{suffix}")
    assert not left.exists()
    assert all(path.exists() for path in others)


@pytest.mark.skipif(os.name == "nt", reason="Windows tells no process that is gone")
def test_what_a_command_was_killed_in_replacing_is_there_again(run, tmp_path):
    """Between two renames it had put the old store aside, and the next command removed the new."""
    killed_after(
        "new = files.temporary_of(Path('a.zspy'))\n"
        "for folder, name in (new, 'new'), (new.with_name(new.name + '-old'), 'old'):\n"
        "    folder.mkdir()\n"
        "    (folder / name).write_text('')\n",
        tmp_path,
    )
    files.remove_leftovers(tmp_path / "a.zspy")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zspy"]
    assert [path.name for path in (tmp_path / "a.zspy").iterdir()] == ["new"]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(
            signal.SIGTERM,
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows ends a process untold"),
        ),
    ],
)
def test_ctrl_c_and_sigterm_end_a_training_and_keep_the_best(tmp_path, noisy_file, number):
    with training(noisy_file) as process:
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "checkpoint, preset balanced" in stdout
    assert "ended by the user" in stdout
    assert (tmp_path / "s.safetensors").exists()


@pytest.fixture
def default_sigint():
    """As in a terminal; what runs in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_while_a_checkpoint_is_written_does_not_keep_it_from_being_told(
    noisy_file, run, checkpoint, monkeypatch, default_sigint, when, number
):
    """The file was whole, and the command said "ended by Ctrl-C before it was done"."""

    def interrupted(checkpoint, *arguments, **options):
        if when == "before":
            signal.raise_signal(number)
        save(checkpoint, *arguments, **options)
        signal.raise_signal(number)

    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", interrupted)
    monkeypatch.setattr("n2sr_train.cli.learn_checkpoint", lambda *_: checkpoint)
    result = run("train", noisy_file, "-o", "s.safetensors")
    assert result.stdout.startswith("s.safetensors: checkpoint")
    assert result.stderr == ""
    assert Checkpoint.open("s.safetensors").weights_sha256 == checkpoint.weights_sha256


def test_ctrl_c_does_not_hide_that_a_checkpoint_could_not_be_written(
    noisy_file, run, checkpoint, monkeypatch, default_sigint
):
    def full(checkpoint, path, **_):
        signal.raise_signal(signal.SIGINT)
        raise OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(Checkpoint, "save", full)
    monkeypatch.setattr("n2sr_train.cli.learn_checkpoint", lambda *_: checkpoint)
    result = run("train", noisy_file, "-o", "s.safetensors", code=2)
    assert "cannot write s.safetensors: No space left on device" in result.stderr


def test_ctrl_c_while_python_ends_changes_nothing(noisy_file):
    """It printed a traceback, or made a success a failure."""
    script = (
        "import atexit, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "atexit.register(signal.raise_signal, signal.SIGINT); "
        "from n2sr_deploy.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "info", str(noisy_file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_nothing_is_learned_yet_is_told(noisy_file, run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("n2sr_train.learner.measure_noise", interrupted)
    result = run("train", noisy_file, "-o", "s.safetensors", code=128 + signal.SIGINT)
    assert result.output.splitlines()[-1] == "Error: ended by Ctrl-C before it was done"
    assert [path.name for path in noisy_file.parent.iterdir()] == [noisy_file.name]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("n2sr_deploy.cli", ["info", "noisy.tif"]),
        ("numpy", ["info", "noisy.tif"]),
        ("n2sr_train.cli", ["train", "noisy.tif"]),
        ("n2sr_train.cli", ["--help"]),
    ],
)
def test_ctrl_c_while_python_imports_is_told(tmp_path, module, arguments):
    """It printed a traceback, or "Aborted!" of --help."""
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    begins, _, name = scripts["n2sr"].partition(":")
    script = f"""
import sys
from {begins} import {name}

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
sys.exit({name}())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.splitlines() == ["Error: ended by Ctrl-C before it was done"]


@pytest.mark.parametrize(
    ("library", "backend"), [("onnxruntime", "ort"), ("openvino", "openvino"), ("numpy", "auto")]
)
@pytest.mark.parametrize("what", ["lost", "an ImportError"])
def test_ctrl_c_is_heard_though_a_library_is_imported_just_then(
    noisy_file, model_path, library, backend, what
):
    """ONNX Runtime was said to be broken, with exit 2; or the whole frame was denoised."""
    if library == "openvino":
        pytest.importorskip("n2sr_deploy.backends.openvino")
    script = f"""
import signal, sys
from n2sr_deploy.__main__ import main

class Import:
    is_due = True

    def find_spec(self, name, path=None, target=None):
        if name != {library!r} or not self.is_due:
            return
        self.is_due = False
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            if {what!r} != "lost":
                raise ImportError("initialization failed") from error

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Import())
sys.exit(main())
"""
    arguments = ["denoise", noisy_file, "-m", model_path, "-o", "out.tif", "--backend", backend]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=noisy_file.parent,
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert done.stderr.splitlines() == ["Error: ended by Ctrl-C before it was done"]


def test_every_module_imports_without_the_extras():
    """A control PC has no PyTorch: nothing of n2sr_deploy may need it, or n2sr_train's front.

    Only the files that hold one optional library may fail, and then by naming their extra.
    """
    script = """
import importlib, json, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        extras = {
            "bitshuffle", "dask", "distributed", "filelock", "h5py", "hdf5plugin", "onnx",
            "onnxscript", "openvino", "p4p", "prometheus_client", "pymmcore_plus", "safetensors",
            "tensorrt", "tensorrt_rtx", "torch", "zarr", "zmq",
        }
        if name.split(".")[0] in extras:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
import n2sr_deploy, n2sr_train
from n2sr_deploy.errors import MissingExtraError
missing = {}
for module in pkgutil.walk_packages(n2sr_deploy.__path__, "n2sr_deploy."):
    try:
        importlib.import_module(module.name)
    except MissingExtraError as error:
        missing[module.name] = str(error)
for name in ("cli", "config", "learner"):
    importlib.import_module("n2sr_train." + name)
print(json.dumps(missing))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    missing = json.loads(done.stdout)
    expected = {
        "n2sr_deploy.backends.openvino": "openvino",
        "n2sr_deploy.batch.cluster": "dask",
        "n2sr_deploy.dask": "dask",
        "n2sr_deploy.stream.metrics": "live",
        "n2sr_deploy.stream.micromanager": "micromanager",
        "n2sr_deploy.stream.pva": "live",
        "n2sr_deploy.stream.zeromq": "live",
    }
    assert missing.keys() == expected.keys()
    for module, extra in expected.items():
        assert f'pip install "n2sr[{extra}]"' in missing[module]


def test_denoising_loads_neither_torch_nor_onnx(model_path):
    script = f"""
import sys
import numpy as np
from n2sr_deploy import Denoiser, ExportedModel, Frame, N2SRError, read_frame, write_frame

Denoiser.open({str(model_path)!r}).denoise(np.eye(40))
sys.exit(str({{"torch", "onnx", "onnxscript", "safetensors"}} & set(sys.modules) or ""))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_training_from_python_without_the_extra_says_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r'pip install "n2sr\[train\]"'):
        importlib.import_module("n2sr_train").__getattr__("train")


def test_no_pickle_anywhere():
    for package in ("n2sr_deploy", "n2sr_train"):
        for path in (REPOSITORY / package).rglob("*.py"):
            found = re.search(
                r"\bpickle\b(?!=False| anywhere)|\btorch\.(load|save)\(|(?<![.\w])eval\(",
                path.read_text().replace("allow_pickle=False", "").replace("no pickle", ""),
            )
            assert not found, f"{path} has {found}"
