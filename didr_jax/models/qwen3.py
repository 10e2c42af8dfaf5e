"""Qwen3 as a text encoder (arXiv 2505.09388) in Flax Linen; ports transformers' `Qwen3Model`.

A causal decoder with grouped-query attention, RMS-normalised queries and keys, rotary positions and
SwiGLU.  Z-Image conditions on `hidden_states[-2]`, the raw output of the last layer but one, so the
last layer and the final norm are neither built nor loaded by default.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from didr_jax.models.attention import attend
from didr_jax.models.config import building, check_config, require_sane
from didr_jax.models.rotary import rotary_table, rotate_halves
from didr_jax.models.rows import Network
from didr_jax.types import Array, InputError

# Values that other members of the class use and this port does not do.
FIXED = {
    "attention_bias": (False,), "hidden_act": ("silu",), "model_type": ("qwen3",), "rope_scaling": (None,),
    "use_sliding_window": (False,),
}  # fmt: skip
# Training, generation, file format: without effect on an encoder's output.
FREE = (
    "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "initializer_range", "layer_types",
    "max_position_embeddings", "max_window_layers", "pad_token_id", "sliding_window", "tie_word_embeddings",
    "torch_dtype", "transformers_version", "use_cache",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Sizes of a Qwen3 decoder, under the names of its `config.json`; defaults are Qwen3-4B's."""

    vocab_size: int = 151936
    hidden_size: int = 2560
    intermediate_size: int = 9728
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6

    @classmethod
    @building("Qwen3Model")
    def from_json(cls, raw: Mapping[str, Any]) -> "Qwen3Config":
        """Reads the contents of a text encoder folder's `config.json`, as transformers 4 or 5 writes it.

        Raises:
          InputError: naming every value that this port does not do, every unknown and every missing key.
        """
        sizes = [field.name for field in dataclasses.fields(cls)]
        numbers, depth = ("rms_norm_eps", "rope_theta"), "num_hidden_layers"
        check_config(
            raw,
            "Qwen3Model",
            used=[*sizes, "rope_parameters"],
            fixed=FIXED,
            free=FREE,
            sizes=[name for name in sizes if name not in (*numbers, depth)],
            depths=(depth,),
            numbers=numbers,
        )
        # Version 5 has {"rope_theta", "rope_type"} in `rope_parameters`, version 4 a plain `rope_theta`.
        rope = raw.get("rope_parameters") or {}
        kinds = {rope.get("rope_type", "default"), *raw.get("layer_types", ())} - {"default", "full_attention"}
        if kinds:
            raise InputError(f"Qwen3 config.json asks for what this port does not do: {', '.join(sorted(kinds))}")
        values = {"rope_theta": rope.get("rope_theta"), **{key: raw[key] for key in sizes if key in raw}}
        if missing := [key for key in sizes if values.get(key) is None]:
            raise InputError(f"Qwen3 config.json lacks {', '.join(missing)}")
        require_sane(values, "Qwen3Model", numbers=("rope_theta",))
        return cls(**values)


class Attention(nn.Module):
    """Causal self-attention over [b, l, hidden]; `num_key_value_heads` keys serve all query heads in groups."""

    config: Qwen3Config
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Array, angles: Array, mask: Array) -> Array:
        c, types = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = functools.partial(nn.Dense, use_bias=False, **types)
        norm = functools.partial(nn.RMSNorm, epsilon=c.rms_norm_eps, **types)
        counts = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads, "v_proj": c.num_key_value_heads}
        q, k, v = (dense(n * c.head_dim, name=name)(x).reshape(*x.shape[:2], n, c.head_dim) for name, n in counts.items())
        q = rotate_halves(norm(name="q_norm")(q), angles)
        k = rotate_halves(norm(name="k_norm")(k), angles)
        out = attend(q, k, v, mask=mask, causal=True, backend=self.backend)
        return dense(c.hidden_size, name="o_proj")(out.reshape(*x.shape[:2], -1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) · up x)."""

    config: Qwen3Config
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
        gate, up = (dense(self.config.intermediate_size, name=name)(x) for name in ("gate_proj", "up_proj"))
        return dense(self.config.hidden_size, name="down_proj")(nn.silu(gate) * up)


class Layer(nn.Module):
    """Pre-norm decoder layer, shaped as the body of a scan over depth."""

    config: Qwen3Config
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Array, angles: Array, mask: Array) -> tuple[Array, None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(nn.RMSNorm, epsilon=self.config.rms_norm_eps, **types)
        attention = Attention(self.config, **types, backend=self.backend, name="self_attn")
        x = x + attention(norm(name="input_layernorm")(x), angles, mask)
        return x + MLP(self.config, **types, name="mlp")(norm(name="post_attention_layernorm")(x)), None


class Qwen3(Network):
    """Token ids to hidden states; layers are stacked along a leading axis and scanned.

    Attributes:
      config: sizes.
      hidden_state: which of transformers' `hidden_states` to return, −1 (all layers and the final norm)
        or below (that many layers fewer, no norm).  Parameters exist for the layers that are used.
    """

    config: Qwen3Config = Qwen3Config()
    hidden_state: int = -2
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    backend: str = "xla"

    @property
    def depth(self) -> int:
        """Number of layers that are run."""
        return self.config.num_hidden_layers + 1 + self.hidden_state

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """ids [b, l] integers, mask [b, l] true on tokens and false on padding -> [b, l, hidden_size].

        Rows of padding hold no meaning.
        """
        c, types = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = nn.Embed(c.vocab_size, c.hidden_size, **types, name="embed_tokens")(ids)
        angles = jnp.asarray(rotary_table(ids.shape[1], c.head_dim, c.rope_theta))[None]
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        x, _ = layers(c, **types, backend=self.backend, name="layers")(x, angles, mask.astype(bool))
        if self.hidden_state == -1:
            x = nn.RMSNorm(epsilon=c.rms_norm_eps, **types, name="norm")(x)
        return x
