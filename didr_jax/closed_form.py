"""A reference, a reward and their tilted law for which everything is known exactly.

Reference: a mixture of isotropic Gaussians,     p_ref = Σ_k π_k N(μ_k, s_k² I)                 (1)
Reward:    a quadratic,                          r(x) = a·x − ½ c ‖x − m‖²                      (2)

The tilted law p* ∝ p_ref exp(r/β) is a mixture again.  With A = a/β + (c/β) m and C = c/β the
exponent of component k is quadratic, and completing the square gives

    S_k = 1 / (1/s_k² + C)        m_k = S_k (μ_k/s_k² + A)                                      (3)
    log π*_k = log π_k + ½‖m_k‖²/S_k − ½‖μ_k‖²/s_k² + (d/2) log(S_k/s_k²) + const               (4)

A diffused mixture has means α μ_k and variances v_k = α² s_k² + σ², hence its score and, by
Tweedie's formula, its posterior mean E[x0|x_t] are exact at every t.  Since ∇ log p*_t = s_ref + DRS,

    DRS = ∇ log p*_t − ∇ log p_ref,t          tilt = E_{p*}[x0|x_t] − E_ref[x0|x_t]             (5)

are exact too: the truth that every estimator of `diffused_reward` is measured against.
"""

import dataclasses

import jax
import jax.numpy as jnp

from didr_jax.diffusion import signal_and_noise
from didr_jax.schedules import Schedule
from didr_jax.types import Array, PRNGKey


@dataclasses.dataclass(frozen=True)
class QuadraticReward:
    """r(x) = a·x − ½ curvature ‖x − center‖² for `x [b, d]`; equation (2)."""

    slope: Array
    curvature: float = 0.0
    center: Array | float = 0.0

    def __call__(self, x0: Array) -> Array:
        return x0 @ self.slope - 0.5 * self.curvature * jnp.sum((x0 - self.center) ** 2, -1)


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Σ_k π_k N(μ_k, s_k² I): `log_weights [k]`, `means [k, d]`, `variances [k]`.

    A linear reward moves every mode by s²a/β, and mass to those where it is high:

    >>> law = GaussianMixture.of([[-1.0], [1.0]], std=0.5).tilt(QuadraticReward(jnp.array([1.0])), beta=1.0)
    >>> for mean, log_weight in zip(law.means, law.log_weights):
    ...     print(f"{mean.item():5.2f} with weight {jnp.exp(log_weight):.3f}")
    -0.75 with weight 0.119
     1.25 with weight 0.881
    """

    log_weights: Array
    means: Array
    variances: Array

    @classmethod
    def of(cls, means, std, weights=None) -> "GaussianMixture":
        """A mixture with the given `means [k, d]`, a common `std` and equal weights unless given."""
        means = jnp.asarray(means, jnp.float32)
        k = means.shape[0]
        weights = jnp.full(k, 1 / k) if weights is None else jnp.asarray(weights)
        return cls(jnp.log(weights), means, jnp.full(k, float(std) ** 2))

    def tilt(self, reward: QuadraticReward, beta: float) -> "GaussianMixture":
        """p* ∝ p exp(r/β), equations (3) and (4)."""
        shift = (reward.slope + reward.curvature * reward.center) / beta
        variances = 1 / (1 / self.variances + reward.curvature / beta)
        means = variances[:, None] * (self.means / self.variances[:, None] + shift)
        d = self.means.shape[1]
        log_weights = (
            self.log_weights
            + 0.5 * jnp.sum(means**2, -1) / variances
            - 0.5 * jnp.sum(self.means**2, -1) / self.variances
            + 0.5 * d * jnp.log(variances / self.variances)
        )
        return GaussianMixture(jax.nn.log_softmax(log_weights), means, variances)

    def sample(self, key: PRNGKey, num: int) -> Array:
        """`[num, d]` independent draws."""
        which, noise = jax.random.split(key)
        k = jax.random.categorical(which, self.log_weights, shape=(num,))
        z = jax.random.normal(noise, (num, self.means.shape[1]))
        return self.means[k] + jnp.sqrt(self.variances[k])[:, None] * z

    def _log_joint(self, x_t, α, σ):
        """log of π_k N(x_t; α μ_k, v_k I), `[b, k]`, and v_k `[b, k]`."""
        v = α**2 * self.variances + σ**2
        square = jnp.sum((x_t[:, None] - α[..., None] * self.means) ** 2, -1)
        d = x_t.shape[-1]
        return self.log_weights - 0.5 * square / v - 0.5 * d * jnp.log(2 * jnp.pi * v), v

    def log_prob(self, x0: Array) -> Array:
        """log density `[b]` of clean samples `[b, d]`."""
        return jax.nn.logsumexp(self._log_joint(x0, jnp.ones((1, 1)), jnp.zeros((1, 1)))[0], -1)

    def log_prob_t(self, schedule: Schedule, x_t: Array, t: Array) -> Array:
        """log density `[b]` of the diffused mixture at times `t [b]`."""
        return jax.nn.logsumexp(self._log_joint(x_t, *signal_and_noise(schedule, t, x_t))[0], -1)

    def denoiser(self, schedule: Schedule):
        """The exact posterior mean `(x_t, t) -> E[x0 | x_t]`."""

        def posterior_mean(x_t, t):
            α, σ = signal_and_noise(schedule, t, x_t)
            log_joint, v = self._log_joint(x_t, α, σ)
            responsibility = jax.nn.softmax(log_joint, -1)[..., None]
            gain = (α * self.variances / v)[..., None]
            innovation = x_t[:, None] - α[..., None] * self.means
            return jnp.sum(responsibility * (self.means + gain * innovation), 1)

        return posterior_mean


def exact_diffused_reward_score(
    reference: GaussianMixture, reward: QuadraticReward, schedule: Schedule, x_t: Array, t: Array, *, beta: float
) -> Array:
    """DRS `[b, d]` of equation (5), by the difference of the two posterior means."""
    α, σ = signal_and_noise(schedule, t, x_t)
    tilted = reference.tilt(reward, beta).denoiser(schedule)(x_t, t)
    return α / σ**2 * (tilted - reference.denoiser(schedule)(x_t, t))
