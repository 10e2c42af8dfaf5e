"""Z-Image's single-stream diffusion transformer (S3-DiT, arXiv 2511.22699) in Flax Linen.

Ports diffusers' `ZImageTransformer2DModel` for the case that training needs: a static batch of
images of one size, each with a caption of its own length.

    image   [b, h, w, c] -> p×p patches -> Linear -> noise refiner (modulated by t)   ┐
                                                                                      ├ layers -> patches
    caption [b, L, cap]  -> RMSNorm, Linear -> context refiner (not modulated)        ┘

Facts that are easy to get wrong, and that the parity tests hold fast:

* Either stream is padded to a multiple of 32 with a *learned* token, and that padding is attended.
  Only what lies beyond an item's own padded length is masked.
* A caption of padded length n occupies positions (1 … n, 0, 0) and its image (n+1, row, column), so
  image positions differ from item to item in a ragged batch.  Image padding sits at (0, 0, 0).
* The joint sequence is [image, caption].
* `t` is model time, 1 − σ: 0 is noise, 1 is data.  The output is x0 − ε, the *negative* of the flow
  velocity v = ε − x0: whoever calls this model as a denoiser negates it.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from didr_jax.models.attention import attend
from didr_jax.models.remat import rematerialised
from didr_jax.models.rotary import rotary_table, rotate_pairs
from didr_jax.models.rows import Network
from didr_jax.models.sinusoid import sinusoid
from didr_jax.models.zimage_config import TIME_WIDTH, ZImageConfig
from didr_jax.types import Array, InputError

STREAM_MULTIPLE = 32  # both streams are padded to a multiple of this many tokens


def positions(config: ZImageConfig, caption_length: Array, rows: int, cols: int, length: int) -> tuple[Array, Array]:
    """Rotary angles of the two streams.

    Args:
      caption_length: [b] padded lengths of the captions, multiples of 32.
      rows, cols: image size in patches; length: tokens of the caption array, a multiple of 32.

    Returns:
      image angles [b, n, d/2], n being rows·cols padded to a multiple of 32, and caption angles [b, length, d/2].
    """
    first, second, third = (
        rotary_table(n, d, config.rope_theta) for n, d in zip(config.axes_lens, config.axes_dims, strict=True)
    )
    batch, tokens = caption_length.shape[0], rows * cols
    grid = np.concatenate([np.repeat(second[:rows], cols, axis=0), np.tile(third[:cols], (rows, 1))], axis=-1)
    offset = jnp.asarray(first)[caption_length + 1][:, None]
    image = jnp.concatenate(
        [jnp.broadcast_to(offset, (batch, tokens, offset.shape[-1])), jnp.broadcast_to(grid, (batch, *grid.shape))],
        axis=-1,
    )
    image = jnp.pad(image, ((0, 0), (0, -tokens % STREAM_MULTIPLE), (0, 0)))  # position (0, 0, 0)
    caption = np.pad(first[1 : length + 1], ((0, 0), (0, grid.shape[-1])))
    return image, jnp.broadcast_to(caption, (batch, *caption.shape))


class TimeEmbedding(nn.Module):
    """t [b] -> [b, time_dim]: cosines and sines of t·t_scale at 128 frequencies, then a two-layer perceptron."""

    config: ZImageConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Array) -> Array:
        wave = sinusoid(t * self.config.t_scale, TIME_WIDTH)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        hidden = nn.silu(nn.Dense(1024, **types, name="linear_1")(wave))
        return nn.Dense(self.config.time_dim, **types, name="linear_2")(hidden)


class Attention(nn.Module):
    """Self-attention over [b, l, dim] with RMS-normalised queries and keys, and rotary positions."""

    config: ZImageConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Array, angles: Array, mask: Array | None) -> Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = functools.partial(nn.Dense, self.config.dim, use_bias=False, **types)
        norm = functools.partial(nn.RMSNorm, epsilon=1e-5, **types)  # whatever `norm_eps` says, as in diffusers
        heads = lambda y: y.reshape(*y.shape[:2], self.config.n_heads, -1)
        q, k, v = (heads(dense(name=name)(x)) for name in ("to_q", "to_k", "to_v"))
        q = rotate_pairs(norm(name="norm_q")(q), angles)
        k = rotate_pairs(norm(name="norm_k")(k), angles)
        return dense(name="to_out")(attend(q, k, v, mask=mask, backend=self.backend).reshape(x.shape))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x)."""

    config: ZImageConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
        gate, value = dense(self.config.hidden, name="w1")(x), dense(self.config.hidden, name="w3")(x)
        return dense(self.config.dim, name="w2")(nn.silu(gate) * value)


class Block(nn.Module):
    """One transformer block with sandwich norms; shaped as the body of a scan over depth.

    With `modulated`, the time embedding scales the input of either half by 1 + s and gates its output
    by tanh(g); there is no shift.
    """

    config: ZImageConfig
    modulated: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Array, angles: Array, mask: Array | None, time: Array | None) -> tuple[Array, None]:
        """x [b, l, dim], angles [b, l, d/2], key mask [b, l] or None, time [b, time_dim] -> ([b, l, dim], None)."""
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(nn.RMSNorm, epsilon=self.config.norm_eps, **types)
        scale_attention = gate_attention = scale_feed = gate_feed = jnp.ones((), self.dtype)
        if self.modulated:
            modulation = nn.Dense(4 * self.config.dim, **types, name="modulation")(time)[:, None]
            scale_attention, gate_attention, scale_feed, gate_feed = jnp.split(modulation, 4, axis=-1)
            scale_attention, scale_feed = 1 + scale_attention, 1 + scale_feed
            gate_attention, gate_feed = jnp.tanh(gate_attention), jnp.tanh(gate_feed)
        attention = Attention(self.config, **types, backend=self.backend, name="attention")
        h = attention(norm(name="attention_norm1")(x) * scale_attention, angles, mask)
        x = x + gate_attention * norm(name="attention_norm2")(h)
        h = FeedForward(self.config, **types, name="feed_forward")(norm(name="ffn_norm1")(x) * scale_feed)
        return x + gate_feed * norm(name="ffn_norm2")(h), None


