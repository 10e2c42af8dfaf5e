"""AutoencoderKL against diffusers: 4 and 16 channels, with and without quant convs, odd shapes."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.models.attention_processor import Attention  # noqa: E402
from diffusers.models.autoencoders import vae as their_vae  # noqa: E402
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D  # noqa: E402
from diffusers.models.unets import unet_2d_blocks as blocks  # noqa: E402

from didr_jax.models import vae as our_vae  # noqa: E402
from didr_jax.models.resnet import Downsample, ResnetBlock, Upsample  # noqa: E402
from didr_jax.models.vae import AutoencoderKL, VAEConfig  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.engine import to_flax, to_torch  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from didr_jax.weights.vae import VAE_TABLE  # noqa: E402
from tests.parity.oracle import QUICK, assert_close, captured, nchw, nhwc, randomise, record  # noqa: E402

THEIRS = (
    ResnetBlock2D, Downsample2D, Upsample2D, Attention, blocks.DownEncoderBlock2D, blocks.UpDecoderBlock2D,
    blocks.UNetMidBlock2D, their_vae.Encoder, their_vae.Decoder,
)  # fmt: skip
OURS = (
    ResnetBlock, Downsample, Upsample, our_vae.SelfAttention, our_vae.Level, our_vae.MidBlock,
    our_vae.Encoder, our_vae.Decoder,
)  # fmt: skip


def levels(n):
    return dict(down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n)


CASES = {
    "sdxl": (dict(**levels(3), block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=2,
                  scaling_factor=0.13025), (16, 24)),
    "flux": (dict(**levels(2), block_out_channels=(6, 9), layers_per_block=2, norm_num_groups=3, latent_channels=16,
                  scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
             (10, 14)),
    "plain": (dict(**levels(1), block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False), (5, 7)),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    """Encoding and decoding by both, inner outputs, gradients with respect to image and latent."""
    raw, size = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    theirs = randomise(diffusers.AutoencoderKL(**raw), seed=3)
    theirs.save_pretrained(folder)
    config = VAEConfig.from_json(json.loads((folder / "config.json").read_text()))
    model = AutoencoderKL(config)
    rng = np.random.default_rng(4)
    image = rng.uniform(-1, 1, size=(2, *size, 3)).astype(np.float32)
    z = rng.normal(size=(2, size[0] // config.factor, size[1] // config.factor, config.latent_channels)).astype("f")
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = to_flax(read_tensors(folder), VAE_TABLE, shapes)

    def both_ways(image, z):
        keep = lambda module, method: isinstance(module, OURS) and method == "__call__"
        options = dict(capture_intermediates=keep, mutable="intermediates")
        (mean, logvar), a = model.apply({"params": params}, image, method="encode", **options)
        decoded, b = model.apply({"params": params}, z, method="decode", **options)
        inner = captured(a["intermediates"]) | captured(b["intermediates"])
        return jnp.sin(mean).sum() + jnp.cos(logvar).sum() + jnp.sin(decoded).sum(), (mean, logvar, decoded, inner)

    step = jax.jit(jax.value_and_grad(both_ways, (0, 1), has_aux=True), compiler_options=QUICK)
    (_, (mean, logvar, decoded, inner)), grads = step(image, z)

    seen = record(theirs, THEIRS)
    image_torch, z_torch = nchw(image).requires_grad_(), nchw(z).requires_grad_()
    posterior, image_again = theirs.encode(image_torch).latent_dist, theirs.decode(z_torch).sample
    (posterior.mean.sin().sum() + posterior.logvar.cos().sum() + image_again.sin().sum()).backward()
    return types.SimpleNamespace(
        name=request.param, config=config, model=model, params=params, folder=folder, theirs=theirs, image=image, z=z,
        got=dict(mean=mean, logvar=logvar, decoded=decoded, d_image=grads[0], d_z=grads[1]),
        want={k: nhwc(v) for k, v in dict(mean=posterior.mean, logvar=posterior.logvar, decoded=image_again,
                                          d_image=image_torch.grad, d_z=z_torch.grad).items()},
        inner=inner, seen=seen,
    )  # fmt: skip


def test_each_block_and_the_whole_and_gradients(both):
    assert set(both.seen) == set(both.inner)
    for path, want in both.seen.items():
        assert_close(both.inner[path], want, what=path)
    for name, want in both.want.items():
        assert_close(both.got[name], want, what=name)


def test_diffusers_loads_what_we_write(both, tmp_path):
    state, original = to_torch(both.params, VAE_TABLE), both.theirs.state_dict()
    assert set(state) == set(original)
    for name, want in original.items():
        np.testing.assert_array_equal(np.asarray(state[name]), want.numpy(), name)
    (tmp_path / "config.json").write_text((both.folder / "config.json").read_text())
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", state)
    loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        assert_close(nhwc(loaded.decode(nchw(both.z)).sample), both.want["decoded"], rel=1e-6)


def test_attention_names_of_older_files(both):
    if not both.config.mid_attention:
        pytest.skip("no attention")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, w in both.theirs.state_dict().items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = w.numpy()
    assert any("proj_attn" in name for name in renamed)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), both.params)
    jax.tree.map(np.testing.assert_array_equal, to_flax(renamed, VAE_TABLE, shapes), both.params)


def test_options_change_nothing(both):
    """Rematerialised: the same gradient; bf16: nearly the same image."""
    if both.name != "flux":
        pytest.skip("one architecture is enough")
    model = both.model.clone(remat="products")
    loss = lambda z: jnp.sin(model.apply({"params": both.params}, z, method="decode")).sum()
    assert_close(jax.jit(jax.grad(loss), compiler_options=QUICK)(both.z), both.got["d_z"], rel=1e-5)
    half = both.model.clone(dtype=jnp.bfloat16)
    decode = jax.jit(lambda z: half.apply({"params": both.params}, z, method="decode"), compiler_options=QUICK)
    image = decode(both.z)
    assert image.dtype == jnp.bfloat16
    assert_close(image.astype(jnp.float32), both.got["decoded"], rel=0.05)


def test_latents_are_scaled_as_the_pipelines_do(both):
    raw = (both.got["mean"] - both.config.shift_factor) * both.config.scaling_factor
    np.testing.assert_allclose(both.config.scale(both.got["mean"]), raw, rtol=1e-6)
    np.testing.assert_allclose(both.config.unscale(both.config.scale(both.z)), both.z, atol=1e-6)
    assert both.config.scaling_factor == both.theirs.config.scaling_factor
    assert both.config.shift_factor == (both.theirs.config.shift_factor or 0.0)


SIZES = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, **levels(4)}
NO_QUANT = dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)


@pytest.mark.parametrize("raw, count", [(SIZES, 83_653_863), (SIZES | NO_QUANT, 83_819_683)])
def test_full_size_names_and_shapes(raw, count):
    with torch.device("meta"):
        want = {k: tuple(v.shape) for k, v in diffusers.AutoencoderKL(**raw).state_dict().items()}
    model = AutoencoderKL(VAEConfig.from_json(raw))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    views = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    got = {k: v.shape for k, v in to_torch(views, VAE_TABLE).items()}
    assert got == want and sum(int(np.prod(s)) for s in got.values()) == count


def test_refusals():
    with pytest.raises(InputError, match="latents_mean=.*act_fn|act_fn='relu'.*latents_mean"):
        VAEConfig.from_json({"latents_mean": [0.0], "act_fn": "relu"})
    with pytest.raises(InputError, match="up_block_types must be UpDecoderBlock2D"):
        VAEConfig.from_json({"up_block_types": ["AttnUpDecoderBlock2D"]})
    model = AutoencoderKL(VAEConfig(), dtype=jnp.float16)
    with pytest.raises(InputError, match="float16 overflows"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
