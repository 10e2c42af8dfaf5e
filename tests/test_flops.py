"""Operation counts against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from didr_jax.training.chips import CHIPS
from didr_jax.training.flops import by_dtype, count


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


M, K, N = 3, 5, 7
X, W = shape(M, K), shape(K, N)
PRODUCT = 2 * M * K * N


def conv(x, w, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def test_matrix_products_and_their_gradients():
    assert count(jnp.matmul, X, W) == PRODUCT
    assert count(lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), shape(2, 4, 6, 8), shape(2, 4, 9, 8)) == (
        2 * 2 * 4 * 6 * 9 * 8
    )
    assert count(jax.grad(lambda w, x: jnp.sum(x @ w), 0), W, X) == 2 * PRODUCT  # the unused forward is still traced
    assert count(jax.grad(lambda x, w: jnp.sum(jnp.tanh(x @ w)), (0, 1)), X, W) == 3 * PRODUCT
    assert count(lambda x: jnp.tanh(x).sum(), X) == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_and_both_of_its_gradients_cost_the_same(stride, groups):
    x, w = shape(2, 8, 8, 6), shape(3, 3, 6 // groups, 4)
    forward = 2 * (2 * (8 // stride) ** 2 * 4) * 9 * (6 // groups)
    assert count(lambda x, w: conv(x, w, stride, groups), x, w) == forward
    both = jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w, stride, groups))), (0, 1))
    assert count(both, x, w) == 3 * forward


def test_loops_count_as_often_as_they_run():
    w = shape(K, K)

    def powers(w, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=11)[0].sum()

    assert count(powers, w, X) == 11 * 2 * M * K * K
    assert count(jax.grad(powers), w, X) == 3 * 11 * 2 * M * K * K
    assert count(jax.jit(powers), w, X) == 11 * 2 * M * K * K
    assert count(lambda x: jax.lax.map(lambda row: row @ np.ones((K, N), np.float32), x), X) == PRODUCT


def test_a_rematerialised_block_counts_as_often_as_it_is_computed():
    def block(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    w, once = shape(K, K), 2 * 2 * M * K * K
    gradient = lambda f: count(jax.grad(lambda w, x: f(x, w).sum()), w, X)
    # Without: forward, two products for dW, one for dx (x itself is not differentiated).
    assert gradient(block) == once + once + once / 2
    assert gradient(jax.checkpoint(block)) == gradient(block) + once


def test_a_branch_counts_as_its_dearest_alternative():
    wide, narrow = np.ones((K, 9), np.float32), np.ones((K, 2), np.float32)
    branch = lambda i, x: jax.lax.cond(i, lambda x: (x @ wide).sum(), lambda x: (x @ narrow).sum(), x)
    assert count(branch, jax.ShapeDtypeStruct((), bool), X) == 2 * M * K * 9


def test_custom_derivatives_and_what_runs_on_every_device():
    @jax.custom_vjp
    def f(x, w):
        return x @ w

    f.defvjp(lambda x, w: (f(x, w), (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    assert count(f, X, W) == PRODUCT
    assert count(jax.grad(lambda x, w: jnp.sin(f(x, w)).sum(), (0, 1)), X, W) == 3 * PRODUCT

    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()),
                         out_specs=PartitionSpec("data"))  # fmt: skip
    assert count(rows, shape(4 * M, K), W) == 4 * PRODUCT


def test_the_splash_kernel_counts_as_the_attention_that_it_computes():
    from didr_jax.models.attention import attend

    q = shape(1, 256, 2, 64)
    count_of = lambda backend: count(lambda q: attend(q, q, q, backend=backend), q)
    assert count_of("splash_interpret") == count_of("xla") == 2 * 2 * 2 * 256 * 256 * 64


def test_operations_are_told_apart_by_what_a_chips_rate_depends_on():
    """What a TPU multiplies in one pass or in six, and a GPU in its tensor cores at full or half rate, or not at all."""

    def products(x, w):
        half = jnp.bfloat16
        both = x.astype(half) @ w.astype(half), x @ w, jnp.matmul(x, w, precision="highest")
        return jax.lax.scan(lambda c, _: (c, both[0] + x.astype(half) @ w.astype(half)), 0.0, length=3), both

    counted = by_dtype(products, X, W)
    assert counted == {"bfloat16": 4 * PRODUCT, "float32": PRODUCT, "float32 highest": PRODUCT}
    assert CHIPS["v5e"].least_seconds(counted) * 197e12 == pytest.approx((4 + 1 + 6) * PRODUCT)
    assert CHIPS["h100"].least_seconds(counted) * 989e12 == pytest.approx((4 + 2 + 989 / 67) * PRODUCT)


def test_splash_and_cudnn_count_the_gradient_with_what_they_compute_again(monkeypatch):
    """The plain gradient takes four products beside the forward's two; fused kernels compute q kᵀ again, splash's two of them
    also the products with the output's gradient."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    from didr_jax.models.attention import attend

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)  # what is traced asks for cuDNN, what is counted does not
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    q, k = (jax.ShapeDtypeStruct((2, n, 3, 64), jnp.bfloat16) for n in (256, 128))
    product = 2 * 2 * 3 * 256 * 128 * 64
    total = lambda q, k, v, backend: attend(q, k, v, backend=backend).astype(jnp.float32).sum()
    for backend, forward, both in (("xla", 2, 6), ("cudnn", 2, 7), ("splash", 2, 9)):
        assert count(lambda q, k: attend(q, k, k, backend=backend), q, k) == forward * product, backend
        gradient = jax.grad(lambda q, k, v, backend=backend: total(q, k, v, backend), (0, 1, 2))
        assert count(gradient, q, k, k) == pytest.approx(both * product, rel=0.01), backend
