"""The autoencoder between images and latents (SD, SDXL: 4 channels; FLUX, Z-Image: 16).  NHWC.

Source: `AutoencoderKL` of diffusers; arXiv 2112.10752.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from didr_jax.models.config import building, check_config, require_few
from didr_jax.models.remat import rematerialised
from didr_jax.models.resnet import Downsample, GroupNorm, ResnetBlock, Upsample
from didr_jax.models.rows import Network
from didr_jax.models.transformer2d import Attention
from didr_jax.types import Array, InputError

EPS = 1e-6  # of every norm


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Architecture, and the affine map between raw latents and those the diffusion model sees."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (64,)
    layers: int = 1
    groups: int = 32
    quant_conv: bool = True
    post_quant_conv: bool = True
    mid_attention: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    @classmethod
    @building("AutoencoderKL")
    def from_json(cls, raw: Mapping[str, Any]) -> "VAEConfig":
        """Reads diffusers' `config.json`; keys that are absent have diffusers' defaults.

        Raises:
          InputError: naming every value that this port does not do, and every unknown key.
        """
        field_of = {
            "in_channels": "in_channels", "out_channels": "out_channels", "latent_channels": "latent_channels",
            "block_out_channels": "channels", "layers_per_block": "layers", "norm_num_groups": "groups",
            "use_quant_conv": "quant_conv", "use_post_quant_conv": "post_quant_conv",
            "mid_block_add_attention": "mid_attention", "scaling_factor": "scaling_factor",
            "shift_factor": "shift_factor",
        }  # fmt: skip
        check_config(
            raw,
            "AutoencoderKL",
            used={*field_of, "down_block_types", "up_block_types"},
            fixed={"act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,)},
            free=("sample_size", "force_upcast"),  # float16 is not offered here; bfloat16 does not overflow
            sizes=("in_channels", "out_channels", "latent_channels", "block_out_channels", "norm_num_groups"),
            depths=("layers_per_block",),
            numbers=("scaling_factor", "shift_factor"),
            flags=("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"),
        )
        values: dict[str, Any] = {field_of[k]: v for k, v in raw.items() if k in field_of and v is not None}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        config = cls(**values)
        require_few(config.layers * len(config.channels), "AutoencoderKL")
        if config.scaling_factor <= 0:
            raise InputError(f"AutoencoderKL config.json: scaling_factor={config.scaling_factor!r} must be positive")
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            kinds = raw.get(key, [kind])
            if list(kinds) != [kind] * len(config.channels):
                raise InputError(
                    f"AutoencoderKL config.json: {key} must be {kind} for each of the {len(config.channels)} "
                    f"block_out_channels, not {list(kinds)}"
                )
        return config

    @property
    def factor(self) -> int:
        """Pixels a latent, along each side."""
        return 2 ** (len(self.channels) - 1)

    def scale(self, raw: Array) -> Array:
        """Raw latents → the diffusion model's, about unit variance."""
        return (raw - self.shift_factor) * self.scaling_factor

    def unscale(self, z: Array) -> Array:
        """The diffusion model's latents → raw ones, as `AutoencoderKL.decode` takes them."""
        return z / self.scaling_factor + self.shift_factor


class VAEPart(nn.Module):
    """Base of the parts: what each needs to know."""

    config: VAEConfig
    backend: str = "xla"
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def types(self):
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    def part(self, kind: type, **fields):
        return kind(self.config, backend=self.backend, remat=self.remat, **self.types(), **fields)

    def resnet(self, channels: int, name: str):
        block = rematerialised(ResnetBlock, self.remat)
        return block(channels, self.config.groups, EPS, name=name, **self.types())

    def conv(self, channels: int, name: str):
        return nn.Conv(channels, (3, 3), padding=1, name=name, **self.types())

    def head(self, x: Array, channels: int) -> Array:
        x = nn.silu(GroupNorm(self.config.groups, EPS, name="conv_norm_out", **self.types())(x))
        return self.conv(channels, "conv_out")(x)


