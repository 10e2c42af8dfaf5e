"""Scores kept as they come, so that a scoring that ends in its middle goes on where it was.

A file of JSON lines: the first says which rewards the scores are of, each further one has a picture with its prompt, as a
digest, and its scores.  What is cut, or of other rewards, counts as not there.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import IO

from didr_jax.whole_files import saving, to_disk, whole_file

Scores = Mapping[str, float]


class Kept:
    """Scores by picture and prompt, in a file that grows.

    Args:
      path: of the file; its folder is made with the first scores.
      of: which rewards they are of, in any words that change with them.
    """

    def __init__(self, path: str | os.PathLike, of: str):
        self.path, self._of = os.fspath(path), of
        self._file: IO[str] | None = None
        self._found = self._read()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, picture: str | os.PathLike | bytes, prompt: str) -> Scores | None:
        """What is known of a picture, a file or what one holds; None: nothing."""
        return self._found.get(_key(picture, prompt))

    def add(self, rows: Sequence[tuple[str | os.PathLike | bytes, str, Scores]]) -> None:
        """Scores of pictures and prompts, on the disk when this returns; raises CannotSave."""
        with saving(self.path):
            if self._file is None:
                with whole_file(self.path) as file:  # without a line that was cut
                    file.writelines(json.dumps(each) + "\n" for each in ({"of": self._of}, *map(list, self._found.items())))
                self._file = open(self.path, "a", encoding="utf-8")
            for picture, prompt, scores in rows:
                self._file.write(json.dumps([_key(picture, prompt), dict(scores)]) + "\n")
            to_disk(self._file)

    def remove(self) -> None:
        """When all is scored and written elsewhere."""
        if self._file is not None:
            self._file.close()
        if os.path.exists(self.path):
            os.remove(self.path)

    def _read(self) -> dict[str, Scores]:
        found: dict[str, Scores] = {}
        try:
            with open(self.path, encoding="utf-8") as file:
                if json.loads(next(file, "null")) != {"of": self._of}:
                    return {}
                for line in file:
                    key, scores = json.loads(line)
                    found[key] = {name: float(score) for name, score in scores.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # what was read before it holds
            pass
        return found


def _key(picture: str | os.PathLike | bytes, prompt: str) -> str:
    """Of a file by its name, size and time: nobody waits for all to be read twice."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=16)
    if isinstance(picture, bytes):
        digest.update(b"\0" + picture)
    else:
        found = os.stat(picture)
        digest.update(f"\0{os.path.basename(picture)}\0{found.st_size}\0{found.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()
