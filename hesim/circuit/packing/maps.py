"""Public linear maps between two layouts: matrices, masks, shears and any other relayout.

out[kept, fresh] = sum over contracted of weight[kept, fresh, contracted] * in[kept, contracted]

A map is a set of terms (result ciphertext, operand ciphertext, shift): for each of them one
rotation and one product by a plaintext, with the rotations shared as baby and giant steps (Halevi
and Shoup, "Algorithms in HElib", 2014). The terms follow from the two layouts: coordinates that
both have at the same place are fixed, so that the work grows with what moves, not with elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.packing.chains import chained_steps
from hesim.circuit.packing.layout import (
    GAP,
    REPLICATED,
    Coordinate,
    Layout,
    grid,
    indices,
    refined,
)

__all__ = [
    "MapCount",
    "MapPlan",
    "Terms",
    "ascending",
    "copies",
    "distinct",
    "giant_steps",
    "keys_and_parts",
    "map_count",
    "map_plan",
    "period",
]


KEY = 0.25
"""What a rotation key more counts, in rotations: it is made once, and takes its memory."""

_MANY = 4096
"""Terms beyond which only a few splits into baby and giant steps are compared."""

_NEAR_LEAST = 1.25
"""Times the least number of rotations at which no further split is looked for."""

_MOST_PAIRS = 2**22
"""Pairs of places, with all that stays where it is left out, beyond which a map is not tried."""

_MOST_TERMS = 2**20
"""Terms beyond which a map is not tried: each is a plaintext and a product by it."""

_TABLE = 2**14
"""Entries of a table that is always cheaper than sorting."""


@dataclass(frozen=True, eq=False)
class Terms:
    """Terms of a map, int64 arrays of equal length: out[p] += weight * into[p + shift]."""

    out: np.ndarray
    into: np.ndarray
    shift: np.ndarray

    def __len__(self) -> int:
        return len(self.out)


@dataclass(frozen=True)
class MapCount:
    """What a map costs.

    Attributes:
      outs: result ciphertexts. rotations: baby and giant steps that are not zero; turned: the
        latter.
      groups: (terms, how many partial sums have so many). partials: (partial sums, how many results
        have so many).
    """

    outs: int
    rotations: int
    turned: int
    groups: tuple[tuple[int, int], ...]
    partials: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class MapPlan:
    """Terms, and the giant step of each.

    Attributes:
      giant: rotation of the partial sum that a term goes into; shift - giant is the baby step.
      columns: of a ciphertext. outs: result ciphertexts.
      rotations: baby and giant steps that are not zero.
      groups: terms of each partial sum (result, giant step), in order of `group`.
      group: the partial sum that each term goes into.
      partials: partial sums of each result.
    """

    terms: Terms
    giant: np.ndarray
    columns: int
    outs: int
    rotations: int
    groups: np.ndarray
    group: np.ndarray
    partials: np.ndarray

    @functools.cached_property
    def moves(self) -> bool:
        """Whether every result is one operand as it is, rotated at most."""
        return len(self.terms) == self.outs == len(np.unique(self.terms.out))

    @functools.cached_property
    def turned(self) -> int:
        """Partial sums that are rotated."""
        return distinct(self.terms.out, self.giant, self.columns)

    @functools.cached_property
    def count(self) -> MapCount:
        """What it costs."""
        groups, partials = _histogram(self.groups), _histogram(self.partials)
        return MapCount(self.outs, self.rotations, self.turned, groups, partials)


def _histogram(values: np.ndarray) -> tuple[tuple[int, int], ...]:
    found, counts = np.unique(values, return_counts=True)
    return tuple(zip(found.tolist(), counts.tolist(), strict=True))


def period(layout: Layout) -> int:
    """Columns after which the content of every ciphertext repeats."""
    out = layout.columns
    for c in reversed(layout.slots):
        if c.axis != REPLICATED or c.stride:
            break
        out //= c.size
    return out


@functools.lru_cache(maxsize=4096)
def map_plan(
    source: Layout,
    target: Layout,
    kept: tuple[tuple[int, int], ...],
    outs: int = 1,
    most: int | None = None,
) -> MapPlan | None:
    """The cheapest plan of a map.

    Args:
      source, target: layouts of the operand and of the result, of equal columns.
      kept: (axis of the operand, axis of the result) that are the same index; other axes of the
        operand are contracted, others of the result fresh.
      outs: maps of this form on the same operand that share its baby steps.
      most: terms that it may have.

    Returns:
      None if the layouts have no common refinement, no terms or too many.
    """
    terms = _terms(source, target, dict(kept))
    if terms is None or not 0 < len(terms) <= (most or len(terms)):
        return None
    return planned(terms, target.ciphertexts, target.columns, period(source), outs)


@functools.lru_cache(maxsize=8192)
def map_count(
    source: Layout, target: Layout, kept: tuple[tuple[int, int], ...], outs: int = 1
) -> MapCount | None:
    """What `map_plan` costs, without keeping its terms."""
    plan = map_plan.__wrapped__(source, target, kept, outs)
    return None if plan is None else plan.count


def planned(terms: Terms, count: int, columns: int, repeats: int, outs: int = 1) -> MapPlan:
    """Terms with the giant steps that need the fewest rotations.

    Args:
      count: result ciphertexts. repeats: columns after which operands repeat.
      outs: how many maps share the baby steps.
    """
    shift, giant = giant_steps(terms, columns, repeats, outs)
    # Steps that do the same are the same.
    giant, baby = giant % columns, (shift - giant) % repeats
    shift = giant + baby
    rotations = distinct(terms.into, shift - giant, repeats) + distinct(terms.out, giant, columns)
    terms = Terms(terms.out, terms.into, shift)
    low = int(giant.min())
    span = int(giant.max()) - low + 1
    found, group, groups = np.unique(
        terms.out * span + giant - low, return_inverse=True, return_counts=True
    )
    partials = np.bincount(found // span, minlength=count)
    return MapPlan(terms, giant, columns, count, rotations, groups, group.reshape(-1), partials)


def _terms(source: Layout, target: Layout, kept: Mapping[int, int]) -> Terms | None:
    try:
        x, y = refined([source, target])
    except ValueError:
        return None
    named = x.renamed(
        (*(0 for _ in range(_most(kept) + 1 + len(x.shape))),),
        {a: kept.get(a, _most(kept) + 1 + k) for k, a in enumerate(range(len(x.shape)))},
    )
    fixed = _fixed(named, y, kept)
    still = _fixed_ciphers(named, y, kept)
    xi, xp, xc = _reduced(x, fixed, _at_zero(named, still))
    yi, yp, yc = _reduced(y, fixed, _at_zero(y, still))
    left, right = np.zeros(len(xp), np.int64), np.zeros(len(yp), np.int64)
    for a, b in kept.items():
        if a in xi and b in yi:
            left, right = left * x.shape[a] + xi[a], right * x.shape[a] + yi[b]
    for at, size in copies(x):
        left, right = left * size + xp // at % size, right * size + yp // at % size
    pairs = _joined(left, right)
    if pairs is None:
        return None
    a, b = pairs
    repeats = period(x)
    shift = (xp[a] - yp[b]) % repeats
    found = ascending((yc[b] * source.ciphertexts + xc[a]) * repeats + shift)
    if len(found) * math.prod(c.size for c in still) > _MOST_TERMS:
        return None
    both, shift = np.divmod(found, repeats)
    out, into = np.divmod(both, source.ciphertexts)
    for c in still:
        steps = np.arange(c.size)[:, None]
        out = (out[None, :] + steps * _cipher_step(y, c)).reshape(-1)
        into = (into[None, :] + steps * _cipher_step(named, c)).reshape(-1)
        shift = np.tile(shift, c.size)
    return Terms(out, into, shift)


def _fixed_ciphers(x: Layout, y: Layout, kept: Mapping[int, int]) -> list[Coordinate]:
    """Ciphertext coordinates that hold the same kept piece in both."""
    moving = {a for layout in (x, y) for r in layout.rolls for a in (r.axis, r.by_axis)}
    axes = set(kept.values()) - moving
    return [c for c in x.ciphers if c in y.ciphers and c.axis in axes]


def _cipher_step(layout: Layout, wanted: Coordinate) -> int:
    k = layout.ciphers.index(wanted)
    return math.prod(c.size for c in layout.ciphers[:k])


def _at_zero(layout: Layout, still: Sequence[Coordinate]) -> np.ndarray:
    """Ciphertexts whose fixed coordinates are at 0."""
    out = np.zeros(1, np.int64)
    at = 1
    for c in layout.ciphers:
        if c not in still:
            out = (out[None, :] + at * np.arange(c.size)[:, None]).reshape(-1)
        at *= c.size
    return np.sort(out)


def _most(kept: Mapping[int, int]) -> int:
    return max(kept.values(), default=-1)


def _fixed(x: Layout, y: Layout, kept: Mapping[int, int]) -> list[bool]:
    """Slot coordinates that hold the same kept piece in both."""
    axes = set(kept.values())
    same_rolls = x.rolls == y.rolls
    moving = (
        set()
        if same_rolls
        else {a for layout in (x, y) for r in layout.rolls for a in (r.axis, r.by_axis)}
    )
    out = []
    for c, d in zip(x.slots, y.slots, strict=True):
        both = c == d and (c.axis in (REPLICATED, GAP) or c.axis in axes)
        out.append(both and c.axis not in moving)
    return out


def _reduced(
    layout: Layout, fixed: Sequence[bool], ciphers: np.ndarray
) -> tuple[dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """(index of each axis, column, ciphertext) of the elements whose fixed coordinates are at 0."""
    columns = np.zeros(1, np.int64)
    at = 1
    for c, still in zip(layout.slots, fixed, strict=True):
        if not still and c.axis != GAP:
            columns = (columns[None, :] + at * np.arange(c.size)[:, None]).reshape(-1)
        at *= c.size
    shape = len(ciphers), len(columns)
    index, live = indices(layout, ciphers, columns)
    chosen, place = np.nonzero(np.broadcast_to(live, shape))
    found = {a: np.broadcast_to(v, shape)[chosen, place] for a, v in index.items()}
    return found, columns[place], ciphers[chosen]


def copies(layout: Layout) -> list[tuple[int, int]]:
    """(columns below, size) of the coordinates along which elements are repeated.

    Of the copies of an element, a result takes the one at its own position there. Where everything
    repeats, above the period, no choice is needed.
    """
    out = []
    at = 1
    for c in layout.slots:
        if at == period(layout):
            break
        if c.axis == REPLICATED:
            out.append((at, c.size))
        at *= c.size
    return out


def _joined(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """All pairs (i, j) with left[i] == right[j], left[i] not negative; None if too many."""
    order = np.argsort(left, kind="stable")
    ordered = left[order]
    start = np.searchsorted(ordered, right, "left")
    stop = np.searchsorted(ordered, right, "right")
    counts = stop - start
    total = int(counts.sum())
    if total > _MOST_PAIRS:
        return None
    j = np.repeat(np.arange(len(right)), counts)
    offset = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.repeat(start, counts) + offset], j


def giant_steps(
    terms: Terms, columns: int, repeats: int, outs: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts and giant steps of the split that needs the fewest.

    Shifts are written as multiples of one unit, from 0 up or about 0, whichever is cheaper, or of
    one unit beside a few offsets.
    """
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    if len(np.unique(terms.out)) == len(terms):  # nothing to add up: one rotation each at most
        return terms.shift % repeats, np.zeros_like(terms.shift)
    for unit, number in _multiples(terms.shift % repeats, repeats):
        steps = _steps(number, len(number) > _MANY)
        counts = _counts(terms, unit, number, steps, columns, repeats, outs)
        least = int(np.argmin(counts))
        if best is None or counts[least] < best[0]:
            step = steps[least]
            giant = number - number % step if step else np.zeros_like(number)
            best = float(counts[least]), unit * number, unit * giant
    assert best is not None
    if best[0] < _NEAR_LEAST * _least(terms, outs) or len(terms) > _MANY:
        return best[1], best[2]
    for giant, baby in chained_steps(terms.out, terms.shift % repeats, repeats):
        count = distinct(terms.into, baby, repeats) + outs * distinct(terms.out, giant, columns)
        count += KEY * len({*(baby % repeats).tolist(), *(giant % columns).tolist()})
        if count < best[0]:
            best = count, giant + baby, giant
    return best[1], best[2]


