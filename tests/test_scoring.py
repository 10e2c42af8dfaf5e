"""Scoring a folder: files, sizes, order, table, errors."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from didr_jax.rewards import RewardModel
from didr_jax.rewards.kept import Kept
from didr_jax.rewards.scoring import read_image, read_pairs, score_folder
from didr_jax.text.tokens import utf8
from didr_jax.types import InputError, Weights

NONE = Weights.join({})
MEAN = lambda images: images.mean(axis=(1, 2))
RED = RewardModel("red", NONE, MEAN, lambda p, x, t: x[:, 0], utf8)
LENGTH = RewardModel("length", NONE, MEAN, lambda p, x, t: jnp.sum(t["utf8"] > 0, axis=1).astype(jnp.float32), utf8)
BROKEN = RewardModel("broken", NONE, MEAN, lambda p, x, t: jnp.log(x.mean(axis=1)), utf8)


@pytest.fixture
def folder(tmp_path):
    """Five images of two sizes, red rising; the first has transparency."""
    for i in range(5):
        size = (6, 4) if i % 2 else (3, 8)
        Image.new("RGBA" if i == 0 else "RGB", size, (50 * i, 20, 20)).save(tmp_path / f"{i}.png")
    return tmp_path


FILES = {
    "p.jsonl": '{"file_name": "3.png", "text": "tschüß, du"}\n\n{"file_name": "0.png", "text": "b"}\n'
    '{"file_name": "2.png", "text": "cc"}\n{"file_name": "4.png", "text": "b"}\n',
    "p.csv": 'prompt,image\n"tschüß, du",3.png\nb,0.png\ncc,2.png\nb,4.png\n',
    "p.tsv": "file\tcaption\tseed\n3.png\ttschüß, du\t1\n0.png\tb\t2\n2.png\tcc\t3\n4.png\tb\t4\n",
}


@pytest.mark.parametrize("name", FILES)
def test_rows_come_back_in_order(folder, name, capsys):
    (folder / name).write_text(FILES[name], encoding="utf-8")
    rows = score_folder(folder, folder / name, [RED, LENGTH, BROKEN], folder / "out" / "scores.csv", batch_size=2)
    assert [r["image"] for r in rows] == ["3.png", "0.png", "2.png", "4.png"]
    assert rows[0]["prompt"] == "tschüß, du"
    np.testing.assert_allclose([r["red"] for r in rows], np.array([150, 0, 100, 200]) / 127.5 - 1, rtol=1e-6)
    assert [r["length"] for r in rows] == [12, 1, 2, 1]
    with open(folder / "out" / "scores.csv", newline="", encoding="utf-8") as f:
        written = list(csv.DictReader(f))
    assert [w["image"] for w in written] == [r["image"] for r in rows]
    np.testing.assert_allclose([float(w["red"]) for w in written], [r["red"] for r in rows])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["red", f"{np.mean([r['red'] for r in rows]):.4f}",
                                f"{np.std([r['red'] for r in rows]):.4f}", "4", "0"]  # fmt: skip
    assert lines[3].split() == ["broken", "nan", "nan", "4", "4"]


def test_pairs_of_a_parquet_file(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"caption": ["tschüß", "b"], "path": ["3.png", "0.png"], "bytes": [b"", b""]}
    parquet.write_table(pa.table(rows), tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet") == [("3.png", "tschüß"), ("0.png", "b")]
    parquet.write_table(pa.table({"prompt": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match="p.parquet, row 1 has no text under image"):
        read_pairs(tmp_path / "p.parquet")


def test_the_first_field_that_is_filled_counts(tmp_path):
    (tmp_path / "p.csv").write_text("image,file,prompt,text\n,1.png,a,b\n2.png,3.png,,d\n")
    assert read_pairs(tmp_path / "p.csv") == [("1.png", "a"), ("2.png", "d")]


def test_image_range(folder):
    x = read_image(folder / "0.png")
    assert x.shape == (8, 3, 3) and x.dtype == np.float32
    np.testing.assert_array_equal(x[..., 0], -1)


DEEP = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "grey.pgm"])
def test_grey_of_sixteen_bits_is_the_picture_that_it_shows(tmp_path, name):
    Image.fromarray(DEEP).save(tmp_path / name)
    np.testing.assert_allclose(read_image(tmp_path / name)[..., 1], DEEP / 32767.5 - 1, atol=1 / 255)


@pytest.mark.parametrize("values", [DEEP.astype(np.int32), DEEP / np.float32(65535)])
def test_values_whose_range_nobody_knows_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "grey.tiff")
    with pytest.raises(InputError, match="cannot read .*grey.tiff .its values, .* no range that is known"):
        read_image(tmp_path / "grey.tiff")


def test_a_broken_image_in_the_middle_loses_nothing_that_was_scored(folder, capsys):
    seen = []
    red = RewardModel("red", NONE, MEAN, lambda p, x, t: x[:, 0], lambda prompts: seen.extend(prompts) or utf8(prompts))
    (folder / "p.csv").write_text("image,prompt\n" + "".join(f"{i}.png,p{i}\n" for i in (0, 2, 4, 1, 3)))
    whole = score_folder(folder, folder / "p.csv", [red], folder / "whole.csv", batch_size=1)
    good = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(good[:-30])  # its header is good
    out = folder / "scores.csv"
    again = lambda of: score_folder(folder, folder / "p.csv", [red], out, batch_size=1, of=of)
    with pytest.raises(InputError, match="cannot read .*1.png"):
        again("these")
    with open(f"{out}.partial.jsonl", "a") as file:
        file.write('["cut')
    (folder / "1.png").write_bytes(good)
    seen.clear()
    assert again("these") == whole and seen == ["p1", "p3"]
    assert "3 pictures were scored before" in capsys.readouterr().out
    assert out.read_bytes() == (folder / "whole.csv").read_bytes() and not list(folder.glob("*.partial*"))


def test_what_other_rewards_scored_is_not_taken(folder):
    kept = Kept(folder / "p.jsonl", "these")
    kept.add([(folder / "0.png", "a", {"red": 0.1}), (b"held", "b", {"red": np.nan})])
    assert len(Kept(folder / "p.jsonl", "others")) == 0
    known = Kept(folder / "p.jsonl", "these")
    assert known.get(folder / "0.png", "a") == {"red": 0.1} and known.get(folder / "0.png", "b") is None
    assert np.isnan(known.get(b"held", "b")["red"])
    Image.new("RGB", (3, 3)).save(folder / "0.png")
    assert known.get(folder / "0.png", "a") is None


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.txt", "a", "none of .jsonl, .json, .csv, .tsv, .parquet"),
        ("p.csv", "image,prompt\n", "no rows"),
        ("p.jsonl", "{", "cannot read"),
        ("p.jsonl", "\n[1]", "line 2 has no text"),
        ("p.csv", "image,colour\n0.png,red\n", "row 1 has no text under prompt"),
        ("p.tsv", "image\tprompt\n0.png\n", "row 1 has no text under prompt"),
    ],
)
def test_unusable_prompt_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / name)


def test_absent_and_damaged_images_and_rewards(folder):
    (folder / "p.csv").write_text("image,prompt\n8.png,a\n0.png,b\n9.png,c\n")
    with pytest.raises(InputError, match="2 images are not in .*: 8.png, 9.png$"):
        score_folder(folder, folder / "p.csv", [RED])
    (folder / "8.png").write_text("not an image")
    (folder / "p.csv").write_text("image,prompt\n8.png,a\n")
    with pytest.raises(InputError, match="cannot read .*8.png"):
        score_folder(folder, folder / "p.csv", [RED])
    with pytest.raises(InputError, match="different names"):
        score_folder(folder, folder / "p.csv", [RED, RED])
