"""How two tensors meet in one layout, and how one layout becomes another."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.circuit import Kind
from hesim.circuit.packing.costs import Counted, counted, map_work, shaped
from hesim.circuit.packing.layout import (
    GAP,
    REPLICATED,
    Coordinate,
    Layout,
    Roll,
    grid,
    refined,
)
from hesim.circuit.packing.maps import MapPlan, map_plan
from hesim.circuit.shape import StageShape

_MOST_PLACES = 2**19
"""Places of a tensor beyond which it is not laid anew."""

_MOST_TERMS = 2**13
"""Products by plaintexts beyond which a tensor is not laid anew."""

__all__ = [
    "Reduction",
    "Relay",
    "cipher_table",
    "cleared",
    "joined",
    "like",
    "reduction",
    "relay",
    "repeated",
    "shears",
    "straight",
]


def joined(a: Layout, b: Layout, shape: Sequence[int] | None = None) -> Layout | None:
    """The layout in which both tensors, of equal rank, already lie; None if they do not.

    A coordinate that is replicated in one of them takes what the other holds there.
    """
    try:
        x, y = refined([a, b])
    except ValueError:
        return None
    slots: list[Coordinate] = []
    names: tuple[dict[int, Coordinate], dict[int, Coordinate]] = {}, {}
    for k, (c, d) in enumerate(zip(x.slots, y.slots, strict=True), 1):
        if c.axis != REPLICATED != d.axis and c != d:
            return None
        if c.axis == d.axis == REPLICATED:
            slots.append(Coordinate(REPLICATED, c.size, k if c.stride or d.stride else 0))
        else:
            slots.append(d if c.axis == REPLICATED else c)
        for known, own in zip(names, (c, d), strict=True):
            if own.axis == REPLICATED:
                known[own.stride] = slots[-1]
    ciphers = [*x.ciphers, *(d for d in y.ciphers if d not in x.ciphers)]
    pieces = [c for c in (*slots, *ciphers) if c.axis >= 0]
    if len({(c.axis, c.stride) for c in pieces}) != len(pieces):
        return None
    rolls: dict[int, tuple[Roll, ...]] = {}
    for layout, known in zip((x, y), names, strict=True):
        for axis in layout.axes:
            mine = sorted(c for c in pieces if c.axis == axis)
            if mine != sorted(layout.pieces(axis)):
                return None
            own = tuple(sorted(_renamed(r, known) for r in layout.rolled(axis)))
            if rolls.setdefault(axis, own) != own:
                return None
    out = Layout(
        tuple(shape if shape is not None else _broadcast(a.shape, b.shape)),
        tuple(slots),
        tuple(ciphers),
        tuple(sorted(r for group in rolls.values() for r in group)),
        x.zeros and y.zeros and _holes(x) == _holes(y),
    )
    return out.canonical()


def cleared(both: Layout, a: Layout, b: Layout) -> Layout:
    """The layout of a product in which what is no element is zero where one factor makes it so.

    Args:
      both: where the factors a and b meet.
    """
    x, y, out = refined([a, b, both])
    held = (_holes(f) for f in (x, y) if f.zeros)
    return both._replace(zeros=_holes(out) <= set().union(*held)).canonical()


def _holes(layout: Layout) -> set[tuple[int, int]]:
    """What leaves places without an element: (padded axis, extent), (GAP, which coordinate)."""
    found = {(a, layout.extent(a)) for a in layout.axes if layout.extent(a) != layout.shape[a]}
    return found | {(GAP, k) for k, c in enumerate(layout.slots) if c.axis == GAP}


def _renamed(r: Roll, marks: Mapping[int, Coordinate]) -> Roll:
    """A roll by a marked coordinate as one by what lies there; marks: by their stride."""
    if r.by_axis != REPLICATED:
        return r
    there = marks[r.by_stride]
    return r._replace(by_axis=there.axis, by_stride=there.stride)


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(tuple(a), tuple(b)))


def cipher_table(whole: Layout, part: Layout) -> np.ndarray:
    """int (whole.ciphertexts,): the ciphertext of `part` that lies under each one of `whole`.

    Axes that `part` does not have on ciphertexts do not matter.
    """
    numbers = np.arange(whole.ciphertexts)
    index: dict[int, np.ndarray] = {}
    at = 1
    for c in whole.ciphers:
        index[c.axis] = index.get(c.axis, 0) + numbers // at % c.size * c.stride
        at *= c.size
    out = np.zeros(whole.ciphertexts, np.int64)
    at = 1
    for c in part.ciphers:
        if c.axis >= 0:  # of gaps only the first position holds anything
            out += at * (index.get(c.axis, np.zeros(1, np.int64)) // c.stride % c.size)
        at *= c.size
    return out


def like(
    model: Layout, axes: Collection[int], shape: Sequence[int], zeros: bool = True
) -> Layout | None:
    """The layout that a tensor with only these of the model's axes has to have to meet it."""
    slots: list[Coordinate] = []
    names: dict[tuple[int, int], tuple[int, int]] = {}
    used = {(r.by_axis, r.by_stride) for r in model.rolls if r.axis in axes}
    for k, c in enumerate(model.slots):
        if c.axis >= 0 and c.axis not in axes:
            mark = k + 1 if (c.axis, c.stride) in used else 0
            slots.append(Coordinate(REPLICATED, c.size, mark))
            names[c.axis, c.stride] = REPLICATED, mark
        else:
            slots.append(c)
    ciphers = tuple(c for c in model.ciphers if c.axis in axes)
    rolls = []
    for r in model.rolls:
        if r.axis not in axes:
            continue
        key = r.by_axis, r.by_stride
        if r.by_axis >= 0 and r.by_axis not in axes:
            if key not in names:
                return None  # it is rolled by a coordinate of ciphertexts that it lacks
            key = names[key]
        rolls.append(r._replace(by_axis=key[0], by_stride=key[1]))
    out = Layout(tuple(shape), tuple(slots), ciphers, tuple(sorted(rolls)), zeros)
    return out.canonical()


