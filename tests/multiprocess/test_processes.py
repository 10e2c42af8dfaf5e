"""Several processes, several devices, real collectives: the same run, however it is spread.

Every run trains the same 20 + 20 steps.  `reference` is one process with eight devices, data-parallel.
"""

import re
import shutil
import signal
import time

import numpy as np
import pytest
from tiny_runs import finish, said, spawn

from didr_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

TIMEOUT = 240  # seconds; an idle machine needs 15
RULES = ("Dense_[01]/kernel$=fsdp,tensor",)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache):
    """(workdir, products) of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    out = workdir.with_suffix(".npz")
    assert finish(spawn(workdir, devices=8, out=out, cache=cache), TIMEOUT) == [0], said(workdir)
    return workdir, dict(np.load(out))


@pytest.fixture(scope="module")
def pair(tmp_path_factory, cache):
    """(workdir, products) of two processes with four devices each, parameters split over all of them."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    out = workdir.with_suffix(".npz")
    codes = finish(spawn(workdir, devices=4, processes=2, out=out, cache=cache, **SPLIT), TIMEOUT)
    assert codes == [0, 0], said(workdir) + said(workdir, 1)
    return workdir, dict(np.load(out))


SPLIT = {"mesh__fsdp": 8, "mesh__min_size": 64}


def agree(products, others):
    assert products.keys() == others.keys()
    for path in products:
        np.testing.assert_allclose(products[path], others[path], rtol=2e-3, atol=2e-5, err_msg=path)


def unfinished(workdir, target):
    """A copy of a finished run that lost its last save: its second stage goes on from step 10."""
    shutil.copytree(workdir, target)
    shutil.rmtree(target / "checkpoints" / "distill" / "20")
    return target


