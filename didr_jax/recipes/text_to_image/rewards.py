"""From `config.rewards` to a reward mix."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from didr_jax import rewards
from didr_jax.checks import require_choice
from didr_jax.config import flatten
from didr_jax.diffused_reward import ESTIMATORS, resolve
from didr_jax.objectives import OBJECTIVES
from didr_jax.rewards import REWARDS, RewardMix
from didr_jax.rewards.base import RewardRecord
from didr_jax.rewards.custom import FURTHER, OWN
from didr_jax.tilts import TILTS
from didr_jax.training.contents import digest_at, digests_of
from didr_jax.types import InputError

PER_REWARD = ("weights", "centre", "spread", "shape", "prefix")  # sections with a key for each reward


def chosen(section) -> list[str]:
    """Names of the rewards that the config turns on.

    Raises:
      InputError: one that does not exist is held out or weighted.
    """
    for key in ("held_out", *PER_REWARD):
        for name in section[key]:
            require_choice(f"rewards.{key}", name, REWARDS)
    return [name for name in REWARDS if section[name]]


def open_mix(section, clip_tokenizer: str | None, published: bool = False) -> RewardMix | None:
    """The mix of a config, those trained on that are not held out; None if it has no reward at all.

    Args:
      section: `config.rewards`.
      clip_tokenizer: the pipeline's, for rewards that bring none.
      published: for plans: a reward that lacks a file is the published architecture, without weights or tokenizer.

    Raises:
      InputError: a weight of zero, files that cannot be used.
    """
    arguments = {name: _arguments(name, section, clip_tokenizer, published) for name in chosen(section)}
    own = {name: {key: section[key][name] for key in PER_REWARD[1:]} for name in arguments}
    for name, options in own.items():
        arguments[name] |= {key: value for key, value in options.items() if value not in (None, "")}
    trained = {name: section.weights[name] for name in arguments if name not in section.held_out}
    return rewards.load_mix(trained, [n for n in arguments if n not in trained], arguments) if arguments else None


def _arguments(name: str, section, clip_tokenizer: str | None, published: bool = False) -> dict[str, Any]:
    """Of the reward's loader, from its knobs."""
    record = REWARDS[name]
    given = {argument: section[knob.key] for argument, knob in record.knobs.items()}
    for argument, knob in record.knobs.items():
        if knob.choices:
            require_choice(f"rewards.{knob.key}", given[argument], knob.choices)
    if published and not _is_here(record, given, clip_tokenizer):
        given |= record.published
    for argument, knob in record.knobs.items():
        if given[argument] != "":
            continue
        given[argument] = knob.otherwise(given, clip_tokenizer) if knob.otherwise else None
        if given[argument] is None:
            raise InputError(f"config.rewards.{knob.key} is empty, but the reward {name!r} needs it")
    return given


def rewards_as_they_are(section) -> str:
    """A digest of the config's rewards, of the files that it names, and of those that its own functions are in."""
    flat = flatten(section)
    modules = [sys.modules.get(section[name].partition(":")[0]) for name in OWN if section[name]]
    files = {path: digest_at(path) for module in modules if (path := getattr(module, "__file__", None))}
    return hashlib.blake2b(json.dumps([flat, digests_of(flat), files]).encode(), digest_size=16).hexdigest()


def _is_here(record: RewardRecord, given: Mapping[str, Any], clip_tokenizer: str | None) -> bool:
    """Whether all that a reward reads is on this host: the arguments `given` by its knobs, or what they are otherwise."""
    paths = {argument: knob for argument, knob in record.knobs.items() if knob.files is not None}
    otherwise = lambda knob: knob.otherwise(given, clip_tokenizer) if knob.otherwise else None
    return all(os.path.exists(given[argument] or otherwise(knob) or "") for argument, knob in paths.items())


def require_reward(objective: str, section) -> None:
    """Raises InputError if an objective that needs a trained reward has none, or one is held out that is not there."""
    trained = set(chosen(section)) - set(section.held_out)
    if OBJECTIVES[objective].needs_reward and not trained:
        raise InputError(
            f"config.align.objective = {objective!r} needs a reward and none is configured: "
            f"set one of config.rewards.{{{', '.join(name for name in REWARDS if name not in FURTHER)}}} that is not in config.rewards.held_out"
        )
    idle = [name for name in section.held_out if not section[name] and not REWARDS[name].held_out]
    if idle:
        raise InputError(
            f"config.rewards.held_out names {', '.join(idle)}, which is not configured, so that nothing would be measured: set "
            f"config.rewards.{idle[0]}, or leave it out"
        )


def resolve_estimator(section, mix: RewardMix | None):
    """The stage's section with `estimator="auto"` resolved, checked against what the mix can do.

    Raises:
      InputError: the objective or the estimator differentiates a reward that has no gradient.
    """
    section = section.copy_and_resolve_references()
    if mix is None or mix.differentiable:
        section.estimator = resolve(section.estimator, True, decoded=True)
        return section
    section.estimator = resolve(section.estimator, False, decoded=True)
    objective = OBJECTIVES[section.objective]
    if objective.differentiates_reward:
        mix.require_gradient(section.objective)
    if not objective.estimates:
        return section
    if TILTS[section.get("tilt", "global")].baseline:
        raise InputError(
            f"config.align.tilt = {section.tilt!r} differentiates the reward, but {', '.join(mix.black_boxes)} has no gradient; "
            "use 'anchored' or 'local'"
        )
    if ESTIMATORS[section.estimator].differentiates_reward:
        mix.require_gradient(section.estimator)
    if min(section.num_steps, section.num_samples) < 2:
        raise InputError(
            f"config.align: black-box reward {', '.join(mix.black_boxes)} takes the estimator 'covariance', which "
            f"compares samples: set num_steps and num_samples to 2 or more, not {section.num_steps} "
            f"and {section.num_samples}"
        )
    return section
