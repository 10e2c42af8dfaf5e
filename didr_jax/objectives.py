"""The Diff-Instruct family as pure functions, and the loss of the online (TA) score network.

Every objective answers one question: in which direction, per sample, should the generator's clean
output x0 move?  It returns G `[b, ...]`, the gradient of its loss with respect to x0, to be pulled
back through the generator by the surrogate ⟨sg(G), x0⟩.  With x_t = α x0 + σ ε and denoisers

    x̂_ψ   TA, the diffused generator's posterior mean: the online network that DMD2 calls the *fake* score,
    x̂_r   reference, after guidance,
    x̂*    = x̂_r + (σ²/α)·DRS, the reward-tilted reference (diffused_reward equation 2),

the family is (method: arXiv 2605.24001; 2305.18455, 2405.14867, 2410.18881, 2410.16794, 2410.20898)

    di       w'·(x̂_ψ − x̂_r)                                                                    (1)
    dmd2     (1) with w' = 1/mean|x0 − x̂_r|                                                     (2)
    didr     w'·(x̂_ψ − x̂*)                                                                     (3)
    dipp     (1) − (1/β) ∇_{x0} r(x0)                                                           (4)
    sim      ∇_{x0} of −w'·d'(y)ᵀ(x̂_ψ − x0),   y = x̂_ψ − x̂_r,   d'(y) = y/√(‖y‖² + c²)         (5)
    distar   (5) − (1/β) ∇_{x0} r(x0)                                                           (6)
    refl     −∇_{x0} r(x0)                                                                      (7)
    sid      ∇_{x0} of −w'·yᵀ(x̂_ψ − x0): (5) for the squared distance, d'(y) = y                (8)

(1) is the gradient of the integral KL divergence ∫ w(t) KL(p_θ,t ‖ p_ref,t) dt when w' = w α²/σ², since
α (s_ψ − s_r) = (α²/σ²)(x̂_ψ − x̂_r) and α = ∂x_t/∂x0.  (5) is score implicit matching in x0 units:
(σ²/α)(s_ψ(x_t) − ∇ log q(x_t|x0)) = x̂_ψ − x0; its gradient flows through x_t into both networks'
inputs, never into their parameters, and through w' not at all.  (8) is score identity distillation (SiD, 2404.04057,
its loss at α = 1) and the squared form of Uni-Instruct; c·(5) tends to it as c grows.

With G come lengths, per sample, that tell what it is made of:

    gap          ‖x̂_ψ − x̂_r‖: how far the TA, and with it the generator, is from the reference
    divergence   of the divergence's part of G: ‖w'·(x̂_ψ − x̂_r)‖ in (1–4), ‖(5)‖ in (5) and (6), ‖(8)‖ in (8)
    pull         of the reward's part of G: ‖w'·(σ²/α)DRS‖ in (3), ‖∇r/β‖ in (4) and (6), ‖∇r‖ in (7)
    tilt         ‖x̂* − x̂_r‖ = ‖(σ²/α)DRS‖ in (3)

Other targets than the paper's change what (3) makes of its gap, its tilt or its reward: `tilts`.

`gap` and `tilt` are lengths in the space of x0.  `divergence` and `pull` are lengths of gradients, with the weight w'
and 1/β in them, so that pull/divergence compares what the generator feels of either, and compares between
objectives: it is what β is tuned by.  In (5) and (6) the divergence counts what averages out over ε, too.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from didr_jax.diffused_reward import diffused_reward_score, predict
from didr_jax.diffusion import add_noise, per_sample, prediction_weight, signal_and_noise
from didr_jax.estimators import Estimate
from didr_jax.schedules import Schedule
from didr_jax.tilts import TILTS, Tilt, outer_estimate, scaled, seen_reward
from didr_jax.types import Array, Denoiser, PRNGKey, Reward

# x̂_r guided, from (x_t, t, x̂_c): the conditional prediction is computed once, by the caller
Guidance = Callable[[Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Bound:
    """What an objective may call; conditions and parameters are closed over.

    Attributes:
      schedule: the noise schedule that all networks share.
      ta: the online score network's denoiser.
      reference: the frozen reference's conditional denoiser.
      guidance: turns x̂_c into the guided x̂_r; None for none.
      reward: `x0 -> r [b]`; None turns the reward off in every objective.
    """

    schedule: Schedule
    ta: Denoiser
    reference: Denoiser
    guidance: Guidance | None = None
    reward: Reward | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The knobs of the objectives; `configs/` states each with its meaning."""

    weighting: str = "dmd2"
    beta: float = 1.0
    estimate: Estimate = Estimate()
    huber: float = 1e-3
    tilt: Tilt = Tilt()


