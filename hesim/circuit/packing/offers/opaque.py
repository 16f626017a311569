"""Offers by the rules of the tables, for operations that have no others: one operation is laid out
element by element, and what it leaves is taken for a layout again, or moved into one.

What it costs is counted by running the rule on a Builder of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Kind
from hesim.circuit.context import Context
from hesim.circuit.layout import Tensor
from hesim.circuit.packing.arrangement import held
from hesim.circuit.packing.costs import counted, shaped
from hesim.circuit.packing.emission import Emission, Packed
from hesim.circuit.packing.gathering import Gathering, packings
from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout, places
from hesim.circuit.packing.maps import period
from hesim.circuit.packing.offers.gathered import alike
from hesim.circuit.packing.offers.offer import Emit, Offer, Setting
from hesim.circuit.packing.operations import Operation
from hesim.circuit.packing.recognition import gathered_from, numbered, recognised
from hesim.circuit.publics import Publics
from hesim.circuit.shape import StageShape, stage_shapes
from hesim.errors import HesimError
from hesim.primitives import PRIMITIVES

__all__ = ["opaque"]

_LARGEST = 2**21
"""Terms of an operation beyond which it is left to the tables as a whole."""

_TARGETS = 3
"""Layouts that a result is moved to, beside the one in which it is left."""


def opaque(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    """Any operation that the tables have a rule for."""
    if _terms(s, op) > _LARGEST:
        return
    em = Emission(s.program, Publics(s.program), Builder(s.columns, 1, 1), s.axes, s.wishes)
    gains = [s.gains.get(v.id, 1.0) for v in op.operands]
    xs = tuple(_fresh(em, x, g) for x, g in zip(layouts, gains, strict=True))
    start = len(em.b.stages)
    try:
        tensors = _lowered(em, op, xs)
    except HesimError:
        return  # it fails in the tables as well, which say so
    works = _works(em.b, tensors, {stage.id for stage in em.b.stages[start:]})
    ways = [
        list(_ways(em, s.shape(v), t, layouts)) for v, t in zip(op.outputs, tensors, strict=True)
    ]
    for pick in zip(*ways, strict=False):
        moved = [w for way in pick for w in way.works]
        yield Offer(tuple(way.layout for way in pick), (*works, *moved), _emitting(pick))


def _terms(s: Setting, op: Operation) -> int:
    total = 0
    for eqn in op.equations:
        size = max(math.prod(s.shape(v)) for v in (*eqn.inputs, *eqn.outputs))
        if eqn.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            summed = math.prod(eqn.inputs[0].shape[a] for a in contracted)
            size = max(size, summed * math.prod(s.shape(eqn.outputs[0])))
        elif eqn.name == "conv_general_dilated":
            size = max(size, math.prod(eqn.inputs[1].shape) * math.prod(s.shape(eqn.outputs[0])))
        total += size
    return total


def _fresh(em: Emission, layout: Layout, gain: float) -> Packed:
    b = em.b
    b.begin(-1)
    where = held(layout) if layout.zeros else np.ones((layout.ciphertexts, b.columns), bool)
    return Packed(layout, tuple(b.end([b.input(k, w) for k, w in enumerate(where)])), gain)


def _lowered(em: Emission, op: Operation, xs: Sequence[Packed]) -> list[Tensor]:
    """The results of the tables' rule, for operands in their layouts."""
    ctx = Context(em.program, em.publics, em.b, dict(em.axes))
    for v, x in zip(op.operands, xs, strict=True):
        cipher, column = places(x.layout)
        shape = em.shape(v)
        node = np.asarray(x.nodes, np.int32)[cipher].reshape(shape)
        ctx.values[v.id] = Tensor(node, column.reshape(shape), x.gain, em.axis(v), v.shape)
    with _as_laid_out(em.b, xs):
        for number, eqn in zip(op.numbers, op.equations, strict=True):
            ctx.enter(number, eqn)
            made = PRIMITIVES[eqn.name].lower(ctx, eqn)
            ctx.values.update({v.id: t for v, t in zip(eqn.outputs, made, strict=False)})
    return [ctx.values[v.id] for v in op.outputs]


