"""Samples without a finite reward: one costs its own reward, a step of them is a bad step, a run of them ends with 70."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny, train_tiny

from didr_jax.builders import make_schedule
from didr_jax.exits import NotFinite
from didr_jax.objectives import OBJECTIVES
from didr_jax.rewards import RewardMix, RewardModel, readings
from didr_jax.training import known
from didr_jax.training.flops import count as operations
from didr_jax.training.metrics import read_metrics
from didr_jax.training.parallel import made
from didr_jax.training.recipe import Recipe
from didr_jax.training.stages import game_stage
from didr_jax.training.step import Networks
from didr_jax.training.watch import Dropped
from didr_jax.types import Weights

BATCH = 12


def mix_of(spoil) -> RewardMix:
    """A real mix of one reward of images of a single pixel; `spoil` acts on its scores `[b]`, given the prompts' numbers."""
    score = lambda params, pixels, tokens: spoil(params["w"] * jnp.mean(pixels, (1, 2, 3)), tokens)
    weights = Weights({"w": jax.ShapeDtypeStruct((), jnp.float32)}, lambda shapes, places: {"w": jnp.float32(2.0)})
    return RewardMix({"toy": RewardModel("toy", weights, lambda x: x, score, tokenize=lambda prompts: {})}, {"toy": 1.0})


def recipe_of(config, spoil, decode=lambda x: x) -> Recipe:
    """The align stage on linear networks, which score what `decode` makes of a sample."""
    mix = mix_of(spoil)
    linear = lambda p, frozen, x, *_: x @ p["w"]
    score = lambda x0, c: mix.apply({"toy": {"w": 2.0}}, decode(x0), {"toy": c["n"]})
    networks = Networks(
        schedule=make_schedule(config),
        event_shape=(1, 1, 3),
        reference=lambda frozen, x_t, t, c: 0.9 * x_t,
        ta=linear,
        generator=linear,
        reward=lambda frozen, x0, c: score(x0, c).total,
        terms=lambda frozen, x0, c: readings(score(x0, c)),
    )
    start = made(lambda: {"w": jnp.eye(3)})
    number = lambda rng, n: {"n": np.arange(n, dtype=np.float32) % BATCH}
    recipe = Recipe()
    recipe.stages = {
        "align": lambda products: game_stage(
            "align", config, networks=networks, generator=start, ta=start, conditions=number, objective=OBJECTIVES["didr"]
        )
    }
    return recipe


SHORT = {
    "stages": ("align",), "align__steps": 5, "align__batch_size": BATCH, "align__estimator": "drp", "watch__patience": 4,
    "log__every": 1,
}  # fmt: skip
NEVER = lambda r, n: r
ALWAYS = {
    "reward": (lambda r, n: r * jnp.nan, lambda x: x),
    "decoder": (NEVER, lambda x: x * jnp.inf),
}
SOME = lambda r, n: jnp.where(n % 4 == 1, jnp.nan, r)  # the second of every four


def figures(workdir) -> list[dict]:
    return [line for line in read_metrics(str(workdir)) if line["stage"] == "align"]


@pytest.mark.parametrize("part", ALWAYS)
def test_a_run_without_a_single_usable_sample_stops_with_70_and_knows_no_reward(part, tmp_path):
    config = tiny(**SHORT)
    with pytest.raises(NotFinite, match=r"4 steps in a row .*first of all the reward \(or the decoder before it\)"):
        train_tiny(tmp_path, config, recipe_of(config, *ALWAYS[part]))
    lines = figures(tmp_path)
    assert [line["skipped"] for line in lines] == [1, 2, 3, 4] and [line["reward/dropped"] for line in lines] == [BATCH] * 4
    for name in ("reward", "reward/toy", "pull", "tilt", "pull_to_divergence"):
        assert all(np.isnan(line[name]) for line in lines), name
    assert json.loads((tmp_path / "stopped.json").read_text())["not_finite"][0] == "reward"


