"""The log of a run: appended, flushed, mended after a crash, and the same figures wherever they are sent."""

import contextlib
import io
import json
import struct
import sys
import types

import numpy as np
import pytest
from limits import no_file_larger_than
from PIL import Image
from tiny_runs import tiny

from didr_jax.exits import CannotSave
from didr_jax.training import metrics
from didr_jax.training.metrics import Progress, RunLog, read_metrics
from didr_jax.types import InputError


@contextlib.contextmanager
def log_of(workdir, **knobs):
    log = RunLog(str(workdir), tiny(**{f"log__{key}": value for key, value in knobs.items()}).log)
    try:
        yield log
    finally:
        log.close()


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


# --------------------------------------------------------------------------------------- metrics.jsonl


def test_a_line_is_there_to_read_before_write_returns(tmp_path):
    with log_of(tmp_path) as log:
        for step in (1, 2):
            log.write("align", step, {"reward": 0.5})
            assert json.loads(lines(tmp_path)[-1]) == {"stage": "align", "step": step, "reward": 0.5}


def test_a_resumed_run_appends(tmp_path):
    for step in (1, 2):
        with log_of(tmp_path) as log:
            log.write("align", step, {})
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_torn_last_line_is_ended_and_read_past(tmp_path):
    whole = '{"stage": "align", "step": 1, "reward": 0.5}\n'
    for torn in ('{"stage": "align", "st', "{", whole + whole[:-3]):
        (tmp_path / "metrics.jsonl").write_text(whole + torn)
        with log_of(tmp_path) as log:
            log.write("align", 2, {"reward": 0.75})
        assert [record["reward"] for record in read_metrics(str(tmp_path))] == [0.5, 0.75]
        assert "" not in lines(tmp_path)


def test_a_whole_last_line_and_an_empty_file_are_left_alone(tmp_path):
    for before in ("", '{"stage": "align", "step": 1}\n'):
        (tmp_path / "metrics.jsonl").write_text(before)
        with log_of(tmp_path) as log:
            log.write("align", 2, {})
        assert (tmp_path / "metrics.jsonl").read_text() == before + '{"stage": "align", "step": 2}\n'


def test_of_steps_that_a_resumed_run_repeats_the_last_is_read_in_the_place_of_the_first(tmp_path):
    with log_of(tmp_path) as log:
        for stage, step, reward in (("pretrain", 5, 0.0), ("align", 5, 0.1), ("align", 10, 0.2), ("align", 5, 0.3)):
            log.write(stage, step, {"reward": reward})
    got = [(record["stage"], record["step"], record["reward"]) for record in read_metrics(str(tmp_path))]
    assert got == [("pretrain", 5, 0.0), ("align", 5, 0.3), ("align", 10, 0.2)]


def test_figures_of_one_step_from_several_lines_are_one_record_and_the_last_of_each_counts(tmp_path):
    """An evaluator writes a line of its own for a step that the loop has logged."""
    with log_of(tmp_path) as log:
        for values in ({"loss": 1.0, "reward": 0.1}, {"eval/fid": 30.0}, {"loss": 2.0}, {"eval/fid": 29.0}):
            log.write("align", 5, values)
    assert read_metrics(str(tmp_path)) == [{"stage": "align", "step": 5, "loss": 2.0, "reward": 0.1, "eval/fid": 29.0}]


# ------------------------------------------------------------------------------------------ full disks


def test_a_disk_that_fills_up_is_one_clear_line_and_loses_only_the_line_it_cut(tmp_path):
    log = RunLog(str(tmp_path))
    log.write("align", 1, {"reward": 0.5})
    with no_file_larger_than(60):
        with pytest.raises(CannotSave, match="metrics.jsonl .*; make room and start again") as stopped:
            log.write("align", 2, {"reward": 0.6})
        log.close()  # what is still in its buffer has no room either
    assert stopped.value.code == 74 and "\n" not in str(stopped.value)
    assert (tmp_path / "metrics.jsonl").stat().st_size == 60
    with log_of(tmp_path) as log:
        log.write("align", 3, {"reward": 0.7})
    assert [record["step"] for record in read_metrics(str(tmp_path))] == [1, 3]


