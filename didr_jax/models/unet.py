"""The conditional UNet of Stable Diffusion 1.5 and XL, from diffusers' `config.json`.  NHWC.

Source: `UNet2DConditionModel` of diffusers; SDXL is arXiv 2307.01952.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from didr_jax.models.remat import rematerialised
from didr_jax.models.resnet import Downsample, GroupNorm, ResnetBlock, Upsample
from didr_jax.models.rows import Network
from didr_jax.models.sinusoid import sinusoid
from didr_jax.models.transformer2d import Transformer2D
from didr_jax.models.unet_config import UNetConfig
from didr_jax.types import Array, InputError


class EmbeddingMLP(nn.Module):
    """Linear → silu → Linear."""

    channels: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = functools.partial(nn.Dense, self.channels, dtype=self.dtype, param_dtype=self.param_dtype)
        return dense(name="linear_2")(nn.silu(dense(name="linear_1")(x)))


class UNetBlock(nn.Module):
    """The parts of one resolution level; `level` indexes the config's tuples."""

    config: UNetConfig
    level: int
    backend: str = "xla"
    cross_backend: str = "xla"
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def types(self):
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    def resnet(self, i: int):
        c = self.config
        block = rematerialised(ResnetBlock, self.remat)
        return block(c.channels[self.level], c.groups, c.eps, name=f"resnets_{i}", **self.types())

    def transformer(self, i: int):
        c, level = self.config, self.level
        return Transformer2D(
            c.transformer_layers[level], c.heads[level], c.groups, self.backend, self.cross_backend,
            self.remat, name=f"attentions_{i}", **self.types(),
        )  # fmt: skip


class DownBlock(UNetBlock):
    """`(x, temb, context)` → (x at the next level, [skips])."""

    @nn.compact
    def __call__(self, x: Array, temb: Array, context: Array) -> tuple[Array, list[Array]]:
        skips = []
        for i in range(self.config.layers[self.level]):
            x = self.resnet(i)(x, temb)
            if self.config.attention[self.level]:
                x = self.transformer(i)(x, context)
            skips.append(x)
        if self.level < len(self.config.channels) - 1:
            x = Downsample(name="downsamplers_0", **self.types())(x)
            skips.append(x)
        return x, skips


class MidBlock(UNetBlock):
    """Residual block, transformer, residual block at the coarsest level."""

    @nn.compact
    def __call__(self, x: Array, temb: Array, context: Array) -> Array:
        x = self.transformer(0)(self.resnet(0)(x, temb), context)
        return self.resnet(1)(x, temb)


class UpBlock(UNetBlock):
    """Takes the level's skips, last first, off the end of `skips`."""

    @nn.compact
    def __call__(self, x: Array, skips: list[Array], temb: Array, context: Array) -> Array:
        for i in range(self.config.layers[self.level] + 1):
            x = self.resnet(i)(jnp.concatenate([x, skips.pop()], axis=-1), temb)
            if self.config.attention[self.level]:
                x = self.transformer(i)(x, context)
        if self.level > 0:
            # An odd size was rounded up on the way down: the next skip knows it.
            x = Upsample(name="upsamplers_0", **self.types())(x, (skips[-1].shape[1], skips[-1].shape[2]))
        return x


class UNet(Network):
    """UNet2DConditionModel: predicts ε or v as the checkpoint was trained to.

    Attributes:
      config: the architecture.
      backend, cross_backend: of `attend`, for attention to pixels and to the text.
      remat: what the backward pass recomputes of residual and transformer blocks (`models.remat`).
      dtype, param_dtype: of the computation and the parameters.  Norm statistics, softmax and
        sinusoids are float32 in any case.
    """

    config: UNetConfig
    backend: str = "xla"
    cross_backend: str = "xla"
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, sample: Array, timestep: Array, encoder_hidden_states: Array, added_cond: dict[str, Array] | None = None
    ) -> Array:
        """One evaluation.

        Args:
          sample: [b, h, w, in_channels], x_t.
          timestep: [b] or scalar, integer or fractional, in 0…999 for the published checkpoints.
          encoder_hidden_states: [b, n, context_dim], the text.
          added_cond: SDXL's `text_embeds` [b, p] (pooled) and `time_ids` [b, 6] (original height and
            width, crop top and left, target height and width, in pixels).

        Returns:
          [b, h, w, out_channels] in `dtype`.

        Raises:
          InputError: the config needs `added_cond` and it is not there, or the other way round.
        """
        c, types = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        wave = functools.partial(sinusoid, cos_first=c.cos_first, freq_shift=c.freq_shift)
        context = encoder_hidden_states.astype(self.dtype)
        timestep = jnp.broadcast_to(timestep, sample.shape[:1])
        embed = functools.partial(EmbeddingMLP, 4 * c.channels[0], **types)
        temb = embed(name="time_embedding")(wave(timestep, c.channels[0]).astype(self.dtype))
        if (c.added_time_dim is None) != (added_cond is None):
            raise InputError(
                "UNet: added_cond (text_embeds, time_ids) goes with addition_embed_type='text_time' (SDXL) and "
                f"with nothing else; config has {'none' if c.added_time_dim is None else 'text_time'}"
            )
        if added_cond is not None and c.added_time_dim is not None:
            times = wave(added_cond["time_ids"], c.added_time_dim).reshape(len(sample), -1)
            added = jnp.concatenate([added_cond["text_embeds"], times], axis=-1)
            temb += embed(name="add_embedding")(added.astype(self.dtype))

        part: dict[str, Any] = dict(
            config=c, backend=self.backend, cross_backend=self.cross_backend, remat=self.remat, **types
        )  # fmt: skip
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, **types)
        levels = range(len(c.channels))
        x = conv(c.channels[0], name="conv_in")(sample.astype(self.dtype))
        skips = [x]
        for i in levels:
            x, new = DownBlock(level=i, name=f"down_blocks_{i}", **part)(x, temb, context)
            skips += new
        x = MidBlock(level=levels[-1], name="mid_block", **part)(x, temb, context)
        for i in levels:
            x = UpBlock(level=levels[-1] - i, name=f"up_blocks_{i}", **part)(x, skips, temb, context)
        x = nn.silu(GroupNorm(c.groups, c.eps, name="conv_norm_out", **types)(x))
        return conv(c.out_channels, name="conv_out")(x)
