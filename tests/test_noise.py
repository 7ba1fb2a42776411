"""The noise that is measured is the noise that was simulated."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from benchmarks import noise as benchmark
from benchmarks.simulation import simulated_frame, unit_noise
from n2sr_deploy import cores, hits, spectrum
from n2sr_deploy.cli import main
from n2sr_deploy.defects import line_offsets, repair
from n2sr_deploy.errors import FrameError
from n2sr_deploy.formats import read_frame, write_frame
from n2sr_deploy.frame import Frame
from n2sr_deploy.hits import without_hits
from n2sr_deploy.hot_pixels import hot_pixels
from n2sr_deploy.limits import at_limits
from n2sr_deploy.noise import Noise, choose_pattern, measure_noise
from n2sr_deploy.phantom import clean_phantom, noisy_draw
from tests.conftest import REPOSITORY, SHARED_DATA

SHAPE = (384, 416)


def perfect_lattice(shape=SHAPE, spacing=9.3, angle=0.0):
    """Columns of one kind without end, from 0.2 to 1: the hardest for whoever looks for noise."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    u, v = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    waves = (1 + np.cos(2 * np.pi * u / spacing)) * (1 + np.cos(2 * np.pi * v / spacing)) / 4
    return 0.2 + 0.8 * waves**2


def vacuum_beside_an_edge(shape=SHAPE):
    clean = np.full(shape, 0.15)
    clean[:, int(0.37 * shape[1]) :] = 0.9
    return clean


def draw(clean, gain, read_noise, along_rows=0.0, along_columns=0.0, seed=0):
    noise = unit_noise(clean.shape, np.random.default_rng(seed), along_rows, along_columns)
    pixels = clean + noise * np.sqrt(gain * clean + read_noise**2)
    return Frame(pixels=pixels.astype(np.float32))


FRAMES = {
    "lattice": perfect_lattice,
    "lattice along the scan": lambda: perfect_lattice(spacing=16.0),
    "turned lattice": lambda: perfect_lattice(spacing=7.1, angle=0.4),
    "edge": vacuum_beside_an_edge,
    "simulated": lambda: simulated_frame(SHAPE, np.random.default_rng([5, 12])) * 0.5,
}
PATTERNS = {(0, 0): "cell", (0.5, 0): "row", (0, 0.3): "column", (0.6, 0.2): "both"}


@pytest.mark.parametrize("shape", [(48, 48), (49, 51), (64, 57)], ids=str)
@pytest.mark.parametrize("size", [3, 9, 25])
def test_half_of_a_spectrum_is_averaged_as_the_whole(shape, size):
    power = np.abs(np.fft.fft2(np.random.default_rng(0).normal(size=shape))) ** 2
    half = spectrum._half(power)
    assert np.allclose(spectrum._whole(half, shape), power)
    found = spectrum._half_mean(half, shape, size)
    assert np.allclose(found, spectrum._half(spectrum.box_mean(power, size)))


@pytest.mark.parametrize("value", [300, 1000, 60_000])
@pytest.mark.parametrize("share", [0.001, 0.01])
def test_many_hot_pixels_are_found_as_surely_as_few(share, value):
    rng = np.random.default_rng(0)
    clean = 100 + 30 * np.sin(np.arange(128) / 9) * np.cos(np.arange(128)[:, None] / 7)
    pixels = rng.poisson(clean).astype(np.uint16)
    hot = rng.random(pixels.shape) < share
    pixels[hot] = value
    found = hot_pixels(pixels)
    assert (found & hot).sum() >= 0.9 * hot.sum()
    assert (found & ~hot).sum() <= 2


def test_one_pixel_far_beyond_all_others_is_no_crash():
    pixels = np.zeros((64, 64), np.float32)
    pixels[20, 30] = 1e6
    assert measure_noise(Frame(pixels=pixels)).std >= 0


@pytest.mark.parametrize(("n", "size", "height"), [(3, 2, 2000), (10, 2, 500), (5, 3, 1000)])
def test_x_ray_hits_of_several_pixels_are_no_noise(n, size, height):
    """Hot pixels they are not, but they made all the power, and a correlation along both axes."""
    clean = 100 * perfect_lattice(spacing=17.7)
    pixels = np.random.default_rng(0).poisson(clean)
    without = measure_noise(Frame(pixels=pixels.astype(np.float32)))
    for y, x in np.random.default_rng(1).integers(10, 370, (n, 2)):
        pixels[y : y + size, x : x + size] += height
    found = measure_noise(Frame(pixels=pixels.astype(np.float32)))
    assert found.std == pytest.approx(without.std, rel=0.01)
    assert found.gain == pytest.approx(without.gain, rel=0.02)
    assert choose_pattern(found)[0].name == "cell"


def with_many_hits(pixels, shape, height, seed, share=0.005):
    """Groups of pixels, each of another height, and their pixels too."""
    rng, spoiled = np.random.default_rng([9, seed]), pixels.copy()
    for _ in range(int(share * pixels.size / np.prod(shape))):
        y, x = rng.integers(2, np.array(pixels.shape) - 4)
        group = rng.uniform(0.5, 1.5) * rng.uniform(0.6, 1, shape)
        spoiled[y : y + shape[0], x : x + shape[1]] += height * group
    return spoiled


