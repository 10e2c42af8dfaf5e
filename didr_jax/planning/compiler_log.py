"""What XLA says while it compiles: caught from the process's standard error, to which it writes past Python.

One of its warnings bears on a plan.  Where the partitioner finds no way from one split of an array to another but to
copy the whole array to every device ("involuntary full rematerialization"), a step moves what it should keep in its
place (`models.rows`).  XLA says so once for every place in the program, in a paragraph each; here they are counted.
"""

import collections
import contextlib
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterator

COPIED = "Involuntary full rematerialization"
SHOWN = 5  # kinds of warnings that `lines` tells


@dataclasses.dataclass
class CompilerLog:
    """What was caught.

    Attributes:
      copied: how often an array is copied whole to every device, by its type and the operation that makes it.
      others: all other lines, as they were written.
    """

    copied: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    others: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """The warnings for a plan's report; none if there were none."""
        if not self.copied:
            return []
        lines = [f"XLA copies whole arrays to every device; places in the program: {self.copied.total()}"]
        lines += [f"  {count:>3} × {what}" for what, count in self.copied.most_common(SHOWN)]
        more = self.copied.total() - sum(count for _, count in self.copied.most_common(SHOWN))
        return lines + ([f"  {more:>3} × others"] if more else [])


@contextlib.contextmanager
def caught() -> Iterator[CompilerLog]:
    """Catches what this process writes to its standard error; the log is full once the block is left.

    All but the counted warnings is shown then.  If the compiler takes the process down with it, its last words are in
    the file `compiler-*.log` of the directory for temporary files.
    """
    log = CompilerLog()
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.NamedTemporaryFile("w+", prefix="compiler-", suffix=".log", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            file.seek(0)
            for line in file:
                if COPIED in line:
                    log.copied[_what(line)] += 1
                else:
                    log.others.append(line)
            os.write(2, "".join(log.others).encode())


def _what(line: str) -> str:
    """Type and operation in a warning, e.g. `f32[8,64] of UNet/mid_block/attn/reshape`."""
    kind = re.search(r"HLO operation %\S+ = (\w+\[[\d,]*\])", line)
    operation = re.search(r'op_name="([^";]*)', line)
    return f"{kind[1] if kind else 'an array'} of {_place(operation[1]) if operation else 'an operation without a name'}"


def _place(name: str) -> str:
    """An operation's name without the loops and wrappers of JAX around the networks."""
    noise = ("while", "body", "closed_call", "checkpoint", "rematted_computation")
    return "/".join(part for part in name.split("/") if part not in noise and not part.startswith("jit("))
