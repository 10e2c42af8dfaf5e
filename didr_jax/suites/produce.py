"""Pictures of a prompt set, made by all devices of all processes, and made again where a run was killed.

A picture's noise follows from its prompt's number and its own (`Noise`), and a batch is always the same pictures, on every
device the same number of them: which are there already, and how many processes there are, changes none.  Each process
writes what its own devices computed; a file is there whole or not at all.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from didr_jax.training.metrics import clock, rate_of
from didr_jax.training.parallel import ROWS, put_batch, settle
from didr_jax.training.reports import save_picture
from didr_jax.types import Array, InputError, PyTree

WORKERS = 8  # threads that compress and write
PERIOD = 20.0  # seconds between lines about progress


class Picture(NamedTuple):
    """To be made: the prompt's place in the list and its number in the whole set, the picture's number, its file."""

    place: int
    prompt: int
    k: int
    path: str


@dataclasses.dataclass(frozen=True)
class Maker:
    """What makes pictures.

    Attributes:
      draw: `(params, noise [b, *shape], rows) -> images [b, H, W, 3]` in [-1, 1], each from its own row alone; traced.
      params: arrays in their places.
      rows: places of prompts `[b]` -> a pytree of host arrays `[b, ...]`, what `draw` is told of them.
      shape: of one picture's unit noise.
      seed: of all noise.
    """

    draw: Callable[[PyTree, Array, PyTree], Array]
    params: PyTree
    rows: Callable[[np.ndarray], PyTree]
    shape: tuple[int, ...]
    seed: int

    def noise(self, prompt: Array, k: Array) -> Array:
        """Unit noise `[b, *shape]` of pictures k `[b]` of prompts `[b]`."""
        key = jax.random.key(self.seed)
        one = lambda p, k: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, p), k), self.shape)
        return jax.vmap(one)(prompt, k)


def produce(
    maker: Maker, pictures: Sequence[Picture], saved: Mapping[str, Any], mesh: Mesh, batch_size: int, say: Callable[[str], None]
) -> None:
    """Makes and writes the pictures that are not there; returns, in every process, when all are.

    Args:
      maker: what makes them.
      pictures: all of them, whether they are there or not; the same list in every process.
      saved: how Pillow is to save them.
      mesh: of all processes' devices, in use.
      batch_size: pictures at once on a device.
      say: prints a line for the user.

    Raises:
      InputError: a picture is not finite; the same in every process.
      CannotSave: one cannot be written.
    """
    missing = _missing([picture.path for picture in pictures])
    size = batch_size * math.prod(mesh.shape[axis] for axis in ROWS)
    batches = [start for start in range(0, len(pictures), size) if missing[start : start + size].any()]
    there, every = len(pictures) - int(missing.sum()), len(pictures)
    say(f"{every:,} pictures, {there:,} of them there" if there else f"{every:,} pictures")
    progress = _Progress(there, every, say)
    with ThreadPoolExecutor(WORKERS) as pool:
        for start, drawn in _ahead(maker, pictures, batches, size, mesh):
            batch = pictures[start : start + size]
            _require_finite(drawn[1], batch)
            wanted = missing[start : start + size]
            for done in _write(pool, drawn[0], batch, wanted, saved):
                done.result()
            progress.add(int(wanted.sum()))
    meet("pictures")


def meet(what: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _missing(paths: Sequence[str]) -> np.ndarray:
    """bool `[n]`, as the first process sees it: file systems of several machines may differ for a while."""
    found = np.array([not os.path.isfile(path) for path in paths], np.uint8)
    if jax.process_count() > 1:
        found = np.asarray(multihost_utils.broadcast_one_to_all(found))
    return found.astype(bool)


def _ahead(
    maker: Maker, pictures: Sequence[Picture], batches: Sequence[int], size: int, mesh: Mesh
) -> Iterator[tuple[int, tuple[Array, Array]]]:
    """(where a batch begins, its pictures and whether they are finite), while the devices compute the next one."""

    def draw(params, rows):
        images = maker.draw(params, maker.noise(rows["prompt"], rows["k"]), rows["told"]).astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(images), axis=(1, 2, 3))
        return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8), finite  # as `reports.to_bytes`

    places = NamedSharding(mesh, PartitionSpec(ROWS)), NamedSharding(mesh, PartitionSpec())
    program = jax.jit(draw, out_shardings=places)
    before = None
    for start in batches:
        which = np.minimum(np.arange(start, start + size), len(pictures) - 1)  # the last one fills a short batch
        batch = [pictures[i] for i in which]
        rows = {
            "prompt": np.array([picture.prompt for picture in batch], np.uint32),
            "k": np.array([picture.k for picture in batch], np.uint32),
            "told": maker.rows(np.array([picture.place for picture in batch])),
        }
        now = settle(program(maker.params, put_batch(rows, mesh, 0)))
        if before is not None:
            yield before
        before = start, now
    if before is not None:
        yield before


def _require_finite(finite: Array, batch: Sequence[Picture]) -> None:
    bad = np.flatnonzero(~np.asarray(finite)[: len(batch)])
    if len(bad):
        raise InputError(
            f"{batch[bad[0]].path} and {len(bad) - 1} more of its batch would not be finite; compute in float32 "
            "(config.network.dtype, config.network.vae_dtype), or look at the weights"
        )


def _write(
    pool: ThreadPoolExecutor, images: Array, batch: Sequence[Picture], wanted: np.ndarray, saved: Mapping[str, Any]
) -> list[Future]:
    """Of the rows that this process's devices hold, one copy of each in the whole run."""
    tasks = []
    for shard in images.addressable_shards:
        first = shard.index[0].start or 0
        here = range(first, min(first + shard.data.shape[0], len(batch)))
        if shard.replica_id == 0 and any(wanted[i] for i in here):
            rows = np.asarray(shard.data)
            tasks += [pool.submit(save_picture, batch[i].path, rows[i - first], **saved) for i in here if wanted[i]]
    return tasks


class _Progress:
    """Rate and time to go, counted from the end of the first batch, which compiled."""

    def __init__(self, done: int, total: int, say: Callable[[str], None]):
        self._done, self._total, self._say = done, total, say
        self._begun: tuple[float, int] | None = None
        self._told = time.monotonic()

    def add(self, made: int) -> None:
        self._done += made
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, self._done
        seconds, pictures = now - self._begun[0], self._done - self._begun[1]
        if now - self._told < PERIOD and self._done < self._total:
            return
        self._told = now
        speed = ""
        if pictures:
            rate = pictures / max(seconds, 1e-9)
            speed = f"  {rate_of(rate)} img/s  ETA {clock((self._total - self._done) / rate)}"
        self._say(f"{self._done:,}/{self._total:,} pictures{speed}")
