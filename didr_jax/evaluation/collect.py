"""Features of many pictures: batch by batch over the mesh, in any number of processes, resumable.

Each process reads the pictures that its own devices see, in threads and one batch ahead.  Either the features come to the
host (KID, CMMD, diversity and scores need each), or only their moments are summed on the devices (FID needs no more, and
50,000 pictures take 32 MiB).  All processes end with the same result.
"""

import dataclasses
import functools
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from didr_jax.evaluation import moments
from didr_jax.evaluation.moments import Moments, State
from didr_jax.evaluation.pictures import Source, open_pictures
from didr_jax.evaluation.protocols import PIXELS, Protocol
from didr_jax.evaluation.statistics import Statistics, write_npz
from didr_jax.types import Array, InputError, PyTree, Weights

WORKERS = 8  # threads that read and resize


@dataclasses.dataclass(frozen=True)
class Network:
    """A frozen network under a protocol.

    Attributes:
      protocol: how pictures are prepared, on the host.
      weights: its parameters.
      apply: pure, `(params, batch) -> [b, width]`, float32; `batch` is a pytree of prepared items, stacked.
      width: of what `apply` gives.
    """

    protocol: Protocol
    weights: Weights
    apply: Callable[[PyTree, PyTree], Array]
    width: int


def network_input(pixels: str, x: Array) -> Array:
    """Prepared pictures `[b, n, n, 3]`, uint8 or float in [0, 255], to a network's input by a row of `PIXELS`."""
    offset, scale = PIXELS[pixels]
    return (x.astype(jnp.float32) - jnp.asarray(offset)) / jnp.asarray(scale)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a collection is run.

    Attributes:
      params: loaded parameters; None: the network's weights are loaded, a copy on every device.
      mesh: of all processes' devices; None: this process's first device.
      batch_size: items at once over the whole mesh; a multiple of its devices but for `tensor`.
      path: an `.npz` that keeps what is done, so that the same call goes on from there; the first process writes it.
      save_every: batches between writes.
    """

    params: PyTree | None = None
    mesh: Mesh | None = None
    batch_size: int = 32
    path: str | os.PathLike | None = None
    save_every: int = 50


DEFAULT = Options()


def collect_features(network: Network, read: Callable[[int], PyTree], count: int, options: Options = DEFAULT) -> np.ndarray:
    """What a network gives for each of `count` items, `[count, width]` float32, in every process.

    Args:
      network: the network.
      read: i -> the i-th prepared item, a pytree of numpy arrays, all items alike; called in threads.
      count: how many items there are.
      options: how it is run.

    Raises:
      InputError: nothing to do; a batch that the mesh cannot split; a file of another measurement.
    """
    kept = _Kept(network)
    _run(kept, network, read, count, options)
    return kept.value()


def collect_moments(network: Network, read: Callable[[int], PyTree], count: int, options: Options = DEFAULT) -> Moments:
    """As `collect_features`, but only the moments, summed on the devices."""
    summed = _Summed(network)
    _run(summed, network, read, count, options)
    return summed.value()


# A sink waits for the batch before its own, so that the host prepares one batch while the devices compute another, and
# two programs are never in flight: XLA's CPU devices would starve each other.
class _Kept:
    """Features, brought to the host batch by batch."""

    kind = "features"

    def __init__(self, network: Network):
        self.apply = network.apply
        self.parts = [np.zeros((0, network.width), np.float32)]
        self.flying: tuple[Array, int] | None = None

    def add(self, params: PyTree, batch: PyTree, valid: int, whole) -> None:
        self._land()
        self.flying = _features(self.apply, whole, params, batch), valid

    def _land(self) -> None:
        if self.flying is not None:
            features, valid = self.flying
            self.parts.append(np.asarray(features)[:valid])
            self.flying = None

    def value(self) -> np.ndarray:
        self._land()
        self.parts = [np.concatenate(self.parts)]
        return self.parts[0]

    def arrays(self) -> dict:
        return {"features": self.value()}

    def restore(self, done: int, found: dict) -> None:
        self.parts = [found["features"]]


class _Summed:
    """Moments: of what a file held, and the devices' sums of what came since."""

    kind = "moments"

    def __init__(self, network: Network):
        self.apply = network.apply
        d = self.width = network.width
        self.before = Moments(0, np.zeros(d), np.zeros((d, d)))
        self.state: State | None = None

    def add(self, params: PyTree, batch: PyTree, valid: int, whole) -> None:
        if self.state is None:
            self.state = jax.jit(lambda: moments.empty(self.width), out_shardings=whole)()
        jax.block_until_ready(self.state)
        self.state = _sum(self.apply, whole, params, self.state, batch, valid)

    def value(self) -> Moments:
        return self.before if self.state is None else self.before.merge(moments.finish(self.state))

    def arrays(self) -> dict:
        value = self.value()
        return {"mean": value.mean, "scatter": value.scatter}

    def restore(self, done: int, found: dict) -> None:
        self.before = Moments(done, found["mean"], found["scatter"])