# w'(x0, x̂_r, α, σ), constant with respect to everything
WEIGHTINGS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "dmd2": lambda x0, x_r, α, σ: 1 / jnp.maximum(_mean(jnp.abs(x0 - x_r)), 1e-6),
    "x0": lambda x0, x_r, α, σ: jnp.ones_like(α),
    "ikl": lambda x0, x_r, α, σ: α**2 / σ**2,
}


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _square(x: Array) -> Array:
    """‖x‖² per sample, `[b]`."""
    return jnp.sum(x**2, axis=tuple(range(1, x.ndim)))


def _norm(x: Array) -> Array:
    return jnp.sqrt(_square(x))


def _weight(name: str, nets: Bound, x0: Array, x_r: Array, t: Array) -> Array:
    α, σ = signal_and_noise(nets.schedule, t, x0)
    return jax.lax.stop_gradient(WEIGHTINGS[name](x0, x_r, α, σ))


def _reward_gradient(nets: Bound, x0: Array) -> Array:
    assert nets.reward is not None
    reward = nets.reward
    return jax.grad(lambda x: jnp.sum(reward(x)))(x0)


def _guided(nets: Bound, x_t: Array, t: Array, x_c: Array) -> Array:
    return x_c if nets.guidance is None else nets.guidance(x_t, t, x_c)


def di(x0: Array, noise: Array, t: Array, key: PRNGKey, nets: Bound, settings: Settings) -> tuple[Array, dict]:
    """Diff-Instruct, equation (1).  All objectives share this signature.

    Args:
      x0: the generator's clean samples `[b, ...]`.
      noise: ε, of the same shape.
      t: diffusion times `[b]`.
      key: randomness for stochastic estimators, one key or `[b]`, one for each row; unused here.
      nets: the networks and the reward.
      settings: the knobs.

    Returns:
      G `[b, ...]`, and the figures of its making `{name: [b]}`.
    """
    x_t = add_noise(nets.schedule, x0, noise, t)
    x_r = _guided(nets, x_t, t, nets.reference(x_t, t))
    gap = nets.ta(x_t, t) - x_r
    gradient = _weight(settings.weighting, nets, x0, x_r, t) * gap
    return gradient, {"gap": _norm(gap), "divergence": _norm(gradient)}


def dmd2(x0, noise, t, key, nets, settings):
    """Distribution matching distillation 2 without its GAN, equation (2)."""
    return di(x0, noise, t, key, nets, dataclasses.replace(settings, weighting="dmd2"))


