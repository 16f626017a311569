"""Moves by tables of elements: of what the digits of layouts do not describe, as reversals, strided
slices, or reshapes whose factors do not fall together.

Every element of the result is named by the number of the element that it is; the terms of the map
follow from where both lie. The work grows with elements, so these are the last ways to be tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.builder import Plain
from hesim.circuit.circuit import PlaintextFamily
from hesim.circuit.packing.costs import map_work
from hesim.circuit.packing.emission import Emission, spread
from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout, grid
from hesim.circuit.packing.maps import MapPlan, Terms, copies, period, planned
from hesim.circuit.plain_rows import MapRows
from hesim.circuit.shape import StageShape

__all__ = ["Gathering", "clean", "gathering", "packings", "terms_between"]

_LARGEST = 2**22
"""Positions of operands and result beyond which a move by a table is not tried."""


@dataclass(frozen=True, eq=False)
class Gathering:
    """A result put together from elements of operands.

    Attributes:
      plan: its terms; operands' ciphertexts are numbered one operand after the other.
      layout: of the result.
      in_key, out_key: int32 (ciphertexts, columns): which element lies, or has to lie, where.
      masked: whether it multiplies, which costs a level.
    """

    plan: MapPlan
    layout: Layout
    in_key: np.ndarray
    out_key: np.ndarray
    masked: bool

    @property
    def works(self) -> tuple[StageShape, ...]:
        """Stages; none where ciphertexts stay as they are."""
        if not (self.masked or self.plan.terms.shift.any()):
            return ()
        return (map_work(self.plan, masked=self.masked),)

    def emit(self, em: Emission, nodes: Sequence[int]) -> tuple[int, ...]:
        """The result, given the ciphertexts of all operands, which have one gain."""
        t = self.plan.terms
        if not self.works:
            return tuple(nodes[k] for k in t.into[np.argsort(t.out)].tolist())
        b = em.b
        b.begin(em.source)
        if self.masked:
            return tuple(b.end(em.mapped(self.plan, nodes, self._plains(em))))
        made = [0] * self.plan.outs
        for o, i, s in zip(t.out.tolist(), t.into.tolist(), t.shift.tolist(), strict=True):
            turned = b.rotate(nodes[i], s)
            made[o] = b.add([(1, turned)]) if turned == nodes[i] else turned
        return tuple(b.end(made))

    def _plains(self, em: Emission) -> list[Plain]:
        b, t = em.b, self.plan.terms
        nothing = np.zeros_like(self.out_key), np.zeros_like(self.in_key)
        rows = MapRows(
            *(self.out_key, nothing[0], self.in_key, nothing[1]),
            *(t.out.astype(np.int32), t.into.astype(np.int32), t.shift, self.plan.giant),
        )
        family = PlaintextFamily(-1, rows, 0, b.batch, b.width, b.columns, literal=np.ones(1))
        number = b.pack(family)
        return [(number, k) for k in range(len(rows))]


def gathering(
    sources: Sequence[Layout], target: Layout, taken: np.ndarray, *, dirty: bool = False
) -> Gathering | None:
    """How a result comes together from its operands.

    Args:
      sources: layouts of the operands.
      taken: int, of the result's shape: number of the element that each of the result's is, the
        operands' flat elements counted one operand after the other; -1 for zero.
      dirty: whether the result may hold anything where it has no element, rather than zeros.

    Returns:
      None if a result would have no terms, or it is too large.
    """
    positions = sum(s.ciphertexts * s.columns for s in sources)
    if positions + target.ciphertexts * target.columns > _LARGEST:
        return None
    target = target._replace(zeros=not dirty).canonical()
    repeated = copies(sources[0])
    repeats = period(sources[0])
    if any(copies(s) != repeated or period(s) != repeats for s in sources[1:]):
        repeated, repeats = [], target.columns
    in_key, taken = _numbered(sources, taken)
    for axis in set(range(taken.ndim)) - set(target.axes):
        if np.any(taken != taken.take([0], axis=axis)):
            return None
    out_key = spread(target, taken).astype(np.int64)
    at = np.arange(target.columns)
    for below, size in repeated:
        here = at // below % size
        in_key = np.where(in_key < 0, -1, in_key * size + here)
        out_key = np.where(out_key < 0, -1, out_key * size + here)
    empty = in_key < 0
    in_key = _once(in_key, repeats)
    terms = terms_between(in_key, out_key, repeats)
    if not len(terms) or max(in_key.max(), out_key.max()) >= 2**31:
        return None
    plan = planned(terms, target.ciphertexts, target.columns, repeats)
    zero = np.concatenate([np.full((s.ciphertexts, 1), s.zeros) for s in sources])
    masked = not plan.moves or not clean(plan, target, empty & zero, out_key < 0)
    return Gathering(plan, target, in_key.astype(np.int32), out_key.astype(np.int32), masked)


def _numbered(sources: Sequence[Layout], taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(element at each position, -1 for none; `taken` by those numbers).

    All elements along an axis without coordinates are one.
    """
    keys = []
    number = []
    first = 0
    for s in sources:
        index, live = grid(s)
        key = np.zeros(live.shape, np.int64)
        own = np.zeros(s.shape, np.int64)
        stride = 1
        for axis in sorted(index):
            extent = s.shape[axis]
            along = np.arange(extent).reshape([-1 if k == axis else 1 for k in range(len(s.shape))])
            key, own = key + stride * index[axis], own + stride * along
            stride *= extent
        keys.append(np.where(live, first + key, -1))
        number.append(first + own.reshape(-1))
        first += stride
    all_numbers = np.concatenate(number)
    found = np.where(taken < 0, -1, all_numbers[np.maximum(taken, 0)])
    return np.concatenate(keys), found


