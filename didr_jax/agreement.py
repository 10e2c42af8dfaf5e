"""What one process of a run refuses, all of them refuse: none waits for another that has gone."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from didr_jax.types import InputError

T = TypeVar("T")
MOST = 4096  # bytes of a message


def agreed(work: Callable[[], T]) -> T:
    """`work()`, which must not wait for other processes itself; called in every process of a run.

    Raises:
      InputError: that of the first process in which `work` raised one, in all of them.
    """
    if jax.process_count() == 1:
        return work()
    done: list[T] = []
    told = np.zeros(MOST, np.uint8)
    try:
        done.append(work())
    except InputError as error:
        message = (str(error) or "refused").encode()[:MOST]
        told[: len(message)] = np.frombuffer(message, np.uint8)
    for each in np.asarray(multihost_utils.process_allgather(told)):
        if each[0]:
            raise InputError(each.tobytes().rstrip(b"\0").decode(errors="replace"))
    return done[0]
