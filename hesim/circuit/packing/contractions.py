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

from hesim.circuit.packing.families import Labels, Masks, Terms, forms, involved, terms
from hesim.circuit.packing.layout import GAP, REPLICATED, Coordinate, Layout, Roll, refined, split
from hesim.circuit.packing.maps import KEY, ascending, distinct, period

_LARGEST = 2**17
"""Products of ciphertexts beyond which a contraction is not tried."""

_DEAR = 2.5
"""What a product of two ciphertexts costs, in products by a mask."""

_MANY = 2048
"""Terms beyond which only a few splits into baby and giant steps are compared."""

__all__ = [
    "Contraction",
    "Labels",
    "contraction",
    "fewest_products",
    "results",
    "sampled",
    "summed_forms",
]


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
      shown: the positions of each term before its turn; None in a plan to count by.
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
    shown: Masks | None

    def mask(self, term: int) -> np.ndarray:
        """bool (columns,): positions of a term's accumulator that it counts for."""
        assert self.shown is not None, "a plan that was counted by samples is not emitted"
        return np.roll(self.shown[term], int(self.turn[term]))


def summed_forms(layout: Layout, beside: Layout, labels: Labels) -> object:
    """What two operands must agree in: the slots' part of the summed labels, on the coordinates
    that both are refined to.
    """
    try:
        x, _ = refined([layout, beside])
    except ValueError:
        return None
    return tuple((forms(x, k), x.extent(k)) for k in labels.summed)


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


def _compatible(x: Layout, y: Layout, labels: Labels) -> bool:
    for k in labels.summed:
        if forms(x, k) != forms(y, k) or x.extent(k) != y.extent(k):
            return False
        if x.extent(k) != labels.sizes[k] and not (x.zeros or y.zeros):
            return False
    for k in labels.shared:
        same = x.rolled(k) == y.rolled(k) == () and x.pieces(k) == y.pieces(k)
        if not same or forms(x, k) != forms(y, k):
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
        form = forms(owner[label], label)
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
        form = forms(layout, label)
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


def fewest_products(left: Layout, out: Layout, labels: Labels) -> int:
    """Products of ciphertexts that a contraction has at least."""
    return math.prod(left.extent(k) for k in labels.summed) * out.ciphertexts


def _repeats(out: Layout, x: Layout, y: Layout, labels: Labels) -> tuple[tuple[int, int, int], ...]:
    ranges = []
    at = 1
    for c in out.ciphers:
        if c.axis in labels.shared and not involved((out, x, y), c):
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


@functools.lru_cache(maxsize=2048)
def sampled(left: Layout, right: Layout, out: Layout, labels: Labels) -> Contraction | None:
    """A plan to count by, from a few positions, which may miss a class of them.

    None if there would be more terms than are worth a look.
    """
    return _plan(left, right, out, labels, few=True)


@functools.lru_cache(maxsize=16)
def contraction(left: Layout, right: Layout, out: Layout, labels: Labels) -> Contraction | None:
    """The plan with the fewest rotations; layouts are labelled, `out` one of `results`.

    None if there would be more terms than are worth a look.
    """
    return _plan(left, right, out, labels, few=False)


def _plan(
    left: Layout, right: Layout, out: Layout, labels: Labels, *, few: bool
) -> Contraction | None:
    if fewest_products(left, out, labels) > _LARGEST:
        return None
    found = terms(labels, left, right, out, sampled=few, masks=not few)
    o, lc, rc = found.out, found.left, found.right
    n = out.columns
    repeats = _repeats(out, left, right, labels)
    many = [len({r[k] for r in repeats}) for k in range(3)]
    best = None
    for turn in _turns(found, n):
        a = (found.left_step - turn) % period(left)
        b = (found.right_step - turn) % period(right)
        versions = many[1] * distinct(lc, a, n), many[2] * distinct(rc, b, n)
        count = sum(versions) + many[0] * distinct(o, turn, n)
        price = count + KEY * min(len(ascending(a)), len(ascending(b)))
        if best is None or price < best[0]:
            best = price, count, turn % n, a, b
    assert best is not None
    _, count, turn, a, b = best
    way = _masking(found, (a, b, turn), many, len(repeats))
    return Contraction(
        out,
        *(o, lc, rc, a, b, turn, found.member, found.klass),
        way.masked,
        way.left,
        way.merged,
        repeats,
        count,
        many[0] * distinct(o, turn, n),
        way.masks,
        way.maskings,
        way.sums,
        found.masks,
    )


@dataclass(frozen=True, eq=False)
class _Masking:
    """How products are masked: attributes as in `Contraction`; price in products by masks."""

    price: float
    masked: bool
    left: bool
    merged: bool
    masks: int
    maskings: tuple[tuple[int, int], ...]
    sums: tuple[tuple[int, int], ...]


def _masking(
    found: Terms, steps: tuple[np.ndarray, np.ndarray, np.ndarray], many: Sequence[int], times: int
) -> _Masking:
    """The cheapest way; times: ciphertexts of batch digits, `many` of them on each side."""
    a, b, turn = steps
    sums = _number(found.out, turn)
    plain = _histogram(_counts(sums), times)
    if not found.klass.any():
        return _Masking(0, False, False, False, 0, (), plain)
    ways = []
    every = len(found) * times
    sides = (
        (True, found.left, a, found.right, b, many[1]),
        (False, found.right, b, found.left, a, many[2]),
    )
    for left, own, step, other, along, versions in sides:
        # A product by a mask for each (version, class), then one of ciphertexts for each.
        single = len(ascending(_number(own, step, found.member, found.klass, turn))) * versions
        price = single + _DEAR * every
        ways.append(_Masking(price, True, left, False, single, ((1, single),), plain))
        # Or one product of ciphertexts for all masked versions that meet the same version.
        met, first, counts = np.unique(
            _number(sums, other, along), return_index=True, return_counts=True
        )
        price = every + _DEAR * len(met) * times
        merged = _histogram(_counts(sums[first]), times)
        ways.append(_Masking(price, True, left, True, every, _histogram(counts, times), merged))
    return min(ways, key=lambda way: way.price)


def _number(*columns: np.ndarray) -> np.ndarray:
    """int64: a number for each row of columns of whole numbers, equal where all of it is."""
    out, span = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        size = int(column.max(initial=0)) + 1
        if span * size > 2**62:
            values, out = np.unique(out, return_inverse=True)
            span = len(values)
        out, span = out * size + column, span * size
    return out


def _counts(values: np.ndarray) -> np.ndarray:
    """How often each different value occurs."""
    return np.unique(values, return_counts=True)[1]


def _histogram(counts: np.ndarray, times: int) -> tuple[tuple[int, int], ...]:
    """(terms, how many sums have so many), each `times` over."""
    terms, sums = np.unique(counts, return_counts=True)
    return tuple(zip(terms.tolist(), (times * sums).tolist(), strict=True))


def _turns(found: Terms, n: int) -> Iterator[np.ndarray]:
    """Candidates for the rotation of each term's accumulator."""
    member, ls, rs, klass = found.member, found.left_step, found.right_step, found.klass
    few = len(klass) > _MANY
    first = np.arange(len(klass)) - klass  # of the same member and ciphertext
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