def _once(in_key: np.ndarray, repeats: int) -> np.ndarray:
    """Keys at the first position of each alone, so that no element is taken twice."""
    nearby = in_key[:, :repeats]
    place = np.flatnonzero(nearby >= 0)
    _, first = np.unique(nearby.reshape(-1)[place], return_index=True)
    kept = np.zeros(nearby.size, bool)
    kept[place[first]] = True
    times = in_key.shape[1] // repeats
    return np.where(np.tile(kept.reshape(nearby.shape), (1, times)), in_key, -1)


def terms_between(in_key: np.ndarray, out_key: np.ndarray, repeats: int) -> Terms:
    """From each element's position to those that take it."""
    cipher, column = np.nonzero(in_key[:, :repeats] >= 0)
    key = in_key[cipher, column]
    order = np.argsort(key)
    out, at = np.nonzero(out_key >= 0)
    place = order[np.searchsorted(key[order], out_key[out, at])]
    into, shift = cipher[place], (column[place] - at) % repeats
    found = np.unique((out * len(in_key) + into) * repeats + shift)
    both, shift = np.divmod(found, repeats)
    out, into = np.divmod(both, len(in_key))
    return Terms(out, into, shift)


def clean(plan: MapPlan, target: Layout, zero: np.ndarray, nothing: np.ndarray) -> bool:
    """Whether operands, turned, already have the zeros that the result is to have.

    Args:
      zero: bool (operands' ciphertexts, columns): where they are exactly zero.
      nothing: bool (results, columns): where no element is taken.
    """
    wanted = nothing & (grid(target)[1] | target.zeros)
    t = plan.terms
    return not any(
        np.any(wanted[o] & ~np.roll(zero[i], -shift))
        for o, i, shift in zip(t.out.tolist(), t.into.tolist(), t.shift.tolist(), strict=True)
    )


def packings(shape: Sequence[int], columns: int) -> Iterator[Layout]:
    """Layouts of a tensor, a few: all axes on columns in two orders, one of them on ciphertexts, or
    one of them alone on columns.
    """
    axes = [a for a in range(len(shape)) if shape[a] > 1]
    seen = set()
    orders = [axes[::-1], axes]
    orders += [[b for b in reversed(axes) if b != a] for a in axes]
    orders += [[a] for a in axes]
    for order in orders:
        slots: list[Coordinate] = []
        ciphers = [Coordinate(a, shape[a], 1) for a in axes if a not in order]
        room = columns
        for a in order:
            padded = 1 << (shape[a] - 1).bit_length()
            taken = min(padded, room)
            if taken > 1:
                slots.append(Coordinate(a, taken, 1))
            if taken < padded:
                ciphers.append(Coordinate(a, -(-shape[a] // taken), taken))
            room //= taken
        if room > 1:
            slots.append(Coordinate(REPLICATED, room))
        found = Layout(tuple(shape), tuple(slots), tuple(ciphers)).canonical()
        crowded = found.ciphertexts * columns > max(_LARGEST // 8, 64 * math.prod(shape))
        if found not in seen and not crowded:
            seen.add(found)
            yield found
