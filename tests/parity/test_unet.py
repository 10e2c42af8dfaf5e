"""UNet against diffusers' UNet2DConditionModel: random weights, several architectures, odd sizes."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.models.embeddings import TimestepEmbedding  # noqa: E402
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D  # noqa: E402
from diffusers.models.transformers.transformer_2d import Transformer2DModel  # noqa: E402
from diffusers.models.unets import unet_2d_blocks as blocks  # noqa: E402

from didr_jax.models.resnet import Downsample, GroupNorm, ResnetBlock, Upsample  # noqa: E402
from didr_jax.models.transformer2d import Transformer2D  # noqa: E402
from didr_jax.models.unet import DownBlock, EmbeddingMLP, MidBlock, UNet, UpBlock, sinusoid  # noqa: E402
from didr_jax.models.unet_config import UNetConfig  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.engine import to_flax, to_torch  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from didr_jax.weights.unet import unet_table  # noqa: E402
from tests.parity.oracle import QUICK, assert_close, captured, nchw, nhwc, randomise, record  # noqa: E402

THEIRS = (
    ResnetBlock2D, Transformer2DModel, Downsample2D, Upsample2D, TimestepEmbedding, blocks.DownBlock2D,
    blocks.CrossAttnDownBlock2D, blocks.UpBlock2D, blocks.CrossAttnUpBlock2D, blocks.UNetMidBlock2DCrossAttn,
)  # fmt: skip
OURS = (ResnetBlock, Transformer2D, Downsample, Upsample, EmbeddingMLP, DownBlock, UpBlock, MidBlock)

SDXL = dict(
    block_out_channels=(8, 16, 24), layers_per_block=1, transformer_layers_per_block=(1, 2, 3),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(1, 2, 3), cross_attention_dim=12, use_linear_projection=True, norm_num_groups=4,
    addition_embed_type="text_time", addition_time_embed_dim=6, projection_class_embeddings_input_dim=6 * 6 + 10,
)  # fmt: skip
SD15 = dict(
    block_out_channels=(8, 8, 16), layers_per_block=1, attention_head_dim=4, cross_attention_dim=20, norm_num_groups=2,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip
UNEVEN = dict(  # what the published ones do not vary
    in_channels=9, out_channels=3, block_out_channels=(6, 12), layers_per_block=(1, 2), norm_eps=1e-3,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=(2, 3), transformer_layers_per_block=(2, 1), cross_attention_dim=5, norm_num_groups=3,
    flip_sin_to_cos=False, freq_shift=1, upcast_attention=True, use_linear_projection=True,
)  # fmt: skip
CASES = {"sdxl": (SDXL, (12, 20)), "sd15": (SD15, (10, 13)), "uneven": (UNEVEN, (7, 8))}


def run_both(name, folder):
    """Both models on one input: outputs, inner outputs, gradient with respect to the input."""
    raw, size = CASES[name]
    theirs = randomise(diffusers.UNet2DConditionModel(**raw), seed=1)
    theirs.save_pretrained(folder)
    config = UNetConfig.from_json(json.loads((folder / "config.json").read_text()))
    model, table = UNet(config), unet_table(config)

    rng = np.random.default_rng(2)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, t = draw(2, *size, config.in_channels), np.array([399.0, 17.5], np.float32)
    text, probe = draw(2, 7, config.context_dim), draw(2, *size, config.out_channels)
    added = None
    if config.added_dim:
        pooled = config.added_dim - 6 * config.added_time_dim
        ids = np.array([[64, 48, 0, 3, 64, 64], [96, 96, 1, 0, 64, 64]], np.float32)
        added = {"text_embeds": draw(2, pooled), "time_ids": ids}

    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t, text, added)["params"]
    params = to_flax(read_tensors(folder), table, shapes)

    def probed(x):
        keep = lambda module, method: isinstance(module, OURS) and method == "__call__"
        options = dict(capture_intermediates=keep, mutable="intermediates")
        out, state = model.apply({"params": params}, x, t, text, added, **options)
        return (out * probe).sum(), (out, captured(state["intermediates"]))

    (_, (out, inner)), grad = jax.jit(jax.value_and_grad(probed, has_aux=True), compiler_options=QUICK)(x)

    seen = record(theirs, THEIRS)
    x_torch = nchw(x).requires_grad_()
    added_torch = added and {k: torch.from_numpy(v) for k, v in added.items()}
    want = theirs(x_torch, torch.from_numpy(t), torch.from_numpy(text), added_cond_kwargs=added_torch).sample
    (want * nchw(probe)).sum().backward()
    return types.SimpleNamespace(
        model=model, table=table, params=params, args=(x, t, text, added), folder=folder, raw=raw,
        out=out, inner=inner, grad=grad, want=nhwc(want), seen=seen, want_grad=nhwc(x_torch.grad), theirs=theirs,
    )  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    return run_both(request.param, tmp_path_factory.mktemp(request.param))


def test_each_block_and_the_whole(both):
    assert set(both.seen) == set(both.inner)
    for path, want in both.seen.items():  # in the order of the computation: the first to fail is the culprit
        assert_close(both.inner[path], want, what=path)
    assert_close(both.out, both.want, what="output")


def test_gradient_with_respect_to_the_input(both):
    assert_close(both.grad, both.want_grad, what="gradient")


def test_diffusers_loads_what_we_write(both, tmp_path):
    state = to_torch(both.params, both.table)
    original = both.theirs.state_dict()
    assert set(state) == set(original)
    for name, want in original.items():
        np.testing.assert_array_equal(np.asarray(state[name]), want.numpy(), name)
    (tmp_path / "config.json").write_text((both.folder / "config.json").read_text())
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", state, max_bytes=50_000)
    loaded = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, local_files_only=True).eval()
    x, t, text, added = both.args
    added = added and {k: torch.from_numpy(v) for k, v in added.items()}
    with torch.no_grad():
        out = loaded(nchw(x), torch.from_numpy(t), torch.from_numpy(text), added_cond_kwargs=added).sample
    assert_close(nhwc(out), both.want, rel=1e-6)


def test_options_change_nothing():
    """Rematerialised, a scalar integer timestep: the same gradient; bf16: nearly so."""
    raw = dict(
        block_out_channels=(6,), layers_per_block=1, norm_num_groups=3, transformer_layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2, cross_attention_dim=5,
    )  # fmt: skip
    model = UNet(UNetConfig.from_json(raw))
    rng = np.random.default_rng(5)
    x, text = rng.normal(size=(2, 5, 4, 4)).astype("f"), rng.normal(size=(2, 3, 5)).astype("f")
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(2), text)["params"]
    state = randomise(diffusers.UNet2DConditionModel(**raw)).state_dict()
    params = to_flax({k: w.numpy() for k, w in state.items()}, unet_table(model.config), shapes)

    def run(t, **options):
        def loss(p):
            out = model.clone(**options).apply({"params": p}, x, t, text)
            return (out**2).mean(), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(params)

    (_, out), grad = run(jnp.array([399.0, 399.0]))
    # float32 gradients are up to 1.6e-4 from float64 here, leaf by leaf; torch's up to 7e-5 (four draws).
    for how in ("blocks", "products"):
        _, again = run(jnp.int32(399), remat=how)
        jax.tree.map(lambda a, b: assert_close(a, b, rel=2e-4), again, grad)
    half = jax.jit(model.clone(dtype=jnp.bfloat16).apply, compiler_options=QUICK)({"params": params}, x, 399, text)
    assert half.dtype == jnp.bfloat16
    # Root mean square; torch in bf16 is .012 to .049 from float64 (four draws of weights).
    assert float(jnp.sqrt(((half - out) ** 2).mean() / (out**2).mean())) < 0.06


def test_norm_and_sinusoid_stay_float32_in_bf16():
    x = jnp.asarray(200 + np.random.default_rng(6).normal(size=(1, 16, 16, 4)), jnp.bfloat16)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    norm = lambda dtype: GroupNorm(2, 1e-5, dtype=dtype).apply({"params": params}, x)
    assert norm(jnp.bfloat16).dtype == jnp.bfloat16
    want = torch.nn.functional.group_norm(nchw(x.astype(jnp.float32)), 2)
    assert_close(norm(jnp.float32), nhwc(want))
    assert_close(norm(jnp.bfloat16).astype(jnp.float32), nhwc(want), rel=2**-8)  # the final rounding only
    assert sinusoid(jnp.array([399]), 8).dtype == jnp.float32


PUBLISHED_SDXL = dict(
    sample_size=128, block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816, upcast_attention=None,
)  # fmt: skip
PUBLISHED_SD15 = dict(sample_size=64, cross_attention_dim=768)


@pytest.mark.parametrize("raw, tensors, count", [(PUBLISHED_SDXL, 1680, 2_567_463_684), (PUBLISHED_SD15, 686, 859_520_964)])
def test_full_size_names_and_shapes(raw, tensors, count):
    """Every tensor of the published models has its place, without allocating one of them."""
    with torch.device("meta"):
        want = {k: tuple(v.shape) for k, v in diffusers.UNet2DConditionModel(**raw).state_dict().items()}
    config = UNetConfig.from_json(raw)
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    added = config.added_dim and {"text_embeds": leaf(1, 1280), "time_ids": leaf(1, 6)}
    shapes = jax.eval_shape(
        UNet(config).init, jax.random.key(0), leaf(1, 16, 16, 4), leaf(1), leaf(1, 77, config.context_dim), added
    )["params"]
    views = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    got = {k: v.shape for k, v in to_torch(views, unet_table(config)).items()}
    assert got == want
    assert len(got) == tensors and sum(int(np.prod(s)) for s in got.values()) == count


def test_refusals(tmp_path):
    with pytest.raises(InputError) as e:
        UNetConfig.from_json(dict(SDXL, class_embed_type="timestep", act_fn="mish", brand_new=3, _diffusers_version="1"))
    assert all(s in str(e.value) for s in ("class_embed_type='timestep'", "act_fn='mish'", "brand_new (unknown)"))
    assert "_diffusers_version" not in str(e.value)
    with pytest.raises(InputError, match="SimpleCrossAttnDownBlock2D"):
        UNetConfig.from_json(dict(SD15, down_block_types=["SimpleCrossAttnDownBlock2D"] * 3))
    with pytest.raises(InputError, match="describes a PriorTransformer"):
        UNetConfig.from_json({"_class_name": "PriorTransformer"})
    with pytest.raises(InputError, match="attention_head_dim lists 2 values for 3 blocks"):
        UNetConfig.from_json(dict(SD15, attention_head_dim=[1, 2]))
    model = UNet(UNetConfig.from_json(SDXL))
    with pytest.raises(InputError, match="added_cond"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 7, 12)))
