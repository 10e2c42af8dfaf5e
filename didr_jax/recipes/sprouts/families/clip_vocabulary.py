"""CLIP's published vocabulary, 49,408 byte pairs, from the file that the package `open-clip-torch` carries.

Only to make a pipeline's tokenizers; what is made holds them, and whoever draws with it needs the package no more.
"""

import gzip
import importlib.util
from pathlib import Path
from typing import Any

from didr_jax.types import InputError

PACKAGE = "open-clip-torch==3.3.0"
FILE = "bpe_simple_vocab_16e6.txt.gz"
SIZE = 49408  # of the vocabulary; the file lists more merges than CLIP uses
START, END = SIZE - 2, SIZE - 1  # ids of <|startoftext|> and <|endoftext|>
TOKENS = 77  # of a prompt


def published_file() -> Path:
    """Where the package keeps it; the package, which would ask for many others, is not imported.

    Raises:
      InputError: it is not installed.
    """
    found = importlib.util.find_spec("open_clip")
    folder = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
    if folder is None or not (folder / FILE).is_file():
        raise InputError(
            f"the tokenizers of this pipeline hold CLIP's vocabulary, which comes with a package: pip install --no-deps {PACKAGE}"
        )
    return folder / FILE


def published_tokenizer(**settings: Any):
    """A `CLIPTokenizer` of the published vocabulary; `settings`: its own, such as `pad_token`."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    with gzip.open(published_file(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : SIZE - 2 * len(symbols) - 2 + 1]  # after a line that names the version
    merges: Any = [tuple(line.split()) for line in lines]  # pairs, though its type says strings
    names = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges, model_max_length=TOKENS, **settings)