# One program for all collections with one network.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(apply, whole, params: PyTree, batch: PyTree) -> Array:
    return jax.lax.with_sharding_constraint(apply(params, batch).astype(jnp.float32), whole)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _sum(apply, whole, params: PyTree, state: State, batch: PyTree, valid: Array) -> State:
    features = apply(params, batch)
    state = moments.add(state, features, jnp.arange(len(features)) < valid)
    return jax.lax.with_sharding_constraint(state, whole)


def _run(sink: _Kept | _Summed, network: Network, read, count: int, options: Options) -> None:
    if count < 1:
        raise InputError("there are no pictures to measure")
    size, path = options.batch_size, options.path
    split, whole = _places(options.mesh, size)
    label = f"{count} {sink.kind} of width {network.width} by protocol {network.protocol.name}"
    done = _resume(sink, path, label)
    if done >= count:
        return
    params = network.weights.load(whole) if options.params is None else options.params
    with ThreadPoolExecutor(WORKERS) as pool:
        reader = lambda start: _reading(pool, read, start, count, size, split)
        ahead = reader(done)
        for k, start in enumerate(range(done, count, size), 1):
            batch = _batch(ahead, size, split)
            stop = min(start + size, count)
            if stop < count:
                ahead = reader(stop)
            sink.add(params, batch, stop - start, whole)
            if path is not None and (k % options.save_every == 0 or stop == count) and jax.process_index() == 0:
                write_npz(Path(path), {"label": label, "done": stop, **sink.arrays()})


def _places(mesh: Mesh | None, batch_size: int) -> tuple:
    """Where rows and where copies go."""
    if mesh is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        return here, here
    rows = tuple(axis for axis in mesh.axis_names if axis != "tensor")  # as in models.rows
    ways = int(np.prod([mesh.shape[axis] for axis in rows]))
    if batch_size % ways:
        raise InputError(f"batch_size = {batch_size} cannot be split over {ways} devices; use a multiple")
    return NamedSharding(mesh, PartitionSpec(rows)), NamedSharding(mesh, PartitionSpec())


def _reading(pool, read, start: int, count: int, batch_size: int, split) -> dict:
    """{row of the batch: future item} for the rows that this process's devices take; the last item fills a short batch."""
    slices = split.addressable_devices_indices_map((batch_size,)).values()
    rows = sorted({row for (part,) in slices for row in range(*part.indices(batch_size))})
    items = {i: pool.submit(read, i) for i in sorted({min(start + row, count - 1) for row in rows})}
    return {row: items[min(start + row, count - 1)] for row in rows}


def _batch(futures: dict, batch_size: int, split) -> PyTree:
    items = {row: future.result() for row, future in futures.items()}
    leaves = {row: jax.tree.leaves(item) for row, item in items.items()}
    first = next(iter(items.values()))

    def place(n: int, leaf) -> Array:
        shape = (batch_size, *np.shape(leaf))
        rows = lambda index: np.stack([leaves[row][n] for row in range(*index[0].indices(batch_size))])
        return jax.make_array_from_callback(shape, split, rows)

    return jax.tree.unflatten(jax.tree.structure(first), [place(n, leaf) for n, leaf in enumerate(jax.tree.leaves(first))])


def _resume(sink: _Kept | _Summed, path, label: str) -> int:
    """How many items a file has; they are put into the sink."""
    if path is None or not Path(path).is_file():
        return 0
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        done = int(found["done"])
        if str(found["label"]) == label:
            sink.restore(done, found)
            return done
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it or give another path") from None
    raise InputError(f"{path} holds {found['label']}, not {label}; remove it or give another path")


def statistics_of(network: Network, pictures: Source, *, keep: bool = True, options: Options = DEFAULT) -> Statistics:
    """A folder's or array's statistics under the network's protocol.

    `keep`: the features themselves, for KID and CMMD; without them 50,000 pictures take no memory, and FID is all one
    gets.
    """
    count, picture = open_pictures(pictures)
    read = lambda i: network.protocol.prepare(picture(i))
    if not keep:
        return Statistics.of(collect_moments(network, read, count, options), network.protocol)
    return Statistics(features=collect_features(network, read, count, options), count=count, protocol=network.protocol.name)
