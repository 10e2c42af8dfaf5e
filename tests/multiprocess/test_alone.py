"""Two processes that each embed all prompts by themselves, while the mesh of both is in use."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest
from tiny_runs import REPO

pytestmark = pytest.mark.slow

PROGRAM = """
    import sys
    import jax, numpy as np
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    from jax.sharding import AxisType
    from didr_jax.models.clip import TextConfig, TextTower
    from didr_jax.text.cache import cached
    from didr_jax.text.encoder import TextEncoder
    from didr_jax.training.parallel import AXES
    from didr_jax.types import Weights

    tower = TextTower(TextConfig(16, 2, 2, 32, vocab=40, embed=24))
    tokenize = lambda prompts: {"ids": np.array([[len(prompt), 39] for prompt in prompts], np.int32)}
    params = jax.jit(tower.init)(jax.random.key(0), tokenize(["a"])["ids"])
    encode = lambda params, tokens: {"pooled": tower.apply(params, tokens["ids"]).embedding}
    encoder = TextEncoder(Weights(params, lambda shapes, shardings: params), tokenize, encode, {})

    prompts = ["a", "bb", "ccc", "dddd"]
    want = np.asarray(jax.jit(encode)(params, tokenize(prompts))["pooled"])
    with jax.set_mesh(jax.make_mesh((1, 4, 1), AXES, axis_types=(AxisType.Auto,) * 3)):
        got = cached(sys.argv[3], "key", prompts, lambda: encoder, dtype="float32", batch_size=4, say=str)["pooled"]
    np.testing.assert_allclose(got, want, rtol=1e-6)
"""


def test_two_processes_embed_prompts_under_one_mesh(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": REPO, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), address, str(i), str(tmp_path / str(i))],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "".join(said)
