"""Names of repositories on the Hugging Face hub, wherever a path of weights, tokenizer or pipeline is taken.

    ORG/NAME                       the newest state, or the one that the cache has
    ORG/NAME@REVISION              a branch, a tag or a commit
    ORG/NAME:SUBFOLDER/FILE        a file or folder of it, also behind a revision
    …/models--ORG--NAME            a repository's folder in a cache, by its path

A path that exists always wins.  What the cache has is taken from there without asking; the rest is fetched by
huggingface_hub (whose environment variables hold: HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT), and only the
files that are read.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from didr_jax.checks import listed
from didr_jax.types import InputError
from didr_jax.weights.files import is_weights, picked, shards

INDEX = "model_index.json"  # of a pipeline
TEXTS = (".json", ".txt", ".model", ".jinja")  # configs and tokenizers
COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]*[\w-])(@(?P<revision>[^:@\s]+))?(:(?P<path>[^:]+))?")

Picker = Callable[[Iterable[str], str | None], str | None]


@dataclasses.dataclass(frozen=True)
class Files:
    """What of a repository is read.

    Attributes:
      weights: folders whose weights are, "" for the top; those that a pipeline does not have are passed over.
      texts: further folders, of which only configs and tokenizers are.
      pipeline: whether it is a pipeline as a whole, with a model_index.json.
      pick: `(names in a folder, variant) -> name` of the weights among them.
      otherwise: the repository where the knob is empty; empty: none.
    """

    weights: Sequence[str] = ()
    texts: Sequence[str] = ()
    pipeline: bool = False
    pick: Picker = picked
    otherwise: str = ""

    def chosen(self, names: Sequence[str], variant: str | None = None) -> list[str]:
        """Of all names in a repository those that are read."""
        keep = [INDEX] if self.pipeline and INDEX in names else []
        for folder in dict.fromkeys((*self.weights, *self.texts)):
            keep += [_join(folder, name) for name in _within(names, folder) if _is_text(name)]
        for folder in self.weights:
            inside = _within(names, folder)
            if (found := self.pick(inside, variant)) is not None:
                keep += [_join(folder, name) for name in (found, *shards(inside, found))]
        return list(dict.fromkeys(keep))

    def lacking(self, root: Path, variant: str | None = None) -> list[str]:
        """What is read and not below `root`, a folder of the cache, as far as can be told from there."""
        names = names_below(root)
        if self.pipeline:
            if INDEX not in names:
                return [INDEX]
            parts = _parts(root / INDEX)
            texts = [f for f in (*self.weights, *self.texts) if f in parts and not any(map(_is_text, _within(names, f)))]
            return texts + [f for f in self.weights if f in parts and not self._whole(root, f, variant)]
        if self.weights:
            return [] if any(self._whole(root, folder, variant) for folder in self.weights) else ["weights"]
        return [] if any(map(_is_text, names)) else ["configs"]

    def has_variant(self, root: Path, variant: str) -> bool:
        """Whether the weights below `root`, a folder of the cache or a file there, are all of the variant."""
        names = names_below(root)
        found = [self.pick(_within(names, folder), variant) for folder in self.weights]
        return all(f".{variant}." in name for name in found if name is not None)

    def _whole(self, root: Path, folder: str, variant: str | None) -> bool:
        inside = _within(names_below(root), folder)
        found = self.pick(inside, variant)
        if found is None or not found.endswith(".json"):
            return found is not None
        try:
            wanted = set(json.loads((root / folder / found).read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return True  # whoever reads it says what is wrong
        return wanted <= set(inside)


class HubName(NamedTuple):
    """`ORG/NAME@REVISION:PATH`; empty where nothing is said."""

    repo: str
    revision: str = ""
    path: str = ""

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f":{self.path}" if self.path else "")


def hub_name(text: str) -> HubName | None:
    """The name that a path stands for; None if it is there, or no name.  Never asks the network."""
    m = _NAME.fullmatch(text)
    if m is None or os.path.exists(os.path.expanduser(text)) or (is_weights(text) and not m["path"]):
        return None
    return HubName(m["repo"], m["revision"] or "", m["path"] or "")


def pinned(text: str, where: str) -> str:
    """The name with the commit that it stands for; anything else as it is.

    Args:
      text: a path or a name.
      where: the config key, which begins an error.

    Raises:
      InputError: the cache does not know it, and it cannot be asked for.
    """
    name = hub_name(text)
    if name is None or COMMIT.fullmatch(name.revision):
        return text
    known = _cached_commit(_folder(name), name.revision or "main")
    return str(name._replace(revision=known or _asked_commit(name, where)))


def local(text: str, files: Files, where: str, variant: str | None = None) -> str:
    """The path, in the cache or anywhere, of what `text` names; what is read of it is fetched if it must be.

    Args:
      text: a path, `~` and all, or a name.
      files: what is read.
      where: the config key, which begins an error.
      variant: as in `weights.files.read_tensors`.

    Raises:
      InputError: a name of what is neither here nor can be had; it says the command that fetches it.
    """
    name = hub_name(text)
    if name is None:
        return _behind(Path(os.path.expanduser(text)))
    commit = name.revision if COMMIT.fullmatch(name.revision) else _cached_commit(_folder(name), name.revision or "main")
    root = _folder(name) / "snapshots" / (commit or "none")
    whole = _is_whole(root, name.path, files, variant)
    if not whole or (variant and not files.has_variant(root / name.path, variant)):
        try:
            root = _fetched(name, files, where, variant)
        except InputError:
            if not whole:  # else the plain files are here, and it cannot be asked whether there are others
                raise
    return str(root / name.path)


def same_but_pinned(earlier: str, now: str) -> bool:
    """Whether `earlier` is the name `now` with a commit."""
    m = _NAME.fullmatch(earlier)
    if m is None or not COMMIT.fullmatch(m["revision"] or ""):
        return False
    return now == str(HubName(m["repo"], "", m["path"] or ""))


# ----------------------------------------------------------------------------------------- the cache


def _behind(path: Path) -> str:
    """The path, or the newest snapshot of a repository's folder in a cache."""
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        commit = _cached_commit(path, "main")
        only = sorted(snapshot for snapshot in (path / "snapshots").iterdir() if snapshot.is_dir())
        if commit is not None and (path / "snapshots" / commit) in only:
            return str(path / "snapshots" / commit)
        if len(only) == 1:
            return str(only[0])
        names = [snapshot.name for snapshot in only]
        raise InputError(f"{path} has the snapshots {listed(names) or 'none'}; give the path of one of them", names)
    folder, colon, inner = str(path).rpartition(":")
    if colon and not path.exists() and os.path.isdir(folder):
        return os.path.join(_behind(Path(folder)), inner)
    return str(path)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder(name: HubName) -> Path:
    """Of a repository in the cache."""
    return _cache() / f"models--{name.repo.replace('/', '--')}"


