"""How long the collectives of a partitioned program take on the links of a machine, beside its products.

A ring of g devices passes an array of B bytes around in g − 1 pieces of B/g each: gathering or scattering it takes

    B (g − 1) / (g · rate)                                                                             (1)

and an all-reduce, which is both, twice that.  Where a ring leaves an island, all its members there send outside at once.
Latency is left out, and so is what other collectives do on the same links at the same time: a lower bound of what
communication takes by itself.  How much of it hides behind products is between two bounds: nothing (the sum) and all
(the longer of both).
"""

import dataclasses
from collections.abc import Iterable

from didr_jax.planning.partitioned import Collective
from didr_jax.planning.targets import Island

# How often (1) is taken.  A pair of a permutation sends the whole array once.
ROUNDS = {"all-reduce": 2.0}


@dataclasses.dataclass(frozen=True)
class Communication:
    """Of one step of a device: seconds within its island and beyond it, and bytes that it sends, `inside` and `outside`."""

    inside: float
    outside: float
    sent_inside: float
    sent_outside: float

    @property
    def seconds(self) -> float:
        return self.inside + self.outside

    def step(self, products: float) -> tuple[float, float]:
        """Seconds of a step whose products take so many: where nothing overlaps, and where all does."""
        return products + self.seconds, max(products, self.seconds)


def communication(collectives: Iterable[Collective], island: Island) -> Communication:
    """Equation (1), summed over the collectives of a device."""
    seconds, sent = [0.0, 0.0], [0.0, 0.0]
    for c in collectives:
        g = max(len(c.group), 1)
        share = 1.0 if c.kind == "collective-permute" else (g - 1) / g
        size = ROUNDS.get(c.kind, 1.0) * share * c.bytes * c.times
        rate, leaves = _rate(c.group, island)
        seconds[leaves] += size / rate
        sent[leaves] += size
    return Communication(seconds[0], seconds[1], sent[0], sent[1])


def _rate(group: tuple[int, ...], island: Island) -> tuple[float, bool]:
    """(bytes per second of a device in a ring, whether the ring leaves the island)."""
    inside = island.rate if len(group) >= island.closed else island.rate / 2
    islands = {place // island.size for place in group}
    if len(islands) <= 1:
        return inside, False
    return min(inside, island.outside * len(group) / len(islands)), True
