"""Prompts as a step takes them: each distinct one embedded once, and texts of many lengths kept by length."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from didr_jax.recipes.text_to_image.conditions import SHORTEST, distinct, prompt_table
from didr_jax.text.encoder import text_encoder
from didr_jax.types import Weights

LONGEST, WIDTH = 100, 3


def encoder_of(seen, loads):
    """A sequence of word numbers times the features 1, w, 2w; weights w; notes what it is asked for."""

    def fill(shapes, places):
        loads.append(1)
        return {"w": jnp.full((), 0.5)}

    def tokenize(prompts):
        seen.extend(prompts)
        numbers = np.zeros((len(prompts), LONGEST), np.int32)
        for i, prompt in enumerate(prompts):
            words = [int(word) for word in prompt.split()] or [7]
            numbers[i, : len(words)] = words
        return {"ids": numbers}

    def encode(params, tokens):
        features = jnp.stack([jnp.ones(()), params["w"], 2 * params["w"]])
        return {"caption": tokens["ids"][..., None] * features, "length": length(tokens)}

    length = lambda tokens: jnp.sum(jnp.asarray(tokens["ids"]) > 0, 1)
    weights = Weights({"w": jax.ShapeDtypeStruct((), jnp.float32)}, fill)
    return text_encoder(weights, tokenize, encode, length)


def table_of(prompts, cache, longest, seen=None, loads=None):
    section = ml_collections.ConfigDict({"cache": str(cache), "dtype": "float32", "batch_size": 4})
    make = lambda: encoder_of([] if seen is None else seen, [] if loads is None else loads)
    return prompt_table(prompts, section, make, "digest", None, longest)


PROMPTS = ["3 4", " ".join(["5"] * 40), "3 4", "9", " ".join(["6"] * 100), "9", "3 4"]


def test_each_distinct_prompt_is_embedded_once(tmp_path):
    seen: list[str] = []
    table = table_of(PROMPTS, tmp_path, None, seen)
    asked = [prompt for prompt in seen if prompt]
    assert sorted(asked) == sorted(set(PROMPTS)) and table.place.tolist() == [0, 1, 0, 2, 3, 2, 0, 4]
    captions = table.everything["text"]["caption"]
    assert captions.shape == (7, LONGEST, WIDTH) and captions[2, :3, 0].tolist() == [3, 4, 0]
    assert table.empty["caption"][0, :2, 0].tolist() == [7, 0]
    assert distinct(["", "a", ""])[1].tolist() == [1, 0, 1, 1]


def test_texts_kept_by_length_are_those_that_are_padded(tmp_path):
    loads: list[int] = []
    padded, ragged = table_of(PROMPTS, tmp_path / "padded", None), table_of(PROMPTS, tmp_path / "ragged", LONGEST, loads=loads)
    for which in (slice(None), np.array([4, 0, 1, 1]), np.array([3])):
        jax.tree.map(np.testing.assert_array_equal, ragged.rows(which), padded.rows(which))
    jax.tree.map(np.testing.assert_array_equal, ragged.empty, padded.empty)
    shapes = sorted(np.load(path, mmap_mode="r").shape for path in (tmp_path / "ragged").glob("*/caption.npy"))
    assert shapes == [(1, 2 * SHORTEST, WIDTH), (1, LONGEST, WIDTH), (3, SHORTEST, WIDTH)]
    assert len(loads) == 1, "the weights are read once for all lengths"
    table_of(PROMPTS, tmp_path / "ragged", LONGEST, loads=loads)
    assert len(loads) == 1


def test_texts_that_are_used_together_are_as_wide_as_the_widest_of_them_and_no_wider(tmp_path):
    """And as the empty prompt is.  What is left out are zeros; a process that reads some of a batch pads to what all of it needs."""
    table, padded = table_of(PROMPTS, tmp_path, LONGEST), table_of(PROMPTS, tmp_path / "padded", None)
    for among, width in (([0, 3, 2], SHORTEST), ([0, 1], 2 * SHORTEST), ([1, 4, 0], LONGEST)):
        among = np.array(among)
        for some in (among, among[:1]):
            found, whole = table.rows(some, among)["text"], padded.rows(some)["text"]
            assert found["caption"].shape == (len(some), width, WIDTH)
            np.testing.assert_array_equal(found["caption"], whole["caption"][:, :width])
            np.testing.assert_array_equal(found["length"], whole["length"])
            assert not np.any(whole["caption"][:, width:])
    assert table.empty["caption"].shape == (1, LONGEST, WIDTH)
