"""What happens when something goes wrong: every way out is clear, and nothing trained is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from limits import fill, small_disk
from tiny_runs import REPO, tiny, train_tiny

from didr_jax import closed_form
from didr_jax.builders import make_schedule
from didr_jax.exits import CannotSave, NotFinite, Preempted
from didr_jax.objectives import OBJECTIVES
from didr_jax.training.metrics import RunLog, read_metrics
from didr_jax.training.parallel import made
from didr_jax.training.recipe import Recipe
from didr_jax.training.stages import game_stage
from didr_jax.training.step import Networks
from didr_jax.training.watch import bad_parts
from didr_jax.training.workdir import lock
from didr_jax.types import InputError

ONE = {"stages": ("pretrain",)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("run"), tiny(**ONE))


def equal(products, others):
    assert products.keys() == others.keys()
    for path in products:
        np.testing.assert_array_equal(products[path], others[path], err_msg=path)


def at_step(monkeypatch, wanted: int, act):
    """Calls `act` when figures of step `wanted` are written."""
    write = RunLog.write

    def watched(self, stage, step, values):
        if step == wanted:
            act()
        write(self, stage, step, values)

    monkeypatch.setattr(RunLog, "write", watched)


def test_sigterm_saves_at_once_and_the_same_command_goes_on(monkeypatch, tmp_path, uninterrupted, capsys):
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Preempted, match="saved at step 6") as stopped:
            train_tiny(tmp_path, tiny(**ONE))
    assert stopped.value.code == 75 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    equal(train_tiny(tmp_path, tiny(**ONE)), uninterrupted)
    assert "goes on from at step 6" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- not finite


def linear_recipe(config, reward=lambda r: r, gradient=lambda g: g) -> Recipe:
    """The align stage on linear networks, with its reward or its objective's gradient passed through a fault."""
    schedule = make_schedule(config)
    reference = closed_form.GaussianMixture.of([[1.0, 1.0]], std=0.7).denoiser(schedule)
    linear = lambda p, frozen, x, *_: x @ p["w"]
    networks = Networks(
        schedule=schedule,
        event_shape=(2,),
        reference=lambda frozen, x_t, t, c: reference(x_t, t),
        ta=linear,
        generator=linear,
        reward=lambda frozen, x0, c: reward(jnp.sum(x0, -1)),
    )

    def spoilt(*arguments):
        direction, aux = OBJECTIVES[config.align.objective](*arguments)
        return gradient(direction), aux

    start = made(lambda: {"w": jnp.eye(2)})
    no_conditions = lambda rng, n: {"none": np.zeros(n, np.float32)}
    recipe = Recipe()
    recipe.stages = {
        "align": lambda products: game_stage(
            "align", config, networks=networks, generator=start, ta=start, conditions=no_conditions,
            objective=OBJECTIVES[config.align.objective]._replace(gradient=spoilt),
        )
    }  # fmt: skip
    return recipe


SHORT = {"stages": ("align",), "align__steps": 12, "watch__patience": 4, "log__every": 1}


@pytest.mark.parametrize(
    "spoilt, named, finite",
    [
        ({"reward": lambda r: r + jnp.nan}, "reward", ["ta_loss", "gap"]),  # as from a decoder that overflows
        ({"gradient": lambda g: g / 0.0}, "grad_norm", ["ta_loss", "gap", "pull", "reward"]),
    ],
    ids=["reward", "gradient"],
)
def test_a_run_that_is_not_finite_stops_saved_and_says_what_went_bad(spoilt, named, finite, tmp_path):
    config = tiny(**SHORT)
    with pytest.raises(NotFinite, match=f"4 steps in a row were not finite.*not finite: {named}") as stopped:
        train_tiny(tmp_path, config, linear_recipe(config, **spoilt))
    assert stopped.value.code == 70
    report = json.loads((tmp_path / "stopped.json").read_text())
    assert report["stage"] == "align" and report["step"] == 4 and report["not_finite"][0] == named
    assert not set(finite) & set(report["not_finite"]) and report["figures"]["skipped"] == 4
    # the state that was saved is sound: without the fault, the same run goes on and finishes
    products = train_tiny(tmp_path, config, linear_recipe(config))
    assert all(np.isfinite(x).all() for x in products.values())


def test_the_streak_is_of_steps_in_a_row(tmp_path):
    """Every other update is spoilt: all are counted, none stops the run."""
    calls = iter(range(10**6))

    def sometimes(r):
        bad = jax.pure_callback(lambda: np.float32(np.nan if next(calls) % 2 else 0), jax.ShapeDtypeStruct((), jnp.float32))
        return r + bad

    config = tiny(**SHORT | {"watch__patience": 2})
    train_tiny(tmp_path, config, linear_recipe(config, gradient=sometimes))
    skipped = [line["skipped"] for line in read_metrics(str(tmp_path)) if line["stage"] == "align"]
    assert skipped[-1] == 6 and max(np.diff(skipped)) == 1


def test_bad_parts_come_in_causal_order():
    assert bad_parts({"grad_norm": np.nan, "reward": np.inf, "ta_loss": 1.0, "other": np.nan}) == ["reward", "grad_norm", "other"]


# ------------------------------------------------------------------------------------------- disks


def test_a_disk_that_fills_up_keeps_the_last_good_save(monkeypatch, tmp_path, uninterrupted):
    with small_disk(tmp_path / "disk", "4m") as disk:
        workdir = disk / "run"
        with monkeypatch.context() as patch:
            at_step(patch, 15, lambda: fill(disk))
            with pytest.raises(CannotSave) as stopped:
                train_tiny(workdir, tiny(**ONE))
        assert stopped.value.code == 74 and "\n" not in str(stopped.value)
        (disk / "filler").unlink()
        equal(train_tiny(workdir, tiny(**ONE)), uninterrupted)


