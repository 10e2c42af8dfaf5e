"""Where everything lives: the device mesh, and which axis of which array is split over it.

The mesh has three axes.  `data` copies parameters and splits the batch; `fsdp` splits both; `tensor`
splits parameters only.  A table of (regular expression, axes) rows decides for every leaf of a training
state, by its path; the first row that matches wins.  Optimiser moments carry their parameter's path,
so one row places a parameter, its average and its moments alike.

A row is written `regex=axes`, where axes are

    largest         the largest dimension that the fsdp axis divides; small leaves stay whole
    whole           a copy everywhere
    fsdp,-,tensor   one entry for each of the *last* dimensions ("-" not split, "a+b" over both), so that
                    the row also fits a stack of layers with its extra leading dimension

XLA inserts the communication (GSPMD).  Random numbers derive from (seed, step) and the position in the
batch, so what is computed does not depend on the mesh or on the number of processes.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from didr_jax.training.host_memory import HOST, waits_on_host
from didr_jax.types import InputError, PyTree, Weights

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the mesh axes over which the rows of a batch are spread
DEFAULT_RULE = ".*=largest"
WAITING = ("ema/", "opt/", "opt_generator/", "opt_ta/")  # what of a state (`training.state`) only an update reads


def make_mesh(section, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `config.mesh` over all devices of all processes, or over other `devices`.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    sizes = mesh_sizes(section, jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_sizes(section, devices: int) -> list[int]:
    """The sizes in `config.mesh` of the axes; one may be −1: what is left.

    Raises:
      InputError: they do not multiply to the number of devices.
    """
    sizes = [section[axis] for axis in AXES]
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=False))
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        if known > 0 and devices % known == 0:
            sizes[sizes.index(-1)] = devices // known
    if min(sizes) < 1 or math.prod(sizes) != devices:
        raise InputError(f"config.mesh ({asked}) does not fit {devices} devices: the sizes must multiply to {devices}")
    return sizes


def check_batches(config, mesh: Mesh) -> None:
    """Raises InputError for a stage whose micro-batches cannot be spread evenly over the mesh."""
    ways = math.prod(mesh.shape[axis] for axis in ROWS)
    for name in config.stages:
        size, parts = config[name].batch_size, config[name].micro_batches
        if size % (parts * ways):
            raise InputError(
                f"config.{name}.batch_size = {size} cannot be split into {parts} micro-batches over {ways} devices "
                f"(mesh data × fsdp); use a multiple of {parts * ways}"
            )


# ---------------------------------------------------------------------------------------------- rules


def parse_rules(rows) -> list[tuple[re.Pattern, str]]:
    """The table of `config.mesh.rules`, followed by the default row.

    Raises:
      InputError: a row that is not `regex=axes`, or names an axis that the mesh does not have.
    """
    table = []
    for row in (*rows, DEFAULT_RULE):
        pattern, _, axes = row.rpartition("=")
        unknown = set(re.split(r"[,+]", axes)) - {*AXES, "-", "largest", "whole"}
        table.append((_compiled("rules", row, pattern), axes))
        if not pattern or unknown:
            raise InputError(f"config.mesh.rules: {row!r} must read regex=axes, with axes of {', '.join(AXES)} or -")
    return table


def _compiled(key: str, row: str, pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"config.mesh.{key}: {row!r} is not a regular expression ({error})") from None


def spec_of(path: str, shape: tuple[int, ...], table, mesh: Mesh, min_size: int) -> PartitionSpec:
    """How the table splits a leaf.

    Args:
      path: names from the root, joined by "/", e.g. "opt_ta/1/0/mu/block0/Dense_0/kernel".
      shape: of the leaf.
      table: of `parse_rules`.
      mesh: for the sizes of its axes.
      min_size: leaves with fewer entries are not split by `largest`.

    Raises:
      InputError: the row that matches names an axis whose size does not divide its dimension.
    """
    axes = next(axes for pattern, axes in table if pattern.search(path))
    if axes == "whole" or not shape:
        return PartitionSpec()
    if axes == "largest":
        fits = [d for d, n in enumerate(shape) if n % mesh.shape["fsdp"] == 0]
        if mesh.shape["fsdp"] == 1 or math.prod(shape) < min_size or not fits:
            return PartitionSpec()
        split = max(fits, key=lambda d: shape[d])
        return PartitionSpec(*("fsdp" if d == split else None for d in range(len(shape))))
    entries: list[tuple[str, ...] | None] = [None if a == "-" else tuple(a.split("+")) for a in axes.split(",")]
    if len(entries) > len(shape):  # e.g. the factored moments of Adafactor, which have lost a dimension
        return PartitionSpec()
    entries = [*[None] * (len(shape) - len(entries)), *entries]
    for n, names in zip(shape, entries, strict=False):
        if names and n % math.prod(mesh.shape[name] for name in names):
            raise InputError(f"config.mesh.rules: {axes} cannot split {path} {shape}: {n} is not divisible")
    return PartitionSpec(*entries)


def path_of(keys) -> str:
    """ "a/b/0" of a pytree path."""
    return "/".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in keys)


def parse_host(patterns) -> list[re.Pattern]:
    """`config.mesh.host`; raises InputError for one that is no regular expression."""
    return [_compiled("host", pattern, pattern) for pattern in patterns]


def shardings(tree: PyTree, config, mesh: Mesh, host: Sequence[re.Pattern] = ()) -> PyTree:
    """A sharding for every leaf (anything with a shape) of `tree`, by the rules of `config.mesh`.

    `host`: of the averages and the optimisers' states of a training state, leaves of `mesh.min_size` entries whose paths match one
    of these lie in the host's memory (`host_memory`).  Parameters, which every pass reads, never do.
    """
    table = parse_rules(config.mesh.rules)

    def place(keys, leaf):
        path, shape = path_of(keys), np.shape(leaf)
        may_wait = path.startswith(WAITING) and math.prod(shape) >= config.mesh.min_size
        away = may_wait and any(pattern.search(path) for pattern in host)
        spec = spec_of(path, shape, table, mesh, config.mesh.min_size)
        return NamedSharding(mesh, spec, memory_kind=HOST if away else None)

    return jax.tree_util.tree_map_with_path(place, tree)


def state_shardings(state: PyTree, config, mesh: Mesh) -> PyTree:
    """`shardings` of a training state, parts of which `config.mesh.host` may leave to the host's memory."""
    return shardings(state, config, mesh, parse_host(config.mesh.host))


