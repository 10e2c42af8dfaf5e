"""Distances against the closed forms of Gaussians."""

import numpy as np

from didr_jax.distances import energy_distance, frechet_distance, knn_entropy, moments


def test_energy_distance_of_one_law_is_zero_on_average_and_of_two_points_is_exact():
    rng = np.random.default_rng(0)
    values = [energy_distance(rng.standard_normal((200, 2)), rng.standard_normal((200, 2))) for _ in range(50)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(50)
    two_points = energy_distance(np.zeros((10, 1)), np.full((10, 1), 3.0))
    np.testing.assert_allclose(two_points, 6.0)


def test_frechet_distance_of_gaussians():
    """Diagonal: ‖Δμ‖² + Σ (√a − √b)²."""
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 1.0])
    np.testing.assert_allclose(frechet_distance((np.zeros(2), a), (np.ones(2), b)), 2 + 4 + 1, rtol=1e-9)


def test_weighted_moments_are_those_of_the_tilted_law():
    """N(0, 1) weighted by exp(a x) is N(a, 1)."""
    x = np.random.default_rng(1).standard_normal((200_000, 1))
    mean, covariance = moments(x, np.exp(0.5 * x[:, 0]))
    np.testing.assert_allclose([mean[0], covariance[0, 0]], [0.5, 1.0], atol=0.02)


def test_unweighted_moments_are_numpys():
    x = np.random.default_rng(2).standard_normal((50, 3))
    mean, covariance = moments(x)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(covariance, np.cov(x.T))


def test_entropy_of_a_gaussian():
    """½ log det(2πe Σ); the estimator's error at 20,000 points is about .01."""
    x = np.random.default_rng(3).standard_normal((20_000, 2)) * [1.0, 3.0]
    exact = np.log(2 * np.pi * np.e) + np.log(3.0)
    np.testing.assert_allclose(knn_entropy(x), exact, atol=0.04)
