"""Building the text cache: what was embedded is embedded once, whatever stops the build, and whoever else builds."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from limits import NOBODY, another_user, fill, small_disk
from tiny_runs import REPO

from didr_jax.exits import CannotSave, Preempted, StopRequest
from didr_jax.text.cache import cached
from didr_jax.text.encoder import text_encoder
from didr_jax.text.leftovers import JOURNAL
from didr_jax.types import InputError, Weights

PROMPTS = ["x" * n for n in range(1, 10)]


@functools.cache  # so that it is compiled once
def encoding(width):
    def encode(params, tokens):
        grid = jnp.arange(1, width + 1, dtype=jnp.float32) / width
        return {"caption": tokens["n"][:, None] * grid, "length": tokens["n"]}

    return encode


class Build:
    """Builds of one cache, two prompts at a time: `embedded` has the prompts of the last, `lines` what it said."""

    def __init__(self, folder, width=64):
        self.folder, self.width, self.embedded, self.lines = folder, width, [], []

    def __call__(self, before=lambda prompts: None, prompts=PROMPTS):
        self.embedded, self.lines = [], []

        def tokenize(given):
            if any(given) and self.encoder:  # it is also called for its shapes
                before(given)
                self.embedded += [prompt for prompt in given if prompt]
            return {"n": np.array([len(p) for p in given], np.int32)}

        self.encoder = None
        self.encoder = text_encoder(Weights.join({}), tokenize, encoding(self.width))
        found = cached(self.folder, "key", prompts, lambda: self.encoder, dtype="float32", batch_size=2, say=self.lines.append)
        return {name: np.array(values) for name, values in found.items()}

    def until(self, n, act):
        """A build in which `act` happens before the nth prompt is embedded."""
        return self(lambda given: act() if PROMPTS[n - 1] in given else None)

    def pieces(self):
        return sorted(path for path in Path(self.folder).glob("*.partial-*") if path.is_dir())


def stop():
    raise KeyboardInterrupt


@pytest.fixture
def build(tmp_path):
    return Build(tmp_path / "cache")


@pytest.fixture(scope="module")
def want(tmp_path_factory):
    return Build(tmp_path_factory.mktemp("whole"))()


def same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture
def left(build):
    """The folder of a build that was stopped when six of nine prompts were embedded."""
    with pytest.raises(KeyboardInterrupt):
        build.until(7, stop)
    (piece,) = build.pieces()
    return piece


def test_an_interrupted_build_goes_on(build, left, want):
    same(build(), want)
    assert build.embedded == PROMPTS[6:] and build.lines == [f"embedding 3 of 9 prompts into {build.folder}/key-float32"]
    assert sorted(os.listdir(build.folder)) == ["key-float32", "key-float32.checked"]
    assert sorted(os.listdir(build.folder / "key-float32")) == ["caption.npy", "entry.json", "length.npy"]
    same(build(), want)
    assert build.lines == []


def test_it_goes_on_as_often_as_it_is_interrupted(build, want):
    for n in range(1, 10, 2):
        with pytest.raises(KeyboardInterrupt):
            build.until(n, stop)
        assert len(build.pieces()) == (n > 1)
    same(build(), want)
    assert build.embedded == PROMPTS[8:]


def test_a_build_that_was_only_not_renamed_embeds_nothing(build, want, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("didr_jax.text.cache.publish", lambda *_: stop())
        with pytest.raises(KeyboardInterrupt):
            build()
    same(build(), want)
    assert build.embedded == []


def chunk(piece, n, at=-3):
    """Flips a bit of the nth two captions."""
    path = piece / "caption.npy"
    data = bytearray(path.read_bytes())
    data[len(data) - 6 * 64 * 4 + 2 * 64 * 4 * n + at] ^= 1
    path.write_bytes(data)


def lines(piece, change):
    path = piece / JOURNAL
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def first(change):
    return lambda piece: lines(piece, lambda rows: [json.dumps(change(json.loads(rows[0]))).encode() + b"\n", *rows[1:]])


def elsewhere(piece):
    (piece.parent / "victim.npy").write_bytes(b"precious")
    first(lambda table: {"../victim": table["caption"]})(piece)


# what happens to what was left -> how many of its six prompts are still believed
DAMAGE = {
    "nothing": (lambda piece: None, 6),
    "a flipped bit in the first two": (lambda piece: chunk(piece, 1), 0),
    "a flipped bit in the second two": (lambda piece: chunk(piece, 2), 2),
    "a flipped bit in the last two": (lambda piece: chunk(piece, 3), 4),
    "a flipped bit in the header": (lambda piece: chunk(piece, 0, -100), 0),
    "zeros at the end, as after a power cut": (lambda piece: [os.truncate(piece / "caption.npy", n) for n in (128 + 1300, 128 + 1536)], 4),
    "a piece cut off": (lambda piece: os.truncate(piece / "length.npy", 128 + 4 * 3), 2),
    "more than was told": (lambda piece: open(piece / "length.npy", "ab").write(b"more"), 6),
    "an array is gone": (lambda piece: (piece / "length.npy").unlink(), 0),
    "a torn line": (lambda piece: os.truncate(piece / JOURNAL, (piece / JOURNAL).stat().st_size - 9), 4),
    "a line twice": (lambda piece: lines(piece, lambda rows: [*rows[:2], rows[1], *rows[2:]]), 2),
    "a line of nonsense": (lambda piece: lines(piece, lambda rows: [*rows[:3], b"[" * 10**5 + b"\n", *rows[3:]]), 4),
    "more rows than there can be": (lambda piece: lines(piece, lambda rows: [rows[0], rows[1].replace(b'"rows": 2', b'"rows": 99')]), 0),
    "a journal of something else": (lambda piece: lines(piece, lambda rows: [b"{}\n", *rows[1:]]), 0),
    "another type": (first(lambda table: table | {"caption": {"dtype": "float16", "row": [64]}}), 0),
    "no type": (first(lambda table: table | {"caption": {"dtype": "lies", "row": [64]}}), 0),
    "a name that leads elsewhere": (elsewhere, 0),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_what_was_left_is_believed_as_far_as_it_is_proven(how, build, left, want):
    damage, proven = DAMAGE[how]
    damage(left)
    same(build(), want)
    assert build.embedded == PROMPTS[proven:]
    assert set(os.listdir(build.folder)) - {"victim.npy"} == {"key-float32", "key-float32.checked"}
    if how == "a name that leads elsewhere":
        assert (build.folder / "victim.npy").read_bytes() == b"precious"


def test_rows_of_other_arrays_are_left_out(build, left, tmp_path):
    build.width = 32
    got = build()
    assert got["caption"].shape == (9, 32) and "the rows that are there are of other arrays" in build.lines[1]
    assert build.embedded == PROMPTS[6:8] + PROMPTS


# ------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_heard_while_prompts_are_embedded(number, build, want):
    with pytest.raises(Preempted, match="asked to stop while it embedded") as stopped:
        with StopRequest() as request, request.at_once("it embedded"):
            build.until(5, lambda: signal.raise_signal(number))
    assert stopped.value.code == 75
    same(build(), want)
    assert build.embedded == PROMPTS[4:]


PROGRAM = """
    import sys, time
    sys.path[:0] = ["tests"]
    from test_cache_builds import Build
    from pathlib import Path
    build = Build(Path(sys.argv[1]))
    build(lambda given: (print(*given, flush=True), time.sleep(float(sys.argv[2]))))
    print("embedded", *build.embedded, flush=True)
