"""Tables of weight names, read in both directions.

A table is a list of `Rule`s.  Each says how a torch tensor `down_blocks.0.resnets.1.conv1.weight` is
called in the Flax parameters, `down_blocks_0/resnets_1/conv1/kernel`, and how its axes are laid out:

    TABLE = [*layer("down_blocks.(\\d+).resnets.(\\d+).(conv1|conv2)", "down_blocks_{}/resnets_{}/{}"),
             *norm("conv_norm_out", "norm_out")]

The pattern is literal text (a dot is a dot) with regular expressions in groups; the n-th group fills
the n-th `{}` of the target.  Because nothing but groups varies, the same row also reads from right to
left.  Where several rows lead to one Flax leaf, all are understood on reading (names of older
checkpoints) and the first is written.

* A group `(?P<layer>\\d+)` is the index of a scanned layer: it has no `{}`, and the tensors of all
  layers are stacked on a new first axis of the Flax leaf.
* `part=(i, n)` takes the i-th of n equal pieces of the torch tensor's first axis (a fused q, k, v); the
  n rows share one pattern, and writing joins the pieces again.
"""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from didr_jax.types import InputError, PyTree
from didr_jax.weights.files import Tensors, read_tensors, write_safetensors

__all__ = [
    "Rule", "layer", "norm", "embedding", "ignore",
    "check_fit", "read_tensors", "to_flax", "to_torch", "write_safetensors",
]  # fmt: skip

