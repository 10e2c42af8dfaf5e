"""Every attention backend that runs here equals the formula, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax.models import attention
from didr_jax.models.attention import attend
from didr_jax.types import InputError


def formula(q, k, v, mask=None, causal=False, scale=None):
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    keep = jnp.ones(logits.shape[-2:], bool)
    keep = jnp.tril(keep) if causal else keep
    if mask is not None:
        keep = keep & (mask[:, None, None] if mask.ndim == 2 else mask)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(keep, logits, -jnp.inf)), v)


def inputs(q_len, kv_len, heads=2, kv_heads=2, head_dim=40, batch=2):
    rng = np.random.default_rng(q_len)
    draw = lambda n, h: jnp.asarray(rng.normal(size=(batch, n, h, head_dim)), jnp.float32)
    return draw(q_len, heads), draw(kv_len, kv_heads), draw(kv_len, kv_heads)


PADDING = jnp.asarray(np.arange(77) < np.array([[9], [77]]))
GENERAL = jnp.asarray(np.random.default_rng(1).random((1, 2, 130, 77)) < 0.5).at[..., 0].set(True)
CASES = {
    "self, own scale": (inputs(130, 130), {"scale": 0.3}),
    "cross, padded keys": (inputs(130, 77), {"mask": PADDING}),
    "causal, grouped": (inputs(77, 77, heads=4), {"causal": True, "mask": PADDING}),
    "general mask": (inputs(130, 77), {"mask": GENERAL}),
    "general mask, grouped": (inputs(130, 77, heads=4), {"mask": jnp.concatenate([GENERAL, GENERAL[:, ::-1, ::-1]], 1)}),
    "mask of each head, grouped": (inputs(130, 77, heads=4), {"mask": jnp.tile(GENERAL[:, :, :1], (1, 2, 1, 1))}),
}

GENERALS = [name for name in CASES if "mask" in name]
REFUSED = {"splash_interpret": GENERALS, "chunked": [*GENERALS, "causal, grouped"]}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["xla", "chunked", "splash_interpret"])
def test_backend_equals_formula(backend, case, monkeypatch):
    monkeypatch.setitem(attention.BACKENDS, "chunked", functools.partial(attention.BACKENDS["chunked"], chunk=48))
    (q, k, v), options = CASES[case]
    if case in REFUSED.get(backend, ()):
        with pytest.raises(InputError, match=f"{backend.split('_')[0]}.*use 'xla'"):
            attend(q, k, v, backend=backend, **options)
        return

    def value_and_grads(f):
        probe = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)
        return jax.jit(jax.value_and_grad(lambda q, k, v: ((o := f(q, k, v)) * probe).sum() + (o**2).sum(), (0, 1, 2)))

    got = value_and_grads(lambda *x: attend(*x, backend=backend, **options))(q, k, v)
    want = value_and_grads(lambda *x: formula(*x, **options))(q, k, v)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN attention needs an NVIDIA GPU")
@pytest.mark.parametrize("case", CASES)
def test_cudnn_equals_formula(case):
    (q, k, v), options = CASES[case]
    got = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), backend="cudnn", **options)
    np.testing.assert_allclose(got.astype(jnp.float32), formula(q, k, v, **options), atol=0.03)


def test_refusals():
    q, k, v = inputs(8, 8)
    with pytest.raises(InputError, match="'flash' is unknown; choose one of xla, chunked, cudnn, splash"):
        attend(q, k, v, backend="flash")
    with pytest.raises(InputError, match="'cudnn' needs bf16"):
        attend(q, k, v, backend="cudnn")
