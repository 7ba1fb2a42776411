"""What is taken for a hot pixel, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from n2sr_deploy.defects import repair
from n2sr_deploy.frame import Frame
from n2sr_deploy.hot_pixels import hot_pixels

SHAPE = (384, 384)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)


def lattice(spacing, sigma):
    """Columns from 0.2 to 1; of whole spacings, each on a pixel."""

    def comb(u):
        u = (u + spacing / 2) % spacing - spacing / 2
        return sum(np.exp(-((u + k * spacing) ** 2) / (2 * sigma**2)) for k in (-2, -1, 0, 1, 2))

    return 0.2 + 0.8 * comb(Y) * comb(X)


def atoms(n, sigma, rng):
    """At random places, of height 1."""
    clean = np.zeros(SHAPE)
    for y, x in rng.uniform(10, 370, (n, 2)):
        near = slice(int(y) - 7, int(y) + 8), slice(int(x) - 7, int(x) + 8)
        clean[near] += np.exp(-((Y[near] - y) ** 2 + (X[near] - x) ** 2) / (2 * sigma**2))
    return clean


@pytest.mark.parametrize("offset", [0, 500])
@pytest.mark.parametrize("dose", [0.005, 0.02, 0.05, 0.1, 0.3])
def test_single_electrons_of_an_analog_detector_are_no_hot_pixels(dose, offset):
    """At 0.02 a pixel, 941 were replaced, and two thirds of the signal were gone."""
    clean = lattice(14, 2.8)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        electrons = rng.poisson(dose * clean / clean.mean())
        pulses = np.where(electrons > 0, rng.gamma(np.maximum(electrons, 1), 50.0), 0)
        pixels = (offset + pulses + rng.normal(size=SHAPE) * 5).astype(np.float32)
        mended = repair(Frame(pixels=pixels)).frame.pixels
        assert abs(mended.mean() - pixels.mean()) < pixels.std() / SHAPE[0]


def test_what_may_be_the_signal_is_told(caplog):
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=SHAPE) * 5 + 50 * rng.poisson(0.01, SHAPE)
    assert not hot_pixels(pixels).any()
    assert "may be the frame's signal" in caplog.text


@pytest.mark.parametrize("height", [150, 200, 500, 50_000])
@pytest.mark.parametrize("n", [3, 100])
def test_x_rays_in_vacuum_are_no_signal(n, height, caplog):
    rng = np.random.default_rng(n)
    pixels = rng.normal(size=SHAPE) * 10 + 500
    places = rng.choice(pixels.size, n, replace=False)
    pixels.ravel()[places] += height
    found = hot_pixels(pixels)
    assert found.ravel()[places].sum() >= 0.97 * n
    assert found.sum() <= n + 1
    assert not caplog.text


@pytest.mark.parametrize("width", [64, 100, 130])
@pytest.mark.parametrize("std", [2, 5, 20])
def test_a_border_almost_without_noise_makes_no_hot_pixels_beside_it(width, std):
    """1250 pixels of the lattice were: border and lattice lay in one bin of levels."""
    rng = np.random.default_rng(width)
    clean = lattice(14, 2.8)
    pixels = rng.normal(size=SHAPE) * std
    inside = slice(width, -width), slice(width, -width)
    noise = rng.normal(size=SHAPE) * np.sqrt(0.05 * clean + 0.0004)
    pixels[inside] += 1000 * (clean + noise)[inside]
    assert hot_pixels(pixels).sum() <= 1


@pytest.mark.parametrize("sigma", [0.85, 1.0])
@pytest.mark.parametrize("height", [10, 20, 200])
def test_atoms_as_sharp_as_a_lens_makes_them_are_no_hot_pixels(sigma, height):
    """Of 60 atoms of sigma 0.85 and ten times the noise, 15 pixels were."""
    n_hot = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        seen = height * atoms(60, sigma, rng)
        n_hot += hot_pixels(100 + seen + rng.normal(size=SHAPE)).sum()
        n_hot += hot_pixels(rng.poisson(1 + 5 * seen).astype(np.uint16)).sum()
    assert n_hot <= 10  # of 600 atoms


def test_narrow_gaps_between_bright_atoms_are_no_dead_pixels():
    rng = np.random.default_rng(0)
    pixels = 100 + 200 * atoms(1000, 1.0, rng) + rng.normal(size=SHAPE)
    assert hot_pixels(pixels).sum() <= 1


@pytest.mark.parametrize("sigma", [0.85, 1.0])
def test_the_densest_lattice_has_no_hot_pixels(sigma):
    """125 of spacing 4 and sigma 0.85 were."""
    clean = lattice(4, sigma)
    noise = np.random.default_rng(0).normal(size=SHAPE) * np.sqrt(0.0005 * clean)
    assert hot_pixels(clean + noise).sum() <= 2