def test_a_picture_that_finds_no_room_is_one_clear_line_too(tmp_path):
    with log_of(tmp_path) as log, no_file_larger_than(60):
        with pytest.raises(CannotSave, match="progress/align/.*; make room and start again"):
            log.show("align", 1, {"samples": np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)})


def test_a_device_without_room_is_the_same(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with log_of(tmp_path) as log, pytest.raises(CannotSave, match=r"No space left on device"):
        log.write("align", 1, {"reward": 0.5})


# ------------------------------------------------------------------------------------ where figures go


def events(folder):
    """(tag, step, value) of all that is in the event files: length, checksum, record, checksum, and so on."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value.tag, event.step, value) for value in event.summary.value]
            at += size + 16
    return found


def test_tensorboard_reads_back_every_figure_at_its_step(tmp_path):
    with log_of(tmp_path, tensorboard=True) as log:
        log.write("pretrain", 3, {"loss": 0.5, "grad_norm": 2.0})
        log.write("align", 3, {"loss": -0.25})
    assert [(tag, step, value.simple_value) for tag, step, value in events(tmp_path / "tensorboard")] == [
        ("pretrain/loss", 3, 0.5),
        ("pretrain/grad_norm", 3, 2.0),
        ("align/loss", 3, -0.25),
    ]
    assert len(lines(tmp_path)) == 2, "beside metrics.jsonl, not instead of it"


PICTURES = {
    "grey": np.arange(24, dtype=np.uint8).reshape(4, 6),
    "colour": np.arange(72, dtype=np.uint8).reshape(4, 6, 3),
}


def test_pictures_are_files_of_their_step_and_the_same_in_tensorboard(tmp_path):
    with log_of(tmp_path, tensorboard=True) as log:
        log.show("align", 20, PICTURES)
        log.show("align", 30, {})
    folder = tmp_path / "progress" / "align"
    assert sorted(path.name for path in folder.iterdir()) == ["000020_colour.png", "000020_grey.png"]
    sent = {
        (tag, step): Image.open(io.BytesIO(value.image.encoded_image_string))
        for tag, step, value in events(tmp_path / "tensorboard")
    }
    assert sent.keys() == {("align/grey", 20), ("align/colour", 20)}
    for name, picture in PICTURES.items():
        np.testing.assert_array_equal(Image.open(folder / f"000020_{name}.png"), picture)
        grey_as_rgb = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
        np.testing.assert_array_equal(sent[f"align/{name}", 20].convert("RGB"), grey_as_rgb)


@pytest.mark.parametrize(
    "knob, value, package",
    [("service", "wandb", "wandb"), ("service", "trackio", "trackio"), ("tensorboard", True, "tensorboardX")],
)
def test_a_package_that_is_not_installed_is_refused_with_the_line_that_installs_it(knob, value, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"config.log.{knob} needs the package {package}, .*: pip install {package}$"):
        with log_of(tmp_path, **{knob: value}):
            pass


def test_of_several_processes_only_the_first_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "is_first_process", lambda: False)
    with log_of(tmp_path, tensorboard=True) as log:
        log.say("hello")
        log.write("align", 1, {"reward": 0.5})
        log.show("align", 1, PICTURES)
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


# -------------------------------------------------------------------------------------------- progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when told to."""
    moment = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(monotonic=lambda: moment.seconds))
    return moment


