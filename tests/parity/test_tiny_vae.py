"""AutoencoderTiny's decoder against diffusers: 4 and 16 channels, blocks, the whole, gradients, names."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock  # noqa: E402

from didr_jax.models.published import PIPELINES  # noqa: E402
from didr_jax.models.tiny_vae import TinyBlock, TinyDecoder, TinyVAEConfig  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.engine import to_flax, to_torch  # noqa: E402
from didr_jax.weights.files import read_tensors  # noqa: E402
from didr_jax.weights.tiny_vae import TINY_VAE_TABLE  # noqa: E402
from tests.parity.oracle import QUICK, assert_close, captured, nchw, nhwc, randomise, record  # noqa: E402


def sizes(*blocks, width):
    """Of an autoencoder with so many blocks a resolution, the coarsest first."""
    widths = (width,) * len(blocks)
    return dict(num_decoder_blocks=blocks, num_encoder_blocks=blocks[::-1], decoder_block_out_channels=widths,
                encoder_block_out_channels=widths)  # fmt: skip


CASES = {
    "taesdxl": sizes(2, 1, 1, width=6),
    "taef1": sizes(1, 2, width=5) | dict(latent_channels=16, scaling_factor=0.5, shift_factor=0.2),
}


def shapes_of(config):
    z = jax.ShapeDtypeStruct((1, 1, 1, config.latent_channels), jnp.float32)
    return jax.eval_shape(TinyDecoder(config).init, jax.random.key(0), z)["params"]


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    """Decoding by both, inner outputs, gradients with respect to the latent, which reaches far beyond the bend at 3."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = randomise(diffusers.AutoencoderTiny(**CASES[request.param]), seed=3)
    theirs.save_pretrained(folder)
    config = TinyVAEConfig.from_json(json.loads((folder / "config.json").read_text()))
    params = to_flax(read_tensors(folder), TINY_VAE_TABLE, shapes_of(config))
    z = 3 * np.random.default_rng(4).normal(size=(2, 3, 5, config.latent_channels)).astype("f")
    model = TinyDecoder(config)

    def decode(z):
        keep = lambda module, method: isinstance(module, TinyBlock) and method == "__call__"
        image, kept = model.apply({"params": params}, z, capture_intermediates=keep, mutable="intermediates")
        return jnp.sin(image).sum(), (image, captured(kept["intermediates"]))

    (_, (image, inner)), d_z = jax.jit(jax.value_and_grad(decode, has_aux=True), compiler_options=QUICK)(z)
    z_torch, seen = nchw(z).requires_grad_(), record(theirs.decoder, AutoencoderTinyBlock)
    want = theirs.decode(z_torch).sample
    want.sin().sum().backward()
    return types.SimpleNamespace(
        config=config, model=model, params=params, theirs=theirs, z=z, image=image, d_z=d_z, inner=inner,
        seen=seen, want=nhwc(want), want_d_z=nhwc(z_torch.grad),
    )  # fmt: skip


def test_each_block_and_the_whole_and_gradients(both):
    assert set(both.seen) == set(both.inner) and both.image.shape[1] == both.config.factor * both.z.shape[1]
    for path, want in both.seen.items():
        assert_close(both.inner[path], want, what=path)
    assert_close(both.image, both.want)
    assert_close(both.d_z, both.want_d_z)


def test_names_go_both_ways(both):
    original = {name: w for name, w in both.theirs.state_dict().items() if name.startswith("decoder.")}
    state = to_torch(both.params, TINY_VAE_TABLE)
    assert set(state) == set(original)
    for name, want in original.items():
        np.testing.assert_array_equal(np.asarray(state[name]), want.numpy(), name)


def test_latents_are_unscaled_as_the_pipelines_do(both):
    told = both.theirs.config
    want = both.z / told.scaling_factor + told.shift_factor
    np.testing.assert_allclose(both.config.unscale(both.z), want, rtol=1e-6)


def test_recomputing_changes_nothing_and_bfloat16_little(both):
    if both.config.latent_channels != 16:
        pytest.skip("one architecture is enough")

    apply = lambda z, **options: both.model.clone(**options).apply({"params": both.params}, z)
    again = jax.jit(jax.grad(lambda z: jnp.sin(apply(z, remat="blocks")).sum()), compiler_options=QUICK)(both.z)
    assert_close(again, both.d_z, rel=1e-5)
    half = jax.jit(lambda z: apply(z, dtype=jnp.bfloat16), compiler_options=QUICK)(both.z)
    assert half.dtype == jnp.bfloat16
    assert_close(half.astype(jnp.float32), both.image, rel=0.05)


@pytest.mark.parametrize("name", PIPELINES)
def test_published_names_and_shapes(name):
    raw = PIPELINES[name]["reward_vae"]
    with torch.device("meta"):
        state = diffusers.AutoencoderTiny(**raw).state_dict()
    want = {k: tuple(v.shape) for k, v in state.items() if k.startswith("decoder.")}
    config = TinyVAEConfig.from_json(raw)
    views = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes_of(config))
    assert {k: v.shape for k, v in to_torch(views, TINY_VAE_TABLE).items()} == want
    assert config.latent_channels == PIPELINES[name]["vae"].get("latent_channels", 4) and config.factor == 8


@pytest.mark.parametrize(
    "raw, told",
    [({"act_fn": "mish"}, "act_fn='mish'"), ({"decoder_block_out_channels": [64, 32, 64, 64]}, "one number for each of the 4"),
     ({"num_decoder_blocks": [3, 1]}, "one number for each of the 2"), ({"_class_name": "AutoencoderKL"}, "AutoencoderKL")],
)  # fmt: skip
def test_refusals(raw, told):
    with pytest.raises(InputError, match=told):
        TinyVAEConfig.from_json(raw)
