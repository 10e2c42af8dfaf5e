"""Text encoders as pure functions: their shapes, their weights, and when these are read."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from didr_jax.text.cache import cached  # noqa: E402
from didr_jax.text.clip import clip_encoder  # noqa: E402
from didr_jax.text.qwen import qwen_encoder  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from tests.text_to_image import tiny_sdxl, tiny_zimage  # noqa: E402

PROMPTS = ["a red cat on a mat", "a cat", ""]


def make(kind, folder):
    return qwen_encoder(folder, 40) if kind == "zimage" else clip_encoder(folder, xl=kind == "sdxl")


@pytest.fixture(params=["sd15", "sdxl", "zimage"])
def case(request, tmp_path):
    """(kind, folder with the parts that its encoder reads)."""
    {"sd15": tiny_sdxl.save_sd15, "sdxl": tiny_sdxl.save_sdxl, "zimage": tiny_zimage.save_base}[request.param](tmp_path)
    return request.param, tmp_path


def test_encoding_is_a_function_of_parameters_and_tokens(case):
    """Tokens are arrays: they can be picked by (seed, step), sent to devices, and encoded inside a larger program."""
    encoder = make(*case)
    params, tokens = encoder.weights.load(), encoder.tokenize(PROMPTS)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(params) == shapes(encoder.weights.shapes)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(tokens)} == {len(PROMPTS)}
    text = jax.jit(encoder.encode)(params, tokens)
    one = lambda tree, i: jax.tree.map(lambda column: column[i : i + 1], tree)
    assert shapes(one(text, 0)) == shapes(dict(encoder.shapes))
    for i in range(len(PROMPTS)):
        alone = jax.jit(encoder.encode)(params, one(tokens, i))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), alone, one(text, i))


def test_weights_are_read_only_where_an_embedding_is_missing(case, tmp_path):
    kind, folder = case
    files = list(folder.glob("text_encoder*/model.safetensors"))
    encoder = make(kind, folder)
    encoder.weights.check()
    get = lambda prompts: cached(tmp_path / "cache", prompts[0], prompts, lambda: make(kind, folder), batch_size=2, say=str)
    want = get(PROMPTS)
    for file in files:
        file.rename(f"{file}.moved")
    jax.tree.map(np.testing.assert_array_equal, dict(get(PROMPTS)), dict(want))
    for use in (encoder.weights.check, encoder.weights.load, lambda: get(["mat"])):
        with pytest.raises(InputError, match="text_encoder"):
            use()
    entry = f"{PROMPTS[0]}-float16"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [entry, f"{entry}.checked"]
