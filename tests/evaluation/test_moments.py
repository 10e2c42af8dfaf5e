"""Moments of features: as exact as float64 on the host, however they are split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax.evaluation import moments
from didr_jax.evaluation.moments import Moments
from didr_jax.types import InputError


def features(n, d=6, offset=0.0, seed=0):
    """Correlated, of very different scales, around `offset`; float32 values."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * 10.0 ** np.arange(-2, d - 2)
    return (rng.normal(size=(n, d)) @ mix.T + offset).astype(np.float32)


def reference(x):
    x = x.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False)


def relative(a, b):
    """Largest error of a covariance, in units of the standard deviations."""
    scale = np.sqrt(np.diag(b))
    return np.abs((a - b) / np.outer(scale, scale)).max()


@functools.cache
def step():
    return jax.jit(moments.add)


def on_device(x, sizes):
    """Through the device's sums in batches of these sizes, the last padded as the collecting loop does."""
    state, start, width = moments.empty(x.shape[1]), 0, max(sizes)
    for size in sizes:
        batch = np.full((width, x.shape[1]), np.nan, np.float32)
        batch[:size] = x[start : start + size]
        state, start = step()(state, batch, np.arange(width) < size), start + size
    assert start == len(x)
    return moments.finish(state)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
@pytest.mark.parametrize("sizes", [[200], [64, 64, 64, 8], [1, 199], [1] * 200], ids=["one", "even", "uneven", "single"])
def test_device_sums_equal_float64_whatever_the_offset_and_the_split(sizes, offset):
    x = features(200, offset=offset)
    mean, covariance = reference(x)
    got = on_device(x, sizes)
    assert got.count == 200
    assert (np.abs(got.mean - mean) / np.sqrt(np.diag(covariance))).max() < 1e-6
    assert relative(got.covariance(), covariance) < 5e-6


def test_many_small_batches_lose_nothing():
    """5,000 additions: a plain float32 sum is wrong by 1e-5 by then, the pair of float32 is not."""
    x = features(5000, d=3)
    state = moments.empty(3)

    @jax.jit
    def run(state, batches):
        return jax.lax.scan(lambda s, b: (moments.add(s, b), None), state, batches)[0]

    got = moments.finish(run(state, jnp.asarray(x)[:, None]))
    assert relative(got.covariance(), reference(x)[1]) < 2e-7
    plain = jax.lax.scan(lambda s, b: (s + jnp.outer(b, b), None), jnp.zeros((3, 3)), jnp.asarray(x) - x[0])[0]
    exact = (x - x[0]).astype(np.float64).T @ (x - x[0])
    state = run(moments.empty(3), jnp.asarray(x)[:, None])
    pair = np.asarray(state.scatter[0], np.float64) + np.asarray(state.scatter[1])
    assert relative(np.asarray(plain, np.float64), exact) > 10 * relative(pair, exact)


@pytest.mark.parametrize("cut", [0, 1, 3, 77, 199, 200])
def test_merging_any_two_parts_equals_the_whole(cut):
    x = features(200, offset=50.0)
    whole, merged = (
        Moments.of(x),
        [Moments.of(p) if len(p) else Moments(0, np.zeros(6), np.zeros((6, 6))) for p in (x[:cut], x[cut:])],
    )
    for a, b in (merged, merged[::-1]):
        got = a.merge(b)
        assert got.count == 200
        np.testing.assert_allclose(got.mean, whole.mean, rtol=1e-12)
        assert relative(got.scatter, whole.scatter) < 1e-12


def test_host_moments_are_numpys():
    x = features(30)
    mean, covariance = reference(x)
    np.testing.assert_allclose(Moments.of(x).mean, mean, rtol=1e-12)
    np.testing.assert_allclose(Moments.of(x).covariance(), covariance, rtol=1e-9)
    np.testing.assert_allclose(Moments.of(x).covariance(ddof=0), np.cov(x.astype(np.float64), rowvar=False, ddof=0), rtol=1e-9)


def test_one_picture_has_no_covariance():
    with pytest.raises(InputError, match="more than 1 pictures, there are 1"):
        Moments.of(features(1)).covariance()
