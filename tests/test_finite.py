"""Weights that are not finite are refused when they are loaded, whatever their type, and named."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from test_weights import TABLE, flax_shapes, torch_state

from didr_jax.finite import all_finite
from didr_jax.types import InputError
from didr_jax.weights.engine import to_flax, weights_of
from didr_jax.weights.files import read_tensors, write_safetensors

WIDTHS = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
def test_one_bad_value_anywhere_is_found(dtype, bad):
    largest = np.array([jnp.finfo(dtype).max, jnp.finfo(dtype).min, jnp.finfo(dtype).tiny, 0, -0.0], dtype)
    values = np.resize(largest, 2**20 + 7)  # more than one piece
    assert (
        all_finite(values) and all_finite(values.reshape(-1, 1)) and all_finite(values[:0]) and all_finite(values[0].reshape(()))
    )
    for place in (0, 2**20 - 1, 2**20, len(values) - 1):
        spoilt = values.copy()
        spoilt[place] = bad
        assert not all_finite(spoilt)


def test_integers_are_finite():
    assert all_finite(np.full(3, 0x7F80, np.uint16)) and all_finite(np.array([True]))


@pytest.mark.parametrize("name", ["scale", "blocks.10.norm.weight", "qkv.weight", "down.0.conv1.weight"])
def test_the_tensor_that_is_not_finite_is_named(tmp_path, name):
    state = torch_state()
    state[name] = state[name].copy()
    state[name].reshape(-1)[-1:] = np.nan
    write_safetensors(tmp_path / "m.safetensors", state)
    weights = weights_of(lambda: read_tensors(tmp_path / "m.safetensors"), TABLE, flax_shapes(), where="config.rewards.toy")
    with pytest.raises(InputError, match=f"^config.rewards.toy: weights: {name} has values that are not finite as float32"):
        weights.load()


def test_values_that_overflow_in_the_chosen_type_are_named(recwarn):
    state = torch_state()
    state["blocks.3.mlp.weight"] = np.full((3, 2), 1e5, np.float32)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(to_flax(state, TABLE, flax_shapes(), dtype=jnp.bfloat16)))
    with pytest.raises(InputError, match=r"blocks.3.mlp.weight .*finite as float16 \(the file holds float32\).*a wider dtype"):
        to_flax(state, TABLE, flax_shapes(), dtype=jnp.float16)
    assert not recwarn.list


def test_tensors_that_are_not_used_may_hold_anything():
    to_flax(torch_state() | {"position_ids": np.full(3, np.nan, np.float32)}, TABLE, flax_shapes())
