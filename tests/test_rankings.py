"""Kendall's τ-b against scipy's, with and without ties."""

import doctest

import numpy as np
import pytest
import scipy.stats

from didr_jax import rankings
from didr_jax.rankings import kendall_tau


@pytest.mark.parametrize("levels", [2, 3, 7, 1000])
def test_it_is_scipys_whatever_the_ties(levels):
    rng = np.random.default_rng(levels)
    for n in (2, 3, 5, 20, 61):
        a, b = rng.integers(levels, size=(2, n))
        np.testing.assert_allclose(kendall_tau(a, b), scipy.stats.kendalltau(a, b).statistic, atol=1e-12)


def test_where_one_side_ties_everything_nothing_is_said():
    assert (
        np.isnan(kendall_tau([1, 1, 1], [1, 2, 3])) and np.isnan(kendall_tau([1, 2], [0, 0])) and np.isnan(kendall_tau([1], [2]))
    )


def test_the_example_runs():
    result = doctest.testmod(rankings)
    assert result.attempted > 0 and result.failed == 0
