"""Products of two encrypted tensors summed over shared axes, without a mask for every element.

Both operands lie on the same slot coordinates, and the slots' part of the contracted index is the
same function of the position in both. Then the sum runs over a family r = 0, 1, ...: for each r
the two operands are shifted so that the contracted index moves by r while their other digits stay,
and one product of ciphertexts serves all results at once. A shift of a coordinate below another one
wraps into the next row for some positions: those are a class of their own, kept apart by a 0/1 mask
and a second accumulator.

Where a result is the home of a digit follows from the operands: the coordinate that the contracted
axis leaves free takes the digit that was rolled by it (so scores of sheared keys come out sheared,
and meet sheared values without any further move).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.packing.layout import (
    GAP,
    REPLICATED,
    Coordinate,
    Layout,
    Roll,
    grid,
    refined,
    split,
)
from hesim.circuit.packing.maps import KEY, period

_LARGEST = 2**17
"""Products of ciphertexts beyond which a contraction is not tried."""

_DEAR = 2.5
"""What a product of two ciphertexts costs, in products by a mask."""

_MANY = 2048
"""Terms beyond which only a few splits into baby and giant steps are compared."""

__all__ = ["Contraction", "Labels", "contraction", "fewest_products", "results", "summed_forms"]


@dataclass(frozen=True)
class Labels:
    """A contraction as in einsum: a label for every axis, those of the result first.

    Attributes:
      left, right: labels of the axes of the operands. out: labels of the result, 0 ... n - 1.
      sizes: extent of each label.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    out: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def summed(self) -> tuple[int, ...]:
        return tuple(k for k in self.left if k in self.right and k not in self.out)

    @property
    def shared(self) -> tuple[int, ...]:
        return tuple(k for k in self.out if k in self.left and k in self.right)

    def labelled(self, layout: Layout, labels: Sequence[int]) -> Layout:
        return layout.renamed(self.sizes, dict(enumerate(labels)))


@dataclass(frozen=True, eq=False)
class Contraction:
    """A plan: terms with their rotations.

    Attributes:
      out, left, right: ciphertexts of each term. left_step, right_step: rotations of the operands.
      turn: rotation of the accumulator that a term goes into; out[p] = accumulator[p + turn].
      member, klass: member of the family, and class of positions, of each term.
      masked: whether products are masked. mask_left: whether on the left operand.
      merged: whether masked versions that meet the same version of the other operand are added up
        before they are multiplied: fewer products, of masks that are not shared.
      repeats: (out, left, right) offsets of the same terms for other ciphertexts of batch digits.
      rotations: of operands and accumulators, of all repeats; turned: those of accumulators.
      masks: products by masks, of all. maskings: (terms, how many) of the sums that they make.
      accumulators: (terms, how many) of all.
    """

    layout: Layout
    out: np.ndarray
    left: np.ndarray
    right: np.ndarray
    left_step: np.ndarray
    right_step: np.ndarray
    turn: np.ndarray
    member: np.ndarray
    klass: np.ndarray
    masked: bool
    mask_left: bool
    merged: bool
    repeats: tuple[tuple[int, int, int], ...]
    rotations: int
    turned: int
    masks: int
    maskings: tuple[tuple[int, int], ...]
    accumulators: tuple[tuple[int, int], ...]
    operands: tuple[Layout, Layout]
    labels: Labels

    def mask(self, term: int) -> np.ndarray:
        """bool (columns,): positions of a term's accumulator that it counts for."""
        found = self._rows(int(self.member[term]))[int(self.out[term])] == self.klass[term]
        return np.roll(found, int(self.turn[term]))

    def _rows(self, member: int) -> dict[int, np.ndarray]:
        """The class of every position, of one member: the latest is kept, terms being in order."""
        if member not in self._latest:
            self._latest.clear()
            found = _classes(self.labels, *self.operands, self.layout, only=member)
            self._latest[member] = found.rows
        return self._latest[member]

    @functools.cached_property
    def _latest(self) -> dict[int, dict[int, np.ndarray]]:
        return {}


