"""Tables of weight names, read in both directions: their rows.

A table is a list of `Rule`s.  Each says how a torch tensor `down_blocks.0.resnets.1.conv1.weight` is
called in the Flax parameters, `down_blocks_0/resnets_1/conv1/kernel`, and how its axes are laid out:

    TABLE = [*layer("down_blocks.(\\d+).resnets.(\\d+).(conv1|conv2)", "down_blocks_{}/resnets_{}/{}"),
             *norm("conv_norm_out", "norm_out")]

The pattern is literal text (a dot is a dot) with regular expressions in groups; the n-th group fills
the n-th `{}` of the target.  Because nothing but groups varies, the same row also reads from right to
left.  Where several rows lead to one Flax leaf, all are understood on reading (names of older
checkpoints) and the first is written.

* A group `(?P<layer>\\d+)` is the index of a scanned layer: it has no `{}`, and the tensors of all
  layers are stacked on a new first axis of the Flax leaf.
* `part=(i, n)` takes the i-th of n equal pieces of the torch tensor's first axis (a fused q, k, v); the
  n rows share one pattern, and writing joins the pieces again.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

# name -> (torch -> flax, flax -> torch).  All are views: no bytes are read or copied.
LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "as_is": (lambda w: w, lambda w: w),
    # Linear [out, in] <-> [in, out]; Conv2d [out, in, h, w] <-> [h, w, in, out]; 1-D and 3-D likewise.
    "kernel": (
        lambda w: w.transpose(*range(2, w.ndim), 1, 0),
        lambda w: w.transpose(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2)),
    ),
    # A 1x1 convolution kept as a matrix, [out, in, 1, 1] <-> [in, out].
    "conv_1x1": (lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None]),
    # A parameter with a leading axis of length one on the torch side only, [1, ...] <-> [...].
    "squeeze": (lambda w: w[0], lambda w: w[None]),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table: torch name pattern, Flax path (None: ignored on reading), layout, part."""

    pattern: str
    target: str | None
    layout: str = "as_is"
    part: tuple[int, int] | None = None

    def __post_init__(self):
        _ = self._pieces  # a row that cannot be read both ways is refused where it is written

    @functools.cached_property
    def _pieces(self) -> list[str]:
        """The pattern as [literal, group, literal, ..., literal]."""
        pieces = re.split(r"(\((?:[^()\\]|\\.)*\))", self.pattern)
        pieces[::2] = [text.replace(r"\.", ".") for text in pieces[::2]]
        groups = [g for g in pieces[1::2] if not g.startswith("(?P<layer>")]
        if len(pieces) // 2 - len(groups) > 1 or any(c in "".join(pieces[::2]) for c in "()[]{}*+?|^$\\"):
            raise ValueError(f"{self.pattern!r}: only literal text and groups without groups inside")
        if self.target is not None and self.target.count("{}") != len(groups):
            raise ValueError(f"{self.pattern!r} -> {self.target!r}: one {{}} for each group")
        return pieces

    @functools.cached_property
    def _torch_name(self) -> re.Pattern:
        return re.compile("".join(re.escape(p) if i % 2 == 0 else p for i, p in enumerate(self._pieces)))

    @functools.cached_property
    def _flax_path(self) -> re.Pattern:
        groups = iter([g for g in self._pieces[1::2] if not g.startswith("(?P<layer>")])
        first, *rest = map(re.escape, (self.target or "").split("{}"))
        return re.compile(first + "".join(next(groups) + text for text in rest))

    @property
    def stacked(self) -> bool:
        return any(g.startswith("(?P<layer>") for g in self._pieces[1::2])

    def flax_path(self, torch_name: str) -> tuple[str | None, int] | None:
        """(Flax path, layer index) of a torch tensor; None if the row is not about it."""
        m = self._torch_name.fullmatch(torch_name)
        if m is None:
            return None
        index = m.re.groupindex.get("layer")
        values = [v for i, v in enumerate(m.groups(), 1) if i != index]
        return self.target and self.target.format(*values), int(m["layer"]) if index else 0

    def torch_name(self, flax_path: str) -> Callable[[int], str] | None:
        """Layer index -> torch name of a Flax leaf; None if the row is not about it."""
        m = None if self.target is None else self._flax_path.fullmatch(flax_path)
        if m is None:
            return None

        def name(i: int) -> str:
            values = iter(m.groups())
            fill = (str(i) if p.startswith("(?P<layer>") else next(values) for p in self._pieces[1::2])
            return "".join(p if k % 2 == 0 else next(fill) for k, p in enumerate(self._pieces))

        return name


def layer(pattern: str, target: str, *, layout: str = "kernel") -> list[Rule]:
    """A Linear or Conv with or without bias."""
    return [Rule(f"{pattern}.weight", f"{target}/kernel", layout), Rule(f"{pattern}.bias", f"{target}/bias")]


def norm(pattern: str, target: str) -> list[Rule]:
    """A LayerNorm, GroupNorm or RMSNorm with or without bias."""
    return [Rule(f"{pattern}.weight", f"{target}/scale"), Rule(f"{pattern}.bias", f"{target}/bias")]


def embedding(pattern: str, target: str) -> list[Rule]:
    """An Embedding table."""
    return [Rule(f"{pattern}.weight", f"{target}/embedding")]


def ignore(pattern: str) -> list[Rule]:
    """Tensors of the file that the Flax model has no use for (position_ids and the like)."""
    return [Rule(pattern, None)]