def didr(x0, noise, t, key, nets, settings):
    """Diff-Instruct with diffused reward, equation (3).

    The reference's conditional prediction at x_t is computed once; with its pullback it serves the
    target, the guidance and the estimator.  With the reward off this is `di`, to the last bit.

    A generator that has arrived at the tilted law p* feels the reward pull as hard as the divergence, and rests:

    >>> from didr_jax import closed_form, schedules
    >>> schedule, law = schedules.cosine(), closed_form.GaussianMixture.of([[-1.0], [1.0]], std=0.3)
    >>> reward = closed_form.QuadraticReward(jnp.array([1.0]))
    >>> arrived = law.tilt(reward, beta=1.0).denoiser(schedule)
    >>> nets = Bound(schedule, arrived, law.denoiser(schedule), reward=reward)
    >>> x0, noise, t = jnp.array([[0.7]]), jnp.array([[-0.4]]), jnp.array([0.6])
    >>> gradient, aux = OBJECTIVES["didr"](x0, noise, t, jax.random.key(0), nets, Settings(beta=1.0))
    >>> print(f"{(aux['pull'] / aux['divergence']).item():.3f}", bool(abs(gradient).max() < 1e-4))
    1.000 True
    """
    if nets.reward is None:
        return di(x0, noise, t, key, nets, settings)
    x_t = add_noise(nets.schedule, x0, noise, t)
    x_c, pullback = predict(nets.reference, x_t, t, settings.estimate)
    reward = seen_reward(
        nets.reward, nets.reference, nets.schedule, x0,
        tilt=settings.tilt, beta=settings.beta, estimate=settings.estimate, key=key,
    )  # fmt: skip
    drs = diffused_reward_score(
        reward, nets.reference, nets.schedule, x_t, t, beta=settings.beta,
        estimate=outer_estimate(settings.tilt, settings.estimate), key=key, x_hat=x_c, pullback=pullback, x0=x0,
    )  # fmt: skip
    α, σ = signal_and_noise(nets.schedule, t, x0)
    kind = TILTS[settings.tilt.kind]
    tilt = scaled(kind.pull, settings.tilt, t, σ**2 / α * drs)
    x_r = _guided(nets, x_t, t, x_c)
    gap = nets.ta(x_t, t) - x_r
    held = scaled(kind.gap, settings.tilt, t, gap)
    weight = _weight(settings.weighting, nets, x0, x_r, t)
    aux = {"gap": _norm(gap), "divergence": _norm(weight * held), "pull": _norm(weight * tilt), "tilt": _norm(tilt)}
    return weight * (held - tilt), aux


def dipp(x0, noise, t, key, nets, settings):
    """Diff-Instruct++: the reward acts on the clean sample only, equation (4)."""
    return _with_clean_reward(di, x0, noise, t, key, nets, settings)


def sim(x0: Array, noise: Array, t: Array, key: PRNGKey, nets: Bound, settings: Settings) -> tuple[Array, dict]:
    """Score implicit matching with the pseudo-Huber distance of width `settings.huber`, equation (5)."""
    huber = lambda y: y / per_sample(jnp.sqrt(_square(y) + settings.huber**2), y)
    return _implicit_matching(huber, x0, noise, t, nets, settings)


def sid(x0, noise, t, key, nets, settings):
    """Score identity distillation: score implicit matching with the squared distance, equation (8).

    Its authors' loss is (x̂_r − x̂_ψ)ᵀ((x̂_r − x0) − a (x̂_r − x̂_ψ)) / mean|x0 − x̂_r|.  At a = 1 the second factor is
    x̂_ψ − x0, which leaves −w'·yᵀ(x̂_ψ − x0) with the w' of (2).
    """
    return _implicit_matching(lambda y: y, x0, noise, t, nets, settings)


def _implicit_matching(slope: Callable[[Array], Array], x0, noise, t, nets: Bound, settings: Settings) -> tuple[Array, dict]:
    """∇_{x0} of −w'·d'(y)ᵀ(x̂_ψ − x0), where `slope` is d'."""

    def loss(x0):
        x_t = add_noise(nets.schedule, x0, noise, t)
        x_ta, x_r = nets.ta(x_t, t), _guided(nets, x_t, t, nets.reference(x_t, t))
        y = x_ta - x_r
        weight = _weight(settings.weighting, nets, x0, x_r, t)
        return -jnp.sum(weight * slope(y) * (x_ta - x0)), y

    gradient, y = jax.grad(loss, has_aux=True)(x0)
    return gradient, {"gap": _norm(y), "divergence": _norm(gradient)}


def distar(x0, noise, t, key, nets, settings):
    """Diff-Instruct*: score implicit matching with the reward on the clean sample, equation (6)."""
    return _with_clean_reward(sim, x0, noise, t, key, nets, settings)


def refl(x0, noise, t, key, nets, settings):
    """Reward ascent alone, equation (7): the control that shows what reward hacking looks like."""
    if nets.reward is None:
        raise ValueError("refl is nothing but its reward, and the reward is off")
    pull = _reward_gradient(nets, x0)
    return -pull, {"pull": _norm(pull)}


