"""Z-Image's transformer against diffusers' `ZImageTransformer2DModel`: random weights, ragged captions."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock  # noqa: E402

from didr_jax.models.zimage import Block, ZImageTransformer, positions  # noqa: E402
from didr_jax.models.zimage_config import ZImageConfig  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.engine import to_flax, to_torch  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from didr_jax.weights.zimage import zimage_table  # noqa: E402
from tests.parity.oracle import QUICK, assert_close, nchw, nhwc, randomise  # noqa: E402

CONFIGS = {
    # Feed-forward width floor(40 · 8/3) = 106; more than one layer in every stage.
    "deep": dict(dim=40, n_layers=3, n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=24, in_channels=4,
                 axes_dims=[4, 8, 8], axes_lens=[256, 32, 32]),
    # Wider than the time embedding's 256; every scalar differs from its default.
    "wide": dict(dim=264, n_layers=1, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=16, in_channels=2,
                 axes_dims=[32, 28, 28], axes_lens=[128, 16, 32], norm_eps=1e-2, rope_theta=100.0, t_scale=500.0,
                 all_patch_size=[4]),
}  # fmt: skip
# Configuration, latent size, lengths of the captions: streams with and without padding, ragged over multiples of 32.
CASES = {
    "deep, square, ragged": ("deep", (8, 8), (5, 33, 96)),
    "deep, tall, full tiles": ("deep", (32, 8), (32, 32, 32)),
    "wide, one tile": ("wide", (8, 16), (7, 31, 1)),
}


def flax_shapes(config):
    inputs = jnp.zeros((1, 8, 8, config.in_channels)), jnp.zeros(1), jnp.zeros((1, 32, config.cap_feat_dim))
    return jax.eval_shape(ZImageTransformer(config).init, jax.random.key(0), *inputs, jnp.ones(1, int))["params"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """{name: (torch model, our config, our parameters)}, the latter two read from the folder that diffusers saved."""
    return {name: make_pair(raw, tmp_path_factory.mktemp(name)) for name, raw in CONFIGS.items()}


def make_pair(raw, folder):
    oracle = randomise(diffusers.ZImageTransformer2DModel(**raw))
    oracle.save_pretrained(folder)
    config = ZImageConfig.from_json(json.loads((folder / "config.json").read_text()))
    return oracle, config, to_flax(read_tensors(folder), zimage_table(config), flax_shapes(config))


def draw(config, size, lengths):
    rng = np.random.default_rng(sum(lengths))
    x = rng.normal(size=(len(lengths), *size, config.in_channels)).astype(np.float32)
    caption = rng.normal(size=(len(lengths), max(lengths), config.cap_feat_dim)).astype(np.float32)
    return x, np.array([0.0, 0.37, 1.0], np.float32), caption, np.array(lengths)


def run_torch(oracle, x, t, caption, lengths):
    """x is a leaf NCHW tensor -> NCHW."""
    captions = [torch.from_numpy(c[:n]) for c, n in zip(caption, lengths, strict=True)]
    patch = oracle.config.all_patch_size[0]
    out = oracle(list(x[:, :, None].unbind(0)), torch.from_numpy(t), captions, patch_size=patch, return_dict=False)[0]
    return torch.stack(out)[:, :, 0]


@pytest.mark.parametrize("case", CASES)
def test_whole_and_gradient(pairs, case):
    name, *inputs = CASES[case]
    oracle, config, params = pairs[name]
    x, t, caption, lengths = draw(config, *inputs)
    probe = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    leaf = nchw(x).requires_grad_()
    want = run_torch(oracle, leaf, t, caption, lengths)
    (want * nchw(probe)).sum().backward()

    # What lies beyond a caption's length must not matter.
    for row, n in zip(caption, lengths, strict=True):
        row[n:] = 1e3
    model = ZImageTransformer(config, remat="blocks")

    @functools.partial(jax.jit, compiler_options=QUICK)
    def value_and_grad(x):
        f = lambda x: (out := model.apply({"params": params}, x, t, caption, lengths), (out * probe).sum())[::-1]
        (_, out), grad = jax.value_and_grad(f, has_aux=True)(x)
        return out, grad

    out, grad = value_and_grad(x)
    assert_close(out, nhwc(want), what="output")
    assert_close(grad, nhwc(leaf.grad), what="gradient to the latents")


@pytest.mark.parametrize("name", CONFIGS)
def test_layer_by_layer(pairs, name):
    """Each block on its torch twin's own input, so that no error can hide behind another or add up."""
    oracle, config, params = pairs[name]
    x, t, caption, lengths = draw(config, (8, 8), (5, 33, 70))
    seen = {}
    for name, module in oracle.named_modules():
        if isinstance(module, ZImageTransformerBlock):
            module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args, out)}))
    with torch.no_grad():
        run_torch(oracle, nchw(x), t, caption, lengths)

    padded = -(-lengths // 32) * 32
    side = 8 // config.patch_size
    image, text = positions(config, jnp.asarray(padded), side, side, 96)
    angles = {"noise_refiner": image, "context_refiner": text, "layers": jnp.concatenate([image, text], axis=1)}
    assert len(seen) == config.n_layers + 2 * config.n_refiner_layers
    apply = jax.jit(Block.apply, static_argnums=0, compiler_options=QUICK)
    for name, (args, want) in seen.items():
        stage, i = name.split(".")
        block = Block(config, modulated=stage != "context_refiner")
        own = jax.tree.map(lambda leaf: leaf[int(i)], params[stage])
        h, mask, _, *time = (None if a is None else a.detach().numpy() for a in args[:4])
        got, _ = apply(block, {"params": own}, h, angles[stage], mask, *time or [None])
        keep = np.ones(h.shape[:2], bool) if mask is None else mask  # rows of padding hold no meaning
        assert_close(np.asarray(got)[keep], want.numpy()[keep], what=name)


def test_bfloat16(pairs):
    """Half precision throughout is the same function, roughly."""
    _, config, params = pairs["deep"]
    inputs = draw(config, (8, 8), (5, 33, 96))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    model = ZImageTransformer(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    out = jax.jit(model.apply, compiler_options=QUICK)({"params": half}, *inputs)
    assert out.dtype == jnp.bfloat16
    full = jax.jit(ZImageTransformer(config).apply, compiler_options=QUICK)({"params": params}, *inputs)
    assert_close(out.astype(jnp.float32), full, rel=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_loads_what_we_write(pairs, name, tmp_path):
    oracle, config, params = pairs[name]
    tensors = to_torch(params, zimage_table(config))
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(dict(oracle.config)))
    loaded, report = diffusers.ZImageTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    with torch.no_grad():
        x, t, caption, lengths = draw(config, (8, 8), (5, 33, 64))
        assert torch.equal(*(run_torch(m, nchw(x), t, caption, lengths) for m in (oracle, loaded.eval())))


def test_published_size():
    with torch.device("meta"):
        want = {k: tuple(v.shape) for k, v in diffusers.ZImageTransformer2DModel().state_dict().items()}
    config = ZImageConfig.from_json({})
    shapes = flax_shapes(config)
    got = {name: tensor.shape for name, tensor in to_torch(shapes, zimage_table(config)).items()}
    assert got == want and len(got) == 521
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 6_154_908_736


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ({"qk_norm": False}, "qk_norm=False"),
        ({"siglip_feat_dim": 1152}, "siglip_feat_dim=1152"),
        ({"n_kv_heads": 15}, "n_kv_heads"),
        ({"all_patch_size": [2, 4], "all_f_patch_size": [1, 1]}, "all_f_patch_size"),
        ({"axes_dims": [16, 56, 48]}, "axes_dims"),
        ({"window": 3}, "window"),
    ],
)
def test_unsupported_config_is_refused_by_name(raw, named):
    with pytest.raises(InputError, match=named):
        ZImageConfig.from_json(raw)


@pytest.mark.parametrize(("size", "length"), [((7, 8), 8), ((8, 80), 8), ((8, 8), 250)])
def test_inputs_that_do_not_fit_are_refused(size, length):
    config = ZImageConfig.from_json(CONFIGS["deep"])
    x = jnp.zeros((1, *size, config.in_channels))
    with pytest.raises(InputError, match=f"{size[0]}×{size[1]}"):
        jax.eval_shape(
            ZImageTransformer(config).init,
            jax.random.key(0), x, jnp.zeros(1), jnp.zeros((1, length, config.cap_feat_dim)), jnp.ones(1, int),
        )  # fmt: skip
