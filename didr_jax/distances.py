"""Distances between sets of samples."""

import numpy as np
import scipy.linalg
import scipy.spatial
import scipy.special
from scipy.spatial.distance import cdist


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ of samples `[n, d]` and `[m, d]` (Székely & Rizzo, 2013).

    The within-set means leave out the pairs (i, i), so that the estimate is unbiased and its
    expectation is zero, not positive, for two samples of one law.

    >>> energy_distance(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
    2.0
    """
    n, m = len(x), len(y)
    within = cdist(x, x).sum() / (n * (n - 1)) + cdist(y, y).sum() / (m * (m - 1))
    return float(2 * cdist(x, y).mean() - within)


def moments(features: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[d]` and covariance `[d, d]` of features `[n, d]`, importance-weighted if weights `[n]` are given."""
    if weights is None:
        weights = np.ones(len(features))
    weights = weights / weights.sum()
    mean = weights @ features
    centred = features - mean
    unbiased = 1 - np.sum(weights**2)
    return mean, (weights[:, None] * centred).T @ centred / unbiased


def frechet_distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) of two (mean, covariance) pairs (Heusel et al., 2017)."""
    root = scipy.linalg.sqrtm(a[1] @ b[1])
    return float(np.sum((a[0] - b[0]) ** 2) + np.trace(a[1] + b[1] - 2 * np.real(root)))


def mahalanobis(features: np.ndarray, law: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Squared distances `[n]` of features `[n, d]` from a (mean, covariance), in units of its spread.

    >>> mahalanobis(np.array([[2.0, 0.0], [0.0, 2.0]]), (np.zeros(2), np.diag([1.0, 4.0])))
    array([4., 1.])
    """
    mean, covariance = law
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    return np.sum(((features - mean) @ root.T) ** 2, -1)


def knn_entropy(x: np.ndarray, k: int = 5) -> float:
    """Differential entropy (nats) of the law that samples `[n, d]` came from (Kozachenko & Leonenko, 1987)."""
    n, d = x.shape
    radius = scipy.spatial.cKDTree(x).query(x, k + 1)[0][:, k]
    log_ball = 0.5 * d * np.log(np.pi) - scipy.special.gammaln(0.5 * d + 1)
    return float(scipy.special.digamma(n) - scipy.special.digamma(k) + log_ball + d * np.mean(np.log(radius + 1e-12)))
