"""Frames that microscopes give and denoisers stumble over. How well: benchmarks/hard_frames.py."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.hard_frames import FRAMES, lattice, with_noise
from n2sr_deploy import (
    Denoiser,
    ExportedModel,
    Frame,
    measure_noise,
    read_frame,
    repair,
    write_frame,
)
from n2sr_deploy.defects import measured_part
from n2sr_deploy.denoise_file import denoise_file
from n2sr_deploy.denoise_options import DenoiseOptions
from n2sr_deploy.errors import FrameError
from n2sr_deploy.noise import choose_pattern
from n2sr_deploy.opening import Denoisers
from n2sr_train import train
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def counts():
    """What a 12-bit camera gives: 0 to 4095."""
    scaled = np.rint(with_noise(lattice((96, 128))) * 2500)
    return np.clip(scaled, 0, 4095).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_a_result_does_not_depend_on_how_counts_are_stored(model, counts, dtype):
    with Denoiser(model) as denoiser:
        expected = denoiser.denoise(counts.astype(np.float64)).mean
        found = denoiser.denoise(counts.astype(dtype)).mean
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_eight_bits_give_the_same_as_sixteen(model, counts):
    eight = (counts // 16).astype(np.uint8)
    with Denoiser(model) as denoiser:
        expected = denoiser.denoise(eight.astype(np.uint16)).mean
        np.testing.assert_allclose(denoiser.denoise(eight).mean, expected, rtol=1e-5, atol=1e-4)


def test_negative_counts_are_counts(model, counts):
    """Ceta cameras subtract their dark level: half the values lie below zero."""
    negative = counts.astype(np.int16) - 1500
    with Denoiser(model) as denoiser:
        expected = denoiser.denoise(counts).mean - 1500
        found = denoiser.denoise(negative).mean
    assert negative.min() < 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_result_scales_with_its_frame(model, counts, scale):
    pixels = counts.astype(np.float64)
    with Denoiser(model) as denoiser:
        expected = denoiser.denoise(pixels).mean * scale
        found = denoiser.denoise(pixels * scale).mean
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * 2500 * scale)


@pytest.mark.parametrize("shape", [(1, 4096), (4096, 1), (1, 1), (2, 2)])
def test_a_line_is_refused(model, shape):
    line = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with Denoiser(model) as denoiser, pytest.raises(FrameError, match="needs at least"):
        denoiser.denoise(line)
    with pytest.raises(FrameError, match="pixels"):
        train(Frame(pixels=line), tiny_config())


def test_the_smallest_frames_train_and_denoise(counts):
    from n2sr_train import export_model

    frame = Frame(pixels=counts[:64, :64])
    with Denoiser(export_model(train(frame, tiny_config(patch=32)))) as denoiser:
        assert denoiser.denoise(frame).mean.shape == (64, 64)


@pytest.mark.parametrize("name", FRAMES)
def test_hard_frames_have_white_noise_and_are_seen_so(name):
    """Borders, stops and spikes must not look like correlated noise: it would cost pixels."""
    frame = Frame(pixels=FRAMES[name]().noisy)
    pattern, _, why = choose_pattern(measure_noise(frame))
    assert pattern.name == "cell", why


@pytest.mark.parametrize("name", ["beam stop", "black border", "gradient", "one atom", "saturated"])
def test_what_belongs_to_the_frame_is_not_taken_for_a_defect(name):
    hot = repair(Frame(pixels=FRAMES[name]().noisy)).hot
    assert hot.sum() <= 3  # of 147 456: as many as pure noise has


def test_offsets_are_not_seen_in_borders_and_partial_scans():
    for name in ("black border", "partial scan", "beam stop"):
        repaired = repair(Frame(pixels=FRAMES[name]().noisy))
        assert not repaired.row_offsets.any()
        assert not repaired.column_offsets.any()


@pytest.mark.parametrize("name", ["black border", "partial scan"])
def test_what_was_not_measured_stays_blank(tmp_path, model_path, name):
    hard = FRAMES[name]()
    write_frame(tmp_path / "a.tif", Frame(pixels=hard.noisy))
    how = DenoiseOptions(model=str(model_path), backend="ort")
    with Denoisers() as denoisers:
        denoise_file(
            tmp_path / "a.tif", tmp_path / "b.tif", how, denoisers, std=tmp_path / "std.tif"
        )
    denoised, std = read_frame(tmp_path / "b.tif"), read_frame(tmp_path / "std.tif")
    assert not denoised.pixels[~hard.live].any()
    assert not std.pixels[~hard.live].any()
    assert std.pixels[hard.live].all()
    assert any("were measured; the rest, blank" in line for line in denoised.history)
    rows, columns = measured_part(hard.noisy)
    with Denoiser(ExportedModel.open(model_path), backend="ort") as denoiser:
        alone = denoiser.denoise(hard.noisy[rows, columns]).mean
    assert np.array_equal(denoised.pixels[rows, columns], alone)


def test_only_blank_edges_are_no_part_of_a_frame():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.002, (256, 256)).astype(np.uint8)
    counts[:3] = 0  # as most rows of so few counts are
    whole = (slice(0, 256), slice(0, 256))
    assert measured_part(counts) == whole
    assert measured_part(np.zeros((256, 256))) == whole
    noisy = rng.normal(size=(256, 256))
    assert measured_part(noisy) == whole
    noisy[:, -40:] = 7
    assert measured_part(noisy) == (slice(0, 256), slice(0, 216))
    noisy[20:] = 7  # 20 rows are too few
    assert measured_part(noisy) == whole


def test_spikes_are_mended_and_nothing_else():
    hard = FRAMES["spikes"]()
    hot = repair(Frame(pixels=hard.noisy)).hot
    assert hot[~hard.live].mean() > 0.95
    assert hot[hard.live].sum() <= 3


def test_a_large_frame_goes_through_in_tiles_of_the_memory_budget(model):
    """The same code takes 16384 x 16384; benchmarks/hard_frames.py does."""
    rows = np.random.default_rng(0).integers(0, 4096, (2048, 256), dtype=np.uint16)
    with Denoiser(model, memory_budget=2**22) as tiles, Denoiser(model) as whole:
        np.testing.assert_allclose(
            tiles.denoise(rows).mean, whole.denoise(rows).mean, rtol=1e-4, atol=0.5
        )
