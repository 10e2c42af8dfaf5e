"""Scaled dot-product attention, `softmax(q kᵀ / √d) v`, behind one function and a table of backends.

The backend is an argument that the config fills in.  It is never guessed from the machine: a program
compiled here for a TPU or GPU that is not here must still get that machine's kernel.

| backend | runs on | for |
|---|---|---|
| `xla` | anything | short sequences, float32, any mask, any head size |
| `cudnn` | NVIDIA | bf16/fp16, head size ≤ 128 and a multiple of 8 |
| `chunked` | anything | as `xla`, a block of queries at a time: memory linear in the length |
| `splash` | TPU | long sequences: never holds the [length, length] matrix, backward included |
| `splash_interpret` | anything | the splash kernel emulated, for tests |
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from didr_jax.types import Array, InputError


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "xla",
) -> Array:
    """Multi-head attention.

    Args:
      q: [b, q_len, heads, head_dim].
      k, v: [b, kv_len, kv_heads, head_dim]; kv_heads divides heads (grouped queries).
      mask: bool, True where attended.  [b, kv_len] marks the keys that are not padding (at least one
        in each sample); [b or 1, heads or 1, q_len, kv_len] is general, and not for splash.
      causal: query i sees keys ≤ i only.
      scale: of the logits; None is 1/√head_dim.
      backend: a row of the table above.

    Returns:
      [b, q_len, heads, head_dim] in q's dtype.  The softmax is float32 in every backend.

    Raises:
      InputError: unknown backend, or one that cannot do what is asked.
    """
    if backend not in BACKENDS:
        raise InputError(f"attention backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return BACKENDS[backend](q, k, v, mask, causal, scale)


def _xla(q, k, v, mask, causal, scale):
    """The formula.  Logits and weights `[b, kv_heads, group * q_len, kv_len]`, by far the largest arrays here, lie as the
    products give and take them, the queries' factor first: XLA's CPU would transpose them otherwise."""
    b, q_len, heads, head_dim = q.shape
    kv_len, kv_heads = k.shape[1:3]
    rows = q.swapaxes(1, 2).reshape(b, kv_heads, -1, head_dim)  # the heads of a group under each other
    logits = scale * _product(rows, k, (3, 3), preferred_element_type=jnp.float32)
    keep = _keep(mask, causal, q_len, kv_len)
    if keep is not None:
        keep = _for_rows(keep, q_len, kv_heads, heads // kv_heads)
        # No infinity: a row of which nothing is kept attends evenly, and its gradient is a number.
        logits = jnp.where(keep, logits, jnp.finfo(logits.dtype).min / 2)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = _product(weights, v, (3, 1))
    return out.reshape(b, heads, q_len, head_dim).swapaxes(1, 2).astype(q.dtype)


def _product(rows, keys, axes, **kinds):
    """[b, n, r, i] and [b, k, n, d], contracted over an axis of each -> [b, n, r, k or d]."""
    contracted = ((axes[0],), (axes[1],))
    return jax.lax.dot_general(rows, keys, (contracted, ((0, 1), (0, 2))), **kinds)


def _keep(mask, causal, q_len, kv_len):
    """bool [b or 1, heads or 1, q_len or 1, kv_len] of both; None: all is attended."""
    mask = _general(mask)
    if not causal:
        return mask
    before = (jnp.arange(q_len)[:, None] >= jnp.arange(kv_len))[None, None]
    return before if mask is None else mask & before


def _general(mask):
    """A mask of keys in the form of a general one."""
    return mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask


def _for_rows(keep, q_len, kv_heads, group):
    """[b or 1, heads or 1, q_len or 1, kv_len] -> [b or 1, kv_heads or 1, group * q_len or 1, kv_len]."""
    n, heads, _, kv_len = keep.shape
    if group == 1 or keep.shape[1:3] == (1, 1):
        return keep
    full = jnp.broadcast_to(keep, (n, group if heads == 1 else heads, q_len, kv_len))
    return full.reshape(n, 1 if heads == 1 else kv_heads, group * q_len, kv_len)


def _cudnn(q, k, v, mask, causal, scale):
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] > 128 or q.shape[-1] % 8:
        raise InputError(
            f"attention backend 'cudnn' needs bf16 or fp16 and a head size ≤ 128 divisible by 8, not "
            f"{q.dtype} and {q.shape[-1]}; use 'xla' for this network"
        )
    return jax.nn.dot_product_attention(q, k, v, mask=_general(mask), is_causal=causal, scale=scale, implementation="cudnn")


def _chunked(q, k, v, mask, causal, scale, *, chunk=1024):
    b, q_len, heads, head_dim = q.shape
    if causal or (mask is not None and mask.ndim != 2):
        raise InputError("attention backend 'chunked' takes a [batch, kv_len] mask only; use 'xla' for this network")
    if q_len <= chunk:
        return _xla(q, k, v, mask, causal, scale)
    blocks = jnp.pad(q, ((0, 0), (0, -q_len % chunk), (0, 0), (0, 0)))
    blocks = blocks.reshape(b, -1, chunk, heads, head_dim).swapaxes(0, 1)
    # Rematerialised: the backward pass holds one block's weights, not all.
    one = jax.checkpoint(lambda block: _xla(block, k, v, mask, False, scale))
    return jax.lax.map(one, blocks).swapaxes(0, 1).reshape(b, -1, heads, head_dim)[:, :q_len]


LANES = 128  # the kernel's blocks are multiples of a TPU register's lanes


def _splash(q, k, v, mask, causal, scale, *, interpret):
    if mask is not None and mask.ndim != 2:
        raise InputError("attention backend 'splash' takes a [batch, kv_len] mask only; use 'xla' for this network")
    keep = jnp.ones(k.shape[:2], bool) if mask is None else jnp.broadcast_to(mask, k.shape[:2])
    one = functools.partial(_splash_local, causal=causal, scale=scale, interpret=interpret)
    # XLA cannot partition a Pallas kernel: under a mesh each device runs it on its own samples and heads.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return one(q, k, v, keep)
    heads = "tensor" if "tensor" in mesh.axis_names else None
    batch = tuple(a for a in mesh.axis_names if a != "tensor")
    spec = PartitionSpec(batch, None, heads, None)
    return jax.shard_map(one, in_specs=(spec, spec, spec, PartitionSpec(batch)), out_specs=spec, check_vma=False)(q, k, v, keep)


def _splash_local(q, k, v, keep, *, causal, scale, interpret):
    q_len, kv_len = q.shape[1], k.shape[1]
    # Pad both lengths to whole blocks.  Padded keys are in another segment than all queries.
    q, k, v = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, 0))) for x in (q, k, v))
    segment = jnp.pad(keep, ((0, 0), (0, k.shape[1] - kv_len))).astype(jnp.int32)
    segments = splash_kernel.SegmentIds(jnp.ones(q.shape[:2], jnp.int32), segment)
    bq, bkv = (_block(x.shape[1], x.shape[3]) for x in (q, k))
    kind = splash_mask.CausalMask if causal else splash_mask.FullMask
    kernel = splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([kind((q.shape[1], k.shape[1]))] * q.shape[2]),
        block_sizes=splash_kernel.BlockSizes(
            block_q=bq, block_kv=bkv, block_q_dkv=bq, block_kv_dkv=bkv, block_q_dq=bq, block_kv_dq=bkv
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    heads_first = lambda x: x.transpose(0, 2, 1, 3)
    out = jax.vmap(kernel)(heads_first(q * scale), heads_first(k), heads_first(v), segments)
    return heads_first(out)[:, :q_len].astype(q.dtype)


def _block(length: int, head_dim: int) -> int:
    """The longest block that divides the length and, with this head size, fits the chip's vector memory."""
    most = max(LANES, 1024 * LANES // max(head_dim, LANES))
    return next(b for b in (1024, 512, 384, 256, LANES) if b <= most and length % b == 0)


BACKENDS: dict[str, Callable[..., Array]] = {
    "xla": _xla,
    "chunked": _chunked,
    "cudnn": _cudnn,
    "splash": functools.partial(_splash, interpret=False),
    "splash_interpret": functools.partial(_splash, interpret=True),
}