def test_a_disk_too_small_for_one_checkpoint_is_refused_before_training(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        with pytest.raises(InputError, match="a checkpoint needs .* GB"):
            train_tiny(disk / "run", tiny(**ONE | {"network__width": 512}))


def test_a_full_disk_under_the_log_is_one_clear_line(tmp_path):
    log = RunLog(str(tmp_path))
    log._file.close()
    log._file = open("/dev/full", "a")
    with pytest.raises(CannotSave, match="/dev/full"):
        log.write("align", 1, {"loss": 0.0})


# -------------------------------------------------------------------------------------------- logs


def test_services_that_are_not_installed_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="config.log.service needs the package wandb"):
        RunLog(str(tmp_path), tiny(log__service="wandb").log)


def test_figures_reach_tensorboard_and_a_service(tmp_path, monkeypatch):
    sent = []

    class Service:
        def init(self, **settings):
            sent.append(settings)
            return self

        def log(self, values):
            sent.append(values)

        def finish(self):
            sent.append("finished")

    monkeypatch.setitem(sys.modules, "trackio", Service())
    log = RunLog(str(tmp_path), tiny(log__service="trackio", log__tensorboard=True).log)
    log.write("align", 3, {"reward": 0.5})
    log.close()
    assert sent[0]["project"] == "didr_jax" and sent[1:] == [{"align/reward": 0.5, "align/step": 3}, "finished"]
    assert list((tmp_path / "tensorboard").iterdir())
    assert read_metrics(str(tmp_path)) == [{"stage": "align", "step": 3, "reward": 0.5}]


def test_a_profiler_window_leaves_a_trace(tmp_path):
    train_tiny(tmp_path, tiny(**ONE | {"profile__stage": "pretrain", "profile__first": 2, "profile__steps": 2}))
    assert any(file.stat().st_size for file in (tmp_path / "profile").rglob("*.xplane.pb"))


# -------------------------------------------------------------------------------------------- locks


def test_a_second_live_run_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    holder = "import sys, time\nfrom didr_jax.training.workdir import lock\nwith lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"in use by a live run \\(process {process.pid} on "), lock(str(tmp_path)):
        pass
    process.kill()
    process.wait()
    with lock(str(tmp_path)):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_run_py_stops_with_code_75_and_refuses_company(tmp_path):
    command = [
        sys.executable,
        "run.py",
        "--config=configs/mixture.py",
        f"--workdir={tmp_path}",
        "--config.pretrain.steps=1000000",
    ]
    first = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert any("img" in line for line in iter(first.stdout.readline, ""))
        second = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
        assert second.returncode == 2 and "in use by a live run" in second.stderr
        first.send_signal(signal.SIGTERM)
        _, stderr = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 75 and "asked to stop and is saved at step" in stderr


# --------------------------------------------------------------------------------------------- kill


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_loses_nothing_that_was_saved(tmp_path):
    """In a process where JAX has not started yet, so that the attempts can be forked from it."""
    environment = os.environ | {"PYTHONPATH": f"{REPO}:{REPO}/tests", "JAX_ENABLE_COMPILATION_CACHE": "1"}
    script = "import test_faults, pathlib, sys; test_faults.kill_twenty_times(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPO, env=environment, check=True, timeout=600)


def kill_twenty_times(folder) -> None:
    """Kills attempts at random until twenty have died, in both stages; every run that they finish equals the
    uninterrupted one."""
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    rng, told = np.random.default_rng(0), folder / "told"
    assert os.waitpid(begin(folder / "whole", told), 0)[1] == 0
    killed_in, inside_a_save, runs = [], 0, 0
    enough = lambda: len(killed_in) >= 20 and set(killed_in) == {"pretrain", "distill"} and inside_a_save > 0
    while not enough():
        runs += 1
        workdir, saved = folder / f"killed{runs}", None
        while not survives(begin(workdir, told), workdir, None if enough() else rng.uniform(0, 0.5)):
            if saved:
                assert f"{saved[0]} " in told.read_text() and f"at step {saved[1]}\n" in told.read_text(), "a save was lost"
            saved = newest_save(workdir)
            killed_in.append("distill" if (workdir / "checkpoints" / "distill").exists() else "pretrain")
            inside_a_save += any(".orbax-checkpoint-tmp" in path.name for path in workdir.glob("checkpoints/*/*"))
        equal(dict(np.load(folder / "whole.npz")), dict(np.load(f"{workdir}.npz")))
    print(f"{len(killed_in)} kills, {inside_a_save} inside a save, {runs} runs", flush=True)


def begin(workdir, told) -> int:
    """Forks an attempt, which leaves its products beside `workdir` if it lives to see the end."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stdout = open(told, "w")
        config = tiny(pretrain__steps=30, distill__steps=60, checkpoint__every=2, log__every=1)
        np.savez(f"{workdir}.npz", **train_tiny(workdir, config))
        code = 0
    finally:
        os._exit(code)


def survives(child: int, workdir, seconds: float | None) -> bool:
    """Kills the child so long after its first step; None spares it.  Whether it finished."""
    lines, log = -1, workdir / "metrics.jsonl"
    while seconds is not None:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            assert code == 0
            return True
        now = log.read_bytes().count(b"\n") if log.exists() else 0
        if lines not in (-1, now):
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            break
        lines = now
        time.sleep(0.005)
    _, code = os.waitpid(child, 0)
    return code == 0


def newest_save(workdir) -> tuple[str, int] | None:
    """(stage, step) of the newest complete save."""
    for stage in ("distill", "pretrain"):
        steps = [int(path.name) for path in (workdir / "checkpoints" / stage).glob("*") if path.name.isdigit()]
        if steps:
            return stage, max(steps)
    return None