def _counts(
    terms: Terms,
    unit: int,
    number: np.ndarray,
    steps: Sequence[int],
    columns: int,
    repeats: int,
    outs: int,
) -> np.ndarray:
    """Rotations, and keys at `KEY` each, that every giant step needs, in numbers; 0 is none."""
    (into, low), (out, high) = _pairs(terms.into, number), _pairs(terms.out, number)
    found = np.empty(len(steps))
    chunk = max(1, _TABLE // len(number))
    for start in range(0, len(steps), chunk):
        part = np.array(steps[start : start + chunk])[:, None]
        size = np.where(part == 0, np.iinfo(np.int64).max, part)
        at = np.where(part == 0, low, low % size)
        giant = np.where(part == 0, 0, high - high % size)
        baby = unit * at % repeats
        count = _distinct_each(into, baby, repeats) + KEY * _different(baby)
        count += outs * _distinct_each(out, unit * giant % columns, columns)
        alone = part[:, 0] & (part[:, 0] - 1) != 0  # powers of two share their keys
        found[start : start + chunk] = count + np.where(alone, KEY, 0.0)
    return found


def _distinct_each(cipher: np.ndarray, moved: np.ndarray, modulus: int) -> np.ndarray:
    """What `distinct` counts, for every row of steps that are taken modulo `modulus` already."""
    pairs = np.where(moved != 0, cipher * modulus + moved, 0)
    return _different(pairs) - np.any(moved == 0, axis=1)


def _different(values: np.ndarray) -> np.ndarray:
    """How many values each row has."""
    ordered = np.sort(values, axis=1)
    return 1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)


