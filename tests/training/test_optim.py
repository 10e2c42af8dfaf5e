"""Optimisers against their papers' updates written out in numpy, the learning rate's course, and updates that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny

from didr_jax.config import optimizer
from didr_jax.training.optim import MOMENT_DECAY, OPTIMIZERS, guarded_update, learning_rate, make_optimizer, moving_average
from didr_jax.training.validate import validate
from didr_jax.types import InputError

STEPS = 9  # of a run whose rate climbs for two updates and falls to zero


def knobs(name="adamw", lr=0.1, **changes):
    section = optimizer(lr)
    section.update(dict(name=name, warmup=0, clip=1e9) | changes)
    return section


# ------------------------------------------------------------------------------- the learning rate


def test_the_rate_climbs_linearly_from_its_first_part_to_the_peak_and_stays():
    rate = learning_rate(knobs(lr=0.8, warmup=4), num_steps=100)
    climb = [0.2, 0.35, 0.5, 0.65]  # from lr/4 at update 0, in four equal steps
    np.testing.assert_allclose([rate(k) for k in (*range(4), 4, 5, 99)], [*climb, 0.8, 0.8, 0.8], rtol=1e-6)


def test_without_warm_up_the_first_update_has_the_whole_rate():
    rate = learning_rate(knobs(lr=0.8, warmup=0), num_steps=100)
    np.testing.assert_array_equal([rate(0), rate(99)], np.float32([0.8, 0.8]))


def test_decay_is_half_a_cosine_from_the_end_of_the_warm_up_to_zero_where_the_run_ends():
    rate = learning_rate(knobs(lr=0.8, warmup=4, decay=True), num_steps=12)
    np.testing.assert_allclose([rate(4), rate(6), rate(8)], [0.8, 0.4 * (1 + np.cos(np.pi / 4)), 0.4], rtol=1e-6)
    course = np.array([rate(k) for k in range(4, 14)])
    assert (course[:8] > 0).all() and (np.diff(course[:9]) < 0).all(), "each update is smaller, and the last is still one"
    np.testing.assert_array_equal(course[8:], 0.0)  # exactly, from update 12 on


@pytest.mark.parametrize("decay", [False, True])
def test_a_run_shorter_than_its_warm_up_only_climbs(decay):
    course = [learning_rate(knobs(lr=0.8, warmup=10, decay=decay), num_steps=3)(k) for k in range(3)]
    np.testing.assert_allclose(course, [0.08, 0.152, 0.224], rtol=1e-6)


# ------------------------------------------------------------------- each row, written out in numpy
# Each takes (parameter, gradient, its state, update's number from 0, rate, knobs) and returns the new parameter.


def adamw(p, g, s, k, lr, c):
    s["m"] = c.b1 * s.get("m", 0) + (1 - c.b1) * g
    s["v"] = c.b2 * s.get("v", 0) + (1 - c.b2) * g**2
    m, v = s["m"] / (1 - c.b1 ** (k + 1)), s["v"] / (1 - c.b2 ** (k + 1))
    return p - lr * (m / (np.sqrt(v) + c.eps) + c.weight_decay * p)


def lion(p, g, s, k, lr, c):
    m = s.get("m", 0)
    s["m"] = c.b2 * m + (1 - c.b2) * g
    return p - lr * (np.sign(c.b1 * m + (1 - c.b1) * g) + c.weight_decay * p)


def sgd(p, g, s, k, lr, c):
    s["m"] = g + c.b1 * s.get("m", 0)
    return p - lr * (s["m"] + c.weight_decay * p)


def adafactor(p, g, s, k, lr, c):
    """Rows' and columns' means of g² where both are 128 long or more; relative rate; updates clipped at RMS 1."""
    decay, g2 = 1 - (k + 1.0) ** -0.8, g**2
    if min(g.shape) >= 128 and g.ndim == 2:
        s["row"] = decay * s.get("row", 0) + (1 - decay) * g2.mean(1)
        s["column"] = decay * s.get("column", 0) + (1 - decay) * g2.mean(0)
        v = np.outer(s["row"], s["column"]) / s["row"].mean()
    else:
        v = s["v"] = decay * s.get("v", 0) + (1 - decay) * g2
    rms = lambda x: np.sqrt(np.mean(x**2))
    u = g / np.sqrt(v)
    u = lr * max(rms(p), 1e-3) * u / max(1.0, rms(u))
    s["m"] = c.b1 * s.get("m", 0) + (1 - c.b1) * u
    return p - s["m"] - lr * c.weight_decay * p


def muon(p, g, s, k, lr, c):
    """A kernel along its momentum with all singular values brought near 1; anything else by adamw, both with Nesterov's."""
    s["m"] = c.b1 * s.get("m", 0) + (1 - c.b1) * g
    ahead = c.b1 * s["m"] / (1 - c.b1 ** (k + 2)) + (1 - c.b1) * g / (1 - c.b1 ** (k + 1))
    if g.ndim == 1:
        s["v"] = c.b2 * s.get("v", 0) + (1 - c.b2) * g**2
        return p - lr * (ahead / (np.sqrt(s["v"] / (1 - c.b2 ** (k + 1))) + c.eps) + c.weight_decay * p)
    left, values, right = np.linalg.svd(ahead.reshape(-1, g.shape[-1]), full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    matrix = (left * values) @ right
    return p - lr * (c.muon_rms * np.sqrt(max(matrix.shape)) * matrix.reshape(g.shape) + c.weight_decay * p)


PAPERS = {"adamw": adamw, "lion": lion, "muon": muon, "sgd": sgd, "adafactor": adafactor}


def rate_of(k):
    """Of `lr=0.1, warmup=2, decay=True` over STEPS updates."""
    return (0.05, 0.075)[k] if k < 2 else 0.05 * (1 + np.cos(np.pi * (k - 2) / (STEPS - 2)))


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {"kernel": scale * rng.normal(size=(128, 130)), "bias": scale * rng.normal(size=7)}


def single(values):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), values)


