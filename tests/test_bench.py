"""`n2sr bench`: what it measures, and what it refuses to compare."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from n2sr_deploy import bench
from n2sr_deploy.cli_bench import bench_command
from n2sr_deploy.denoiser import Denoised, Denoiser
from n2sr_deploy.errors import N2SRError, SettingError
from n2sr_deploy.pipeline import FramePipeline, Program
from tests.conftest import random_pixels
from tests.fake_device import FakeDevice, FakeNetwork


@pytest.fixture
def result(model):
    workload = bench.Workload(sizes=[(32, 48), (64, 40)], backends=["ort", "ort"], n_frames=3)
    return bench.measure(model, workload)


@pytest.mark.parametrize(("asked", "used"), [(None, 4), (6, 6)])
def test_frames_have_as_many_draws_as_live_ones(model, monkeypatch, asked, used):
    given = []
    denoise = Denoiser.denoise

    def noted(self, frame, n_samples, **key):
        given.append(n_samples)
        return denoise(self, frame, n_samples, **key)

    monkeypatch.setattr(Denoiser, "denoise", noted)
    patient = replace(model, metadata=replace(model.metadata, n_samples=32))
    workload = bench.Workload(sizes=[(32, 48)], backends=["ort"], n_frames=1, n_samples=asked)
    (row,) = bench.measure(patient, workload)["rows"]
    assert {*given, row["n_samples"]} == {used}


def test_every_size_is_measured_on_every_backend(result):
    assert [row["size"] for row in result["rows"]] == [[32, 48], [32, 48], [64, 40], [64, 40]]
    for row in result["rows"]:
        assert (row["n_samples"], row["dtype"], row["frames"]) == (4, "uint16", 3)
        assert set(row["stages_ms"]) == {"standardise", "draw", "infer", "merge"}
        total = row["total_ms"]
        assert 0 < total["p50"] <= total["p90"] <= total["p99"]
        assert max(stage["p50"] for stage in row["stages_ms"].values()) <= total["p50"]
        assert row["mac_per_pixel"] == 4 * result["model"]["mac_per_pixel"]
        n_pixels = row["size"][0] * row["size"][1]
        assert (row["bytes_in"], row["bytes_out"]) == (2 * n_pixels, 8 * n_pixels)
        assert row["frames_per_s"] == pytest.approx(1e3 / total["p50"])
        assert 0 < row["own_share"] < 1
        assert row["frames_per_s_in_flight"] is None, "on a CPU"


@pytest.fixture
def on_a_gpu(model, monkeypatch):
    """Pipelines that the next measurement opens, on a device that is none."""
    opened = []

    class Watched(FramePipeline):
        seen = 0

        def submit(self, *arguments, **settings):
            super().submit(*arguments, **settings)
            self.seen = max(self.seen, self.n_in_flight)

    def open_on(device):
        def open_denoiser(model, name, *, n_in_flight, **_):
            program = Program(model, FakeNetwork(model, device), device, n_in_flight)
            opened.append(Watched(program))
            return opened[-1]

        monkeypatch.setattr(bench, "open_denoiser", open_denoiser)
        return opened

    return open_on


def test_on_a_gpu_frames_in_flight_are_measured_too(model, on_a_gpu):
    device = FakeDevice()
    opened = on_a_gpu(device)
    workload = bench.Workload(sizes=[(32, 48)], backends=["any"], n_frames=5)
    result = bench.measure(model, workload)
    assert opened[0].seen == 2
    assert device.n_captures == 2, "both are recorded before anything is timed"
    (row,) = result["rows"]
    assert row["frames_per_s_in_flight"] > 0
    assert f", {row['frames_per_s_in_flight']:.1f} with 2 in flight" in bench.table(result)[-4]


def test_where_only_one_frame_fits_nothing_is_told_of_more(model, on_a_gpu):
    roomy = FakeDevice()
    with FramePipeline(Program(model, FakeNetwork(model, roomy), roomy, 1)) as pipeline:
        pipeline.denoise(random_pixels((96, 128), "uint16"), 4)
        needed = sum(memory.nbytes for memory in roomy.memory.values())
    opened = on_a_gpu(FakeDevice(int(1.01 * needed)))
    workload = bench.Workload(sizes=[(96, 128)], backends=["any"], n_frames=2)
    (row,) = bench.measure(model, workload)["rows"]
    assert opened[0].seen == 1
    assert row["frames_per_s_in_flight"] is None


def test_progress_is_told_as_often_as_was_said(model):
    workload = bench.Workload(sizes=[(32, 32), (32, 40)], backends=["ort"], n_frames=2)
    told = []
    bench.measure(model, workload, lambda: told.append(1))
    assert len(told) == workload.n_rounds


def test_arithmetic_is_told_for_each_pixel(result):
    """Two convolutions on each level down and up, by hand."""
    channels, cells = 4, 1 / 4  # cells for each pixel
    on_level = [1, 1 / 4, 1 / 16]
    down = 9 * (1 * channels + channels**2) * on_level[0]
    down += sum(9 * 2 * channels**2 * share for share in on_level[1:])
    up = sum((9 * 2 * channels**2) * share for share in on_level[:2])
    narrow = sum(channels**2 * share for share in on_level[1:])
    to_pixels = 9 * channels * 4
    by_hand = (down + up + narrow + to_pixels) * cells
    assert result["model"]["mac_per_pixel"] == pytest.approx(by_hand)


class Slow:
    """Denoises in a millisecond, of which its stages tell a tenth; every tenth frame takes ten."""

    name, n = "slow", 0

    def __init__(self, model):
        self.model = model

    def denoise(self, frame, n_samples, *, frame_index):
        self.n += 1
        now[0] += 1e-2 if self.n % 10 == 0 else 1e-3
        return Denoised(mean=frame, std=frame, timings={"infer": 1e-4})

    def close(self):
        pass


now = [0.0]


def test_the_time_in_all_is_the_clocks(model, monkeypatch):
    """It was the sum of the stages, which tell of less."""
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bench, "open_denoiser", lambda model, *_, **__: Slow(model))
    workload = bench.Workload(sizes=[(32, 32)], backends=["slow"], n_frames=100)
    (row,) = bench.measure(model, workload)["rows"]
    assert row["stages_ms"]["infer"]["p99"] == pytest.approx(0.1)
    assert row["total_ms"]["p50"] == pytest.approx(1)
    assert row["total_ms"]["p99"] == pytest.approx(10)
    assert row["own_share"] == pytest.approx(0.9)


def test_the_table_tells_all_that_was_measured(result):
    lines = bench.table(result)
    assert max(map(len, lines[1:])) <= 100
    assert lines[0] == f"processor: {result['environment']['processor']}"
    assert "MAC a pixel and draw" in lines[3]
    row = result["rows"][0]
    block = lines[5:11]
    assert block[0] == "ONNX Runtime (CPU): 32 x 48 uint16, M = 4, 3 frames"
    assert block[1].split() == ["ms", "standardise", "draw", "infer", "merge", "in", "all"]
    for p, line in zip((50, 90, 99), block[2:5], strict=True):
        times = [*row["stages_ms"].values(), row["total_ms"]]
        assert line.split() == [f"p{p}", *(f"{time[f'p{p}']:.2f}" for time in times)]
    assert "% of the time beside infer" in block[5]
    assert block[5].strip().startswith(f"{row['frames_per_s']:.1f} frames/s")
    mac = f"{row['mac_per_pixel']:.0f} MAC a pixel"
    assert lines[11] == f"    {mac}, 3072 bytes in, 12288 out"


def test_a_model_that_does_not_tell_its_arithmetic_is_measured_too(model):
    untold = replace(model, metadata=replace(model.metadata, mac_per_pixel=None))
    workload = bench.Workload(sizes=[(32, 32)], backends=["ort"], n_frames=1)
    result = bench.measure(untold, workload)
    assert result["rows"][0]["mac_per_pixel"] is None
    assert "MAC" not in "".join(bench.table(result))


def test_all_of_it_is_json(result):
    assert json.loads(json.dumps(result)) == result


def test_a_measurement_compared_with_itself_takes_as_long(result):
    once = {**result, "rows": result["rows"][::2]}
    lines = bench.comparison(once, once)
    assert len(lines) == 4
    assert all(line.count(" 1.00 times") == 3 for line in lines[2:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["environment"].update(processor="another"), "different machines"),
        (lambda r: r.pop("n2sr_bench"), "no result of n2sr bench"),
        (lambda r: r["rows"].clear(), "nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(result, change, said):
    other = json.loads(json.dumps(result))
    change(other)
    with pytest.raises(SettingError, match=said):
        bench.comparison(result, other)


@pytest.mark.parametrize("wrong", [{"dtype": "complex64"}, {"dtype": "what"}, {"n_frames": 0}])
def test_bad_workloads_are_refused(wrong):
    with pytest.raises(SettingError, match="but "):
        bench.Workload(sizes=[(8, 8)], backends=["ort"], **wrong)


def run(*arguments):
    return CliRunner().invoke(bench_command, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_and_keeps_json(model_path, tmp_path):
    kept = tmp_path / "bench.json"
    given = ["--size", 32, 32, "--frames", 2, "--backend", "ort", "--json", kept]
    done = run(model_path, *given)
    assert done.exit_code == 0, done.output
    assert "ONNX Runtime (CPU): 32 x 32 uint16, M = 4" in done.output
    assert json.loads(kept.read_text())["rows"][0]["size"] == [32, 32]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    again = run(model_path, *given)
    assert "exists already" in str(again.exception)
    assert isinstance(again.exception, N2SRError)
    compared = run("--compare", kept, kept)
    assert "p50 1.00 times, p90 1.00 times, p99 1.00 times as long\n" in compared.output


def test_the_command_says_what_is_missing(tmp_path):
    assert "name a MODEL.onnx" in run().output
    text = tmp_path / "text.json"
    text.write_text("no JSON")
    assert "is not JSON" in str(run("--compare", text, text).exception)
