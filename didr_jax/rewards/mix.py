"""Several rewards as one: a weighted sum, held-out rewards beside it, and protection from non-finite samples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from didr_jax.rewards.base import RewardModel
from didr_jax.types import Array, InputError, PyTree, Weights


class MixScore(NamedTuple):
    """`total [b]`: Σ w shape((r - centre)/spread) over the trained rewards, 0 where the sample was dropped;
    `terms {name: [b]}`: every reward, held-out ones too, in published units and never repaired;
    `kept [b]`: False where the image or a trained reward is not finite."""

    total: Array
    terms: dict[str, Array]
    kept: Array


@dataclasses.dataclass(frozen=True)
class RewardMix:
    """`weights {name: w}` of the trained rewards; every other one in `models` is held out: measured, no gradient."""

    models: Mapping[str, RewardModel]
    weights: Mapping[str, float]

    def __post_init__(self):
        absent = sorted(set(self.weights) - set(self.models))
        if absent:
            raise InputError(f"rewards: weights for {', '.join(absent)}, which are not loaded")
        idle = sorted(name for name, w in self.weights.items() if not w)
        if idle:
            raise InputError(f"rewards: weight 0 for {', '.join(idle)}; hold it out instead")

    @property
    def params(self) -> Weights:
        """`{name: parameters}` of all rewards, for `apply` once they are loaded."""
        return Weights.join({name: model.weights for name, model in self.models.items()})

    @property
    def black_boxes(self) -> list[str]:
        """Trained rewards without a gradient; where there are any, only gradient-free estimators apply."""
        return sorted(name for name in self.weights if not self.models[name].differentiable)

    @property
    def differentiable(self) -> bool:
        return not self.black_boxes

    def require_gradient(self, estimator: str) -> None:
        """Raises `InputError` if `estimator`, which needs ∇r, meets a black-box reward."""
        if self.black_boxes:
            raise InputError(
                f"estimator {estimator!r} differentiates the reward, but {', '.join(self.black_boxes)} has no "
                "gradient; use 'covariance'"
            )

    def apart(self) -> "RewardMix":
        """The mix of rewards that take features where they can (`RewardModel.apart`)."""
        return RewardMix({name: model.apart() for name, model in self.models.items()}, self.weights)

    def only(self, name: str) -> "RewardMix":
        """One of the trained rewards alone, at its weight."""
        return RewardMix({name: self.models[name]}, {name: self.weights[name]})

    def tokenize(self, prompts: Sequence[str]) -> PyTree:
        """`{name: tokens}`, numpy arrays with leading axis b."""
        return {name: model.tokenize(prompts) for name, model in self.models.items()}

    def combine(self, scores: Mapping[str, Any]) -> Any:
        """Σ w shape((r − centre)/spread) `[b]` of scores `{name: [b]}` in published units, of the trained rewards."""
        return sum((w * self.models[name].normalise(scores[name]) for name, w in self.weights.items()), 0.0)

    def apply(self, params: PyTree, images: Array, tokens: PyTree) -> MixScore:
        """Scores `images [b, h, w, 3]` in [-1, 1].

        A sample is dropped if its image or any trained score is not finite: its total and its gradient are zero,
        the others' do not change.  Its image is replaced *before* the rewards see it (a NaN that is masked only
        afterwards comes back as 0 · NaN in the backward pass), and a non-finite gradient of a finite score is
        zeroed on its way out.  The gradient that reaches a VAE for a dropped sample is therefore exactly zero; a
        VAE whose own activations are not finite still needs `finite_gradient` at its input.
        """
        finite = jnp.all(jnp.isfinite(images), axis=(1, 2, 3))
        safe = jnp.where(finite[:, None, None, None], images, 0)
        trained, held_out = finite_gradient(safe), jax.lax.stop_gradient(safe)
        scores = {
            name: model.apply(params[name], trained if name in self.weights else held_out, tokens[name])
            for name, model in self.models.items()
        }
        kept = finite
        for name in self.weights:
            kept &= jnp.isfinite(scores[name])
        total = self.combine(scores)
        terms = {name: jnp.where(finite, score, jnp.nan) for name, score in scores.items()}
        return MixScore(jnp.where(kept, total, 0.0), jax.lax.stop_gradient(terms), kept)


@jax.custom_vjp
def finite_gradient(x: Array) -> Array:
    """The identity on `x [b, ...]`, whose backward pass zeroes a sample's gradient unless all of it is finite."""
    return x


def _zero_unless_finite(_, g: Array) -> tuple[Array]:
    ok = jnp.all(jnp.isfinite(g), axis=tuple(range(1, g.ndim)), keepdims=True)
    return (jnp.where(ok, g, 0),)


finite_gradient.defvjp(lambda x: (x, None), _zero_unless_finite)


def readings(score: MixScore) -> dict[str, Array]:
    """What a log says of a mix, `{name: [b]}`, nan where a sample has none: `reward`, the total of samples that were kept,
    and `reward/NAME`, in published units."""
    terms = {f"reward/{name}": jnp.where(jnp.isfinite(r), r, jnp.nan) for name, r in score.terms.items()}
    return {"reward": jnp.where(score.kept, jax.lax.stop_gradient(score.total), jnp.nan), **terms}
