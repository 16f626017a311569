"""Offers of sums over axes, of a tensor or of a product."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hesim.circuit.circuit import Kind
from hesim.circuit.packing.arrangement import cipher_table, cleared, reduction, straight
from hesim.circuit.packing.costs import counted, map_work, shaped
from hesim.circuit.packing.emission import Emission, Packed, reduced_groups
from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout, Roll
from hesim.circuit.packing.maps import MapPlan, map_plan
from hesim.circuit.packing.offers.elementwise import meetings
from hesim.circuit.packing.offers.offer import Offer, Setting
from hesim.circuit.packing.operations import Operation
from hesim.program import Equation

__all__ = ["dotted", "reduce_sum", "sum_of_products"]


def _summed(s: Setting, eqn: Equation) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(summed axes, remaining axes) of one member; None if the batch is summed."""
    x = eqn.inputs[0]
    axes = [s.inner(x, a) for a in eqn.params["axes"]]
    if None in axes:
        return None
    gone = tuple(a for a in axes if a is not None)
    rest = tuple(a for a in range(len(s.shape(x))) if a not in gone)
    return gone, rest


def _constant_factor(layout: Layout, axes: Sequence[int]) -> int:
    return math.prod(layout.shape[a] for a in axes if not layout.pieces(a))


def reduce_sum(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    found = _summed(s, op.equations[0])
    if found is None:
        return
    axes, rest = found
    layout = layouts[0]
    plan = reduction(layout, axes, rest)
    factor = _constant_factor(layout, axes)
    if plan is not None:
        adds = max(layout.ciphertexts // len(plan.groups), 1)
        rows = (counted(Kind.ADD, len(plan.groups), adds), *plan.rows())

        def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
            made = reduced_groups(em, xs[0], plan)
            return [em.times(Packed(plan.layout, tuple(made), xs[0].gain), float(factor))]

        yield Offer((plan.layout,), (shaped(rows, 0, len(plan.groups)),), emit)
        return
    yield from _summed_by_map(layout, axes, rest, factor)
    unrolled = straight(layout)
    if unrolled is not None:
        for offer in reduce_sum(s, op, (unrolled,)):
            yield replace(offer, operands=(unrolled,))


def _summed_by_map(
    layout: Layout, axes: tuple[int, ...], rest: tuple[int, ...], factor: int
) -> Iterator[Offer]:
    """The sum over an axis by which another is rolled: unrolled and summed by one map."""
    names = {a: k for k, a in enumerate(rest)}
    shape = tuple(layout.shape[a] for a in rest)
    kept = tuple((a, k) for a, k in names.items() if layout.pieces(a))
    for target in (_swapped(layout, axes), _unrolled(layout, axes)):
        if target is None:
            continue
        target = target.renamed(shape, names).canonical()
        plan = map_plan(layout, target, kept)
        if plan is None:
            continue

        def emit(
            em: Emission,
            op: Operation,
            xs: tuple[Packed, ...],
            target: Layout = target,
            plan: MapPlan = plan,
        ) -> list[Packed]:
            em.b.begin(em.source)
            plains = em.map_rows(plan, layout, target, kept)
            made = em.b.end(em.mapped(plan, xs[0].nodes, plains))
            return [em.times(Packed(target, tuple(made), xs[0].gain), float(factor))]

        yield Offer((target,), (map_work(plan),), emit)


def _unrolled(layout: Layout, axes: tuple[int, ...]) -> Layout:
    """Replicated where a summed axis lies, nothing rolled."""
    slots = tuple(Coordinate(REPLICATED, c.size) if c.axis in axes else c for c in layout.slots)
    ciphers = tuple(c for c in layout.ciphers if c.axis not in axes)
    return layout._replace(slots=slots, ciphers=ciphers, rolls=(), zeros=True)


def _swapped(layout: Layout, axes: tuple[int, ...]) -> Layout | None:
    """What one summed axis rolled lies where that was, rolled by where it lay itself: each result
    is then the sum along a diagonal, and all positions along it hold it by the same few shifts.

    None if more than that is rolled, both are summed, or they are not of one size.
    """
    if len(layout.rolls) != 1 or layout.rolls[0].factor != 1:
        return None
    (roll,) = layout.rolls
    own, by = layout.pieces(roll.axis), layout.pieces(roll.by_axis) if roll.by_axis >= 0 else []
    if len(own) != 1 or len(by) != 1 or own[0].size != by[0].size:
        return None
    (c,), (d,) = own, by
    if roll.by_axis not in axes or roll.axis in axes or d not in layout.slots:
        return None
    slots = []
    for e in layout.slots:
        if e == c:
            slots.append(Coordinate(REPLICATED, c.size, 1))
        elif e == d:
            slots.append(c)
        else:
            slots.append(Coordinate(REPLICATED, e.size) if e.axis in axes else e)
    ciphers = tuple(e for e in layout.ciphers if e.axis not in axes and e != c)
    # On ciphertexts each diagonal is one, turned as a whole.
    rolls = (Roll(roll.axis, REPLICATED, 1, 1),) if c in layout.slots else ()
    return layout._replace(slots=tuple(slots), ciphers=ciphers, rolls=rolls, zeros=True)


def sum_of_products(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    product, total = op.equations
    found = _summed(s, total)
    if found is None:
        return
    axes, rest = found
    shape = s.shape(product.outputs[0])
    pair = layouts[0], layouts[-1]
    for both, moved in meetings(pair, shape):
        a, b = (x if y is None else y for x, y in zip(pair, moved, strict=True))
        offer = dotted(cleared(both, a, b), axes, rest, moved)
        if offer is not None:
            yield offer


def dotted(
    both: Layout,
    axes: tuple[int, ...],
    rest: tuple[int, ...],
    moved: tuple[Layout | None, ...],
    names: tuple[Mapping[int, int], Mapping[int, int]] | None = None,
) -> Offer | None:
    """Products where both operands lie, summed: one relinearization and rescale a result.

    names: axes of the operands in the layout in which they meet, if they are others there.
    """
    plan = reduction(both, axes, rest)
    if plan is None:
        return None
    factor = _constant_factor(both, axes)
    count = len(plan.groups)
    terms = max(both.ciphertexts // count, 1)
    rows = (
        counted(Kind.DOT, count, terms),
        counted(Kind.RELINEARIZE, count),
        counted(Kind.RESCALE, count),
        *plan.rows(1),
    )

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        left = em.bounded(xs[0])
        right = left if xs[-1] is xs[0] else em.bounded(xs[-1])
        views = [x.layout for x in (left, right)]
        if names is not None:
            views = [v.renamed(both.shape, dict(n)) for v, n in zip(views, names, strict=True)]
        i, j = (cipher_table(both, v).tolist() for v in views)
        b = em.b
        b.begin(em.source)
        made = []
        for group in plan.groups:
            node = b.rescale(b.dot([(1, left.nodes[i[k]], right.nodes[j[k]]) for k in group]))
            made.append(em.reduced(node, plan.steps))
        out = Packed(plan.layout, tuple(b.end(made)), left.gain * right.gain)
        return [em.times(out, float(factor))]

    return Offer((plan.layout,), (shaped(rows, 1, count),), emit, moved)
