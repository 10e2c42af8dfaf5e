"""Names in files that others wrote do not lead outside of the folder that was given; pictures are what they must be."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from didr_jax.images import MOST_PIXELS, opened, read_rgb, size_of
from didr_jax.rewards import RewardModel
from didr_jax.rewards.scoring import score_folder
from didr_jax.text.tokens import utf8
from didr_jax.types import InputError, Weights
from didr_jax.weights.files import read_tensors, write_safetensors

TENSORS = {"a": np.float32([1, 2]), "b": np.float32([3])}
INDEX = "model.safetensors.index.json"

# ------------------------------------------------------------------------------------------- shards


@pytest.fixture
def folder(tmp_path):
    """A folder with an index of two shards; another beside it."""
    write_safetensors(tmp_path / "in" / "model.safetensors", TENSORS, max_bytes=8)
    write_safetensors(tmp_path / "out" / "x.safetensors", TENSORS)
    return tmp_path / "in"


def point(folder, name):
    (folder / INDEX).write_text(f'{{"weight_map": {{"a": "{name}", "b": "{name}"}}}}')


@pytest.mark.parametrize(
    "name", ["../out/x.safetensors", "{root}/out/x.safetensors", "sub/../../out/x.safetensors", "link.safetensors"]
)
def test_a_shard_outside_of_the_folder_is_refused(name, folder):
    name = name.format(root=folder.parent)
    (folder / "link.safetensors").symlink_to(folder.parent / "out" / "x.safetensors")
    (folder / "sub").mkdir()
    point(folder, name)
    with pytest.raises(InputError, match=f"names shards outside of its folder: {name}; put the files themselves beside it"):
        read_tensors(folder / INDEX)


@pytest.mark.parametrize("name", [INDEX, "", ".", "a\\u0000.safetensors", "config.py"])
def test_a_shard_that_is_no_tensor_file_is_refused(name, folder):
    point(folder, name)
    with pytest.raises(InputError, match="names shards that are no tensor files"):
        read_tensors(folder / INDEX)


def test_a_shard_whose_name_is_no_files_is_told(folder):
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    for name in ("x" * 5000 + ".safetensors", "loop.safetensors"):
        point(folder, name)
        with pytest.raises(InputError, match=f"names shards that are not beside it: {name[:200]}$"):
            read_tensors(folder / INDEX)


def test_shards_in_the_hubs_cache_are_read(folder, tmp_path):
    """There all files of a repository are links, the index too, to one folder of blobs."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"digest{i}")
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / f"digest{i}", snapshot))
    got = read_tensors(snapshot)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(got[name], value)


def test_shards_in_a_folder_that_is_a_link_are_read(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert set(read_tensors(tmp_path / "link")) == set(TENSORS)


# ------------------------------------------------------------------------------------------- images

RED = RewardModel("red", Weights.join({}), lambda x: x.mean(axis=(1, 2)), lambda p, x, t: x[:, 0], utf8)


@pytest.mark.parametrize("name", ["../secret.png", "{root}/secret.png", "sub/../../secret.png", "link.png", "links/secret.png"])
def test_an_image_outside_of_the_folder_is_scored_only_if_that_is_meant(name, tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "links").symlink_to(tmp_path)
    name = name.format(root=tmp_path)
    (tmp_path / "p.csv").write_text(f"image,prompt\n{name},red\n")
    with pytest.raises(InputError, match=f"the image '{name}' lies outside of .*set config.score.outside=True"):
        score_folder(folder, tmp_path / "p.csv", [RED])
    (row,) = score_folder(folder, tmp_path / "p.csv", [RED], outside=True)
    assert row["red"] == 1.0


def test_an_image_whose_name_is_no_files_is_told(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name in ("x" * 5000, "loop.png"):
        (tmp_path / "p.csv").write_text(f"image,prompt\n{name},red\n")
        with pytest.raises(InputError, match="1 images are not in"):
            score_folder(tmp_path, tmp_path / "p.csv", [RED])


def test_images_below_the_folder_and_links_among_them_are_inside(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (2, 2), (0, 0, 0)).save(tmp_path / "images" / "sub" / "a.png")
    (tmp_path / "images" / "b.png").symlink_to(tmp_path / "images" / "sub" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    (tmp_path / "p.csv").write_text("image,prompt\nsub/a.png,x\nb.png,y\nsub/../b.png,z\n")
    assert len(score_folder(tmp_path / "link", tmp_path / "p.csv", [RED])) == 3


OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\nshowpage\n",
    "XPM": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #000000", "a"};\n',
}


@pytest.mark.parametrize("kind", [*OTHERS, "GIF", "TGA", "ICO", "PCX", "JPEG2000"])
def test_other_formats_are_refused_whatever_their_names(kind, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    if kind in OTHERS:
        path.write_bytes(OTHERS[kind])
    else:
        Image.new("RGB", (16, 16)).save(path, format=kind)
    monkeypatch.setenv("PATH", "")  # no other program could be started
    for read in (read_rgb, size_of):
        with pytest.raises(InputError, match="cannot read .*a.png .*it must be one of BMP, JPEG, PNG, PPM, TIFF, WEBP"):
            read(path)


def huge_png(width, height):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 1), (MOST_PIXELS // 1024 + 1, 1024)])
def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(size, tmp_path):
    (tmp_path / "a.png").write_bytes(huge_png(*size))
    for read in (read_rgb, size_of):
        with pytest.raises(InputError, match="pixels"):
            read(tmp_path / "a.png")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path, tmp_path / "absent.png"):
        with pytest.raises(InputError, match="no such file"):
            read_rgb(path)


def test_a_picture_of_the_largest_size_opens_without_a_warning(tmp_path, recwarn):
    (tmp_path / "a.png").write_bytes(huge_png(MOST_PIXELS // 1024, 1024))
    with opened(tmp_path / "a.png") as image:
        assert image.size == (MOST_PIXELS // 1024, 1024)
    assert not recwarn.list
