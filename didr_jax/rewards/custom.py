"""A user's own reward: any Python function, differentiable or not."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.checks import named_function
from didr_jax.rewards.base import Knob, RewardModel, RewardRecord
from didr_jax.text.tokens import from_utf8, utf8
from didr_jax.types import Array, InputError, PyTree, Weights


def load(
    path: str, *, name: str = "custom", differentiable: bool = False, centre: float = 0.0, spread: float = 1.0
) -> RewardModel:
    """The reward at `path`, `"module:function"`.

    Black box, the default: `function(images, prompts) -> b numbers` on the host, where `images` is a float32 numpy
    array `[b, h, w, 3]` in [-1, 1] and `prompts` a list of b strings.  It may call anything but jax, and it is
    called once for all samples at hand; under jit and vmap it works as any reward.

    `differentiable=True`: `function(images, tokens) -> [b]` made of jax operations.  `tokens` is what the function's
    attribute `tokenize(prompts)` returns (numpy arrays with leading axis b), by default the prompts' bytes,
    `{"utf8": uint8 [b, n]}`.

    Raises:
      InputError: no such module or function; a black box that is asked for its gradient or returns another number
        of scores.
    """
    function = named_function(path, "custom reward")
    if differentiable:
        score = lambda params, images, tokens: function(images, tokens).astype(jnp.float32)
        tokenize = getattr(function, "tokenize", utf8)
    else:
        score, tokenize = black_box(function, path), utf8
    return RewardModel(name, Weights.join({}), lambda images: images, score, tokenize, differentiable, centre, spread)


def try_out(path: str, differentiable: bool, size: tuple[int, int], prompts: Sequence[str], name: str = "custom") -> None:
    """Calls the function once on black images of `size` (height, width), one per prompt, before a run relies on it.

    A differentiable one is only traced.

    Raises:
      InputError: it fails, or does not return one real number per image.
    """
    function, shape = named_function(path, "custom reward"), (len(prompts), *size, 3)
    try:
        if differentiable:
            tokens = getattr(function, "tokenize", utf8)(prompts)
            found = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, jnp.float32), tokens)
        else:
            found = np.asarray(function(np.zeros(shape, np.float32), list(prompts)))
        got, kind = found.shape, found.dtype
    except Exception as e:
        said = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise InputError(f"config.rewards.{name}: {path!r} fails on images of shape {shape}: {said}") from e
    if got != shape[:1]:
        raise InputError(
            f"config.rewards.{name}: {path!r} returned shape {got} for {shape[0]} images; "
            f"it must return one number per image, shape {shape[:1]}"
        )
    if not any(jnp.issubdtype(kind, real) for real in (jnp.floating, jnp.integer, jnp.bool_)):
        raise InputError(f"config.rewards.{name}: {path!r} returned {kind}, not real numbers")


def black_box(
    function: Callable[[np.ndarray, Sequence[str]], Sequence[float]], path: str
) -> Callable[[PyTree, Array, PyTree], Array]:
    """`function(images, prompts)` on the host as a reward's `score`."""

    def on_host(images, prompts) -> np.ndarray:
        # Under vmap the arguments carry further leading axes: one call serves them all.
        images, prompts = np.asarray(images), np.asarray(prompts)
        flat = images.reshape(-1, *images.shape[-3:])
        scores = np.asarray(function(flat, from_utf8(prompts.reshape(-1, prompts.shape[-1]))), np.float32)
        if scores.shape != flat.shape[:1]:
            raise InputError(f"custom reward {path!r} returned shape {scores.shape} for {len(flat)} images")
        return scores.reshape(images.shape[:-3])

    @jax.custom_jvp
    def call(images: Array, prompts: Array) -> Array:
        shape = jax.ShapeDtypeStruct(images.shape[:1], jnp.float32)
        return jax.pure_callback(on_host, shape, images.astype(jnp.float32), prompts, vmap_method="broadcast_all")

    @call.defjvp
    def _(primals, tangents):
        raise InputError(
            f"custom reward {path!r} is a black box and has no gradient; use a gradient-free estimator "
            "(covariance), or differentiable=True if it is made of jax operations"
        )

    return lambda params, images, tokens: call(images, jnp.asarray(tokens["utf8"]))


def record(name: str) -> RewardRecord:
    """Of the reward of one's own whose keys begin with `name`."""
    return RewardRecord(
        load,
        "a function of your own, in its own units",
        knobs={
            "path": Knob(name, "module:function of your own (docs/rewards.md)"),
            "differentiable": Knob(f"{name}_differentiable", "made of jax operations; otherwise a black box", False),
        },
    )


FURTHER = ("custom2", "custom3", "custom4")
OWN = {name: record(name) for name in ("custom", *FURTHER)}
