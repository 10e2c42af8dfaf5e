"""The table of shardings, the mesh, and the compiled program of an FSDP step over eight devices."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny_runs import REPO, tiny

from didr_jax.training import startup
from didr_jax.training.parallel import AXES, check_batches, make_mesh, parse_rules, shard_rows, spec_of
from didr_jax.types import InputError

MESH = jax.sharding.AbstractMesh((2, 4, 2), AXES)


@pytest.mark.parametrize(
    "path, shape, spec",
    [
        ("generator/attention/query/kernel", (64, 32), P(("fsdp",), ("tensor",))),
        ("opt_ta/1/0/mu/attention/query/kernel", (64, 32), P(("fsdp",), ("tensor",))),  # moments go with parameters
        ("ema/attention/query/kernel", (12, 64, 32), P(None, ("fsdp",), ("tensor",))),  # a stack of layers
        ("opt_ta/v_row/attention/query/kernel", (64,), P()),  # a factored moment has lost a dimension
        ("generator/embed/kernel", (6, 16), P(None, ("fsdp", "tensor"))),
        ("generator/norm/scale", (4096,), P()),
        ("generator/mlp/kernel", (63, 128), P(None, "fsdp")),  # the largest dimension that divides
        ("generator/mlp/kernel", (256, 128), P("fsdp", None)),
        ("generator/mlp/kernel", (63, 65), P()),  # none divides
        ("generator/mlp/bias", (64,), P()),  # small
        ("step", (), P()),
    ],
)
def test_the_first_row_that_matches_places_a_leaf(path, shape, spec):
    table = parse_rules([r"(query|key)/kernel$=fsdp,tensor", "embed=-,fsdp+tensor", "norm/=whole"])
    assert spec_of(path, shape, table, MESH, min_size=1000) == spec


@pytest.mark.parametrize("row, fragment", [("kernel=fdsp", "fdsp"), ("(=fsdp", "regular expression"), ("kernel", "regex=axes")])
def test_rows_that_cannot_be_meant_are_refused(row, fragment):
    with pytest.raises(InputError, match="config.mesh.rules") as refused:
        parse_rules([row])
    assert fragment in str(refused.value)


def test_a_rule_that_does_not_divide_names_the_leaf():
    with pytest.raises(InputError, match=r"generator/kernel \(6, 8\): 6 is not divisible"):
        spec_of("generator/kernel", (6, 8), parse_rules(["kernel=fsdp,-"]), MESH, min_size=1)


def test_mesh_and_batches_that_do_not_fit_are_refused_before_work():
    with pytest.raises(InputError, match=r"config.mesh \(data=-1, fsdp=16, tensor=1\) does not fit 1 devices"):
        make_mesh(tiny(mesh__fsdp=16).mesh)
    assert make_mesh(tiny().mesh).shape == {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(InputError, match="config.distill.batch_size = 64 .* multiple of 24"):
        check_batches(tiny(distill__micro_batches=3), MESH)


def test_without_a_mesh_rows_stay_where_they_are():
    rows = jnp.arange(6.0)
    assert jax.jit(shard_rows)(rows).sharding == rows.sharding


def test_start_refuses_unknown_flags_and_ranks():
    with pytest.raises(InputError, match="config.compiler.flags = 'cuda'"):
        startup.start(tiny(compiler__flags="cuda"))
    with pytest.raises(InputError, match="config.distributed.process = 3"):
        startup.start(tiny(distributed__coordinator="localhost:1", distributed__process=3, distributed__processes=2))


PROGRAM = """
    import json, re, sys
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from didr_jax import recipes
    from didr_jax.training.parallel import ROWS, make_mesh, path_of, shardings, with_places
    from tiny_runs import tiny

    def compiled(**overrides):
        config = tiny(network__width=256, network__depth=2, mesh__min_size=4096, **overrides)
        mesh = make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            recipe = recipes.build(config)
            stage = recipe.stages["distill"]({"pretrain": {"params": recipe.fresh(0)}})
            state = with_places(stage.shapes, shardings(stage.shapes, config, mesh))
            places = jax.tree.map(lambda a: a.sharding, state)
            spread = NamedSharding(mesh, P(None, ROWS))
            batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), stage.batch(0))
            step = stage.compiled(places, mesh)
            return step.lower(state, {}, batch).compile(), state

    whole, state = compiled(mesh__data=8)
    split, _ = compiled(mesh__fsdp=8)
    out = jax.tree_util.tree_leaves_with_path(split.output_shardings[0])
    sizes = jax.tree.leaves(state)
    big = [(path_of(k), s.shard_shape(a.shape) == a.shape) for (k, s), a in zip(out, sizes) if a.size >= 4096]
    text = split.as_text()
    json.dump({
        "big": len(big), "replicated": [path for path, same in big if same],
        "share": sum(a.size for a in sizes if a.size >= 4096) / sum(a.size for a in sizes),
        "bytes": [p.memory_analysis().argument_size_in_bytes for p in (whole, split)],
        "temp": [p.memory_analysis().temp_size_in_bytes for p in (whole, split)],
        "gathers": len(re.findall(r"all-gather(-start)?\\(", text)),
        "reductions": len(re.findall(r"(reduce-scatter|all-reduce)(-start)?\\(", text)),
        "whole_gathers": len(re.findall(r"all-gather(-start)?\\(", whole.as_text())),
        "whole_reductions": len(re.findall(r"all-reduce(-start)?\\(", whole.as_text())),
    }, open(sys.argv[1], "w"))
"""


def test_the_compiled_fsdp_step_shards_all_that_is_big(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{REPO}:{REPO}/tests", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "facts.json")]
    subprocess.run(command, cwd=REPO, env=environment, check=True, timeout=300)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["big"] == 5 * 7 and facts["replicated"] == []  # kernels; of two nets, one average, four moments
    whole, split = facts["bytes"]
    expected = facts["share"] / 8 + (1 - facts["share"])
    np.testing.assert_allclose(split / whole, expected, rtol=0.1)
    assert facts["gathers"] > 0 and facts["reductions"] > 0, "FSDP gathers parameters and reduces gradients"
    assert facts["whole_gathers"] == 0 and facts["whole_reductions"] > 0, "data parallelism only reduces gradients"
