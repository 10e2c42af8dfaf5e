"""A part of the state that waits in the host's memory: where it lies, and that nothing else changes, to the last bit."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny, train_tiny

from didr_jax import recipes
from didr_jax.planning.plan import main_stage, make_plan
from didr_jax.planning.targets import target
from didr_jax.training.host_memory import back, near, waits_on_host
from didr_jax.training.parallel import bytes_per_device, make_mesh, path_of, state_shardings, with_places
from didr_jax.training.validate import validate
from didr_jax.types import InputError

AWAY = ("^ema/", "/(mu|nu)/")
SHORT = {"pretrain__steps": 4, "distill__steps": 4, "checkpoint__every": 2, "mesh__min_size": 16}


def game(**overrides):
    """(stage, the places of its state, config) of the game between generator and TA."""
    config = tiny(**SHORT, **overrides)
    stage = main_stage(recipes.build(config), config)
    return stage, state_shardings(stage.shapes, config, make_mesh(config.mesh)), config


def test_leaves_lie_where_the_table_says():
    stage, places, _ = game(mesh__host=AWAY)
    shapes = jax.tree_util.tree_leaves_with_path(stage.shapes)
    for (keys, shape), place in zip(shapes, jax.tree.leaves(places), strict=True):
        path = path_of(keys)
        told = (path.startswith("ema/") or "/mu/" in path or "/nu/" in path) and shape.size >= 16
        assert (place.memory_kind == "pinned_host") == told, path
    assert sum(place.memory_kind == "pinned_host" for place in jax.tree.leaves(places)) >= 10


def test_parameters_never_wait():
    _, places, _ = game(mesh__host=(".*",))
    for keys, place in jax.tree_util.tree_leaves_with_path(places):
        path = path_of(keys)
        assert place.memory_kind != "pinned_host" or path.startswith(("ema/", "opt_")), path
    assert any(place.memory_kind == "pinned_host" for place in jax.tree.leaves(places))


def test_training_is_the_same_to_the_last_bit_and_goes_on_with_and_without(tmp_path):
    here = train_tiny(tmp_path / "here", tiny(**SHORT))
    away = train_tiny(tmp_path / "away", tiny(**SHORT, mesh__host=AWAY))
    shutil.rmtree(tmp_path / "away" / "checkpoints" / "distill" / "4")
    both = train_tiny(tmp_path / "away", tiny(**SHORT))
    assert here.keys() == away.keys() == both.keys()
    for path, value in here.items():
        np.testing.assert_array_equal(away[path], value, err_msg=path)
        np.testing.assert_array_equal(both[path], value, err_msg=path)


def traced(stage, places):
    state = with_places(stage.shapes, places)
    frozen = {name: weights.shapes for name, weights in stage.frozen.items()}
    return jax.make_jaxpr(stage.step)(state, frozen, jax.eval_shape(lambda: stage.batch(0)))


def test_it_is_fetched_for_its_update_and_never_lies_on_the_device_between():
    stage, places, _ = game(mesh__host=AWAY)
    program = traced(stage, places)
    assert "optimization_barrier" in str(program)
    for made, place in zip(program.out_avals, jax.tree.leaves(places), strict=False):  # the state, before the figures
        assert (made.memory_space == jax.memory.Space.Host) == (place.memory_kind == "pinned_host")


def test_without_it_the_program_is_what_it_was():
    text = str(traced(*game()[:2]))
    assert "optimization_barrier" not in text and "<host>" not in text


def test_a_plan_counts_it_apart():
    stage, places, config = game(mesh__host=AWAY)
    config.compile.only_shapes = True
    plan = make_plan(stage, config, target(""))
    plain_stage, plain_places, plain_config = game()
    plain_config.compile.only_shapes = True
    plain = make_plan(plain_stage, plain_config, target(""))
    away = with_places(stage.shapes, places)
    assert plan.on_host == bytes_per_device(away, on_host=True) > 0 == plain.on_host
    assert sum(plan.parts.values()) + plan.on_host == sum(plain.parts.values())
    assert plan.parts["state ema"] < 0.1 * plain.parts["state ema"], "biases of fewer than 16 entries are left"


def test_near_and_back_of_arrays():
    mesh = make_mesh(tiny().mesh)
    place = jax.NamedSharding(mesh, jax.P(), memory_kind="pinned_host")
    tree = {"a": jax.device_put(jnp.arange(4.0), place), "b": jnp.ones(2)}
    here = near(tree)
    assert here["b"] is tree["b"] and not waits_on_host(here["a"]) and waits_on_host(tree["a"])
    again = back(here, like=tree)
    assert waits_on_host(again["a"]) and not waits_on_host(again["b"])
    np.testing.assert_array_equal(again["a"], tree["a"])


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(InputError, match=r"config.mesh.host: '\(' is not a regular expression"):
        validate(tiny(mesh__host=("(",)))
