"""Adapters on a scanned, rematerialised network: identity at the start, equal to merging, alone in the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from didr_jax import lora as lora_lib
from didr_jax.models.zimage import ZImageTransformer
from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.types import InputError
from didr_jax.weights import lora_files
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import read_tensors, write_safetensors
from didr_jax.weights.zimage import zimage_table

CONFIG = ZImageConfig(
    in_channels=4, dim=24, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=8, axes_dims=(4, 4, 4),
    axes_lens=(64, 16, 16),
)  # fmt: skip
MODEL = ZImageTransformer(CONFIG, remat="products")
PATTERNS = [r"^layers/attention/to_", r"context_refiner/feed_forward/w2$", r"^x_embedder$"]
ALPHA = 6.0


@jax.jit
def apply(params, x):
    t, caption = jnp.array([0.2, 0.9]), jnp.ones((2, 5, 8))
    return MODEL.apply({"params": params}, x, t, caption, jnp.array([3, 5]))


def noisy(tree, seed, scale):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), tree)


@pytest.fixture(scope="module")
def setup():
    """(base parameters, adapters far from their start, input)."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 4)), jnp.float32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(1), x, x[:, 0, 0, 0], jnp.ones((2, 5, 8)), jnp.array([3, 5]))
    params = noisy(shapes["params"], 1, 0.3)
    lora = lora_lib.init(jax.random.key(3), params, PATTERNS, rank=2)
    return params, jax.tree.map(jnp.add, lora, noisy(lora, 2, 0.2)), x


def close(got, want, rel=2e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=rel * float(np.abs(want).max()))


def test_init(setup):
    params, _, x = setup
    lora = lora_lib.init(jax.random.key(0), params, PATTERNS, rank=2)
    flat = flatten_dict(lora, sep="/")
    names = [f"layers/attention/to_{n}" for n in ("k", "out", "q", "v")]
    assert sorted({k.rsplit("/", 1)[0] for k in flat}) == ["context_refiner/feed_forward/w2", *names, "x_embedder"]
    assert flat["layers/attention/to_q/lora_a"].shape == (3, 24, 2)
    assert flat["context_refiner/feed_forward/w2/lora_b"].shape == (1, 2, 24)
    a = flat["layers/attention/to_q/lora_a"]
    assert np.abs(a).max() <= 24**-0.5 and np.std(a) == pytest.approx((24 * 3) ** -0.5, rel=0.2)
    assert not np.array_equal(a, flat["layers/attention/to_k/lora_a"]) and not np.array_equal(a[0], a[1])
    assert not any(np.any(v) for k, v in flat.items() if k.endswith("lora_b"))
    adapted = lora_lib.applied(apply, ALPHA)
    np.testing.assert_array_equal(adapted(params, lora, x), adapted(params, None, x))


def test_shapes_suffice_to_init(setup):
    params, lora, _ = setup
    abstract = jax.eval_shape(lambda p: p, params)
    made = jax.eval_shape(lambda key: lora_lib.init(key, abstract, PATTERNS, 2, jnp.bfloat16), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, made) == jax.tree.map(lambda leaf: leaf.shape, lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.bfloat16)}


def test_applied_equals_merged_and_off_is_the_base(setup):
    params, lora, x = setup
    adapted = lora_lib.applied(apply, ALPHA)
    base, out = adapted(params, None, x), adapted(params, lora, x)
    np.testing.assert_array_equal(base, apply(params, x))
    close(out, apply(lora_lib.merge(params, lora, ALPHA), x))
    assert np.abs(out - base).max() > 0.1 * np.abs(base).max()


def test_alpha_is_not_lost_in_a_jitted_apply(setup):
    params, lora, x = setup
    one, two = (lora_lib.applied(apply, alpha)(params, lora, x) for alpha in (ALPHA, 2 * ALPHA))
    close(two, apply(lora_lib.merge(params, lora, 2 * ALPHA), x))
    assert np.abs(one - two).max() > 0.1 * np.abs(one).max()


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1], name="out")(nn.gelu(nn.Dense(16, name="in")(x))), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        body = nn.remat(Layer, prevent_cse=False)
        return nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(name="layers")(x)[0]


