"""Four devices: parameters placed in pieces, attention kernels run on each device's share."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from didr_jax.models.attention import attend
from didr_jax.weights.engine import to_flax, to_torch
from didr_jax.weights.rules import Rule

mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
rng = np.random.default_rng(0)

state = {f"l.{i}.weight": rng.normal(size=(6, 8)).astype("f") for i in range(4)}
table = [Rule(r"l.(?P<layer>\\d+).weight", "l/kernel", "kernel")]
shapes = {"l": {"kernel": jax.ShapeDtypeStruct((4, 8, 6), jnp.float32)}}
for spec in (P("data", "tensor"), P(None, ("data", "tensor")), P(None, None, "data"), P()):
    params = to_flax(state, table, shapes, shardings=NamedSharding(mesh, spec))
    back = to_torch(params, table)
    assert params["l"]["kernel"].sharding.spec == spec
    assert all((np.asarray(back[k]) == state[k]).all() for k in state), spec

q, k, v = (jnp.asarray(rng.normal(size=(4, n, 2, 8)), jnp.float32) for n in (140, 77, 77))
mask = jnp.asarray(np.arange(77) < np.array([[9], [77], [30], [1]]))
run = lambda backend: jax.jit(jax.value_and_grad(lambda q: (attend(q, k, v, mask=mask, backend=backend) ** 2).sum()))
want, d_want = run("xla")(q)
with jax.set_mesh(mesh):
    got, d_got = run("splash_interpret")(jax.device_put(q, NamedSharding(mesh, P("data", None, "tensor"))))
np.testing.assert_allclose(got, want, rtol=1e-5)
np.testing.assert_allclose(d_got, d_want, atol=1e-5)
"""


def test_four_devices():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
