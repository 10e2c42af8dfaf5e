"""The text cache is believed only as far as it can prove: what is not what was written is computed again, in one line."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import REPO

from didr_jax.text.cache import cached
from didr_jax.text.encoder import text_encoder
from didr_jax.text.leftovers import FORGOTTEN, JOURNAL, building, partial, remove_leftovers
from didr_jax.types import InputError, Weights

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]


@functools.cache  # so that it is compiled once
def make(spoil=lambda values: values, width=64):
    """An encoder of floating-point captions and whole lengths."""

    def tokenize(prompts):
        return {"n": np.array([len(p) for p in prompts], np.int32)}

    def encode(params, tokens):
        grid = jnp.arange(1, width + 1, dtype=jnp.float32) / width
        return {"caption": spoil(tokens["n"][:, None] * grid), "length": tokens["n"]}

    return text_encoder(Weights.join({}), tokenize, encode)


@pytest.fixture
def get(tmp_path):
    """`get() -> (arrays, lines)` of one cache; its lines are those of that call."""

    def call(key="key", prompts=PROMPTS, dtype="float32", encoder=make):
        lines = []
        arrays = cached(tmp_path / "cache", key, prompts, encoder, dtype=dtype, batch_size=2, say=lines.append)
        return {name: np.array(values) for name, values in arrays.items()}, lines

    return call


def folder(tmp_path, key="key"):
    return tmp_path / "cache" / f"{key}-float32"


def flip(path, at=-5):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_unseen(entry):
    """A damage that leaves size and time of the file as they were."""
    path = entry / "caption.npy"
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x7f")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit(entry, change):
    raw = json.loads((entry / "entry.json").read_text())
    change(raw)
    (entry / "entry.json").write_text(json.dumps(raw))


def swap(entry):
    a, b = entry / "caption.npy", entry / "length.npy"
    a.rename(entry / "x")
    b.rename(a)
    (entry / "x").rename(b)


def replace_by_file(entry):
    shutil.rmtree(entry)
    entry.write_text("")


DAMAGE = {
    "a flipped bit": lambda e: flip(e / "caption.npy"),
    "a flipped bit, its time set back": flip_unseen,
    "a flipped bit of the header": lambda e: flip(e / "length.npy", 20),
    "zeros": lambda e: (e / "caption.npy").write_bytes(bytes((e / "caption.npy").stat().st_size)),
    "a piece cut off": lambda e: os.truncate(e / "caption.npy", 700),
    "nothing left": lambda e: os.truncate(e / "length.npy", 0),
    "more than there was": lambda e: (e / "caption.npy").write_bytes((e / "caption.npy").read_bytes() + bytes(4)),
    "an array is gone": lambda e: (e / "length.npy").unlink(),
    "all arrays are gone": lambda e: [path.unlink() for path in e.glob("*.npy")],
    "an array too many": lambda e: np.save(e / "pooled.npy", np.zeros((5, 2))),
    "an array is a folder": lambda e: ((e / "length.npy").unlink(), (e / "length.npy").mkdir()),
    "two arrays change names": swap,
    "no table": lambda e: (e / "entry.json").unlink(),
    "an empty table": lambda e: (e / "entry.json").write_text(""),
    "a table of something else": lambda e: (e / "entry.json").write_text('{"arrays": [1, {}], "format": 1}'),
    "a table nested too deep": lambda e: (e / "entry.json").write_text("[" * 10**5),
    "a table in no known letters": lambda e: (e / "entry.json").write_bytes(b"\xff\xfe{"),
    "another shape in the table": lambda e: edit(e, lambda t: t["arrays"]["caption"].update(shape=[5, 32])),
    "another type in the table": lambda e: edit(e, lambda t: t["arrays"]["caption"].update(dtype="int32")),
    "a table that forgets an array": lambda e: edit(e, lambda t: t["arrays"].pop("length")),
    "a file in place of the entry": replace_by_file,
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_entry_is_computed_again_in_one_line(how, get, tmp_path):
    want, _ = get()
    DAMAGE[how](folder(tmp_path))
    for lines_wanted in (2, 0):  # what is wrong, and that it is computed; then all is well
        got, lines = get()
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert len(lines) == lines_wanted and not any("\n" in line for line in lines)
        assert not lines or "is damaged (" in lines[0] and lines[1].startswith("embedding 5 prompts")
    assert sorted(os.listdir(tmp_path / "cache")) == ["key-float32", "key-float32.checked"]


def test_an_entry_of_other_prompts_under_this_name_is_not_taken(get, tmp_path):
    get(key="other", prompts=PROMPTS[:3])
    shutil.copytree(folder(tmp_path, "other"), folder(tmp_path))
    got, lines = get()
    assert len(got["length"]) == 5 and "caption.npy is float32 [3, 64]" in lines[0]


def test_contents_are_compared_once_and_again_where_a_file_was_touched(get, tmp_path):
    get()
    checked = tmp_path / "cache" / "key-float32.checked"
    first = checked.read_text()
    get()
    assert checked.read_text() == first
    os.utime(folder(tmp_path) / "caption.npy", (1, 1))  # as a copy to another disk does
    assert get()[1] == [] and checked.read_text() != first
    checked.write_text("nonsense")
    assert get()[1] == [] and json.loads(checked.read_text())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_value_that_is_not_finite_enters(bad, get, tmp_path):
    spoil = lambda values: jnp.where(values == 3.0, bad, values)  # the last entry of "ccc"
    with pytest.raises(InputError, match="the embedding 'caption' of the prompt 'ccc' is not finite; look at the encoder"):
        get(encoder=lambda: make(spoil))
    assert os.listdir(tmp_path / "cache") == []


def test_values_beyond_the_type_on_disk_do_not_enter(get, tmp_path, recwarn):
    with pytest.raises(InputError, match="config.data.dtype: 'caption' has values beyond float16"):
        get(dtype="float16", encoder=lambda: make(lambda values: values * 1e5))
    assert os.listdir(tmp_path / "cache") == [] and not recwarn.list


def test_others_may_read_what_the_umask_lets_them(get, tmp_path):
    before = os.umask(0o027)
    try:
        get()
    finally:
        os.umask(before)
    assert folder(tmp_path).stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder(tmp_path).iterdir()} == {0o640}


def test_leftovers_of_killed_builds_go_and_those_of_live_ones_stay(get, tmp_path):
    entry = tmp_path / "cache" / "other-float32"
    script = (
        "import pathlib, sys, time\nfrom didr_jax.text.leftovers import partial\n"
        "with partial(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'caption.npy').write_bytes(bytes(1000)); print('begun', flush=True); time.sleep(60)"
    )
    builder = subprocess.Popen([sys.executable, "-c", script, str(entry)], cwd=REPO, stdout=subprocess.PIPE, text=True)
    try:
        assert builder.stdout.readline() == "begun\n"
        get(key="first")
        assert len(list((tmp_path / "cache").glob("other-*"))) == 2  # the folder and its lock
    finally:
        builder.kill()
        builder.wait()
    assert len(list((tmp_path / "cache").glob("other-*"))) == 2
    get(key="second")
    assert not list((tmp_path / "cache").glob("other-*"))


def test_what_a_killed_build_did_stays_for_a_day(get, tmp_path):
    entry = tmp_path / "cache" / "other-float32"
    with pytest.raises(KeyboardInterrupt), building(entry) as folder:
        (folder / JOURNAL).write_text("of some rows")
        raise KeyboardInterrupt
    left = sorted(tmp_path.glob("cache/other-*"))
    get(key="first")
    assert sorted(tmp_path.glob("cache/other-*")) == left == [folder, folder.with_name(f"{folder.name}.lock")]
    os.utime(folder / JOURNAL, (time.time() - 1.1 * FORGOTTEN,) * 2)
    get(key="second")
    assert not list(tmp_path.glob("cache/other-*"))


def test_what_was_left_of_an_entry_that_is_there_is_of_no_use(get, tmp_path):
    entry = tmp_path / "cache" / "key-float32"
    with pytest.raises(KeyboardInterrupt), building(entry) as folder:
        (folder / JOURNAL).write_text("of some rows")
        raise KeyboardInterrupt
    entry.mkdir()
    remove_leftovers(tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == ["key-float32"]


def test_leftovers_of_versions_without_locks_go_when_they_are_old(tmp_path):
    for name, age in (("a.partial-x", 0.9), ("b.partial-x", 1.1)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age * FORGOTTEN,) * 2)
    (tmp_path / "c").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.partial-x", "c"]


def test_a_piece_is_gone_after_a_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), partial(tmp_path / "key") as piece:
        (piece / "half").write_text("")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
