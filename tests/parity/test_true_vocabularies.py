"""Tokenisation with the vocabularies that people use, as packages of others ship them: 49,408 and 151,643 byte pairs.

The files come with `open-clip-torch` and `qwen-agent`, the answers from their own readers (requirements-vocabularies.txt).
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from didr_jax.recipes.sprouts.families.clip_vocabulary import published_tokenizer
from didr_jax.recipes.sprouts.families.zimage_networks import CHAT_TEMPLATE
from didr_jax.text.qwen import qwen_tokenizer, tokenize
from didr_jax.text.tokens import clip_tokenizer

pytestmark = pytest.mark.slow  # half a minute to build either

PROMPTS = [
    "a photo of a cat",
    "A Cat's hat, isn't it?! 12345 (3.50) #1 @home",
    "an astronaut riding a horse, 8k, trending on artstation --v 5",
    "ein Bär läuft über die Straße",
    "日本の城 and emoji 🎨🖼️",
    "  many   spaces\tand\nlines  ",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "",
]


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)  # not imported: their own dependencies are many
    if found is None:
        pytest.skip(f"{name} is not installed: pip install --no-deps -r requirements-vocabularies.txt")
    return Path(found.submodule_search_locations[0])


# ---------------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(our tokenizer over a folder made of the published merges, open_clip's own)."""
    package = _package("open_clip")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", package / "tokenizer.py")
    theirs = importlib.util.module_from_spec(spec)
    sys.modules["open_clip_tokenizer"] = theirs
    spec.loader.exec_module(theirs)
    folder = tmp_path_factory.mktemp("clip")
    published_tokenizer().save_pretrained(folder)
    return clip_tokenizer(folder), theirs.SimpleTokenizer()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_clip_ids_are_those_of_open_clip(clip, prompt):
    """Up to the end of text; what follows is padding, of which each pipeline has its own kind."""
    ours, theirs = clip
    expected = theirs([prompt])[0].numpy()
    length = expected.argmax() + 1
    np.testing.assert_array_equal(ours([prompt])["ids"][0, :length], expected[:length])


def test_clip_knows_49408_tokens_and_cuts_as_open_clip_does(clip):
    ours, theirs = clip
    long = "a very long prompt " * 40
    expected = theirs([long])[0].numpy()
    np.testing.assert_array_equal(ours([long])["ids"][0], expected)
    assert expected.max() == 49407


# ---------------------------------------------------------------------------------------------- Qwen


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """(our tokenizer over a folder made of the published ranks, tiktoken's)."""
    import tiktoken
    import transformers as T
    from tiktoken.load import load_tiktoken_bpe
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ranks = load_tiktoken_bpe(str(_package("qwen_agent") / "utils" / "qwen.tiktoken"))
    letters = bytes_to_unicode()
    spell = lambda token: "".join(letters[byte] for byte in token)
    merges = []
    for token in ranks:
        if len(token) > 1:
            # A token is made of the two that are left when it alone is missing.
            left, right = _pieces(ranks, token)
            merges.append((spell(left), spell(right)))
    vocab = {spell(token): rank for token, rank in ranks.items()}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab |= {name: len(ranks) + i for i, name in enumerate(special)}
    tokenizer = T.Qwen2Tokenizer(vocab=vocab, merges=merges, chat_template=CHAT_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer.save_pretrained(folder)
    pattern = (  # Qwen's, from its published tokenizer
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    theirs = tiktoken.Encoding(
        "Qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={name: len(ranks) + i for i, name in enumerate(special)}
    )
    return qwen_tokenizer(folder), theirs


def _pieces(ranks: dict[bytes, int], token: bytes) -> tuple[bytes, bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        rank = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        best = int(np.argmin(rank))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_qwen_ids_are_those_of_tiktoken_within_the_chat_template(qwen, prompt):
    ours, theirs = qwen
    message = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    expected = theirs.encode(message, allowed_special="all")
    ids, mask = tokenize(ours, [prompt], 128)
    assert ids[0][mask[0]].tolist() == expected


def test_qwen_knows_151643_byte_pairs(qwen):
    ours, theirs = qwen
    assert theirs.encode("Hello world") == [9707, 1879]
    assert ours("Hello world")["input_ids"] == [9707, 1879]
    assert ours.convert_tokens_to_ids("<|endoftext|>") == 151643
