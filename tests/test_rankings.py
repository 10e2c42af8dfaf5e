"""Kendall's τ-b against scipy's, with and without ties; pair accuracy by its definition; soft-TAC and its limit."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from didr_jax import rankings
from didr_jax.rankings import kendall_tau, pairs_right, soft_tac


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


def test_pairs_are_counted_as_a_loop_counts_them():
    rng = np.random.default_rng(0)
    people, scores = rng.integers(4, size=12), rng.integers(5, size=12)
    right = number = 0
    for i in range(12):
        for j in range(i):
            if people[i] != people[j]:
                number += 1
                gain = (people[i] - people[j]) * (scores[i] - scores[j])
                right += 1 if gain > 0 else 0.5 if gain == 0 else 0
    assert pairs_right(people, scores) == (right, number)
    a, b = rng.permutation(9), rng.permutation(9)
    right, number = pairs_right(a, b)
    assert kendall_tau(a, b) == pytest.approx(2 * right / number - 1)


@pytest.mark.parametrize("levels", [3, 50])
def test_soft_tac_goes_to_tau_as_its_temperature_goes_to_zero(levels):
    rng = np.random.default_rng(levels)
    people, scores = rng.integers(4, size=20), rng.integers(levels, size=20)
    tau = kendall_tau(people, scores)
    gaps = [abs(float(soft_tac(people, jnp.asarray(scores, jnp.float32), t)) - tau) for t in (10.0, 1.0, 0.05)]
    assert gaps[2] < 1e-6 and gaps[2] < gaps[1] < gaps[0]


def test_soft_tac_has_the_gradient_of_a_finite_difference_and_climbing_it_finds_the_order():
    people = np.array([3.0, 1.0, 2.0, 2.0, 0.0])
    scores = jnp.asarray([0.1, 0.4, -0.3, 0.2, 0.3])
    value, slope = lambda x: soft_tac(people, x), jax.jit(jax.grad(lambda x: soft_tac(people, x)))
    for i in range(5):
        ahead, behind = (float(value(scores.at[i].add(step))) for step in (1e-2, -1e-2))
        assert float(slope(scores)[i]) == pytest.approx((ahead - behind) / 2e-2, abs=2e-3)
    assert kendall_tau(people, scores) < 0
    for _ in range(200):
        scores = scores + 0.1 * slope(scores)
    assert pairs_right(people, scores) == (9, 9)


def test_soft_tac_of_what_is_tied_throughout_is_zero_and_so_is_its_gradient():
    flat = jnp.zeros(4)
    assert float(soft_tac(np.arange(4), flat)) == 0 and float(soft_tac(np.ones(4), jnp.arange(4.0))) == 0
    assert np.isfinite(np.asarray(jax.grad(lambda x: soft_tac(np.arange(4), x))(flat))).all()


def test_the_examples_run():
    result = doctest.testmod(rankings)
    assert result.attempted == 2 and result.failed == 0
