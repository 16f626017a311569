"""Offers of moves by tables of elements: the only ones of some operations, the last of others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.circuit import Kind
from hesim.circuit.layout import linear_index
from hesim.circuit.moves import index_places, move_table
from hesim.circuit.packing.arrangement import repeated
from hesim.circuit.packing.costs import counted, shaped
from hesim.circuit.packing.emission import Emission, Packed, PublicPart
from hesim.circuit.packing.gathering import Gathering, gathering, packings
from hesim.circuit.packing.inputs import meeting
from hesim.circuit.packing.layout import Coordinate, Layout
from hesim.circuit.packing.offers.offer import Offer, Setting
from hesim.circuit.packing.operations import Operation
from hesim.circuit.shape import StageShape
from hesim.program import Equation, Literal, Var

__all__ = ["alike", "moved", "select_n"]

_TARGETS = 5
"""Layouts of a result that are looked at, and of those in which rows of a stack stay in place."""

Tables = Callable[[list[np.ndarray]], "list[np.ndarray] | None"]
"""From the numbers of all elements of each operand to those of each result."""


def moved(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    """Of an operation that moves elements to places that are known."""
    (eqn,) = op.equations
    places = index_places(eqn)
    indices = [s.program.constant(v) if k in places else None for k, v in enumerate(eqn.inputs)]
    if any(indices[k] is None for k in places):
        return

    def tables(numbers: list[np.ndarray]) -> list[np.ndarray]:
        given = [None if k in places else n for k, n in enumerate(numbers)]
        return move_table(eqn, given, indices)

    yield from _gathered(s, op, layouts, tables)


def select_n(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    """Of a choice that is known when the Program is compiled."""
    (eqn,) = op.equations
    which = s.program.constant(eqn.inputs[0])
    if which is None:
        return
    chosen = np.broadcast_to(which.astype(np.int64), eqn.outputs[0].shape)
    axis = s.axis(eqn.outputs[0])
    if axis is not None and np.any(chosen != chosen.take([0], axis=axis)):
        return

    def tables(numbers: list[np.ndarray]) -> list[np.ndarray]:
        cases = [np.broadcast_to(n, chosen.shape) for n in numbers[1:]]
        return [np.choose(chosen, cases)]

    yield from _gathered(s, op, layouts, tables)


@dataclass(frozen=True, eq=False)
class _Added:
    """Elements of a public operand that a result takes as they are.

    Attributes:
      value: the operand. part: its elements, of the result's shape, -1 for nothing.
    """

    value: Var | Literal
    part: PublicPart


def _gathered(
    s: Setting, op: Operation, layouts: tuple[Layout, ...], tables: Tables
) -> Iterator[Offer]:
    (eqn,) = op.equations
    found = _numbers(s, op, eqn, tables)
    if found is None:
        return
    taken, added = found
    ways = []
    for v, numbers in zip(op.outputs, taken, strict=True):
        shape = s.shape(v)
        beside = _beside(s, op, layouts) if eqn.name == "stack" else ()
        near = dict.fromkeys((*alike(layouts, shape), *packings(shape, s.columns)))
        some = dict.fromkeys((*itertools.islice(beside, _TARGETS), *[*near][:_TARGETS]))
        ways.append([g for x in some for g in _ways(layouts, x, numbers)])
    for pick in zip(*ways, strict=False):
        yield _offer(pick, added)


def _beside(s: Setting, op: Operation, layouts: Sequence[Layout]) -> Iterator[Layout]:
    """Layouts of a stack in which most of its rows stay where they are, side by side: the new axis,
    and what lies on ciphertexts, take the room where a row repeats or holds nothing.
    """
    out = op.outputs[0]
    shape, axis = s.shape(out), s.inner(out, op.equations[0].params["axis"])
    rows = Counter(x for x in layouts if len(x.shape) == len(shape) - 1 and not x.rolls)
    if axis is None or not rows:
        return
    row = max(rows, key=lambda x: rows[x])
    model = row.renamed(shape, {a: a + (a >= axis) for a in range(len(row.shape))})
    model = repeated(model) or model
    fresh = [c for c in (Coordinate(axis, shape[axis], 1), *model.ciphers) if c.axis >= 0]
    yield from meeting(model._replace(ciphers=()), fresh, shape)


def _ways(layouts: Sequence[Layout], target: Layout, taken: np.ndarray) -> Iterator[Gathering]:
    clean = gathering(layouts, target, taken)
    if clean is None:
        return
    yield clean
    if clean.masked:
        dirty = gathering(layouts, target, taken, dirty=True)
        if dirty is not None and not dirty.masked:
            yield dirty


def _numbers(
    s: Setting, op: Operation, eqn: Equation, tables: Tables
) -> tuple[list[np.ndarray], list[list[_Added]]] | None:
    """(encrypted elements that each result takes, of one member; what it takes of public operands);
    None if members differ in that.
    """
    count = 1  # 0 stands for zero
    numbers: list[np.ndarray] = [np.zeros(v.shape, np.int32) for v in eqn.inputs]
    for var in op.operands:
        inner = s.shape(var)
        size = int(np.prod(inner, dtype=np.int64))
        table = np.arange(count, count + size, dtype=np.int32).reshape(inner)
        axis = s.axis(var)
        if axis is not None:
            table = np.broadcast_to(np.expand_dims(table, axis), var.shape)
        for k, v in enumerate(eqn.inputs):
            if v is var:
                numbers[k] = table
        count += size
    secret = count
    first: dict[int, int] = {}
    for k, v in enumerate(eqn.inputs):
        if not v.encrypted and s.publics.uniform(v) != 0.0:
            size = int(np.prod(v.shape, dtype=np.int64))
            numbers[k] = np.arange(count, count + size, dtype=np.int32).reshape(v.shape)
            first[k] = count
            count += size
    made = tables(numbers)
    if made is None:
        return None
    taken, added = [], []
    for var, table in zip(op.outputs, made, strict=True):
        axis = s.axis(var)
        inner = table if axis is None else table.take(0, axis=axis)
        taken.append(np.where(inner < secret, inner - 1, -1))
        parts = []
        for k, start in first.items():
            value = eqn.inputs[k]
            size = int(np.prod(value.shape, dtype=np.int64))
            here = (table >= start) & (table < start + size)
            if not here.any():
                continue
            view = s.publics.view(value, value.shape)
            places = view.index.reshape(-1)[np.where(here, table - start, 0)]
            split = linear_index(np.where(here, places, -1), axis)
            if split is None:
                return None
            parts.append(_Added(value, PublicPart(view.operand, *split)))
        added.append(parts)
    return taken, added


def alike(layouts: Sequence[Layout], shape: tuple[int, ...]) -> Iterator[Layout]:
    """Layouts of the result with axes where an operand has them."""
    for layout in dict.fromkeys(layouts):
        if len(layout.shape) != len(shape):
            continue
        slots, ciphers = list(layout.slots), list(layout.ciphers)
        changed = [a for a in range(len(shape)) if shape[a] != layout.shape[a]]
        turned = {a for r in layout.rolls for a in (r.axis, r.by_axis)}
        if turned & set(changed):
            continue
        fits = True
        for a in changed:
            if any(c.axis == a for c in slots):
                fits = fits and layout.extent(a) >= shape[a]
                continue
            at = next((k for k, c in enumerate(ciphers) if c.axis == a), len(ciphers))
            ciphers = [c for c in ciphers if c.axis != a]
            ciphers.insert(at, Coordinate(a, shape[a], 1))
        if fits:
            yield Layout(shape, tuple(slots), tuple(ciphers), layout.rolls).canonical()


def _offer(pick: Sequence[Gathering], added: Sequence[Sequence[_Added]]) -> Offer:
    works: list[StageShape] = []
    for g, parts in zip(pick, added, strict=True):
        w = g.layout.ciphertexts
        works += [*g.works, *(shaped((counted(Kind.ADD_PLAIN, w),), 0, w) for _ in parts)]

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        gain = max((x.gain for x in xs), key=abs)
        nodes = [n for x in xs for n in em.with_gain(x, gain).nodes]
        made = []
        for g, parts in zip(pick, added, strict=True):
            out = Packed(g.layout, g.emit(em, nodes), gain)
            for part in parts:
                out = _plus(em, out, part)
            made.append(out)
        return made

    return Offer(tuple(g.layout for g in pick), tuple(works), emit)


def _plus(em: Emission, x: Packed, added: _Added) -> Packed:
    x = em.open_to(x, em.publics.magnitude(added.value))
    plains, _ = em.elementwise(added.part, x.layout, 1.0 / x.gain)
    em.b.begin(em.source)
    made = [em.b.add_plain(n, p) for n, p in zip(x.nodes, plains, strict=True)]
    return Packed(x.layout, tuple(em.b.end(made)), x.gain)
