"""The devices that are known by name: their memory and their peak.

How long products of other operands take: a TPU multiplies float32 as bfloat16 unless a precision is asked for, which
takes it three (`high`) or six (`highest`) products; an NVIDIA GPU multiplies it as TF32 at half of the rate, and `highest`
in its scalar units, 67 TFLOP/s (`jax.lax.Precision`; the same data sheets).  float16 is as fast as bfloat16.

Peak rates are dense bfloat16 products, with float32 sums, as the makers state them: cloud.google.com/tpu/docs (v5e,
v5p, v6e); NVIDIA's H100 and H200 data sheets (SXM).  Memory is what a device reports (GPU), what libtpu lets a
program use (v5e, v6e), or the maker's (v5p).
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

GIB = 2**30
SHARE = 0.9  # of a device's memory that an estimate from shapes may fill
HOST_SHARE = 0.5  # of a host's, where the processor is the device


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device: its memory in bytes, its peak in operations per second, and what JAX calls it.

    Attributes:
      slow: how many times as long an operation takes as at the peak, by its kind (`flops.Operations`); absent: once.
    """

    name: str
    memory: float
    peak: float
    kind: str
    slow: Mapping[str, float]

    def least_seconds(self, operations: Mapping[str, float]) -> float:
        """That one such device takes for so many operations of each kind, at the peak rate of each."""
        return sum(self.slow.get(kind, 1.0) * n for kind, n in operations.items()) / self.peak


_TPU = {"float32 high": 3.0, "float32 highest": 6.0}
_HOPPER = {"float32": 2.0, "float32 high": 2.0, "float32 highest": 989 / 67}

CHIPS = {
    "v5e": Chip("TPU v5e", 15.75 * GIB, 197e12, "TPU v5 lite", _TPU),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, "TPU v5", _TPU),
    "v6e": Chip("TPU v6e", 31.25 * GIB, 918e12, "TPU v6 lite", _TPU),
    "h100": Chip("H100", 84978434048, 989e12, "NVIDIA H100 80GB HBM3", _HOPPER),
    "h200": Chip("H200", 150754820096, 989e12, "NVIDIA H200", _HOPPER),
}


def chip_here() -> Chip | None:
    """What the devices of this process are; None: unknown."""
    return next((chip for chip in CHIPS.values() if chip.kind == jax.devices()[0].device_kind), None)


def pace_here(tflops: float) -> Callable[[Mapping[str, float]], float] | None:
    """The least seconds that all devices of this run together take for operations, as `flops.count_jaxpr` tells them.

    `tflops`: the rate of one device for every kind; 0: the rates of a known chip.  None: the chip is not known.
    """
    chip, devices = chip_here(), jax.device_count()
    if tflops:
        return lambda operations: sum(operations.values()) / (tflops * 1e12 * devices)
    return None if chip is None else lambda operations: chip.least_seconds(operations) / devices


class Room(NamedTuple):
    """Bytes that a program may fill on one device, of `what`; None: not known."""

    size: int | None
    what: str


def room_of(memory: float, what: str) -> Room:
    """Of a device with so many bytes."""
    return Room(int(SHARE * memory), f"{what}, {SHARE:.0%} of its memory")


def room_here() -> Room:
    """Of each device of this process: what the device itself allows, what its kind has, or, where the device is the
    processor, a share of the host's memory that leaves others theirs."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    chip = chip_here()
    if memory := limit or (chip.memory if chip else 0):
        return room_of(memory, device.device_kind)
    if device.platform == "cpu" and jax.process_count() == 1:  # the processes of a host do not know of each other
        each = int(HOST_SHARE * _host_memory() / jax.local_device_count())
        return Room(each, f"the host's memory, {HOST_SHARE:.0%} of it for {jax.local_device_count()} device(s)")
    return Room(None, device.device_kind)


def _host_memory() -> int:
    """Bytes, of the machine or of the container that we are in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            with open(path) as file:
                whole = min(whole, int(file.read()))
    return whole
