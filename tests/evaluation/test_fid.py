"""FID and its statistics against restatements without a matrix root, and torch-fidelity's and clean-fid's own functions."""

import numpy as np
import pytest

from didr_jax.evaluation import frechet
from didr_jax.evaluation.frechet import ROOTS, fid, frechet_distance
from didr_jax.evaluation.moments import Moments
from didr_jax.evaluation.protocols import FID, Measured, named
from didr_jax.evaluation.statistics import Statistics, read_statistics, write_statistics
from didr_jax.types import InputError
from tests.parity import fid_oracles as oracles


def features(n, d=24, seed=0):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(d, d)) * np.exp(np.random.default_rng(8).normal(size=d))
    return np.maximum(rng.normal(size=(n, d)) @ mix + 0.3 * seed, 0).astype(np.float32)


X, Y = features(200), features(150, seed=1)


def statistics(x, protocol="clean-fid"):
    return Statistics(features=x, count=len(x), protocol=protocol)


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("n", [200, 12], ids=["full rank", "fewer pictures than dimensions"])
def test_fid_equals_the_nuclear_norm_of_the_features(root, n):
    x, y = X[:n], Y[:n]
    a, b = Moments.of(x), Moments.of(y)
    got = frechet_distance(a.mean, a.covariance(), b.mean, b.covariance(), root=root)
    assert got == pytest.approx(oracles.nuclear_norm_fid(x, y), rel=1e-5)


def test_fid_of_gaussians_on_one_axis_is_the_definition():
    """(μ_a − μ_b)² + (s_a − s_b)² of standard deviations s, summed over independent axes."""
    a, b = np.array([1.0, 4.0, 0.0]), np.array([2.0, 1.0, 9.0])
    want = 3 * 0.5**2 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    for root in ROOTS:
        got = frechet_distance(np.zeros(3), np.diag(a), np.full(3, 0.5), np.diag(b), root=root)
        assert got == pytest.approx(want, rel=1e-9)


def test_fid_equals_torch_fidelitys_function():
    import torch

    module = oracles.import_oracle("torch_fidelity.metric_fid")
    stats = [module.fid_features_to_statistics(torch.from_numpy(x)) for x in (X, Y)]
    want = module.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    got = fid(statistics(X, "torch-fidelity"), statistics(Y, "torch-fidelity"), "torch-fidelity")
    assert got.value == pytest.approx(want, rel=1e-6)


def test_fid_equals_clean_fids_function():
    want = oracles.import_oracle("cleanfid.fid").fid_from_feats(X, Y)
    assert fid(statistics(X), statistics(Y), "clean-fid").value == pytest.approx(want, rel=1e-6)


def test_a_root_that_is_not_finite_is_taken_with_the_offset(monkeypatch):
    calls = []

    def sqrtm(a):
        calls.append(a)
        return np.full_like(a, np.nan) if len(calls) == 1 else real(a)

    real = frechet.scipy.linalg.sqrtm
    monkeypatch.setattr(frechet.scipy.linalg, "sqrtm", sqrtm)
    a = np.diag([1.0, 0.0])
    frechet_distance(np.zeros(2), a, np.zeros(2), a, offset=1e-6)
    np.testing.assert_allclose(calls[1], np.diag([1 + 1e-6, 1e-6]) @ np.diag([1 + 1e-6, 1e-6]))


def test_an_imaginary_root_is_refused_with_the_remedy():
    with pytest.raises(InputError, match="imaginary part.*root='symmetric'"):
        frechet_distance(np.zeros(2), np.diag([1.0, -1.0]), np.zeros(2), np.eye(2))


def test_the_protocols_name_and_the_pictures_are_printed_with_the_number():
    got = fid(statistics(X), statistics(Y), "clean-fid")
    assert str(got) == f"FID {got.value:.6g}  [clean-fid; 200 real; 150 generated]"
    few = fid(statistics(X[:20]), statistics(Y), "clean-fid")
    assert "biased: 20 pictures do not span 24 dimensions" in str(few)
    assert str(Measured("KID", "p", 1.5, 0.25, ("x1000",))) == "KID 1.5 ± 0.25  [p; x1000]"