def test_the_rate_is_counted_from_the_end_of_compilation(tmp_path, clock, capsys):
    with log_of(tmp_path) as log:
        progress = Progress(log, "align (1/1)", "align", first=0, total=1000, batch_size=8)
        clock.seconds += 600  # compilation, and the first step
        progress.started(1)
        progress.report(1, {"loss": 1.0})
        clock.seconds += 5
        progress.report(11, {"loss": 0.5})  # ten steps in five seconds
    first, second = read_metrics(str(tmp_path))
    assert first["images_per_second"] == 0 and second["images_per_second"] == 16
    assert (first["images_seen"], second["images_seen"]) == (8, 88)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("[10:00] align (1/1)") and "compiled  loss 1" in told[0] and "ETA" not in told[0]
    assert told[1].startswith("[10:05] align (1/1)     11/1000  88 img  16 img/s  500 ms/step  ETA 8:15  loss 0.5")  # 989 × 0.5 s


def test_a_rate_below_one_keeps_its_digits(tmp_path, clock, capsys):
    with log_of(tmp_path) as log:
        progress = Progress(log, "align", "align", first=0, total=100, batch_size=1)
        progress.started(1)
        clock.seconds += 2500
        progress.report(11, {"loss": 1.0}, {"lr": 0.5})
    assert "11 img  0.004 img/s" in (told := capsys.readouterr().out) and "lr" not in told
    (record,) = read_metrics(str(tmp_path))
    assert record["images_per_second"] == 0.004 and record["lr"] == 0.5 and record["seconds"] == 2500


def test_a_quiet_screen_gets_a_line_a_minute_and_the_last_and_the_file_gets_all(tmp_path, clock, capsys):
    with log_of(tmp_path) as log:
        progress = Progress(log, "align", "align", first=0, total=5000, batch_size=1, quiet=True)
        progress.started(1)
        for step in range(1, 5001):
            progress.report(step, {"loss": 1.0})
            clock.seconds += 0.1
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 10 and told[0].startswith("[0:00] align      1/5000") and "5000/5000" in told[-1]
    assert len(read_metrics(str(tmp_path))) == 5000


def test_pauses_do_not_count_and_their_share_is_told(tmp_path, clock):
    with log_of(tmp_path) as log:
        progress = Progress(log, "align", "align", first=0, total=100, batch_size=8)
        with progress.paused():  # before anything is counted
            clock.seconds += 50
        assert progress.pauses() is None
        progress.started(1)
        clock.seconds += 2
        with progress.paused():
            clock.seconds += 1000
        clock.seconds += 3
        progress.report(11, {})
        assert progress.pauses() == "align  evaluation took 1000.0 s, 99.5% of the time since the first step"
    assert read_metrics(str(tmp_path))[0]["images_per_second"] == 16


def test_a_resumed_stage_counts_all_images_but_its_own_time(tmp_path, clock, capsys):
    with log_of(tmp_path) as log:
        progress = Progress(log, "align", "align", first=500, total=10_000, batch_size=8)
        progress.started(501)
        clock.seconds += 20
        progress.report(511, {})
    (record,) = read_metrics(str(tmp_path))
    assert record["images_seen"] == 511 * 8 and record["images_per_second"] == 4
    assert "ETA 5:16:18" in capsys.readouterr().out  # 9489 × 2 s


def test_utilisation_is_told_only_where_the_peak_is_known_and_after_the_first_step(tmp_path, clock, capsys):
    with log_of(tmp_path) as log:
        for stage, least in (("unknown", None), ("known", 0.2)):  # seconds per step at the peak
            progress = Progress(log, stage, stage, first=0, total=10, batch_size=8)
            progress.least = least
            progress.started(1)
            progress.report(1, {})
            clock.seconds += 1
            progress.report(3, {})
    records = {(record["stage"], record["step"]): record for record in read_metrics(str(tmp_path))}
    assert [key for key, record in records.items() if "utilisation" in record] == [("known", 3)]
    assert records["known", 3]["utilisation"] == 0.4
    told = capsys.readouterr().out
    assert told.count("of peak") == 1 and "40.0% of peak" in told