def with_places(shapes: PyTree, places: PyTree) -> PyTree:
    """`jax.ShapeDtypeStruct`s of `shapes` in their places."""
    return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, places)


# -------------------------------------------------------------------------------------------- placing


def bytes_per_device(tree: PyTree, on_host: bool = False) -> int:
    """Of arrays or shapes with shardings, on the device that holds most, or for it in its host's memory."""
    leaves = [a for a in jax.tree.leaves(tree) if waits_on_host(a) == on_host]
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)


def create(init: Callable[[], Any], places: PyTree) -> PyTree:
    """`init()`, made shard by shard in its places: no device ever holds the whole.

    `places`: a sharding for each leaf, one for all, or None for the default device.

    Arrays that `init` closes over become arguments of the compiled program, since a constant may
    neither be large nor span processes.  They are let go of afterwards: a function of its own is traced, since JAX
    remembers what it traced for as long as the function lives.
    """
    closed, out = jax.make_jaxpr(lambda: init(), return_shape=True)()
    each = places is not None and not isinstance(places, jax.sharding.Sharding)
    out_shardings = jax.tree.leaves(places) if each else places
    run = jax.jit(lambda consts: jax.core.eval_jaxpr(closed.jaxpr, consts), out_shardings=out_shardings)
    leaves = run([_as_argument(constant) for constant in closed.consts])
    return settle(jax.tree.unflatten(jax.tree.structure(out), leaves))


