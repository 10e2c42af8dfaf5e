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
# reward -> arguments with which its loader reads nothing and has its published architecture.
PUBLISHED = {
    "hps": {"weights": None, "tokenizer": None},
    "pickscore": {"weights": None, "arch": "ViT-H-14"},
    "imagereward": {"weights": None, "tokenizer": None},
    "clipscore": {"weights": None, "arch": "ViT-L-14-quickgelu"},
    "aesthetic": {"weights": None, "clip": None, "arch": "ViT-L-14-quickgelu"},
}
REWARDED = ("didr", "dipp", "distar", "refl")  # objectives that need a reward
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
    return options | _kinds(section)


def _kinds(section) -> dict:
    return {"dtype": jnp.dtype(section.dtype), "remat": section.remat}


def load_rewards(section, clip_tokenizer: str | None) -> list[RewardModel]:
    """All rewards of a config, trained and held out."""
    return [rewards.load(name, _options(section, name, clip_tokenizer)) for name in chosen(section)]


def load_mix(section, clip_tokenizer: str | None) -> RewardMix | None:
    """The mix of a config; None if it has no reward at all.

    Raises:
      InputError: a weight of zero, weights or tokenizers that cannot be used.
    """
    return _mix(section, {name: _options(section, name, clip_tokenizer) for name in chosen(section)})


def outline_mix(objective: str, section) -> RewardMix | None:
    """The mix of a config as shapes, for plans: published architectures, whatever the paths.  HPSv2.1 alone if the
    objective needs a reward and none is chosen."""
    names = chosen(section) or (["hps"] if objective in REWARDED else [])
    published = lambda name: _options(section, name, None) if name == "custom" else PUBLISHED[name] | _kinds(section)
    return _mix(section, {name: published(name) for name in names})


def _mix(section, options: dict[str, dict]) -> RewardMix | None:
    """The mix of the rewards with these loaders' arguments; those that are not held out are trained on."""
    trained = {name: section.weights[name] for name in options if name not in section.held_out}
    return rewards.load_mix(trained, [name for name in options if name not in trained], options) if options else None


def require_reward(objective: str, section) -> None:
    """Raises InputError if an objective that needs a trained reward has none."""
    trained = set(chosen(section)) - set(section.held_out)
    if objective in REWARDED and not trained:
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
