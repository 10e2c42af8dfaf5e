"""Tensor files: name -> array mappings read from and written to Hugging Face style checkpoints.

A *tensor* here is anything with `.shape`, `.dtype` and `np.asarray(...)`.  Reading maps the file
into memory, so a tensor costs nothing until its bytes are used, and slicing it reads only the slice.
"""

import json
import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from didr_jax.checks import listed
from didr_jax.json_files import read_object
from didr_jax.paths import lies_in
from didr_jax.types import InputError
from didr_jax.weights.header import DTYPES, read_header
from didr_jax.weights.states import chosen_state
from didr_jax.whole_files import whole_file, write_json

Tensors = Mapping[str, Any]

_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "open_clip_pytorch_model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def read_tensors(path: str | os.PathLike, *, variant: str | None = None, state: str | None = None) -> Tensors:
    """Opens a checkpoint as a lazy mapping name -> numpy array.

    Args:
      path: a `.safetensors` file (a bare UNet file, say), an index `*.json` of a sharded checkpoint, a
        torch pickle (`.bin`, `.pt`, `.pth`, `.ckpt`; weights-only, and only where torch is
        installed), or a folder that holds one of them under diffusers' or transformers' names.
      variant: `"fp16"` picks `*.fp16.safetensors` in a folder, or, where there is none, the plain file.  Without it the
        plain files are taken, or, where there are none, the only variant that is there.
      state: of a torch pickle that holds several networks, which (`weights.states.choose`).

    Raises:
      InputError: nothing readable there, a shard is absent, a file is cut short or damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = _pick(path, variant)
    if not path.is_file():
        raise InputError(f"weights: no such file or folder: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".json":
        return _read_index(path)
    if path.suffix in _PICKLES:
        return _read_pickle(path, state)
    raise InputError(f"weights: {path} is none of .safetensors, .json (index), {', '.join(_PICKLES)}")


def picked(names: Iterable[str], variant: str | None) -> str | None:
    """Of the names in a folder that of its weights: a file, or the index of a sharded one; None if there is none.

    The variant's where it is there, else the plain one, else the only variant (where none was asked for).
    """
    there = set(names)
    for tag in (f".{variant}", "") if variant else ("",):
        for kind in ("safetensors", "bin", "pt"):
            for stem in _STEMS:
                for name in (f"{stem}{tag}.{kind}", f"{stem}.{kind}.index{tag}.json"):
                    if name in there:
                        return name
    named = re.compile(rf"({'|'.join(_STEMS)})(\.\w+\.safetensors|\.safetensors\.index\.\w+\.json)")
    only = [name for name in there if named.fullmatch(name)]
    return only[0] if variant is None and len(only) == 1 else None


def shards(names: Iterable[str], index: str) -> list[str]:
    """Of the names in a folder those of the shards that belong to an index, by their form."""
    m = re.fullmatch(r"(.+)\.(safetensors|bin|pt)\.index(\.\w+)?\.json", index)
    if m is None:
        return []
    stem, kind, tag = re.escape(m[1]), m[2], re.escape(m[3] or "")
    form = re.compile(rf"{stem}({tag})?-\d+-of-\d+({tag})?\.{kind}")
    return sorted(name for name in names if (hit := form.fullmatch(name)) and (not tag or hit[1] or hit[2]))


def require_variant(variant: str, folders: Iterable[Path]) -> None:
    """Raises InputError if no folder of those that are there has a file of the variant: a slip of the finger, not a choice."""
    names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
    tagged = re.compile(rf"({'|'.join(_STEMS)})(\.(?P<file>\w+)\.\w+|\.\w+\.index\.(?P<index>\w+)\.json)")
    there = sorted({m["file"] or m["index"] for name in names if (m := tagged.fullmatch(name))})
    if names and variant not in there:
        raise InputError(
            f"config.weights.variant = {variant!r}: no folder has files of that variant; there "
            + (f"are {listed(there)}, and the plain ones" if there else "are the plain ones only: leave it empty")
        )


def is_weights(name: str) -> bool:
    """Whether a path is that of a file of tensors, by its ending."""
    return name.endswith((".safetensors", *_PICKLES))


def _pick(folder: Path, variant: str | None) -> Path:
    names = sorted(path.name for path in folder.iterdir())
    if (found := picked(names, variant)) is not None:
        return folder / found
    tag = f".{variant}" if variant else ""
    raise InputError(
        f"weights: no {_STEMS[0]}{tag}.safetensors, model{tag}.safetensors or index of them in {folder}"
        f" (it holds {listed(names) or 'nothing'}); give the file itself or set the variant",
        names,
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        start, header = read_header(path)
        whole = path.stat().st_size
        data = np.memmap(path, np.uint8, mode="r", offset=start) if whole > start else np.empty(0, np.uint8)
        return {name: data[s.begin : s.end].view(s.dtype).reshape(s.shape) for name, s in header.items()}
    except (ValueError, OSError, MemoryError) as e:
        reason = " ".join(str(e).split())[:300]
        raise InputError(f"weights: {path} is not a whole safetensors file ({reason}); fetch it again") from e


def _read_index(path: Path) -> dict[str, np.ndarray]:
    shard_of = read_object(path).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise InputError(f"weights: {path} is not an index of shards (no weight_map of names)")
    names = sorted(set(shard_of.values()))
    if odd := [name for name in names if not name.endswith((".safetensors", *_PICKLES)) or not name.isprintable()]:
        raise InputError(f"weights: {path} names shards that are no tensor files: {listed(list(map(repr, odd)))}", odd)
    if outside := [name for name in names if not _inside(path, name)]:
        raise InputError(
            f"weights: {path} names shards outside of its folder: {listed(outside)}; put the files themselves beside it", outside
        )
    absent = [name[:200] for name in names if not os.path.isfile(path.parent / name)]  # names can be too long for a file
    if absent:
        raise InputError(f"weights: {path} names shards that are not beside it: {listed(absent)}", absent)
    shards = {name: read_tensors(path.parent / name) for name in names}
    astray = sorted(name for name, s in shard_of.items() if name not in shards[s])
    if astray:
        raise InputError(f"weights: {path} promises tensors its shards lack: {listed(astray)}", astray)
    return {name: shards[s][name] for name, s in shard_of.items()}


def _inside(index: Path, name: str) -> bool:
    """Whether a shard is a file of the index's folder, or lies where the index itself does behind its link: the hub's
    cache keeps all files of a repository in one folder and links them."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    homes = index.parent, os.path.dirname(os.path.realpath(index))
    return any(lies_in(index.parent / name, home) for home in homes)