@contextmanager
def _as_laid_out(b: Builder, xs: Sequence[Packed]) -> Iterator[None]:
    """Operands known as their layouts tell, no better and no worse: a rule then does the same
    whatever they are made of.
    """
    before = {n: (b.support[n], b.period[n]) for x in xs for n in x.nodes}
    for x in xs:
        where = held(x.layout)
        for n, own in zip(x.nodes, where, strict=True):
            b.support[n] = b.supports.shared(own) if x.layout.zeros else b.supports.everywhere
            b.period[n] = period(x.layout)
    yield
    for n, (support, repeats) in before.items():
        b.support[n], b.period[n] = support, repeats


def _works(b: Builder, tensors: Sequence[Tensor], own: set[int]) -> list[StageShape]:
    live = {int(n) for t in tensors for n in t.nodes}
    for n in range(len(b.nodes) - 1, -1, -1):
        if n in live:
            live.update(b.nodes[n].first, b.nodes[n].second)
    found = stage_shapes(b, live)
    return [shaped(w.rows.items(), w.drop, w.width) for k, w in found.items() if k in own]


@dataclass(frozen=True, eq=False)
class _Way:
    """Where a result goes.

    Attributes:
      layout: of it. works: stages that bring it there. zero: whether it is nothing but zeros.
    """

    layout: Layout
    works: tuple[StageShape, ...]
    zero: bool = False


def _ways(
    em: Emission, shape: tuple[int, ...], t: Tensor, layouts: Sequence[Layout]
) -> Iterator[_Way]:
    """As it lies, and moved to a few layouts."""
    if not len(t.nodes):
        nowhere = Layout(shape, (Coordinate(REPLICATED, em.b.columns),)).canonical()
        rows = (counted(Kind.DOT_PLAIN, 1, scalar=True), counted(Kind.RESCALE, 1))
        yield _Way(nowhere, (shaped(rows, 1, 1),), zero=True)
        return
    known = _read(em.b, t)
    if known is not None:
        yield _Way(known[0], ())
    targets = dict.fromkeys((*alike(layouts, shape), *packings(shape, em.b.columns)))
    for target in [*targets][:_TARGETS]:
        for dirty in (False, True):
            found = _gathering(em.b, t, target, dirty=dirty)
            if found is not None and (known is None or found.layout != known[0]):
                yield _Way(found.layout, found.works)


def _read(b: Builder, t: Tensor) -> tuple[Layout, tuple[int, ...]] | None:
    """(layout in which a result lies as it is, nodes), if there is one."""
    if np.any(t.node < 0):
        return None
    repeats = max(b.period[int(n)] for n in t.nodes)
    found = recognised(numbered(t.node, t.nodes), t.column.astype(np.int64), b.columns, repeats)
    if found is None:
        return None
    layout, number = found
    nodes = tuple(int(t.nodes[max(k, 0)]) for k in number)
    where = held(layout)
    clean = all(not np.any(b.support[n] & ~own) for n, own in zip(nodes, where, strict=True))
    return (layout._replace(zeros=clean).canonical(), nodes)


def _gathering(b: Builder, t: Tensor, target: Layout, *, dirty: bool) -> Gathering | None:
    nodes = t.nodes
    zero = np.stack([~b.support[int(n)] for n in nodes])
    repeats = max(b.period[int(n)] for n in nodes)
    found = gathered_from(
        numbered(t.node, nodes), t.column.astype(np.int64), zero, repeats, target, dirty=dirty
    )
    return None if found is None or dirty and found.masked else found


def _emitting(pick: Sequence[_Way]) -> Emit:
    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        tensors = _lowered(em, op, xs)
        return [_placed(em, t, way, xs[0]) for t, way in zip(tensors, pick, strict=True)]

    return emit


def _placed(em: Emission, t: Tensor, way: _Way, operand: Packed) -> Packed:
    if way.zero:
        return Packed(way.layout, em.scaled(operand.nodes[:1], 0.0))
    known = _read(em.b, t)
    if known is not None and known[0] == way.layout:
        return Packed(way.layout, known[1], t.gain)
    found = _gathering(em.b, t, way.layout, dirty=not way.layout.zeros)
    assert found is not None, "it was offered, and operands are known as well as they were then"
    return Packed(way.layout, found.emit(em, t.nodes.tolist()), t.gain)
