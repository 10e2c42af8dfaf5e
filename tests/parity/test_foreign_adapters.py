"""Adapters that peft, diffusers and kohya's form hold are read here, and ours are read there: the networks' outputs agree."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

peft = pytest.importorskip("peft", reason="peft writes and reads the adapters that these tests are about")

from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402

from didr_jax import lora  # noqa: E402
from didr_jax.models.unet import UNet  # noqa: E402
from didr_jax.models.unet_config import UNetConfig  # noqa: E402
from didr_jax.weights import lora_files  # noqa: E402
from didr_jax.weights.engine import to_flax, to_torch  # noqa: E402
from didr_jax.weights.files import write_safetensors  # noqa: E402
from didr_jax.weights.ldm import ldm_unet_table  # noqa: E402
from didr_jax.weights.unet import unet_table  # noqa: E402
from tests.parity.oracle import assert_close, nhwc, randomise  # noqa: E402
from tests.parity.test_single_files import LEVELS  # noqa: E402

CONFIG = LEVELS | dict(
    transformer_layers_per_block=(1, 2, 1), attention_head_dim=(2, 2, 2), cross_attention_dim=12, use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=6, projection_class_embeddings_input_dim=6 * 6 + 20,
)  # fmt: skip
ALPHA = 4.0  # of our run
TARGETS = ["to_q", "to_v", "to_out.0", "proj_in", "ff.net.2"]
INPUTS = dict(
    sample=torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    timestep=torch.tensor([999, 399]),
    encoder_hidden_states=torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)),
)
ADDED = {"text_embeds": torch.randn(2, 20, generator=torch.Generator().manual_seed(2)), "time_ids": torch.ones(2, 6)}


def theirs(unet):
    with torch.no_grad():
        return nhwc(unet(**INPUTS, added_cond_kwargs=ADDED).sample)


def a_unet():
    return randomise(diffusers.UNet2DConditionModel(**CONFIG), 3)


@pytest.fixture(scope="module")
def ours():
    """(shapes, tables, parameters) of the same UNet here."""
    config = UNetConfig.from_json(CONFIG)
    arguments = [np.zeros(shape, np.float32) for shape in ((1, 8, 8, 4), (1,), (1, 5, 12))]
    added = {"text_embeds": np.zeros((1, 20), np.float32), "time_ids": np.zeros((1, 6), np.float32)}
    shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), *arguments, added)["params"]
    tables = unet_table(config), ldm_unet_table(config)
    return shapes, tables, to_flax({name: tensor.numpy() for name, tensor in a_unet().state_dict().items()}, tables[0], shapes)


def merged(adapters, ours):
    """The output of torch's UNet with the weights that our adapters make; that our UNet agrees is `test_unet`'s."""
    _, tables, params = ours
    unet = a_unet()
    tensors = to_torch(lora.merge(params, adapters, ALPHA), tables[0])
    unet.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})
    return theirs(unet)


def adapted(**options):
    """A UNet with peft's adapters, none of which is zero, and their config."""
    unet, config = a_unet(), peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": TARGETS, **options})
    unet.add_adapter(config)
    generator = torch.Generator().manual_seed(5)
    for name, p in unet.named_parameters():
        if "lora_" in name:
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
    return unet, config


def read(path, ours):
    shapes, tables, _ = ours
    return merged(lora_files.saved(path, shapes, ALPHA, tables, prefix="unet").load(), ours)


@pytest.mark.parametrize("options", [{}, {"rank_pattern": {"to_v": 1}, "alpha_pattern": {"to_q": 1}}, {"use_rslora": True}])
def test_what_diffusers_saves(ours, tmp_path, options):
    unet, config = adapted(**options)
    plain = {key: value for key, value in config.to_dict().items() if value is not None}
    plain["target_modules"] = sorted(plain["target_modules"])
    diffusers.StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(unet), unet_lora_adapter_metadata=plain
    )
    assert_close(read(tmp_path, ours), theirs(unet), 1e-5)
    assert np.abs(theirs(unet) - theirs(a_unet())).max() > 0.05


def test_what_peft_saves(ours, tmp_path):
    unet, config = adapted()
    states = get_peft_model_state_dict(unet)
    model = peft.get_peft_model(a_unet(), config)
    peft.set_peft_model_state_dict(model, {f"base_model.model.{name}": tensor for name, tensor in states.items()})
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    assert_close(read(tmp_path, ours), theirs(unet), 1e-5)


def test_what_kohyas_form_holds(ours, tmp_path):
    unet, _ = adapted(lora_alpha=3)
    tensors = convert_state_dict_to_kohya({f"unet.{n}": t for n, t in get_peft_model_state_dict(unet).items()})
    assert any(name.startswith("lora_unet_down_blocks_1") for name in tensors)
    write_safetensors(tmp_path / "kohya.safetensors", {name: tensor.numpy() for name, tensor in tensors.items()})
    assert_close(read(tmp_path / "kohya.safetensors", ours), theirs(unet), 1e-5)


@pytest.mark.parametrize("dialect", ["diffusers", "kohya", "comfyui"])
def test_diffusers_reads_ours(ours, tmp_path, dialect):
    shapes, tables, _ = ours
    fresh = lora.init(jax.random.key(0), shapes, [r"attn[12]/to_(q|out)$", r"attentions_\d/proj_out$"], rank=3)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32), fresh)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    lora_files.save(path, adapters, ALPHA, tables[dialect == "kohya"], prefix="unet", dialect=dialect)
    assert_close(read(path, ours), merged(adapters, ours), 1e-5)
    if dialect == "comfyui":  # which diffusers does not read for a UNet
        return
    unet = a_unet()
    states, alphas, metadata = diffusers.StableDiffusionXLPipeline.lora_state_dict(
        tmp_path, weight_name=path.name, unet_config=unet.config, return_lora_metadata=True
    )
    diffusers.StableDiffusionXLPipeline.load_lora_into_unet(states, alphas, unet, metadata=metadata)
    assert_close(theirs(unet), merged(adapters, ours), 1e-5)
