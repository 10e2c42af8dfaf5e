"""Pictures of a prompt set: seeded by prompt and number, the same whatever the batch; killed and restarted, the same files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from didr_jax.suites.grids import write_grids
from didr_jax.suites.produce import Maker, Picture, produce
from didr_jax.suites.table import SUITES
from didr_jax.training.reports import to_bytes
from didr_jax.types import InputError

MESH = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"))
WORDS = np.linspace(-1, 1, 5, dtype=np.float32)  # what each of five prompts asks for
SHAPE = (4, 6, 3)


def maker(seed=3, rows=None):
    tell = lambda places: {"word": WORDS[places]}
    return Maker(
        lambda p, z, told: jnp.tanh(z * p + told["word"][:, None, None, None]), jnp.asarray(0.5), rows or tell, SHAPE, seed
    )


def pictures(folder, places=range(5), n=2):
    return [Picture(i, 10 + i, k, str(folder / f"{i}_{k}.png")) for i in places for k in range(n)]


def made(folder, which=None, batch_size=3, **more):
    with jax.set_mesh(MESH):
        produce(maker(**more), which or pictures(folder), SUITES["plain"].saved, MESH, batch_size, lambda line: None)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_pictures_noise_follows_from_its_prompt_and_number_alone(tmp_path):
    """Whatever is made beside it, and in which batches."""
    whole = made(tmp_path / "a")
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 12), 1)
    shown = np.asarray(Image.open(tmp_path / "a" / "2_1.png"))
    np.testing.assert_array_equal(shown, to_bytes(np.tanh(0.5 * jax.random.normal(key, SHAPE) + WORDS[2])))
    part = made(tmp_path / "b", pictures(tmp_path / "b", places=(4, 2)), batch_size=4)
    assert len(whole) == 10 and part == {name: whole[name] for name in part} and len(part) == 4
    assert made(tmp_path / "c", seed=4) != whole


class Killed(BaseException):
    pass


def test_killed_and_restarted_it_makes_what_is_missing_and_touches_nothing_else(tmp_path):
    whole = made(tmp_path / "a")
    asked = []

    def dying(places):
        asked.append(places)
        if len(asked) == 3:
            raise Killed
        return {"word": WORDS[places]}

    with pytest.raises(Killed):
        made(tmp_path / "b", rows=dying)
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}
    assert 0 < len(there) < 10
    (tmp_path / "b" / "4_1.png.tmp").write_bytes(b"half a pic")
    asked.clear()
    assert made(tmp_path / "b", rows=lambda places: asked.append(places) or {"word": WORDS[places]}) == whole | {
        "4_1.png.tmp": b"half a pic"  # no picture
    }
    assert all(path.stat().st_mtime_ns == then for path, then in there.items()), "what was there was left alone"
    assert 0 < len(asked) < 4, "only batches of which something is missing"
    asked.clear()
    made(tmp_path / "b", rows=lambda places: asked.append(places) or {"word": WORDS[places]})
    assert asked == []


def test_a_picture_that_is_not_finite_ends_it_in_one_line(tmp_path):
    bad = lambda places: {"word": np.where(places == 3, np.nan, WORDS[places]).astype(np.float32)}
    with pytest.raises(InputError, match="3_0.png and 1 more of its batch would not be finite") as refused:
        made(tmp_path, rows=bad, batch_size=2)
    assert "\n" not in str(refused.value) and not (tmp_path / "3_0.png").exists() and (tmp_path / "0_0.png").exists()


def test_the_rate_and_the_time_to_go_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("didr_jax.suites.produce.PERIOD", 0.0)
    said = []
    with jax.set_mesh(MESH):
        produce(maker(), pictures(tmp_path), SUITES["plain"].saved, MESH, 4, said.append)
    assert said[:2] == ["10 pictures", "4/10 pictures"] and len(said) == 4
    assert said[2].startswith("8/10 pictures  ") and "img/s  ETA 0:0" in said[2]


def test_a_grid_has_its_pictures_row_by_row_without_gaps(tmp_path):
    cells = [str(tmp_path / f"{k}.png") for k in range(4)]
    for k, cell in enumerate(cells):
        Image.new("RGB", (3, 2), (k, 0, 0)).save(cell)
    write_grids([cells], [str(tmp_path / "grid.png")], SUITES["dpg"])
    grid = np.asarray(Image.open(tmp_path / "grid.png"))[..., 0]
    np.testing.assert_array_equal(grid, [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2)
