"""What must happen before JAX touches a device: compiler flags, the compilation cache, the other processes."""

import os
from collections.abc import Callable

import jax
import jaxlib

from didr_jax.agreement import agreed, told_by_first
from didr_jax.exits import CannotSave
from didr_jax.types import InputError

# name -> (environment variable, flags).  What they do is told in docs/running.md.
COMPILER_FLAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": ("XLA_FLAGS", ()),
    "gpu": (
        "XLA_FLAGS",
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "--xla_gpu_triton_gemm_any=true",
        ),
    ),
    "tpu": (
        "LIBTPU_INIT_ARGS",
        (
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_enable_async_all_gather=true",
        ),
    ),
}

# jaxlib version -> flags without which its results are wrong.  0.10.2 on the CPU: a jitted sum of products with
# a broadcast factor and many outputs (tests/test_diffused_reward.py has one); no measurable cost.
NEEDED_FLAGS: dict[str, tuple[str, ...]] = {"0.10.2": ("--xla_cpu_experimental_ynn_fusion_type=",)}


def start(config, alone: bool = False) -> None:
    """Applies `config.compiler` and joins the other processes (`config.distributed`), unless told to be `alone`.

    Must run before anything asks JAX for a device.

    Raises:
      InputError: an unknown flag set, or a coordinator without the number or the rank of processes.
    """
    _compiler(config.compiler)
    if not alone:
        _join(config.distributed)


def _compiler(section) -> None:
    if section.flags not in COMPILER_FLAGS:
        raise InputError(f"config.compiler.flags = {section.flags!r} is not known; known: {', '.join(COMPILER_FLAGS)}")
    variable, flags = COMPILER_FLAGS[section.flags]
    _prepend("XLA_FLAGS", NEEDED_FLAGS.get(jaxlib.__version__, ()))
    _prepend(variable, flags)
    if section.cache:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(section.cache))


def _prepend(variable: str, flags: tuple[str, ...]) -> None:
    """Adds flags before those of the user's environment, which come last and so win."""
    os.environ[variable] = " ".join([*flags, os.environ.get(variable, "")]).strip()


def _join(section) -> None:
    timeouts = {
        "initialization_timeout": section.start_timeout,
        "heartbeat_timeout_seconds": section.lost_after,
        "shutdown_timeout_seconds": section.lost_after,
    }
    if section.coordinator:
        if not 0 <= section.process < section.processes:
            where = f"config.distributed.process = {section.process}, .processes = {section.processes}"
            raise InputError(f"{where}: with a coordinator, need 0 <= process < processes")
        jax.distributed.initialize(section.coordinator, section.processes, section.process, **timeouts)
    elif section.detect:
        try:
            jax.distributed.initialize(**timeouts)
        except ValueError:  # no cluster that JAX knows: this process is the whole run
            pass


def leave() -> None:
    """Says goodbye to the other processes, after waiting for them."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def is_first_process() -> bool:
    """Whether this process is the one that writes logs and reports."""
    return jax.process_index() == 0


def on_first(check: Callable[[], None]) -> None:
    """Runs `check` in process 0; an InputError or a CannotSave there is raised in every process."""
    agreed(lambda: check() if is_first_process() else None, (InputError, CannotSave))


def from_first(say: Callable[[], str]) -> str:
    """What `say` returns in process 0, in every process; what is raised there is raised in every process, as by `on_first`."""
    said: list[str] = []
    on_first(lambda: said.append(say()))
    return told_by_first(said[0] if said else "")
