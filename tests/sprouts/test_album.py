"""Drawn pictures: a function of their parts, kept on disk, refused where other versions would draw other ones."""

import numpy as np
import pytest

from didr_jax.recipes.sprouts import album as drawing
from didr_jax.recipes.sprouts import parts
from didr_jax.types import InputError

pytest.importorskip("dicebear", reason="draws with dicebear-core, dicebear-styles, resvg-py (requirements-dev.txt)")
SEED = np.random.default_rng(0).integers(1000)


def test_pictures_depend_on_their_parts_alone_and_another_mouth_moves_the_face_alone():
    rng = np.random.default_rng(SEED)
    row = parts.draw_parts(rng, 1)
    image, again, other = (drawing.draw(rows[0]) for rows in (row, row, parts.with_other_mouth(rng, row)))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, again)
    rows, columns = np.nonzero((image != other).any(-1))
    assert len(rows) and rows.min() > 40 and 15 < columns.min() and columns.max() < 49  # the pot's front, below the eyes


def test_every_value_of_every_part_can_be_drawn_and_shows():
    base = np.zeros(len(parts.PARTS), np.int32)
    for i, part in enumerate(parts.PARTS):
        rows = np.stack([np.where(np.arange(len(base)) == i, value, base) for value in range(parts.SIZES[part])])
        images = {drawing.draw(row).tobytes() for row in rows}
        assert len(images) == parts.SIZES[part], part


def test_an_album_is_drawn_once_and_then_read(tmp_path):
    first = drawing.album(str(tmp_path), 6, 3, 2)
    (file,) = tmp_path.iterdir()
    drawing.album.cache_clear()
    again = drawing.album(str(tmp_path), 6, 3, 2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.images[4], drawing.draw(first.parts[4]))
    np.testing.assert_array_equal(first.other_images[1], drawing.draw(first.other_parts[1]))
    drawing.album.cache_clear()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read .* drawn again"):
        drawing.album(str(tmp_path), 6, 3, 2)


def test_other_versions_of_the_artwork_are_refused_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setitem(drawing.VERSIONS, "resvg-py", "9.9.9")
    drawing._style.cache_clear()
    with pytest.raises(InputError, match=r"resvg-py 9\.9\.9, which is 0\.5\.0: pip install dicebear-core==.*resvg-py==9\.9\.9"):
        drawing.draw(np.zeros(len(parts.PARTS), np.int32))
    drawing._style.cache_clear()