def test_two_processes_with_split_parameters_equal_one_with_copies(pair, reference):
    agree(pair[1], reference[1])
    lines = (pair[0] / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((reference[0] / "metrics.jsonl").read_text().splitlines()), "one process writes"


@pytest.mark.parametrize(
    "mesh", [{"mesh__fsdp": 2, "mesh__tensor": 2, "mesh__rules": RULES, "mesh__min_size": 64}], ids=["data2-fsdp2-tensor2"]
)
def test_a_mixed_mesh_with_accumulation_agrees(mesh, reference, tmp_path, cache):
    out = tmp_path / "products.npz"
    parts = {"pretrain__micro_batches": 2, "distill__micro_batches": 4}
    assert finish(spawn(tmp_path / "run", devices=8, out=out, cache=cache, **mesh, **parts), TIMEOUT) == [0]
    agree(dict(np.load(out)), reference[1])


def test_a_checkpoint_of_two_processes_goes_on_in_one_on_another_mesh(pair, reference, tmp_path, cache):
    workdir, out = unfinished(pair[0], tmp_path / "run"), tmp_path / "products.npz"
    assert finish(spawn(workdir, devices=2, out=out, cache=cache), TIMEOUT) == [0], said(workdir)
    assert "pretrain (1/2)  finished at step 20" in said(workdir)
    assert "distill (2/2)  goes on from at step 10" in said(workdir)
    agree(dict(np.load(out)), reference[1])


def test_a_checkpoint_of_one_process_goes_on_in_two(reference, tmp_path, cache):
    workdir, out = unfinished(reference[0], tmp_path / "run"), tmp_path / "products.npz"
    codes = finish(spawn(workdir, devices=4, processes=2, out=out, cache=cache, **SPLIT), TIMEOUT)
    assert codes == [0, 0], said(workdir) + said(workdir, 1)
    assert "distill (2/2)  goes on from at step 10" in said(workdir)
    agree(dict(np.load(out)), reference[1])


JUDGED = {"stages": ("pretrain", "distill", "align"), "align__steps": 10, "eval__every": 4, "eval__samples": 100}


def test_evaluators_judge_on_both_processes_what_one_would(tmp_path, cache):
    """Spread over two processes, on split parameters, wherever averages and moments wait; the first writes what it found."""
    found, two = {}, {"devices": 4, "processes": 2, **SPLIT}
    for name, how in (("one", {"devices": 8}), ("two", two), ("hosted", two | {"mesh__host": ("^ema/", "/(mu|nu)/")})):
        workdir = tmp_path / name
        codes = finish(spawn(workdir, cache=cache, **how, **JUDGED), TIMEOUT)
        assert set(codes) == {0}, said(workdir) + said(workdir, 1)
        lines = [line for line in read_metrics(str(workdir)) if line["stage"] == "align"]
        found[name] = {line["step"]: {k: v for k, v in line.items() if k.startswith("eval/")} for line in lines}
    assert [step for step, figures in found["two"].items() if figures] == [0, 4, 8, 10]
    assert found["hosted"] == found["two"]
    for step, figures in found["one"].items():
        assert found["two"][step] == pytest.approx(figures, rel=2e-2, abs=2e-3)


def _in_the_second_stage(workdir, processes):
    """Waits for step 5 of the second stage to be told; with a save every second step, one is complete."""
    deadline = time.time() + TIMEOUT
    while "distill (2/2)      5/20" not in said(workdir):
        assert time.time() < deadline and all(p.poll() is None for p in processes), said(workdir)
        time.sleep(0.1)


@pytest.mark.parametrize("dies", [0, 1])
def test_when_one_process_dies_the_other_ends_in_bounded_time_and_a_restart_goes_on(dies, reference, tmp_path, cache):
    workdir, out = tmp_path / "run", tmp_path / "products.npz"
    long = {"distill__steps": 20, "checkpoint__every": 2, "distributed__lost_after": 10, **SPLIT}
    processes = spawn(workdir, devices=4, processes=2, cache=cache, **long)
    _in_the_second_stage(workdir, processes)
    processes[dies].kill()
    died = time.time()
    codes = finish(processes, 60)
    assert codes[dies] == -signal.SIGKILL and codes[1 - dies] != 0, "the survivor must not report success"
    assert time.time() - died < 45
    assert "heartbeat" in said(workdir, 1 - dies) or "closed" in said(workdir, 1 - dies) or "peer" in said(workdir, 1 - dies)
    if dies == 1:
        codes = finish(spawn(workdir, devices=4, processes=2, out=out, cache=cache, **long), TIMEOUT)
        assert codes == [0, 0] and "distill (2/2)  goes on" in said(workdir)
        agree(dict(np.load(out)), reference[1])


def _inside_a_save(workdir, processes):
    """Waits for the second stage to be in the middle of a save that is not its first."""
    deadline = time.time() + TIMEOUT
    folder = workdir / "checkpoints" / "distill"
    while True:
        assert time.time() < deadline and all(p.poll() is None for p in processes), said(workdir)
        names = [path.name for path in folder.glob("*")] if folder.exists() else []
        if any(name.isdecimal() for name in names) and any("orbax-checkpoint-tmp" in name for name in names):
            return
        time.sleep(0.001)


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_is_killed_inside_a_save_loses_nothing_and_one_device_goes_on(dies, reference, tmp_path, cache):
    workdir, out = tmp_path / "run", tmp_path / "products.npz"
    often = {"checkpoint__every": 1, "distributed__lost_after": 10}
    processes = spawn(workdir, devices=4, processes=2, cache=cache, **often, **SPLIT)
    _inside_a_save(workdir, processes)
    processes[dies].kill()
    whole = max(int(path.name) for path in (workdir / "checkpoints" / "distill").glob("*") if path.name.isdecimal())
    codes = finish(processes, 60)
    assert codes[dies] == -signal.SIGKILL and codes[1 - dies] != 0
    assert finish(spawn(workdir, devices=1, out=out, cache=cache, **often), TIMEOUT) == [0], said(workdir)
    (step,) = re.findall(r"distill \(2/2\)  goes on from at step (\d+)", said(workdir))
    assert int(step) >= whole and "is damaged" not in said(workdir)
    agree(dict(np.load(out)), reference[1])


def test_sigterm_to_one_process_stops_all_of_them_at_one_step(reference, tmp_path, cache):
    workdir, out = tmp_path / "run", tmp_path / "products.npz"
    processes = spawn(workdir, devices=4, processes=2, cache=cache, **SPLIT)
    _in_the_second_stage(workdir, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert finish(processes, TIMEOUT) == [75, 75], said(workdir) + said(workdir, 1)
    stopped = [line for line in (said(workdir) + said(workdir, 1)).splitlines() if "is saved at step" in line]
    assert len(stopped) == 2 and len(set(stopped)) == 1
    codes = finish(spawn(workdir, devices=4, processes=2, out=out, cache=cache, **SPLIT), TIMEOUT)
    assert codes == [0, 0] and "distill (2/2)  goes on" in said(workdir)
    agree(dict(np.load(out)), reference[1])


def test_two_processes_agree_to_refuse_a_batch_that_cannot_be_split(tmp_path, cache):
    workdir = tmp_path / "run"
    codes = finish(spawn(workdir, devices=4, processes=2, cache=cache, distill__batch_size=20), TIMEOUT)
    assert 0 not in codes and not (workdir / "checkpoints").exists()
    assert "batch_size = 20 cannot be split" in said(workdir) and "batch_size = 20 cannot be split" in said(workdir, 1)
