"""What must happen before JAX touches a device: compiler flags, the compilation cache, the other processes."""

import hashlib
import os
import platform
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

# jaxlib version -> flags without which its results are wrong.  On the CPU: sums of products that go to YNNPACK (jax issue
# 39103; tests/test_diffused_reward.py has one), with each of its kinds of fusion.  What it costs, measured at [8, 1024, 1024]:
# a softmax takes twice as long, sums along rows twice, of products ten times.
NEEDED_FLAGS: dict[str, tuple[str, ...]] = dict.fromkeys(["0.10.2", "0.11.0"], ("--xla_cpu_experimental_ynn_fusion_type=",))


def start(config, planning: bool = False) -> str:
    """Applies `config.compiler` and joins the other processes (`config.distributed`); a line that says where programs are kept.

    Must run before anything asks JAX for a device.

    Args:
      config: of any recipe.
      planning: this process runs nothing: it joins no others, and asks the compiler, which a cache would answer for.

    Raises:
      InputError: an unknown flag set, or a coordinator without the number or the rank of processes.
    """
    _flags(config.compiler.flags)
    if planning:
        return ""
    _join(config.distributed)
    if config.compiler.effort:
        jax.config.update("jax_exec_time_optimization_effort", config.compiler.effort)
    return _keep_programs(config.compiler.cache)


def _flags(name: str) -> None:
    if name not in COMPILER_FLAGS:
        raise InputError(f"config.compiler.flags = {name!r} is not known; known: {', '.join(COMPILER_FLAGS)}")
    variable, flags = COMPILER_FLAGS[name]
    _prepend("XLA_FLAGS", NEEDED_FLAGS.get(jaxlib.__version__, ()))
    _prepend(variable, flags)


def _keep_programs(where: str) -> str:
    """Sets where JAX keeps compiled programs, and says it; where they cannot be kept, a run does without."""
    chosen, allowed = (jax.config.values[f"jax_{key}"] for key in ("compilation_cache_dir", "enable_compilation_cache"))
    if not where or not allowed or (where == "auto" and chosen):
        return f"compiled programs are kept in {chosen}" if chosen and allowed else ""
    folder = _users_cache() if where == "auto" else os.path.abspath(os.path.expanduser(where))
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        why = error.strerror or str(error)
        return f"compiled programs are not kept: cannot write {folder} ({why}); choose another config.compiler.cache"
    jax.config.update("jax_compilation_cache_dir", folder)
    return f"compiled programs are kept in {folder}"


def _users_cache() -> str:
    """A folder for this kind of host: programs for a CPU use what it has, and a home may be that of many hosts."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            able = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        able = platform.processor()
    kind = f"{platform.machine()}-{hashlib.blake2b(able.encode(), digest_size=4).hexdigest()}"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(os.path.abspath(home), "didr_jax", "compiled", kind)


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
