"""What a backward pass recomputes: never a result, always a trade of operations for memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from didr_jax.models.attention import attend
from didr_jax.models.remat import REMAT, rematerialised
from didr_jax.training.flops import count

TOKENS, WIDTH, HEADS = 64, 8, 2


class Block(nn.Module):
    """A convolution, attention and a multilayer perceptron: one of each kind that a policy tells apart."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.Conv(WIDTH, (3,), name="conv")(x))
        q, k, v = jnp.split(nn.Dense(3 * WIDTH, name="qkv")(x).reshape(*x.shape[:-1], HEADS, -1), 3, axis=-1)
        x = x + nn.Dense(WIDTH, name="out")(attend(q, k, v).reshape(x.shape))
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(4 * WIDTH, name="up")(x)))


CONV, DENSE = 2 * 3 * WIDTH, 2 * WIDTH  # operations a token and channel
PRODUCTS = TOKENS * WIDTH * (CONV + 3 * DENSE + DENSE + 4 * DENSE)  # all that a backward pass needs again but `down`
SCORES = 2 * TOKENS * TOKENS * WIDTH  # q·kᵀ of all heads; weights times values are as many


def gradient(how):
    block = rematerialised(Block, how)(name="block")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, TOKENS, WIDTH)), jnp.float32)
    params = block.init(jax.random.key(1), x)
    return jax.grad(lambda params, x: (block.apply(params, x) ** 2).sum()), params, x


def operations(how):
    f, params, x = gradient(how)
    return count(f, params, x)


def test_all_words_give_the_same_gradient():
    wanted, *rest = (jax.jit(f)(*arguments) for f, *arguments in map(gradient, REMAT))
    for got in rest:  # the same operations in the same order, up to what the compiler fuses
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), got, wanted)


def test_products_recomputes_attention_and_nothing_else_that_counts():
    """Scores again for the softmax, weights times values again for the gradient of `out`'s kernel."""
    assert operations("products") == operations("none") + 2 * SCORES


def test_blocks_recomputes_all_that_the_gradient_needs():
    assert operations("blocks") == operations("products") + PRODUCTS


def test_an_unknown_word_is_refused():
    with pytest.raises(KeyError):
        rematerialised(Block, "some")