def test_numbers_of_two_protocols_are_never_mixed():
    with pytest.raises(InputError, match="generated statistics are of protocol 'dmd2', not 'clean-fid'"):
        fid(statistics(X), statistics(Y, "dmd2"), "clean-fid")
    with pytest.raises(InputError, match="'clean-fod' is not known; did you mean clean-fid"):
        fid(statistics(X), statistics(Y), "clean-fod")
    assert "of unstated protocol" in str(fid(statistics(X, None), statistics(Y), "clean-fid"))
    with pytest.raises(InputError, match="24 and of 3 dimensions"):
        fid(statistics(X), statistics(Y[:, :3]), "clean-fid")


def test_a_protocol_says_all_that_moves_its_number():
    text = str(named(FID, "dmd2"))
    for part in ("square", "lanczos 512", "bicubic_float 299", "(x-128)/128", "truncate", "sqrtm", "1e-06", "ddof 1", "100"):
        assert part in text


@pytest.mark.parametrize("names", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
def test_moments_are_read_in_the_usual_spellings(names, tmp_path):
    m = Moments.of(X)
    np.savez(tmp_path / "s.npz", **dict(zip(names, (m.mean, m.covariance()), strict=False)))
    got = read_statistics(tmp_path / "s.npz")
    assert (got.count, got.protocol, got.features) == (None, None, None)
    assert fid(got, statistics(Y), "clean-fid").value == fid(statistics(X), statistics(Y), "clean-fid").value


@pytest.mark.parametrize("name", ["features", "feats", "X"])
def test_features_are_read_in_the_usual_spellings(name, tmp_path):
    np.savez(tmp_path / "s.npz", **{name: X})
    got = read_statistics(tmp_path / "s.npz")
    np.testing.assert_array_equal(got.each("KID"), X)
    np.testing.assert_allclose(got.gaussian()[1], np.cov(X.astype(np.float64), rowvar=False), rtol=1e-9)
    assert got.count == 200


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_written_is_read_again_and_by_others(keep, tmp_path):
    """Others: pytorch-fid's and clean-fid's `numpy.load(file)["mu"]`, without pickles."""
    s = statistics(X) if keep else Statistics.of(Moments.of(X), FID["clean-fid"])
    write_statistics(tmp_path / "sub" / "s.npz", s)
    again = read_statistics(tmp_path / "sub" / "s.npz")
    assert (again.count, again.protocol) == (200, "clean-fid")
    for a, b in zip(again.gaussian(), s.gaussian(), strict=False):
        np.testing.assert_array_equal(a, b)
    with np.load(tmp_path / "sub" / "s.npz") as file:
        np.testing.assert_allclose(file["mu"], X.astype(np.float64).mean(0), rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(X.astype(np.float64), rowvar=False), rtol=1e-9)
    if keep:
        np.testing.assert_array_equal(again.features, X)
    assert not list(tmp_path.rglob("*.partial"))


def test_another_ddof_needs_the_number_of_pictures():
    m = Moments.of(X)
    known = Statistics.of(m, FID["clean-fid"])
    np.testing.assert_allclose(known.gaussian(0)[1], m.scatter / 200)
    with pytest.raises(InputError, match="ddof 1 only"):
        Statistics(m.mean, m.covariance()).gaussian(0)


def test_files_that_are_no_statistics_are_refused(tmp_path):
    with pytest.raises(InputError, match="pickle, which runs code.*numpy.savez"):
        read_statistics(tmp_path / "fid_stats.pkl")
    with pytest.raises(InputError, match="no such file"):
        read_statistics(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(InputError, match="is no .npz"):
        read_statistics(tmp_path / "text.npz")
    np.savez(tmp_path / "object.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(InputError, match="without running code"):
        read_statistics(tmp_path / "object.npz")
    np.savez(tmp_path / "other.npz", arr_0=np.zeros(3))
    with pytest.raises(InputError, match="holds arr_0; mu and sigma, or features"):
        read_statistics(tmp_path / "other.npz")
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(InputError, match=r"mean \[3\], covariance \[4, 4\]"):
        read_statistics(tmp_path / "shape.npz")
    np.savez(tmp_path / "flat.npz", feats=np.zeros(3))
    with pytest.raises(InputError, match=r"features \[3\]"):
        read_statistics(tmp_path / "flat.npz")
    with pytest.raises(InputError, match="must end in .npz"):
        write_statistics(tmp_path / "s.pkl", statistics(X))