def repeated(layout: Layout) -> Layout | None:
    """The layout with its elements repeated where it has gaps on slots; None if it has none."""
    if not any(c.axis == GAP for c in layout.slots):
        return None
    slots = tuple(Coordinate(REPLICATED, c.size) if c.axis == GAP else c for c in layout.slots)
    return layout._replace(slots=slots).canonical()


def straight(layout: Layout) -> Layout | None:
    """The layout without rolls; None if it has none."""
    return layout._replace(rolls=()).canonical() if layout.rolls else None


def shears(layout: Layout) -> Iterator[Layout]:
    """The layout with one axis rolled by one coordinate of another, once more or once less."""
    turned = {r.by_axis for r in layout.rolls}
    for axis in layout.axes:
        if axis in turned or layout.extent(axis) != layout.shape[axis]:
            continue
        for c in (*layout.slots, *layout.ciphers):
            if c.axis < 0 or c.axis == axis or layout.rolled(c.axis):
                continue
            for factor in (1, -1):
                rolls = {(r.axis, r.by_axis, r.by_stride): r.factor for r in layout.rolls}
                key = (axis, c.axis, c.stride)
                rolls[key] = rolls.get(key, 0) + factor
                if abs(rolls[key]) > 1:
                    continue
                kept = tuple(sorted(Roll(*k, f) for k, f in rolls.items() if f))
                yield layout._replace(rolls=kept).canonical()


@dataclass(frozen=True, eq=False)
class Relay:
    """How a tensor gets from one layout to another.

    Attributes:
      plan: the map; None where ciphertexts are the same.
      source, middle, target: layouts; the map leads to `middle`, from which replicated coordinates
        are filled.
      fills: steps of rotate-and-add that copy what position 0 holds.
      works: stages. masked: whether the map multiplies.
    """

    plan: MapPlan | None
    source: Layout
    middle: Layout
    target: Layout
    fills: tuple[int, ...]
    works: tuple[StageShape, ...]
    masked: bool = False


@functools.lru_cache(maxsize=8192)
def relay(source: Layout, target: Layout) -> Relay | None:
    """The cheaper of the ways from `source` to `target`; None if there is none."""
    if source == target:
        return Relay(None, source, target, target, (), ())
    found = [_direct(source, target), _filled(source, target)]
    ways = [way for way in found if way is not None]
    return min(ways, key=lambda way: _weight(way.works), default=None)


def _weight(works: Sequence[StageShape]) -> float:
    return sum(
        number
        * (row.terms if row.kind in (Kind.DOT_PLAIN, Kind.DOT) else 1)
        * (10.0 if row.kind in (Kind.ROTATE, Kind.RELINEARIZE) else 1.0)
        for work in works
        for row, number in work.rows.items()
    ) + sum(20.0 * work.drop * work.width for work in works)


def _kept(layout: Layout) -> tuple[tuple[int, int], ...]:
    return tuple((a, a) for a in layout.axes)


def _direct(source: Layout, target: Layout) -> Relay | None:
    if not set(source.axes) <= set(target.axes):
        return None
    if max(source.ciphertexts, target.ciphertexts) * target.columns > _MOST_PLACES:
        return None
    plan = map_plan(source, target, _kept(source), most=_MOST_TERMS)
    if plan is None:
        return None
    if _masked(plan, source, target):
        return Relay(plan, source, target, target, (), (map_work(plan),), masked=True)
    if np.all(plan.terms.shift == 0):
        return Relay(plan, source, target, target, (), ())
    return Relay(plan, source, target, target, (), (map_work(plan, masked=False),))


