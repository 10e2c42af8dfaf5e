"""Real limits of the system, for tests of what happens when they are reached."""

import contextlib
import os
import resource
import subprocess

import pytest

NOBODY = 65534


@contextlib.contextmanager
def no_file_larger_than(size: int):
    """The kernel's limit for this process: a write that goes beyond `size` bytes is cut there and fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(path, size: str):
    """A file system of its own, in memory."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk) -> None:
    """Leaves no free byte on a disk: `disk/filler` takes them all."""
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


@contextlib.contextmanager
def read_only(path):
    """A folder that nobody can write to from now on, root neither: a mount of itself upon itself."""
    other = path.with_name(f"{path.name}.read-only")
    other.mkdir()
    steps = (["--bind", str(path), str(other)], ["-o", "remount,bind,ro", str(other)], ["--bind", str(other), str(path)])
    with contextlib.ExitStack() as mounted:
        for step in steps:  # made read-only elsewhere, so that nothing is open for writing
            done = subprocess.run(["mount", *step], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"cannot mount here: {done.stderr.strip()}")
            if "--bind" in step:
                mounted.callback(subprocess.run, ["umount", "-l", step[-1]], check=True)
        yield path


@contextlib.contextmanager
def another_user():
    """This process as a user without rights."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
