"""A disk that fills up: every writer leaves the whole file or the one before it, and one line with code 74."""

import contextlib
import errno
import json
import os

import numpy as np
import pytest
from limits import fill, small_disk
from tiny_runs import claim_workdir, tiny

from didr_jax.evaluation.statistics import write_npz
from didr_jax.exits import CannotSave
from didr_jax.reporting.curves import curves
from didr_jax.reporting.page import write_report
from didr_jax.reporting.pairs import write_pairs
from didr_jax.rewards.scoring import _write as write_scores
from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import save_picture, scatter, write_summary
from didr_jax.training.watch import write_stopped
from didr_jax.training.workdir import lock, make_workdir
from didr_jax.weights.files import write_safetensors
from didr_jax.whole_files import of_the_disk, probe, whole_file, whole_folder, write_json


@pytest.fixture
def full(tmp_path):
    """A workdir on a disk without a free byte, in which each file below was written before."""
    with small_disk(tmp_path / "disk", "512k") as disk:
        claim_workdir(tiny(), str(disk))
        log = RunLog(str(disk))
        for step in range(3):
            log.write("align", step, {"reward": 0.1 * step})
        fill(disk)
        yield disk, log
        log.close()


PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
TENSORS = {name: np.ones(8000, np.float32) for name in "ab"}


def export(folder):
    with whole_folder(folder) as new:
        write_json(f"{new}/config.json", {"old": 1})
        write_safetensors(f"{new}/deep/weights.safetensors", TENSORS)


WRITERS = {
    "some.json": lambda folder, log: write_json(f"{folder}/some.json", {"key": "x" * 9000}),
    "summary.json": lambda folder, log: write_summary(str(folder), {"row": {f"figure {i}": 1.0 for i in range(500)}}, log),
    "picture.png": lambda folder, log: save_picture(f"{folder}/picture.png", PICTURE),
    "curves_align.png": lambda folder, log: curves(str(folder)),
    "pairs.npz": lambda folder, log: write_pairs(str(folder), PICTURE[None], PICTURE[None], ["noise"]),
    "samples.png": lambda folder, log: scatter(f"{folder}/samples.png", {"a": np.random.default_rng(0).normal(size=(500, 2))}),
    "progress/align/000003_grid.png": lambda folder, log: log.show("align", 3, {"grid": PICTURE}),
    "report.html": lambda folder, log: write_report(str(folder)),
    "weights.safetensors": lambda folder, log: write_safetensors(folder / "weights.safetensors", TENSORS),
    "many-00001-of-00002.safetensors": lambda folder, log: write_safetensors(
        folder / "many.safetensors", TENSORS, max_bytes=2**15
    ),
    "export": lambda folder, log: export(folder / "export"),
    "statistics.npz": lambda folder, log: write_npz(folder / "statistics.npz", TENSORS),
    "scores.csv": lambda folder, log: write_scores(folder / "scores.csv", [{"image": "x" * 9000, "reward": 1.0}]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_is_named_and_leaves_no_piece(full, name):
    disk, log = full
    with pytest.raises(CannotSave, match=f"could not write .*{name.split('/')[0]}.*make room") as stopped:
        WRITERS[name](disk, log)
    assert stopped.value.code == 74 and "\n" not in str(stopped.value)
    assert not (disk / name).exists() and not list(disk.rglob("*.tmp"))


def test_a_log_that_does_not_fit_is_one_line(full):
    with pytest.raises(CannotSave, match="could not write .*metrics.jsonl"):
        for step in range(10_000):
            full[1].write("align", step, {"reward": 0.1})


def test_a_tracker_that_does_not_fit_is_one_line_and_does_not_come_back_at_the_end(full):
    disk, _ = full
    (disk / "filler").unlink()
    log = RunLog(str(disk), tiny(log__tensorboard=True).log)
    fill(disk)
    room = (disk / "metrics.jsonl").stat().st_size % 4096  # of its last page, in which lines still fit
    assert 0 < room < 4000
    with pytest.raises(CannotSave, match="could not write .*tensorboard .No space left on device"):
        for step in range(100):
            log.write("align", step, {"reward": 0.1})
            log.show("align", step, {"grid": PICTURE[:1, :1]}) if step == 50 else None
    log.close()  # the code of a run that stopped is not replaced


def test_why_a_run_stopped_is_not_replaced_by_the_full_disk(full):
    disk, _ = full
    write_stopped(str(disk), "align", 3, {f"figure {i}": float("nan") for i in range(500)}, "because")
    assert not (disk / "stopped.json").exists()


def test_a_workdir_is_locked_even_where_there_is_no_room_to_say_by_whom(full):
    with lock(str(full[0])):
        pass


def test_a_workdir_on_a_full_disk_is_a_full_disk_and_no_wrong_workdir(full):
    for what in (lambda: make_workdir(str(full[0])), lambda: make_workdir(f"{full[0]}/deeper")):
        with pytest.raises(CannotSave, match="could not write .*No space left on device"):
            what()
    assert not (full[0] / ".writable").exists()


def test_a_checkpoint_folder_keeps_no_probe(full):
    with pytest.raises(OSError, match="No space left"):
        probe(f"{full[0]}/.probe")
    assert not (full[0] / ".probe").exists()


@pytest.mark.parametrize("error, disks", [
    (OSError(errno.ENOSPC, "x"), True), (OSError(errno.EIO, "x"), True), (OSError(errno.ENOENT, "x"), False),
    (RuntimeError("I/O error: No space left on device (os error 28)"), True), (ValueError("x"), False),
])  # fmt: skip
def test_a_full_disk_is_known_in_whatever_words_and_behind_whatever(error, disks):
    assert of_the_disk(error) == disks
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("could not do it") from cause
    except RuntimeError as wrapped:
        assert of_the_disk(wrapped) == disks


def test_what_the_screen_does_not_take_is_not_worth_a_run(tmp_path, monkeypatch):
    with contextlib.closing(RunLog(str(tmp_path))) as log, open("/dev/full", "w") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        log.say("hello")
        log.write("align", 1, {"reward": 0.5})
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            screen.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


def test_an_export_stands_until_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "export"
    export(folder)
    (folder / "mine.txt").write_text("not of the export")
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as new:
        write_json(f"{new}/config.json", {"new": 1})
        raise KeyboardInterrupt
    assert json.loads((folder / "config.json").read_text()) == {"old": 1} and os.listdir(tmp_path) == ["export"]
    (tmp_path / "export.tmp").mkdir()
    (tmp_path / "export.tmp" / "of a killed one").write_text("")
    with whole_folder(folder) as new:
        write_json(f"{new}/config.json", {"new": 1})
    assert json.loads((folder / "config.json").read_text()) == {"new": 1} and os.listdir(tmp_path) == ["export"]
    assert sorted(os.listdir(folder)) == ["config.json", "deep", "mine.txt"]


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


def test_two_who_write_one_file_at_once_each_write_a_whole_one(tmp_path):
    """As --mode=eval does beside a run that is still going: the last to finish stands."""
    with whole_file(tmp_path / "report.html") as first:
        first.write("first")
        write_json(tmp_path / "report.html", "second")
        assert (tmp_path / "report.html").read_text() == '"second"'
    assert (tmp_path / "report.html").read_text() == "first" and os.listdir(tmp_path) == ["report.html"]


def test_a_lock_that_is_a_link_does_not_touch_what_it_points_to(tmp_path):
    from didr_jax.types import InputError

    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(InputError, match="cannot be opened"), lock(str(tmp_path)):
        pass
    assert victim.read_text() == "precious"
