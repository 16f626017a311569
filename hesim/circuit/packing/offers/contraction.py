"""Offers of `dot_general`: one operand encrypted, or both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hesim.circuit.circuit import Kind
from hesim.circuit.packing.arrangement import (
    Reduction,
    cleared,
    joined,
    reduction,
    relay,
    repeated,
    shears,
)
from hesim.circuit.packing.contractions import (
    Labels,
    contraction,
    fewest_products,
    results,
    sampled,
    summed_forms,
)
from hesim.circuit.packing.costs import Counted, contraction_work, map_work, shaped
from hesim.circuit.packing.emission import Emission, Packed
from hesim.circuit.packing.inputs import digits, meeting
from hesim.circuit.packing.layout import GAP, REPLICATED, Coordinate, Layout
from hesim.circuit.packing.maps import MapCount, map_count, map_plan
from hesim.circuit.packing.offers.movement import flat_strides
from hesim.circuit.packing.offers.offer import Emit, Offer, Setting, public_operand
from hesim.circuit.packing.offers.reduction import dotted
from hesim.circuit.packing.operations import Operation
from hesim.program import Equation, Var

__all__ = ["dot_general", "labels_of"]

_LOOKS = 12
"""Contractions of two operands that are looked at: the fewest products first, then the fewest
shears.
"""

_TIMES = 4
"""Products of ciphertexts, times the fewest found, beyond which a contraction is not looked at."""

_MOST_BROUGHT = 256
"""Ciphertexts of an operand beyond which it is not brought to the other."""


def labels_of(s: Setting, eqn: Equation) -> Labels | None:
    """Labels of a dot_general of one member of the batch."""
    (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
    a, b = eqn.inputs
    var = eqn.outputs[0]
    la: list[int | None] = [None] * len(a.shape)
    lb: list[int | None] = [None] * len(b.shape)
    count = 0
    for i, j in zip(ba, bb, strict=True):
        la[i] = lb[j] = count
        count += 1
    for k in range(len(la)):
        if la[k] is None and k not in ca:
            la[k] = count
            count += 1
    for k in range(len(lb)):
        if lb[k] is None and k not in cb:
            lb[k] = count
            count += 1
    full = count
    for i, j in zip(ca, cb, strict=True):
        la[i] = lb[j] = count
        count += 1
    sizes = {}
    for found, v in ((la, a), (lb, b)):
        for k, label in enumerate(found):
            sizes[label] = v.shape[k]
    batch = s.axis(var)
    kept = [k for k in range(count) if k != batch]
    number = {k: n for n, k in enumerate(kept)}
    left, right = (
        tuple(number[k] for k in found if k is not None and k in number) for found in (la, lb)
    )
    out = tuple(number[k] for k in range(full) if k in number)
    return Labels(left, right, out, tuple(sizes[k] for k in kept))


def dot_general(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    eqn = op.equations[0]
    labels = labels_of(s, eqn)
    if labels is None:
        return
    if all(v.encrypted for v in eqn.inputs):
        yield from _encrypted(labels, layouts)
        yield from _brought(s, op, labels, (layouts[0], layouts[-1]))
    else:
        yield from _matrices(s, op, layouts[0], labels)


def _encrypted(labels: Labels, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    pair = layouts[0], layouts[-1]
    named = labels.labelled(pair[0], labels.left), labels.labelled(pair[1], labels.right)
    for a, b in itertools.product((None, *_filled(pair[0])), (None, *_filled(pair[1]))):
        met = _met(labels, pair, (a, b))
        if met is not None:
            yield met
    # Operands as they are, or sheared, that agree in what is summed.
    ways: tuple[dict, dict] = {}, {}
    for k, (layout, side) in enumerate(zip(pair, (labels.left, labels.right), strict=True)):
        for z in (layout, *shears(layout), *_filled(layout)):
            z_named = labels.labelled(z, side)
            forms = summed_forms(z_named, named[1 - k], labels)
            ways[k].setdefault(forms, []).append((z_named, None if z == layout else z))
    found = []
    for forms, some in ways[0].items():
        for (left, a), (right, b) in itertools.product(some, ways[1].get(forms, ())):
            sheared = (a is not None) + (b is not None)
            for out in results(left, right, labels):
                products = fewest_products(left, out, labels)
                found.append((products, sheared, left, right, out, (a, b)))
    found.sort(key=lambda entry: entry[:2])
    for products, _, left, right, out, moved in found[:_LOOKS]:
        if products > _TIMES * found[0][0]:
            break
        if any(m is not None and relay(w, m) is None for w, m in zip(pair, moved, strict=True)):
            continue
        plan = sampled(left, right, out, labels)
        if plan is None:
            continue
        shape = tuple(labels.sizes[k] for k in labels.out)
        result = out.renamed(shape, {k: k for k in labels.out}).canonical()
        emit = _contracting((left, right, out), labels, result)
        yield Offer((result,), (contraction_work(plan),), emit, moved)


def _contracting(lay: tuple[Layout, Layout, Layout], labels: Labels, result: Layout) -> Emit:
    # Along an axis without a place both operands are constant.
    alike = math.prod(labels.sizes[k] for k in labels.summed if not lay[0].pieces(k))

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        plan = contraction(*lay, labels)
        assert plan is not None, "it was offered"
        left, right = em.bounded(xs[0]), em.bounded(xs[-1])
        made = em.contracted(plan, left, right)
        return [em.times(Packed(result, tuple(made), left.gain * right.gain), float(alike))]

    return emit


def _filled(layout: Layout) -> list[Layout]:
    """The layout with its gaps filled by repetition, if it has any."""
    full = repeated(layout)
    return [full] if full is not None else []


def _brought(
    s: Setting, op: Operation, labels: Labels, pair: tuple[Layout, Layout]
) -> Iterator[Offer]:
    """Products where one operand is brought to where the other lies, its own axes where that is
    repeated, or on ciphertexts: what is thin, as a matrix of low rank, goes to what is not.
    """
    sides = labels.left, labels.right
    inputs = [v for v in op.equations[0].inputs if isinstance(v, Var)]
    for k in (0, 1):
        own, other = sides[k], sides[1 - k]
        back = {label: axis for axis, label in enumerate(own)}
        sizes = tuple(e if label in back else 1 for label, e in enumerate(labels.sizes))
        model = pair[1 - k]
        fresh = [
            d
            for label, axis in back.items()
            if label not in other
            for d in digits(label, s.factors.get((inputs[k].id, axis), (labels.sizes[label],)))
        ]
        for still in (None, *_filled(model)):
            there = labels.labelled(model if still is None else still, other)
            for found in meeting(there, fresh, sizes):
                to = found.renamed(pair[k].shape, back).canonical()
                if to == pair[k] or to.ciphertexts > _MOST_BROUGHT:
                    continue
                moved = (to, still) if k == 0 else (still, to)
                met = _met(labels, pair, moved)
                if met is not None:
                    yield met


def _met(
    labels: Labels, layouts: tuple[Layout, Layout], moved: tuple[Layout | None, Layout | None]
) -> Offer | None:
    """Products where the operands meet, as they lie or where they are brought to, summed over what
    both have.
    """
    left, right = (x if y is None else y for x, y in zip(layouts, moved, strict=True))
    left, right = labels.labelled(left, labels.left), labels.labelled(right, labels.right)
    both = joined(left, right, labels.sizes)
    if both is None:
        return None
    both = cleared(both, left, right)
    names = dict(enumerate(labels.left)), dict(enumerate(labels.right))
    return dotted(both, labels.summed, labels.out, moved, names)


def _matrices(s: Setting, op: Operation, layout: Layout, labels: Labels) -> Iterator[Offer]:
    eqn = op.equations[0]
    own, other = (
        (labels.left, labels.right) if eqn.inputs[0].encrypted else (labels.right, labels.left)
    )
    x = layout.renamed(labels.sizes, dict(enumerate(own)))
    summed = set(labels.summed)
    if any({r.axis, r.by_axis} & summed for r in x.rolls):
        return
    if any(labels.sizes[k] > 1 and not x.pieces(k) for k in own if k in other):
        return  # constant along an axis that the public tensor has as well
    fresh = [k for k in labels.out if k not in own]
    parts = [[d for k in fresh for d in _digits(s, var, k)] for var in op.outputs]
    varying = {k for k in other if labels.sizes[k] > 1}
    yield from _with_matrices(
        [list(_poured(x, labels, some, varying)) for some in parts], labels, own, other, None
    )
    full = repeated(layout)
    x = x if full is None else full.renamed(labels.sizes, dict(enumerate(own)))
    yield from _with_matrices(
        [list(_beside(x, labels, some)) for some in parts], labels, own, other, full
    )


def _with_matrices(
    ways: Sequence[Sequence[_Way]],
    labels: Labels,
    own: Sequence[int],
    other: Sequence[int],
    moved: Layout | None,
) -> Iterator[Offer]:
    """Offers of one way for every matrix. moved: where the operand is brought to first."""
    for pick in itertools.product(*ways):
        maps = []
        for way in pick:
            count = map_count(way.source, way.target, way.kept, len(ways))
            total = reduction(way.target, way.partial, labels.out)
            if count is None or total is None:
                break
            maps.append(_Map(way, count, total))
        else:
            yield _matrix_offer(labels, maps, own, other, moved)


@dataclass(frozen=True, eq=False)
class _Way:
    """Layouts of a product by a public tensor.

    Attributes:
      source, target: labelled, of the operand and of the product.
      kept: labels that both have. partial: axes of the product that are summed afterwards, parts of
        contracted ones; `parts` says of which label, and with which stride.
    """

    source: Layout
    target: Layout
    kept: tuple[tuple[int, int], ...]
    partial: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class _Map:
    way: _Way
    count: MapCount
    total: Reduction


def _digits(s: Setting, var: Var, label: int) -> list[Coordinate]:
    """The factors of a fresh axis of a result, lowest stride first."""
    return digits(label, s.factors.get((var.id, label), (s.shape(var)[label],)))


def _poured(
    x: Layout, labels: Labels, digits: list[Coordinate], varying: set[int]
) -> Iterator[_Way]:
    """Products by a matrix whose fresh digits, in any order, lie where the contracted ones were,
    and where gaps are.

    Where they are fewer than the rows, partial sums stay to be added up, above or below them.

    varying: labels of the public tensor. Where none of them lies on slots, it is numbers, and what
      is no element stays what it is.
    """
    summed = set(labels.summed)
    others = tuple(c for c in x.ciphers if c.axis not in summed)
    padded = any(x.extent(a) != x.shape[a] for a in summed)
    gaps = [False, True] if any(c.axis == GAP for c in x.slots) else [False]
    seen = set()
    for order, gapped in itertools.product(itertools.permutations(digits), gaps):
        rooms = summed | {GAP} if gapped else summed
        rows = math.prod(c.size for c in x.slots if c.axis in rooms)
        placed = _placed_digits(list(order), rows)
        if placed is None:
            continue
        on_slots, rest = placed
        left = rows // math.prod(1 << (d.size - 1).bit_length() for d in on_slots)
        for low in [0, left] if left > 1 and not padded else [0]:
            queue = [Coordinate(_APART, low), *on_slots] if low else list(on_slots)
            source, slots, parts, shape = _rooms_filled(x, rooms, queue, labels.sizes)
            vectors = bool(parts) or any(c.axis in varying for c in (*source, *slots))
            ciphers = (*others, *rest)
            target = Layout(shape, slots, ciphers, x.rolls, x.zeros or vectors)
            if (source, target) in seen:
                continue
            seen.add((source, target))
            yield _way(x, labels, source, target, parts)


_APART = -3
"""Axis of positions whose sums stay apart, in place of a digit."""


def _rooms_filled(
    x: Layout, rooms: set[int], queue: list[Coordinate], sizes: Sequence[int]
) -> tuple[
    tuple[Coordinate, ...], tuple[Coordinate, ...], tuple[tuple[int, int], ...], tuple[int, ...]
]:
    """Digits in the place of contracted coordinates, and of gaps, from the lowest up.

    Args:
      rooms: axes of coordinates that are filled. queue: digits, whose places suffice for them.
      sizes: of the labels.

    Returns:
      (coordinates of the operand, cut alike; of the product; the parts, and the shape, with axes of
      sums that stay apart: see `_Way`).
    """
    source: list[Coordinate] = []
    slots: list[Coordinate] = []
    parts: list[tuple[int, int]] = []
    shape = list(sizes)

    def apart(c: Coordinate, below: int, size: int) -> None:
        axis = GAP
        if c.axis != GAP:
            axis = len(shape)
            shape.append(size)
            parts.append((c.axis, c.stride * below))
        slots.append(Coordinate(axis, size, 0 if axis == GAP else 1))
        source.append(slots[-1])

    for c in x.slots:
        if c.axis not in rooms:
            slots.append(c)
            source.append(c)
            continue
        size, done = c.size, 1
        whole = c.axis != GAP and x.extent(c.axis) != x.shape[c.axis]
        while done < size and queue:
            d = queue.pop(0)
            taken = min(d.size, size // done)
            if d.size > taken:
                queue.insert(0, Coordinate(d.axis, d.size // taken, d.stride * taken))
            if d.axis == _APART:
                apart(c, done, taken)
            else:
                slots.append(Coordinate(d.axis, taken, d.stride))
                if not whole:
                    source.append(Coordinate(c.axis, taken, c.stride * done))
            done *= taken
        if whole:
            # Parts of a padded axis do not know which of them is padding.
            source.append(c)
            if done < size:
                slots.append(Coordinate(REPLICATED, size // done))
        elif done < size:
            apart(c, done, size // done)
    return tuple(source), tuple(slots), tuple(parts), tuple(shape)


def _beside(x: Layout, labels: Labels, digits: list[Coordinate]) -> Iterator[_Way]:
    """Products by a matrix whose fresh digits lie where the operand is repeated on columns, as one
    vector may be; its contracted ones, if there are any, stay where they are, to be added up.
    """
    summed = set(labels.summed)
    hosts = [c for c in x.slots if c.axis == REPLICATED and c.stride == 0]
    # Parts of a padded axis do not know which of them is padding.
    padded = {k for k in summed if x.extent(k) != x.shape[k]}
    if not hosts or any(len(x.pieces(k)) > 1 for k in padded):
        return
    others = tuple(c for c in x.ciphers if c.axis not in summed)
    seen = set()
    for order in itertools.permutations(digits):
        placed = _placed_digits(list(order), math.prod(c.size for c in hosts))
        if placed is None:
            continue
        on_slots, rest = placed
        slots: list[Coordinate] = []
        source: list[Coordinate] = []
        shape = list(labels.sizes)
        parts: list[tuple[int, int]] = []
        for c in x.slots:
            if c.axis in summed:
                parts.append((c.axis, c.stride))
                slots.append(Coordinate(len(shape), c.size, 1))
                source.append(slots[-1])
                shape.append(x.shape[c.axis] if c.axis in padded else c.size)
            elif c in hosts:
                found = _taken(on_slots, c.size)
                slots += found
                source += [Coordinate(REPLICATED, d.size) for d in found]
            else:
                slots.append(c)
                source.append(c)
        target = Layout(tuple(shape), tuple(slots), (*others, *rest), x.rolls, True)
        if target not in seen and (parts or not summed):
            seen.add(target)
            yield _way(x, labels, source, target, parts)


def _taken(digits: list[Coordinate], size: int) -> list[Coordinate]:
    """The first of `digits`, which are taken away from it, on so many columns; what is left of
    those is replicated.
    """
    out: list[Coordinate] = []
    while size > 1 and digits:
        d = digits.pop(0)
        taken = min(1 << (d.size - 1).bit_length(), size)
        out.append(Coordinate(d.axis, taken, d.stride))
        if d.size > taken:
            digits.insert(0, Coordinate(d.axis, -(-d.size // taken), d.stride * taken))
        size //= taken
    return [*out, *([Coordinate(REPLICATED, size)] if size > 1 else [])]


def _way(
    x: Layout,
    labels: Labels,
    source: Sequence[Coordinate],
    target: Layout,
    parts: Sequence[tuple[int, int]],
) -> _Way:
    partial = tuple(range(len(labels.sizes), len(target.shape)))
    kept = tuple((k, k) for k in (*labels.out, *partial) if x.pieces(k) or k in partial)
    return _Way(
        x._replace(shape=target.shape, slots=tuple(source)), target, kept, partial, tuple(parts)
    )


def _placed_digits(
    digits: list[Coordinate], rows: int
) -> tuple[list[Coordinate], list[Coordinate]] | None:
    """(digits on so many columns, lowest first; the rest, which goes to ciphertexts)."""
    queue = list(digits)
    placed: list[Coordinate] = []
    while queue and rows > 1:
        d = queue.pop(0)
        size = 1 << (d.size - 1).bit_length()
        highest = not any(e.axis == d.axis and e.stride > d.stride for e in digits)
        if size != d.size and not highest:
            return None
        if size > rows:
            if d.size % rows and not highest:
                return None
            placed.append(Coordinate(d.axis, rows, d.stride))
            queue.insert(0, Coordinate(d.axis, -(-d.size // rows), d.stride * rows))
            rows = 1
        else:
            placed.append(Coordinate(d.axis, size, d.stride))
            rows //= size
    return placed, [d for d in queue if d.size > 1]


def _strided(extents: Sequence[int], labels: Sequence[int]) -> dict[int, int]:
    """What the index along each label adds to a flat place."""
    out: dict[int, int] = {}
    for k, stride in zip(labels, flat_strides(extents), strict=True):
        out[k] = out.get(k, 0) + stride
    return out


def _matrix_offer(
    labels: Labels,
    maps: Sequence[_Map],
    own: Sequence[int],
    other: Sequence[int],
    moved: Layout | None,
) -> Offer:
    strides = _strided([labels.sizes[k] for k in other], other)
    rows: list[Counted] = []
    encoded = 0
    for number, m in enumerate(maps):
        along = m.way.source.along_slots | m.way.target.along_slots
        scalar = not along & {*strides, *m.way.partial}
        shared = m.count.rotations - m.count.turned if number else 0
        for row, count in map_work(m.count, scalar=scalar).rows.items():
            rows.append((row, count - shared if row.kind == Kind.ROTATE else count))
        rows += m.total.rows(1)
        # Ciphertexts that differ along other axes are multiplied by the same vectors.
        alike = math.prod(c.size for c in m.way.source.ciphers if c.axis not in strides)
        encoded += 0 if scalar else sum(t * n for t, n in m.count.groups) // alike
    outs = tuple(m.total.layout for m in maps)
    work = shaped(rows, 1, sum(o.ciphertexts for o in outs))

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        b, (x,) = em.b, xs
        b.begin(em.source)
        made: list[Packed] = []
        for m, out, eqn in zip(maps, outs, op.equations, strict=True):
            value = public_operand(eqn)
            gain = em.wished(eqn.outputs[0], x.gain)
            inner = {k: v for k, v in strides.items() if k not in labels.out}
            inner |= {
                axis: strides[k] * stride
                for axis, (k, stride) in zip(m.way.partial, m.way.parts, strict=True)
            }
            plan = map_plan(m.way.source, m.way.target, m.way.kept, len(maps))
            assert plan is not None, "it was counted"
            nodes = em.matrix(
                plan,
                Packed(m.way.source, x.nodes, x.gain),
                m.way.target,
                m.way.kept,
                inner,
                {k: v for k, v in strides.items() if k in labels.out},
                em.public(value, value.shape, _batch_axis(eqn, em)),
                x.gain / gain,
            )
            nodes = [
                em.reduced(
                    nodes[g[0]] if len(g) == 1 else b.add([(1, nodes[k]) for k in g]),
                    m.total.steps,
                )
                for g in m.total.groups
            ]
            made.append(Packed(out, tuple(nodes), gain))
        b.end([n for x in made for n in x.nodes])
        return made

    return Offer(outs, (work,), emit, (moved,), encoded)


def _batch_axis(eqn: Equation, em: Emission) -> int | None:
    """The axis of the public operand that goes with the batch axis of the result."""
    batch = em.axis(eqn.outputs[0])
    if batch is None:
        return None
    (_, _), (ba, bb) = eqn.params["dimension_numbers"]
    first = eqn.inputs[0].encrypted
    mine = bb if first else ba
    if batch < len(mine):
        return mine[batch]
    return None
