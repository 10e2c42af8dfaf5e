"""What one device does of a program that XLA has split: its matrix products, and what it sends to the others.

XLA's partitioner turns a step over n devices into the program that each of them runs, collectives included.  The
program's text is enough to count, long before a backend makes machine code of it:

    products      operations of dot products and convolutions, as `training.flops` counts them in the jaxpr: 1/n of
                  the whole's where the work is split well
    collectives   what crosses between devices: where parameters are split, these and their gradients, never activations
"""

import dataclasses
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from didr_jax.planning.groups import first_group

WIDTH = {"pred": 1.0, "s4": 0.5, "u4": 0.5} | {  # bytes of an entry
    f"{kind}{bits}": bits / 8
    for kind, sizes in (("s", (8, 16, 32, 64)), ("u", (8, 16, 32, 64)), ("f", (16, 32, 64)), ("bf", (16,)), ("c", (64, 128)))
    for bits in sizes
}
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
PASS = "spmd-partitioning"
HASTE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}  # for the CPU's backend


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.

    Attributes:
      kind: of `COLLECTIVES`.
      shapes: dimensions of the arrays that enter and leave it on one device.
      bytes: of these arrays, the larger of both sides.
      times: how often a call of the program runs it.
      operation: of the networks, that it serves.
      group: devices that take part with the first one, as places in the mesh; of a permutation, a pair that is far apart.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: float
    times: int
    operation: str
    group: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Partitioned:
    """Of one call of a program: operations of products, and all collectives."""

    products: float
    collectives: tuple[Collective, ...]

    @property
    def bytes(self) -> float:
        """That pass through collectives, each as often as it runs."""
        return sum(c.bytes * c.times for c in self.collectives)

    def moving(self, rows: int) -> list[Collective]:
        """Collectives of arrays with a dimension that is a multiple of `rows`.

        With a number of rows per device that divides nothing else in the program (a large prime), those that move
        activations.
        """
        return [c for c in self.collectives if any(n and n % rows == 0 for shape in c.shapes for n in shape)]


@dataclasses.dataclass
class _Instruction:
    name: str
    type: str
    op: str
    operands: list[str]
    rest: str  # attributes; of a constant its value


def read(text: str) -> Partitioned:
    """Counts in a program's text (HLO).

    A loop counts as often as it runs if that is written in its condition, else once; of a conditional the branch with
    most products counts.  An all-reduce of which every device keeps a slice is told as the reduce-scatter that compilers
    make of it.
    """
    computations, entry = _computations(text)
    devices = int(found[1]) if (found := re.search(r"num_partitions=(\d+)", text)) else 1
    types = {i.name: i.type for instructions in computations.values() for i in instructions}
    sliced = {name for instructions in computations.values() for name in _sliced(instructions)}
    totals: dict[str, Partitioned] = {}

    def total(name: str) -> Partitioned:
        if name not in totals:
            products, collectives = 0.0, []
            for instruction in computations[name]:
                if instruction.op in PRODUCTS:
                    products += PRODUCTS[instruction.op](instruction, types)
                kind = instruction.op.removesuffix("-start")
                if kind in COLLECTIVES:
                    kind = "reduce-scatter" if instruction.name in sliced else kind
                    collectives.append(_collective(kind, instruction, types, devices))
                times, inner = _called(instruction, computations)
                branches = [total(branch) for branch in inner if branch in computations]
                if branches:
                    dearest = max(branches, key=lambda branch: branch.products)
                    products += times * dearest.products
                    collectives += [dataclasses.replace(c, times=times * c.times) for c in dearest.collectives]
            totals[name] = Partitioned(products, tuple(collectives))
        return totals[name]

    return total(entry)


def split(lowered: jax.stages.Lowered, wait: bool = True) -> tuple[Partitioned, Partitioned]:
    """(the whole program, one device's part) of what is lowered for the CPU devices of this process.

    Args:
      lowered: of `jax.jit(...).lower(...)`.
      wait: let the backend make its machine code; if not, it goes on in a thread of which nobody hears any more, and
        the process should end by `os._exit`.

    Raises:
      LookupError: nothing was partitioned: there is one device, the compilation cache had the answer, or XLA failed.
    """
    with tempfile.TemporaryDirectory(prefix="partitioned-", ignore_cleanup_errors=True) as folder:
        compilation = threading.Thread(target=lowered.compile, args=(HASTE | dump(folder),), daemon=True)
        compilation.start()
        if wait:
            compilation.join()
        while True:
            over, counts = not compilation.is_alive(), counted(folder)
            if counts:
                return counts
            if over:
                raise LookupError(f"XLA wrote no program after {PASS}: one device, a compilation cache, or a failure")
            time.sleep(0.1)


def dump(folder: str | os.PathLike) -> dict[str, str]:
    """Options of a compilation that make it write into a folder what `counted` reads."""
    return {"xla_dump_to": os.fspath(folder), "xla_dump_hlo_pass_re": PASS}


def counted(folder: str | os.PathLike) -> tuple[Partitioned, Partitioned] | None:
    """(the whole program, one device's part) that a compilation with `dump(folder)` left there; None: not yet."""
    sides = [list(Path(folder).glob(f"*.{side}_{PASS}*.txt")) for side in ("before", "after")]
    if not all(sides):
        return None
    whole, part = (paths[0].read_text() for paths in sides)
    ended = re.search(r"^ENTRY .*\n(?:  .*\n)*}\s*\Z", part, re.M)
    return (read(whole), read(part)) if ended else None


