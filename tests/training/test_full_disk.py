"""A disk that fills up: every writer leaves the whole file or the one before it, and one line with code 74."""

import json
import os

import numpy as np
import pytest
from test_faults import small_disk
from tiny_runs import tiny

from didr_jax.reporting.curves import curves
from didr_jax.reporting.pairs import write_pairs
from didr_jax.training.exits import CannotSave
from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import save_picture, scatter, write_summary
from didr_jax.training.trackers import _tensorboard
from didr_jax.training.watch import write_stopped
from didr_jax.training.workdir import lock, whole_file, write_json


@pytest.fixture
def full(tmp_path):
    """A workdir on a disk without a free byte, in which each file below was written before."""
    with small_disk(tmp_path / "disk", "512k") as disk:
        log = RunLog(str(disk))
        for step in range(3):
            log.write("align", step, {"reward": 0.1 * step})
        with open(disk / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1024))
            except OSError:
                pass
        yield disk, log
        log.close()


PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
WRITERS = {
    "config.json": lambda folder, log: write_json(f"{folder}/config.json", {"key": "x" * 9000}),
    "summary.json": lambda folder, log: write_summary(str(folder), {"row": {f"figure {i}": 1.0 for i in range(500)}}, log),
    "picture.png": lambda folder, log: save_picture(f"{folder}/picture.png", PICTURE),
    "curves_align.png": lambda folder, log: curves(str(folder)),
    "pairs.npz": lambda folder, log: write_pairs(str(folder), PICTURE[None], PICTURE[None], ["noise"]),
    "samples.png": lambda folder, log: scatter(f"{folder}/samples.png", {"a": np.random.default_rng(0).normal(size=(500, 2))}),
    "progress/align/000003_grid.png": lambda folder, log: log.show("align", 3, {"grid": PICTURE}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_is_named_and_leaves_no_piece(full, name):
    disk, log = full
    with pytest.raises(CannotSave, match=f"could not write .*{name.split('/')[0]}.*make room") as stopped:
        WRITERS[name](disk, log)
    assert stopped.value.code == 74 and "\n" not in str(stopped.value)
    assert not (disk / name).exists() and not list(disk.rglob("*.tmp"))


def test_a_log_that_does_not_fit_is_one_line(full):
    with pytest.raises(CannotSave, match="could not write to .*metrics.jsonl"):
        for step in range(10_000):
            full[1].write("align", step, {"reward": 0.1})


def test_a_tracker_that_does_not_fit_is_one_line_and_does_not_come_back_at_the_end(full):
    disk, _ = full
    log = RunLog(str(disk), tiny().log)
    (disk / "filler").unlink()
    log._sinks.append(_tensorboard(str(disk), {}))
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            pass
    log.close()  # the event writer's own thread meets the full disk: a run that stopped keeps its code


def test_why_a_run_stopped_is_not_replaced_by_the_full_disk(full):
    disk, _ = full
    write_stopped(str(disk), "align", 3, {f"figure {i}": float("nan") for i in range(500)}, "because")
    assert not (disk / "stopped.json").exists()


def test_a_workdir_is_locked_even_where_there_is_no_room_to_say_by_whom(full):
    with lock(str(full[0])):
        pass


def test_an_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(str(path), {"old": 1})
    with pytest.raises(TypeError):
        write_json(str(path), {"new": 1, "bad": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    with pytest.raises(KeyboardInterrupt), whole_file(str(path)) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_lock_that_is_a_link_does_not_touch_what_it_points_to(tmp_path):
    from didr_jax.types import InputError

    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(InputError, match="cannot be opened"), lock(str(tmp_path)):
        pass
    assert victim.read_text() == "precious"
