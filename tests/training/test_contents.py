"""What is at a path, wherever that is."""

import numpy as np

from didr_jax.training import contents
from didr_jax.training.contents import digest_at, digests_of


def test_a_digest_is_of_names_and_contents_and_of_nothing_else(tmp_path):
    for folder, text in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / folder / "unet").mkdir(parents=True)
        (tmp_path / folder / "unet" / "weights").write_text(text)
    one, two, three = (digest_at(tmp_path / folder) for folder in ("one", "two", "three"))
    assert one == two != three
    (tmp_path / "two" / "unet" / "weights").rename(tmp_path / "two" / "unet" / "other")
    assert digest_at(tmp_path / "two") != one
    assert digest_at(tmp_path / "one" / "unet" / "weights") != digest_at(tmp_path / "three" / "unet" / "weights")
    assert digest_at(tmp_path / "nowhere") is None


def test_a_large_file_is_known_by_pieces_from_its_beginning_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "WHOLE", 1000)
    monkeypatch.setattr(contents, "BLOCKS", 8)
    monkeypatch.setattr(contents, "BLOCK", 64)
    data = np.random.default_rng(0).integers(0, 256, 10_000).astype(np.uint8)
    (tmp_path / "file").write_bytes(data.tobytes())
    before = digest_at(tmp_path / "file")
    for place in (0, 9_999, (10_000 - 64) // 7):
        changed = data.copy()
        changed[place] ^= 1
        (tmp_path / "file").write_bytes(changed.tobytes())
        assert digest_at(tmp_path / "file") != before


def test_only_what_names_something_has_one(tmp_path):
    (tmp_path / "p.txt").write_text("a")
    flat = {"data.prompts": str(tmp_path / "p.txt"), "schedule.name": "cosine-nowhere", "steps": 3, "empty": ""}
    assert digests_of(flat) == {"data.prompts": digest_at(tmp_path / "p.txt")}
