"""The measures that quality is told in measure what they say."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from benchmarks import gpu, latency, live, overlap, peers, quality, results
from benchmarks.cases import Pair, Simulated, atom_columns, fitted, frc_half, gaussian, poisson
from benchmarks.report import table
from benchmarks.simulation import KINDS, simulated_frame, unit_noise
from n2sr_deploy import Frame
from n2sr_deploy.noise import Noise
from n2sr_train import Checkpoint, train
from tests.conftest import tiny_config
from tests.gpus import FAKE_NATIVE, GPU


def columns_on_a_grid(spacing=20, offset=0.0):
    y, x = np.mgrid[:200, :220]
    u, v = ((a - offset + spacing / 2) % spacing - spacing / 2 for a in (y, x))
    return np.exp(-(u**2 + v**2) / (2 * 3.5**2))


def test_atom_columns_are_found_to_a_fraction_of_a_pixel():
    places, radius = atom_columns(columns_on_a_grid(offset=10.3))
    assert len(places) > 60
    distance = (places - 10.3 + 10) % 20 - 10
    assert np.abs(distance).max() < 0.05
    moved = fitted(columns_on_a_grid(offset=11.0), places, radius)
    assert np.hypot(*(moved - places).T) == pytest.approx(0.7 * np.sqrt(2), abs=0.07)


def test_a_column_that_is_not_there_is_as_wrong_as_can_be():
    places, radius = atom_columns(columns_on_a_grid(offset=10))
    found = fitted(np.zeros((200, 220)), places, radius)
    assert np.all(np.hypot(*(found - places).T) >= radius)


def test_resolution_rises_when_there_is_less_noise():
    clean = simulated_frame((256, 256), np.random.default_rng(3), "hrtem").astype(np.float64)
    noisy = clean + np.random.default_rng(0).normal(size=clean.shape) * clean.std()
    less_noisy = (noisy + 3 * clean) / 4
    assert frc_half(clean, less_noisy) > frc_half(clean, noisy) > 0


def test_the_excess_error_of_a_pair_is_the_true_squared_error():
    rng = np.random.default_rng(0)
    clean = simulated_frame((256, 256), rng).astype(np.float64)
    first, second = (clean + rng.normal(size=clean.shape) for _ in range(2))
    frame = Frame(pixels=first)
    mean, std = frame.mean_and_std()
    pair = Pair("pair", frame, ((second - mean) / std,))
    image = clean + 0.3 * rng.normal(size=clean.shape)
    true = np.mean((image - clean) ** 2) / std**2
    assert pair.scores(image)["excess_error"] == pytest.approx(true, abs=0.02)


def test_displaced_rows_no_longer_count_once_rows_are_blurred():
    rng = np.random.default_rng(0)
    clean = ndimage.gaussian_filter(rng.normal(size=(256, 256)), 4)
    clean /= clean.std()

    def exposure():
        shifts = rng.integers(-2, 3, len(clean))
        return np.stack([np.roll(row, n) for row, n in zip(clean, shifts, strict=True)])

    first = exposure()
    frame = Frame(pixels=first + 0.5 * rng.normal(size=first.shape))
    mean, std = frame.mean_and_std()
    other = (exposure() + 0.5 * rng.normal(size=first.shape) - mean) / std
    scores = Pair("pair", frame, (other,)).scores(first)
    assert 0 < scores["excess_error_rows_blurred"] < 0.6 * scores["excess_error"]


def test_psnr_and_ssim_of_known_errors():
    clean = columns_on_a_grid(offset=10)
    case = Simulated("columns", clean, Frame(pixels=clean))
    scores = case.scores(clean + 0.01)
    assert scores["psnr_db"] == pytest.approx(40, abs=0.1)
    assert scores["columns_px"] < 0.01
    assert 0.9 < scores["ssim"] <= 1


def test_noise_draws_are_fixed_and_have_their_strength():
    clean = np.full((256, 256), 0.5)
    first, again = (gaussian("flat", clean, 0.05, 0.02).noisy.pixels for _ in range(2))
    assert np.array_equal(first, again)
    assert first.std() == pytest.approx(np.sqrt(0.05 * 0.5 + 0.02**2), rel=0.02)
    counts = poisson("flat", clean, 2.0).noisy.pixels
    assert counts.mean() == pytest.approx(2, rel=0.02)
    assert counts.var() == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_simulated_frames_are_finite_positive_and_repeat(kind):
    first, again = (simulated_frame((96, 128), np.random.default_rng(1), kind) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.isfinite(first).all()
    assert first.min() >= 0
    assert first.mean() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("along_rows", "along_columns"), [(0, 0), (0.5, 0), (0.2, 0.6)])
def test_simulated_noise_has_the_correlation_it_is_asked_for(along_rows, along_columns):
    noise = unit_noise((512, 512), np.random.default_rng(0), along_rows, along_columns)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert np.mean(noise[:, 1:] * noise[:, :-1]) == pytest.approx(along_rows, abs=0.02)
    assert np.mean(noise[1:] * noise[:-1]) == pytest.approx(along_columns, abs=0.02)


def test_tables_show_the_worst_seed_and_the_best_method():
    rows = [
        {"frame": "f", "method": "fast", "seed": 0, "psnr_db": 30.0},
        {"frame": "f", "method": "fast", "seed": 1, "psnr_db": 28.0},
        {"frame": "f", "method": "BM3D", "seed": 0, "psnr_db": 29.0},
    ]
    text = table(rows, ["f"], "psnr_db", 1, low=True)
    assert "| BM3D | **29.0** |" in text
    assert "| fast | 28.0 |" in text


def test_rows_of_two_machines_keep_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert results.kept_rows("table") == []
    rows = [{"seed": n, "machine": {"processor": name}} for n, name in enumerate("aba")]
    results.keep_rows("table", rows)
    assert results.kept_rows("table") == rows


def test_a_part_measured_anew_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)

    def kept(part, figures, **how):
        found = json.loads(results.keep_part("gpu", part, figures, **how).read_text())
        assert found[part.split(",")[0]].keys() == {"commit", "date", "machine", "figures"}
        return {part: measured["figures"] for part, measured in found.items()}

    kept("draw", [1])
    assert kept("merge", [2]) == {"draw": [1], "merge": [2]}
    unfinished = {"draw": [1], "merge": [2], "draw, unfinished": [3]}
    assert kept("draw", [3], is_whole=False) == unfinished
    assert kept("draw", [3, 4]) == {"merge": [2], "draw": [3, 4]}


def test_the_commit_tells_of_files_that_differ_but_for_results(tmp_path, monkeypatch):
    """It told the benchmark's own output as a difference."""
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "gpu.json").write_text("{}")
    (tmp_path / "code.py").write_text("")
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.com")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(results, "FOLDER", folder)
    commit = results.commit.__wrapped__
    (folder / "gpu.json").write_text("[]")
    assert re.fullmatch("[0-9a-f]{7,}", commit())
    (tmp_path / "code.py").write_text("pass")
    assert re.fullmatch(r"[0-9a-f]{7,}\+", commit())