def _with_clean_reward(divergence, x0, noise, t, key, nets, settings):
    gradient, aux = divergence(x0, noise, t, key, nets, settings)
    if nets.reward is None:
        return gradient, aux
    pull = _reward_gradient(nets, x0) / settings.beta
    return gradient - pull, aux | {"pull": _norm(pull)}


# (x0, noise, t, key, nets, settings) -> (G, aux); `di` says what each is
Gradient = Callable[[Array, Array, Array, PRNGKey, Bound, Settings], tuple[Array, dict]]


class Objective(NamedTuple):
    """An objective and what it asks of its caller; called, it is its `gradient`.

    Attributes:
      gradient: `(x0, noise, t, key, nets, settings) -> (G, aux)`, see `di`.
      needs_reward: without a reward it is another objective, or none: not to be configured without one.
      differentiates_reward: it takes ∇_{x0} r itself, so that a black box will not do.
      estimates: it asks `settings.estimate` for the diffused reward score, which may or may not take ∇_{x0} r.
      through_scores: its gradient flows through the inputs of TA and reference.
      weighting: its w' where a config leaves the choice to it: that of its publication, or DMD2's [ours].
    """

    gradient: Gradient
    needs_reward: bool = False
    differentiates_reward: bool = False
    estimates: bool = False
    through_scores: bool = False
    weighting: str = "dmd2"

    def __call__(self, x0: Array, noise: Array, t: Array, key: PRNGKey, nets: Bound, settings: Settings) -> tuple[Array, dict]:
        return self.gradient(x0, noise, t, key, nets, settings)


OBJECTIVES: dict[str, Objective] = {
    "di": Objective(di, weighting="x0"),
    "dmd2": Objective(dmd2),
    "didr": Objective(didr, needs_reward=True, estimates=True),
    "dipp": Objective(dipp, needs_reward=True, differentiates_reward=True),
    "sim": Objective(sim, through_scores=True),
    "sid": Objective(sid, through_scores=True),
    "distar": Objective(distar, needs_reward=True, differentiates_reward=True, through_scores=True),
    "refl": Objective(refl, needs_reward=True, differentiates_reward=True),
}


def surrogate_loss(gradient: Array, x0: Array) -> Array:
    """⟨sg(G), x0⟩ per sample, `[b]`: the loss whose gradient with respect to x0 is G.

    >>> gradient, x0 = jnp.array([[2.0, -1.0]]), jnp.array([[0.3, 0.4]])
    >>> print(jax.grad(lambda x: surrogate_loss(gradient, x).sum())(x0))
    [[ 2. -1.]]
    """
    return jnp.sum(jax.lax.stop_gradient(gradient) * x0, axis=tuple(range(1, x0.ndim)))


def denoising_loss(denoiser: Denoiser, schedule: Schedule, x0: Array, noise: Array, t: Array, weighting: str) -> Array:
    """Denoising score matching per sample, `[b]`: what trains the TA and the reference.

    Args:
      denoiser: of the network that is trained.
      schedule: noise schedule.
      x0, noise: clean samples and ε, `[b, ...]`.
      t: times `[b]`, with σ(t) > 0.
      weighting: the prediction in whose units the error is measured (a key of
        `diffusion.PREDICTIONS`): "eps" for the ε-loss of SDXL, "velocity" for flow networks, "v" is EDM's
        weighting for data of unit variance where α² + σ² = 1 (and only there), "x0" is none.

    Returns:
      mean over the sample's entries of ‖p̂ − p‖², p the prediction named by `weighting`.

    A denoiser that is off by .1 is off by (α/σ)·.1 in ε, here three times as much:

    >>> from didr_jax.schedules import rectified_flow
    >>> x0, noise, t = jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([0.25])
    >>> off = lambda x_t, t: x0 + 0.1
    >>> for kind in ("x0", "eps"):
    ...     print(denoising_loss(off, rectified_flow(), x0, noise, t, kind).round(4))
    [0.01]
    [0.09]
    """
    x_t = add_noise(schedule, x0, noise, t)
    error = jnp.mean((denoiser(x_t, t) - x0) ** 2, axis=tuple(range(1, x0.ndim)))
    return prediction_weight(weighting, schedule, t) * error
