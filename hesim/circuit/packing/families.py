"""The terms of a contraction of two ciphertexts: which rotations bring together what a sum needs.

The family of a contraction runs over the summed index. For each member and each ciphertext of the
result, positions fall into classes: those for which operands' elements lie at the same distances.
Where shifts wrap into the next row there is more than one, each with a mask of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout, indices, refined
from hesim.circuit.packing.maps import period

__all__ = ["Labels", "Masks", "Terms", "forms", "involved", "terms"]

_CELLS = 2**19
"""Positions that are looked at in one go: a few arrays of 4 MB."""

_PASSES = 16
"""Classes of one member and ciphertext that are told apart by comparing, before sorting."""


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
class Masks:
    """Positions that classes consist of, each set of them once.

    Attributes:
      bits: packed bool (sets, reduced columns). number: int (terms,), the set of each term.
      reduced: int (columns,), the reduced column of each: what does not matter left out.
    """

    bits: np.ndarray
    number: np.ndarray
    reduced: np.ndarray

    def __getitem__(self, term: int) -> np.ndarray:
        """bool (columns,): the positions of a term."""
        packed = self.bits[self.number[term]]
        return np.unpackbits(packed)[self.reduced].astype(bool)


@dataclass(frozen=True, eq=False)
class Terms:
    """Distinct terms in order of member and result: int64 arrays of equal length.

    Attributes:
      member: of the family. out, left, right: ciphertexts. left_step, right_step: columns from a
        result's place to its operands', modulo their periods.
      klass: number of the term among those of its member and ciphertext of the result.
      masks: which positions each one is for; None where nobody asked.
    """

    member: np.ndarray
    out: np.ndarray
    left: np.ndarray
    left_step: np.ndarray
    right: np.ndarray
    right_step: np.ndarray
    klass: np.ndarray
    masks: Masks | None

    def __len__(self) -> int:
        return len(self.out)


def forms(layout: Layout, label: int) -> tuple[int, ...]:
    """What each slot coordinate adds to the index of a label, modulo its extent."""
    extent = max(layout.extent(label), 1)
    where = {(c.axis, c.stride): k for k, c in enumerate(layout.slots)}
    out = [c.stride % extent if c.axis == label else 0 for c in layout.slots]
    for r in layout.rolled(label):
        k = where.get((r.by_axis, r.by_stride))
        if k is not None:
            out[k] = (out[k] + r.factor) % extent
    return tuple(out)


def involved(layouts: Sequence[Layout], c: Coordinate) -> bool:
    """Whether some axis is rolled by a coordinate."""
    return any((r.by_axis, r.by_stride) == (c.axis, c.stride) for x in layouts for r in x.rolls)


def terms(
    labels: Labels, x: Layout, y: Layout, out: Layout, *, sampled: bool = False, masks: bool = False
) -> Terms:
    """All distinct terms of the family, with digits of the batch at 0.

    Args:
      x, y, out: labelled layouts of the operands and the result.
      sampled: from a few positions along every coordinate, its ends among them, where shifts do or
        do not wrap; a class may be missed.
      masks: whether the positions of each are wanted.
    """
    x, y, out = refined([x, y, out])
    still = [
        c == d == e
        and not involved((x, y, out), e)
        and (c.axis == REPLICATED or c.axis in labels.shared)
        for c, d, e in zip(x.slots, y.slots, out.slots, strict=True)
    ]
    look = _Look(labels, x, y, out, _columns(out, still, sampled))
    family = math.prod(x.extent(k) for k in labels.summed)
    step = max(1, _CELLS // (len(look.ciphers) * len(look.columns)))
    found: list[np.ndarray] = []
    sets = _Sets()
    for start in range(0, family, step):
        members = np.arange(start, min(start + step, family))
        key = look.keys(members)
        row, value = _told_apart(key)
        found.append(np.stack([start * len(look.ciphers) + row, value]))
        if masks:
            sets.add(key, row, value)
    row, value = np.concatenate(found, axis=1)
    member, at = np.divmod(row, len(look.ciphers))
    shown = sets.masks(_reduced(out, still, look.columns)) if masks else None
    return Terms(member, look.ciphers[at], *look.decoded(value), _within(row), shown)


class _Look:
    """Where the operands' elements lie that positions of the result need."""

    def __init__(self, labels: Labels, x: Layout, y: Layout, out: Layout, columns: np.ndarray):
        self.labels, self.x, self.y, self.columns = labels, x, y, columns
        self.ciphers = _representatives(out, x, y, labels)
        self.spans = x.ciphertexts, period(x), y.ciphertexts, period(y)
        index, _ = indices(out, self.ciphers, columns)
        self.targets = {k: v[None] for k, v in index.items()}

    def keys(self, members: np.ndarray) -> np.ndarray:
        """int64 (members * ciphertexts of the result, columns): a number for the two ciphertexts
        and shifts that a position needs.
        """
        targets = {**self.targets, **self._summed(members)}
        key: np.ndarray | int = 0
        for layout, ciphers, repeats in ((self.x, *self.spans[:2]), (self.y, *self.spans[2:])):
            cipher, slot = _address(layout, targets, self.columns)
            key = (key * ciphers + cipher) * repeats + (slot - self.columns) % repeats
        shape = len(members), len(self.ciphers), len(self.columns)
        return np.broadcast_to(key, shape).reshape(-1, shape[2])

    def _summed(self, members: np.ndarray) -> dict[int, np.ndarray]:
        """The summed indices of each position, (members, 1, columns)."""
        out, rest = {}, members
        for k in self.labels.summed:
            extent = self.x.extent(k)
            form = np.zeros(len(self.columns), np.int64)
            at = 1
            for c, factor in zip(self.x.slots, forms(self.x, k), strict=True):
                if factor:
                    form = form + factor * (self.columns // at % c.size)
                at *= c.size
            step, rest = rest % extent, rest // extent
            out[k] = (form[None, None, :] + step[:, None, None]) % extent
        return out

    def decoded(self, key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(left ciphertext, left shift, right ciphertext, right shift) of keys."""
        _, left_repeats, rights, right_repeats = self.spans
        rest, right_step = np.divmod(key, right_repeats)
        rest, right = np.divmod(rest, rights)
        left, left_step = np.divmod(rest, left_repeats)
        return left, left_step, right, right_step


def _told_apart(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, value) of the distinct values of each row, ascending."""
    rows, pending = np.arange(len(key)), np.ones(key.shape, bool)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    while len(rows) and len(found) < _PASSES:
        mine = key if len(rows) == len(key) else key[rows]
        value = mine[np.arange(len(rows)), pending.argmax(axis=1)]
        found.append((rows, value))
        pending &= mine != value[:, None]
        more = pending.any(axis=1)
        rows, pending = rows[more], pending[more]
    for r, open_ in zip(rows.tolist(), pending, strict=True):
        values = np.unique(key[r][open_])
        found.append((np.full(len(values), r), values))
    row, value = np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
    order = np.lexsort((value, row))
    return row[order], value[order]


class _Sets:
    """Sets of positions, each kept once."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._number: list[np.ndarray] = []

    def add(self, key: np.ndarray, row: np.ndarray, value: np.ndarray) -> None:
        step = max(1, 4 * _CELLS // key.shape[1])
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            bits = np.packbits(key[row[part]] == value[part, None], axis=1)
            known = self._known
            numbers = [known.setdefault(b.tobytes(), len(known)) for b in bits]
            self._number.append(np.array(numbers, np.int64))

    def masks(self, reduced: np.ndarray) -> Masks:
        bits = np.frombuffer(b"".join(self._known), np.uint8).reshape(len(self._known), -1)
        return Masks(bits, np.concatenate(self._number), reduced)


def _within(row: np.ndarray) -> np.ndarray:
    """Number of each entry among those of its row; rows ascend."""
    new = np.r_[True, row[1:] != row[:-1]]
    return np.arange(len(row)) - np.maximum.accumulate(np.where(new, np.arange(len(row)), 0))


def _columns(layout: Layout, fixed: Sequence[bool], sampled: bool) -> np.ndarray:
    """Columns, ascending, whose fixed coordinates are at 0; `sampled`: a few along each of the
    others.
    """
    out = np.zeros(1, np.int64)
    at = 1
    for c, still in zip(layout.slots, fixed, strict=True):
        if not still:
            some = {0, 1, c.size // 2, c.size - 1} if sampled else range(c.size)
            along = np.fromiter(sorted(some), np.int64)
            out = (out[None, :] + at * along[:, None]).reshape(-1)
        at *= c.size
    return out


def _reduced(layout: Layout, fixed: Sequence[bool], columns: np.ndarray) -> np.ndarray:
    """int (columns of the layout,): place among `columns` of each with fixed coordinates at 0."""
    every = np.arange(layout.columns)
    at = 1
    for c, still in zip(layout.slots, fixed, strict=True):
        if still:
            every = every - every // at % c.size * at
        at *= c.size
    return np.searchsorted(columns, every)


def _representatives(layout: Layout, x: Layout, y: Layout, labels: Labels) -> np.ndarray:
    """Ciphertexts of the result, ascending, with digits of the batch at 0."""
    out = [0]
    at = 1
    for c in layout.ciphers:
        if c.axis not in labels.shared or involved((layout, x, y), c):
            out = [o + at * p for p in range(c.size) for o in out]
        at *= c.size
    return np.array(sorted(out), np.int64)


def _address(
    layout: Layout, targets: Mapping[int, np.ndarray], columns: np.ndarray
) -> tuple[np.ndarray | int, np.ndarray | int]:
    """(ciphertext, column) of the elements with these indices, as arrays that broadcast as the
    targets do; replicated coordinates as here.
    """
    rolled = {r.axis for r in layout.rolls}
    position: dict[tuple[int, int], np.ndarray | int] = {}
    at = 1
    for c in layout.slots:
        if c.axis == REPLICATED and c.stride:
            position[c.axis, c.stride] = columns // at % c.size
        at *= c.size
    for axis in sorted(layout.axes, key=lambda a: a in rolled):
        home: np.ndarray | int = targets.get(axis, 0)
        for r in layout.rolled(axis):
            home = home - r.factor * position[r.by_axis, r.by_stride]
        if axis in rolled:
            home = home % layout.shape[axis]
        for c in layout.pieces(axis):
            low = home if c.stride == 1 else home // c.stride
            above = c.stride * c.size >= layout.shape[axis]
            position[c.axis, c.stride] = low if above else low % c.size
    return (
        _mixed(layout.ciphers, position, None),
        _mixed(layout.slots, position, columns),
    )


def _mixed(
    coordinates: Sequence[Coordinate],
    position: Mapping[tuple[int, int], np.ndarray | int],
    columns: np.ndarray | None,
) -> np.ndarray | int:
    """The number whose digits are these positions; of replicated coordinates, those of columns."""
    out: np.ndarray | int = 0
    at = 1
    for c in coordinates:
        if c.axis >= 0:
            out = out + at * position[c.axis, c.stride]
        elif c.axis == REPLICATED and columns is not None:
            out = out + at * (columns // at % c.size)
        at *= c.size
    return out
