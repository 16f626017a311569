"""Layouts as data: which element of a tensor a slot holds, as an ordered list of coordinates.

A position is a ciphertext number and a column, each a mixed-radix number over coordinates, lowest
first. A coordinate carries a piece of one axis' index (size, stride), or is replicated, or is a gap
of which only position 0 holds anything. An axis may further be rolled: its index is the sum of its
pieces plus whole multiples of the positions of other coordinates, modulo its extent, which is how a
sheared (diagonal) matrix lies. An axis without any piece is one along which the tensor is constant.

`[h6 | f64 h2 t128]` in the notation of `str`: six ciphertexts, and columns with the tokens lowest.
The batch that a Circuit keeps along the width of each column is no part of a layout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hesim.errors import LayoutError

__all__ = [
    "GAP",
    "REPLICATED",
    "Coordinate",
    "Layout",
    "Roll",
    "grid",
    "indices",
    "places",
    "refined",
    "split",
]

REPLICATED = -1
"""Axis of a coordinate of which every position holds the same, unless a roll counts it: then its
stride is a mark, other than 0, by which the roll names it."""

GAP = -2
"""Axis of a coordinate of which position 0 alone holds elements."""


class Coordinate(NamedTuple):
    """One coordinate: its position times `stride` is a part of the index along `axis`."""

    axis: int
    size: int
    stride: int = 0


class Roll(NamedTuple):
    """index(axis) += factor * position of the coordinate that holds (by_axis, by_stride)."""

    axis: int
    by_axis: int
    by_stride: int
    factor: int


class Layout(NamedTuple):
    """Where the elements of a tensor of `shape` lie.

    Attributes:
      shape: of the tensor, without a batch axis that lies along the width of a column.
      slots, ciphers: coordinates of columns and of ciphertexts, lowest first.
      rolls: sorted; a rolled axis has exactly as many positions as elements.
      zeros: whether what is no element (gaps, positions beyond an axis' extent) is exactly zero.
    """

    shape: tuple[int, ...]
    slots: tuple[Coordinate, ...]
    ciphers: tuple[Coordinate, ...] = ()
    rolls: tuple[Roll, ...] = ()
    zeros: bool = True

    @property
    def columns(self) -> int:
        return math.prod(c.size for c in self.slots)

    @property
    def ciphertexts(self) -> int:
        """How many it takes."""
        return math.prod(c.size for c in self.ciphers)

    def pieces(self, axis: int) -> list[Coordinate]:
        """Coordinates of an axis, lowest stride first."""
        found = [c for c in (*self.slots, *self.ciphers) if c.axis == axis]
        return sorted(found, key=lambda c: c.stride)

    def rolled(self, axis: int) -> tuple[Roll, ...]:
        return tuple(r for r in self.rolls if r.axis == axis)

    def extent(self, axis: int) -> int:
        """Positions along an axis, padding included; 1 if it has no coordinate."""
        return math.prod(c.size for c in self.pieces(axis))

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes with coordinates, ascending."""
        return tuple(sorted({c.axis for c in (*self.slots, *self.ciphers) if c.axis >= 0}))

    @property
    def along_slots(self) -> set[int]:
        """Axes whose index depends on the column: by a piece there, or rolled by one."""
        held = {(c.axis, c.stride) for c in self.slots}
        rolled = {r.axis for r in self.rolls if (r.by_axis, r.by_stride) in held}
        return rolled | {c.axis for c in self.slots}

    @property
    def padded(self) -> bool:
        """Whether some positions hold no element."""
        gap = any(c.axis == GAP for c in (*self.slots, *self.ciphers))
        return gap or any(self.extent(a) != self.shape[a] for a in self.axes)

    def canonical(self) -> Layout:
        """Neighbours that continue each other merged, sizes of 1 dropped, marks in order."""
        marked = {r.by_stride for r in self.rolls if r.by_axis == REPLICATED}
        slots = [self._gapped(c) for c in self.slots]
        slots = [_PLAIN._replace(size=c.size) if _idle(c, marked) else c for c in slots]
        slots, rolls = _merged(slots, self.rolls)
        ciphers, rolls = _merged((self._gapped(c) for c in self.ciphers), rolls)
        if marked:
            slots, rolls = _remarked(slots, rolls)
        out = Layout(self.shape, slots, ciphers, tuple(sorted(rolls)), self.zeros)
        return out if out.zeros or out.padded else out._replace(zeros=True)

    def _gapped(self, c: Coordinate) -> Coordinate:
        return Coordinate(GAP, c.size) if c.axis >= 0 and self.shape[c.axis] == 1 else c

    def renamed(self, shape: Sequence[int], axes: dict[int, int]) -> Layout:
        """The same positions for a tensor whose axis axes[a] is this one's axis a."""

        def name(c: Coordinate) -> Coordinate:
            return c._replace(axis=axes[c.axis]) if c.axis >= 0 else c

        rolls = (
            Roll(axes[r.axis], axes.get(r.by_axis, r.by_axis), r.by_stride, r.factor)
            for r in self.rolls
        )
        return Layout(
            tuple(shape),
            tuple(name(c) for c in self.slots),
            tuple(name(c) for c in self.ciphers),
            tuple(sorted(rolls)),
            self.zeros,
        )

    def __str__(self) -> str:
        def coordinate(c: Coordinate) -> str:
            if c.axis == REPLICATED:
                return f"*{c.size}" + "'" * c.stride
            if c.axis == GAP:
                return f"{'0' if self.zeros else '?'}{c.size}"
            low = f"/{c.stride}" if c.stride > 1 else ""
            by = "".join(
                f"{r.factor:+d}{_LETTERS[r.by_axis] if r.by_axis >= 0 else '*'}"
                for r in self.rolled(c.axis)
            ).replace("1", "")
            return f"{_LETTERS[c.axis]}{c.size}{low}" + (f"<{by}>" if by else "")

        parts = [" ".join(coordinate(c) for c in reversed(g)) for g in (self.ciphers, self.slots)]
        return f"[{parts[0]} | {parts[1]}]"


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


_PLAIN = Coordinate(REPLICATED, 1)

_PIECES = 2**20
"""Beyond all marks: what marks of pieces of one coordinate differ by."""


def _idle(c: Coordinate, marked: set[int]) -> bool:
    return c.axis == REPLICATED and c.stride not in marked


def _remarked(
    slots: tuple[Coordinate, ...], rolls: tuple[Roll, ...]
) -> tuple[tuple[Coordinate, ...], tuple[Roll, ...]]:
    """Replicated coordinates that rolls count, marked 1, 2, ... from the lowest."""
    marks = [c.stride for c in slots if c.axis == REPLICATED and c.stride]
    names = {mark: k for k, mark in enumerate(marks, 1)}
    return (
        tuple(
            c._replace(stride=names[c.stride]) if c.axis == REPLICATED and c.stride else c
            for c in slots
        ),
        tuple(
            r._replace(by_stride=names[r.by_stride]) if r.by_axis == REPLICATED else r
            for r in rolls
        ),
    )


def _merged(
    coordinates: Iterable[Coordinate], rolls: tuple[Roll, ...]
) -> tuple[tuple[Coordinate, ...], tuple[Roll, ...]]:
    out: list[Coordinate] = []
    for c in coordinates:
        if c.size == 1:
            rolls = tuple(r for r in rolls if (r.by_axis, r.by_stride) != (c.axis, c.stride))
            continue
        low = out[-1] if out else None
        if low is not None and low.axis == c.axis:
            if c.axis < 0 and low.stride == c.stride == 0:
                out[-1] = Coordinate(c.axis, low.size * c.size)
                continue
            both = _continued(low, c, rolls)
            if both is not None:
                rolls = both
                out[-1] = Coordinate(c.axis, low.size * c.size, low.stride)
                continue
        out.append(c)
    return tuple(out), rolls


def _continued(
    low: Coordinate, high: Coordinate, rolls: tuple[Roll, ...]
) -> tuple[Roll, ...] | None:
    """The rolls if two pieces are one, None if they are not."""
    if low.axis < 0 or high.stride != low.stride * low.size:
        return None
    by_low = {r.axis: r.factor for r in rolls if (r.by_axis, r.by_stride) == (low.axis, low.stride)}
    by_high = {
        r.axis: r.factor for r in rolls if (r.by_axis, r.by_stride) == (high.axis, high.stride)
    }
    if {a: f * low.size for a, f in by_low.items()} != by_high:
        return None
    return tuple(r for r in rolls if (r.by_axis, r.by_stride) != (high.axis, high.stride))


def refined(layouts: Sequence[Layout]) -> list[Layout]:
    """The layouts with slot coordinates split so that all have the same sizes.

    Raises:
      LayoutError: their sizes have no common refinement.
    """
    cuts = sorted({cut for layout in layouts for cut in _cuts(layout.slots)})
    for low, high in zip(cuts, cuts[1:], strict=False):
        if high % low:
            raise LayoutError("slot coordinates without a common refinement")
    return [_split(layout, cuts) for layout in layouts]


def split(layout: Layout, cut: int) -> Layout:
    """The layout with the slot coordinate that spans column `cut` split there."""
    return _split(layout, sorted({*_cuts(layout.slots), cut}))


def _cuts(slots: Iterable[Coordinate]) -> list[int]:
    out = [1]
    for c in slots:
        out.append(out[-1] * c.size)
    return out


def _split(layout: Layout, cuts: list[int]) -> Layout:
    slots: list[Coordinate] = []
    rolls = layout.rolls
    at = 1
    for c in layout.slots:
        inner = [x for x in cuts if at <= x <= at * c.size]
        for low, high in zip(inner, inner[1:], strict=False):
            below = low // at
            stride = c.stride * below
            if c.axis < 0 and c.stride and below > 1:
                stride = c.stride + _PIECES * below
            slots.append(Coordinate(c.axis, high // low, stride))
            if below > 1 and (c.axis >= 0 or c.stride):
                extra = [
                    Roll(r.axis, c.axis, stride, r.factor * below)
                    for r in layout.rolls
                    if (r.by_axis, r.by_stride) == (c.axis, c.stride)
                ]
                rolls = (*rolls, *extra)
        at *= c.size
    return Layout(layout.shape, tuple(slots), layout.ciphers, tuple(sorted(rolls)), layout.zeros)


@functools.lru_cache(maxsize=32)
def grid(layout: Layout) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """What every position holds.

    Returns:
      (index along each axis that has coordinates, whether it is an element), each an array
      (ciphertexts, columns), int32 and bool, not to be written to.
    """
    shape = layout.ciphertexts, layout.columns
    index, live = indices(layout, np.arange(shape[0]), np.arange(shape[1]))
    whole = {a: np.broadcast_to(v.astype(np.int32), shape) for a, v in index.items()}
    return whole, np.broadcast_to(live, shape)


def indices(
    layout: Layout, ciphers: np.ndarray, columns: np.ndarray
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """What some positions hold, as `grid` says it: arrays that broadcast to (ciphers, columns), of
    length 1 along what they do not depend on.
    """
    index: dict[int, np.ndarray] = {}
    live = np.ones((1, 1), bool)
    where: dict[tuple[int, int], np.ndarray] = {}
    for c, p in zip((*layout.slots, *layout.ciphers), _positions(layout, ciphers, columns)):
        where[c.axis, c.stride] = p
        if c.axis == GAP:
            live = live & (p == 0)
        elif c.axis >= 0:
            index[c.axis] = index.get(c.axis, 0) + p * c.stride
    for axis in index:
        rolls = layout.rolled(axis)
        for r in rolls:
            index[axis] = index[axis] + r.factor * where[r.by_axis, r.by_stride]
        if rolls:
            index[axis] = index[axis] % layout.shape[axis]
        if layout.extent(axis) != layout.shape[axis]:
            live = live & (index[axis] < layout.shape[axis])
    return index, live


def _positions(layout: Layout, ciphers: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
    """Position along each coordinate, slots first, of these ciphertexts and columns."""
    out = []
    for group, numbers in ((layout.slots, columns[None, :]), (layout.ciphers, ciphers[:, None])):
        at = 1
        for c in group:
            out.append(numbers // at % c.size)
            at *= c.size
    return out


def places(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """(ciphertext, column) of every element: int32 arrays of the tensor's shape.

    Where an element has several places, the first one.
    """
    index, live = grid(layout)
    present = [a for a in range(len(layout.shape)) if a in index]
    extents = [layout.shape[a] for a in present]
    flat = np.zeros(live.shape, np.int64)
    for a, extent in zip(present, extents, strict=True):
        flat = flat * extent + index[a]
    flat = np.where(live, flat, -1).reshape(-1)
    found = np.full(math.prod(extents), -1, np.int64)
    order = np.arange(flat.size)[::-1]
    order = order[flat[::-1] >= 0]
    found[flat[order]] = order  # the last one written is the first place
    view = [layout.shape[a] if a in index else 1 for a in range(len(layout.shape))]
    cipher, column = np.divmod(found.reshape(view), layout.columns)
    return (
        np.broadcast_to(cipher, layout.shape).astype(np.int32),
        np.broadcast_to(column, layout.shape).astype(np.int32),
    )