def test_shared_base_gives_the_gradients_of_separate_copies():
    """TA, generator and reference on one base, against three networks with weights of their own."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    network = lambda params, x: Stack().apply({"params": params}, x)
    base = noisy(jax.eval_shape(Stack().init, jax.random.key(0), x)["params"], 1, 0.3)
    lora_g, lora_ta = (noisy(lora_lib.init(jax.random.key(0), base, ["in", "out"], rank=2), i, 0.3) for i in (2, 3))

    def losses(generator, ta, reference):
        """The generator's distribution-matching loss (its gradient flows through the sample only) and the TA's."""
        x0 = generator(x)
        pull = jax.lax.stop_gradient(ta(x0) - reference(x0))
        return (pull * x0).mean() + ((ta(jax.lax.stop_gradient(x0)) - x) ** 2).mean()

    def shared(lora_g, lora_ta):
        return losses(*(lambda x, a=a: lora_lib.applied(network, ALPHA)(base, a, x) for a in (lora_g, lora_ta, None)))

    def copies(lora_g, lora_ta):
        own = [*(lora_lib.merge(base, a, ALPHA) for a in (lora_g, lora_ta)), jax.tree.map(jnp.copy, base)]
        return losses(*(lambda x, p=p: network(p, x) for p in own))

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(lora_g, lora_ta) for f in (shared, copies))
    jax.tree.map(close, got, want)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got[1]))


def test_float32_adapters_on_a_bf16_base():
    """The output keeps the layer's type, and the sum of merging is rounded once."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.bfloat16)
    layer = nn.Dense(4, use_bias=False, dtype=jnp.bfloat16)
    base = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.bfloat16)}
    lora = noisy({"lora_a": base["kernel"][:, :2], "lora_b": base["kernel"][:2]}, 2, 1.0)
    out = lora_lib.applied(lambda p, x: layer.apply({"params": p}, x), ALPHA)(base, lora, x)
    merged = lora_lib.merge(base, lora, ALPHA)["kernel"]
    assert out.dtype == merged.dtype == jnp.bfloat16
    exact = base["kernel"].astype(jnp.float32) + ALPHA / 2 * lora["lora_a"] @ lora["lora_b"]
    np.testing.assert_array_equal(merged, exact.astype(jnp.bfloat16))
    close(out.astype(jnp.float32), x.astype(jnp.float32) @ exact, 0.02)


def test_saved_adapters_have_peft_names_and_act_like_the_merged_weights(setup, tmp_path):
    params, lora, _ = setup
    table = zimage_table(CONFIG)
    lora_files.save(tmp_path / "adapter.safetensors", lora, ALPHA, table, prefix="transformer")
    file = read_tensors(tmp_path / "adapter.safetensors")
    assert file["transformer.layers.2.attention.to_out.0.lora_A.weight"].shape == (2, 24)
    assert file["transformer.all_x_embedder.2-1.lora_B.weight"].shape == (24, 2)
    assert len(file) == 2 * (3 * 4 + 1 + 1)
    base, merged = (to_torch(p, table) for p in (params, lora_lib.merge(params, lora, ALPHA)))
    changed = 0
    for name, tensor in base.items():
        want, key = np.asarray(merged[name]), f"transformer.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in file:
            tensor = np.asarray(tensor) + file[f"{key}.lora_B.weight"] @ file[f"{key}.lora_A.weight"]
            changed += 1
        close(np.asarray(tensor), want, 1e-6)
    assert changed == len(file) // 2


