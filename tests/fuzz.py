"""Damaged inputs by a fixed seed: bytes and JSON changed in the ways in which files go wrong, or are made wrong."""

import contextlib
import json
import logging
import os
import signal
import sys

import numpy as np

HANG = 10  # seconds that no reader may take

ODD = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 7 * 10**5, 2**31, 2**63, -(2**63), 10**30, 1e308, 1e-308, float("nan"),
    float("inf"), "", "a", "x" * 500, "\ud800", "\0", "../../etc/passwd", "/etc/passwd", "F32", "I8", [], {}, [[]], [[[[1]]]],
    [None], [0], [-1], [10**9] * 3, [1, "a"], {"a": {"b": []}}, {"__class__": 1}, list(range(100)), [True] * 4,
]  # fmt: skip


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three damages."""
    for _ in range(rng.integers(1, 4)):
        n = max(len(data), 1)
        a, b = sorted(int(i) for i in rng.integers(0, n + 1, 2))
        b = min(b, a + int(rng.integers(1, 64)))
        piece = rng.bytes(max(b - a, 1))
        data = [
            lambda: data[:a] + bytes([data[a % n] ^ (1 << int(rng.integers(8)))]) + data[a + 1 :] if data else b"\0",
            lambda: data[:a] + piece + data[b:],
            lambda: data[:a] + bytes(b - a) + data[b:],
            lambda: data[:a] + b"\xff" * (b - a) + data[b:],
            lambda: data[:a] + data[b:],
            lambda: data[:b] + data[a:b] + data[b:],
            lambda: data[:a],
            lambda: data + piece,
            lambda: data[:a] + [b"\0", b"\xff\xfe", b"\r", b"\n", b"[" * 5000, b'"', b"9" * 5000, b"-", b"{}"][rng.integers(9)] + data[a:],
            lambda: b"",
        ][rng.choice(10, p=[0.25, 0.15, 0.08, 0.08, 0.12, 0.08, 0.09, 0.05, 0.09, 0.01])]()  # fmt: skip
    return data


def damaged_json(content, rng: np.random.Generator) -> bytes:
    """A text in which one to three values or keys are odd; sometimes its bytes are, too."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.integers(1, 4)):
        content = _odd(content, rng)
    text = json.dumps(content).encode()
    if rng.random() < 0.1 and b": " in text:  # a key that stands twice
        text = text.replace(b"{", b'{"a": 1, "a": 2, ', 1)
    return damaged_bytes(text, rng) if rng.random() < 0.2 else text


def _odd(node, rng: np.random.Generator):
    pick = lambda: ODD[rng.integers(len(ODD))]
    if not isinstance(node, (dict, list)) or not node or rng.random() < 0.1:
        return pick()
    if isinstance(node, list):
        i = int(rng.integers(len(node)))
        changed = list(node)
        act = rng.random()
        if act < 0.15:
            del changed[i]
        elif act < 0.3:
            changed.insert(i, pick())
        else:
            changed[i] = _odd(changed[i], rng)
        return changed
    key = list(node)[rng.integers(len(node))]
    act = rng.random()
    if act < 0.12:
        return {k: v for k, v in node.items() if k != key}
    if act < 0.2:
        return node | {str(pick()): pick()}
    if act < 0.25:
        other = list(node)[rng.integers(len(node))]
        return node | {key: node[other], other: node[key]}
    return node | {key: _odd(node[key], rng)}


class Hang(BaseException):
    """A reader took longer than anyone waits."""


@contextlib.contextmanager
def no_hang(seconds: float = HANG):
    """Raises Hang after so many seconds of this process's own time, or ten times as many by the clock: a machine that does
    other things too is no fault."""

    def ring(number, frame):
        raise Hang

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before = {number: signal.signal(number, ring) for number, _, _ in clocks}
    for _, clock, limit in clocks:
        signal.setitimer(clock, limit)
    try:
        yield
    finally:
        for number, clock, _ in clocks:
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])


@contextlib.contextmanager
def unlogged():
    """No log: libraries repeat what they were given, half characters too, which no report of a test can be sent with."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


_listening: list[list[str]] = []
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _hear(event: str, arguments: tuple) -> None:
    if _listening and event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        _listening[-1].append(str(arguments[0]))


sys.addaudithook(_hear)


@contextlib.contextmanager
def writes():
    """The files that Python opens for writing meanwhile."""
    heard: list[str] = []
    _listening.append(heard)
    try:
        yield heard
    finally:
        _listening.remove(heard)
