"""How the tests of text-to-image recipes run them: as a user does, in this process, and into refusals."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from didr_jax import recipes
from didr_jax.cli import check
from didr_jax.recipes.text_to_image.recipe import TextToImage
from didr_jax.training.metrics import read_metrics
from didr_jax.training.validate import validate
from didr_jax.types import InputError

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Each program runs a few times: it is compiled in haste.
HASTE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def config_of(module, settings):
    """The config of a file in `configs/` with `{key: value}` set."""
    config = module.get_config()
    config.update_from_flattened_dict(settings)
    return config


def recipe_of(module, make_backbone, settings, **more) -> TextToImage:
    """The recipe of that config; `more` settings have "." written as "__"."""
    more = {key.replace("__", "."): value for key, value in more.items()}
    return TextToImage(config_of(module, settings | more), make_backbone)


def command_of(name, settings, workdir, *arguments, devices=1, cache=None, program=("run.py",)):
    """`run.py --config=configs/NAME.py` with `settings`, and the environment that it is to be run in."""
    flags = HASTE | {"xla_force_host_platform_device_count": devices}
    environment = os.environ | {
        "XLA_FLAGS": " ".join(f"--{flag}={str(value).lower()}" for flag, value in flags.items()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    if cache is not None:
        environment |= {
            "JAX_ENABLE_COMPILATION_CACHE": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    knobs = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, *program, f"--config=configs/{name}.py", f"--workdir={workdir}", *knobs, *arguments]
    return command, environment


def start_run(*arguments, **more):
    """A run, whatever comes of it."""
    command, environment = command_of(*arguments, **more)
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900, env=environment)


def spawn(*arguments, processes=1, **more) -> list[subprocess.Popen]:
    """One run as so many processes; `tiny_runs.finish` waits for them."""
    started = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = [f"--config.distributed.coordinator=127.0.0.1:{port}", f"--config.distributed.processes={processes}"]
    for i in range(processes):
        own = [*together, f"--config.distributed.process={i}"] if processes > 1 else []
        command, environment = command_of(*arguments, *own, **more)
        started.append(subprocess.Popen(command, cwd=REPO, env=environment))
    return started


def run(*arguments, **more):
    """A run that shall succeed."""
    result = start_run(*arguments, **more)
    assert result.returncode == 0, result.stderr
    return result


def trained_and_exported(name, settings, root):
    """A pipeline of sprouts, by its first two commands in `root`: the folder that was exported, and what the report said."""
    workdir = root / "pipeline"
    for mode in ("train", "export"):
        run(name, settings, workdir, f"--mode={mode}", cache=root / "compiled")
    return workdir / "export", json.loads((workdir / "summary.json").read_text())


# run.py, which at its end tells every file that Python opened.
LISTENING = """
import sys
opened = set()
sys.addaudithook(lambda event, arguments: opened.add(str(arguments[0])) if event == "open" else None)
from didr_jax.cli import main
try:
    main()
finally:
    sys.stderr.write("".join(f"OPENED {path}\\n" for path in sorted(opened)))
"""


def opened(name, settings, workdir, root, *arguments, **more) -> list[str]:
    """The files under `root`, by their names from there, that a run opens; it shall succeed."""
    result = run(name, settings, workdir, *arguments, program=("-c", LISTENING), **more)
    paths = [line.removeprefix("OPENED ") for line in result.stderr.splitlines() if line.startswith("OPENED ")]
    inside = [os.path.relpath(path, root) for path in paths if path.startswith(f"{root}/") and os.path.isfile(path)]
    return sorted(inside)


def loaded(weights):
    """The arrays of `{name: Weights}`."""
    return {name: each.load() for name, each in weights.items()}


def begun(stage):
    """The state before a stage's first step."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return stage.init(jax.tree.map(lambda _: here, stage.shapes))


def train(recipe, steps=1):
    """Trains in this process: (state, metrics of the last step, whether what is frozen kept every bit)."""
    stage = recipe.align({})
    frozen = loaded(stage.frozen)
    before = jax.tree.map(np.array, frozen)
    state = begun(stage)
    step = jax.jit(stage.step, compiler_options=HASTE)
    for i in range(steps):
        state, metrics = step(state, frozen, stage.batch(i))
    same = jax.tree.map(lambda a, b: a.tobytes() == np.asarray(b).tobytes(), before, frozen)
    return state, jax.tree.map(float, metrics), jax.tree.all(same)


def assert_trains(recipe, steps=1):
    """A step moves nearly every leaf of both networks and nothing else, to finite values."""
    recipe.check("train")
    state, metrics, untouched = train(recipe, steps)
    assert untouched and metrics["skipped"] == 0 and all(np.isfinite(value) for value in metrics.values())
    for who, trained in (("generator", state.generator), ("ta", state.ta)):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), trained, recipe.task.start(who).load())
        assert np.mean(jax.tree.leaves(moved)) > 0.9
    return state


def assert_same_figures(first, second):
    """Two runs of one config ended with the same figures, to the order of sums."""
    one, two = (read_metrics(str(workdir))[-1] for workdir in (first, second))
    for name in ("ta_loss", "gap", "reward", "grad_norm"):
        assert two[name] == pytest.approx(one[name], rel=1e-2), name


def refusal(config, mode="train"):
    """The one line with which a config is refused."""
    with pytest.raises(InputError) as error:
        validate(config)
        check(recipes.build(config), config, mode)
    assert "\n" not in str(error.value)
    return str(error.value)


def told(images, prompts):
    """`config.eval.judge` of the tests: a figure of the images and one of their prompts."""
    return {"brightness": images.mean(), "letters": sum(map(len, prompts))}