def _as_argument(constant):
    """In a run of several processes, an array of this process alone enters a common program by value."""
    lone = isinstance(constant, jax.Array) and constant.is_fully_addressable and jax.process_count() > 1
    if lone and not jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key):
        return np.asarray(constant)
    return constant


def put(tree: PyTree, places: PyTree) -> PyTree:
    """Moves arrays to their places; every process must hold the same values, or the same global array."""

    if jax.process_count() == 1:
        return jax.device_put(tree, places)

    def spread(leaf, place):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, place, lambda index: host[index])

    tree = jax.tree.map(spread, tree, places)
    there = jax.tree.map(lambda leaf, place: leaf.sharding == place, tree, places)
    # what is to move moves in one program: several that communicate could overtake each other
    return tree if all(jax.tree.leaves(there)) else settle(jax.jit(lambda x: x, out_shardings=places)(tree))


def made(init: Callable[[], PyTree]) -> Weights:
    """Parameters that `init` makes, once they are wanted, in their places; traceable."""

    def fill(shapes, places):
        return create(lambda: jax.tree.map(lambda a, wanted: a.astype(wanted.dtype), init(), shapes), places)

    return Weights(jax.eval_shape(init), fill)


def held(arrays: PyTree) -> Weights:
    """Parameters that are here already; loading moves them to other places if need be."""

    def fill(shapes, places):
        kept = jax.tree.map(lambda a, wanted: a if a.dtype == wanted.dtype else a.astype(wanted.dtype), arrays, shapes)
        if places is None:
            return kept
        one_for_all = isinstance(places, jax.sharding.Sharding)
        return put(kept, jax.tree.map(lambda _: places, kept) if one_for_all else places)

    return Weights(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays), fill)


def put_batch(batch: PyTree, mesh: Mesh, axis: int) -> PyTree:
    """A global batch from equal host arrays in every process; dimension `axis` holds the samples.

    Each process copies to its devices only the rows that they compute.
    """
    place = NamedSharding(mesh, PartitionSpec(*[None] * axis, ROWS))
    return put(batch, jax.tree.map(lambda _: place, batch))


def put_rows(read: Callable[[np.ndarray], PyTree], n: int, mesh: Mesh, axis: int) -> PyTree:
    """A global batch of n samples, of which each process reads only the rows that its devices compute.

    Args:
      read: `rows [k] -> batch` of host arrays of these samples, in their order.
      n: samples.
      mesh: over which they are spread.
      axis: the dimension that holds them.
    """
    place = NamedSharding(mesh, PartitionSpec(*[None] * axis, ROWS))
    shards = place.addressable_devices_indices_map((1,) * axis + (n,)).values()
    mine = np.unique(np.concatenate([np.arange(n)[shard[axis]] for shard in shards if shard]))

    def spread(local):
        local = np.asarray(local)

        def rows(index):
            wanted = np.arange(n)[index[axis]]
            return local[(slice(None),) * axis + (np.searchsorted(mine, wanted),)]

        return jax.make_array_from_callback((*local.shape[:axis], n, *local.shape[axis + 1 :]), place, rows)

    return jax.tree.map(spread, read(mine))


def settle(tree: PyTree) -> PyTree:
    """`tree`; on a CPU that plays several devices, once all of them have computed it.

    XLA:CPU has about one thread a device: two programs in flight that wait for other devices would starve
    each other for ever.
    """
    return jax.block_until_ready(tree) if jax.default_backend() == "cpu" and jax.local_device_count() > 1 else tree


def shard_rows(rows: PyTree, axis: int = 0) -> PyTree:
    """Inside a jitted step under a mesh: spreads dimension `axis` over the devices.  No mesh, no effect."""
    if jax.sharding.get_abstract_mesh().empty:
        return rows
    spec = PartitionSpec(*[None] * axis, ROWS)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), rows)


def to_host(tree: PyTree) -> PyTree:
    """Whole numpy arrays in every process, for reports; one process keeps its arrays as they are."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)
