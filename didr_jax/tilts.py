"""Which law the reward makes of the reference: the tilt p* of the paper, and three that move less mass between modes.

Let ℓ = r/β, and V_t0 be what a noisy image x_t0 lets one expect of it,

    V_t0(x_t0) = log E_ref[exp ℓ(x0) | x_t0]                                                     (1)

The paper's target p* ∝ p_ref exp ℓ is two tilts in one: of the layouts, p*_t0 ∝ p_ref,t0 exp V_t0, and of the images of
each layout, p*(x0 | x_t0) = p_ref(x0 | x_t0) exp(ℓ(x0) − V_t0(x_t0)).  The first moves mass *between* modes: the cheapest
way to a reward in KL, and a dear one for any distance that transports (Fréchet's among them).

    global      p*: minimises ∫ w KL(p_t ‖ p*_t) dt                                              (2)
    local       (2) below t0 and the reference itself above:
                ∫_{t ≤ t0} w KL(p_t ‖ p*_t) dt + ∫_{t > t0} w KL(p_t ‖ p_ref,t) dt               (3)
    anchored    both above t0:  ∫ w KL(p_t ‖ p*_t) dt + a ∫_{t ≥ t0} w KL(p_t ‖ p_ref,t) dt      (4)
    advantage   (2) for the reward less a baseline for its layout, as GRPO's for its prompt:
                p_adv ∝ p_ref exp ℓ_adv,    ℓ_adv(x0) = ℓ(x0) − E_ε[V_t0(α0 x0 + σ0 ε)]          (5)
                ∇ℓ_adv(x0) = ∇ℓ(x0) − α0 E_ε[DRS_t0(α0 x0 + σ0 ε)]                               (6)

(3) and (4) are convex in the law of the generator, so each has one minimiser.  Their gradients are `objectives` (3) with
the tilt, or the gap, times a number for each t: they cost nothing.  As w·KL to p*_t is w·KL to p_ref,t less w·E[V_t]
and a constant, (4) rewards like DIDR at every noise level but holds on 1 + a times as fast where only the layout is seen.

(6) is one more diffused reward score, here of one ε for each estimate; E_ε inside of ∇ and log would be exact only
where DRS_t0 hardly depends on ε, so the law that is reached is nearer to (5) the smaller t0 is.
Dropping the tilt of the layouts altogether gives p_loc = ∫ p_ref,t0(x_t0) p*(x0 | x_t0) dx_t0, which is the tilt of p_ref by

    ℓ_loc(x0) = ℓ(x0) + log E_ε[exp(−V_t0(α0 x0 + σ0 ε))]  ≥  ℓ_adv(x0)  (Jensen)                (7)

of which (5) is the first order.  With s0 = σ0/α0:

    t0 → 1     x_t0 says nothing, V is constant: p_adv = p*                                      (8)
    t0 → 0     p_loc = p_ref − s0² ∇·(p_ref ∇ℓ) + O(s0⁴): every image moves by s0²∇ℓ, as by DI++, and
               p_adv = p_loc − ½ s0² p_ref (‖∇ℓ‖² − E‖∇ℓ‖²) + O(s0⁴)                             (9)
    p_ref = N(μ, Σ), ℓ = λ·x0:  p_adv = p_loc = N(μ + C0 λ, Σ),  C0 = (Σ⁻¹ + 1/s0²)⁻¹, p* has Σ  (10)

The price is a ceiling: p_loc never has more reward than the best image of each layout, averaged over the reference's
layouts, whatever β.  β has another meaning for each tilt: compare at equal reward, not at equal β.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from didr_jax import keys
from didr_jax.diffused_reward import diffused_reward_score, estimator_of
from didr_jax.diffusion import add_noise, per_sample, signal_and_noise
from didr_jax.estimators import Estimate, inner
from didr_jax.schedules import Schedule
from didr_jax.types import Array, Denoiser, PRNGKey, Reward


@dataclasses.dataclass(frozen=True)
class Tilt:
    """A target and its knobs, as one value.

    Attributes:
      kind: a key of `TILTS`.
      t0: the time in (0, 1] above which an image is a layout; at 1 `local` and `advantage` are `global`, to the last bit.
      anchor: a ≥ 0 of `anchored`, equation (4); at 0 it is `global`, to the last bit.

    Raises:
      ValueError: a knob out of its range; the message begins with the name of its config key.
    """

    kind: str = "global"
    t0: float = 0.5
    anchor: float = 2.0

    def __post_init__(self):
        if self.kind not in TILTS:
            raise ValueError(f"tilt = {self.kind!r}: one of {', '.join(TILTS)}")
        if not 0 < self.t0 <= 1:
            raise ValueError(f"tilt_t0 = {self.t0!r}: must lie in (0, 1]")
        if not 0 <= self.anchor < float("inf"):
            raise ValueError(f"tilt_anchor = {self.anchor!r}: must be 0 or more, and finite")


class Kind(NamedTuple):
    """What a kind of tilt changes in `objectives` (3); None: nothing.

    `gap` and `pull`, `(t [b], Tilt) -> [b]`, are what the gap and (σ²/α)DRS are multiplied by at t; `baseline` says
    whether the estimator is shown (5) in the reward's place.
    """

    gap: Callable[[Array, Tilt], Array] | None = None
    pull: Callable[[Array, Tilt], Array] | None = None
    baseline: bool = False


TILTS: dict[str, Kind] = {
    "global": Kind(),
    "local": Kind(pull=lambda t, tilt: jnp.where(t <= tilt.t0, 1.0, 0.0)),
    "anchored": Kind(gap=lambda t, tilt: jnp.where(t >= tilt.t0, 1.0 + tilt.anchor, 1.0)),
    "advantage": Kind(baseline=True),
}


def scaled(factor: Callable[[Array, Tilt], Array] | None, tilt: Tilt, t: Array, part: Array) -> Array:
    """`part [b, ...]` times a factor of its `Kind`; itself where that has none."""
    return part if factor is None else per_sample(factor(t, tilt), part).astype(part.dtype) * part


def check_estimate(tilt: Tilt, estimate: Estimate) -> None:
    """Raises ValueError if the estimator weighs samples by ℓ: of ℓ_adv only the gradient is known."""
    if TILTS[tilt.kind].baseline and estimator_of(estimate).stochastic(estimate.num_steps):
        raise ValueError(
            f"tilt = {tilt.kind!r} knows only the gradient of its exponent, and estimator {estimate.estimator!r} with "
            f"num_steps={estimate.num_steps} weighs samples by its value: take shifted, or conjugate with num_steps=1"
        )


def outer_estimate(tilt: Tilt, estimate: Estimate) -> Estimate:
    """How DRS is estimated of what `seen_reward` returns: without the guard, which judges by the values of ℓ, where only
    the gradient is that of the target."""
    return dataclasses.replace(estimate, guard=False) if TILTS[tilt.kind].baseline and tilt.t0 < 1 else estimate


def seen_reward(
    reward: Reward,
    denoiser: Denoiser,
    schedule: Schedule,
    like: Array,
    *,
    tilt: Tilt,
    beta: float,
    estimate: Estimate,
    key: PRNGKey,
) -> Reward:
    """The reward that the estimator of DRS is shown.

    Args:
      reward: `x0 [b, ...] -> r [b]`.
      denoiser: the frozen reference, `(x_t, t) -> x̂0`, without guidance.
      schedule: the noise schedule.
      like: `[b, ...]`, shape and type of x0.
      tilt: the target.
      beta: temperature β > 0.
      estimate: how the inner DRS of (6) is estimated, as the outer one.
      key: of ε, one key or `[b]`, one for each row.

    Returns:
      `reward` itself, or for `advantage` below t0 = 1 a function with r's value and the gradient β∇ℓ_adv, equation (6).

    Raises:
      ValueError: see `check_estimate`.

    On N(0, 1) a linear reward moves the mean by C0/β instead of 1/β, equation (10); C0 is ½ where α0 = σ0:

    >>> from didr_jax.schedules import rectified_flow
    >>> flow = rectified_flow()
    >>> normal = lambda x_t, t: per_sample(flow.alpha(t) / (flow.alpha(t) ** 2 + flow.sigma(t) ** 2), x_t) * x_t
    >>> seen = seen_reward(lambda x0: x0[:, 0], normal, flow, jnp.zeros((1, 1)), tilt=Tilt("advantage", t0=0.5), beta=1.0,
    ...                    estimate=Estimate("shifted", max_shift=None), key=jax.random.key(0))
    >>> print(jax.grad(lambda x0: seen(x0).sum())(jnp.array([[0.3]])).round(3))
    [[0.5]]
    """
    check_estimate(tilt, estimate)
    if not TILTS[tilt.kind].baseline or tilt.t0 == 1.0:
        return reward
    noise = keys.normal(key, like)
    t0 = schedule.snap(jnp.full(like.shape[:1], tilt.t0))
    α0, _ = signal_and_noise(schedule, t0, like)

    def advantage(x0):
        here = jax.lax.stop_gradient(x0)
        x_t0 = add_noise(schedule, here, noise, t0)
        drs = diffused_reward_score(reward, denoiser, schedule, x_t0, t0, beta=beta, estimate=estimate, x0=here)
        return reward(x0) - inner(jax.lax.stop_gradient(beta * α0 * drs), x0 - here)

    return advantage
