"""Real limits of the system, for tests of what happens when they are reached."""

import contextlib
import resource


@contextlib.contextmanager
def no_file_larger_than(size: int):
    """The kernel's limit for this process: a write that goes beyond `size` bytes is cut there and fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
