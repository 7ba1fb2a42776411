"""Places that a network misses: they are found, noise is not taken for one, and they count more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from n2sr_deploy import Frame, SamplingPattern
from n2sr_deploy.reference import MIRRORED
from n2sr_train.config import PRESETS, TrainingConfig
from n2sr_train.device_patches import DevicePatches
from n2sr_train.missed import _MISSED, MissedPlaces, _Blur, _missed
from n2sr_train.patches import PatchSampler
from n2sr_train.training import _Training
from tests.conftest import tiny_config

SIDE = 256
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)


def column(row, at, height=0.4):
    return height * np.exp(-((ROWS - row) ** 2 + (COLUMNS - at) ** 2) / (2 * 3.2**2))


def looked(pixels, drawn, pattern="cell", stride=2, margin=0, spoil=lambda sampler: None):
    """What each pixel counts after a look at a frame that a network draws like this."""
    frame = Frame(pixels=pixels)
    config = tiny_config(pattern=SamplingPattern.named(pattern, stride), margin=margin, patch=SIDE)
    sampler = PatchSampler(frame, config, (8, 8))
    spoil(sampler)
    mean, std = frame.mean_and_std()
    image = torch.from_numpy((drawn - mean) / std).float()[None, None]

    def output(_, subsampled):
        turned = [image.flip(MIRRORED[m]) for m in range(len(subsampled))]
        return torch.cat(turned)

    missed = MissedPlaces(sampler, config, torch.device("cpu"))
    missed.look(torch.nn.Identity(), output)
    return missed.counts, sampler


@pytest.mark.parametrize("pattern", ["cell", "row", "column"])
def test_a_column_that_is_drawn_where_it_is_not_counts_more_and_hardly_anything_else_does(pattern):
    near = np.hypot(ROWS - 100, COLUMNS - 148) < 16
    n_found, elsewhere = 0, []
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE)) * 0.15
        counts, sampler = looked(column(100, 150) + noise, column(100, 146), pattern)
        n_found += (counts[near] > 1).sum() > 60
        elsewhere.append((counts[~near] > 1).mean())
        assert ((counts == 0) == sampler.is_validation).all()
    assert n_found >= 9  # of one column, chance can hide a half
    assert np.mean(elsewhere) < 3e-4


def row_noise(rng):
    """Correlated by half along rows."""
    white = rng.normal(size=(SIDE, SIDE + 1))
    return (white[:, 1:] + white[:, :-1]) / np.sqrt(2)


def with_hot_pixels(rng):
    noise = rng.normal(size=(SIDE, SIDE))
    noise.flat[rng.permutation(noise.size)[:40]] += 50
    return noise


NOISE = {
    "white": ("cell", lambda rng: rng.normal(size=(SIDE, SIDE))),
    "correlated along rows": ("row", row_noise),
    "hot pixels": ("cell", with_hot_pixels),
    "an electron in 500 pixels": ("cell", lambda rng: rng.poisson(0.002, (SIDE, SIDE)) - 0.002),
    "an electron in 20 pixels": ("cell", lambda rng: rng.poisson(0.05, (SIDE, SIDE)) - 0.05),
    "quiet on one side": (
        "cell",
        lambda rng: rng.normal(size=(SIDE, SIDE)) * np.where(COLUMNS < SIDE / 2, 0.1, 1.0),
    ),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_no_structure(name):
    pattern, noise = NOISE[name]
    shares = [
        float((looked(noise(np.random.default_rng(seed)), 0 * ROWS, pattern)[0] > 1).mean())
        for seed in range(20)
    ]
    assert np.mean(shares) < 3e-4


def noise_along_both_axes(rng):
    """Correlated by half with the next pixel along each axis."""
    white = rng.normal(size=(SIDE + 1, SIDE + 1))
    return (white[1:, 1:] + white[:-1, 1:] + white[1:, :-1] + white[:-1, :-1]) / 2


def test_noise_that_both_halves_share_is_no_structure_but_a_displaced_column_is():
    lines = {"pattern": "row", "stride": 4, "margin": 1}
    found = []
    for seed in range(8):
        noise = noise_along_both_axes(np.random.default_rng(seed))
        counts, _ = looked(noise, 0 * ROWS, **lines)
        found.append((counts > 1).mean())
    assert np.mean(found) < 3e-4
    noise = noise_along_both_axes(np.random.default_rng(0))
    counts, _ = looked(column(100, 150, 2) + 0.3 * noise, column(100, 146, 2), **lines)
    assert (counts[np.hypot(ROWS - 100, COLUMNS - 148) < 16] > 1).sum() > 60


def test_noise_at_the_border_is_no_structure():
    tiles = torch.randn(2000, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not any(
        _missed(tile, torch.ones_like(tile), None, _MISSED, _Blur()).any() for tile in tiles
    )


def test_a_few_pixels_alone_are_no_structure_but_every_other_row_can_show_it():
    residual = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    few = torch.ones_like(residual)
    few[..., 32:64, 32:64] = 0
    alone = residual.clone()
    for half in (0, 1):  # two pixels of each, three apart
        for column in (46, 49):
            few[..., 48 + (column + half) % 2, column] = 1
            alone[..., 48 + (column + half) % 2, column] = 10
    assert not _missed(alone, few, None, _MISSED, _Blur()).any()
    every_other = torch.zeros_like(residual)
    every_other[..., ::2, :] = 1
    assert not _missed(residual, every_other, None, _MISSED, _Blur()).any()
    residual[..., 44:53, 44:53] += 1.8
    assert _missed(residual, every_other, None, _MISSED, _Blur())[..., 44:53, 44:53].any()


def test_what_judges_does_not_choose_what_counts():
    def spoil(sampler):
        near = np.hypot(ROWS - 100, COLUMNS - 148) < 12
        sampler.frame[near & sampler.is_validation] += 100

    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE))
    counts, sampler = looked(noise, 0 * ROWS, spoil=spoil)
    assert sampler.frame.max() > 90
    assert (counts > 1).sum() == (looked(noise, 0 * ROWS)[0] > 1).sum()


def test_every_part_of_a_large_frame_is_looked_at_in_turn(monkeypatch):
    frame = Frame(pixels=np.random.default_rng(0).normal(size=(100, 330)))
    config = tiny_config(patch=32)
    sampler = PatchSampler(frame, config, (8, 8))
    missed = MissedPlaces(sampler, config, torch.device("cpu"))
    seen, n_looked = np.zeros(frame.shape, int), []
    plain = PatchSampler.judged_patch

    def noting(self, crop, turn=0):
        seen[crop] += 1
        n_looked.append(crop)
        return plain(self, crop, turn)

    monkeypatch.setattr(PatchSampler, "judged_patch", noting)
    for _ in range(11):  # 4 x 11 tiles
        missed.look(torch.nn.Identity(), lambda _, s: torch.zeros(len(s), 1, 32, 32))
    assert len(n_looked) == 11 * missed.n_tiles == 44
    assert seen.min() >= 1
    assert (missed.counts <= 1).all()


def test_tiles_are_looked_at_alike_one_by_one_and_together():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(SIDE, SIDE)) * np.where(ROWS < SIDE / 2, 0.01, 1.0)
    shown = column(100, 150, 0.04) + column(30, 200, 0.04) + column(200, 60, 4)
    frame = Frame(pixels=noise + shown)
    config = tiny_config(patch=SIDE // 2)
    found = []
    for at_once in (1, 3, 4):
        sampler = PatchSampler(frame, config, (8, 8))
        missed = MissedPlaces(sampler, config, torch.device("cpu"), at_once)
        missed.look(torch.nn.Identity(), lambda _, s: torch.zeros(len(s), 1, SIDE // 2, SIDE // 2))
        found.append(missed.counts)
    for row, at in (100, 150), (30, 200), (200, 60):  # of the quiet tiles too
        assert (found[0][np.hypot(ROWS - row, COLUMNS - at) < 12] > 1).sum() > 60
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("where", ["kernels", "device"])
def test_pixels_count_in_batches_as_they_are_weighed(where):
    frame = Frame(pixels=np.arange(64.0 * 64).reshape(64, 64))
    config = tiny_config(patch=32)
    sampler = PatchSampler(frame, config, (8, 8))
    patches = sampler
    if where == "device":
        patches = DevicePatches(sampler, config, torch.Generator("cpu").manual_seed(0))
    counts = sampler.counts.copy()
    counts[20:40, 30:50] *= 5
    patches.weigh(counts)
    mean, std = frame.mean_and_std()
    found = set()
    for _ in range(10):
        batch = patches.next_batch()
        place = np.rint(batch.target.numpy() * std + mean).astype(int)
        expected = counts[np.unravel_index(place, frame.shape)]
        counted = batch.counted.numpy()
        assert ((counted == expected) | (counted == 0)).all()
        found |= set(np.unique(counted))
    assert found == {0, 1, 5}


@pytest.mark.parametrize(("weight", "highest"), [(1.0, 1), (7.0, 7)])
def test_a_training_looks_and_lets_them_count(weight, highest, monkeypatch):
    def found(self, network, output):
        self.counts[:8] *= weight

    monkeypatch.setattr(MissedPlaces, "look", found)
    frame = Frame(pixels=np.random.default_rng(0).normal(size=(64, 64)))
    config = tiny_config(steps=8, validation_every=4, missed_weight=weight)
    training = _Training(frame, config)
    training.run(lambda _: None)
    assert training.stepper.patches.counts.max() == highest  # once: not after the last step


def test_preset_paper_learns_from_all_pixels_alike_and_places_alike():
    assert (PRESETS["paper"].missed_weight, PRESETS["paper"].overhang) == (1, 0)


@pytest.mark.parametrize("scale", [1.0, 3.0, 24.0])
def test_gaussians_have_no_numbers_below_the_range_of_float32(scale):
    """A product of matrices that have them takes a CPU ten times as long."""
    gaussian = _Blur()._gaussian(256, scale, torch.device("cpu"))
    assert gaussian.max() == 1
    assert not ((gaussian > 0) & (gaussian < torch.finfo(torch.float32).tiny)).any()
    row = gaussian[128].double()
    assert row.sum() == pytest.approx(scale * (2 * torch.pi) ** 0.5, rel=1e-6)


def test_a_checkpoint_of_before_had_no_missed_places_and_no_overhang():
    values = TrainingConfig.named("fast").to_dict()
    assert TrainingConfig.from_dict(values).missed_weight == 5
    del values["missed_weight"], values["overhang"]
    assert TrainingConfig.from_dict(values) == replace(
        TrainingConfig.named("fast"), missed_weight=1.0, overhang=0.0
    )


def test_what_a_look_draws_can_be_drawn_before_it():
    pixels = np.random.default_rng(0).normal(size=(SIDE, SIDE)) + column(100, 150, 40)
    config = tiny_config(patch=SIDE // 2)
    found = []
    for draws_before in (False, True):
        sampler = PatchSampler(Frame(pixels=pixels), config, (8, 8))
        missed = MissedPlaces(sampler, config, torch.device("cpu"))
        shown = []

        def output(_, subsampled, shown=shown):
            shown.append(subsampled)
            return torch.zeros(len(subsampled), 1, SIDE // 2, SIDE // 2)

        for _ in range(2):
            if draws_before:
                missed.draw_next()
            missed.look(torch.nn.Identity(), output)
        found.append((torch.cat(shown), missed.counts))
    assert torch.equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])
    assert (found[0][1] > 1).any()
