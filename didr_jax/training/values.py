"""Which values a key of the config may hold: ranges of numbers, names of types and lengths of lists, by key, in tables.

A row is for every key that ends with its name: `batch_size` for that of each stage, `data.batch_size` for one alone;
`rewards.weights.*` for all of a section.  The longest name counts.  Every number is finite, whether it has a row or not.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from didr_jax.checks import require, require_choice


class Range(NamedTuple):
    """From `low` to `high`; `above`, `below`: these bounds themselves are not in it."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, x: float) -> bool:
        """Whether a number lies in it; nan and infinities lie in none."""
        return (
            math.isfinite(x)
            and (self.low < x if self.above else self.low <= x)
            and (x < self.high if self.below else x <= self.high)
        )

    @property
    def rule(self) -> str:
        """What a finite number outside of it breaks."""
        if math.isinf(self.high):
            return "must be positive" if self.above else f"must be at least {self.low:g}"
        return f"must lie in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


FINITE, COUNT, NONE_OR_MORE, POSITIVE = Range(), Range(1), Range(0), Range(0, above=True)
SHARE, DECAY = Range(0, 1), Range(0, 1, below=True)
SEED = Range(0, 2**32 - 1)

RANGES: Mapping[str, Range] = {
    "seed": SEED,
    # stages
    "steps": COUNT,
    "batch_size": COUNT,
    "micro_batches": COUNT,
    "ema": DECAY,
    "ta_updates": COUNT,
    "ta_reuse": COUNT,
    "guidance": NONE_OR_MORE,
    "generator_t_min": FINITE,  # all four: within the schedule's times (validate)
    "generator_t_max": FINITE,
    "ta_t_min": FINITE,
    "ta_t_max": FINITE,
    "beta": POSITIVE,
    "num_steps": COUNT,
    "num_samples": COUNT,
    "stochasticity": SHARE,
    "trust_radius": POSITIVE,
    "max_shift": NONE_OR_MORE,
    "tilt_t0": Range(0, 1, above=True),
    "tilt_anchor": NONE_OR_MORE,
    "huber": POSITIVE,
    "condition_dropout": DECAY,
    "contrast": NONE_OR_MORE,
    "kl": NONE_OR_MORE,
    "pairs": COUNT,
    "solver_steps": COUNT,
    # optimisers
    "lr": POSITIVE,
    "warmup": NONE_OR_MORE,
    "b1": DECAY,
    "b2": DECAY,
    "eps": POSITIVE,
    "muon_rms": POSITIVE,
    "weight_decay": NONE_OR_MORE,
    "clip": POSITIVE,
    # the engine
    "log.every": COUNT,
    "peak_tflops": NONE_OR_MORE,
    "checkpoint.every": COUNT,
    "keep": COUNT,
    "keep_every": NONE_OR_MORE,
    "patience": COUNT,
    "dropped": SHARE,
    "profile.first": NONE_OR_MORE,
    "mesh.data": Range(-1),
    "mesh.fsdp": Range(-1),
    "mesh.tensor": Range(-1),
    "min_size": NONE_OR_MORE,
    "processes": COUNT,
    "process": NONE_OR_MORE,
    "start_timeout": COUNT,
    "lost_after": COUNT,
    "calibrate.ratio": POSITIVE,
    "calibrate.steps": NONE_OR_MORE,
    "calibrate.batches": COUNT,
    "calibrate.levels": COUNT,
    "utilisation": Range(0, 1, above=True),
    "effort": Range(-1, 1),
    # schedules and networks
    "shift": POSITIVE,
    "num_timesteps": COUNT,
    "beta_start": Range(0, 1, above=True, below=True),
    "beta_end": Range(0, 1, above=True, below=True),
    "width": COUNT,
    "height": COUNT,
    "image.height": Range(1, 2**14),  # 2²⁸ pixels; a slip of the finger is more
    "image.width": Range(1, 2**14),
    "depth": COUNT,
    "features": COUNT,
    "spread": POSITIVE,
    "generator_steps": COUNT,
    "generator_time": Range(0, 1, above=True),
    "generator_timesteps": NONE_OR_MORE,
    "rank": COUNT,
    "alpha": POSITIVE,
    # data and rewards
    "limit": NONE_OR_MORE,
    "max_length": COUNT,
    "train": COUNT,
    "held_out": COUNT,
    "judge": COUNT,
    "means": FINITE,
    "std": POSITIVE,
    "slope": FINITE,
    "curvature": NONE_OR_MORE,
    "center": FINITE,
    "rewards.weights.*": FINITE,
    "rewards.centre.*": FINITE,
    "rewards.spread.*": POSITIVE,
    # evaluation
    "eval.every": NONE_OR_MORE,
    "num": COUNT,
    "columns": COUNT,
    "pictures": NONE_OR_MORE,
    "samples": COUNT,
    "reference_steps": COUNT,
    "grid_rows": COUNT,
    "per_prompt": NONE_OR_MORE,
    "score_batch_size": COUNT,
    "adapter_rank": NONE_OR_MORE,
    "rows": COUNT,
    "target_beta": POSITIVE,
    "target_betas": POSITIVE,
}