# name -> (torch -> flax, flax -> torch).  All are views: no bytes are read or copied.
LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "as_is": (lambda w: w, lambda w: w),
    # Linear [out, in] <-> [in, out]; Conv2d [out, in, h, w] <-> [h, w, in, out]; 1-D and 3-D likewise.
    "kernel": (
        lambda w: w.transpose(*range(2, w.ndim), 1, 0),
        lambda w: w.transpose(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2)),
    ),
    # A 1x1 convolution kept as a matrix, [out, in, 1, 1] <-> [in, out].
    "conv_1x1": (lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None]),
    # A parameter with a leading axis of length one on the torch side only, [1, ...] <-> [...].
    "squeeze": (lambda w: w[0], lambda w: w[None]),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table: torch name pattern, Flax path (None: ignored on reading), layout, part."""

    pattern: str
    target: str | None
    layout: str = "as_is"
    part: tuple[int, int] | None = None

    def __post_init__(self):
        self._pieces  # a row that cannot be read both ways is refused where it is written

    @functools.cached_property
    def _pieces(self) -> list[str]:
        """The pattern as [literal, group, literal, ..., literal]."""
        pieces = re.split(r"(\((?:[^()\\]|\\.)*\))", self.pattern)
        pieces[::2] = [text.replace(r"\.", ".") for text in pieces[::2]]
        groups = [g for g in pieces[1::2] if not g.startswith("(?P<layer>")]
        if len(pieces) // 2 - len(groups) > 1 or any(c in "".join(pieces[::2]) for c in "()[]{}*+?|^$\\"):
            raise ValueError(f"{self.pattern!r}: only literal text and groups without groups inside")
        if self.target is not None and self.target.count("{}") != len(groups):
            raise ValueError(f"{self.pattern!r} -> {self.target!r}: one {{}} for each group")
        return pieces

    @functools.cached_property
    def _torch_name(self) -> re.Pattern:
        return re.compile("".join(re.escape(p) if i % 2 == 0 else p for i, p in enumerate(self._pieces)))

    @functools.cached_property
    def _flax_path(self) -> re.Pattern:
        groups = iter([g for g in self._pieces[1::2] if not g.startswith("(?P<layer>")])
        first, *rest = map(re.escape, self.target.split("{}"))
        return re.compile(first + "".join(next(groups) + text for text in rest))

    @property
    def stacked(self) -> bool:
        return any(g.startswith("(?P<layer>") for g in self._pieces[1::2])

    def flax_path(self, torch_name: str) -> tuple[str | None, int] | None:
        """(Flax path, layer index) of a torch tensor; None if the row is not about it."""
        m = self._torch_name.fullmatch(torch_name)
        if m is None:
            return None
        index = m.re.groupindex.get("layer")
        values = [v for i, v in enumerate(m.groups(), 1) if i != index]
        return self.target and self.target.format(*values), int(m["layer"]) if index else 0

    def torch_name(self, flax_path: str) -> Callable[[int], str] | None:
        """Layer index -> torch name of a Flax leaf; None if the row is not about it."""
        m = None if self.target is None else self._flax_path.fullmatch(flax_path)
        if m is None:
            return None

        def name(i: int) -> str:
            values = iter(m.groups())
            fill = (str(i) if p.startswith("(?P<layer>") else next(values) for p in self._pieces[1::2])
            return "".join(p if k % 2 == 0 else next(fill) for k, p in enumerate(self._pieces))

        return name


def layer(pattern: str, target: str, *, layout: str = "kernel") -> list[Rule]:
    """A Linear or Conv with or without bias."""
    return [Rule(f"{pattern}.weight", f"{target}/kernel", layout), Rule(f"{pattern}.bias", f"{target}/bias")]


def norm(pattern: str, target: str) -> list[Rule]:
    """A LayerNorm, GroupNorm or RMSNorm with or without bias."""
    return [Rule(f"{pattern}.weight", f"{target}/scale"), Rule(f"{pattern}.bias", f"{target}/bias")]


def embedding(pattern: str, target: str) -> list[Rule]:
    """An Embedding table."""
    return [Rule(f"{pattern}.weight", f"{target}/embedding")]


def ignore(pattern: str) -> list[Rule]:
    """Tensors of the file that the Flax model has no use for (position_ids and the like)."""
    return [Rule(pattern, None)]


def to_flax(
    tensors: Tensors,
    table: Sequence[Rule],
    shapes: PyTree,
    *,
    shardings: PyTree | jax.sharding.Sharding | None = None,
    dtype: Any = None,
) -> PyTree:
    """Places a torch state dict as the parameters of a Flax module.

    Leaf by leaf: a shard's bytes go from the (memory-mapped) file to its device, so the host never
    holds more than one leaf, and each process reads only what its devices need.

    Args:
      tensors: name -> array, as `read_tensors` gives.
      table: the model's rules.
      shapes: nested dict of `ShapeDtypeStruct`, from `jax.eval_shape` of the module's init.
      shardings: one sharding for all leaves, or a tree like `shapes`.  None: the default device.
      dtype: of the parameters.  None: what `shapes` says.

    Returns:
      A nested dict of `jax.Array` with the structure of `shapes`.

    Raises:
      InputError: naming every missing, unexpected and misshapen tensor at once.
    """
    leaves, tree, sources = _matched(tensors, table, shapes)
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        placed = [shardings] * len(leaves)
    else:
        placed = tree.flatten_up_to(shardings)
    arrays = [
        _place(sources[path], leaf.shape, dtype or leaf.dtype, sharding)
        for (path, leaf), sharding in zip(leaves.items(), placed, strict=True)
    ]
    return tree.unflatten(arrays)


def check_fit(tensors: Tensors, table: Sequence[Rule], shapes: PyTree) -> None:
    """Raises the InputError that `to_flax` would, reading names and shapes only."""
    _matched(tensors, table, shapes)


def _matched(tensors: Tensors, table: Sequence[Rule], shapes: PyTree) -> tuple[dict, Any, dict]:
    """{Flax path: shape}, the tree's structure, and {Flax path: source}."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    sources, problems = _sources(tensors, table, leaves)
    if problems:
        raise InputError(f"weights do not fit the model: {'; '.join(problems)}")
    return leaves, tree, sources


def _sources(tensors: Tensors, table: Sequence[Rule], leaves: dict) -> tuple[dict, list[str]]:
    """Flax path -> (stacked?, [view of each layer]), and what is wrong."""
    found, unexpected, misshapen = defaultdict(dict), [], []
    for name in tensors:
        matches = [(r, hit) for r in table if (hit := r.flax_path(name)) is not None]
        # A fused tensor feeds all rows of its pattern; anything else only its first row.
        matches = [(r, hit) for r, hit in matches if r.pattern == matches[0][0].pattern]
        if not matches or any(path is not None and path not in leaves for _, (path, _) in matches):
            unexpected.append(name)
            continue
        for rule, (path, i) in matches:
            if path is None:
                continue
            shape = leaves[path].shape[1:] if rule.stacked else leaves[path].shape
            try:
                view = LAYOUTS[rule.layout][0](_piece(tensors[name], rule.part))
            except (ValueError, IndexError):
                view = tensors[name]  # wrong rank for the layout
            if i in found[path] or (rule.stacked and i >= leaves[path].shape[0]):
                unexpected.append(name)  # a second name for the same leaf, or a layer too many
            elif tuple(view.shape) != tuple(shape):
                misshapen.append(f"{name} {list(tensors[name].shape)} for {path} {list(shape)}")
            found[path].setdefault(i, view)
    sources, missing = {}, []
    for path, leaf in leaves.items():
        rule, name = _writer(table, path)
        indices = range(leaf.shape[0] if rule.stacked else 1)
        missing += [name(i) for i in indices if i not in found[path]]
        sources[path] = (rule.stacked, [found[path].get(i) for i in indices])
    kinds = {"missing": sorted(set(missing)), "unexpected": unexpected, "misshapen": misshapen}
    return sources, [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]


