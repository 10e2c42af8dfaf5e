"""A row's noise depends on its own key alone."""

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax import keys


def test_rows_draw_the_same_alone_and_together():
    rows, like = jax.random.split(jax.random.key(0), 6), jnp.zeros((6, 3, 2))
    together = keys.normal(rows, like)
    np.testing.assert_array_equal(keys.normal(rows[2:4], like[2:4]), together[2:4])
    draws = keys.split(rows, 4)
    assert draws.shape == (4, 6)
    np.testing.assert_array_equal(keys.normal(keys.split(rows[5:], 4)[3], like[5:]), keys.normal(draws[3], like)[5:])
    assert len(np.unique(np.asarray(jax.vmap(lambda k: keys.normal(k, like))(draws)))) == 4 * like.size


def test_one_key_is_jax_randoms():
    key, like = jax.random.key(1), jnp.zeros((4, 2), jnp.bfloat16)
    np.testing.assert_array_equal(jax.random.key_data(keys.split(key, 3)), jax.random.key_data(jax.random.split(key, 3)))
    np.testing.assert_array_equal(keys.normal(key, like), jax.random.normal(key, like.shape, like.dtype))
