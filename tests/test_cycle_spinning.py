"""Half of the draws a line further: which they are, and how two results become one."""

from __future__ import annotations

import numpy as np
import pytest

from n2sr_deploy import SamplingPattern
from n2sr_deploy.cycle_spinning import PoolWeights, n_shifted, pool


@pytest.mark.parametrize("unit", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize(("n", "n_others"), [(1, 1), (2, 2), (3, 2), (16, 5)])
def test_two_results_are_pooled_as_all_their_draws_are_merged(n, n_others, unit):
    outputs = np.random.default_rng(0).normal(50, 9, (n + n_others, 20, 30))
    outputs = (unit * outputs).astype(np.float32)
    mean, std, mean_of_others, std_of_others, *wanted = np.empty((6, 20, 30), np.float32)
    for part, result in (
        (outputs[:n], (mean, std)),
        (outputs[n:], (mean_of_others, std_of_others)),
        (outputs, wanted),
    ):
        ddof = 1 if len(part) > 1 else 0
        result[0][...], result[1][...] = (
            part.mean(0, dtype=np.float64),
            part.std(0, ddof=ddof, dtype=np.float64),
        )
    pool(mean, std, mean_of_others, std_of_others, PoolWeights.of(n, n_others))
    assert np.allclose(mean, wanted[0], rtol=1e-6, atol=0)
    assert np.allclose(std, wanted[1], rtol=1e-4, atol=0)


def test_which_draws_have_their_cells_laid_elsewhere():
    square = (64, 64)
    for name, stride, shift in (
        ("cell", 2, None),
        ("row", 2, (1, 0)),
        ("column", 2, (0, 1)),
        ("row", 4, None),
    ):
        pattern = SamplingPattern.named(name, stride)
        assert pattern.shift == shift
        shifted = [n_shifted(pattern, n, square, square) for n in (1, 2, 3, 4, 5, 6, 7, 32)]
        assert shifted == ([0, 0, 1, 2, 3, 2, 3, 16] if shift else [0] * 8)
