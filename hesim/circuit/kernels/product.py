"""Products of encrypted tensors, summed over terms: elementwise products and contractions.

Two elements meet in the slot of the left one: the right operand is rotated by the distance. All
products with the same left ciphertext, right ciphertext and distance are one ciphertext product, so
that contracting two tensors over an axis that lies on different slots in each comes out in a skewed
layout (diagonals), with no masks. Sums are taken at double scale, before one relinearization.
"""

from __future__ import annotations

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.cost import relative_cost
from hesim.circuit.kernels import reduce
from hesim.circuit.kernels import spread as spreading
from hesim.circuit.layout import unique_rows

__all__ = ["apply"]

Places = tuple[np.ndarray, np.ndarray]


def apply(
    b: Builder, source: int, left: Places, right: Places
) -> tuple[np.ndarray, np.ndarray, float]:
    """Sum over terms of left * right.

    Args:
      left, right: (node, column), each int (results, terms); node -1 is zero.

    Returns:
      (node, column, gain) of the results, each (results,), node -1 where a result is exactly zero.
    """
    plans = [_plan(b, left, right), _plan(b, right, left)]
    best = min(plans, key=lambda plan: plan.cost)
    copied = [
        _copied(b, source, one, other, best.cost) for one, other in ((left, right), (right, left))
    ]
    offers = [offer for offer in copied if offer is not None]
    if offers:
        best = min(offers, key=lambda offer: offer[0])[1]()
    node = best.emit(b, source)
    column = best.column
    if node.shape[1] == 1:
        return node[:, 0], column[:, 0], 1.0
    return reduce.apply(b, source, node, column)


def _copied(b: Builder, source: int, anchor: Places, other: Places, bound: float):
    """The offer to copy `other` to the anchor's columns first: (cost, plan maker), or None."""
    flat = [t.reshape(-1) for t in (other[0], other[1], anchor[1])]
    both = (flat[0] >= 0) & (anchor[0].reshape(-1) >= 0)
    spread = spreading.plan(b, np.where(both, flat[0], -1), flat[1], flat[2])
    if spread is None or spread.cost >= bound:
        return None
    aligned = _plan(b, anchor, (other[0], anchor[1]))
    # A mask takes a level, and levels come from refreshes, about two rotations a ciphertext.
    cost = spread.cost + aligned.cost + relative_cost(rotations=2 * len(aligned.members))
    if cost >= bound:
        return None

    def make() -> _Alignment:
        table = np.full(len(b.nodes) + 1, -1, np.int64)
        for old, new in spread.emit(b, source).items():
            table[old] = new
        return _plan(b, anchor, (table[other[0]], anchor[1]))

    return cost, make


def _column_groups(column: np.ndarray, node: np.ndarray) -> list[np.ndarray]:
    """Terms that lie in one column in every result: they are summed as ciphertexts."""
    results, terms = column.shape
    if terms == 1:
        return [np.arange(1)]
    pattern = column - column[:, :1]
    if results and np.all(pattern == pattern[:1]):
        _, group = np.unique(pattern[0], return_inverse=True)
    else:
        _, group = (
            unique_rows(np.ascontiguousarray(column.T))
            if results * terms < 10**7
            else (None, np.arange(terms))
        )
    group = np.asarray(group).reshape(-1)
    return [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]


class _Alignment:
    """One way to align: everything about it but the emission."""

    def __init__(
        self,
        column: np.ndarray,
        klass: np.ndarray,
        members: list[np.ndarray],
        counts: list[np.ndarray],
        triples: np.ndarray,
        step: int,
        cost: float,
    ):
        self.column = column
        self.klass = klass
        self.members = members
        self.counts = counts
        self.triples = triples
        self.step = step
        self.cost = cost

    def emit(self, b: Builder, source: int) -> np.ndarray:
        live = [k for k in range(len(self.members)) if len(self.members[k])]
        out = np.full(len(self.members), -1, np.int32)
        if live:
            b.reserve_nodes(2 * sum(map(len, self.members)))
            b.begin(source)
            made = b.end([self._class(b, k) for k in live])
            out[live] = made
        return out[self.klass]

    def _class(self, b: Builder, k: int) -> int:
        groups: dict[int, list[tuple[int, int, int]]] = {}
        for t, count in zip(self.members[k], self.counts[k], strict=True):
            first, second, shift = (int(x) for x in self.triples[t])
            giant = shift - shift % self.step if self.step else 0
            groups.setdefault(giant, []).append(
                (int(count), b.rotate(first, -giant), b.rotate(second, shift - giant))
            )
        parts = []
        for giant, terms in sorted(groups.items()):
            parts.append(b.rotate(b.rescale(b.dot(terms)), giant))
        return parts[0] if len(parts) == 1 else b.add([(1, n) for n in parts])


def _plan(b: Builder, anchor: Places, other: Places) -> _Alignment:
    groups = _column_groups(anchor[1], anchor[0])
    results = len(anchor[0])
    most = max(len(g) for g in groups)
    shape = (results, len(groups), most)
    node_a = np.full(shape, -1, np.int64)
    node_b = np.full(shape, -1, np.int64)
    shift = np.zeros(shape, np.int64)
    column = np.zeros(shape[:2], np.int32)
    period = np.asarray([*b.period, b.columns])
    for g, members in enumerate(groups):
        n = len(members)
        node_a[:, g, :n] = anchor[0][:, members]
        node_b[:, g, :n] = other[0][:, members]
        column[:, g] = anchor[1][:, members[0]]
        distance = (other[1][:, members].astype(np.int64) - anchor[1][:, members]) % b.columns
        shift[:, g, :n] = distance % period[other[0][:, members]]
    present = (node_a >= 0) & (node_b >= 0)
    flat = [np.where(present, x, 0).reshape(-1) for x in (node_a, node_b, shift)]
    triples, ids = unique_rows(np.stack(flat, 1))
    klass, members, counts = reduce.signatures(
        ids.reshape(results * len(groups), most), present.reshape(results * len(groups), most)
    )
    step, cost = _baby_steps(b, triples, members)
    if len(groups) > 1:
        cost += relative_cost(rotations=len(members) / len(groups) * np.log2(len(groups)))
    return _Alignment(column, klass.reshape(shape[:2]), members, counts, triples, step, cost)


def _baby_steps(b: Builder, triples: np.ndarray, members: list[np.ndarray]) -> tuple[int, float]:
    """Baby-step modulus (0: none) and relative cost of the cheapest split of the distances."""
    used = np.concatenate(members) if members else np.zeros(0, int)
    label = np.repeat(np.arange(len(members)), [len(m) for m in members])
    first, second, shift = triples[used].T if len(used) else (used, used, used)

    def cost(step: int) -> float:
        baby = shift % step if step else shift
        giant = shift - baby
        moved, turned = baby > 0, giant > 0
        rotations = len(np.unique(second[moved] * b.columns + baby[moved]))
        rotations += len(np.unique(first[turned] * b.columns + giant[turned]))
        parts = np.unique(label * b.columns + giant)
        rotations += len(np.unique(label[turned] * b.columns + giant[turned]))
        return relative_cost(
            rotations=rotations + len(parts), products=len(used), rescales=len(parts)
        )

    best, chosen = cost(0), 0
    moved = shift[shift > 0]
    if len(np.unique(moved)) >= 3:
        step = 2 * int(np.gcd.reduce(moved))
        while step < b.columns:
            here = cost(step)
            if here < best:
                best, chosen = here, step
            step *= 2
    return chosen, best
