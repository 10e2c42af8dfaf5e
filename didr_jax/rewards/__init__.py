"""Rewards r(x0, c): pure functions of an image in [-1, 1] and a tokenised prompt.

`REWARDS` is the table of them.  A reward's file says all about it in one record: how it is loaded, what it scores, its
knobs in `config.rewards`, its published architecture.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from didr_jax.checks import nearest
from didr_jax.rewards import aesthetic, clipscore, custom, dfn, hps, imagereward, pickscore
from didr_jax.rewards.base import Knob, RewardModel, RewardRecord
from didr_jax.rewards.mix import MixScore, RewardMix, finite_gradient, readings
from didr_jax.rewards.shaping import shape_of
from didr_jax.types import InputError

__all__ = [
    "REWARDS", "Knob", "MixScore", "RewardMix", "RewardModel", "RewardRecord", "finite_gradient", "load", "load_mix", "readings",
]  # fmt: skip

REWARDS: dict[str, RewardRecord] = {
    "hps": hps.REWARD,
    "pickscore": pickscore.REWARD,
    "imagereward": imagereward.REWARD,
    "clipscore": clipscore.REWARD,
    "dfn": dfn.REWARD,
    "aesthetic": aesthetic.REWARD,
    **custom.OWN,
}


def load(name: str, options: Mapping[str, Any]) -> RewardModel:
    """The reward that a config calls `name`; its weights are not read yet.

    Args:
      name: a row of `REWARDS`, or any name if `options["kind"]` is such a row.
      options: arguments of that row's `load` (`weights`, `tokenizer`, `dtype`, ...), and `centre` and `spread` to
        normalise it differently, a `shape` (`shaping.shape_of`) of its value in a mix, a `prefix` of its prompts.

    Raises:
      InputError: unknown reward, unknown or absent option, files that cannot be used.
    """
    options = dict(options)
    kind = options.pop("kind", name)
    if kind not in REWARDS:
        raise InputError(f"reward {name!r} is unknown and has no known kind; {nearest(kind, REWARDS)}")
    units: dict[str, Any] = {key: float(options.pop(key)) for key in ("centre", "spread") if key in options}
    if units.get("spread", 1.0) <= 0:
        raise InputError(f"reward {name!r}: spread must be positive")
    units["shape"] = shape_of(options.pop("shape", ""), f"config.rewards.shape.{name}")
    prefix = options.pop("prefix", "")
    record = REWARDS[kind]
    try:
        inspect.signature(record.load).bind(**options)
    except TypeError as e:
        raise InputError(f"reward {name!r}: {e}") from None
    model = dataclasses.replace(record.load(**options), name=name, **units)
    return model.prefixed(prefix) if prefix else model


def load_mix(weights: Mapping[str, float], held_out: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> RewardMix:
    """A weighted mix `{name: weight}` and the held-out rewards; `options[name]` goes to `load`.

    Raises:
      InputError: as `load`; a reward both trained and held out; options for a reward that is neither.
    """
    both, stray = set(weights) & set(held_out), set(options) - set(weights) - set(held_out)
    if both:
        raise InputError(f"rewards: {', '.join(sorted(both))} is both trained and held out")
    if stray:
        raise InputError(f"rewards: options for {', '.join(sorted(stray))}, which is neither trained nor held out")
    return RewardMix({name: load(name, options.get(name, {})) for name in (*weights, *held_out)}, dict(weights))
