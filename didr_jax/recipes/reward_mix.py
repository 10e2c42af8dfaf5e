"""From `config.rewards` to a reward mix."""

import jax.numpy as jnp

from didr_jax import rewards
from didr_jax.diffused_reward import ESTIMATORS, resolve
from didr_jax.rewards import RewardMix, RewardModel
from didr_jax.types import InputError

# reward -> {argument of its loader: config.rewards key that fills it}; `dtype` and `remat` are common.
NETWORKS = {
    "hps": {"weights": "hps", "tokenizer": "clip_tokenizer"},
    "pickscore": {"weights": "pickscore", "tokenizer": "clip_tokenizer"},
    "imagereward": {"weights": "imagereward", "tokenizer": "bert_tokenizer"},
    "clipscore": {"weights": "clipscore", "tokenizer": "clip_tokenizer"},
    "aesthetic": {"weights": "aesthetic", "clip": "clip"},
}
CUSTOM = {"path": "custom", "differentiable": "custom_differentiable"}


def chosen(section) -> list[str]:
    """Names of the rewards that the config gives weights for."""
    return [name for name in (*NETWORKS, "custom") if section[name]]


def _options(section, name: str, clip_tokenizer: str | None) -> dict:
    if name == "custom":
        return {argument: section[key] for argument, key in CUSTOM.items()}
    options = {argument: section[key] for argument, key in NETWORKS[name].items()}
    if options.get("tokenizer") == "" and name in ("pickscore", "clipscore"):
        options["tokenizer"] = None  # their own folder has one
    elif options.get("tokenizer") == "" and name == "hps":
        options["tokenizer"] = clip_tokenizer
    for argument, value in options.items():
        if not value and (name, argument) not in (("pickscore", "tokenizer"), ("clipscore", "tokenizer")):
            raise InputError(f"config.rewards.{NETWORKS[name][argument]} is empty, but the reward {name!r} needs it")
    return options | {"dtype": jnp.dtype(section.dtype), "remat": section.remat}


def load_rewards(section, clip_tokenizer: str | None) -> list[RewardModel]:
    """All rewards of a config, trained and held out."""
    return [rewards.load(name, _options(section, name, clip_tokenizer)) for name in chosen(section)]


def load_mix(section, clip_tokenizer: str | None) -> RewardMix | None:
    """The mix of a config; None if it has no reward at all.

    Raises:
      InputError: a weight of zero, weights or tokenizers that cannot be used.
    """
    held_out = [name for name in section.held_out if section[name]]
    models = {model.name: model for model in load_rewards(section, clip_tokenizer)}
    return RewardMix(models, {n: section.weights[n] for n in models if n not in held_out}) if models else None


def require_reward(objective: str, section) -> None:
    """Raises InputError if an objective that needs a trained reward has none."""
    trained = set(chosen(section)) - set(section.held_out)
    if objective in ("didr", "dipp", "distar", "refl") and not trained:
        names = ", ".join((*NETWORKS, "custom"))
        raise InputError(
            f"config.align.objective = {objective!r} needs a reward and none is configured: "
            f"set one of config.rewards.{{{names}}} that is not in config.rewards.held_out"
        )


def resolve_estimator(section, mix: RewardMix):
    """The stage's section with `estimator="auto"` resolved, checked against what the mix can do.

    Raises:
      InputError: the objective or the estimator differentiates a reward that has no gradient.
    """
    section = section.copy_and_resolve_references()
    differentiable = mix is None or mix.differentiable
    section.estimator = resolve(section.estimator, differentiable)
    if differentiable:
        return section
    if section.objective in ("dipp", "distar", "refl"):
        mix.require_gradient(section.objective)
    if section.objective == "didr" and ESTIMATORS[section.estimator].differentiates_reward:
        mix.require_gradient(section.estimator)
    if section.objective == "didr" and min(section.num_steps, section.num_samples) < 2:
        raise InputError(
            f"config.align: black-box reward {', '.join(mix.black_boxes)} takes the estimator 'covariance', which "
            f"compares samples: set num_steps and num_samples to 2 or more, not {section.num_steps} "
            f"and {section.num_samples}"
        )
    return section
