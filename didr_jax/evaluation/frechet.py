"""FID: the Fréchet distance between Gaussians fitted to the features of two sets of pictures (Heusel et al. 1706.08500).

d² = ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½)
"""

import warnings

import numpy as np
import scipy.linalg

from didr_jax.evaluation.protocols import FID, InceptionProtocol, Measured, named
from didr_jax.evaluation.statistics import Statistics, check_same_protocol
from didr_jax.types import InputError


def _sqrtm(a: np.ndarray, b: np.ndarray, offset: float) -> float:
    """As pytorch-fid, clean-fid and DMD2: Schur's root of the product, with the offset where that is not finite."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a singular product is said in the notes
        root = scipy.linalg.sqrtm(a @ b)
        if not np.isfinite(root).all():
            eye = offset * np.eye(len(a))
            root = scipy.linalg.sqrtm((a + eye) @ (b + eye))
    imaginary = float(np.max(np.abs(np.diagonal(np.imag(root)))))
    if not imaginary <= 1e-3:
        raise InputError(
            f"FID: the root of the covariances' product has an imaginary part of {imaginary:.1g}; take more pictures "
            "or a protocol with root='symmetric'"
        )
    return float(np.trace(np.real(root)))


def _symmetric(a: np.ndarray, b: np.ndarray, _: float) -> float:
    """From the eigenvalues of A^½ B A^½, which are those of AB: real and non-negative by construction, and faster."""
    values, vectors = scipy.linalg.eigh(a)
    half = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return float(np.sum(np.sqrt(np.clip(scipy.linalg.eigvalsh(half @ b @ half), 0, None))))


# name -> (Σ_a, Σ_b, offset) -> tr (Σ_a Σ_b)^½.  The two agree to 1e-7 of the trace.
ROOTS = {"sqrtm": _sqrtm, "symmetric": _symmetric}


def frechet_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray, *, root: str = "sqrtm", offset: float = 1e-6
) -> float:
    """d² between Gaussians with means `[d]` and covariances `[d, d]`, in float64."""
    mean_a, cov_a, mean_b, cov_b = (np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    if mean_a.shape != mean_b.shape or cov_a.shape != cov_b.shape:
        raise InputError(f"FID: features of {len(mean_a)} and of {len(mean_b)} dimensions do not compare")
    apart = mean_a - mean_b
    return float(apart @ apart + np.trace(cov_a) + np.trace(cov_b) - 2 * ROOTS[root](cov_a, cov_b, offset))


def fid(real: Statistics, generated: Statistics, protocol: str | InceptionProtocol) -> Measured:
    """FID between two sets of pictures; patch-FID if the protocol crops.

    Raises:
      InputError: statistics of another protocol; none of means and covariances.
    """
    row = named(FID, protocol)
    notes = check_same_protocol(row, real=real, generated=generated)
    (mean_a, cov_a), (mean_b, cov_b) = real.gaussian(row.ddof), generated.gaussian(row.ddof)
    value = frechet_distance(mean_a, cov_a, mean_b, cov_b, root=row.root, offset=row.offset)
    few = [s.count for s in (real, generated) if s.count is not None and s.count <= len(mean_a)]
    if few:
        notes += (f"biased: {min(few)} pictures do not span {len(mean_a)} dimensions",)
    return Measured("FID", row.name, value, notes=notes)