def _pairs(cipher: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different pairs of a ciphertext and a number."""
    least = int(number.min())
    span = int(number.max()) - least + 1
    found, place = np.divmod(ascending(cipher * span + (number - least)), span)
    return found, place + least


def _least(terms: Terms, outs: int) -> float:
    """About how many rotations the terms need at least, however they are split."""
    sources, results = (len(ascending(ciphers)) for ciphers in (terms.into, terms.out))
    return 2.0 * math.sqrt(outs * len(terms)) - sources - outs * results


def _multiples(shift: np.ndarray, repeats: int) -> list[tuple[int, np.ndarray]]:
    """Ways to write shifts, modulo `repeats`, as unit * number: (unit, number)."""
    about = np.where(shift > repeats // 2, shift - repeats, shift)
    out = [(1, shift)]
    if not np.array_equal(about, shift):
        out.append((1, about))
    moved = np.abs(about[about != 0])
    unit = int(moved.min()) if len(moved) else 1
    common = math.gcd(unit, repeats)
    if unit == common or np.any(shift % common):
        return out
    # A unit that does not divide the columns, as that of a transpose: it has an inverse.
    modulus = repeats // common
    number = shift // common * pow(unit // common, -1, modulus) % modulus
    number = np.where(number > modulus // 2, number - modulus, number)
    if np.abs(number).max() < 8 * len(np.unique(shift)):
        out.append((unit, number))
    return out


def _steps(number: np.ndarray, few: bool) -> list[int]:
    distinct = np.unique(number)
    moved = np.abs(distinct[distinct != 0])
    if len(moved) < 4:
        return [0]
    unit = int(np.gcd.reduce(moved))
    span = (int(distinct[-1]) - int(distinct[0])) // unit + 1
    middle = math.isqrt(span)
    if few:
        half = 1 << (middle.bit_length() - 1)
        return [0, unit * half, unit * 2 * half]
    factors = {2**k for k in range(1, span.bit_length())}
    factors |= set(range(max(2, middle // 3), min(3 * middle, span) + 1, max(1, middle // 16)))
    return [0, *(unit * f for f in sorted(factors))]


def ascending(values: np.ndarray) -> np.ndarray:
    """The different values, int64 and none of them negative."""
    size = int(values.max(initial=-1)) + 1
    if size <= _TABLE + 64 * len(values):
        seen = np.zeros(size, bool)
        seen[values] = True
        return np.flatnonzero(seen)
    ordered = np.sort(values)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]]


def distinct(cipher: np.ndarray, step: np.ndarray, modulus: int) -> int:
    """How many pairs there are of a ciphertext and a step that is not 0, modulo `modulus`."""
    moved = step % modulus
    turned = moved != 0
    pairs = cipher[turned] * modulus + moved[turned]
    if not len(pairs):
        return 0
    return len(ascending(pairs))


def keys_and_parts(
    layout: Layout,
    kept: Sequence[tuple[int, int]],
    strides: Mapping[int, int],
    repeated: Sequence[tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Tables (ciphertexts, columns) int32 of one side of a map.

    Args:
      kept: (axis, extent) whose index must agree on both sides, in the same order on both.
      strides: what an axis' index adds to the place of the weight.
      repeated: `copies` of the operand.

    Returns:
      (key: number of the kept index, -1 where no element lies; part of the weight's place).
    """
    index, live = grid(layout)
    key = np.zeros(live.shape, np.int64)
    part = np.zeros(live.shape, np.int64)
    for a, extent in kept:
        key = key * extent + index[a]
    columns = np.arange(layout.columns)
    for at, size in repeated:
        key = key * size + (columns // at % size)[None, :]
    for a, stride in strides.items():
        if a in index:
            part = part + stride * index[a]
    return np.where(live, key, -1).astype(np.int32), np.where(live, part, 0).astype(np.int32)