def _cached_commit(folder: Path, revision: str) -> str | None:
    """What a branch or a tag was when it was last fetched."""
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def _is_whole(root: Path, path: str, files: Files, variant: str | None) -> bool:
    place = root / path
    return place.is_file() or (place.is_dir() and not files.lacking(place, variant))


def names_below(root: Path) -> list[str]:
    """Of all files below a folder, with slashes."""
    found = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sorted(path.relative_to(root).as_posix() for path in found if path.exists())


def _within(names: Iterable[str], folder: str) -> list[str]:
    """Names of the files right in a folder."""
    start = f"{folder}/" if folder else ""
    return [name[len(start) :] for name in names if name.startswith(start) and "/" not in name[len(start) :]]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_text(name: str) -> bool:
    return name.endswith(TEXTS)


def _parts(index: Path) -> set[str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8-sig"))
        return {key for key, value in content.items() if isinstance(value, list) and value[-1] is not None}
    except (OSError, ValueError, AttributeError, IndexError):
        return set()


# --------------------------------------------------------------------------------------- the network


def _asked_commit(name: HubName, where: str) -> str:
    commit = _asking(name, where, lambda api: api.model_info(name.repo, revision=name.revision or None).sha)
    assert commit is not None, "the hub answers with a commit"
    ref = _folder(name) / "refs" / (name.revision or "main")
    with contextlib.suppress(OSError):  # of a cache that may only be read
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")  # as the library does where it is asked for a branch
    return commit


def _fetched(name: HubName, files: Files, where: str, variant: str | None) -> Path:
    """The snapshot's folder, with all that is read.  Each file is fetched once on a host: the library locks it."""

    def fetch(api):
        info = api.model_info(name.repo, revision=name.revision or None)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        if name.path in names:
            beside = os.path.dirname(name.path)
            keep = [name.path, *(_join(beside, text) for text in _within(names, beside) if _is_text(text))]
        else:
            start = f"{name.path}/" if name.path else ""
            below = [n[len(start) :] for n in names if n.startswith(start)]
            keep = [start + n for n in files.chosen(below, variant)]
        if not keep:
            raise FileNotFoundError(f"the repository has no {name.path or 'weights that are known by their names'}")
        return api.snapshot_download(name.repo, revision=info.sha, allow_patterns=[re.sub(r"([\[*?])", r"[\1]", n) for n in keep])

    return Path(_asking(name, where, fetch, files, variant))


def _asking(name: HubName, where: str, ask: Callable, files: Files = Files(), variant: str | None = None):
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise _not_here(name, where, "HF_HUB_OFFLINE is set", files, variant)
    try:
        return ask(HfApi())
    except Exception as error:  # of the network, of the hub, of a full disk: the library has its own for each
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _not_here(name, where, reason, files, variant) from error


def _not_here(name: HubName, where: str, why: str, files: Files, variant: str | None) -> InputError:
    return InputError(
        f"{where} = {str(name)!r}: no such path here, not (whole) in the Hugging Face cache {_cache()}, and not to be had ({why}); "
        f"where there is a network: {command(name, files, variant)}"
    )


def command(name: HubName, files: Files = Files(), variant: str | None = None) -> str:
    """What fetches it by hand, on one line."""
    words = ["hf", "download", name.repo]
    if is_weights(name.path):
        words.append(name.path)
    elif files.weights or files.texts:
        start = f"{name.path}/" if name.path else ""
        folders = list(dict.fromkeys((*files.weights, *files.texts)))
        if files.pipeline:
            words += ["--include", f'"{start}*.json"', *(f'"{start}{_join(f, "*.txt")}"' for f in folders if "token" in f)]
            words += [f'"{start}{_join(f, f"*{variant}*" if variant else "*.safetensors")}"' for f in files.weights]
        if not variant:
            words += ["--exclude", '"*fp16*"'] if files.pipeline else []
    return " ".join([*words, *(["--revision", name.revision] if name.revision else [])])
