"""Do two scores put the same things in the same order?  Kendall's τ-b.

With C pairs that both scores order alike, D that they order oppositely, n₀ = n(n − 1)/2 pairs in all, n₁ and n₂ of them
tied by the first and the second score,

    τ_b = (C − D) / √((n₀ − n₁)(n₀ − n₂))                                                   (1)

in [−1, 1], and undefined (nan) where one of them ties everything.
"""

import numpy as np


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Equation (1) of two scores `[n]`; nan where it is undefined.

    Example:
      >>> kendall_tau([1, 2, 3, 4], [1, 2, 4, 3])
      0.6666666666666666
    """
    (first, second), n = (np.sign(np.subtract.outer(x, x)) for x in map(np.asarray, (a, b))), len(a)
    upper = np.triu_indices(n, 1)
    one, other = first[upper], second[upper]
    decided = np.sqrt(float(np.count_nonzero(one)) * np.count_nonzero(other))
    return float(np.sum(one * other) / decided) if decided else np.nan
