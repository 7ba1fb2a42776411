"""What README prints is what works."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import pytest
from click.testing import CliRunner

from n2sr_deploy.cli import main
from n2sr_deploy.formats import write_frame
from tests.conftest import REPOSITORY, tiny_config

README = (REPOSITORY / "README.md").read_text()
INDENTED = [line[4:] for line in README.splitlines() if line.startswith("    ")]
ON_GPU = [line for line in INDENTED if line.startswith("n2sr ") and "tensorrt" in line]
COMMANDS = [line for line in INDENTED if line.startswith("n2sr ") and line not in ON_GPU]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def quick_training(monkeypatch, tmp_path):
    """An empty folder, and a preset that takes a second."""
    from n2sr_train import config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "PRESETS", {"balanced": replace(tiny_config(), steps=3)})


def run(command):
    result = CliRunner().invoke(main, shlex.split(command)[1:])
    assert result.exit_code == 0, f"{command}\n{result.output}"


def test_readme_opens_with_the_two_commands():
    assert [line.split("#")[0].strip() for line in INDENTED[:2]] == ["make demo", "make test"]


def test_every_command_runs_as_printed(quick_training, tmp_path):
    simulate = [command for command in COMMANDS if command.startswith("n2sr simulate")]
    others = [command for command in COMMANDS if command not in simulate]
    assert len(simulate) == 1
    assert len(others) >= 5
    for command in (*simulate, *others):
        run(command.replace("dose=5", "dose=5&frames=5"))  # it has no end


def test_commands_for_a_gpu_come_as_far_as_looking_for_one(
    model_path, noisy, tmp_path, monkeypatch
):
    monkeypatch.setattr("n2sr_deploy.cuda.driver.LIBRARY", "libno-such-driver.so")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample.onnx").write_bytes(model_path.read_bytes())
    write_frame(tmp_path / "noisy.tif", noisy)
    assert len(ON_GPU) == 2
    for command in ON_GPU:
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 2
        assert "no NVIDIA driver (libno-such-driver.so" in result.output


def test_every_option_of_the_table_exists():
    options = re.findall(r"^\| `(-[-\w]+)", README, re.MULTILINE)
    assert len(options) == 13
    for command in ("denoise",):
        text = CliRunner().invoke(main, [command, "--help"]).output
        for option in options:
            assert option in text


def test_the_python_examples_run(quick_training):
    run("n2sr simulate -o noisy.tif")
    run("n2sr train noisy.tif -o sample.safetensors")
    run("n2sr export sample.safetensors -o sample.onnx")
    assert len(PYTHON) == 2
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), {})


def test_every_make_target_named_exists():
    makefile = (REPOSITORY / "Makefile").read_text()
    named = re.findall(r"`make ([a-z -]+)`|^    make ([a-z-]+)", README, re.MULTILINE)
    assert len(named) >= 4
    for words in named:
        for target in " ".join(words).split():
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_figures_of_readme_are_those_of_the_benchmarks():
    from benchmarks.quality import rows
    from benchmarks.report import readme_tables

    assert readme_tables(rows()) in README
    path = REPOSITORY / "benchmarks" / "results" / "kernels.json"
    for row in json.loads(path.read_text())["figures"]:
        if row["kernel"] in ("draw, pattern cell", "merge"):
            for key, digits in (("times_memcpy", 2), ("times_faster_than_numpy", 0)):
                assert f"{row[key]:.{digits}f}" in README, (row["kernel"], key)


OPENVINO = "OpenVINO (CPU, bfloat16)"


def test_the_latencies_of_readme_are_those_of_the_benchmarks():
    text = " ".join(README.split())
    avx512, amx = (of_small_frames(name) for name in ("latency", "latency-amx"))
    told = "{:.1f} ms with OpenVINO (M = 4; p99 of {} frames: {:.1f} ms) and in {:.0f} ms with ONNX"
    assert told.format(*openvino_and_ort(avx512)) in text
    told = "with AMX in {0:.1f} ms (p99: {2:.1f} ms) and in {3:.0f} ms."
    assert told.format(*openvino_and_ort(amx)) in text
    times = (rows[OPENVINO]["times_faster_than_the_paper"] for rows in (avx512, amx))
    assert (
        "that is {:.0f} times as fast as the paper's network in float32 on ONNX Runtime at its "
        "M = 50, and {:.0f} times on two cores with AMX".format(*times)
    ) in text


def openvino_and_ort(rows):
    """The first one's median, number of frames and p99, and the other's median."""
    first, other = (rows[name] for name in (OPENVINO, "ONNX Runtime (CPU)"))
    return (
        first["total_ms"]["p50"],
        first["frames"],
        first["total_ms"]["p99"],
        other["total_ms"]["p50"],
    )


def of_small_frames(name):
    """The rows of 512 x 512 of a latency benchmark, and that they are compared as README says."""
    path = REPOSITORY / "benchmarks" / "results" / f"{name}.json"
    figures = json.loads(path.read_text())["figures"]
    (papers,) = figures["papers"]["rows"]
    assert (papers["backend"], papers["n_samples"]) == ("ONNX Runtime (CPU)", 50)
    assert (papers["size"], figures["papers"]["model"]["precision"]) == ([512, 512], "fp32")
    return {row["backend"]: row for row in figures["ours"]["rows"] if row["size"] == [512, 512]}
