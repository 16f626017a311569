"""Offers of running sums: additions across ciphertexts, or a product by a triangle of ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hesim.circuit.builder import Plain
from hesim.circuit.circuit import Kind
from hesim.circuit.packing.costs import counted, map_work, shaped
from hesim.circuit.packing.emission import Emission, Packed
from hesim.circuit.packing.layout import Layout
from hesim.circuit.packing.maps import map_plan
from hesim.circuit.packing.offers.offer import Offer, Setting
from hesim.circuit.packing.operations import Operation
from hesim.circuit.plain_rows import MapRows

__all__ = ["cumsum"]

_LONGEST = 2**12
"""Elements along an axis beyond which no triangle is made, which holds their square: it would take
hundreds of megabytes, and thousands of products.
"""


def cumsum(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,) = op.equations
    layout = layouts[0]
    axis = s.inner(eqn.inputs[0], eqn.params["axis"])
    if axis is None:
        return
    n, backwards = layout.shape[axis], bool(eqn.params["reverse"])
    if n == 1:
        yield Offer((layout,), (), lambda em, op, xs: [xs[0]])
        return
    if not layout.pieces(axis):
        return  # constant along it
    if _only_on_ciphertexts(layout, axis):
        yield _added_up(layout, axis, backwards)
        return
    if n > _LONGEST:
        return
    target = layout._replace(rolls=(), zeros=True).canonical()
    kept = tuple((a, a) for a in layout.axes if a != axis)
    plan = map_plan(layout, target, kept)
    if plan is None:
        return
    reach = np.tri(n, dtype=bool)  # (result, operand)
    weight = np.where(reach.T if backwards else reach, 0, -1).reshape(-1)

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        em.b.begin(em.source)
        rows = em.map_rows(plan, layout, target, kept, {axis: 1}, {axis: n}, weight=weight)
        made = em.b.end(em.mapped(plan, xs[0].nodes, _used(em, rows)))
        return [Packed(target, tuple(made), xs[0].gain)]

    yield Offer((target,), (map_work(plan),), emit)


def _used(em: Emission, rows: Sequence[Plain | None]) -> list[Plain | None]:
    """Without diagonals that lie on the empty side of the triangle."""
    number = next(p[0] for p in rows if p is not None)
    family = em.b.packs[number].rows
    assert isinstance(family, MapRows)
    return [p if there else None for p, there in zip(rows, family.rows_any(), strict=True)]


def _only_on_ciphertexts(layout: Layout, axis: int) -> bool:
    whole = layout.pieces(axis) == [c for c in layout.ciphers if c.axis == axis and c.stride == 1]
    return whole and all(axis not in (r.axis, r.by_axis) for r in layout.rolls)


def _added_up(layout: Layout, axis: int, backwards: bool) -> Offer:
    (c,) = layout.pieces(axis)
    k = layout.ciphers.index(c)
    below = int(np.prod([d.size for d in layout.ciphers[:k]], dtype=np.int64))
    count = layout.ciphertexts
    order = list(range(c.size))[:: -1 if backwards else 1]
    adds = count // c.size * (c.size - 1)

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        b = em.b
        b.begin(em.source)
        made = [0] * count
        for start in range(count):
            if start // below % c.size:
                continue
            total: int | None = None
            for p in order:
                at = start + below * p
                node = xs[0].nodes[at]
                total = b.add([(1, node)] if total is None else [(1, total), (1, node)])
                made[at] = total
        return [Packed(layout, tuple(b.end(made)), xs[0].gain)]

    return Offer((layout,), (shaped((counted(Kind.ADD, adds, 2),), 0, count),), emit)