def _masked(plan: MapPlan, source: Layout, target: Layout) -> bool:
    """Whether a map multiplies: it adds up several operands, or has to leave zeros."""
    if not plan.moves:
        return True
    if not (target.padded and target.zeros):
        return False
    into = np.empty(plan.outs, np.int64)
    into[plan.terms.out] = plan.terms.into
    still = not plan.terms.shift.any()
    return not (still and source.zeros and np.array_equal(held(source)[into], held(target)))


def _filled(source: Layout, target: Layout) -> Relay | None:
    """By way of the target with gaps where it is replicated and the source is not."""
    if max(source.ciphertexts, target.ciphertexts) * target.columns > _MOST_PLACES:
        return None
    try:
        x, y = refined([source, target])
    except ValueError:
        return None
    slots: list[Coordinate] = []
    fills: list[int] = []
    at = 1
    for c, d in zip(x.slots, y.slots, strict=True):
        if d.axis == REPLICATED and d.stride == 0 and c.axis != REPLICATED:
            slots.append(Coordinate(GAP, d.size))
            fills += [at * 2**k for k in range(d.size.bit_length() - 1)]
        else:
            slots.append(d)
        at *= d.size
    if not fills:
        return None
    middle = y._replace(slots=tuple(slots), zeros=True).canonical()
    plan = map_plan(source, middle, _kept(source), most=_MOST_TERMS)
    if plan is None:
        return None
    masked = _masked(plan, source, middle)
    work = map_work(plan, masked=masked)
    count = middle.ciphertexts * len(fills)
    drop = work.drop
    rows = [
        *work.rows.items(),
        counted(Kind.ROTATE, count, below=drop),
        counted(Kind.ADD, count, 2, below=drop),
    ]
    works = (shaped(rows, drop, work.width),)
    return Relay(plan, source, middle, target, tuple(fills), works, masked)


@dataclass(frozen=True, eq=False)
class Reduction:
    """A sum over axes: ciphertexts added up, then columns rotated and added.

    Attributes:
      layout: of the result. groups: ciphertexts of the operand for each of the result.
      steps: rotations, each followed by an addition.
    """

    layout: Layout
    groups: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]

    def rows(self, below: int = 0) -> tuple[Counted, ...]:
        count = len(self.groups) * len(self.steps)
        return (counted(Kind.ROTATE, count, below=below), counted(Kind.ADD, count, 2, below=below))


@functools.lru_cache(maxsize=8192)
def reduction(layout: Layout, axes: tuple[int, ...], names: tuple[int, ...]) -> Reduction | None:
    """A sum over `axes`; None if something else is rolled by them, or gaps would be counted.

    names: of the remaining axes, in order: axis names[k] becomes axis k of the result.
    """
    if any(r.by_axis in axes and r.axis not in axes for r in layout.rolls):
        return None
    gapped = any(layout.extent(a) != layout.shape[a] for a in axes if layout.pieces(a))
    if gapped and not layout.zeros:
        return None
    slots: list[Coordinate] = []
    steps: list[int] = []
    at = layout.columns
    above = True  # whether all that lies above is summed as well, or replicated
    zeros = layout.zeros
    for c in reversed(layout.slots):
        at //= c.size
        if c.axis in axes:
            steps += [at * 2**k for k in range(c.size.bit_length() - 1)]
            slots.append(Coordinate(REPLICATED if above else GAP, c.size))
            zeros = zeros and above
            continue
        above = above and c.axis == REPLICATED and c.stride == 0
        slots.append(c)
    kept = tuple(c for c in layout.ciphers if c.axis not in axes and c.axis != GAP)
    rolls = tuple(r for r in layout.rolls if r.axis not in axes)
    part = Layout(layout.shape, tuple(reversed(slots)), kept, rolls, zeros)
    table = cipher_table(layout, part)
    groups: list[list[int]] = [[] for _ in range(part.ciphertexts)]
    for cipher, (out, empty) in enumerate(zip(table.tolist(), _empty(layout), strict=True)):
        if not empty:
            groups[out].append(cipher)
    shape = tuple(layout.shape[a] for a in names)
    out = part.renamed(shape, {a: k for k, a in enumerate(names)}).canonical()
    return Reduction(out, tuple(tuple(g) for g in groups), tuple(steps))


def _empty(layout: Layout) -> list[bool]:
    """Whether each ciphertext lies at a position of a gap that holds no elements."""
    numbers, found, at = np.arange(layout.ciphertexts), np.zeros(layout.ciphertexts, bool), 1
    for c in layout.ciphers:
        if c.axis == GAP:
            found |= numbers // at % c.size > 0
        at *= c.size
    return found.tolist()


def whole(layout: Layout) -> bool:
    """Whether every column of every ciphertext holds an element."""
    return not layout.padded


def held(layout: Layout) -> np.ndarray:
    """bool (ciphertexts, columns): where elements lie."""
    return grid(layout)[1]
