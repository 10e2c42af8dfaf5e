"""What a backward pass recomputes instead of keeping, said in one word for every network.

    auto       what the recipe has found to fit (`planning.recompute`); where no step was planned, as `blocks`
    none       nothing: every activation is kept
    products   norms, activations and attention weights; what products and convolutions gave is kept
    blocks     everything: of each block only the input is kept

Products are nearly all of the work and attention weights most of the memory, so `products` is the middle: on SDXL at
1024² almost as few operations as `none` (docs/plans.md).  Parameters, and with them every result, are the same.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn


def keep_products(primitive: Any, *_, **params) -> bool:
    """Policy of `jax.checkpoint`: keep convolutions, and products with a matrix of parameters.

    A product with batch axes is attention's, of each head: its result grows with the square of the tokens.
    """
    if primitive.name == "dot_general":
        _, (batch_axes, _) = params["dimension_numbers"]
        return not batch_axes
    return primitive.name == "conv_general_dilated"


# word -> policy of `jax.checkpoint`: may this intermediate result be kept?  None: no, not one.
POLICIES: dict[str, Callable | None] = {"products": keep_products, "blocks": None}
REMAT = ("none", *POLICIES)  # from the least recomputation to the most
AUTO = "auto"
WORDS = (AUTO, *REMAT)  # of a config


def rematerialised(block: type[nn.Module], how: str, *, prevent_cse: bool = True) -> type[nn.Module]:
    """The module class `block`, recomputing in its backward pass as `how`, one of `WORDS`, says.

    Args:
      prevent_cse: see `jax.checkpoint`; False inside a scan, which needs no such guard.

    Raises:
      KeyError: another word (recipes check theirs).
    """
    how = "blocks" if how == AUTO else how
    return block if how == "none" else nn.remat(block, prevent_cse=prevent_cse, policy=POLICIES[how])
