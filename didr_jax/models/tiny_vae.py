"""The decoder of a tiny autoencoder (TAESD, TAESDXL: 4 channels; TAEF1: 16), distilled from a pipeline's VAE.  NHWC.

Convolutions of 64 channels and nothing else: at 1024² 0.51 TFLOP a decoding, a seventeenth of the full decoder's.

Source: `AutoencoderTiny` of diffusers; github.com/madebyollin/taesd.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from didr_jax.models.config import building, check_config, require_few
from didr_jax.models.remat import rematerialised
from didr_jax.models.resnet import NearestConv
from didr_jax.models.rows import Network
from didr_jax.types import Array, InputError

CLASS = "AutoencoderTiny"
REACH = 3.0  # latents are bent into (-REACH, REACH) before anything else


@dataclasses.dataclass(frozen=True)
class TinyVAEConfig:
    """Architecture of the decoder, and the affine map between its latents and those the diffusion model sees.

    Attributes:
      blocks: residual blocks of each resolution, the coarsest first.
    """

    out_channels: int = 3
    latent_channels: int = 4
    channels: int = 64
    blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    @classmethod
    @building(CLASS)
    def from_json(cls, raw: Mapping[str, Any]) -> "TinyVAEConfig":
        """Reads diffusers' `config.json`; keys that are absent have diffusers' defaults.

        Raises:
          InputError: naming every value that this port does not do, and every unknown key.
        """
        field_of = {
            "out_channels": "out_channels", "latent_channels": "latent_channels", "num_decoder_blocks": "blocks",
            "scaling_factor": "scaling_factor", "shift_factor": "shift_factor",
        }  # fmt: skip
        check_config(
            raw,
            CLASS,
            used={*field_of, "decoder_block_out_channels"},
            fixed={"act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,)},
            # of the encoder, of latents kept as bytes, and what diffusers writes a second time
            free=("in_channels", "encoder_block_out_channels", "num_encoder_blocks", "latent_magnitude", "latent_shift",
                  "force_upcast", "block_out_channels"),
            sizes=("out_channels", "latent_channels", "decoder_block_out_channels"),
            depths=("num_decoder_blocks",),
            numbers=("scaling_factor", "shift_factor"),
        )  # fmt: skip
        values: dict[str, Any] = {field_of[k]: v for k, v in raw.items() if k in field_of and v is not None}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        widths = raw.get("decoder_block_out_channels") or [cls.channels] * 4
        config = cls(**values, channels=widths[0])
        if list(widths) != [config.channels] * len(config.blocks):
            raise InputError(
                f"{CLASS} config.json: decoder_block_out_channels must be one number for each of the {len(config.blocks)} "
                f"num_decoder_blocks, not {list(widths)}"
            )
        require_few(sum(config.blocks), CLASS)
        if config.scaling_factor <= 0:
            raise InputError(f"{CLASS} config.json: scaling_factor={config.scaling_factor!r} must be positive")
        return config

    @property
    def factor(self) -> int:
        """Pixels a latent, along each side."""
        return 2 ** (len(self.blocks) - 1)

    def unscale(self, z: Array) -> Array:
        """The diffusion model's latents → those that `AutoencoderTiny.decode` takes; of published ones they are the same."""
        return z / self.scaling_factor + self.shift_factor


class TinyBlock(nn.Module):
    """Three convolutions with rectifiers, and a skip, `x [b, h, w, c]` → same shape."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x
        for i in (0, 2, 4):  # of theirs, 1 and 3 are rectifiers
            y = y if i == 0 else nn.relu(y)
            y = nn.Conv(x.shape[-1], (3, 3), padding=1, name=f"conv_{i}", dtype=self.dtype, param_dtype=self.param_dtype)(y)
        return nn.relu(x + y)


class TinyDecoder(Network):
    """Latents → image: `apply({"params": p}, z [b, h, w, latent_channels])` → `[b, f·h, f·w, 3]`, about [-1, 1], unclipped.

    f is `config.factor`.  Layers have the numbers that they have in diffusers' `decoder.layers`.

    Attributes:
      config: the architecture.  `config.unscale` makes z of the diffusion model's latents.
      remat: what the backward pass recomputes of residual blocks (`models.remat`).
      dtype, param_dtype: of the computation and the parameters.
    """

    config: TinyVAEConfig
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        c, types = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        block = rematerialised(TinyBlock, self.remat)
        x = jnp.tanh(z / REACH) * REACH
        x = nn.relu(nn.Conv(c.channels, (3, 3), padding=1, name="layers_0", **types)(x))
        number = itertools.count(2)  # 1 is the rectifier
        for level, blocks in enumerate(c.blocks):
            last = level == len(c.blocks) - 1
            for _ in range(blocks):
                x = block(name=f"layers_{next(number)}", **types)(x)
            if last:
                x = nn.Conv(c.out_channels, (3, 3), padding=1, name=f"layers_{next(number)}", **types)(x)
            else:
                next(number)  # nearest neighbour to twice the size
                x = NearestConv(c.channels, (3, 3), use_bias=False, name=f"layers_{next(number)}", **types)(x)
        return 2 * x - 1