NOISE = Noise(
    std=1.0,
    along_rows=(0.0, 0.0, 0.0),
    along_columns=(0.0, 0.0, 0.0),
    correlation_error=0.01,
    gain=None,
    read_noise=None,
    hot_pixels=0,
    row_offsets=0.0,
    column_offsets=0.0,
    saturated=0.0,
    is_integer=False,
    counts_events=False,
)


@pytest.fixture
def noisy_columns():
    return gaussian("columns", columns_on_a_grid(), 0.05, 0.1)


def no_score(image):
    return 0.0


@pytest.mark.parametrize("best", [0.1, 3.0, 40.0])
def test_a_peer_gets_its_best_strength_wherever_that_lies(best):
    found = peers.best(
        lambda image: -abs(np.log(image[0] / best)), lambda strength: np.array([strength]), 0.1, 1.2
    )
    assert found[0] == pytest.approx(best, rel=0.11)


def test_zero_shot_noise2noise_denoises_a_frame_of_odd_sides():
    clean = columns_on_a_grid()[:71, :83]
    noisy = gaussian("columns", clean, 0.05, 0.1).noisy
    image = peers.zs_n2n(noisy, no_score, steps=25)
    assert image.shape == clean.shape
    assert np.mean((image - clean) ** 2) < 0.5 * np.mean((noisy.pixels - clean) ** 2)


def test_zero_shot_noise2noise_learns_from_crops_of_a_large_frame(monkeypatch):
    seen = set()
    pair = peers._pair
    monkeypatch.setattr(peers, "_pair", lambda image: seen.add(image.shape[2:]) or pair(image))
    noisy = gaussian("flat", np.ones((64, 301)), 0.05, 0.02).noisy
    assert peers.zs_n2n(noisy, no_score, steps=1).shape == (64, 301)
    assert seen == {(64, 256)}