def _read_pickle(path: Path, key: str | None = None) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"weights: {path} is a torch pickle; install torch, or convert it once where torch is: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'FILE.safetensors')"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as e:  # torch raises half a dozen kinds here, all meaning the same to the user
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"weights: {path} cannot be read as weights only ({reason})") from e
    if isinstance(state, dict):
        state = chosen_state(state, lambda value: isinstance(value, torch.Tensor), key)

    def numpy(t):
        if t.dtype == torch.bfloat16:  # numpy has no bfloat16 of its own
            return t.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return t.detach().numpy()

    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(t, torch.Tensor) for k, t in state.items())
    if not named:
        raise InputError(f"weights: {path} holds something else than a state dict of tensors")
    try:
        return {name: numpy(t) for name, t in state.items()}
    except (TypeError, RuntimeError, ValueError) as e:  # sparse, quantised, or without values
        raise InputError(f"weights: {path} holds tensors that are no plain arrays ({str(e).splitlines()[0]})") from e


def write_safetensors(
    path: str | os.PathLike, tensors: Tensors, *, max_bytes: int | None = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a checkpoint that `from_pretrained` of diffusers and transformers accepts.

    Tensors are brought to the host one at a time.

    Args:
      path: the `.safetensors` file; its folder is made.
      tensors: name -> array (numpy, jax, or lazy as `engine.to_torch` gives).
      max_bytes: largest shard.  Beyond it the file is split into `STEM-00001-of-0000N.safetensors`
        with an index `STEM.safetensors.index.json`.  None: one file.
      metadata: what the files say beside their tensors.

    Raises:
      CannotSave: a file could not be written; each is there whole or not at all.
    """
    path = Path(path)
    parts = _split(tensors, max_bytes)
    if len(parts) == 1:
        return _write_one(path, tensors, parts[0], metadata)
    weight_map = {}
    for i, names in enumerate(parts):
        name = f"{path.stem}-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        _write_one(path.parent / name, tensors, names, metadata)
        weight_map.update(dict.fromkeys(names, name))
    index = {"metadata": {"total_size": sum(map(_nbytes, tensors.values()))}, "weight_map": weight_map}
    write_json(path.with_name(path.name + ".index.json"), index, sort_keys=True)


def _nbytes(tensor: Any) -> int:
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def _split(tensors: Tensors, max_bytes: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    most = room = max_bytes or math.inf
    for name in sorted(tensors):
        size = _nbytes(tensors[name])
        if shards[-1] and size > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


def _write_one(path: Path, tensors: Tensors, names: Iterable[str], metadata: Mapping[str, str] | None = None) -> None:
    # Wider types first, so that each tensor starts on a multiple of its item size.
    names = sorted(names, key=lambda n: (-np.dtype(tensors[n].dtype).itemsize, n))
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    start = 0
    for name in names:
        stop = start + _nbytes(tensors[name])
        dtype = _NAMES[np.dtype(tensors[name].dtype)]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [start, stop]}
        start = stop
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with whole_file(path, binary=True) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            file.write(np.ascontiguousarray(np.asarray(tensors[name])).tobytes())