# ---------------------------------------------------------------------------------------------- reading


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """{name: instructions} and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")):
            name = _found(r"%([\w.\-]+)", line)
            current = computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif current is not None and (m := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)):
            current.append(_instruction(m[1], m[2]))
    return computations, entry


def _found(pattern: str, text: str) -> str:
    """What the group of a pattern that must be there matched."""
    if (m := re.search(pattern, text)) is None:
        raise ValueError(f"no {pattern} in a program: {text[:80]}")
    return m[1]


def _instruction(name: str, rest: str) -> _Instruction:
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    value = inside if rest[:start] == "constant" else ""
    return _Instruction(name, kind, rest[:start], re.findall(r"%([\w.\-]+)", inside), value or rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` closes."""
    depth = 0
    for m in re.compile(r"[()]").finditer(text, start):
        depth += 1 if m[0] == "(" else -1
        if not depth:
            return m.start()
    raise ValueError(f"unbalanced brackets in a program: {text[:80]}")


def _arrays(kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(type, dimensions) of the arrays in a type's text."""
    for name, sizes in re.findall(r"([a-z]\w*)\[([\d,<= ]*)\]", kind):
        yield name, tuple(int(n) for n in re.findall(r"\d+", sizes))


def _shape(kind: str) -> tuple[int, ...]:
    return next(_arrays(kind))[1]


def _bytes(kind: str) -> float:
    return sum(math.prod(shape) * WIDTH.get(name, 1) for name, shape in _arrays(kind))


def _list(attribute: str, rest: str) -> list[int]:
    found = re.search(attribute + r"=\{([\d,]*)\}", rest)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _dot(instruction: _Instruction, types: Mapping[str, str]) -> float:
    left = _shape(types[instruction.operands[0]])
    depth = math.prod(left[d] for d in _list("lhs_contracting_dims", instruction.rest))
    return 2.0 * math.prod(_shape(instruction.type)) * depth


def _convolution(instruction: _Instruction, types: Mapping[str, str]) -> float:
    """As `flops`: padding counts as image, the zeros between the entries of a dilated image do not."""
    kernel = _shape(types[instruction.operands[1]])
    labels = _found(r"dim_labels=\w+_(\w+)->", instruction.rest)
    depth = math.prod(n for n, label in zip(kernel, labels, strict=False) if label != "o")
    dilation = re.search(r"lhs_dilate=([\dx]+)", instruction.rest)
    zeros = math.prod(int(n) for n in dilation[1].split("x")) if dilation else 1
    return 2.0 * math.prod(_shape(instruction.type)) * depth / zeros


PRODUCTS = {"dot": _dot, "convolution": _convolution}


def _sliced(instructions: list[_Instruction]) -> set[str]:
    """Names of the all-reduces that nothing but slices by a device's own number reads."""
    readers: dict[str, set[str]] = {}
    for instruction in instructions:
        for i, operand in enumerate(instruction.operands):
            readers.setdefault(operand, set()).add(instruction.op if i == 0 else "another operand")
    return {i.name for i in instructions if i.op == "all-reduce" and readers.get(i.name) == {"dynamic-slice"}}


def _collective(kind: str, instruction: _Instruction, types: Mapping[str, str], devices: int) -> Collective:
    sides = ["".join(types[name] for name in instruction.operands), instruction.type]
    shapes = tuple(shape for side in sides for _, shape in _arrays(side))
    operation = re.search(r'op_name="([^"]*)"', instruction.rest)
    entering, leaving = map(_bytes, sides)
    if instruction.op.endswith("-start"):  # of some kinds it also tells what enters
        leaving = max(leaving - entering, entering) if leaving > entering else leaving
    group = first_group(instruction.rest, devices)
    return Collective(kind, shapes, max(entering, leaving), 1, operation[1] if operation else "", group)


def _called(instruction: _Instruction, computations: Mapping[str, list[_Instruction]]) -> tuple[int, list[str]]:
    """How often an instruction runs other computations, and which of them (one, or alternatives)."""
    rest = instruction.rest
    if instruction.op == "while":
        condition, body = (_found(rf"{part}=%([\w.\-]+)", rest) for part in ("condition", "body"))
        return _repeats(rest, computations[condition]), [body]
    if instruction.op == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
        return 1, re.findall(r"%([\w.\-]+)", branches[1]) if branches else re.findall(r"\w+_computation=%([\w.\-]+)", rest)
    if instruction.op in ("call", "fusion", "async-start"):
        return 1, re.findall(r"(?:to_apply|calls|called_computation)=%([\w.\-]+)", rest)
    return 1, []


def _repeats(rest: str, condition: list[_Instruction]) -> int:
    """How often a loop runs that counts from zero to a constant; 1 if it is another kind of loop."""
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', rest):
        return int(known[1])
    constants = {i.name: int(i.rest) for i in condition if i.op == "constant" and i.rest.lstrip("-").isdigit()}
    compared = [i for i in condition if i.op == "compare" and "direction=LT" in i.rest and i.operands[-1] in constants]
    return constants[compared[0].operands[-1]] if len(compared) == 1 else 1