def summed_forms(layout: Layout, beside: Layout, labels: Labels) -> object:
    """What two operands must agree in: the slots' part of the summed labels, on the coordinates
    that both are refined to.
    """
    try:
        x, _ = refined([layout, beside])
    except ValueError:
        return None
    return tuple((_forms(x, k), x.extent(k)) for k in labels.summed)


def results(left: Layout, right: Layout, labels: Labels) -> Iterator[Layout]:
    """Layouts of the result that a contraction of labelled operands can have."""
    try:
        x, y = refined([left, right])
    except ValueError:
        return
    if not _compatible(x, y, labels):
        return
    seen = set()
    for first, second in ((x, y), (y, x)):
        found = _homes(first, second, labels)
        if found is not None and found not in seen:
            seen.add(found)
            yield found


def _forms(layout: Layout, label: int) -> tuple[int, ...]:
    """What each slot coordinate adds to the index of a label, modulo its extent."""
    extent = max(layout.extent(label), 1)
    where = {(c.axis, c.stride): k for k, c in enumerate(layout.slots)}
    out = [c.stride % extent if c.axis == label else 0 for c in layout.slots]
    for r in layout.rolled(label):
        k = where.get((r.by_axis, r.by_stride))
        if k is not None:
            out[k] = (out[k] + r.factor) % extent
    return tuple(out)


def _compatible(x: Layout, y: Layout, labels: Labels) -> bool:
    for k in labels.summed:
        if _forms(x, k) != _forms(y, k) or x.extent(k) != y.extent(k):
            return False
        if x.extent(k) != labels.sizes[k] and not (x.zeros or y.zeros):
            return False
    for k in labels.shared:
        same = x.rolled(k) == y.rolled(k) == () and x.pieces(k) == y.pieces(k)
        if not same or _forms(x, k) != _forms(y, k):
            return False
    return not any(c.axis == GAP for c in (*x.slots, *y.slots, *x.ciphers, *y.ciphers))


