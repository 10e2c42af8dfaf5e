"""Tests run on the CPU, in float32 and offline.  What they compile in their own processes is kept until all of them are
done, for the next test that asks for the same program; a process that a test starts keeps nothing but where it says so."""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")

import jax

PROGRAMS = "DIDR_TEST_PROGRAMS"  # the folder of this session's, which xdist's workers are told by the environment
LONG = 0.2  # seconds of compiling, from which on a program is worth a file


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="programs")
    jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LONG)
    jax.config.update("jax_enable_compilation_cache", True)


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(PROGRAMS), ignore_errors=True)
