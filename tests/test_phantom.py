"""The phantom and its noise are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from n2sr_deploy.errors import SettingError
from n2sr_deploy.phantom import clean_phantom, noisy_draw


@pytest.mark.parametrize(("gain", "read_noise"), [(0.05, 0.02), (0.0, 0.1), (0.5, 0.0)])
def test_noise_has_the_variance_it_says(gain, read_noise):
    clean = clean_phantom((256, 256))
    noise = noisy_draw(clean, gain=gain, read_noise=read_noise) - clean
    for low, high in ((0.25, 0.35), (0.35, 0.45), (0.45, 0.65)):
        there = (clean >= low) & (clean < high)
        expected = gain * clean[there].mean() + read_noise**2
        assert noise[there].var() == pytest.approx(expected, rel=0.1)


def test_a_seed_repeats_and_another_does_not():
    clean = clean_phantom((64, 64), spacing=10, seed=1)
    assert np.array_equal(clean, clean_phantom((64, 64), spacing=10, seed=1))
    a, b, c = (noisy_draw(clean, gain=0.1, read_noise=0, seed=s) for s in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_phantom_has_structure_where_it_should():
    clean = clean_phantom((512, 512))
    assert (clean.min(), clean.max()) == pytest.approx((0.25, 0.65))
    vacuum, support = clean[:40], clean[400:]
    assert support.std() > 5 * vacuum.std()


@pytest.mark.parametrize("seed", range(3))
def test_the_noise_of_a_seed_is_not_its_film(seed):
    """In vacuum there is only film: the same random numbers, if it were made of the noise's."""
    vacuum, spacing = slice(0, 60), 8
    clean = clean_phantom((512, 512), spacing=spacing, seed=seed)
    noise = noisy_draw(clean, gain=0, read_noise=1, seed=seed) - clean
    smooth = gaussian_filter(noise, spacing / 4) - gaussian_filter(noise, spacing / 2)
    common = np.corrcoef(clean[vacuum].ravel(), smooth[vacuum].ravel())[0, 1]
    assert abs(common) < 0.2


def test_bad_settings():
    with pytest.raises(SettingError, match="at least 4"):
        clean_phantom((64, 64), spacing=0)
    with pytest.raises(SettingError, match="read_noise is nan"):
        noisy_draw(np.ones((4, 4)), gain=0, read_noise=np.nan)
