"""CMMD: squared maximum mean discrepancy of CLIP embeddings under a Gaussian kernel (Jayasumana et al. 2401.09603).

    k(x, y) = exp(−‖x − y‖²/(2σ²)),     CMMD = 1000 · (mean k(x, x') + mean k(y, y') − 2 mean k(x, y))

Biased: the means run over all pairs, (i, i) too, as published.  The published code sums kernels near 1 in float32, which
moves it by up to 2e-4; here it is float64.
"""

import numpy as np

from didr_jax.evaluation.protocols import CMMD, CmmdProtocol, Measured, named
from didr_jax.evaluation.statistics import Statistics, check_same_protocol
from didr_jax.types import InputError


def gaussian_mmd(x: np.ndarray, y: np.ndarray, sigma: float, chunk: int = 2048) -> float:
    """Biased MMD² between features `[n, d]` and `[m, d]`, in float64, `chunk` rows of the kernel at once."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    mean = lambda a, b: _mean_kernel(a, b, sigma, chunk)
    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def _mean_kernel(x: np.ndarray, y: np.ndarray, sigma: float, chunk: int) -> float:
    norms, total = np.sum(y**2, axis=1), 0.0
    for start in range(0, len(x), chunk):
        rows = x[start : start + chunk]
        squares = np.sum(rows**2, axis=1)[:, None] + norms - 2 * rows @ y.T
        total += float(np.exp(-squares / (2 * sigma**2)).sum())
    return total / (len(x) * len(y))


def cmmd(real: Statistics, generated: Statistics, protocol: str | CmmdProtocol = "cmmd") -> Measured:
    """CMMD between the unit-length embeddings of two sets of pictures.

    Raises:
      InputError: statistics without features or of another protocol; features that are not of unit length.
    """
    row = named(CMMD, protocol)
    notes = check_same_protocol(row, real=real, generated=generated)
    x, y = real.each("CMMD"), generated.each("CMMD")
    if max(np.abs(np.linalg.norm(z, axis=1) - 1).max() for z in (x, y)) > 1e-3:
        raise InputError("CMMD: features that are not of unit length; measure them with clip_pictures")
    value = row.factor * gaussian_mmd(x, y, row.sigma)
    return Measured("CMMD", row.name, value, notes=(*notes, f"x{row.factor:g}"))