# Of lists of numbers: how long they are at each depth; None: of any length above 0.
SHAPES: Mapping[str, tuple[int | None, ...]] = {
    "means": (None, 2),
    "slope": (2,),
    "center": (2,),
    "target_betas": (None,),
    "generator_timesteps": (None,),
}
TEXTS = ("stages", "mesh.rules", "mesh.host", "lora.layers", "rewards.held_out")  # lists of words

_FLOATS = ("float32", "bfloat16", "float16")
DTYPES: Mapping[str, tuple[str, ...]] = {
    "moment_dtype": ("float32", "bfloat16"),
    "second_moment_dtype": ("float32", "bfloat16"),
    "ema_dtype": ("", "float32", "bfloat16"),
    "encoder_dtype": ("bfloat16", "float32"),
    "dtype": _FLOATS,
    "frozen_dtype": _FLOATS,
    "param_dtype": _FLOATS,
    "vae_dtype": _FLOATS,
    "reward_vae_dtype": _FLOATS,
    "rewards.param_dtype": ("", *_FLOATS),  # empty: rewards.dtype
}
# What people write for them.
WORDS = {
    "fp32": "float32", "f32": "float32", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16",
}  # fmt: skip


def keys(config: Any, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(flat key, section, value) of everything in a nested config."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from keys(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", config, value


def row_of(key: str, table: Mapping[str, Any]) -> Any:
    """The row of a table for a flat key, None if it has none."""
    parts = key.split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts))]
    found = (table.get(name) for end in ends for name in (end, f"{end.rpartition('.')[0]}.*"))
    return next((row for row in found if row is not None), None)


def spell_out(config: Any) -> None:
    """Writes types by their full names: `fp16` becomes `float16`."""
    for key, section, value in list(keys(config)):
        if row_of(key, DTYPES) and isinstance(value, str) and value.lower() in WORDS:
            section[key.rpartition(".")[2]] = WORDS[value.lower()]


def check_values(config: Any) -> None:
    """Raises InputError, naming the key and its rule, for a number out of its range, a type that is none of its key's, or a
    list that is not as its key's are."""
    for key, _, value in keys(config):
        if names := row_of(key, DTYPES):
            require_choice(key, value, names)
        span = row_of(key, RANGES) or FINITE
        for number in _numbers(value):
            require(span.holds(number), key, value, span.rule if math.isfinite(number) else "must be finite")
        if shape := row_of(key, SHAPES):
            rule = "must be " + " of ".join("a list" if n is None else f"{n}" for n in shape) + " numbers"
            require(_has_shape(value, shape), key, value, rule)
        if key in TEXTS:
            texts = isinstance(value, (tuple, list)) and all(isinstance(each, str) for each in value)
            require(texts, key, value, "must be a list of words")


def _has_shape(value: Any, shape: tuple[int | None, ...]) -> bool:
    if not shape:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    own, *below = shape
    fits = isinstance(value, (tuple, list)) and len(value) > 0 and own in (None, len(value))
    return fits and all(_has_shape(each, tuple(below)) for each in value)


def _numbers(value: Any) -> Iterator[float]:
    """Those in a value or in a nest of tuples; truth values are none."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
