"""Pipeline configs of types and sizes that no network has: one line, at once, naming the key."""

import jax
import numpy as np
import pytest
from fuzz import no_hang
from test_fuzz_readers import QWEN, UNET, VAE, ZIMAGE

from didr_jax.checks import require_choice
from didr_jax.models.config import building
from didr_jax.models.qwen3 import Qwen3Config
from didr_jax.models.unet_config import UNetConfig
from didr_jax.models.vae import AutoencoderKL, VAEConfig
from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.types import InputError

KINDS = {"vae": (VAEConfig, VAE), "unet": (UNetConfig, UNET), "zimage": (ZImageConfig, ZIMAGE), "qwen": (Qwen3Config, QWEN)}

ABSURD = [
    ("vae", "layers_per_block", 10**9),
    ("vae", "layers_per_block", True),
    ("vae", "block_out_channels", [8] * 40),
    ("vae", "block_out_channels", []),
    ("vae", "block_out_channels", [8, "8"]),
    ("vae", "block_out_channels", {"0": 8}),
    ("vae", "norm_num_groups", 0),
    ("vae", "latent_channels", -4),
    ("vae", "latent_channels", 10**30),
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", float("nan")),
    ("vae", "scaling_factor", "0.13"),
    ("vae", "use_quant_conv", "no"),
    ("unet", "layers_per_block", [10**6, 1]),
    ("unet", "layers_per_block", [256, 256]),
    ("unet", "transformer_layers_per_block", [1, 10**9]),
    ("unet", "attention_head_dim", [0, 4]),
    ("unet", "cross_attention_dim", 40.5),
    ("unet", "norm_eps", float("inf")),
    ("unet", "flip_sin_to_cos", 1),
    ("unet", "down_block_types", 3),
    ("unet", "up_block_types", [["UpBlock2D"], {}]),
    ("zimage", "n_layers", 10**7),
    ("zimage", "axes_lens", [10**9, 16, 16]),
    ("zimage", "axes_dims", [4, -4, 12]),
    ("zimage", "all_patch_size", []),
    ("zimage", "dim", 0),
    ("qwen", "num_hidden_layers", -1),
    ("qwen", "vocab_size", 2**40),
    ("qwen", "rope_parameters", [1]),
    ("qwen", "rope_parameters", {"rope_theta": "1e6"}),
    ("qwen", "layer_types", [["full_attention"]]),
    ("qwen", "rms_norm_eps", []),
]


@pytest.mark.parametrize("kind, key, value", ABSURD)
def test_an_absurd_value_is_refused_at_once(kind, key, value):
    make, content = KINDS[kind]
    make.from_json(content)
    with pytest.raises(InputError) as error, no_hang(2):
        make.from_json(content | {key: value})
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_the_key_and_its_rule_are_named():
    with pytest.raises(InputError) as error:
        VAEConfig.from_json(VAE | {"layers_per_block": 10**9, "norm_num_groups": "x", "shift_factor": float("nan")})
    for part in (
        "layers_per_block='1000000000' (must be whole numbers from 1 to 256)",
        "norm_num_groups='x'",
        "shift_factor='nan'",
    ):
        assert part in str(error.value)


def test_what_does_not_fit_together_is_refused_when_it_is_built():
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    config = VAEConfig.from_json(VAE | {"norm_num_groups": 3})  # of 8 channels
    with pytest.raises(InputError, match="AutoencoderKL: its config.json describes no network that can be built"):
        with building("AutoencoderKL"):
            jax.eval_shape(AutoencoderKL(config).init, jax.random.key(0), image)


def test_errors_of_the_user_pass_through_and_interrupts_do_too():
    for error in (InputError("mine"), KeyboardInterrupt("stop")):
        with pytest.raises(type(error), match=str(error)), building("x"):
            raise error


def test_a_choice_of_any_type_is_refused():
    for value in (None, ["eps"], {}, 3):
        with pytest.raises(InputError, match="is not known"):
            require_choice("x", value, {"eps": "e", "v": "v"})
