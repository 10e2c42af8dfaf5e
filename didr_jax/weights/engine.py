"""The engine that reads tables of weight names (`rules`) in both directions, tensor by tensor.

`to_flax` places the tensors of a file as Flax parameters, on their devices; `weights_of` promises to, later; `to_torch`
names parameters as a torch state dict again.  All tensors that do not fit are told in one error.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.agreement import agreed
from didr_jax.checks import listed
from didr_jax.finite import all_finite
from didr_jax.types import InputError, PyTree, Weights
from didr_jax.weights.files import Tensors
from didr_jax.weights.rules import LAYOUTS, Rule


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
      InputError: naming every missing, unexpected and misshapen tensor at once, or the first with a value that is not
        finite (or not finite any more in `dtype`).
    """
    leaves, tree, sources = _matched(tensors, table, shapes)
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        placed = [shardings] * len(leaves)
    else:
        placed = tree.flatten_up_to(shardings)
    arrays = [
        _place(sources[path], leaf.shape, dtype or leaf.dtype, sharding, writer_of(table, path)[1])
        for (path, leaf), sharding in zip(leaves.items(), placed, strict=True)
    ]
    return tree.unflatten(arrays)


def check_fit(tensors: Tensors, table: Sequence[Rule], shapes: PyTree) -> None:
    """Raises the InputError that `to_flax` would, reading names and shapes only."""
    _matched(tensors, table, shapes)


def weights_of(
    open_tensors: Callable[[], Tensors],
    table: Sequence[Rule] | Callable[[Tensors], Sequence[Rule]],
    shapes: PyTree,
    *,
    where: str = "",
) -> Weights:
    """Parameters in a file that is opened only to be checked or loaded, and closed again.

    Args:
      open_tensors: opens the file, as `read_tensors` does.
      table: the model's rules, or how they follow from the names in the file.
      shapes: nested dict of `ShapeDtypeStruct`; their dtypes are those of the parameters.
      where: begins the error of tensors that do not fit, e.g. the file's path.
    """

    def told(function, *args, **options):
        try:
            tensors = open_tensors()
            return function(tensors, table(tensors) if callable(table) else table, *args, **options)
        except InputError as error:
            raise InputError(f"{where}: {error}" if where else str(error), error.details) from None

    def fill(shapes, shardings):
        load = lambda: told(to_flax, shapes, shardings=shardings)
        # Each process reads its own rows only: one of them may find what no other sees.
        spread = any(not place.is_fully_addressable for place in jax.tree.leaves(shardings))
        return agreed(load) if spread else load()

    return Weights(
        shapes,
        fill=fill,
        check=lambda: told(check_fit, shapes),
    )


def unfilled(shapes: PyTree) -> Weights:
    """Parameters of a published architecture for a plan, which reads nothing and loads nothing."""

    def fill(shapes, shardings):
        raise LookupError("these parameters are shapes without a file: a plan cannot be run")

    return Weights(shapes, fill)


def _matched(tensors: Tensors, table: Sequence[Rule], shapes: PyTree) -> tuple[dict, Any, dict]:
    """{Flax path: shape}, the tree's structure, and {Flax path: source}."""
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    sources, problems = _sources(tensors, table, leaves)
    if problems:
        said = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items())
        details = [f"{kind}: {name}" for kind, names in problems.items() for name in names]
        raise InputError(f"weights do not fit the model: {said}", details)
    return leaves, tree, sources


def _sources(tensors: Tensors, table: Sequence[Rule], leaves: dict) -> tuple[dict, dict[str, list[str]]]:
    """Flax path -> (stacked?, [view of each layer]), and names of what is wrong, by what it is."""
    found: defaultdict[str, dict[int, Any]] = defaultdict(dict)
    unexpected: list[str] = []
    misshapen: list[str] = []
    quantised: list[str] = []
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
            elif not _is_float(tensors[name].dtype) and _is_float(leaves[path].dtype):
                quantised.append(f"{name} ({np.dtype(tensors[name].dtype).name})")
            found[path].setdefault(i, view)
    sources: dict[str, tuple[bool, list]] = {}
    missing: list[str] = []
    for path, leaf in leaves.items():
        rule, name_of = writer_of(table, path)
        indices = range(leaf.shape[0] if rule.stacked else 1)
        missing += [name_of(i) for i in indices if i not in found[path]]
        sources[path] = (rule.stacked, [found[path].get(i) for i in indices])
    kinds = {
        "missing": sorted(set(missing)),
        "unexpected": unexpected,
        "misshapen": misshapen,
        "of integers where floating-point numbers belong (a quantised file; give the plain one)": list(dict.fromkeys(quantised)),
    }
    return sources, {kind: names for kind, names in kinds.items() if names}


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _piece(tensor: Any, part: tuple[int, int] | None) -> Any:
    if part is None:
        return tensor
    i, n = part
    size = tensor.shape[0] // n
    return tensor[i * size : (i + 1) * size] if size * n == tensor.shape[0] else tensor


def writer_of(table: Sequence[Rule], path: str) -> tuple[Rule, Callable[[int], str]]:
    """The row that writes a Flax leaf, and layer index -> torch name; raises LookupError if there is none."""
    for rule in table:
        if (name := rule.torch_name(path)) is not None:
            return rule, name
    raise LookupError(f"the weight table has no row for the parameter {path}")


def _place(source: tuple[bool, list], shape: tuple, dtype: Any, sharding, name_of: Callable[[int], str]) -> jax.Array:
    stacked, views = source

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        # A fresh buffer: the parameters may be donated, and the file's pages must not be.
        if not stacked:
            return _finite(_cast(views[0][index], dtype), name_of(0), views[0].dtype)
        picked = range(shape[0])[index[0]]
        out = np.empty((len(picked), *views[0][index[1:]].shape), dtype)
        for k, i in enumerate(picked):
            with np.errstate(over="ignore", invalid="ignore"):
                out[k] = views[i][index[1:]]
            _finite(out[k], name_of(i), views[i].dtype)
        return out

    return jax.make_array_from_callback(tuple(shape), sharding, read)


def _cast(values: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(values, dtype, order="C")


def _finite(values: np.ndarray, name: str, stored: Any) -> np.ndarray:
    """The values of the tensor `name`, which a file holds as `stored`; raises InputError unless all are finite."""
    if not all_finite(values):
        raise InputError(
            f"weights: {name} has values that are not finite as {values.dtype} (the file holds {np.dtype(stored)}); "
            "fetch it again, or choose a wider dtype"
        )
    return values


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
    pieces: defaultdict[str, dict[int, tuple]] = defaultdict(dict)
    for path, leaf in leaves:
        rule, name_of = writer_of(table, jax.tree_util.keystr(path, simple=True, separator="/"))
        for i in range(leaf.shape[0] if rule.stacked else 1):
            part, n = rule.part or (0, 1)
            pieces[name_of(i)][part] = (rule, n, leaf, i if rule.stacked else None)
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
