"""Prompts to arrays, on the host: what text encoders and rewards take beside the image."""

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from didr_jax.json_files import read_object
from didr_jax.types import InputError

# Of `from_pretrained`: a folder's own code is never run, nor asked for on the terminal, and nothing is fetched.
LOCAL = {"trust_remote_code": False, "local_files_only": True}

Tokens = dict[str, np.ndarray]
Tokenizer = Callable[[Sequence[str]], Tokens]


class Vocabulary(NamedTuple):
    """What tells a model's vocabulary from others: the tokens that it marks texts with, and how a whole word is written."""

    model: str
    marks: tuple[str, ...]
    word: re.Pattern


CLIP = Vocabulary("CLIP", ("<|startoftext|>", "<|endoftext|>"), re.compile("([a-z]+)</w>"))
BERT = Vocabulary("BERT", ("[CLS]", "[SEP]", "[UNK]"), re.compile("([a-z]+)"))


def clip_tokenizer(folder: str | os.PathLike | None, length: int = 77, rows: int | None = None) -> Tokenizer:
    """CLIP's byte-pair tokenizer -> prompts to `{"ids": int32 [b, length]}`.

    Padded with the folder's own padding token (the states of padding condition SDXL) and truncated so that the
    end-of-text token stays last.  `folder`: any Hugging Face CLIP folder or a pipeline's `tokenizer*`; None: blank
    tokens, for plans.  `rows`: of the embedding table that the ids are for (`require_rows`); None: not known.
    """
    from transformers import CLIPTokenizer

    return functools.partial(_ids, _from_folder(CLIPTokenizer, folder, rows, CLIP), length, masked=False)


def bert_tokenizer(folder: str | os.PathLike | None, length: int = 35, rows: int | None = None) -> Tokenizer:
    """BERT's uncased word pieces -> prompts to `{"ids": int32 [b, length], "mask": bool [b, length]}`; None as above."""
    from transformers import BertTokenizer

    return functools.partial(_ids, _from_folder(BertTokenizer, folder, rows, BERT), length, masked=True)


def require_rows(tokenizer: Any, folder: str | os.PathLike, rows: int) -> None:
    """Raises InputError for a tokenizer of transformers that has a token beyond an embedding table of so many rows.

    Such an id is no error on a device: its embedding is NaN, or another token's.
    """
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= rows:
        raise InputError(
            f"tokenizer: {folder} has {token!r} as number {largest}, and the text encoder that it is for has {rows} "
            "tokens; give the tokenizer that came with the encoder"
        )


def utf8(prompts: Sequence[str]) -> Tokens:
    """Prompts as zero-padded bytes, `{"utf8": uint8 [b, n]}`: text for functions that want the words themselves.

    n is a multiple of 256, so that prompts of usual lengths share one compiled program.
    """
    raw = [p.encode() for p in prompts]
    width = 256 * max(1, -(-max(map(len, raw), default=0) // 256))
    return {"utf8": np.frombuffer(b"".join(p.ljust(width, b"\0") for p in raw), np.uint8).reshape(-1, width)}


def from_utf8(tokens: np.ndarray) -> list[str]:
    """The inverse of `utf8`: uint8 `[b, n]` -> b strings."""
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(tokens)]


FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
TRIED = 32  # words of a vocabulary


def has_tokenizer(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a tokenizer's files."""
    return any((Path(folder) / name).is_file() for name in FILES)


def _from_folder(kind: Any, folder: str | os.PathLike | None, rows: int | None, vocabulary: Vocabulary):
    if folder is None:
        return _blank
    if not Path(folder).is_dir():
        raise InputError(f"tokenizer: no such folder: {folder}; give one with tokenizer.json or vocabulary files")
    if not has_tokenizer(folder):
        raise InputError(f"tokenizer: {folder} holds none of {', '.join(FILES)}")
    require_vocabulary(folder, vocabulary)
    tokenizer = opened(kind, folder)
    _require_words(tokenizer, folder, vocabulary)
    if rows is not None:
        require_rows(tokenizer, folder, rows)
    return tokenizer


def require_vocabulary(folder: str | os.PathLike, vocabulary: Vocabulary) -> None:
    """Raises InputError for a folder with another model's tokenizer, of which transformers makes one that knows no word."""
    tokens = _stored(Path(folder))
    lacking = [mark for mark in vocabulary.marks if mark not in tokens]
    if not lacking and any(vocabulary.word.fullmatch(token) for token in tokens):
        return
    what = f"lacks {', '.join(lacking)}" if lacking else "has no words"
    raise InputError(
        f"tokenizer: {folder} is not a {vocabulary.model}'s: its vocabulary {what}; give the tokenizer that came with the model"
    )


def _stored(folder: Path) -> set[str]:
    """The tokens in a folder's files, the first of `FILES` that is there."""
    name = next(name for name in FILES if (folder / name).is_file())
    if name == "vocab.txt":
        return set((folder / name).read_text(encoding="utf-8", errors="replace").split("\n"))
    content = read_object(folder / name)
    if name == "vocab.json":
        return set(content)
    model, added = content.get("model"), content.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    more = [each.get("content") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    return {token for token in [*(vocab if isinstance(vocab, dict) else ()), *more] if isinstance(token, str)}


def _require_words(tokenizer: Any, folder: str | os.PathLike, vocabulary: Vocabulary) -> None:
    """Raises InputError for a tokenizer that makes none of its longest words one token, as without its merges."""
    ids = {m[1]: i for token, i in tokenizer.get_vocab().items() if (m := vocabulary.word.fullmatch(token)) and len(m[1]) > 1}
    words = sorted(ids, key=len)[-TRIED:]
    try:
        whole = [tokenizer(word, add_special_tokens=False)["input_ids"] == [ids[word]] for word in words]
    except Exception as error:  # what its settings ask for is of any kind
        reason = " ".join(f"{error or type(error).__name__}".split())[:200]
        raise InputError(f"tokenizer: that of {folder} does not work ({reason}); fetch it again") from error
    if words and not any(whole):
        raise InputError(
            f"tokenizer: {folder} makes pieces of {', '.join(words[-3:])}, words of its own vocabulary: its merges, or other "
            "settings, are not whole; fetch it again"
        )


def opened(kind: Any, folder: str | os.PathLike) -> Any:
    """A tokenizer of transformers, tried on a word.

    Raises:
      InputError: `folder` holds none that works.
    """
    try:
        tokenizer = kind.from_pretrained(folder, **LOCAL)
        ids = tokenizer(["a"], padding="max_length", truncation=True, max_length=8, return_tensors="np")["input_ids"]
        if ids.shape != (1, 8) or ids.min() < 0:
            raise ValueError(f"it makes {ids.tolist()} of a word")
        return tokenizer
    except BaseException as error:  # transformers raises many kinds, and a panic of tokenizers is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        reason = " ".join(f"{error or type(error).__name__}".split())[:200]
        raise InputError(f"tokenizer: cannot be read from {folder} ({reason}); fetch it again") from error


def _blank(prompts: list[str], *, max_length: int, **_) -> Tokens:
    blank = np.zeros((len(prompts), max_length), np.int32)
    return {"input_ids": blank, "attention_mask": blank}


def _ids(tokenizer, length: int, prompts: Sequence[str], *, masked: bool) -> Tokens:
    out = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="np")
    tokens = {"ids": out["input_ids"].astype(np.int32)}
    return {**tokens, "mask": out["attention_mask"].astype(bool)} if masked else tokens
