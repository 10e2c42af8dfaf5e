"""Prompt to image: our Z-Image parts and samplers against `ZImagePipeline`, from one folder and one noise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

from didr_jax.diffusion import denoiser_from, guide  # noqa: E402
from didr_jax.models.qwen3 import Qwen3, Qwen3Config  # noqa: E402
from didr_jax.models.vae import AutoencoderKL, VAEConfig  # noqa: E402
from didr_jax.models.zimage import ZImageTransformer  # noqa: E402
from didr_jax.models.zimage_config import ZImageConfig  # noqa: E402
from didr_jax.sampling import denoise  # noqa: E402
from didr_jax.schedules import rectified_flow  # noqa: E402
from didr_jax.text.qwen import tokenize  # noqa: E402
from didr_jax.weights.engine import read_tensors, to_flax  # noqa: E402
from didr_jax.weights.qwen3 import qwen3_table  # noqa: E402
from didr_jax.weights.vae import VAE_TABLE  # noqa: E402
from didr_jax.weights.zimage import zimage_table  # noqa: E402
from tests.parity.oracle import QUICK, assert_close, nchw, randomise  # noqa: E402
from tests.parity.test_qwen3 import make_tokenizer  # noqa: E402

PROMPTS = ["a red cat on a mat", "mat on " * 14]  # of different padded lengths
LENGTH = 40


@pytest.fixture(scope="module")
def pipeline():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    transformer = diffusers.ZImageTransformer2DModel(
        dim=24, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, in_channels=4,
        axes_dims=[4, 4, 4], axes_lens=[96, 16, 16],
    )  # fmt: skip
    text_encoder = transformers.Qwen3Model(
        transformers.Qwen3Config(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4, norm_num_groups=4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    made = diffusers.ZImagePipeline(
        scheduler, randomise(vae), randomise(text_encoder, 1), make_tokenizer("right"), randomise(transformer, 2)
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def ours(pipeline, tmp_path_factory):
    """(encode: prompts -> features and lengths, velocity(x, t, features, lengths), decode), from the saved folder."""
    folder = tmp_path_factory.mktemp("zimage")
    pipeline.save_pretrained(folder)
    raw = lambda part: json.loads((folder / part / "config.json").read_text())

    def load(part, model, table, *inputs):
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
        return {"params": to_flax(read_tensors(folder / part), table, shapes)}

    qwen = Qwen3(config := Qwen3Config.from_json(raw("text_encoder")))
    ids = jnp.zeros((1, 8), int)
    qwen_params = load("text_encoder", qwen, qwen3_table(config), ids, ids == 0)
    net = ZImageTransformer(config := ZImageConfig.from_json(raw("transformer")))
    x, t, caption, length = jnp.zeros((1, 8, 8, config.in_channels)), jnp.zeros(1), jnp.zeros((1, 8, 16)), jnp.ones(1, int)
    net_params = load("transformer", net, zimage_table(config), x, t, caption, length)
    vae = AutoencoderKL(vae_config := VAEConfig.from_json(raw("vae")))
    vae_params = load("vae", vae, VAE_TABLE, jnp.zeros((1, 16, 16, 3)))
    qwen_apply = jax.jit(qwen.apply, compiler_options=QUICK)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")

    def encode(prompts):
        ids, mask = tokenize(tokenizer, prompts, max_length=LENGTH)
        return qwen_apply(qwen_params, ids, mask), mask.sum(1)

    velocity = lambda x, t, *caption: -net.apply(net_params, x, 1 - t, *caption)  # model time is 1 − σ
    decode = jax.jit(lambda z: vae.apply(vae_params, vae_config.unscale(z), method="decode"), compiler_options=QUICK)
    return encode, velocity, decode


@pytest.mark.parametrize(("steps", "guidance"), [(1, 0.0), (1, 4.0), (4, 0.0), (4, 4.0)])
def test_prompt_to_image(pipeline, ours, steps, guidance):
    encode, velocity, decode = ours
    noise = np.random.default_rng(steps).normal(size=(2, 8, 8, 4)).astype(np.float32)
    run = lambda kind: pipeline(
        list(PROMPTS), 16, 16, steps, guidance_scale=guidance, latents=nchw(noise), max_sequence_length=LENGTH,
        output_type=kind,
    ).images  # fmt: skip

    schedule = rectified_flow(shift=3.0)
    text = encode([*PROMPTS, "", ""])
    both = denoiser_from(lambda x, t: velocity(x, t, *text), "velocity", schedule)

    def guided(x, t):
        positive, negative = jnp.split(both(jnp.tile(x, (2, 1, 1, 1)), jnp.tile(t, 2)), 2)
        return guide(positive, negative, guidance + 1)  # ZImagePipeline's scale is w − 1

    generate = lambda z: denoise(guided, schedule, z, jnp.ones(2), num_steps=steps, remat=False)
    latents = jax.jit(generate, compiler_options=QUICK)(noise)

    want = run("latent").numpy().transpose(0, 2, 3, 1)
    assert_close(latents, want, rel=2e-5 * steps, what="latents")
    assert_close(jnp.clip(decode(latents) / 2 + 0.5, 0, 1), run("np"), rel=5e-5 * steps, what="image")
