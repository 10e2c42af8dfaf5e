"""Which devices take part in a collective, in all forms in which XLA writes it.

replica_groups={{0,1},{2,3}}                         listed
replica_groups=[4,2]<=[2,4]T(1,0)                    numbers from 0 in [2,4], transposed, as [4,2]: groups are rows
replica_groups=mesh['a'=2,'b'=4] {'b'}               along axes of a mesh, or parts of them: 'b':(1)2
source_target_pairs={{0,1},{1,2}}                    who sends to whom
"""

import math
import re

import numpy as np


def first_group(rest: str, devices: int) -> tuple[int, ...]:
    """The first of the groups in which a collective runs.

    Args:
      rest: attributes of its instruction.
      devices: of the program, which all take part where no groups are written.

    Returns:
      Places in the mesh; of a permutation the pair that is farthest apart.

    Raises:
      ValueError: groups of another form.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}\s]*\})\}", rest):
        each = [tuple(int(n) for n in re.findall(r"\d+", pair)) for pair in re.findall(r"\{[^{}]*\}", pairs[1])]
        return max(each, key=lambda pair: abs(pair[0] - pair[1]))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(n) for n in listed[1].split(","))
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = ([int(n) for n in part.split(",")] if part else [] for part in counted.groups())
        numbers = np.arange(math.prod(dims)).reshape(dims)
        return tuple(numbers.transpose(order or range(len(dims))).reshape(shape)[0].tolist())
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", rest
    ):
        return _along(named[1], named[2], named[3], named[4])
    if re.search(r"replica_groups=(?!\{\})", rest):
        raise ValueError(f"groups of another form in a program: {rest[:120]}")
    return tuple(range(devices))


def _along(mesh: str, dims: str | None, order: str | None, axes: str) -> tuple[int, ...]:
    """The first group along some axes of a mesh, each `'name'` or a part of one, `'name':(entries before it)entries`."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    numbers = np.arange(math.prod(sizes.values()))
    if dims:
        shape = [int(n) for n in dims.split(",")]
        numbers = numbers.reshape(shape).transpose([int(n) for n in order.split(",")] if order else range(len(shape)))
    numbers = numbers.reshape(list(sizes.values()))
    at = {name: np.zeros(1, int) for name in sizes}  # of the group's members, their place on each axis
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        n = int(part or sizes[name])
        step = sizes[name] // (int(before or 1) * n)
        count = len(at[name])
        at = {other: np.repeat(places, n) for other, places in at.items()}
        at[name] = at[name] + np.tile(np.arange(n) * step, count)
    return tuple(sorted(numbers[tuple(at.values())].tolist()))
