"""Do two scores put the same things in the same order?  Kendall's τ-b, pair accuracy, and a form that has a gradient.

With C pairs that both scores order alike, D that they order oppositely, n₀ = n(n − 1)/2 pairs in all, n₁ and n₂ of them
tied by the first and the second score,

    τ_b = (C − D) / √((n₀ − n₁)(n₀ − n₂))                                                   (1)

in [−1, 1], and undefined (nan) where one of them ties everything.  Between people's ranking and a reward this is the
trajectory alignment coefficient, where a trajectory is a picture and its start the prompt (TAC, arXiv 2503.05996).  With
y_ij = sign(a_i − a_j) and s_ij = sign(b_i − b_j) equation (1) is

    τ_b = Σ y s / √(Σ y² Σ s²),    and soft-TAC has s_ij = tanh((b_i − b_j)/T)              (2)

(arXiv 2601.16906 puts tanh for the sign; that it stands in the denominator too, so that T → 0 is (1) with ties, is ours).
"""

import jax.numpy as jnp
import numpy as np

from didr_jax.types import Array


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Equation (1) of two scores `[n]`; nan where it is undefined.

    Example:
      >>> kendall_tau([1, 2, 3, 4], [1, 2, 4, 3])
      0.6666666666666666
    """
    one, other = _signs(a), _signs(b)
    decided = np.sqrt(float(np.count_nonzero(one)) * np.count_nonzero(other))
    return float(np.sum(one * other) / decided) if decided else np.nan


def pairs_right(people: np.ndarray, scores: np.ndarray) -> tuple[float, int]:
    """How many of the pairs that people did not tie a score orders as they do, its own ties counted half; and their number.

    Without ties τ = 2 · right/number − 1.

    Example:
      >>> pairs_right([3, 2, 1, 1], [3, 3, 1, 0])
      (4.5, 5)
    """
    one, other = _signs(people), _signs(scores)
    strict = one != 0
    return float(np.sum((1 + one * other)[strict]) / 2), int(np.count_nonzero(strict))


def soft_tac(people: Array, scores: Array, temperature: float = 1.0) -> Array:
    """Equation (2) of people's score and a reward's, `[n]`, differentiable in the reward's; 0 where either ties everything.

    Args:
      people: `[n]`, larger is better; ties are ties.
      scores: `[n]`.
      temperature: T, in units of `scores`: differences well above it count as decided.
    """
    i, j = np.triu_indices(len(people), 1)
    y = jnp.sign(jnp.asarray(people)[i] - jnp.asarray(people)[j])
    s = jnp.tanh((scores[i] - scores[j]) / temperature)
    decided = jnp.sum(y**2) * jnp.sum(s**2)
    return jnp.where(decided > 0, jnp.sum(y * s) / jnp.sqrt(jnp.where(decided > 0, decided, 1.0)), 0.0)


def _signs(x: np.ndarray) -> np.ndarray:
    """sign(x_i − x_j) of all pairs i < j."""
    x = np.asarray(x, np.float64)
    return np.sign(np.subtract.outer(x, x))[np.triu_indices(len(x), 1)]