"""


def another_process(build, seconds):
    command = [sys.executable, "-c", "if True:" + PROGRAM, str(build.folder), str(seconds)]
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_kill_9_in_the_middle_loses_two_prompts_at_most(build, want):
    process = another_process(build, 0.2)
    try:
        assert any("xxxxxxx " in line for line in process.stdout)
    finally:
        process.kill()
        process.wait()
    same(build(), want)
    assert build.embedded == PROMPTS[6:]


@pytest.mark.slow
def test_two_processes_that_build_at_once_do_not_meet(build, want):
    processes = [another_process(build, 0.2) for _ in range(3)]
    same(build(lambda given: None if any(build.folder.glob("*")) else stop()), want)
    for process in processes:
        assert "embedded" in process.communicate(timeout=60)[0] and process.returncode == 0
    assert sorted(os.listdir(build.folder)) == ["key-float32", "key-float32.checked"]
    same(build(), want)
    assert build.lines == []


def test_a_build_leaves_alone_what_another_is_filling(build, left, want):
    """The live one has the piece that was left; this one begins its own, and is faster."""
    other = Build(build.folder)

    def meanwhile():
        same(build(), want)
        assert build.embedded == PROMPTS and build.pieces() == [left]

    same(other.until(9, meanwhile), want)
    assert other.embedded == PROMPTS[6:] and build.pieces() == []


# -------------------------------------------------------------------------------------------- users


@pytest.fixture
def shared(tmp_path_factory):
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_another_user_reads_an_entry_that_only_its_owner_may_write(shared, want):
    build = Build(shared / "cache")
    build()
    with another_user():
        same(build(), want)
    assert build.embedded == []


def test_another_user_is_told_that_the_cache_is_not_theirs_to_write(shared):
    build = Build(shared / "cache")
    build.folder.mkdir()
    with another_user(), pytest.raises(InputError, match="cannot write .*Permission denied.*choose another"):
        build()


def test_an_entry_that_may_not_be_read_is_no_empty_one(shared):
    build = Build(shared / "cache")
    build()
    (build.folder / "key-float32").chmod(0o700)
    with another_user(), pytest.raises(InputError, match="cannot read .*Permission denied.*choose another"):
        build()


def test_what_another_user_left_is_neither_used_nor_removed(shared, want):
    build = Build(shared / "cache")
    with pytest.raises(KeyboardInterrupt):
        build.until(7, stop)
    build.folder.chmod(0o777)
    (piece,) = build.pieces()
    before = (piece / JOURNAL).read_bytes()
    with another_user():
        same(build(), want)
    assert build.embedded == PROMPTS and (piece / JOURNAL).read_bytes() == before
    assert (build.folder / "key-float32").stat().st_uid == NOBODY


# -------------------------------------------------------------------------------------------- disks


def test_a_disk_that_fills_up_is_one_line_and_what_was_done_stays(tmp_path):
    want = Build(tmp_path / "whole", 2**13)()
    with small_disk(tmp_path / "disk", "512k") as disk:
        build = Build(disk, 2**13)
        with pytest.raises(CannotSave, match="could not write .*No space left on device.*make room") as stopped:
            build.until(5, lambda: fill(disk))
        assert stopped.value.code == 74 and "\n" not in str(stopped.value)
        (disk / "filler").unlink()
        same(build(), want)
        assert build.embedded == PROMPTS[4:] and not build.pieces()


def test_a_disk_that_is_full_from_the_first_is_the_same_line(tmp_path):
    with small_disk(tmp_path / "disk", "512k") as disk:
        fill(disk)
        with pytest.raises(CannotSave, match="could not write .*No space left on device.*make room"):
            Build(disk)()
        assert os.listdir(disk) == ["filler"]


def test_a_disk_that_is_too_small_is_known_before_anything_is_embedded(tmp_path):
    with small_disk(tmp_path / "disk", "512k") as disk:
        build = Build(disk, 2**16)
        with pytest.raises(CannotSave, match="No space left on device: it needs 0.00236 GB, 0.000.* GB are free"):
            build()
        assert build.embedded == [] and os.listdir(disk) == []
