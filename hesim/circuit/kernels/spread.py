"""Copies of elements to the columns where another operand needs them.

An operand whose elements sit in few columns (one token of many, a sum) meets a wide one cheapest if
it is copied along the columns once: a mask and a logarithmic number of rotations, where aligning
pair by pair would cost a product for every distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import PlaintextFamily
from hesim.circuit.cost import relative_cost
from hesim.circuit.kernels import linear
from hesim.circuit.kernels.reduce import rotate_and_sum
from hesim.circuit.layout import unique_rows

__all__ = ["Spread", "plan"]


@dataclass(frozen=True, eq=False)
class Spread:
    """How to put copies of elements where they are wanted.

    Attributes:
      pairs: int64 (k, 3): node, wanted column, present column; one present column for each wanted.
      regular: per node (present columns, distances), or None where they form no grid.
      cost: in rotations at a middling level.
    """

    pairs: np.ndarray
    regular: dict[int, tuple[np.ndarray, np.ndarray]] | None
    cost: float

    def emit(self, b: Builder, source: int) -> dict[int, int]:
        """Emits the copies; returns old node -> new node."""
        nodes = [int(n) for n in np.unique(self.pairs[:, 0])]
        if self.regular is None:
            number = {n: k for k, n in enumerate(nodes)}
            out = np.array([number[int(n)] for n in self.pairs[:, 0]])
            terms = linear.Terms(out, self.pairs[:, 1], self.pairs[:, 0], self.pairs[:, 2])
            return dict(zip(nodes, linear.apply(b, source, terms, None), strict=True))
        clean = self._masked(b, source, nodes)
        b.begin(source)
        made = []
        for n, c in zip(nodes, clean, strict=True):
            steps = sorted(int(-d % b.columns) for d in self.regular[n][1])
            node = rotate_and_sum(b, c, steps)
            if node == c:
                node = b.add([(1, c)])
            made.append(node)
        return dict(zip(nodes, b.end(made), strict=True))

    def _masked(self, b: Builder, source: int, nodes: list[int]) -> list[int]:
        assert self.regular is not None
        table = np.full((len(nodes), b.columns), -1, np.int32)
        for k, n in enumerate(nodes):
            table[k, self.regular[n][0]] = 0
        if all(not np.any(b.support[n] & (table[k] < 0)) for k, n in enumerate(nodes)):
            return nodes
        number = b.pack(PlaintextFamily(-1, table, 0, b.batch, b.width, b.columns, 1.0, np.ones(1)))
        b.begin(source)
        return b.end([b.rescale(b.dot_plain([(n, (number, k))])) for k, n in enumerate(nodes)])


def plan(b: Builder, node: np.ndarray, column: np.ndarray, at: np.ndarray) -> Spread | None:
    """A way to have each element at the column `at` too, or None if two would share a slot.

    Args:
      node, column: flat places of the elements; node -1 is zero. at: flat, wanted columns.
    """
    live = node >= 0
    pairs = unique_rows(np.stack([node[live], at[live], column[live]], 1).astype(np.int64))[0]
    if not len(pairs) or np.all(pairs[:, 1] == pairs[:, 2]):
        return None
    if np.any(np.all(pairs[1:, :2] == pairs[:-1, :2], axis=1)):
        return None
    regular: dict[int, tuple[np.ndarray, np.ndarray]] | None = {}
    nodes, starts = np.unique(pairs[:, 0], return_index=True)
    for n, part in zip(nodes, np.split(pairs, starts[1:]), strict=True):
        sources = np.unique(part[:, 2])
        distance = (part[:, 1] - part[:, 2]) % b.columns
        distances = np.unique(distance)
        grid = unique_rows(np.stack([part[:, 2], distance], 1))[0]
        if len(grid) != len(sources) * len(distances) or b.period[int(n)] < b.columns:
            regular = None
            break
        regular[int(n)] = (sources, distances)
    if regular is None:
        shifts = unique_rows(np.stack([pairs[:, 0], (pairs[:, 2] - pairs[:, 1]) % b.columns], 1))[0]
        cost = relative_cost(
            rotations=2 * np.sqrt(len(shifts)), plain_products=len(shifts), rescales=len(nodes)
        )
    else:
        turns = sum(np.ceil(np.log2(max(len(d), 1))) for _, d in regular.values())
        cost = relative_cost(
            rotations=float(turns),
            plain_products=len(nodes),
            rescales=len(nodes),
            additions=float(turns),
        )
    return Spread(pairs, regular, cost)
