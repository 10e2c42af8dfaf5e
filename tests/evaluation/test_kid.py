"""KID and CMMD against their definitions restated in loops, and torch-fidelity's and clean-fid's own functions."""

import dataclasses

import numpy as np
import pytest

from didr_jax.evaluation.cmmd import cmmd, gaussian_mmd
from didr_jax.evaluation.kid import kid, kid_subsets, polynomial_mmd
from didr_jax.evaluation.moments import Moments
from didr_jax.evaluation.protocols import CMMD, FID
from didr_jax.evaluation.statistics import Statistics
from didr_jax.types import InputError
from tests.parity import fid_oracles as oracles


def features(n, seed=0, d=7):
    return np.random.default_rng(seed).gamma(1 + 0.2 * seed, size=(n, d)).astype(np.float32)


X, Y = features(40), features(30, 1)


def statistics(x, protocol="clean-fid"):
    return Statistics(features=x, count=len(x), protocol=protocol)


def test_the_estimate_is_the_definition():
    x, y = features(6).astype(float), features(6, 1).astype(float)
    k = lambda a, b: (a @ b / 7 + 1) ** 3
    pairs = [(i, j) for i in range(6) for j in range(6)]
    want = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / 30 - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 36
    assert polynomial_mmd(x, y) == pytest.approx(want, rel=1e-12)


def test_it_is_unbiased():
    """The mean over subsets of one set against another of the same law is within its error of zero."""
    x, y = features(4000, d=3), features(4000, d=3)[::-1]
    values = kid_subsets(np.roll(x, 7, axis=0), y, subsets=400, size=10, seed=0)
    assert abs(values.mean()) < 3 * values.std() / 20 and values.min() < 0


def test_kid_equals_torch_fidelitys_function():
    import torch

    module = oracles.import_oracle("torch_fidelity.metric_kid")
    want = module.kid_features_to_metric(
        *map(torch.from_numpy, (X, Y)), kid_subsets=100, kid_subset_size=20, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=2020, verbose=False,
    )  # fmt: skip
    row = dataclasses.replace(FID["torch-fidelity"], kid_size=20)
    got = kid(statistics(X, None), statistics(Y, None), row)
    assert got.value == pytest.approx(1000 * want["kernel_inception_distance_mean"], rel=1e-5)
    assert got.spread == pytest.approx(1000 * want["kernel_inception_distance_std"], rel=1e-5)


def test_kid_equals_clean_fids_function():
    """Which draws from the second set first, and from numpy's global state."""
    module = oracles.import_oracle("cleanfid.fid")
    np.random.seed(2020)
    want = module.kernel_distance(X, Y)
    assert kid(statistics(Y), statistics(X), "clean-fid").value == pytest.approx(1000 * want, rel=1e-5)


def test_fewer_pictures_than_a_subset_are_all_taken_or_refused_as_the_protocol_says():
    got = kid(statistics(X), statistics(Y), "clean-fid")
    assert str(got).endswith("[clean-fid; 40 real; 30 generated; x1000; 100 subsets of 30]")
    with pytest.raises(InputError, match="subsets of 1000 and there are 30 pictures.*kid_fewer='all'"):
        kid(statistics(X, None), statistics(Y, None), "torch-fidelity")
    with pytest.raises(InputError, match="two are the least"):
        kid(statistics(X), statistics(Y[:1]), "clean-fid")


def test_moments_alone_are_refused():
    with pytest.raises(InputError, match="KID needs features.*keep=True"):
        kid(statistics(X), Statistics.of(Moments.of(Y), FID["clean-fid"]), "clean-fid")


def units(n, seed):
    x = features(n, seed)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_cmmd_is_the_published_definition():
    """Restated pair by pair; in chunks that do not divide the set."""
    x, y = units(11, 0).astype(float), units(9, 1).astype(float)
    k = lambda a, b: np.mean([[np.exp(-np.sum((p - q) ** 2) / 200) for q in b] for p in a])
    want = k(x, x) + k(y, y) - 2 * k(x, y)
    assert gaussian_mmd(x, y, 10.0, chunk=4) == pytest.approx(want, rel=1e-9)
    got = cmmd(statistics(x, "cmmd"), statistics(y, "cmmd"))
    assert got.value == pytest.approx(1000 * want, rel=1e-9) and "[cmmd; 11 real; 9 generated; x1000]" in str(got)


def test_cmmd_equals_googles_function_to_float32():
    """google-research/cmmd distance.py, restated in float32 as it is written."""
    x, y = units(40, 0), units(30, 1)

    def mean(a, b):
        squares = -2 * a @ b.T + np.diag(a @ a.T)[:, None] + np.diag(b @ b.T)[None]
        return np.mean(np.exp(-(1 / (2 * np.float32(10) ** 2)) * squares))

    want = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(statistics(x, "cmmd"), statistics(y, "cmmd")).value == pytest.approx(want, abs=1e-3)


def test_cmmd_is_zero_of_a_set_with_itself_and_refuses_features_of_another_length():
    x = units(20, 0)
    assert abs(cmmd(statistics(x, "cmmd"), statistics(x, "cmmd")).value) < 1e-9
    with pytest.raises(InputError, match="not of unit length"):
        cmmd(statistics(X, "cmmd"), statistics(x, "cmmd"))
    assert CMMD["cmmd"].sigma == 10 and CMMD["cmmd"].factor == 1000
