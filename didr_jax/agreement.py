"""What the processes of a run tell each other: what one refuses, all refuse, so that none waits for another that has gone."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from didr_jax.types import InputError

T = TypeVar("T")
MOST = 4096  # bytes of a message


def agreed(work: Callable[[], T], kinds: Sequence[type[Exception]] = (InputError,)) -> T:
    """`work()`, which must not wait for other processes itself; called in every process of a run.

    Raises:
      InputError, or another of `kinds`: that of the first process in which `work` raised one, in all of them.
    """
    if jax.process_count() == 1:
        return work()
    done: list[T] = []
    told, own = "", None
    try:
        done.append(work())
    except tuple(kinds) as error:
        told, own = f"{next(i for i, kind in enumerate(kinds) if isinstance(error, kind))}{error}", error
    for each in heard(told):
        if each:
            raise own if own is not None and each == told[: len(each)] else kinds[int(each[0])](each[1:])
    return done[0]


def heard(text: str) -> list[str]:
    """What each process says, in their order, in every process."""
    if jax.process_count() == 1:
        return [text]
    return [_as_text(each) for each in np.asarray(multihost_utils.process_allgather(_as_bytes(text)))]


def told_by_first(text: str) -> str:
    """What process 0 says, in every process."""
    return text if jax.process_count() == 1 else _as_text(multihost_utils.broadcast_one_to_all(_as_bytes(text)))


def _as_bytes(text: str) -> np.ndarray:
    found = np.frombuffer(text.encode()[:MOST], np.uint8)
    return np.pad(found, (0, MOST - len(found)))


def _as_text(raw: np.ndarray) -> str:
    return np.asarray(raw, np.uint8).tobytes().rstrip(b"\0").decode(errors="replace")