def _homes(x: Layout, y: Layout, labels: Labels) -> Layout | None:
    """A layout for the result: each free digit keeps its form, at its own coordinate or, where one
    of `x` lies there, at one that the contracted axes leave free.
    """
    owner = {label: layout for layout in (y, x) for label in layout.axes}
    slots: list[Coordinate] = []
    free: list[int] = []
    moved: list[int] = []
    for k, (c, d) in enumerate(zip(x.slots, y.slots, strict=True)):
        own = [e for e in (c, d) if e.axis >= 0 and e.axis not in labels.summed]
        if not own:
            free.append(k)
            slots.append(Coordinate(REPLICATED, c.size))
        else:
            slots.append(own[0])
            if len(own) == 2 and own[1] != own[0]:
                moved.append(own[1].axis)
    if any(c.axis in moved for c in slots):
        return None  # half of its pieces moved
    ciphers: list[Coordinate] = []
    for c in (*x.ciphers, *y.ciphers):
        if c.axis not in labels.summed and c not in ciphers:
            ciphers.append(c)
    for label in labels.out:
        if label in labels.shared or any(c.axis == label for c in slots) or label not in owner:
            continue
        form = _forms(owner[label], label)
        if not any(form):
            continue
        size = labels.sizes[label]
        ciphers = [c for c in ciphers if c.axis != label]
        stride = 1
        for k in free:
            if slots[k].axis == REPLICATED and stride < size and form[k] == stride % size:
                if slots[k].size > size // stride:
                    if slots[k].size % (size // stride):
                        return None
                    cut = math.prod(c.size for c in slots[:k]) * (size // stride)
                    return _homes(split(x, cut), split(y, cut), labels)
                slots[k] = Coordinate(label, slots[k].size, stride)
                stride *= slots[k].size
        if stride < size:
            if size % stride:
                return None
            ciphers.append(Coordinate(label, size // stride, stride))
    rolls = _rolls(owner, slots, labels)
    if rolls is None:
        return None
    used = tuple(c for c in ciphers if c.size > 1)
    return Layout(tuple(labels.sizes), tuple(slots), used, rolls, x.zeros and y.zeros).canonical()


def _rolls(
    owner: Mapping[int, Layout], slots: Sequence[Coordinate], labels: Labels
) -> tuple[Roll, ...] | None:
    out = []
    for label in labels.out:
        if label not in owner:
            continue
        layout = owner[label]
        form = _forms(layout, label)
        extent = max(layout.extent(label), 1)
        for c, factor in zip(slots, form, strict=True):
            own = c.stride % extent if c.axis == label else 0
            if factor == own:
                continue
            if c.axis < 0 or layout.extent(label) != labels.sizes[label]:
                return None
            signed = (factor - own + extent // 2) % extent - extent // 2
            out.append(Roll(label, c.axis, c.stride, signed))
    rolled = {r.axis for r in out}
    return None if any(r.by_axis in rolled for r in out) else tuple(sorted(out))


@dataclass(frozen=True, eq=False)
class _Classes:
    """Distinct terms: columns (member, out, left, left shift, right, right shift)."""

    table: np.ndarray
    rows: dict[int, np.ndarray]


def _classes(
    labels: Labels,
    x: Layout,
    y: Layout,
    out: Layout,
    only: int | None = None,
    *,
    sampled: bool = False,
) -> _Classes:
    """All distinct terms of the family, or of one member with the class of every position.

    Batch digits stand at 0 unless `only` is given, whose rows are whole. `sampled`: at a few
    positions along every coordinate, its ends among them, where shifts do or do not wrap.
    """
    x, y, out = refined([x, y, out])
    still = [
        c == d == e
        and not _involved((x, y, out), e)
        and (c.axis == REPLICATED or c.axis in labels.shared)
        for c, d, e in zip(x.slots, y.slots, out.slots, strict=True)
    ]
    columns = _columns(out, [only is None and s for s in still], sampled)
    ciphers = _representatives(out, x, y, labels)
    index, _ = grid(out)
    family = math.prod(x.extent(k) for k in labels.summed)
    members = np.arange(family) if only is None else np.array([only])
    shape = (len(members), len(ciphers), len(columns))
    targets = {
        k: np.broadcast_to(v[np.asarray(ciphers)[:, None], columns][None], shape)
        for k, v in index.items()
    }
    rest = members
    for k in labels.summed:
        extent = x.extent(k)
        form = np.zeros(len(columns), np.int64)
        at = 1
        for c, factor in zip(x.slots, _forms(x, k), strict=True):
            form = form + factor * (columns // at % c.size)
            at *= c.size
        step, rest = rest % extent, rest // extent
        value = (form[None, None, :] + step[:, None, None]) % extent
        targets[k] = np.broadcast_to(value, shape)
    table = np.zeros((6, *shape), np.int64)
    table[0] = members[:, None, None]
    table[1] = np.asarray(ciphers)[None, :, None]
    for row, layout in ((2, x), (4, y)):
        cipher, slot = _address(layout, targets, columns, shape)
        table[row] = cipher
        table[row + 1] = (slot - columns) % period(layout)
    flat = table.reshape(6, -1)
    spans = [int(t.max()) + 1 for t in flat]
    key = np.zeros(flat.shape[1], np.int64)
    for line, span in zip(flat, spans, strict=True):
        key = key * span + line
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    rows: dict[int, np.ndarray] = {}
    found = flat[:, first]
    if only is not None:
        inverse = inverse.reshape(shape)
        klass = _numbered(found)
        rows = {c: klass[inverse[0, k]] for k, c in enumerate(ciphers)}
    return _Classes(found, rows)


def fewest_products(left: Layout, out: Layout, labels: Labels) -> int:
    """Products of ciphertexts that a contraction has at least."""
    return math.prod(left.extent(k) for k in labels.summed) * out.ciphertexts


def _numbered(table: np.ndarray) -> np.ndarray:
    """Number of each term among those of its (member, out)."""
    key = table[0] * (int(table[1].max()) + 1) + table[1]
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    new = np.r_[True, ordered[1:] != ordered[:-1]]
    start = np.maximum.accumulate(np.where(new, np.arange(len(key)), 0))
    out = np.empty(len(key), np.int64)
    out[order] = np.arange(len(key)) - start
    return out


def _involved(layouts: Sequence[Layout], c: Coordinate) -> bool:
    return any((r.by_axis, r.by_stride) == (c.axis, c.stride) for x in layouts for r in x.rolls)


def _columns(layout: Layout, fixed: Sequence[bool], sampled: bool) -> np.ndarray:
    """Columns whose fixed coordinates are at 0; `sampled`: a few along each of the others."""
    out = np.zeros(1, np.int64)
    at = 1
    for c, still in zip(layout.slots, fixed, strict=True):
        if not still:
            some = {0, 1, c.size // 2, c.size - 1} if sampled else range(c.size)
            along = np.fromiter(sorted(some), np.int64)
            out = (out[None, :] + at * along[:, None]).reshape(-1)
        at *= c.size
    return out


def _representatives(layout: Layout, x: Layout, y: Layout, labels: Labels) -> list[int]:
    """Ciphertexts of the result with batch digits at 0."""
    out = [0]
    at = 1
    for c in layout.ciphers:
        if c.axis not in labels.shared or _involved((layout, x, y), c):
            out = [o + at * p for p in range(c.size) for o in out]
        at *= c.size
    return sorted(out)


def _repeats(out: Layout, x: Layout, y: Layout, labels: Labels) -> tuple[tuple[int, int, int], ...]:
    ranges = []
    at = 1
    for c in out.ciphers:
        if c.axis in labels.shared and not _involved((out, x, y), c):
            steps = (at, _stride(x, c), _stride(y, c))
            ranges.append([tuple(s * p for s in steps) for p in range(c.size)])
        at *= c.size
    return tuple(
        (sum(s[0] for s in pick), sum(s[1] for s in pick), sum(s[2] for s in pick))
        for pick in itertools.product(*ranges)
    )


def _stride(layout: Layout, wanted: Coordinate) -> int:
    at = 1
    for c in layout.ciphers:
        if c == wanted:
            return at
        at *= c.size
    return 0


def _address(
    layout: Layout, targets: Mapping[int, np.ndarray], columns: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(ciphertext, column) of the elements with these indices; replicated coordinates as here."""
    rolled = {r.axis for r in layout.rolls}
    position: dict[tuple[int, int], np.ndarray] = {}
    at = 1
    for c in layout.slots:
        if c.axis == REPLICATED and c.stride:
            position[c.axis, c.stride] = columns // at % c.size
        at *= c.size
    for axis in sorted(layout.axes, key=lambda a: a in rolled):
        home = targets[axis] if axis in targets else np.zeros(shape, np.int64)
        for r in layout.rolled(axis):
            home = home - r.factor * position[r.by_axis, r.by_stride]
        if axis in rolled:
            home = home % layout.shape[axis]
        for c in layout.pieces(axis):
            position[c.axis, c.stride] = home // c.stride % c.size
    cipher = np.zeros(shape, np.int64)
    slot = np.zeros(shape, np.int64)
    at = 1
    for c in layout.slots:
        here = columns // at % c.size if c.axis == REPLICATED else 0
        slot = slot + at * (position[c.axis, c.stride] if c.axis >= 0 else here)
        at *= c.size
    at = 1
    for c in layout.ciphers:
        if c.axis >= 0:
            cipher = cipher + at * position[c.axis, c.stride]
        at *= c.size
    return cipher, slot


@functools.lru_cache(maxsize=2048)
def contraction(
    left: Layout, right: Layout, out: Layout, labels: Labels, *, sampled: bool = False
) -> Contraction | None:
    """The plan with the fewest rotations; layouts are labelled, `out` one of `results`.

    sampled: a plan to count by, from a few positions, which may miss a class of them.

    None if there would be more terms than are worth a look.
    """
    if fewest_products(left, out, labels) > _LARGEST:
        return None
    found = _classes(labels, left, right, out, sampled=sampled).table
    member, o, lc, ls, rc, rs = found
    klass = _numbered(found)
    masked = bool(klass.any())
    n = out.columns
    repeats = _repeats(out, left, right, labels)
    many = [len({r[k] for r in repeats}) for k in range(3)]
    best = None
    for turn in _turns(found, klass, n):
        a, b = (ls - turn) % period(left), (rs - turn) % period(right)
        versions = many[1] * _pairs(lc, a), many[2] * _pairs(rc, b)
        count = sum(versions) + many[0] * _pairs(o, turn % n)
        price = count + KEY * min(len(set(a.tolist())), len(set(b.tolist())))
        if best is None or price < best[0]:
            best = price, count, turn % n, a, b
    assert best is not None
    _, count, turn, a, b = best
    ways = []
    if masked:
        sides = ((True, lc, a, rc, b, many[1]), (False, rc, b, lc, a, many[2]))
        for left_side, own, step, other, along, times in sides:
            # A product by a mask for each (version, class), then one of ciphertexts for each.
            shared = _counts(own, step, member, klass, turn)
            single = len(shared) * times
            ways.append(
                (
                    single + _DEAR * len(o) * len(repeats),
                    left_side,
                    False,
                    single,
                    ((1, single),),
                    _counts(o, turn),
                )
            )
            # Or one product of ciphertexts for all masked versions that meet the same version.
            met = _counts(o, turn, other, along)
            ways.append(
                (
                    len(o) * len(repeats) + _DEAR * len(met) * len(repeats),
                    left_side,
                    True,
                    len(o) * len(repeats),
                    _histogram(met, len(repeats)),
                    _counts(*np.array(list(met)).T[:2]),
                )
            )
    else:
        ways.append((0, False, False, 0, (), _counts(o, turn)))
    _, mask_left, merged, masks, maskings, sums = min(ways, key=lambda way: way[0])
    return Contraction(
        out,
        *(o, lc, rc, a, b, turn, member, klass),
        masked,
        mask_left,
        merged,
        repeats,
        count,
        many[0] * _pairs(o, turn),
        masks,
        maskings,
        _histogram(sums, len(repeats)),
        (left, right),
        labels,
    )


def _counts(*columns: np.ndarray) -> dict[tuple[int, ...], int]:
    """How often each row of these columns occurs."""
    out: dict[tuple[int, ...], int] = {}
    for row in zip(*(c.tolist() for c in columns), strict=True):
        out[row] = out.get(row, 0) + 1
    return out


def _histogram(counts: Mapping[tuple[int, ...], int], times: int) -> tuple[tuple[int, int], ...]:
    """(terms, how many sums have so many), each `times` over."""
    out: dict[int, int] = {}
    for terms in counts.values():
        out[terms] = out.get(terms, 0) + times
    return tuple(sorted(out.items()))


def _pairs(cipher: np.ndarray, step: np.ndarray) -> int:
    moved = step != 0
    if not moved.any():
        return 0
    keys = cipher[moved] * (int(step.max()) + 1) + step[moved]
    return len(set(keys.tolist())) if len(keys) < 1024 else len(np.unique(keys))


def _turns(table: np.ndarray, klass: np.ndarray, n: int) -> Iterator[np.ndarray]:
    """Candidates for the rotation of each term's accumulator."""
    member, o, _, ls, _, rs = table
    few = len(klass) > _MANY
    key = member * (int(o.max()) + 1) + o
    starts = np.flatnonzero(klass == 0)
    starts = starts[np.argsort(key[starts])]
    first = starts[np.searchsorted(key[starts], key)]
    carries = [np.zeros(len(klass), np.int64)]
    if klass.any():
        carries += [(ls - ls[first]) % n, (rs - rs[first]) % n]
    family = int(member.max()) + 1
    one = np.flatnonzero((member == min(1, family - 1)) & (klass == 0))
    bases = {*(int(ls[k]) for k in one[:1]), *(int(rs[k]) for k in one[:1])} - {0}
    for carry in carries[-1:] if few else carries:
        yield carry
        for base in sorted(bases):
            for step in _babies(family, few):
                yield member // step * step * base + carry
    if not klass.any():
        for shift in (ls, rs):
            moved = shift[shift != 0]
            unit = int(np.gcd.reduce(moved)) if len(moved) else 0
            for step in _babies(int(shift.max()) // unit + 1, few) if unit else ():
                yield shift - shift % (step * unit)


def _babies(family: int, few: bool) -> list[int]:
    middle = max(math.isqrt(family), 1)
    if few:
        return [1 << (family.bit_length() // 2)]
    near = set(range(max(2, middle // 2), min(2 * middle, family) + 1, max(1, middle // 12)))
    return sorted({family, *near, *(2**k for k in range(1, family.bit_length()))})