class FinalLayer(nn.Module):
    """LayerNorm without parameters, scaled by 1 + Linear(silu(time)), then a projection to patches."""

    config: ZImageConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        scale = 1 + nn.Dense(self.config.dim, **types, name="modulation")(nn.silu(time))[:, None]
        norm = nn.LayerNorm(1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=self.dtype)
        return nn.Dense(self.config.patch_size**2 * self.config.in_channels, **types, name="linear")(norm(x) * scale)


class ZImageTransformer(Network):
    """The Z-Image backbone; blocks of a stage are stacked along a leading axis and scanned.

    Attributes:
      config: sizes.
      dtype: of computation; param_dtype: of parameters.
      remat: what the backward pass recomputes of every block (`models.remat`).
      backend: of attention, see `didr_jax.models.attention.attend`.
    """

    config: ZImageConfig = ZImageConfig()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: str = "none"
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Array, t: Array, caption: Array, caption_length: Array) -> Array:
        """Predicts x0 − ε.

        Args:
          x: latents [b, h, w, in_channels], h and w multiples of the patch size.
          t: model time [b] = 1 − σ, in [0, 1].
          caption: text features [b, L, cap_feat_dim]; rows from `caption_length` on are ignored.
          caption_length: [b] integers in [1, L].

        Returns:
          [b, h, w, in_channels] in `dtype`.

        Raises:
          InputError: an image that patches do not tile, or more positions than `axes_lens` has.
        """
        c = self.config
        batch, height, width, _ = x.shape
        rows, cols, tokens = height // c.patch_size, width // c.patch_size, (height * width) // c.patch_size**2
        length = caption.shape[1] + -caption.shape[1] % STREAM_MULTIPLE
        self._check(height, width, length)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        padded_length = caption_length + -caption_length % STREAM_MULTIPLE
        image_angles, caption_angles = positions(c, padded_length, rows, cols, length)
        caption_mask = jnp.arange(length) < padded_length[:, None]
        time = TimeEmbedding(c, **types, name="time")(t)

        image = nn.Dense(c.dim, **types, name="x_embedder")(patchify(x, c.patch_size))
        pad = self.param("x_pad_token", nn.initializers.zeros, (1, c.dim), self.param_dtype).astype(self.dtype)
        pads = jnp.broadcast_to(pad, (batch, -tokens % STREAM_MULTIPLE, c.dim))
        image = jnp.concatenate([image, pads], axis=1)
        image = self._stack("noise_refiner", c.n_refiner_layers)(image, image_angles, None, time)

        text = nn.RMSNorm(epsilon=c.norm_eps, **types, name="cap_norm")(caption)
        text = nn.Dense(c.dim, **types, name="cap_embedder")(text)
        text = jnp.pad(text, ((0, 0), (0, length - caption.shape[1]), (0, 0)))
        pad = self.param("cap_pad_token", nn.initializers.zeros, (1, c.dim), self.param_dtype).astype(self.dtype)
        text = jnp.where((jnp.arange(length) < caption_length[:, None])[..., None], text, pad)
        text = self._stack("context_refiner", c.n_refiner_layers, modulated=False)(text, caption_angles, caption_mask, None)

        joint = jnp.concatenate([image, text], axis=1)
        angles = jnp.concatenate([image_angles, caption_angles], axis=1)
        mask = jnp.concatenate([jnp.ones(image.shape[:2], bool), caption_mask], axis=1)
        joint = self._stack("layers", c.n_layers)(joint, angles, mask, time)

        patches = FinalLayer(c, **types, name="final_layer")(joint[:, :tokens], time)
        return unpatchify(patches, rows, cols, c.patch_size)

    def _stack(self, name: str, depth: int, modulated: bool = True):
        """A stage of `depth` equal blocks as a function (x, angles, mask, time) -> x."""
        body = rematerialised(Block, self.remat, prevent_cse=False)
        scanned = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=depth)(
            self.config, modulated, self.dtype, self.param_dtype, self.backend, name=name
        )
        return lambda *inputs: scanned(*inputs)[0]

    def _check(self, height: int, width: int, length: int) -> None:
        patch, (first, second, third) = self.config.patch_size, self.config.axes_lens
        if height % patch or width % patch:
            raise InputError(f"Z-Image: latents of {height}×{width} are not made of {patch}×{patch} patches")
        if height // patch > second or width // patch > third or length + 1 >= first:
            raise InputError(
                f"Z-Image: latents of {height}×{width} with {length} caption tokens have positions beyond "
                f"axes_lens={self.config.axes_lens}"
            )


def patchify(x: Array, patch: int) -> Array:
    """[b, h, w, c] -> [b, h·w/p², p·p·c]: tokens by row, channel fastest within a token."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, (h * w) // patch**2, patch * patch * c)


def unpatchify(x: Array, rows: int, cols: int, patch: int) -> Array:
    """Inverse of `patchify`."""
    x = x.reshape(x.shape[0], rows, cols, patch, patch, -1).swapaxes(2, 3)
    return x.reshape(x.shape[0], rows * patch, cols * patch, -1)
