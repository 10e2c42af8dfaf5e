"""What several processes do together on their hosts: prompts are embedded once, and rows are read where they are computed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from tiny_runs import REPO

pytestmark = pytest.mark.slow

COMMON = """
    import json, sys
    import jax, numpy as np
    from didr_jax.models.clip import TextConfig, TextTower
    from didr_jax.text.cache import cached
    from didr_jax.text.encoder import text_encoder
    from didr_jax.training.parallel import AXES, held, put_rows, to_host

    PROMPTS = ["a" * n for n in range(1, 8)]
    tower = TextTower(TextConfig(16, 2, 2, 32, vocab=40, embed=24))

    def embed(folder, stop_at=None):
        "(embeddings, the prompts that this process tokenized)"
        with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):
            params = jax.tree.map(np.asarray, jax.jit(tower.init)(jax.random.key(0), np.zeros((1, 2), np.int32)))
        seen = []

        def tokenize(prompts):
            if stop_at in prompts:
                raise KeyboardInterrupt
            seen.extend(p for p in prompts if p)
            return {"ids": np.array([[len(prompt), 39] for prompt in prompts], np.int32)}

        encode = lambda params, tokens: {"pooled": tower.apply(params, tokens["ids"]).embedding}
        make = lambda: text_encoder(held(params), tokenize, encode)
        found = cached(folder, "key", PROMPTS, make, dtype="float32", batch_size=1, say=str)
        return np.array(found["pooled"]), seen
"""
TOGETHER = """
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    from jax.sharding import AxisType
    mesh = jax.make_mesh((1, 4, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        found, seen = embed(sys.argv[3])
    read = []

    def rows(which):
        read.append(which.tolist())
        return {"x": 10 * np.stack([which, which + 100])}

    batch = to_host(put_rows(rows, 8, mesh, 1))["x"].tolist()
    with open(sys.argv[4], "w") as file:
        json.dump({"found": found.tolist(), "seen": seen, "read": read, "batch": batch}, file)
    jax.distributed.shutdown()
"""
ALONE = """
    np.save(sys.argv[2], embed(sys.argv[1])[0])
    try:
        embed(sys.argv[3], "aaaa")
    except KeyboardInterrupt:
        pass
"""


def start(program, *arguments, devices):
    environment = os.environ | {"PYTHONPATH": REPO, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-c", textwrap.dedent(COMMON) + textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(*processes):
    said = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "".join(said)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(the embeddings of one process with one device, a cache in which it was stopped after three prompts of seven)"""
    folder = tmp_path_factory.mktemp("alone")
    ended(start(ALONE, folder / "whole", folder / "want.npy", folder / "half", devices=1))
    return np.load(folder / "want.npy"), folder / "half"


def together(tmp_path, folders):
    """What each of two processes with two devices tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    out = [tmp_path / f"{i}.json" for i in range(2)]
    ended(*(start(TOGETHER, address, i, folders[i], out[i], devices=2) for i in range(2)))
    return [json.loads(path.read_text()) for path in out]


def in_turn(prompts):
    """Which of them each process embeds: two devices, a prompt at a time each."""
    return [[p for i, p in enumerate(prompts) if i % 4 // 2 == process] for process in range(2)]


PROMPTS = ["a" * n for n in range(1, 8)]


def test_two_processes_share_the_prompts_and_one_copy_and_each_reads_the_rows_of_its_devices(alone, tmp_path):
    both = together(tmp_path, [tmp_path / "cache"] * 2)
    for each in both:
        np.testing.assert_array_equal(np.array(each["found"], np.float32), alone[0])
    assert [each["seen"] for each in both] == in_turn(PROMPTS)
    assert sorted(os.listdir(tmp_path / "cache")) == ["key-float32", "key-float32.checked"]
    assert [each["read"] for each in both] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    whole = [[10 * i for i in range(8)], [1000 + 10 * i for i in range(8)]]
    assert [each["batch"] for each in both] == [whole, whole]


def test_caches_of_their_own_get_a_copy_each_and_what_one_has_half_of_the_other_lacks(alone, tmp_path):
    """The second goes on with what it has; the first has nothing, so that all prompts are embedded, once."""
    shutil.copytree(alone[1], tmp_path / "half")
    both = together(tmp_path, [tmp_path / "cache", tmp_path / "half"])
    for each in both:
        np.testing.assert_array_equal(np.array(each["found"], np.float32), alone[0])
    assert [each["seen"] for each in both] == in_turn(PROMPTS)
    assert (
        sorted(os.listdir(tmp_path / "half")) == sorted(os.listdir(tmp_path / "cache")) == ["key-float32", "key-float32.checked"]
    )


def test_two_processes_go_on_where_one_was_stopped(alone, tmp_path):
    shutil.copytree(alone[1], tmp_path / "cache")
    both = together(tmp_path, [tmp_path / "cache"] * 2)
    for each in both:
        np.testing.assert_array_equal(np.array(each["found"], np.float32), alone[0])
    assert [each["seen"] for each in both] == in_turn(PROMPTS[3:])
