"""Single files: what trainers and ComfyUI write, whole checkpoints or one network, under whatever prefix.

    a whole checkpoint     its parts told apart by the prefixes of `PARTS`
    one network            names in diffusers' or in the authors' own dialect, behind any of `WRAPPERS`

Nothing is read but names and shapes.
"""

import re
from collections.abc import Sequence
from typing import Any

from didr_jax.checks import listed
from didr_jax.types import InputError
from didr_jax.weights.files import Tensors
from didr_jax.weights.states import choose

# part of a pipeline -> its prefixes in whole checkpoints; the first is what is written.
PARTS: dict[str, Sequence[str]] = {
    "unet": ("model.diffusion_model.",),
    "transformer": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("conditioner.embedders.0.transformer.", "cond_stage_model.transformer."),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
# What says nothing that a pipeline's configs do not say: buffers of the noise schedule, and what trainers count.
BOOKKEEPING = re.compile(
    r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|logvar|lvlb_weights|denoiser\.sigmas"
    r"|model_ema\.(decay|num_updates)|global_step|epoch|step|scale_factor)"
)
# Prefixes that all names of a network may have, in any order.
WRAPPERS = (
    "module.", "_orig_mod.", "model.diffusion_model.", "diffusion_model.", "model.", "ema_model.", "ema.", "unet.", "transformer.",
)  # fmt: skip
EMA = "model_ema."  # whose names have lost their dots


def network(tensors: Tensors, part: str, state: str = "") -> Tensors:
    """The tensors of the network in a file, without prefixes: of a whole checkpoint, or of one that has nothing else.

    Args:
      tensors: of the file.
      part: `unet` or `transformer`.
      state: which copy, where there are several: `model`, `ema`, or how the file calls it; empty: the only one.

    Raises:
      InputError: several, and none is chosen, or one that is not there; names that are no part of anything known.
    """
    if any(name.startswith(PARTS[part][0]) for name in tensors):
        return _of_checkpoint(tensors, part, state)
    return _unwrapped(tensors, state)


def part(tensors: Tensors, name: str) -> Tensors | None:
    """Of a whole checkpoint the tensors of a part, without their prefix; None if it has none of it."""
    for prefix in PARTS[name]:
        if found := _behind(prefix, tensors):
            return found
    return None


def _of_checkpoint(tensors: Tensors, part: str, state: str) -> Tensors:
    known = tuple(prefix for prefixes in PARTS.values() for prefix in prefixes)
    odd = [n for n in tensors if not n.startswith((*known, EMA)) and not BOOKKEEPING.fullmatch(n)]
    if odd:
        raise InputError(
            f"weights: {len(odd)} tensors of the file are no part of a pipeline that is known here: {listed(odd)}", odd
        )
    own = _behind(PARTS[part][0], tensors)
    averages = {name: tensors[flat] for name in own if (flat := EMA + f"diffusion_model{name.replace('.', '')}") in tensors}
    return choose({"model": own} | ({"ema": averages} if averages else {}), state)


def _unwrapped(tensors: Tensors, state: str) -> Tensors:
    """Without the prefixes that all names have."""
    while True:
        found = [wrapper for wrapper in WRAPPERS if any(name.startswith(wrapper) for name in tensors)]
        wrapper = next((w for w in found if all(name.startswith(w) for name in tensors)), None)
        if wrapper is not None:
            tensors = _behind(wrapper, tensors)
            continue
        copies = {w.rstrip("."): _behind(w, tensors) for w in found if w != "model.diffusion_model."}
        covered = sum(map(len, copies.values())) == len(tensors)
        if len(copies) < 2 or not covered:
            return tensors
        return _unwrapped(choose(copies, state), "")


def _behind(prefix: str, tensors: Tensors) -> dict[str, Any]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
