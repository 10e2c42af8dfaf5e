"""What a program is compiled for: the devices of this process, or machines that are not here.

v5e:4x4   v6e:8x8   v5p:2x2x4    chips of a TPU slice; needs libtpu, whose compiler runs anywhere
h100:8    h200:8                 GPUs of one machine; needs JAX's CUDA plugin, no driver
(empty)                          the devices of this process
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from didr_jax.checks import nearest
from didr_jax.training.chips import CHIPS, Chip, chip_here
from didr_jax.types import InputError

GPUS = ("h100", "h200")


@dataclasses.dataclass(frozen=True)
class Island:
    """Devices that reach each other by their own links.

    Attributes:
      size: how many at most.
      rate: bytes per second that a device sends within it, all links together, in one direction.
      closed: the fewest devices whose rings close; of fewer, the ends of a line receive all by one side: half the rate.
      outside: bytes per second that a device sends to another island.
    """

    size: int
    rate: float
    closed: int
    outside: float


# One direction is half of what the makers call bidirectional.  TPUs: cloud.google.com/tpu/docs, v5e: 400 GB/s a chip, 256
# chips, a torus that closes at 16; v5p: 1200 GB/s, 8960 chips, closes from a cube of 4x4x4 on, 50 Gbit/s a chip beyond;
# v6e: 800 GB/s, 256 chips; beyond a v5e or v6e pod: 6.4 Tbit/s a pod (v5e's page), taken for both.  NVIDIA's H100 and
# H200 data sheets: NVLink 900 GB/s; DGX H100's: eight a node, each with an adapter of 400 Gbit/s.
ISLANDS = {
    "v5e": Island(256, 200e9, 256, 3.1e9),
    "v5p": Island(8960, 600e9, 64, 6.25e9),
    "v6e": Island(256, 400e9, 256, 3.1e9),
    "h100": Island(8, 450e9, 1, 50e9),
    "h200": Island(8, 450e9, 1, 50e9),
}

# A Hopper GPU as XLA's compiler wants it described.  Written from data sheets, not read from a device.
_HOPPER = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory:.0f} shared_memory_per_block_optin: 232448
cuda_compute_capability {{ major: 9 minor: 0 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{kind}" """
_BANDWIDTH = {"h100": 3352320000000, "h200": 4800000000000}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
      name: as the config says it.
      chip: what its devices are; None: unknown (a CPU, say).
      size: number of devices.
      devices: makes them, for a mesh; raises InputError if their compiler is not installed.
      options: of the compiler.
      island: how its devices reach each other; None: unknown.
    """

    name: str
    chip: Chip | None
    size: int
    devices: Callable[[], Sequence[Any]]
    options: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    island: Island | None = None


def target(name: str, effort: float = 0.0) -> Target:
    """The machine that `config.compile.topology` names.

    Must run before anything asks JAX for a device: for a machine that is not here, this process uses the CPU.

    Args:
      name: as the module's docstring lists them.
      effort: how hard the TPU's compiler tries to make programs fast, -1 to 1 (`config.compile.effort`).

    Raises:
      InputError: unknown name.
    """
    if not name:
        here = jax.devices()
        kind = next((name for name, chip in CHIPS.items() if chip is chip_here()), "")
        return Target("local", chip_here(), len(here), lambda: here, island=ISLANDS.get(kind))
    kind, _, shape = name.partition(":")
    kind = "h100" if kind == "cuda" else kind
    rank = r"\d+" if kind in GPUS else r"\d+x\d+x\d+" if kind == "v5p" else r"\d+x\d+"
    if kind not in CHIPS:
        raise InputError(f"config.compile.topology = {name!r}: no such chip; {nearest(kind, [*CHIPS, 'cuda'])}")
    if not re.fullmatch(rank, shape) or not all(map(int, shape.split("x"))):
        example = {"v5p": "v5p:2x2x4"}.get(kind, f"{kind}:8" if kind in GPUS else f"{kind}:4x4")
        raise InputError(f"config.compile.topology = {name!r}: write it like {example}")
    jax.config.update("jax_platforms", "cpu")
    if kind not in GPUS:
        jax.config.update("jax_exec_time_optimization_effort", effort)
    make = _gpus if kind in GPUS else _tpus
    # Triton's tiles are tuned on a device; untuned, XLA 0.10.2 refuses some products.  cuBLAS takes them all.
    options = {"xla_gpu_enable_triton_gemm": False} if kind in GPUS else {}
    size = math.prod(map(int, shape.split("x")))
    return Target(name, CHIPS[kind], size, lambda: make(name, kind, shape), options, ISLANDS[kind])


def _tpus(name: str, kind: str, shape: str) -> Sequence[Any]:
    from jax.experimental import topologies

    # No metadata server is asked; several compilers may run at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # These three only silence warnings; they need not match what is compiled for.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    one = {"chips_per_host_bounds": (1, 1, 1)} if set(shape) <= set("1x") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **one).devices
    except Exception as error:
        if _absent("libtpu"):
            raise InputError(
                f"config.compile.topology = {name!r} needs libtpu, the compiler for TPUs: pip install 'jax[tpu]' "
                "(or compile.only_shapes=True, which compiles nothing)"
            ) from None
        raise InputError(f"config.compile.topology = {name!r}: libtpu knows no such slice ({_line(error)})") from None


def _gpus(name: str, kind: str, shape: str) -> Sequence[Any]:
    from jax.experimental import topologies

    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # there may be no driver and no cuDNN
    description = _HOPPER.format(bandwidth=_BANDWIDTH[kind], memory=CHIPS[kind].memory, kind=CHIPS[kind].kind)
    jax.devices()  # loads the plugins
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name=kind, target_config=description, topology=f"1x1x{shape}"
        ).devices
    except Exception as error:
        reason = "" if _absent("jax_cuda13_plugin") else f" ({_line(error)})"
        raise InputError(
            f"config.compile.topology = {name!r} needs JAX's CUDA plugin and NVIDIA's compiler: pip install "
            f"'jax[cuda13]' (or compile.only_shapes=True, which compiles nothing){reason}"
        ) from None


def _absent(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