def test_saved_adapters_come_back(setup, tmp_path):
    params, lora, _ = setup
    table, path = zimage_table(CONFIG), tmp_path / "adapter.safetensors"
    load = lambda alpha, prefix="transformer": lora_files.saved(path, params, alpha, [table], prefix=prefix).load()
    lora_files.save(path, lora, 8.0, table, prefix="transformer")  # alpha/rank is a power of two: nothing is rounded
    jax.tree.map(np.testing.assert_array_equal, load(8.0), lora)
    lora_files.save(path, lora, ALPHA, table, prefix="transformer")
    jax.tree.map(lambda got, want: close(got, want, 1e-6), load(ALPHA), lora)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), *(lora_lib.merge(params, load(a), a) for a in (ALPHA, 1.0)))

    file = {key: np.array(tensor) for key, tensor in read_tensors(path).items()}
    key = "transformer.layers.1.attention.to_q.lora_A.weight"
    for change, message in (
        ({key: None}, "lacks one of the pair"), ({key: file[key][:, :7]}, "1 misshapen: layers.1.attention.to_q"),
        ({"transformer.conv_in.lora_A.weight": file[key], "transformer.conv_in.lora_B.weight": file[key]}, "holds transformer.conv_in.lora"),
        ({key: file[key] * np.nan}, "not finite in the adapter of layers.1.attention.to_q"),
        ({key: file[key].astype(np.int8)}, "1 of integers: layers.1.attention.to_q"),
        ({"transformer.layers.1.alpha": file[key]}, "layers.1.alpha; expected are transformer.LAYER.lora_A.weight"),
    ):  # fmt: skip
        write_safetensors(path, {k: v for k, v in (file | change).items() if v is not None})
        with pytest.raises(InputError, match=message):
            load(ALPHA)
    with pytest.raises(InputError, match="expected are unet.LAYER"):
        load(ALPHA, prefix="unet")


def test_refusals(setup):
    params, lora, x = setup
    with pytest.raises(InputError, match="'attn1/to_q' matches no layer; layers are named like .*/"):
        lora_lib.init(jax.random.key(0), params, ["attn1/to_q"], 2)
    for patterns, says in (
        (["("], r"'\(' is no regular expression"),
        ([3], "3 is no regular expression"),
        ([], "no pattern is given"),
    ):
        with pytest.raises(InputError, match=says):
            lora_lib.init(jax.random.key(0), params, patterns, 2)
    with pytest.raises(InputError, match="conv is a convolution"):
        lora_lib.init(jax.random.key(0), {"conv": {"kernel": jnp.zeros((3, 3, 4, 4))}}, ["conv"], 2)
    with pytest.raises(InputError, match=r"x_embedder \(16 to 24\) does not fit"):
        lora_lib.merge({"x_embedder": {"kernel": jnp.zeros((16, 32))}}, {"x_embedder": lora["x_embedder"]}, 1.0)
    heads = nn.DenseGeneral((4, 6), use_bias=False)
    general = {"kernel": jnp.zeros((5, 4, 6))}
    adapters = {"lora_a": jnp.zeros((5, 4, 2)), "lora_b": jnp.zeros((5, 2, 6))}
    with pytest.raises(InputError, match="DenseGeneral"):
        lora_lib.applied(lambda p, x: heads.apply({"params": p}, x), 1.0)(general, adapters, jnp.ones((2, 5)))


def test_the_nearest_adapters_leave_the_singular_values_after_their_rank():
    """Eckart and Young: what is left of each difference has the squared norm of the singular values that were dropped."""
    rng = np.random.default_rng(9)
    shapes = {"one": (6, 9), "stack": (3, 9, 7), "conv": (3, 3, 4, 5)}
    layer = lambda shape: {"kernel": rng.normal(size=shape).astype(np.float32), "bias": rng.normal(size=4).astype(np.float32)}
    tree = lambda: {name: layer(shape) for name, shape in shapes.items()}
    base, params = tree(), tree()
    found, share = lora_lib.nearest(params, base, rank=2, alpha=5.0)
    assert found.keys() == {"one", "stack"}
    near = lora_lib.merge(base, found, alpha=5.0)
    for name in found:
        dropped = np.linalg.svd(params[name]["kernel"] - base[name]["kernel"], compute_uv=False)[..., 2:]
        left = params[name]["kernel"] - near[name]["kernel"]
        np.testing.assert_allclose(np.sum(left**2), np.sum(dropped**2), rtol=1e-4)
    distance = lambda a, b: sum(np.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    np.testing.assert_allclose(share, 1 - distance(params, near) / distance(params, base), rtol=1e-4)
