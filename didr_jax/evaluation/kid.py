"""KID: squared maximum mean discrepancy of Inception features under a cubic kernel (Bińkowski et al. 1801.01401).

    k(x, y) = (x·y/d + 1)³,     MMD²_u = Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] / (m(m − 1)) − 2 Σ_{ij} k(x_i, y_j) / m²

Unbiased, so that its expectation is zero for two samples of one law, and small samples do; it may be negative.
"""

import numpy as np

from didr_jax.evaluation.protocols import FID, InceptionProtocol, Measured, named
from didr_jax.evaluation.statistics import Statistics, check_same_protocol
from didr_jax.types import InputError

FACTOR = 1000  # as most publish it


def polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """MMD²_u between features `[m, d]` and `[m, d]`, in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    m, d = x.shape
    kernel = lambda a, b: (a @ b.T / d + 1) ** 3
    within = 0.0
    for k in (kernel(x, x), kernel(y, y)):
        within += k.sum() - np.trace(k)
    return float(within / (m * (m - 1)) - 2 * kernel(x, y).mean())


def kid_subsets(x: np.ndarray, y: np.ndarray, *, subsets: int, size: int, seed: int) -> np.ndarray:
    """MMD²_u of random subsets of `size` of features `[n, d]` and `[m, d]` -> `[subsets]`.

    Drawn as torch-fidelity does, so that one seed picks the same pictures in both.
    """
    rng = np.random.RandomState(seed)
    draw = lambda features: features[rng.choice(len(features), size, replace=False)]
    return np.array([polynomial_mmd(draw(x), draw(y)) for _ in range(subsets)])


def kid(real: Statistics, generated: Statistics, protocol: str | InceptionProtocol) -> Measured:
    """KID x 1000, with the standard deviation over subsets.

    Raises:
      InputError: statistics without features or of another protocol; too few pictures for a protocol that refuses them.
    """
    row = named(FID, protocol)
    notes = check_same_protocol(row, real=real, generated=generated)
    x, y = real.each("KID"), generated.each("KID")
    few = min(len(x), len(y))
    if few < row.kid_size and row.kid_fewer == "refuse":
        raise InputError(
            f"KID: protocol {row.name!r} takes subsets of {row.kid_size} and there are {few} pictures; take more, or a row "
            "with kid_fewer='all' or a smaller kid_size, under another name"
        )
    size = min(few, row.kid_size)
    if size < 2:
        raise InputError(f"KID: {few} picture is too few, two are the least")
    values = kid_subsets(x, y, subsets=row.kid_subsets, size=size, seed=row.kid_seed)
    notes += (f"x{FACTOR}", f"{row.kid_subsets} subsets of {size}")
    return Measured("KID", row.name, FACTOR * float(values.mean()), FACTOR * float(values.std()), notes)
