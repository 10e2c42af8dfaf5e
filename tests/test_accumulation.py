"""Gradients accumulated over micro-batches are those of the whole batch."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_runs import tiny

from didr_jax import recipes
from didr_jax.training.accumulation import over_micro_batches

SGD = {f"{part}.{knob}": value for part in ("pretrain.optimizer", "align.generator_optimizer", "align.ta_optimizer")
       for knob, value in (("name", "sgd"), ("b1", 0.0), ("lr", 0.1), ("warmup", 0))}  # fmt: skip


def after_one_step(name: str, parts: int, **overrides):
    config = tiny(**{"stages": ("pretrain", "distill", "align"), f"{name}__micro_batches": parts} | SGD | overrides)
    built = recipes.build(config)
    network = built.fresh(0)
    stage = built.stages[name]({"pretrain": {"params": network}, "distill": {"generator": network, "ta": network}})
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = stage.init(jax.tree.map(lambda _: here, stage.shapes))
    return jax.jit(stage.step)(state, {}, stage.batch(0))


STOCHASTIC = {"align__estimator": "covariance_cv", "align__num_steps": 2, "align__num_samples": 3}


@pytest.mark.parametrize(
    "name, knobs", [("pretrain", {}), ("align", {}), ("align", STOCHASTIC)], ids=["fit", "game", "stochastic estimator"]
)
def test_four_micro_batches_equal_the_whole_batch(name, knobs):
    whole, figures = after_one_step(name, 1, **knobs)
    parts, same_figures = after_one_step(name, 4, **knobs)
    for field in dataclasses.fields(whole):
        before, after = getattr(whole, field.name), getattr(parts, field.name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), before, after)
    assert figures.keys() == same_figures.keys()
    for figure in figures:
        np.testing.assert_allclose(figures[figure], same_figures[figure], rtol=1e-4, atol=1e-5, err_msg=figure)


def test_sums_are_kept_in_float32_and_rows_are_dealt_in_turn():
    rows = np.arange(512, dtype=np.float32)
    means = lambda part: (part.astype(jax.numpy.bfloat16).mean(), part[0], jax.numpy.asarray(part.shape[0]))
    mean, first, size = over_micro_batches(means, rows, 256)
    assert mean.dtype == jax.numpy.bfloat16
    np.testing.assert_allclose(float(mean), 255.5, rtol=4e-3)  # a bfloat16 sum of 256 terms would stall far below
    np.testing.assert_allclose(first, np.arange(256).mean())  # micro-batch i begins with row i
    assert size == 2
