"""Diversity over unit-length features: Vendi score, and how alike the pictures of one prompt are.

    Vendi = exp(−Σ λ log λ),   λ the eigenvalues of K/n,   K_ij = x_i·x_j             (Friedman & Dieng 2210.02410)

the effective number of different pictures: 1 if all are equal, n if all are orthogonal.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg

from didr_jax.evaluation.protocols import DIVERSITY, Measured, Protocol, named
from didr_jax.types import InputError


def vendi_score(features: np.ndarray) -> float:
    """Of features `[n, d]`, brought to unit length; from the smaller of XXᵀ and XᵀX, which share their eigenvalues."""
    x = _unit(features)
    n, d = x.shape
    values = scipy.linalg.eigvalsh((x @ x.T if n < d else x.T @ x) / n)
    values = values[values > 0]
    return float(np.exp(-np.sum(values * np.log(values))))


def mean_similarity(features: np.ndarray) -> float:
    """Mean cosine over the pairs i ≠ j of features `[n, d]`."""
    x = _unit(features)
    n = len(x)
    if n < 2:
        raise InputError("in-prompt diversity: a prompt needs two pictures or more")
    total = x.sum(axis=0)
    return float((total @ total - n) / (n * (n - 1)))


def _unit(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def vendi(features: np.ndarray, protocol: str | Protocol) -> Measured:
    """Vendi score of all pictures' features `[n, d]`."""
    row = named(DIVERSITY, protocol)
    return Measured("Vendi", row.name, vendi_score(features), notes=(f"{len(features)} pictures",))


def in_prompt(features: np.ndarray, protocol: str | Protocol) -> tuple[Measured, Measured]:
    """Of features `[prompts, n, d]`: mean cosine within a prompt (lower is more diverse) and Vendi score within a prompt.

    Means over prompts, with the standard deviations over prompts.
    """
    row = named(DIVERSITY, protocol)
    if np.ndim(features) != 3:
        raise InputError(f"in-prompt diversity takes [prompts, n, d], got {list(np.shape(features))}")
    notes = (f"{len(features)} prompts, {len(features[0])} pictures each",)

    def over_prompts(name: str, function: Callable[[np.ndarray], float]) -> Measured:
        values = [function(x) for x in features]
        return Measured(name, row.name, float(np.mean(values)), float(np.std(values)), notes)

    return over_prompts("in-prompt cosine", mean_similarity), over_prompts("in-prompt Vendi", vendi_score)