def train(section, params, gradients):
    tx = make_optimizer(section, STEPS)
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        updates, state = update(single(g), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def by_hand(section, params, gradients):
    states = {name: {} for name in params}
    for k, g in enumerate(gradients):
        norm = np.sqrt(sum(np.sum(x**2) for x in g.values()))
        for name, p in params.items():
            scaled = g[name] * min(1.0, section.clip / norm)
            params[name] = PAPERS[section.name](p, scaled, states[name], k, rate_of(k), section)
    return params


@pytest.mark.parametrize(
    "shape, parts", [((3, 8, 12), 3), ((3, 3, 8, 12), 1), ((2, 3, 3, 4, 12), 2)], ids=["blocks", "conv", "convs"]
)
def test_muon_takes_each_kernel_of_a_stack_as_one_matrix_and_a_convolution_as_pixels_times_channels_in(shape, parts):
    rng, section = np.random.default_rng(parts), knobs("muon", warmup=2, decay=True)
    start, g = rng.normal(size=(2, *shape))
    got, _ = train(section, single({"kernel": start}), [{"kernel": g}])
    each = (start, g) if parts > 1 else (start[None], g[None])
    want = [muon(p, g, {}, 0, rate_of(0), section) for p, g in zip(*each, strict=True)]
    np.testing.assert_allclose(got["kernel"], np.reshape(want, shape), atol=2e-6)


def test_every_row_of_the_table_has_its_paper_here():
    assert PAPERS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("b1", [0.9, 0.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_updates_are_those_of_the_paper(name, b1):
    """With weight decay, a rate that climbs and falls, and every second gradient clipped."""
    section = knobs(name, lr=0.1, b1=b1, b2=0.95, weight_decay=0.3, warmup=2, decay=True, clip=150.0)
    gradients = [tree(1 + k, scale=(0.5, 3.0)[k % 2]) for k in range(5)]  # norms near 65 and 390
    got, _ = train(section, single(tree(0)), gradients)
    want = by_hand(section, tree(0), gradients)
    moved = max(np.abs(want[name] - tree(0)[name]).max() for name in want)
    assert moved > 0.05
    for leaf in want:
        np.testing.assert_allclose(got[leaf], want[leaf], rtol=0, atol=2e-5 * moved, err_msg=leaf)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_alone_shrinks_parameters_by_the_rate_times_the_decay(name):
    """In all rows alike, so that another name in the config does not mean another strength."""
    zero = jax.tree.map(np.zeros_like, tree(0))
    got, _ = train(knobs(name, lr=0.1, weight_decay=0.5), single(tree(0)), [zero])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b * (1 - 0.1 * 0.5), rtol=1e-5), got, tree(0))


# ------------------------------------------------------------------------------ what the state costs


BYTES = {  # (name, b1, moment_dtype) -> bytes of state per parameter, of matrices that adafactor factors
    ("adamw", 0.9, "float32"): 8,
    ("adamw", 0.9, "bfloat16"): 6,
    ("lion", 0.9, "float32"): 4,
    ("lion", 0.9, "bfloat16"): 2,
    ("muon", 0.9, "float32"): 4,
    ("muon", 0.9, "bfloat16"): 2,
    ("sgd", 0.9, "float32"): 4,
    ("sgd", 0.9, "bfloat16"): 2,
    ("sgd", 0.0, "float32"): 0,
    ("adafactor", 0.9, "float32"): 4,
    ("adafactor", 0.9, "bfloat16"): 2,
    ("adafactor", 0.0, "float32"): 0,
}


@pytest.mark.parametrize("name, b1, dtype", BYTES)
def test_bytes_of_state_per_parameter(name, b1, dtype):
    params = {"kernel": jax.ShapeDtypeStruct((1024, 2048), jnp.float32)}
    state = jax.eval_shape(make_optimizer(knobs(name, b1=b1, moment_dtype=dtype), STEPS).init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / (1024 * 2048)
    assert BYTES[name, b1, dtype] <= size < BYTES[name, b1, dtype] + 0.01


def test_adafactor_without_momentum_holds_a_row_and_a_column_and_no_matrix():
    state = make_optimizer(knobs("adafactor", b1=0.0), STEPS).init(single(tree(0)))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes[-3:] == [7, 128, 130], "the bias is too short to factor"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bfloat16_is_for_first_moments_only_and_stays_so(name):
    params, state = train(knobs(name, b2=0.95, moment_dtype="bfloat16"), single(tree(0)), [tree(1), tree(2)])
    first = {"mu", "trace", "ema"}  # optax's names of first moments
    kinds = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.ndim:
            names = {str(getattr(key, "name", "")) for key in path}
            kinds.setdefault(leaf.dtype.name, set()).update(names - {"", "inner_state", "inner_states"})
    assert kinds["bfloat16"] and kinds["bfloat16"] <= first
    assert kinds.get("float32", set()) <= {"nu", "v", "v_row", "v_col", "ns_coeffs"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


@pytest.mark.parametrize("name, decay", MOMENT_DECAY.items())
def test_a_moment_in_bfloat16_decays_at_its_own_rate(name, decay):
    """0.99 is 0.9883 in bfloat16, and 0.999 is 1: what is stored in it must not be worked on in it."""
    section = knobs(name, lr=1.0, moment_dtype="bfloat16", weight_decay=0.0, **{decay: 0.99})
    tx = make_optimizer(section, STEPS)
    params = {"x": jnp.ones(64)}
    is_moment = lambda leaf: leaf.dtype == jnp.bfloat16
    state = jax.tree.map(lambda leaf: jnp.linspace(1, 2, 64).astype(leaf.dtype) if is_moment(leaf) else leaf, tx.init(params))
    before = next(leaf for leaf in jax.tree.leaves(state) if is_moment(leaf))
    _, state = tx.update({"x": jnp.zeros(64)}, state, params)
    after = next(leaf for leaf in jax.tree.leaves(state) if is_moment(leaf))
    exact = (np.float32(0.99) * before.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(after, exact)


def second_moment(state):
    """That of the only parameter, by optax's names."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    (found,) = [leaf for path, leaf in leaves if {"nu", "v"} & {getattr(key, "name", "") for key in path}]
    return found


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_second_moments_of_parameters_in_bfloat16_are_float32_and_forget(name):
    """In bfloat16 a second moment only grows: a thousandth less is the same number there."""
    section = knobs(name, b1=0.0, b2=0.999)
    tx, params = make_optimizer(section, STEPS), {"x": jnp.ones(64, jnp.bfloat16)}
    update, state, sizes = jax.jit(tx.update), tx.init(params), []
    for gradient in (1.0, 0.0, 0.0):
        updates, state = update({"x": jnp.full(64, gradient, jnp.bfloat16)}, state, params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        second = second_moment(state)
        sizes.append(float(second[0]))
    decays = [0.999, 0.999] if name == "adamw" else [1 - 2**-0.8, 1 - 3**-0.8]
    assert second.dtype == jnp.float32 and params["x"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.divide(sizes[1:], sizes[:-1]), decays, rtol=1e-4)


# ------------------------------------------------------------------------------------------- clipping


def test_a_gradient_is_scaled_to_the_clip_over_all_leaves_and_left_alone_below_it():
    params, big = {"a": jnp.zeros(2), "b": jnp.zeros(1)}, {"a": np.array([3.0, 4.0]), "b": np.array([12.0])}  # norm 13
    got, _ = train(knobs("sgd", lr=1.0, b1=0.0, clip=6.5), params, [big])
    jax.tree.map(lambda a, g: np.testing.assert_allclose(a, -g / 2, rtol=1e-6), got, big)
    got, _ = train(knobs("sgd", lr=1.0, b1=0.0, clip=13.1), params, [big])
    jax.tree.map(lambda a, g: np.testing.assert_array_equal(a, -g), got, big)


# ------------------------------------------------------------------------------------- guarded updates


@pytest.fixture(scope="module")
def guarded():
    """(jitted update, parameters and optimiser state after one good update, a good gradient)."""
    tx = make_optimizer(knobs(weight_decay=0.1), STEPS)
    update = jax.jit(lambda grads, state, params, loss: guarded_update(tx, grads, state, params, loss))
    params, good = single({"w": np.ones((2, 3)), "b": np.zeros(3)}), single({"w": np.full((2, 3), 0.5), "b": np.ones(3)})
    params, state, _, _ = update(good, tx.init(params), params, 0.0)
    return update, params, state, good


def bits(values):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(values)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "one entry of the gradient"])
def test_an_update_that_is_not_finite_changes_no_bit_and_is_counted(guarded, where, bad):
    update, params, state, grads = guarded
    if where != "loss":
        grads = grads | {"w": grads["w"].at[1, 2].set(bad)}
    new_params, new_state, norm, skipped = update(grads, state, params, bad if where == "loss" else 0.0)
    assert bits(new_params) == bits(params) and bits(new_state) == bits(state)
    assert int(skipped) == 1 and skipped.dtype == jnp.int32
    assert bool(jnp.isfinite(norm)) == (where == "loss"), "the norm that is logged tells what was bad"


def test_a_finite_update_goes_through_with_its_norm_and_is_not_counted(guarded):
    update, params, state, grads = guarded
    new_params, new_state, norm, skipped = update(grads, state, params, 3.0)
    assert int(skipped) == 0
    np.testing.assert_allclose(norm, np.sqrt(6 * 0.25 + 3), rtol=1e-6)
    assert not set(bits(new_params)) & set(bits(params)) and bits(new_state) != bits(state)


# ------------------------------------------------------------------------------------- moving average


def test_the_average_forgets_its_start_by_a_ramp_and_then_keeps_its_decay():
    for step, decay in ((0, 1 / 10), (8, 9 / 18), (89, 90 / 99), (10**6, 0.95)):  # (1 + step)/(10 + step), at most 0.95
        got = moving_average({"w": jnp.full(3, 2.0)}, {"w": jnp.full(3, 5.0)}, jnp.asarray(step), 0.95, jax.random.key(0))
        np.testing.assert_allclose(got["w"], decay * 2 + (1 - decay) * 5, rtol=1e-6)


def test_the_average_keeps_its_dtypes_whatever_the_parameters_have():
    average = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2)}
    params = {"half": jnp.full(2, 3.0), "single": jnp.full(2, 3.0, jnp.bfloat16)}
    got = jax.jit(lambda a, p, k: moving_average(a, p, k, 0.5, jax.random.key(0)))(average, params, jnp.asarray(100))
    assert got["half"].dtype == jnp.bfloat16 and got["single"].dtype == jnp.float32
    jax.tree.map(lambda x: np.testing.assert_array_equal(x.astype(jnp.float32), 2.0), got)


# ------------------------------------------------------------------------------ knobs that cannot work


@pytest.mark.parametrize(
    "knob, value, rule",
    [
        ("name", "adam", "did you mean adamw"),
        ("moment_dtype", "float16", "did you mean"),
        ("lr", 0.0, "must be positive"),
        ("clip", 0.0, "must be positive"),  # every gradient would be scaled to nothing
        ("eps", 0.0, "must be positive"),  # a parameter without a gradient would become 0/0
        ("warmup", -1, "must be at least 0"),
        ("weight_decay", -0.1, "must be at least 0"),
        ("b1", 1.0, r"must lie in \[0, 1\)"),
        ("b2", 1.0, r"must lie in \[0, 1\)"),
    ],
)
def test_a_knob_that_cannot_work_is_refused_by_its_key(knob, value, rule):
    for part in ("pretrain.optimizer", "distill.ta_optimizer", "distill.generator_optimizer"):
        with pytest.raises(InputError, match=f"config.{part}.{knob} = .*{rule}"):
            validate(tiny(**{f"{part}.{knob}": value}))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_moment_that_bfloat16_cannot_let_forget_is_refused(name):
    """Its last digit is 1/128 to 1/256 of a number: a decay that takes off less than half of that takes off nothing."""
    for decay, forgets in ((0.99, True), (0.999, False)):
        moment = jnp.linspace(1, 2, 1000).astype(jnp.bfloat16)
        less = (np.float32(decay) * moment.astype(jnp.float32)).astype(jnp.bfloat16)
        assert bool((less < moment).all()) == forgets
        part = {"b1": 0.9, "b2": 0.9, "name": name, "moment_dtype": "bfloat16", MOMENT_DECAY[name]: decay}
        config = tiny(**{f"pretrain.optimizer.{key}": value for key, value in part.items()})
        if forgets:
            validate(config)
        else:
            with pytest.raises(InputError, match=f"config.pretrain.optimizer.{MOMENT_DECAY[name]} = 0.999: .*bfloat16"):
                validate(config)
