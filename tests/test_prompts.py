"""Prompt files of every kind, and embeddings on disk."""

import gzip
import json
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from didr_jax.text.cache import cached, digest_files, digest_texts
from didr_jax.text.encoder import text_encoder
from didr_jax.text.prompts import read_prompts
from didr_jax.types import InputError, Weights

PROMPTS = ["ein Haus, groß", 'a "red" cat', "dog"]
FILES = {
    "p.txt": 'ein Haus, groß\n\n  a "red" cat \ndog',
    "p.jsonl": "\n".join(json.dumps(row) for row in ({"id": 1, "caption": PROMPTS[0]}, PROMPTS[1], {"prompt": "dog"})),
    "p.csv": 'id,text\n1,"ein Haus, groß"\n2,"a ""red"" cat"\n3,dog\n4,\n',
    "p.tsv": 'caption\tid\nein Haus, groß\t1\n"a ""red"" cat"\t2\ndog\t3\n',
}


@pytest.mark.parametrize("name", FILES)
def test_kinds_of_files(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert read_prompts(tmp_path / name) == PROMPTS
    assert read_prompts(tmp_path / name, limit=2) == PROMPTS[:2]
    (tmp_path / name).write_text(FILES[name], encoding="utf-8-sig")  # as spreadsheets save it
    assert read_prompts(tmp_path / name) == PROMPTS


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_part_of_a_prompt(tmp_path, name, encoding):
    (tmp_path / name).write_text(FILES[name], encoding=encoding)
    assert read_prompts(tmp_path / name) == PROMPTS


def test_marks_inside_joined_files_are_no_part_of_a_prompt(tmp_path):
    one = "dog\n".encode("utf-8-sig")
    (tmp_path / "p.txt").write_bytes(one + one)
    (tmp_path / "p.jsonl").write_bytes('"dog"\n'.encode("utf-8-sig") * 2 + b'"\\ufeffdog"')
    (tmp_path / "p.csv").write_bytes(b"prompt\n" + one + '"\ufeffdog"\n'.encode())
    assert read_prompts(tmp_path / "p.txt") == read_prompts(tmp_path / "p.csv") == ["dog"] * 2
    assert read_prompts(tmp_path / "p.jsonl") == ["dog"] * 3


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.csv", 'prompt\na cat\n"a dog\na bird\na fish\n', "p.csv, row 2, from line 3 on: unexpected end of data; close what"),
        ("p.csv", 'prompt\n"a dog\n"a bird"\n', "row 1, from line 2 on: ',' expected after '\"'; close what a quote opens"),
        ("p.tsv", 'prompt\tid\n"a dog\t1\na bird\t2\n', "row 1, from line 2 on: unexpected end of data"),
        ("p.csv", 'id,prompt\n1,"a\ndog"\n2,"a bird', "row 2, from line 4 on"),
        ("p.csv", "prompt,id\na dog, running,1\n", r"row 1 .line 2. has 3 cells, and the header 2; put texts that hold ',' into quotes"),
        ("p.csv", "id,prompt\n1,a dog\n2\n", r"row 2 .line 3. has 1 cells, and the header 2"),
        ("p.jsonl", '"a dog"\n"\\ud800 bird"\n', r"p.jsonl, line 2 holds U\+D800, half of a character"),
        ("p.jsonl", '"a dog"\n{"prompt": "a\n', "cannot read .*p.jsonl, line 2"),
    ],
)  # fmt: skip
def test_text_that_would_be_another_is_refused_naming_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        read_prompts(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_what_csv_allows_is_read(tmp_path):
    (tmp_path / "p.csv").write_text('id,prompt,note\r\n1,"a\r\ndog",\r\n\r\n2,a 5" heel,x,,\r\n3,"say ""hi"", cat"\r\n')
    assert read_prompts(tmp_path / "p.csv") == ["a\r\ndog", 'a 5" heel', 'say "hi", cat']
    (tmp_path / "p.jsonl").write_text('"\\ud83d\\ude00 cat"')  # both halves
    assert read_prompts(tmp_path / "p.jsonl") == ["😀 cat"]


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"id": [1, 2, 3, 4], "caption": [*PROMPTS, None]}), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == PROMPTS
    with pytest.raises(InputError, match="no column words; it has id, caption"):
        read_prompts(tmp_path / "p.parquet", "words")


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("name", [*FILES, "p.json"])
def test_compressed_files_upper_case_endings_and_folders_of_shards(tmp_path, name):
    rows = [{"Caption": PROMPTS[0]}, PROMPTS[1], {"prompt": "dog"}]
    data = (FILES | {"p.json": json.dumps(rows, indent=1)})[name].encode("utf-8-sig")
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    assert read_prompts(tmp_path / f"{name}.gz") == PROMPTS
    (tmp_path / name.upper()).write_bytes(data)
    assert read_prompts(tmp_path / name.upper()) == PROMPTS
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard, content in ((f"part-00001.{name}", data), (f"part-00000.{name}.gz", gzip.compress(data)), ("README.md", b"about")):
        (shards / shard).write_bytes(content)
    assert read_prompts(shards) == PROMPTS * 2 and read_prompts(shards, limit=4) == PROMPTS + PROMPTS[:1]


def test_a_column_is_found_in_either_case_and_as_it_is_written_first(tmp_path):
    (tmp_path / "p.csv").write_text("id,Prompt\n1,a cat\n")
    assert read_prompts(tmp_path / "p.csv") == read_prompts(tmp_path / "p.csv", "PROMPT") == ["a cat"]
    (tmp_path / "p.jsonl").write_text('{"PROMPT": "shout", "prompt": "a cat"}\n{"Text": "a dog"}')
    assert read_prompts(tmp_path / "p.jsonl") == ["a cat", "a dog"]