@pytest.mark.parametrize("shape", [(2, 2), (2, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("name", [*FRAMES, "vacuum"])
def test_x_ray_hits_on_many_pixels_are_no_correlated_noise(name, shape):
    """From 0.1 % of the pixels on each frame had noise correlated along both axes."""
    clean = FRAMES[name]() if name in FRAMES else np.full(SHAPE, 0.5)
    for seed in range(2):
        along_rows = 0.4 * seed
        pixels = draw(clean, 0.01, 0.03, along_rows, seed=seed).pixels
        expected = measure_noise(Frame(pixels=pixels)).std
        found = measure_noise(Frame(pixels=with_many_hits(pixels, shape, 30, seed)))
        pattern, margin, _ = choose_pattern(found)
        assert (pattern.name, margin) == (("cell", "row")[seed], 0)
        assert found.std == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("sigma", [0.85, 1.0, 1.4])
@pytest.mark.parametrize("n", [30, 200, 1000])
def test_sharp_atoms_and_single_electrons_are_no_x_ray_hits(sigma, n):
    y, x = np.mgrid[-7:8, -7:8]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        atoms = np.zeros(SHAPE)
        for place in rng.uniform(10, 370, (n, 2)):
            row, column = place.astype(int)
            at = (y - place[0] + row) ** 2 + (x - place[1] + column) ** 2
            atoms[row - 7 : row + 8, column - 7 : column + 8] += np.exp(-at / (2 * sigma**2))
        electrons = rng.poisson(n / 10_000, SHAPE)
        pulses = np.where(electrons > 0, rng.gamma(np.maximum(electrons, 1), 50.0), 0.0)
        frames = [100 + h * atoms + rng.normal(size=SHAPE) for h in (5, 10, 50, 200)]
        frames += [rng.poisson(1 + 40 * atoms).astype(float)]
        frames += [spread + 3 * rng.normal(size=SHAPE) for spread in (pulses, blurred(pulses))]
        for pixels in frames:
            for signed, share in product((pixels, -pixels), hits._MANY):
                low, high = np.quantile(signed, (share, 1 - share))
                assert not hits._many_hits(signed, low, high).any()


def blurred(pixels):
    return ndimage.gaussian_filter(pixels, 0.6)


def test_hits_beyond_the_part_that_is_measured_are_no_noise_either():
    rng = np.random.default_rng(0)
    pixels = rng.poisson(100, (1400, 1400)).astype(np.float32)
    for y, x in rng.integers(1250, 1380, (60, 2)):
        pixels[y : y + 2, x : x + 2] += 60000
    for y, x in rng.integers(300, 1100, (60, 2)):
        pixels[y : y + 2, x : x + 2] += 60000
    assert measure_noise(Frame(pixels=pixels)).std == pytest.approx(10, rel=0.1)


def test_few_counts_bright_particles_and_clean_frames_are_measured_as_they_are():
    y, x = np.mgrid[:256, :256]
    particle = 400 / (1 + np.exp(2 * (np.hypot(y - 130, x - 120) - 5)))  # a thousandth of the frame
    for clean in (0.01, 0.5, 0.5 * perfect_lattice((256, 256)), 20 + particle):
        pixels = np.random.default_rng(3).poisson(clean, (256, 256)).astype(np.float64)
        assert np.count_nonzero(without_hits(pixels) != pixels) <= 6
    for name, clean in FRAMES.items():
        pixels = draw(clean(), 0.1, 0.05).pixels.astype(np.float64)
        assert without_hits(pixels) is pixels, name


@pytest.mark.parametrize("kind", ["phantom", "ramp", "border"])
def test_a_frame_almost_without_noise_is_taken_as_white(kind):
    """Its rounding is correlated, and would ask for the most wasteful pattern."""
    if kind == "phantom":
        pixels = clean_phantom((256, 256), spacing=16)
    elif kind == "ramp":
        pixels = np.add.outer(np.arange(256.0), 0.3 * np.arange(256))
    else:  # nothing in the middle, where the noise is measured
        pixels = np.zeros((1400, 1400))
        pixels[:64] = np.random.default_rng(0).normal(5, 1, size=(64, 1400))
    found = measure_noise(Frame(pixels=pixels.astype(np.float32)))
    pattern, margin, why = choose_pattern(found)
    assert (pattern.name, pattern.stride, margin) == ("cell", (2, 2), 0)
    assert why.startswith("there is next to no noise")
    assert found.describe().startswith("next to no noise")


def test_where_a_smoothed_frame_has_lost_its_noise_the_user_is_asked_for_the_raw_one():
    rng = np.random.default_rng(0)
    pixels = clean_phantom((256, 256), spacing=16) + rng.normal(0, 0.3, (256, 256))
    found = measure_noise(Frame(pixels=ndimage.gaussian_filter(pixels, 2.0).astype(np.float32)))
    assert "smoothed or enlarged" in choose_pattern(found)[2]


@pytest.mark.parametrize("dose", [0.02, 0.05, 0.1, 0.2, 0.5, 1.5])
@pytest.mark.parametrize("name", FRAMES)
def test_few_counts_are_known_to_count_events(name, dose):
    clean = FRAMES[name]()
    counts = np.random.default_rng(1).poisson(clean * (dose / clean.mean())).astype(np.uint16)
    found = measure_noise(Frame(pixels=counts))
    assert (found.gain, found.read_noise) == (1.0, 0.0)
    assert found.counts_events
    assert found.std == pytest.approx(math.sqrt(dose), rel=0.05)


def test_few_whole_numbers_that_vary_more_than_counts_are_not_taken_for_them():
    clean = clean_phantom((256, 256), spacing=16)
    counts = 2.0 * np.random.default_rng(1).poisson(clean * (1.0 / clean.mean()))
    assert not measure_noise(Frame(pixels=counts.astype(np.float32))).counts_events


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("correlations", PATTERNS)
def test_correlation_gain_and_pattern_are_those_of_the_simulation(name, correlations):
    found = measure_noise(draw(FRAMES[name](), 0.1, 0.05, *correlations))
    assert found.along_rows[0] == pytest.approx(correlations[0], abs=0.05)
    assert found.along_columns[0] == pytest.approx(correlations[1], abs=0.05)
    assert found.gain == pytest.approx(0.1, rel=0.1)
    assert found.read_noise == pytest.approx(0.05, abs=0.04)
    pattern, margin, _ = choose_pattern(found)
    if PATTERNS[correlations] == "both":
        assert margin > 0
    else:
        assert (pattern.name, margin) == (PATTERNS[correlations], 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_noise_that_skips_its_neighbours_is_not_white(axis):
    """Only the correlation of neighbours counted."""
    white = np.random.default_rng(0).normal(size=SHAPE)
    skips = (white + 0.6 * np.roll(white, 2, axis)) / np.sqrt(1.36)
    clean = perfect_lattice()
    found = measure_noise(Frame(pixels=(clean + skips * np.sqrt(0.05 * clean)).astype(np.float32)))
    assert found.strongest[1 - axis] == pytest.approx(0.44, abs=0.05)
    assert choose_pattern(found)[0].name == ("column", "row")[axis]
    assert "0.4" in found.describe().partition("farther along")[0][-6:]


@pytest.mark.parametrize(("gain", "read_noise"), [(0.02, 0.0), (0.02, 0.1), (0.3, 0.0), (1, 0.1)])
def test_gain_is_found_from_weak_to_strong_noise(gain, read_noise):
    found = measure_noise(draw(perfect_lattice((512, 512), 20), gain, read_noise))
    assert found.gain == pytest.approx(gain, rel=0.1)
    expected = np.sqrt(np.mean(gain * perfect_lattice((512, 512), 20) + read_noise**2))
    assert found.std == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("index", [7, 20, 30])
def test_gain_is_not_told_too_low_where_noise_hides_the_specimen(index, monkeypatch):
    monkeypatch.setattr(benchmark, "SEED", 101)
    assert benchmark.measured(index)["gain_error"] == pytest.approx(0, abs=0.1)


def test_std_is_not_that_of_the_middle_alone():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    particle = np.where(np.hypot(y - 192, x - 208) < 110, 1.0, 0.1)
    expected = np.sqrt(np.mean(0.1 * particle + 0.02**2))
    assert measure_noise(draw(particle, 0.1, 0.02)).std == pytest.approx(expected, rel=0.05)


def test_a_flat_field_tells_no_gain():
    found = measure_noise(draw(np.full(SHAPE, 0.5), 0.1, 0.02))
    assert found.gain is None
    assert found.std == pytest.approx(np.sqrt(0.05 + 0.0004), rel=0.03)


def test_electron_counts_are_known_as_counts():
    clean = perfect_lattice(spacing=24) * 20
    counts = np.random.default_rng(0).poisson(clean).astype(np.uint16)
    assert measure_noise(Frame(pixels=counts)).counts_events
    assert not measure_noise(Frame(pixels=counts * 3)).counts_events
    assert not measure_noise(Frame(pixels=counts.astype(np.float32) + 0.5)).counts_events


def test_a_pair_tells_the_noise_from_its_difference():
    clean = perfect_lattice()
    first, second = (draw(clean, 0.1, 0.05, 0.4, seed=seed) for seed in (1, 2))
    found = measure_noise(first, second)
    assert found.along_rows[0] == pytest.approx(0.4, abs=0.03)
    assert found.along_columns[0] == pytest.approx(0, abs=0.03)
    assert found.gain == pytest.approx(0.1, rel=0.1)


def test_a_pair_that_does_not_match_is_told(caplog):
    clean = perfect_lattice()
    first = draw(clean, 0.001, 0.01, seed=1)
    second = draw(np.roll(clean, 3, axis=1), 0.001, 0.01, seed=2)
    measure_noise(first, second)
    assert "not registered" in caplog.text
    with pytest.raises(FrameError, match="100 x 416"):
        measure_noise(first, Frame(pixels=second.pixels[:100]))
    with pytest.raises(FrameError, match="the very pixels of the first"):
        measure_noise(first, first)
    for otherwise in ("brighter", "hot"):
        pixels = first.pixels + (8 if otherwise == "brighter" else 0)
        pixels[40, 50] += 100 * (otherwise == "hot")
        with pytest.raises(FrameError, match="the very pixels of the first"):
            measure_noise(first, Frame(pixels=pixels))


def test_a_frame_with_itself_is_no_pair_though_it_has_offsets():
    """One was mended and the other was not, so they differed by what was mended."""
    first = draw(perfect_lattice(), 0.05, 0.02)
    first.pixels.setflags(write=True)
    first.pixels[:] += np.random.default_rng(4).normal(size=(SHAPE[0], 1)) * 0.1
    first.pixels[40, 50] = 100
    with pytest.raises(FrameError, match="another exposure of the area is needed"):
        measure_noise(first, first)
    second = draw(perfect_lattice(), 0.05, 0.02, seed=1)
    alone = measure_noise(first)
    assert alone.row_offsets
    assert measure_noise(first, second).std == pytest.approx(alone.std, rel=0.05)


def test_saturation_is_found_and_only_where_there_is_some():
    noisy = draw(perfect_lattice(), 0.05, 0.02)
    clipped = Frame(pixels=np.minimum(noisy.pixels, 0.9))
    share = np.mean(noisy.pixels >= 0.9)
    assert measure_noise(clipped).saturated == pytest.approx(share)
    assert measure_noise(noisy).saturated == 0
    checkerboard = np.indices((64, 64)).sum(axis=0) % 2
    assert measure_noise(Frame(pixels=checkerboard)).saturated == 0


def bright_particles(seed):
    """With soft edges, 20 times as high as what lies between them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    clean = 1 + 0.3 * perfect_lattice(spacing=9.3 + seed)
    for _ in range(10):
        (row, column), radius = rng.uniform(0, 1, 2) * SHAPE, rng.uniform(10, 40)
        distance = np.hypot(y - row, x - column) - radius
        clean += 20 / (1 + np.exp(np.clip(distance / rng.uniform(1.5, 3), -50, 50)))
    return clean


MIDDLE = slice(1024, 2048)


def test_lines_far_apart_are_not_for_little_noise():
    """Of a frame with 1 % of noise they lost 4 to 12 times as much as that."""
    white = np.random.default_rng(0).normal(size=SHAPE)
    both = unit_noise(SHAPE, np.random.default_rng(1), 0.4, 0.3)
    for share, expected in ((0.02, "cell"), (0.1, "cell"), (0.3, "row")):
        clean = perfect_lattice()
        noise = clean.std() * np.sqrt(share / (1 - share))
        found = measure_noise(Frame(pixels=(clean + noise * both).astype(np.float32)))
        assert found.of_detail == pytest.approx(share, rel=0.15)
        pattern, margin, why = choose_pattern(found)
        assert (pattern.name, margin) == (expected, int(expected == "row"))
        assert ("within 25 pixels" in why) is (expected == "cell")
        white_frame = Frame(pixels=(clean + noise * white).astype(np.float32))
        assert choose_pattern(measure_noise(white_frame))[2].startswith("the noise is white")
    assert Noise.from_dict(found.to_dict()) == found
    slope = np.linspace(0, 30, SHAPE[1])  # which no pattern loses
    sloping = measure_noise(Frame(pixels=(clean + slope + noise * both).astype(np.float32)))
    assert sloping.of_detail == pytest.approx(found.of_detail, rel=0.1)


def test_noise_is_little_beside_the_detail_that_it_lies_on():
    """Of a large frame the noise at its mean was compared with the detail of its bright middle."""
    clean = np.full((128, 3072), 20.0)
    clean[:, MIDDLE] = 400 + 200 * np.cos(np.arange(1024) / 12)
    noise = np.sqrt(clean) * unit_noise(clean.shape, np.random.default_rng(0), 0.4, 0.4)
    frame = Frame(pixels=(clean + noise).astype(np.float32))
    whole, middle = measure_noise(frame), measure_noise(frame.cropped(slice(None), MIDDLE))
    assert whole.std < 0.75 * middle.std
    assert whole.of_detail == pytest.approx(middle.of_detail, rel=0.01)


@pytest.mark.parametrize("gain", [1e-4, 1e-3])
@pytest.mark.parametrize("correlations", PATTERNS)
def test_saturated_particles_are_no_correlated_noise(correlations, gain):
    """Each was said to have noise correlated along both axes, of up to 3.7 times its strength."""
    for seed in range(3):
        clean = bright_particles(seed)
        noisy = np.minimum(draw(clean, gain, 0.01, *correlations, seed=seed).pixels, 6)
        for pixels in (noisy, np.rint(noisy * 10_000).astype(np.uint16)):
            found = measure_noise(Frame(pixels=pixels))
            pattern, margin, _ = choose_pattern(replace(found, of_detail=None))
            assert ("both" if margin else pattern.name) == PATTERNS[correlations]
            expected = np.sqrt(np.mean((gain * clean + 0.01**2)[noisy < 6]))
            assert found.std / pixels.max() == pytest.approx(expected / 6, rel=0.07)


@pytest.mark.parametrize("share", [0.03, 0.1])
@pytest.mark.parametrize("end", ["highest", "lowest"])
def test_a_gain_is_right_or_not_told_where_the_noise_is_clipped(end, share):
    """At the top it was told 40 % too low, as clipped pixels vary less."""
    for seed, spacing in enumerate((12.0, 16.0, 24.0)):
        noisy = draw(perfect_lattice(spacing=spacing), 0.02, 0.03, seed=seed).pixels
        low, high = np.quantile(noisy, (share, 1 - share))
        clipped = np.minimum(noisy, high) if end == "highest" else np.maximum(noisy - low, 0)
        found = measure_noise(Frame(pixels=clipped))
        told = found.saturated, found.cut_off
        assert told == pytest.approx((share, 0) if end == "highest" else (0, share), rel=0.01)
        assert found.gain is None or found.gain == pytest.approx(0.02, rel=0.15)
        assert choose_pattern(found)[0].name == "cell"


@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint8"])
def test_an_offset_set_too_low_is_told(dtype):
    for seed in range(3):
        noisy = draw(vacuum_beside_an_edge() - 0.15, 0.02, 0.05, seed=seed).pixels
        if dtype != "float32":
            noisy = np.rint(noisy * (150 if dtype == "uint8" else 4000))
        clipped = np.clip(noisy, 0, None).astype(dtype)
        found = measure_noise(Frame(pixels=clipped))
        assert found.cut_off == np.mean(clipped == 0)
        assert "offset is too low" in found.describe()
        assert found.std == pytest.approx(noisy[:, 200:].std(), rel=0.05)
        assert measure_noise(Frame(pixels=noisy.astype(np.float32))).cut_off == 0


@pytest.mark.parametrize("dose", [0.002, 0.02, 0.1, 0.5, 2, 4.5])
@pytest.mark.parametrize("name", [*FRAMES, "half empty"])
def test_zeros_of_single_counts_are_not_cut_off(name, dose):
    for seed in range(3):
        clean = FRAMES[name]() if name in FRAMES else perfect_lattice(spacing=9 + 3 * seed)
        if name == "half empty":
            clean[:, :150] = 0
        counts = np.random.default_rng(seed).poisson(clean * (dose / clean.mean()))
        for pixels in (counts.astype(np.uint16), (37 * counts).astype(np.float32)):
            limits = at_limits(pixels, np.zeros(pixels.shape, np.bool_))
            assert not limits.either.any()


def test_what_is_known_of_the_noise_of_earlier_checkpoints_is_read():
    values = measure_noise(draw(perfect_lattice(), 0.1, 0.05)).to_dict()
    del values["cut_off"]
    assert Noise.from_dict(values).cut_off == 0


def test_small_or_constant_frames_are_refused_in_a_sentence():
    with pytest.raises(FrameError, match="48 x 48 on"):
        measure_noise(Frame(pixels=np.eye(40)))
    with pytest.raises(FrameError, match="constant"):
        measure_noise(Frame(pixels=np.ones((64, 64))))


def test_noise_survives_json():
    found = measure_noise(draw(perfect_lattice(), 0.1, 0.05))
    assert Noise.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize("dose", [0.3, 3, 30])
def test_counts_of_any_dose_have_no_hot_pixels(dose):
    clean = simulated_frame(SHAPE, np.random.default_rng(5))
    counts = np.random.default_rng(0).poisson(dose * clean)
    assert hot_pixels(counts).sum() <= 2


def test_sharp_columns_are_not_hot_pixels():
    """Columns as narrow as sampling allows, nearly without noise."""
    y, x = np.mgrid[:200, :200]
    columns = np.exp(-(((y + 10) % 20 - 10) ** 2 + ((x + 10) % 20 - 10) ** 2) / (2 * 0.85**2))
    noise = np.random.default_rng(0).normal(size=columns.shape) * 0.01
    assert not hot_pixels(columns + noise).any()
    alone = np.where((y < 30) & (x < 30), columns, 0)  # two or three columns in all
    assert not hot_pixels(alone + noise).any()


def test_noise_of_bright_columns_is_not_taken_for_dead_pixels(monkeypatch):
    monkeypatch.setattr(benchmark, "SEED", 101)
    assert benchmark.measured(19)["hot_pixels"] == 0


def test_hot_dead_and_x_ray_pixels_are_found_and_replaced():
    clean = perfect_lattice() * 100
    noisy = np.random.default_rng(0).poisson(clean).astype(np.float32)
    spoiled, rng = noisy.copy(), np.random.default_rng(1)
    places = rng.choice(noisy.size, 90, replace=False)
    spoiled.ravel()[places[:60]] += rng.uniform(300, 30000, 60)  # x-rays and hot pixels
    ray = places[0]
    spoiled.ravel()[ray : ray + 2] = 5000  # one over two pixels
    bright = np.flatnonzero(clean > 60)[rng.integers(0, (clean > 60).sum(), 20)]
    spoiled.ravel()[bright] = 0  # dead
    repaired = repair(Frame(pixels=spoiled))
    changed = np.zeros(noisy.size, bool)
    changed[[*places[:60], ray + 1, *bright]] = True
    missed = changed & ~repaired.hot.ravel()
    assert missed.sum() <= 2
    assert (repaired.hot.ravel() & ~changed).sum() <= 2
    untouched = ~repaired.hot
    assert np.array_equal(repaired.frame.pixels[untouched], spoiled[untouched])
    replaced = repaired.hot.ravel() & changed
    error = repaired.frame.pixels.ravel()[replaced] - clean.ravel()[replaced]
    assert np.abs(error).mean() < 30
    assert "hot pixels replaced" in repaired.frame.history[-1]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("along_rows", [0, 0.5])
def test_offsets_of_lines_are_removed_and_the_specimen_stays(axis, along_rows):
    noisy = draw(perfect_lattice(spacing=16), 0.05, 0.02, along_rows).pixels
    offsets = np.random.default_rng(4).normal(size=SHAPE[axis]) * 0.1
    added = offsets[:, None] if axis == 0 else offsets[None, :]
    found = line_offsets(noisy + added, axis)
    assert np.std(found - offsets) < 0.4 * np.std(offsets)
    assert not line_offsets(noisy + added, 1 - axis).any()


@pytest.mark.parametrize("name", FRAMES)
def test_where_there_are_no_offsets_none_are_found(name):
    for along_rows in (0.0, 0.5):
        noisy = draw(FRAMES[name](), 0.05, 0.02, along_rows).pixels
        assert not line_offsets(noisy, 0).any()
        assert not line_offsets(noisy, 1).any()


def narrow_columns(spacing, shape=(512, 512), width=0.2):
    """Like `perfect_lattice`, but with harmonics; `width` (sigma) in spacings."""

    def comb(n):
        u = (np.arange(n) + spacing / 2) % spacing - spacing / 2
        return sum(
            np.exp(-((u + k * spacing) ** 2) / (2 * (width * spacing) ** 2)) for k in (-1, 0, 1)
        )

    return 0.1 + np.outer(comb(shape[0]), comb(shape[1]))


@pytest.mark.parametrize("true_std", [0.02, 0.05])
@pytest.mark.parametrize("spacing", [12, 25.6, 31.5, 100])
def test_offsets_take_nothing_of_a_lattice_without_whole_periods(spacing, true_std):
    """At 31.5 pixels, 0.105 of the lattice was subtracted for offsets of 0.02."""
    offsets = np.random.default_rng(1).normal(size=512) * true_std
    noisy = draw(narrow_columns(spacing), 0.05, 0).pixels + offsets[:, None]
    found = line_offsets(noisy, 0)
    assert np.std(found - offsets) < 0.01 + 0.3 * true_std
    assert not line_offsets(noisy, 1).any()


@pytest.mark.parametrize("spacing", [9.3, 13.7, 24.3])
@pytest.mark.parametrize("size", [64, 128])
def test_small_lattices_have_no_offsets(size, spacing):
    clean = narrow_columns(spacing, (size, size))
    for seed in range(10):
        for gain in (0.005, 0.05):
            assert not line_offsets(draw(clean, gain, 0, seed=seed).pixels, 0).any()


@pytest.mark.parametrize("stacking", ["random heights", "random planes", "fibonacci"])
@pytest.mark.parametrize(("spacing", "sigma"), [(7, 1.6), (7, 0.85), (4, 0.85)])
def test_layers_of_a_specimen_are_no_offsets(stacking, spacing, sigma):
    """Of a row profile of std 243, 159 were subtracted as offsets; a lens leaves layers a width."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        heights = {
            "random heights": rng.uniform(0, 1, 100),
            "random planes": rng.integers(0, 2, 100),
            "fibonacci": np.floor(np.arange(1, 101) * 0.618) - np.floor(np.arange(100) * 0.618),
        }[stacking]
        planes = (np.arange(100) + 0.5 + 0.1 * seed) * spacing
        distances = np.subtract.outer(np.arange(SHAPE[0]), planes)
        profile = np.exp(-(distances**2) / (2 * sigma**2)) @ (0.4 + heights)
        along = 0.6 + 0.4 * np.cos(2 * np.pi * np.arange(SHAPE[1]) / 9.3)
        noisy = draw(0.1 + np.outer(profile, along), 0.01, 0, seed=seed).pixels
        assert not line_offsets(noisy, 0).any()
        assert not line_offsets(noisy.T, 1).any()


@pytest.mark.parametrize(("thinnest", "thickest"), [(3, 3), (6, 6), (3, 5), (4, 13), (10, 39)])
@pytest.mark.parametrize("n_levels", [2, 200])
def test_layers_with_sharp_edges_are_no_offsets(thinnest, thickest, n_levels):
    """Of layers 6 pixels thick, 40 % of the contrast was subtracted, and the report found it good.

    Their spectrum is that of offsets that walk, but most lines are like the one before.
    """
    along = 1 + 0.4 * np.cos(2 * np.pi * np.arange(192) / 8.3)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        edges = np.cumsum(rng.integers(thinnest, thickest + 1, 200))
        height = np.resize([-1, 1], 201) if n_levels == 2 else rng.normal(size=201)
        levels = height[np.searchsorted(edges, np.arange(256), "right")]
        for specimen in (np.ones(192), along):
            clean = np.maximum(55 + 15 * levels, 1)[:, None] * specimen
            noisy = rng.poisson(clean).astype(np.float64)
            assert not line_offsets(noisy, 0).any()
            assert not line_offsets(noisy.T, 1).any()


@pytest.mark.parametrize("n_rows", [256, 512, 1024])
@pytest.mark.parametrize("n_bars", [1, 2, 3, 5, 8])
def test_bars_of_a_specimen_keep_their_contrast(n_rows, n_bars):
    """Of five bars a third of the contrast was subtracted, as few of their edges were counted."""
    is_bar = np.isin(np.arange(n_rows) % (n_rows // n_bars), np.arange(20, 30))
    for std in (0, 1, 3):
        rng = np.random.default_rng(n_bars)
        clean = np.where(is_bar, 105.0, 55.0)[:, None] * np.ones(192)
        found = line_offsets(rng.poisson(clean) + std * rng.normal(size=(n_rows, 1)), 0)
        assert abs(found[is_bar].mean() - found[~is_bar].mean()) < 0.03 * 50


@pytest.mark.parametrize("n_rows", [256, 512])
@pytest.mark.parametrize("width", [0, 2, 6])
def test_offsets_are_removed_though_a_few_lines_stand_out(n_rows, width):
    """A line that was blanked, or a thin bar of the specimen, must not pass for layers."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        offsets = 3 * rng.normal(size=n_rows)
        clean = np.full((n_rows, 192), 55.0)
        clean[n_rows // 3 : n_rows // 3 + width] += 50
        found = line_offsets(rng.poisson(clean) + offsets[:, None], 0)
        assert np.std(found - offsets) < 0.5 * np.std(offsets)


@pytest.mark.parametrize("size", [32, 40, 48])
def test_a_frame_of_few_lines_tells_no_offsets(size):
    """A sine of 25 pixels was subtracted as offsets of some frames of 32 rows."""
    rows, columns = np.arange(size)[:, None], np.arange(size)
    for seed in range(20):
        clean = 50 + 20 * np.sin(rows / 4) + 20 * np.cos(columns / 5)
        assert not line_offsets(np.random.default_rng(seed).poisson(clean), 0).any()


def test_offsets_that_walk_from_line_to_line_are_removed():
    offsets = np.cumsum(np.random.default_rng(2).normal(size=512) * 0.05)
    found = line_offsets(draw(np.full((512, 512), 0.5), 0.05, 0).pixels + offsets[:, None], 0)
    assert np.std(np.diff(found - offsets)) < 0.5 * np.std(np.diff(offsets))


def test_where_waves_leave_too_little_of_the_lines_no_offsets_are_told():
    rng = np.random.default_rng(0)
    periods = np.outer(np.arange(128) / 128, 4.3 + 6.3 * np.arange(9))
    rows = np.cos(2 * np.pi * (periods + rng.random(9))).sum(axis=1)
    pixels = rows[:, None] + rng.normal(size=(128, 128)) * 0.1
    assert not line_offsets(pixels, 0).any()


def test_a_frame_without_noise_is_left_alone():
    frame = Frame(pixels=clean_phantom((256, 256)))
    assert repair(frame).frame is frame


def test_info_tells_the_noise_and_the_pattern(tmp_path):
    noisy = draw(perfect_lattice(), 0.1, 0.05, 0.5)
    write_frame(tmp_path / "noisy.tif", noisy)
    result = CliRunner().invoke(main, ["info", str(tmp_path / "noisy.tif")])
    assert result.exit_code == 0
    assert "along rows" in result.output
    assert "pattern row" in result.output


def test_info_leaves_out_what_was_not_scanned_as_training_does(tmp_path):
    noisy = draw(perfect_lattice(), 0.1, 0.05, 0.5).pixels
    pair = np.stack([noisy, draw(perfect_lattice(), 0.1, 0.05, 0.5, seed=1).pixels])
    pair[:, 250:] = 0
    write_frame(tmp_path / "unscanned.npy", Frame(pixels=pair[0]))
    result = CliRunner().invoke(main, ["info", str(tmp_path / "unscanned.npy")])
    assert measure_noise(Frame(pixels=noisy[:250])).describe() in result.output
    np.save(tmp_path / "pair.npy", pair)
    result = CliRunner().invoke(main, ["info", str(tmp_path / "pair.npy"), "--second", "1"])
    parts = (Frame(pixels=exposure[:250]) for exposure in pair)
    assert measure_noise(*parts).describe() in result.output


def test_noise_that_reaches_over_the_lines_between_is_told():
    """It stayed in the result, and nothing but the report said so."""
    white = np.random.default_rng(0).normal(size=(256, 256))
    far = ndimage.convolve1d(white, [0.25, 0.5, 1, 0.5, 0.25], axis=0, mode="wrap")
    far = ndimage.convolve1d(far, [0.25, 0.5, 1, 0.5, 0.25], axis=1, mode="wrap")
    pattern, _, why = choose_pattern(measure_noise(Frame(pixels=far)))
    assert pattern.stride in ((4, 1), (1, 4))
    assert "it reaches farther than that (0.4" in why
    assert "bin the frame by two or more first" in why
    near = draw(perfect_lattice(), 0.1, 0.05, 0.5, 0.4)
    assert "reaches farther" not in choose_pattern(measure_noise(near))[2]


def test_the_pattern_by_name_is_the_one_that_the_noise_asks_for():
    """Naming it dropped the margin, and so 3 dB."""
    from n2sr_deploy.learning import LearnOptions
    from n2sr_train.config import TrainingConfig

    found = measure_noise(draw(perfect_lattice(), 0.1, 0.05, 0.5, 0.4))
    asked = TrainingConfig.from_options(LearnOptions(), found)
    assert asked.margin == 1
    for pattern, stride in (("row", (4, 4)), ("row", (3, 3)), (None, (4, 4)), ("column", (4, 4))):
        named = TrainingConfig.from_options(LearnOptions(pattern=pattern, stride=stride), found)
        assert (named.pattern.name, max(named.pattern.stride)) == (pattern or "row", stride[0])
        assert named.margin == 1
    named = TrainingConfig.from_options(LearnOptions(pattern="row"), found)
    assert (named.pattern.stride, named.margin) == ((2, 1), 0)


@pytest.mark.parametrize(("pattern", "margin"), [("cell", 0), ("row", 1), ("column", 1)])
def test_a_named_pattern_keeps_the_margin_of_the_noise_but_for_cells(pattern, margin):
    """Of cells with a margin a tenth of the pixels would be left to learn from."""
    from n2sr_deploy.learning import LearnOptions
    from n2sr_train import TrainingConfig

    both = measure_noise(draw(perfect_lattice(), 0.1, 0.05, 0.5, 0.5))
    options = LearnOptions(pattern=pattern, stride=(4, 4))
    assert TrainingConfig.from_options(options, both).margin == margin


@pytest.mark.parametrize(("stride", "instead"), [(2, False), (3, True)])
def test_only_another_pattern_is_chosen_instead(caplog, stride, instead):
    from n2sr_deploy.learning import LearnOptions
    from n2sr_train.learner import prepared

    noisy = draw(perfect_lattice((128, 128), 12), 0.02, 0.02, 0.5)
    with caplog.at_level("INFO", "n2sr"):
        prepared(noisy, LearnOptions(pattern="row", stride=(stride, stride)))
    assert ("instead" in caplog.text) is instead


def test_training_says_what_it_found_and_pattern_overrules_it(tmp_path, monkeypatch):
    from dataclasses import replace

    from n2sr_train import config
    from tests.conftest import tiny_config

    monkeypatch.setattr(config, "PRESETS", {"balanced": replace(tiny_config(), steps=2)})
    noisy = draw(perfect_lattice((128, 128), 12), 0.02, 0.02, 0.5)
    noisy.pixels.setflags(write=True)
    noisy.pixels[40, 50] = 100
    write_frame(tmp_path / "noisy.tif", noisy)
    run = ["train", str(tmp_path / "noisy.tif"), "-o"]
    result = CliRunner().invoke(main, [*run, str(tmp_path / "a.safetensors")])
    assert result.exit_code == 0, result.output
    assert "pattern row" in result.output
    assert "1 hot pixel" in result.output
    result = CliRunner().invoke(main, [*run, str(tmp_path / "b.safetensors"), "--pattern", "cell"])
    assert "you chose pattern cell" in result.output
    from n2sr_train import Checkpoint, export_model

    learned = Checkpoint.open(tmp_path / "b.safetensors")
    assert learned.noise is not None
    assert learned.noise.hot_pixels == 1
    assert export_model(learned).metadata.noise == json.loads(json.dumps(learned.noise.to_dict()))


def test_hot_pixels_do_not_spread_in_what_is_denoised(tmp_path, model_path, noisy):
    spoiled = noisy.pixels.copy()
    spoiled[30, 40] = 50 * spoiled.max()
    write_frame(tmp_path / "clean.npy", noisy)
    write_frame(tmp_path / "spoiled.npy", Frame(pixels=spoiled))
    for name in ("clean", "spoiled"):
        arguments = ["denoise", str(tmp_path / f"{name}.npy"), "-m", str(model_path), "-o"]
        result = CliRunner().invoke(main, [*arguments, str(tmp_path / f"{name}-out.npy")])
        assert result.exit_code == 0, result.output
    assert "mended: 1 hot pixel replaced" in result.output
    a, b = (read_frame(tmp_path / f"{name}-out.npy").pixels for name in ("clean", "spoiled"))
    assert np.abs(a - b).max() < np.std(noisy.pixels)


@pytest.mark.skipif(not (SHARED_DATA / "real").exists(), reason="needs the shared frames")
def test_single_frame_and_pair_agree_on_a_real_detector():
    first, second = (read_frame(SHARED_DATA / "real" / "nist_haadf_pair.mrc", i) for i in (0, 1))
    alone, pair = measure_noise(first), measure_noise(first, second)
    assert alone.along_rows[0] == pytest.approx(pair.along_rows[0], abs=0.05)
    assert alone.gain == pytest.approx(pair.gain, rel=0.1)
    assert choose_pattern(alone)[0].name == choose_pattern(pair)[0].name == "row"


def test_phantom_noise_is_white():
    noisy = noisy_draw(clean_phantom((256, 256), spacing=12), gain=0.05, read_noise=0.02)
    assert choose_pattern(measure_noise(Frame(pixels=noisy)))[0].name == "cell"


def test_white_noise_on_a_small_frame_is_not_taken_as_correlated():
    """A correlation of 0.1 means little on 64 x 64 pixels; each pattern but cell costs pixels."""
    for seed in range(12):
        clean = clean_phantom((64, 64), spacing=12, seed=seed)
        noisy = noisy_draw(clean, gain=0.05, read_noise=0.02, seed=seed)
        noise = measure_noise(Frame(pixels=noisy))
        assert choose_pattern(noise)[0].name == "cell", noise.describe()
        assert noise.correlation_error == pytest.approx(4.5 / 64)


def test_a_specimen_in_a_part_of_the_frame_is_no_offset_of_rows():
    """A needle in vacuum, almost without noise, was taken for offsets; stripes came of it."""
    y, x = np.mgrid[:64, :64].astype(float)
    needle = 20000 * np.exp(-(((y - 32 - 0.1 * x) / (9 - 0.1 * x)) ** 4)) * (x > 15) * (x < 60)
    noise = np.random.default_rng(0).normal(size=(64, 64)) * 20
    for pixels in (500 + needle + noise, (500 + needle + noise).T):
        repaired = repair(Frame(pixels=pixels.astype(np.float32)))
        assert not repaired.row_offsets.any()
        assert not repaired.column_offsets.any()


@pytest.fixture
def on_cores(monkeypatch):
    """Give this process so many."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return lambda n: monkeypatch.setattr(cores, "cores_allowed", lambda: n)


def test_on_one_core_and_on_several_the_same_is_measured(on_cores):
    frame = draw(vacuum_beside_an_edge(), 0.1, 0.02, along_rows=0.3)
    found = []
    for n_cores in (1, 2, 4):
        on_cores(n_cores)
        found.append((measure_noise(frame), repair(frame).hot.tobytes()))
    assert found[0][0].gain is not None, "none of it was left out"
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("n_cores", [1, 3])
def test_what_is_done_on_several_cores_keeps_its_order_and_its_errors(on_cores, n_cores):
    on_cores(n_cores)
    assert cores.at_once(lambda n: n**2, range(7)) == [0, 1, 4, 9, 16, 25, 36]
    with pytest.raises(ZeroDivisionError):
        cores.at_once(lambda n: 1 / n, (1, 0))
    large = [np.float32([3e38])] * 2
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        cores.at_once(lambda values: values + values, large)
    with np.errstate(over="ignore"):  # pytest makes warnings errors
        cores.at_once(lambda values: values + values, large)


_AS_PYTHON_ENDS = """
import os, threading, time
os.environ.pop("OMP_NUM_THREADS", None)
import numpy as np
from n2sr_deploy import Frame, cores, measure_noise
cores.cores_allowed = lambda: 4
def measure():
    threading.main_thread().join()
    time.sleep(0.1)
    print(measure_noise(Frame(pixels=np.random.default_rng(0).normal(size=(96, 96)))).std)
threading.Thread(target=measure).start()
"""


def test_noise_is_measured_in_a_thread_that_outlives_the_program():
    done = subprocess.run(
        [sys.executable, "-c", _AS_PYTHON_ENDS], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert float(done.stdout) == pytest.approx(1.0, rel=0.1), done.stderr