def test_a_dropped_sample_costs_its_own_reward_and_is_counted_in_every_micro_batch(tmp_path, capsys):
    told = {}
    for parts in (1, 12):  # with 12, a micro-batch is one sample, and three of them have no reward at all
        workdir = tmp_path / str(parts)
        config = tiny(**SHORT | {"align__micro_batches": parts, "align__steps": 3})
        train_tiny(workdir, config, recipe_of(config, SOME))
        told[parts] = figures(workdir)
        assert [line["reward/dropped"] for line in told[parts]] == [3] * 3 and told[parts][-1]["skipped"] == 0
    for name in ("reward", "reward/toy", "pull", "grad_norm"):
        np.testing.assert_allclose([x[name] for x in told[12]], [x[name] for x in told[1]], rtol=2e-4, err_msg=name)
    assert "warning: 3 of 12 samples had an image or a reward that is not finite" in capsys.readouterr().out


def stepped(spoil, steps=7, decode=lambda x: x, **more):
    """(states, figures) of steps one after the other, and the operations of one."""
    stage = recipe_of(tiny(**SHORT | {"align__steps": steps} | more), spoil, decode).stages["align"]({})
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state, step, told = stage.init(jax.tree.map(lambda _: here, stage.shapes)), jax.jit(stage.step), []
    for i in range(steps):
        state, metrics = step(state, {}, stage.batch(i))
        told.append({name: float(value) for name, value in known.of_this_step(metrics).items()})
    return state, told, operations(stage.step, state, {}, stage.batch(0))


def test_the_rewards_terms_are_computed_where_they_are_logged_and_the_training_is_the_same():
    decode = lambda x: x @ jnp.eye(3)  # what a decoder costs
    always, every, dear = stepped(NEVER, decode=decode)
    seldom, some, cheap = stepped(NEVER, decode=decode, log__every=3, checkpoint__every=5, checkpoint__best="reward")
    jax.tree.map(np.testing.assert_array_equal, always, seldom)
    assert dear - cheap == 2 * BATCH * 3 * 3
    assert [i + 1 for i, line in enumerate(some) if "reward" in line] == [1, 3, 5, 6, 7]
    assert all("pull" in line and line.keys() <= every[0].keys() for line in some)
    for i in (0, 2, 4, 5, 6):
        assert some[i] == every[i]


def test_a_step_without_a_usable_sample_is_bad_whether_it_is_logged_or_not():
    state, told, _ = stepped(*ALWAYS["reward"][:1], steps=4, log__every=50, align__micro_batches=2)
    assert int(state.skipped) == int(state.streak) == 4
    assert all(np.isnan(line["reward"]) and line["reward/dropped"] == BATCH for line in told)


def test_a_stage_shorter_than_patience_whose_steps_were_all_bad_never_ends_as_finished(tmp_path):
    config = tiny(**SHORT | {"align__steps": 4, "watch__patience": 100, "checkpoint__every": 2})
    with pytest.raises(NotFinite, match="4 steps in a row"):
        train_tiny(tmp_path, config, recipe_of(config, *ALWAYS["reward"]))
    last = tmp_path / "checkpoints" / "align" / "4"
    with pytest.raises(NotFinite, match=f"mend that and remove {last}: the same command") as again:
        train_tiny(tmp_path, config, recipe_of(config, NEVER))
    assert again.value.code == 70 and "\n" not in str(again.value)
    last.rename(tmp_path / "away")  # as it says
    train_tiny(tmp_path, config, recipe_of(config, NEVER))
    assert figures(tmp_path)[-1]["skipped"] == 2 and np.isfinite(figures(tmp_path)[-1]["reward"])


def test_a_mean_is_over_the_samples_of_which_a_figure_is_known():
    values = jnp.array([1.0, jnp.nan, 4.0, 7.0])
    assert float(known.mean(known.measure(values), 4, 1)) == 4.0 and int(known.count(known.measure(values), 4)) == 3
    nothing = known.measure(jnp.full(4, jnp.nan))
    assert np.isnan(known.mean(nothing, 4, 1)) and int(known.count(nothing, 4)) == 0
    poisoned = known.measure(jnp.array([1.0, jnp.inf]))
    assert np.isinf(known.mean(poisoned, 2, 1)), "an infinity is a value, and shows"


def test_warnings_are_of_the_steps_since_the_last_one():
    dropped = Dropped(0.5, batch_size=4)
    for count in (4, 1):
        dropped.count({"reward/dropped": count})
    assert ["5 of 8 samples" in line for line in dropped.warnings({})] == [True]
    dropped.count({"reward/dropped": 2})
    assert dropped.warnings({"pull": 0.1}) == []
    dropped.count({})
    assert "exactly zero" in dropped.warnings({"pull": 0.0})[0]