def test_folders_and_compressed_files_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="holds none of .txt"):
        read_prompts(tmp_path)
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "b.jsonl").write_text('"a dog"')
    with pytest.raises(InputError, match=r"files of several kinds \(.jsonl, .txt\); give a folder with shards of one kind"):
        read_prompts(tmp_path)
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"a cat\n" * 1000)[:-20])
    (tmp_path / "d.txt.gz").write_bytes(b"a cat")
    for name in ("c.txt.gz", "d.txt.gz"):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            read_prompts(tmp_path / name)
    (tmp_path / "e.json").write_text('{"prompts": ["a cat"]}')
    with pytest.raises(InputError, match="e.json holds no list"):
        read_prompts(tmp_path / "e.json")
    for name in ("f.gz", "f.parquet.gz"):
        with pytest.raises(InputError, match=f"{name} is none of"):
            read_prompts(tmp_path / name)


def test_a_named_column(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,long\na,b\n")
    assert read_prompts(tmp_path / "p.csv", "long") == ["b"]


@pytest.mark.parametrize(
    "name, text, column, message",
    [
        ("p.doc", "a", "", "none of .txt, .jsonl"), ("p.txt", "\n \n", "", "no prompts"), ("p.csv", "prompt\n", "", "no prompts"),
        ("p.csv", "words\na\n", "", "row 1 has no column prompt or caption or text; it has words"), ("p.jsonl", "{", "", "cannot read"),
        ("p.jsonl", '{"prompt": 3}', "", "line 1: prompt is 3, not text"), ("p.txt", "a", "prompt", "plain list"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, name, text, column, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name, column)
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path / "absent.txt")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path / "p.txt")


def encoder(encode=None, log=None):
    """Makes an encoder that tells the prompt's length, and logs when it is made, loaded and given a batch."""
    log = [] if log is None else log

    def tokenize(prompts):
        log.append(len(prompts))
        return {"length": np.array([[len(p)] for p in prompts], np.float32)}

    def fill(shapes, shardings):
        log.append("loaded")
        return {"one": jnp.ones((2, 3))}

    def ours(params, tokens):
        return tokens | {"one": jnp.broadcast_to(params["one"], (len(tokens["length"]), 2, 3))}

    def make():
        log.append("made")
        return text_encoder(Weights({"one": jax.ShapeDtypeStruct((2, 3), jnp.float32)}, fill), tokenize, encode or ours)

    return make


def test_embeddings_are_computed_once_and_mapped(tmp_path):
    make, prompts = encoder(log=(log := [])), ["a", "bb", "ccc", "dddd", "eeeee"]
    get = lambda dtype: cached(tmp_path / "new" / "cache", "key", prompts, make, dtype=dtype, batch_size=2, say=str)
    once = ["made", 1, "loaded", 2, 2, 2]  # the first call tells the shapes; the last batch is filled up
    for _ in range(2):
        arrays = get("float32")
        np.testing.assert_array_equal(arrays["length"][:, 0], [1, 2, 3, 4, 5])
        assert arrays["one"].shape == (5, 2, 3) and isinstance(arrays["one"], np.memmap)
        assert log == once
    assert get("float16")["length"].dtype == np.float16 and log == 2 * once
    names = [f"key-{dtype}{end}" for dtype in ("float16", "float32") for end in ("", ".checked")]
    assert sorted(p.name for p in (tmp_path / "new" / "cache").iterdir()) == names


def test_nothing_of_the_encoder_stays_in_memory(tmp_path):
    before = len(jax.live_arrays())
    cached(tmp_path, "key", ["a", "bb"], encoder(), batch_size=1, say=str)
    assert len(jax.live_arrays()) == before


def test_bfloat16_and_integers_come_back_as_they_are(tmp_path):
    values = np.float32([[1e30, -0.3], [7e4, 1e-30]])
    make = encoder(lambda params, tokens: {"caption": jnp.asarray(values), "length": jnp.array([3, 700])})
    get = lambda dtype: cached(tmp_path, "key", ["a", "b"], make, dtype=dtype, batch_size=2, say=str)
    for _ in range(2):
        arrays = get("bfloat16")
        assert arrays["caption"].dtype == ml_dtypes.bfloat16 and isinstance(arrays["caption"], np.memmap)
        np.testing.assert_array_equal(arrays["caption"], values.astype(ml_dtypes.bfloat16))
        assert arrays["length"].dtype == np.int32 and arrays["length"].tolist() == [3, 700]
    with pytest.raises(InputError, match="config.data.dtype: 'caption' has values beyond float16"):
        get("float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key-bfloat16", "key-bfloat16.checked"]


def test_a_failure_leaves_nothing(tmp_path):
    def fails():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached(tmp_path, "key", ["a"], fails, say=str)
    assert not list(tmp_path.iterdir())
    assert cached(tmp_path, "key", ["abc"], encoder(), say=str)["length"] == 3


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="config.data.cache.*choose another"):
        cached(tmp_path / "file" / "cache", "key", ["a"], encoder(), say=str)


def test_digests_tell_contents_and_nothing_else(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights").write_bytes(b"12")
    assert digest_files([tmp_path / "a"]) == digest_files([tmp_path / "b"])
    (tmp_path / "b" / "weights").write_bytes(b"13")
    assert digest_files([tmp_path / "a"]) != digest_files([tmp_path / "b"])
    assert len({digest_texts(*t) for t in ([["ab", "c"]], [["a", "bc"]], [["ab"], ["c"]], [["abc"]])}) == 4
