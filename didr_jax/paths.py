"""Whether a name that stands in somebody's file leads outside of the folder it belongs to."""

import os
from pathlib import Path


def lies_in(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a path is below a folder, or is it, links followed; whether it is there does not matter."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
