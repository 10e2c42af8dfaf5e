"""Rewards r(x0, c): pure functions of an image in [-1, 1] and a tokenised prompt.

| name | reward | score |
|---|---|---|
| `hps` | HPSv2.1 | 100 · cosine, no logit scale |
| `pickscore` | PickScore | exp(logit_scale) · cosine |
| `imagereward` | ImageReward | standardised on the authors' images |
| `clipscore` | CLIPScore | 100 · cosine |
| `aesthetic` | LAION aesthetic predictor | about 1 to 10 |
| `custom` | `module:function` of the user | its own |
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from didr_jax.rewards import aesthetic, clipscore, custom, hps, imagereward, pickscore
from didr_jax.rewards.base import RewardModel
from didr_jax.rewards.mix import MixScore, RewardMix, finite_gradient, summarise
from didr_jax.types import InputError

__all__ = ["LOADERS", "MixScore", "RewardMix", "RewardModel", "finite_gradient", "load", "load_mix", "summarise"]

LOADERS: dict[str, Callable[..., RewardModel]] = {
    "hps": hps.load,
    "pickscore": pickscore.load,
    "imagereward": imagereward.load,
    "clipscore": clipscore.load,
    "aesthetic": aesthetic.load,
    "custom": custom.load,
}


def load(name: str, options: Mapping[str, Any]) -> RewardModel:
    """Loads the reward that a config calls `name`.

    Args:
      name: a row of the table above, or any name if `options["kind"]` is such a row.
      options: arguments of that loader (`weights`, `tokenizer`, `dtype`, ...), and `centre` and `spread` to
        normalise it differently.

    Raises:
      InputError: unknown reward, unknown or absent option, weights that do not fit.
    """
    options = dict(options)
    kind = options.pop("kind", name)
    if kind not in LOADERS:
        raise InputError(f"reward {name!r} is unknown; choose one of {', '.join(LOADERS)}, or set its kind")
    units = {key: float(options.pop(key)) for key in ("centre", "spread") if key in options}
    if units.get("spread", 1.0) <= 0:
        raise InputError(f"reward {name!r}: spread must be positive")
    try:
        inspect.signature(LOADERS[kind]).bind(**options)
    except TypeError as e:
        raise InputError(f"reward {name!r}: {e}") from None
    return dataclasses.replace(LOADERS[kind](**options), name=name, **units)


def load_mix(weights: Mapping[str, float], held_out: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> RewardMix:
    """Loads a weighted mix `{name: weight}` and the held-out rewards; `options[name]` goes to `load`.

    Raises:
      InputError: as `load`; a reward both trained and held out; options for a reward that is neither.
    """
    both, stray = set(weights) & set(held_out), set(options) - set(weights) - set(held_out)
    if both:
        raise InputError(f"rewards: {', '.join(sorted(both))} is both trained and held out")
    if stray:
        raise InputError(f"rewards: options for {', '.join(sorted(stray))}, which is neither trained nor held out")
    return RewardMix({name: load(name, options.get(name, {})) for name in (*weights, *held_out)}, dict(weights))
