"""Convolutional parts of UNets and VAEs against what they abbreviate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax.models.resnet import Upsample, nearest_twice
from didr_jax.training.flops import count

QUICK = {"xla_backend_optimization_level": 0}


def plainly(params, x, size=None):
    """Nearest neighbour, cropped, and the convolution, as they are written in diffusers."""
    x = nearest_twice(x) if size is None else nearest_twice(x)[:, : size[0], : size[1]]
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


@pytest.mark.parametrize("size", [None, (9, 5)])
def test_four_small_convolutions_are_the_one_of_the_enlarged_image(size):
    """Values and gradients to float64's rounding, cropped or not."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, up = jnp.asarray(rng.normal(size=(2, 5, 3, 4))), Upsample(jnp.float64, jnp.float64)
        params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 4))), "bias": jnp.asarray(rng.normal(size=4))}}
        ours, plain = lambda params, x: up.apply({"params": params}, x, size), lambda params, x: plainly(params, x, size)
        loss = lambda f: jax.value_and_grad(lambda params, x: (jnp.sin(y := f(params, x)).sum(), y), (0, 1), has_aux=True)
        both = jax.jit(lambda *arguments: (loss(ours)(*arguments), loss(plain)(*arguments)), compiler_options=QUICK)
        for got, want in zip(*map(jax.tree.leaves, both(params, x)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
        if size is None:
            assert count(ours, params, x) == pytest.approx(4 / 9 * count(plain, params, x))
