"""What a text-to-image stage reads and keeps, and its plan from a pipeline folder through run.py."""

import gc
import os
import subprocess
import sys
import weakref

import jax
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import sdxl  # noqa: E402
from didr_jax.recipes.text_to_image.outline import Outline  # noqa: E402
from didr_jax.recipes.text_to_image.stable_diffusion import stable_diffusion  # noqa: E402
from didr_jax.recipes.text_to_image.task import TextToImage  # noqa: E402
from didr_jax.training.parallel import create, make_mesh, shardings  # noqa: E402
from tests import tiny_pipeline as tiny  # noqa: E402

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NO_NETWORK_REWARDS = {"rewards.hps": "", "rewards.pickscore": "", "rewards.held_out": ()}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    _, settings = tiny.settings(tmp_path_factory.mktemp("sdxl"))
    return settings | NO_NETWORK_REWARDS


def config_of(settings, **more):
    config = sdxl.get_config()
    config.update_from_flattened_dict(settings | {key.replace("__", "."): value for key, value in more.items()})
    return config


@pytest.mark.parametrize("train", ["full", "lora"])
def test_initial_weights_are_read_once_when_a_run_begins_and_kept_by_nobody(settings, train):
    config = config_of(settings, network__generator=train, network__ta=train)
    task, read = TextToImage(config, stable_diffusion), []
    backbone = task.backbone

    def load(source, dtype, places=None):
        params = type(backbone).load(backbone, source, dtype, places)
        read.append((source, [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]))
        return params

    object.__setattr__(backbone, "load", load)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        stage = task.align({})
        frozen = [source for source, _ in read]
        shapes = stage.shapes()
        assert [source for source, _ in read] == frozen, "shapes, and so a resumed run, read nothing"
        state = create(stage.init, shardings(shapes, config, mesh))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    begun = read[len(frozen) :]
    assert [source for source, _ in begun] == ([] if train == "lora" else ["generator", "base"])
    gc.collect()
    alive = [leaf() for _, leaves in begun for leaf in leaves if leaf() is not None]
    assert not alive, [type(r) for r in gc.get_referrers(alive[0])]


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_outline_has_the_shapes_of_the_stage(settings, train):
    config = config_of(settings, network__generator=train, network__ta=train)
    kinds = lambda tree: jax.tree.map(lambda a: (a.shape, jax.numpy.dtype(a.dtype)), tree)
    with jax.set_mesh(make_mesh(config.mesh)):
        real = TextToImage(config, stable_diffusion).align({})
        outline = Outline(config, stable_diffusion).align({})
        assert kinds(outline.shapes()) == kinds(jax.eval_shape(real.init))
        assert kinds(outline.frozen) == kinds(real.frozen)
        assert kinds(jax.eval_shape(lambda: outline.batch(0))) == kinds(real.batch(0))


def test_run_py_plans_a_step_from_a_folder_on_this_machine(settings, tmp_path):
    knobs = [f"--config.{key}={value}" for key, value in settings.items()]
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    flags += " --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "run.py", "--config=configs/sdxl.py", "--mode=compile", *knobs, "--config.mesh.fsdp=2"],
        cwd=REPO, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("2 × device of unknown peak", "state opt_ta", "activations", "operations per image"):
        assert words in done.stdout
    assert not os.listdir(tmp_path)

    refused = subprocess.run(
        [sys.executable, "run.py", "--config=configs/sdxl.py", "--mode=compile", *knobs, "--config.align.batch_size=3"],
        cwd=REPO, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert refused.returncode == 2 and "multiple of 2" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
