"""The mixture recipe at its tiniest, in this process or in others, for tests of the engine.

python tests/tiny_runs.py '{"workdir": …, "devices": 8, "set": {"mesh.fsdp": 4}, "out": "products.npz"}'
"""

import json
import os
import socket
import subprocess
import sys

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

TINY = {
    "stages": ("pretrain", "distill"),
    "network.width": 16,
    "network.depth": 1,
    "pretrain.steps": 20,
    "distill.steps": 20,
    "pretrain.batch_size": 64,
    "distill.batch_size": 64,
    "align.batch_size": 64,
    "distill.ta_updates": 2,
    "align.ta_updates": 2,
    "log.every": 5,
    "checkpoint.every": 10,
    "distributed.detect": False,
    "eval.every": 0,
}


def tiny(**overrides):
    """The config, with `overrides` by flat key ("." written as "__")."""
    from configs import mixture

    config = mixture.get_config()
    config.update_from_flattened_dict(TINY | {key.replace("__", "."): value for key, value in overrides.items()})
    return config


def claim_workdir(config, workdir, free=(), start=None):
    """Compares a config with a workdir's and writes it there, as the first step of a run does."""
    from didr_jax.training.claims import compare

    claim = compare(config, workdir, free)
    claim.start = start
    claim.record("pretrain", 0)
    os.makedirs(os.path.join(workdir, "checkpoints", "corrupt", "one"), exist_ok=True)  # something to lose: the config binds


def train_tiny(workdir, config, recipe=None, allowed=()) -> dict:
    """Trains in this process (the mixture, or another recipe); the products as `{path: numpy array}`."""
    import jax
    import numpy as np

    from didr_jax import recipes
    from didr_jax.agreement import told_by_first
    from didr_jax.training import origin
    from didr_jax.training.claims import RUN, compare
    from didr_jax.training.loop import train
    from didr_jax.training.metrics import RunLog
    from didr_jax.training.parallel import make_mesh, path_of, to_host
    from didr_jax.training.run import Run
    from didr_jax.training.startup import on_first
    from didr_jax.training.validate import validate
    from didr_jax.training.workdir import make_workdir

    validate(config)
    recipe = recipe or recipes.build(config)
    mesh = make_mesh(config.mesh)

    claims = []
    origin.pin(config, str(workdir))

    def claim():
        make_workdir(str(workdir))
        claims.append(compare(config, str(workdir), recipe.free, allowed=allowed))

    on_first(claim)
    record = claims[0].record if claims else lambda stage, step: []
    name = told_by_first(claims[0].about[RUN] if claims else "")
    log = RunLog(str(workdir), config.log)
    try:
        run = Run(config, str(workdir), mesh, log, record, name=name)
        with jax.set_mesh(mesh):
            products = to_host({stage: run.load(left) for stage, left in train(recipe, run).items()})
    finally:
        log.close()
    return {path_of(keys): np.asarray(x) for keys, x in jax.tree_util.tree_leaves_with_path(products)}


def spawn(workdir, *, devices=1, processes=1, out=None, cache=None, **overrides) -> list[subprocess.Popen]:
    """One run as `processes` processes of `devices` virtual devices each; their output goes to files."""
    common = {key.replace("__", "."): value for key, value in overrides.items()}
    if cache:
        common["compiler.cache"] = str(cache)
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common |= {"distributed.coordinator": f"127.0.0.1:{port}", "distributed.processes": processes}
    started = []
    for i in range(processes):
        request = {"workdir": str(workdir), "set": common | {"distributed.process": i}, "out": out and str(out)}
        environment = os.environ | {
            "PYTHONPATH": REPO, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_ENABLE_COMPILATION_CACHE": str(int(bool(cache))),
        }  # fmt: skip
        with open(f"{workdir}.{i}.log", "ab") as log:
            command = [sys.executable, os.path.abspath(__file__), json.dumps(request)]
            started.append(subprocess.Popen(command, cwd=REPO, env=environment, stdout=log, stderr=log))
    return started


def finish(started: list[subprocess.Popen], timeout: float) -> list[int]:
    """Exit codes; whatever still runs after `timeout` seconds is killed and fails the test."""
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def said(workdir, process=0) -> str:
    """What a spawned process printed."""
    with open(f"{workdir}.{process}.log", errors="replace") as file:
        return file.read()


def _main() -> None:
    request = json.loads(sys.argv[1])
    from didr_jax.exits import RunStopped
    from didr_jax.training import startup

    config = tiny(**request["set"])
    startup.start(config)
    import numpy as np

    try:
        products = train_tiny(request["workdir"], config)
        if request["out"] and startup.is_first_process():
            np.savez(request["out"], **products)
        startup.leave()
    except RunStopped as stopped:
        print(stopped, flush=True)
        startup.leave()
        sys.exit(stopped.code)


if __name__ == "__main__":
    _main()
