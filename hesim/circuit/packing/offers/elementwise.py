"""Offers of elementwise operations: sums, products, powers, polynomials, refreshes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from approx.polynomial import Polynomial
from hesim.circuit import gains
from hesim.circuit.circuit import Kind
from hesim.circuit.kernels import polynomial as chebyshev
from hesim.circuit.packing.arrangement import cipher_table, cleared, held, joined, like, relay
from hesim.circuit.packing.costs import counted, shaped
from hesim.circuit.packing.emission import Emission, Packed
from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout
from hesim.circuit.packing.offers.offer import Emit, Offer, Setting, public_operand
from hesim.circuit.packing.operations import Operation
from hesim.circuit.shape import StageShape
from hesim.program import Equation

__all__ = [
    "add",
    "identity",
    "meetings",
    "mul",
    "neg",
    "polynomial",
    "power",
    "products",
    "refresh",
    "views",
]


def identity(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        return [Packed(layouts[0], xs[0].nodes, xs[0].gain)]

    yield Offer((layouts[0],), (), emit)


def neg(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        return [replace(xs[0], gain=-xs[0].gain)]

    yield Offer((layouts[0],), (), emit)


def meetings(
    layouts: tuple[Layout, ...], shape: tuple[int, ...]
) -> Iterator[tuple[Layout, tuple[Layout | None, ...]]]:
    """Layouts in which two operands meet, and what each is brought to."""
    a, b = layouts
    both = joined(a, b, shape)
    if both is not None:
        yield both, (None, None)
        return
    for model, other, first in ((a, b, False), (b, a, True)):
        target = like(model, other.axes, other.shape, other.zeros)
        if target is None or not set(other.axes) <= set(target.axes):
            target = _widened(model, other)
        if target is None or relay(other, target) is None:
            continue
        both = joined(model, target, shape)
        if both is not None:
            yield both, ((target, None) if first else (None, target))


def _widened(model: Layout, other: Layout) -> Layout | None:
    """A layout for `other` as the model's, with the axes that the model lacks on ciphertexts or on
    its replicated coordinates.
    """
    base = like(model, other.axes, other.shape, other.zeros)
    if base is None:
        return None
    slots, ciphers, rolls = list(base.slots), list(base.ciphers), base.rolls
    for axis in other.axes:
        if base.pieces(axis):
            continue
        extent = other.shape[axis]
        size = 1 << (extent - 1).bit_length()
        for k, c in enumerate(slots):
            if c.axis != REPLICATED or c.size < size or (c.stride and c.size != extent):
                continue
            rest = [Coordinate(REPLICATED, c.size // size)] if c.size > size else []
            slots[k : k + 1] = [Coordinate(axis, size, 1), *rest]
            mark = REPLICATED, c.stride
            rolls = tuple(
                r._replace(by_axis=axis, by_stride=1) if (r.by_axis, r.by_stride) == mark else r
                for r in rolls
            )
            break
        else:
            ciphers.append(Coordinate(axis, extent, 1))
    found = base._replace(slots=tuple(slots), ciphers=tuple(ciphers), rolls=tuple(sorted(rolls)))
    return found.canonical()


def add(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,) = op.equations
    sign = -1 if eqn.name == "sub" else 1
    if all(v.encrypted for v in eqn.inputs):
        if len(layouts) == 1:
            yield from _doubled(layouts[0], sign)
            return
        shape = s.shape(op.outputs[0])
        for both, moved in meetings(layouts, shape):
            work = shaped((counted(Kind.ADD, both.ciphertexts, 2),), 0, both.ciphertexts)

            def emit(
                em: Emission, op: Operation, xs: tuple[Packed, ...], both: Layout = both
            ) -> list[Packed]:
                return [_sum(em, both, xs[0], xs[1], sign)]

            yield Offer((both,), (work,), emit, moved)
        return
    yield from _with_public(s, op, layouts[0], sign)


def _doubled(layout: Layout, sign: int) -> Iterator[Offer]:
    if sign < 0:
        yield from _zero(layout)
        return

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        return [em.times(xs[0], 2.0)]

    yield Offer((layout,), (), emit)


def _zero(layout: Layout) -> Iterator[Offer]:
    w = layout.ciphertexts
    rows = (counted(Kind.DOT_PLAIN, w, 1, scalar=True), counted(Kind.RESCALE, w))

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        (plain,) = em.literals([0.0])
        em.b.begin(em.source)
        made = [em.b.rescale(em.b.dot_plain([(n, plain)])) for n in xs[0].nodes]
        return [Packed(layout, tuple(em.b.end(made)))]

    yield Offer((layout,), (shaped(rows, 1, w),), emit)


def _sum(em: Emission, both: Layout, left: Packed, right: Packed, sign: int) -> Packed:
    met = gains.meeting(left.gain, sign * right.gain)
    if met is None:
        fewer = len(left.nodes) < len(right.nodes)
        if gains.scales_left(left.gain, right.gain, fewer=fewer):
            left = em.with_gain(left, right.gain)
        else:
            right = em.with_gain(right, left.gain)
        met = (1, sign), left.gain
    (f, g), gain = met
    a, b = (cipher_table(both, x.layout).tolist() for x in (left, right))
    em.b.begin(em.source)
    made = [em.b.add([(f, left.nodes[i]), (g, right.nodes[j])]) for i, j in zip(a, b, strict=True)]
    out = Packed(both, tuple(em.b.end(made)), gain)
    grown = max(em.b.growth[n] for n in out.nodes)
    return em.with_gain(out, math.copysign(1.0, gain)) if gains.inflated(grown, gain) else out


def _varying(s: Setting, eqn: Equation, kind: str = "value") -> set[int] | None:
    """Axes of the result along which the public operand varies; None if it is laid out unevenly."""
    var = eqn.outputs[0]
    value = public_operand(eqn)
    view = s.publics.view(value, var.shape, kind)
    out = set()
    for axis in range(len(var.shape)):
        inner = s.inner(var, axis)
        if inner is not None and var.shape[axis] > 1:
            first = view.index.take([0], axis=axis)
            if np.any(view.index != first):
                out.add(inner)
    return out


def views(layout: Layout, axes: set[int], shape: tuple[int, ...]) -> Iterator[Layout]:
    """The layout, of this shape, with coordinates for those of `axes` that it has none for."""
    missing = [a for a in sorted(axes) if not layout.pieces(a)]
    base = layout._replace(shape=shape)
    ways = []
    for axis in missing:
        size = 1 << (shape[axis] - 1).bit_length()
        fits = [c for c in base.slots if c.axis == REPLICATED and c.stride == 0 and c.size >= size]
        ways.append([None, *fits[:1]])
    for pick in itertools.product(*ways):
        slots, ciphers = list(base.slots), list(base.ciphers)
        for axis, coordinate in zip(missing, pick, strict=True):
            if coordinate is None or coordinate not in slots:
                ciphers.append(Coordinate(axis, shape[axis], 1))
                continue
            size = 1 << (shape[axis] - 1).bit_length()
            k = slots.index(coordinate)
            rest = (
                [Coordinate(REPLICATED, coordinate.size // size)] if coordinate.size > size else []
            )
            slots[k : k + 1] = [Coordinate(axis, size, 1), *rest]
        zeros = base.zeros and not missing
        yield base._replace(slots=tuple(slots), ciphers=tuple(ciphers), zeros=zeros).canonical()


def _with_public(s: Setting, op: Operation, layout: Layout, sign: int) -> Iterator[Offer]:
    (eqn,) = op.equations
    var, value = eqn.outputs[0], public_operand(eqn)
    secret_first = eqn.inputs[0].encrypted
    shape = s.shape(var)

    if s.publics.uniform(value) == 0.0:

        def keep(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
            turn = sign if not secret_first else 1
            return [Packed(layout._replace(shape=shape), xs[0].nodes, turn * xs[0].gain)]

        yield Offer((layout._replace(shape=shape),), (), keep)
        return
    varying = _varying(s, eqn)
    assert varying is not None
    for view in views(layout, varying, shape):

        def emit(
            em: Emission, op: Operation, xs: tuple[Packed, ...], view: Layout = view
        ) -> list[Packed]:
            (eqn,) = op.equations
            value = public_operand(eqn)
            x = xs[0]
            if not eqn.inputs[0].encrypted:
                x = replace(x, gain=sign * x.gain)
            by = sign if eqn.inputs[0].encrypted else 1
            x = em.open_to(x, em.publics.magnitude(value))
            var = eqn.outputs[0]
            part = em.public(value, var.shape, em.axis(var))
            plains, _ = em.elementwise(part, view, by / x.gain)
            under = cipher_table(view, x.layout).tolist()
            em.b.begin(em.source)
            made = [em.b.add_plain(x.nodes[i], p) for i, p in zip(under, plains, strict=True)]
            return [Packed(view, tuple(em.b.end(made)), x.gain)]

        yield Offer(
            (view,),
            (shaped((counted(Kind.ADD_PLAIN, view.ciphertexts),), 0, view.ciphertexts),),
            emit,
        )


def mul(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,) = op.equations
    if all(v.encrypted for v in eqn.inputs):
        yield from products(s, op, layouts)
        return
    kind = "inverse" if eqn.name == "div" else "value"
    value = public_operand(eqn)
    number = s.publics.uniform(value)
    shape = s.shape(op.outputs[0])
    if number == 0.0:
        yield from _zero(layouts[0]._replace(shape=shape))
        return
    if number is not None and np.isfinite(number):
        factor = number if kind == "value" else 1.0 / number
        out = layouts[0]._replace(shape=shape)

        def times(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
            return [replace(em.times(xs[0], factor), layout=out)]

        yield Offer((out,), (), times)
        return
    varying = _varying(s, eqn, kind)
    assert varying is not None
    for view in views(layouts[0], varying, shape):
        scalar = not view.along_slots & varying and not view.padded
        rows = (
            counted(Kind.DOT_PLAIN, view.ciphertexts, 1, scalar=scalar),
            counted(Kind.RESCALE, view.ciphertexts),
        )

        def emit(
            em: Emission, op: Operation, xs: tuple[Packed, ...], view: Layout = view
        ) -> list[Packed]:
            (eqn,) = op.equations
            value = public_operand(eqn)
            var = eqn.outputs[0]
            size = gains_far(em.publics.magnitude(value)) if kind == "value" else 1.0
            part = em.public(value, var.shape, em.axis(var), kind)
            by = xs[0].gain * size / em.wished(var, xs[0].gain * size)
            plains, _ = em.elementwise(part, view, by / size)
            under = cipher_table(view, xs[0].layout).tolist()
            em.b.begin(em.source)
            made = [
                em.b.rescale(em.b.dot_plain([(xs[0].nodes[i], p)]))
                for i, p in zip(under, plains, strict=True)
            ]
            out = Packed(view, tuple(em.b.end(made)), xs[0].gain / by)
            return [em.times(out, size)]

        out = view._replace(zeros=True)
        yield Offer((out,), (shaped(rows, 1, view.ciphertexts),), _placed(emit, out))


def gains_far(magnitude: float) -> float:
    """The size of public factors that is kept as a gain because they are all far from 1."""
    usable = magnitude > 0.0 and gains.representable(magnitude)
    return 1.0 if not usable or gains.stays_pending(magnitude) else magnitude


def _placed(emit: Emit, layout: Layout) -> Emit:
    def placed(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        return [replace(x, layout=layout) for x in emit(em, op, xs)]

    return placed


def products(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    shape = s.shape(op.outputs[0])
    for both, moved in meetings((layouts[0], layouts[-1]), shape):
        a, b = (
            x if y is None else y for x, y in zip((layouts[0], layouts[-1]), moved, strict=True)
        )
        out = cleared(both, a, b)
        work = shaped(
            (
                counted(Kind.DOT, out.ciphertexts),
                counted(Kind.RELINEARIZE, out.ciphertexts),
                counted(Kind.RESCALE, out.ciphertexts),
            ),
            1,
            out.ciphertexts,
        )

        def emit(
            em: Emission, op: Operation, xs: tuple[Packed, ...], out: Layout = out
        ) -> list[Packed]:
            return [_product(em, out, xs[0], xs[-1])]

        yield Offer((out,), (work,), emit, moved)


def _product(em: Emission, out: Layout, left: Packed, right: Packed) -> Packed:
    same = left is right
    left = em.bounded(left)
    right = left if same else em.bounded(right)
    a, b = (cipher_table(out, x.layout).tolist() for x in (left, right))
    em.b.begin(em.source)
    made = [
        em.b.rescale(em.b.dot([(1, left.nodes[i], right.nodes[j])]))
        for i, j in zip(a, b, strict=True)
    ]
    return Packed(out, tuple(em.b.end(made)), left.gain * right.gain)


def power(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    y = op.equations[0].params["y"]
    if y < 1:
        return
    count = layouts[0].ciphertexts
    steps = _chain_of(y)
    product = shaped(
        (counted(Kind.DOT, count), counted(Kind.RELINEARIZE, count), counted(Kind.RESCALE, count)),
        1,
        count,
    )

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        powers = {1: xs[0]}
        for k, half in steps:
            powers[k] = _product(em, layouts[0], powers[half], powers[k - half])
        return [powers[y]]

    yield Offer((layouts[0],), (product,) * len(steps), emit)


def _chain_of(y: int) -> list[tuple[int, int]]:
    out: dict[int, int] = {}

    def need(k: int) -> None:
        if k > 1 and k not in out:
            half = 1 << ((k - 1).bit_length() - 1)
            need(half)
            need(k - half)
            out[k] = half

    need(y)
    return sorted(out.items())


def polynomial(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    poly = op.equations[0].params["poly"]
    if poly.degree == 0:
        return
    for start in _packings(layouts[0]):
        dirty = start.padded and not start.zeros
        out = start._replace(zeros=False).canonical()
        w = start.ciphertexts
        works = (
            [shaped((counted(Kind.DOT_PLAIN, w), counted(Kind.RESCALE, w)), 1, w)] if dirty else []
        )
        works += _series(poly, w, s.gains.get(op.operands[0].id, 1.0))

        def emit(
            em: Emission,
            op: Operation,
            xs: tuple[Packed, ...],
            out: Layout = out,
            dirty: bool = dirty,
        ) -> list[Packed]:
            x = xs[0]
            rows = held(x.layout)
            if dirty:
                em.b.begin(em.source)
                plains = em.masks(rows)
                made = [
                    em.b.rescale(em.b.dot_plain([(n, p)]))
                    for n, p in zip(x.nodes, plains, strict=True)
                ]
                x = replace(x, nodes=tuple(em.b.end(made)))
            gain = em.wished(op.outputs[0], 1.0)
            scaled = poly if gain == 1.0 else poly.multiplied(1.0 / gain)
            made = chebyshev.series(em.b, em.source, list(x.nodes), rows, x.gain, scaled)
            return [Packed(out, tuple(made), gain)]

        moved = None if start == layouts[0] else start
        yield Offer((out,), tuple(works), emit, (moved,))


def _packings(layout: Layout) -> Iterator[Layout]:
    """The layout, and those with a digit of its ciphertexts on a replicated coordinate."""
    yield layout
    if layout.rolls:
        return
    for k, c in enumerate(layout.slots):
        if c.axis != REPLICATED or c.stride:
            continue
        for j, d in enumerate(layout.ciphers):
            size = math.gcd(d.size, c.size)
            # Only the highest piece of an axis may be padded: others would overlap the next.
            if size == 1 and d.size < c.size and d == layout.pieces(d.axis)[-1]:
                size = 1 << (d.size - 1).bit_length()
            if size == 1:
                continue
            rest = [Coordinate(REPLICATED, c.size // size)] if c.size > size else []
            slots = [*layout.slots[:k], Coordinate(d.axis, size, d.stride), *rest]
            left = -(-d.size // size)
            more = [Coordinate(d.axis, left, d.stride * size)] if left > 1 else []
            ciphers = (*layout.ciphers[:j], *more, *layout.ciphers[j + 1 :])
            yield layout._replace(
                slots=(*slots, *layout.slots[k + 1 :]), ciphers=tuple(ciphers)
            ).canonical()


def _series(poly: Polynomial, w: int, gain: float) -> list[StageShape]:
    works = []
    plan = poly.plan
    if abs(abs(poly.scale * gain) - 1.0) > chebyshev.ONE:
        rows = (
            counted(Kind.DOT_PLAIN, w, scalar=True),
            counted(Kind.RESCALE, w),
            counted(Kind.ADD_PLAIN, w),
        )
        works.append(shaped(rows, 1, w))
    for step in plan.steps:
        if step.products or step.scalars:
            rows = [counted(Kind.RESCALE, w)]
            if step.products:
                rows += [counted(Kind.DOT, w, len(step.products)), counted(Kind.RELINEARIZE, w)]
            if step.scalars:
                rows.append(counted(Kind.DOT_PLAIN, w, len(step.scalars), scalar=True))
            works.append(shaped(tuple(rows), 1, w))
        if step.adds:
            works.append(shaped((counted(Kind.ADD, w, len(step.adds) + 1),), 0, w))
    return works


def refresh(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        em.b.begin(em.source)
        made = em.b.end([em.b.refresh(n) for n in xs[0].nodes], refreshed=True)
        return [replace(xs[0], nodes=tuple(made))]

    yield Offer((layouts[0],), (), emit)
