"""Averages in bfloat16 that follow those in float32, because they are rounded at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny

from didr_jax import recipes
from didr_jax.config import optimizer
from didr_jax.training.optim import make_optimizer, moving_average
from didr_jax.training.parallel import held
from didr_jax.training.rounding import to_bfloat16
from didr_jax.training.validate import validate
from didr_jax.types import InputError

N, STEPS = 4096, 3000
ULP = 2.0**-7  # of bfloat16 at 1


def test_a_number_goes_to_its_neighbours_as_often_as_it_is_near_them():
    x = jnp.full(100_000, 1 + 0.3 * ULP)
    found = to_bfloat16(x, jax.random.key(0)).astype(jnp.float32)
    assert set(np.unique(found).tolist()) == {1.0, 1 + ULP}
    np.testing.assert_allclose(np.mean(found == 1 + ULP), 0.3, atol=0.01)
    np.testing.assert_array_equal(to_bfloat16(-x, jax.random.key(0)).astype(jnp.float32), -found)


def test_what_bfloat16_has_stays_itself():
    kept = jnp.array([0.0, -0.0, 1.0, -1.5, 2.0**-126, jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(to_bfloat16(kept, jax.random.key(0)).astype(jnp.float32), kept)


def test_a_moving_average_in_bfloat16_follows_the_one_in_float32():
    """Of parameters that go on by less than bfloat16 can tell: to the nearest, the average would stand where it was."""
    start, way = jnp.ones(N), jnp.linspace(-1, 1, N) * ULP

    def update(averages, step):
        single, half, nearest = averages
        params = start + way * step / STEPS
        each = lambda average: moving_average(average, params, step + 10**6, 0.999, jax.random.fold_in(jax.random.key(0), step))
        return (each(single), each(half), (nearest * 0.999 + params * 0.001).astype(jnp.bfloat16)), None

    begun = start, start.astype(jnp.bfloat16), start.astype(jnp.bfloat16)
    (single, half, nearest), _ = jax.jit(lambda begun: jax.lax.scan(update, begun, jnp.arange(STEPS)))(begun)
    error = np.asarray(half.astype(jnp.float32) - single)
    assert half.dtype == jnp.bfloat16 and single.dtype == jnp.float32
    np.testing.assert_array_equal(nearest.astype(jnp.float32), start)
    assert np.abs(single - start).max() > 0.6 * ULP
    assert np.sqrt(np.mean(error**2)) < ULP and abs(error.mean()) < 4 * error.std() / N**0.5


def test_adamws_second_moment_in_bfloat16_follows_the_one_in_float32():
    def trained(dtype):
        section = optimizer(1e-3)
        section.update(warmup=0, clip=1e9, b1=0.0, second_moment_dtype=dtype)
        tx, params = make_optimizer(section, STEPS), {"kernel": jnp.ones(N)}

        def update(state, step):
            gradient = jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (N,)) * jnp.linspace(0.1, 10, N)
            updates, state = tx.update({"kernel": gradient}, state, params)
            return state, updates["kernel"]

        state, updates = jax.jit(lambda state: jax.lax.scan(update, state, jnp.arange(STEPS)))(tx.init(params))
        (moment,) = [a for path, a in jax.tree_util.tree_leaves_with_path(state) if "nu" in jax.tree_util.keystr(path)]
        return moment, updates[-1]

    (half, moved), (single, wanted) = trained("bfloat16"), trained("float32")
    assert half.dtype == jnp.bfloat16 and single.dtype == jnp.float32
    error = np.asarray(half.astype(jnp.float32) / single - 1)
    assert np.sqrt(np.mean(error**2)) < 0.08 and abs(error.mean()) < 0.005
    assert np.sqrt(np.mean((moved / wanted - 1) ** 2)) < 0.04


def test_bytes_of_adamw_with_both_moments_in_bfloat16():
    section = optimizer(1e-3)
    section.update(moment_dtype="bfloat16", second_moment_dtype="bfloat16")
    state = jax.eval_shape(make_optimizer(section, STEPS).init, {"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)})
    assert round(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / 1024**2) == 4


def test_an_optimiser_without_a_second_moment_refuses_a_type_for_it():
    part = {"name": "lion", "second_moment_dtype": "bfloat16"}
    with pytest.raises(InputError, match="config.pretrain.optimizer.second_moment_dtype = .*lion has no second moment"):
        validate(tiny(**{f"pretrain.optimizer.{key}": value for key, value in part.items()}))


def test_the_average_of_a_game_has_its_type_and_what_begins_with_it_that_of_the_parameters():
    recipe = recipes.build(tiny(**{"align.ema_dtype": "bfloat16"}))
    shapes = recipe.stages["pretrain"]({}).shapes.params
    zeros = held(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes))
    stage = recipe.stages["align"]({"distill": {"generator": zeros, "ta": zeros}})
    kinds = lambda tree: {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
    assert kinds(stage.shapes.ema) == {"bfloat16"} and kinds(stage.shapes.generator) == {"float32"}
    here = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), stage.shapes)
    left = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), stage.made_of(stage.shapes))
    begun = stage.init(here, left)
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, stage.shapes)
    assert jax.tree.map(lambda a: a.dtype, begun) == jax.tree.map(lambda a: a.dtype, stage.shapes)
    with pytest.raises(InputError, match="config.distill.ema_dtype = 'bfloat16': stage 'align' would begin"):
        validate(tiny(**{"stages": ("pretrain", "distill", "align"), "distill.ema_dtype": "bfloat16"}))