def _piece(tensor: Any, part: tuple[int, int] | None) -> Any:
    if part is None:
        return tensor
    i, n = part
    size = tensor.shape[0] // n
    return tensor[i * size : (i + 1) * size] if size * n == tensor.shape[0] else tensor


def _writer(table: Sequence[Rule], path: str) -> tuple[Rule, Callable[[int], str]]:
    for rule in table:
        if (name := rule.torch_name(path)) is not None:
            return rule, name
    raise LookupError(f"the weight table has no row for the parameter {path}")


def _place(source: tuple[bool, list], shape: tuple, dtype: Any, sharding) -> jax.Array:
    stacked, views = source

    def read(index: tuple[slice, ...]) -> np.ndarray:
        # A fresh buffer: the parameters may be donated, and the file's pages must not be.
        if not stacked:
            return np.array(views[0][index], dtype, order="C")
        picked = range(shape[0])[index[0]]
        out = np.empty((len(picked), *views[0][index[1:]].shape), dtype)
        for k, i in enumerate(picked):
            out[k] = views[i][index[1:]]
        return out

    return jax.make_array_from_callback(tuple(shape), sharding, read)


class _Lazy:
    """A torch tensor made of Flax leaves, brought to the host by `np.asarray`."""

    def __init__(self, shape: tuple, dtype: Any, read: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._read = tuple(shape), np.dtype(dtype), read

    def __array__(self, dtype=None, copy=None):
        value = self._read()
        return value if dtype is None else value.astype(dtype)


def to_torch(params: PyTree, table: Sequence[Rule], *, dtype: Any = None) -> Tensors:
    """Names a Flax parameter tree as a torch state dict; the inverse of `to_flax`.

    Args:
      params: nested dict of arrays, sharded or not.  Arrays that span processes are gathered, so
        every process must then ask for the tensors in the same order.
      table: the model's rules.
      dtype: of the result, e.g. `jnp.float16`.  None: as in `params`.

    Returns:
      name -> lazy tensor: `np.asarray(tensors[name])` fetches that one.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    pieces = defaultdict(dict)
    for path, leaf in leaves:
        rule, name = _writer(table, jax.tree_util.keystr(path, simple=True, separator="/"))
        for i in range(leaf.shape[0] if rule.stacked else 1):
            part, n = rule.part or (0, 1)
            pieces[name(i)][part] = (rule, n, leaf, i if rule.stacked else None)
    for name, parts in pieces.items():
        if len(parts) != next(iter(parts.values()))[1]:
            raise LookupError(f"only some of the parts of {name} are in the parameters")
    return {name: _join([parts[i] for i in sorted(parts)], dtype) for name, parts in pieces.items()}


def _join(parts: list[tuple], dtype: Any) -> _Lazy:
    rule, n, leaf, i = parts[0]
    inverse = LAYOUTS[rule.layout][1]
    one = leaf.shape if i is None else leaf.shape[1:]
    shape = inverse(np.broadcast_to(np.int8(0), one)).shape  # a view of one byte, to learn the shape
    if n > 1:
        shape = (n * shape[0], *shape[1:])

    def read() -> np.ndarray:
        values = [inverse(_host(leaf if i is None else leaf[i])) for _, _, leaf, i in parts]
        value = values[0] if n == 1 else np.concatenate(values)
        return np.asarray(value, dtype or leaf.dtype, order="C")

    return _Lazy(shape, dtype or leaf.dtype, read)


def _host(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