def test_the_papers_training_goes_on_where_it_was_ended(
    noisy, noisy_columns, tmp_path, monkeypatch
):
    monkeypatch.setattr(quality, "IMAGES", tmp_path)
    config = tiny_config(preset="paper", steps=8, schedule="constant", stops_early=False)
    ended = train(noisy, replace(config, steps=5))
    ended.save(tmp_path / quality.file_name(noisy_columns.name, "paper", 0, ".safetensors"))
    started = []

    def watched(frame, config, *others):
        started.append(config)
        return train(frame, config, *others)

    monkeypatch.setattr(quality, "train", watched)
    whole = quality.learned_in_parts(noisy_columns, noisy, config, None)
    assert (whole.summary["steps"], started[0].steps) == (8, 3)
    assert whole.summary["tflop"] > ended.summary["tflop"]
    assert Checkpoint.open(started[0].start).weights_sha256 == whole.weights_sha256  # kept anew
    again = quality.learned_in_parts(noisy_columns, noisy, config, None)
    assert len(started) == 1
    assert again.weights_sha256 == whole.weights_sha256 != ended.weights_sha256


def test_quality_tells_how_to_make_the_environment_of_noise2void(
    noisy_columns, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(peers, "CAREAMICS_PYTHON", tmp_path / "python")
    monkeypatch.setattr(quality, "IMAGES", tmp_path)
    monkeypatch.setattr(quality, "cases", lambda: [noisy_columns])
    monkeypatch.setattr(sys, "argv", ["quality.py", "--methods", "Noise2Void (CAREamics)"])
    quality.main()
    assert capsys.readouterr().out == (
        "Noise2Void (CAREamics) is skipped, for its environment .venv-careamics is not there. "
        "Make it with: make setup-careamics\n"
    )


def stand_in(monkeypatch, tmp_path, code):
    """A program in place of CAREamics' Python."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\nimport numpy as np\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(peers, "CAREAMICS_PYTHON", program)


def test_noise2void_runs_in_its_own_environment(noisy_columns, monkeypatch, tmp_path):
    code = """
isolated, script, noisy, denoised, *options = sys.argv[1:]
assert isolated == "-I"
assert script.endswith("noise2void.py")
assert options == ["--axes", "none", "--span", "5"]
np.save(denoised, np.load(noisy) + 1)"""
    stand_in(monkeypatch, tmp_path, code)
    image = peers.noise2void(noisy_columns.noisy, no_score)
    assert np.array_equal(image, noisy_columns.noisy.pixels + 1)


def test_what_noise2void_complains_of_is_told(noisy_columns, monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, "sys.exit('no such axes')")
    with pytest.raises(RuntimeError, match="ended with 1:\nno such axes"):
        peers.noise2void(noisy_columns.noisy, no_score)


@pytest.mark.parametrize(
    ("along_rows", "along_columns", "mask"),
    [
        ((0.01, 0.2, 0.0), (-0.02, 0.0, 0.0), ("none", 5)),
        ((0.5, 0.01, 0.2), (0.02, 0.0, 0.0), ("horizontal", 5)),
        ((0.0, 0.0, 0.0), (0.6, 0.3, 0.1), ("vertical", 7)),
        ((0.3, 0.0, 0.0), (0.2, 0.1, 0.0), ("square", 5)),
    ],
)
def test_noise2void_masks_along_what_the_noise_is_correlated(along_rows, along_columns, mask):
    noise = replace(NOISE, along_rows=along_rows, along_columns=along_columns)
    assert peers.struct_mask(noise) == mask


def test_latency_compares_presets_at_every_size_and_the_paper_at_the_first(
    model, monkeypatch, capsys
):
    kept = {}
    monkeypatch.setattr(latency, "export_model", lambda checkpoint: model)
    monkeypatch.setattr(latency, "keep", lambda name, figures: kept.update(figures))
    monkeypatch.setattr(latency, "copy_rate", lambda: 1e9)
    monkeypatch.setattr(latency, "matrix_rate", {"float32": 1e9, "bfloat16": 1e12}.get)
    sizes = ["--size", "64", "64", "--size", "64", "128"]
    given = ["latency", *sizes, "--frames", "1", "--backends", "ort"]
    monkeypatch.setattr(sys, "argv", given)
    latency.main()
    rows = kept["ours"]["rows"]
    assert [row["size"] for row in rows] == [[64, 64], [64, 128]]
    for row, slower in zip(rows, kept["balanced"]["rows"], strict=True):
        ratio = slower["total_ms"]["p50"] / row["total_ms"]["p50"]
        assert row["balanced_times_fast"] == pytest.approx(ratio)
        assert 0 < row["own_share"] < 1
    assert [row["size"] for row in kept["papers"]["rows"]] == [[64, 64]]
    assert "times_faster_than_the_paper" in rows[0]
    assert "times_faster_than_the_paper" not in rows[1]
    for row in kept["bare_runs"]:
        assert row["times_bare_run"] > 0
        assert 0 < row["bare_run_ms"] < 1e3
    assert kept["rates"]["matrix_flop_per_s"] == {"float32": 1e9}
    told = capsys.readouterr().out
    assert told.count("of the matrix rate in float32 (1 GFLOP/s)") == 2
    assert told.count("beside infer (at most 10%); balanced takes") == 2
    assert told.count("times (at most 1.2)") == 2


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("ONNX Runtime (CPU)", "float32"),
        ("OpenVINO (CPU, float32)", "float32"),
        ("OpenVINO (CPU, bfloat16)", "bfloat16"),
        ("OpenVINO (CPU, float16)", "float16"),
    ],
)
def test_a_network_is_held_to_products_in_its_own_precision(backend, precision):
    """It was float32's for all: 222 % of it in bfloat16."""
    assert latency.precision_of({"backend": backend}) == precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_matrix_rate_is_the_best_of_all_products(precision, monkeypatch):
    """It was one product's, by a library that did not use all of the processor."""
    taken = iter([4.0, 2.0, 1.0, 4.0])  # seconds
    products = []

    def least_s(product):
        products.append(product())
        return next(taken)

    monkeypatch.setattr(latency, "least_s", least_s)
    monkeypatch.setattr(latency, "SIDES", (8, 16))
    monkeypatch.setattr(latency, "MAPS", ((2, 8, 4, 5), (1, 8, 4, 4)))
    assert latency.matrix_rate(precision) == 2 * 2 * 4 * 5 * 9 * 8 * 8
    assert {str(product.dtype) for product in products} == {f"torch.{precision}"}
    assert [tuple(product.shape) for product in products[2:]] == [(2, 8, 4, 5), (1, 8, 4, 4)]


def test_the_last_of_many_frames_is_compared_with_the_cpus(monkeypatch):
    """On a GPU that is none, by n2sr's kernels; a frame that drew as another did is found out."""
    where, given = GPU(FAKE_NATIVE), []
    monkeypatch.setattr(gpu, "MANY", 6)
    monkeypatch.setattr(gpu, "WARM", 2)
    monkeypatch.setattr(gpu, "open_denoiser", lambda model, *_, **__: where.pipeline(model))
    monkeypatch.setattr(gpu.torch.cuda, "mem_get_info", lambda: (0, 0))
    assert 0 < gpu.memory_after_many()["last_differs_by"] < gpu.ALLOWED / 2
    compared = gpu.difference_from_cpu
    monkeypatch.setattr(gpu, "difference_from_cpu", lambda *told: given.append(told) or 0.0)
    gpu.memory_after_many()
    model, found, frame, frame_index = given[0]
    assert frame_index == 5
    with pytest.raises(RuntimeError, match=r"frame 4 on the GPU differs .* at most 0\.01"):
        compared(model, found, frame, 4)
    with pytest.raises(RuntimeError, match="differs from the CPU's"):
        compared(model, replace(found, std=1.1 * found.std), frame, 5)


def test_frames_overlapped_are_those_one_after_another(model, monkeypatch):
    """Else their times compare different work."""
    done = {}
    for way in (overlap.one_after_another, overlap.overlapped):
        stages = overlap.Stages(model, "ort", (64, 128))
        way(stages)
        stages.backend.close()
        done[way] = stages.merged
    assert np.array_equal(*done.values())
    assert np.ptp(stages.merged[:, 0], axis=(1, 2)).min() > 0.1


def test_a_measure_of_live_streams_is_kept_beside_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    live.keep("pva", {"size": 256, "fps": 25, "dropped": 9})
    live.keep("pva", {"size": 128, "fps": 25, "dropped": 5})
    live.keep("endurance", {"frames": 7})
    live.keep("pva", {"size": 256, "fps": 25, "dropped": 0})
    kept = results.kept_rows("live")
    assert [row.get("dropped") for row in kept] == [5, None, 0]
    assert [row["measure"] for row in kept] == ["pva", "endurance", "pva"]


def test_what_frames_leave_in_memory_is_told_of_each_backend(monkeypatch):
    kept = []

    class Leaking(live.Denoiser):
        def denoise(self, *arguments, **settings):
            # Of the system: an array may lie in memory that tests before have left to the process.
            kept.append(mmap.mmap(-1, 2**20))
            kept[-1].write(bytes(range(256)) * 2**12)
            return super().denoise(*arguments, **settings)

    monkeypatch.setattr(live, "ON_CPU", ("ort",))
    monkeypatch.setattr(live, "Denoiser", Leaking)
    found = live.memory(n_frames=80, n_warm_up=16)
    assert (found["frames"], set(found["seconds"])) == (80, {"ort"})
    grown = found["memory_growth_bytes"]["ort"]
    assert len(grown) == 10
    assert grown[4] > 20 * 2**20
    assert grown[9] - grown[4] > 20 * 2**20
