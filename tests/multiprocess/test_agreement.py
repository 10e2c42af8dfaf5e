"""A file of weights whose last rows are not finite: the process that reads them says so, and all end by it."""

import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from tiny_runs import REPO

from didr_jax.weights.files import write_safetensors

pytestmark = pytest.mark.slow

PROGRAM = """
    import functools, sys
    import jax, jax.numpy as jnp
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    from jax.sharding import NamedSharding, PartitionSpec
    from didr_jax.types import InputError
    from didr_jax.weights.engine import weights_of
    from didr_jax.weights.files import read_tensors
    from didr_jax.weights.rules import layer

    shapes = {"fc": {"kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}}
    weights = weights_of(functools.partial(read_tensors, sys.argv[3]), layer("fc", "fc"), shapes)
    mesh = jax.make_mesh((2,), ("x",))
    places = {"fc": {"kernel": NamedSharding(mesh, PartitionSpec("x")), "bias": NamedSharding(mesh, PartitionSpec())}}
    try:
        found = weights.load(places)
        print("loaded", float(jax.jit(lambda tree: sum(map(jnp.sum, jax.tree.leaves(tree))))(found)), flush=True)
    except InputError as error:
        print(error, flush=True)
    jax.distributed.shutdown()
"""


@pytest.mark.parametrize("bad", [False, True])
def test_what_one_process_refuses_all_refuse(bad, tmp_path):
    kernel = np.ones((3, 4), np.float32)  # torch's layout: the last column is the last row here
    kernel[0, 3] = np.nan if bad else 1
    write_safetensors(tmp_path / "w.safetensors", {"fc.weight": kernel, "fc.bias": np.ones(3, np.float32)})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": REPO, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), address, str(i), str(tmp_path / "w.safetensors")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    wanted = "fc.weight has values that are not finite as float32" if bad else "loaded 15.0"
    assert all(wanted in out for out, _ in said), said
