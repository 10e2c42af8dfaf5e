"""The devices that are known by name: their memory and their peak.

Peak rates are dense bfloat16 products, with float32 sums, as the makers state them: cloud.google.com/tpu/docs (v5e,
v5p, v6e); NVIDIA's H100 and H200 data sheets (SXM).  Memory is what a device reports (GPU), what libtpu lets a
program use (v5e, v6e), or the maker's (v5p).
"""

import dataclasses

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device: its memory in bytes, its peak in operations per second, and what JAX calls it."""

    name: str
    memory: float
    peak: float
    kind: str


CHIPS = {
    "v5e": Chip("TPU v5e", 15.75 * GIB, 197e12, "TPU v5 lite"),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, "TPU v5"),
    "v6e": Chip("TPU v6e", 31.25 * GIB, 918e12, "TPU v6 lite"),
    "h100": Chip("H100", 84978434048, 989e12, "NVIDIA H100 80GB HBM3"),
    "h200": Chip("H200", 150754820096, 989e12, "NVIDIA H200"),
}


def chip_here() -> Chip | None:
    """What the devices of this process are; None: unknown."""
    return next((chip for chip in CHIPS.values() if chip.kind == jax.devices()[0].device_kind), None)


def peak_here(tflops: float) -> float | None:
    """Peak of all devices of this run, operations per second; `tflops`: of one device, or 0: that of a known chip.

    None: not known.
    """
    chip = chip_here()
    each = tflops * 1e12 or (chip.peak if chip else None)
    return each * jax.device_count() if each else None
