"""Where rows are computed: what networks tell the partitioner, and what it makes of it on eight devices."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows_runs
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from PIL import Image

from didr_jax import lora
from didr_jax.models.clip import VisionConfig, VisionTower
from didr_jax.rewards.base import RewardModel
from didr_jax.rewards.scoring import score_folder
from didr_jax.text.cache import cached
from didr_jax.text.encoder import TextEncoder
from didr_jax.training.parallel import AXES
from didr_jax.types import Weights

TOWER = VisionTower(VisionConfig(16, 2, 2, 24, patch=7, image_size=14, embed=8), remat="blocks")
LAYERS = 1 + 1 + 8 + 1 + 1  # patches, norm; of a block two norms, four and two products; norm, projection


def mesh_of(*sizes):
    """As if `sizes` were the axes of the mesh in use."""
    return jax.sharding.use_abstract_mesh(AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3))


def pixels(*rows):
    return jnp.zeros((*rows, 14, 14, 3))


PARAMS = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(TOWER.init, jax.random.key(0), pixels(1)))


def constraints(function, *args) -> list[PartitionSpec]:
    """The places that a function's program says, in order."""
    return list(_constraints(jax.make_jaxpr(function)(*args).jaxpr))


def _constraints(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sharding_constraint":
            yield equation.params["sharding"].spec
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from _constraints(getattr(inner, "jaxpr", inner))


def test_every_layer_says_that_rows_are_spread_and_leaves_the_rest_to_the_compiler():
    with mesh_of(2, 4, 2):
        places = constraints(TOWER.apply, PARAMS, pixels(16))
    assert len(places) == LAYERS
    for spec in places:
        assert spec[0] == ("data", "fsdp") and set(spec[1:]) <= {PartitionSpec.UNCONSTRAINED}


@pytest.mark.parametrize("mesh, rows", [(None, 8), ((1, 1, 1), 8), ((1, 1, 2), 8), ((2, 4, 1), 12)])
def test_where_no_rows_can_be_spread_a_network_is_the_same_program_to_the_operation(mesh, rows):
    plain = functools.partial(nn.Module.apply, TOWER)
    with mesh_of(*mesh) if mesh else contextlib.nullcontext():
        ours, flax = (str(jax.make_jaxpr(apply)(PARAMS, pixels(rows))) for apply in (TOWER.apply, plain))
    assert ours == flax and "sharding_constraint" not in ours


def test_under_vmap_the_new_axis_is_left_to_the_compiler():
    with mesh_of(2, 4, 1):
        places = constraints(jax.vmap(lambda x: TOWER.apply(PARAMS, x)), pixels(3, 16))
    free = PartitionSpec.UNCONSTRAINED
    assert len(places) == LAYERS and {tuple(spec[:2]) for spec in places} == {(free, ("data", "fsdp"))}


def test_an_adapted_layer_is_pinned_with_its_adapter_added():
    base = PARAMS["params"]
    adapters = jax.eval_shape(lambda: lora.init(jax.random.key(0), base, ["attn/q$"], 2))
    adapted = lora.applied(lambda p, x: TOWER.apply({"params": p}, x), 4.0)
    with mesh_of(1, 8, 1):
        program = jax.make_jaxpr(adapted)(base, adapters, pixels(8))
        assert len(list(_constraints(program.jaxpr))) == LAYERS
        assert str(program).count("dot_general") == str(jax.make_jaxpr(TOWER.apply)(PARAMS, pixels(8))).count("dot_general") + 2


def test_the_runs_mesh_has_no_part_in_embedding_text_and_in_judging_pictures_of_the_host(tmp_path):
    """Text is spread over all devices by a mesh of its own.  Pictures are a process's own: a program of all processes would
    give each of them a part of the answer."""
    seen = []

    def network(params, *inputs):
        seen.append(jax.sharding.get_abstract_mesh().axis_names)
        return inputs[-1]["ids"][:, 0]

    nothing, tokens = Weights({}, lambda shapes, shardings: {}), lambda prompts: {"ids": np.zeros((len(prompts), 2), np.int32)}
    encoder = TextEncoder(nothing, tokens, lambda params, tokens: {"text": network(params, tokens)}, {})
    reward = RewardModel("mine", nothing, lambda images: images, network, tokens)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "prompts.jsonl").write_text('{"image": "a.png", "prompt": "red"}\n')
    mesh = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        cached(tmp_path / "cache", "key", ["a cat"], lambda: encoder, say=str)
        score_folder(tmp_path, tmp_path / "prompts.jsonl", [reward])
        assert jax.sharding.get_mesh() == mesh
    assert seen == [("rows",), ()]


# ------------------------------------------------------------------------------------- partitioned programs


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return rows_runs.run(tmp_path_factory.mktemp("rows"), "networks")


@pytest.mark.parametrize(
    "name", ["image tower", "text tower", "Qwen3", "ImageReward", "autoencoder", "DiT", "adapters", "samples"]
)
def test_a_device_does_its_share_of_a_network_and_sends_parameters_only(networks, name):
    assert networks[name]["share"] == pytest.approx(1, abs=0.01)
    assert networks[name]["moved"] == [] and networks[name]["bytes"] > 0


def test_rows_that_are_not_pinned_are_moved_and_computed_twice(networks):
    assert networks["Qwen3, free"]["share"] > 1.03 and len(networks["Qwen3, free"]["moved"]) > 10


def test_over_tensor_a_tower_sums_activations_where_rows_of_kernels_end_and_nowhere_else(networks):
    """Forward after `out` and `fc2`, backward before `q`, `k`, `v` and `fc1`, and once more where `out` is recomputed."""
    assert len(networks["tensor"]["moved"]) == 7
    assert all(moved.startswith("all-reduce ((202, 17, 16), (202, 17, 16))") for moved in networks["tensor"]["moved"])
    assert networks["tensor"]["share"] < 1.25  # patches and norms' neighbours are not split over tensor


@pytest.mark.parametrize(
    "name", ["sdxl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("zimage_adapters", "sdxl_adapters", "zimage"))]
)
def test_a_device_does_its_share_of_a_step_and_sends_parameters_only(tmp_path, name):
    step = rows_runs.run(tmp_path, name)
    assert step["share"] == pytest.approx(1, abs=0.01)
    assert step["moved"] == [] and step["bytes"] > 0
    if name == "sdxl":
        assert [3, 3, 8, 8] in step["reduced"], "gradients of convolutions are partial sums, added over devices"


@pytest.mark.slow
def test_a_step_whose_rows_are_not_pinned_does_half_as_much_again(tmp_path):
    step = rows_runs.run(tmp_path, "zimage_adapters", pinned=False)
    assert step["share"] > 1.3 and len(step["moved"]) > 100