class Level(VAEPart):
    """`count` residual blocks, then a change of resolution: "down", "up" or None."""

    channels: int = 0
    count: int = 1
    resample: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.count):
            x = self.resnet(self.channels, f"resnets_{i}")(x)
        if self.resample == "down":
            return Downsample(((0, 1), (0, 1)), name="downsamplers_0", **self.types())(x)
        if self.resample == "up":
            return Upsample(name="upsamplers_0", **self.types())(x)
        return x


class SelfAttention(VAEPart):
    """One head over all pixels, `x [b, h, w, c]` → same shape, added to x."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        y = GroupNorm(self.config.groups, EPS, name="group_norm", **self.types())(x).reshape(b, h * w, c)
        y = Attention(1, bias=True, backend=self.backend, name="attention", **self.types())(y)
        return x + y.reshape(x.shape)


class MidBlock(VAEPart):
    """Residual block, attention, residual block at the coarsest level."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.resnet(x.shape[-1], "resnets_0")(x)
        if self.config.mid_attention:
            x = self.part(SelfAttention, name="attentions_0")(x)
        return self.resnet(x.shape[-1], "resnets_1")(x)


class Encoder(VAEPart):
    """Image → `[b, h/f, w/f, 2 · latent_channels]`: means and log variances."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        x = self.conv(c.channels[0], "conv_in")(x)
        for i, channels in enumerate(c.channels):
            down = "down" if i < len(c.channels) - 1 else None
            x = self.part(Level, channels=channels, count=c.layers, resample=down, name=f"down_blocks_{i}")(x)
        return self.head(self.part(MidBlock, name="mid_block")(x), 2 * c.latent_channels)


class Decoder(VAEPart):
    """Latent → image."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        c = self.config
        x = self.part(MidBlock, name="mid_block")(self.conv(c.channels[-1], "conv_in")(z))
        for i, channels in enumerate(reversed(c.channels)):
            up = "up" if i < len(c.channels) - 1 else None
            x = self.part(Level, channels=channels, count=c.layers + 1, resample=up, name=f"up_blocks_{i}")(x)
        return self.head(x, c.out_channels)


class AutoencoderKL(Network, VAEPart):
    """Encoder and decoder; call a method: `vae.apply({"params": p}, z, method="decode")`.

    Attributes:
      config: the architecture.  `config.scale` and `config.unscale` convert latents.
      backend: of `attend`, for the one attention over (h/f · w/f) positions with a head as wide as
        the coarsest level: "chunked" bounds its memory at high resolution, "cudnn" cannot do it.
      remat: what the backward pass recomputes of residual blocks (`models.remat`).
      dtype, param_dtype: of the computation and the parameters; norms and softmax are float32 in any
        case.  float16 overflows in SDXL's decoder and is refused.
    """

    def setup(self):
        if jnp.dtype(self.dtype) == jnp.float16:
            raise InputError("AutoencoderKL: dtype float16 overflows (NaN images); use bfloat16 or float32")
        c, dense = self.config, functools.partial(nn.Dense, **self.types())
        self.encoder = self.part(Encoder)
        self.decoder = self.part(Decoder)
        if c.quant_conv:  # 1x1 convolutions
            self.quant_conv = dense(2 * c.latent_channels)
        if c.post_quant_conv:
            self.post_quant_conv = dense(c.latent_channels)

    def encode(self, image: Array) -> tuple[Array, Array]:
        """`image [b, h, w, 3]` in [-1, 1] → (mean, logvar), each `[b, h/f, w/f, latent_channels]`, raw.

        f is `config.factor`; logvar is kept within [-30, 20].
        """
        x = self.encoder(image.astype(self.dtype))
        if self.config.quant_conv:
            x = self.quant_conv(x)
        mean, logvar = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, raw: Array) -> Array:
        """Raw latent `[b, h, w, latent_channels]` → image `[b, f·h, f·w, 3]`, about [-1, 1], unclipped."""
        z = raw.astype(self.dtype)
        if self.config.post_quant_conv:
            z = self.post_quant_conv(z)
        return self.decoder(z)

    def __call__(self, image: Array) -> Array:
        """Encode to the mean and decode: touches every parameter, for `init`."""
        return self.decode(self.encode(image)[0])
