"""Public maps under windows: convolutions, as maps from one layout to another.

out[n, o, p...] = sum over i, t... of kernel[o, i, t...] * in[n, i, stride * p + apart * t - low...]

Along each axis the index of the operand and that of the result are joined by the taps, whichever
digits of them lie where. So the distances between places follow axis by axis, and the work does not
grow with elements; what a plaintext holds in a column is looked up by the two indices there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout, refined
from hesim.circuit.packing.maps import MapPlan, Terms, period, planned

__all__ = ["Convolution", "Part", "Window", "window_plan"]

_MOST_TERMS = 2**16
"""Terms of a map beyond which it is not looked at."""

_MOST_WEIGHTS = 2**24
"""Entries of the table from places to the kernel beyond which a convolution is not looked at."""


@dataclass(frozen=True)
class Window:
    """One axis along which a kernel slides.

    Attributes:
      source, target: the axis of the operand and of the result, of one member of the batch.
      size, count: their extents. taps: of the kernel.
      stride, apart, spread: of the window, between its taps, and between elements of the operand.
      low: zeros in front of the operand; negative if some of it is cut off.
    """

    source: int
    target: int
    size: int
    count: int
    taps: int
    stride: int
    apart: int
    spread: int
    low: int

    def tap(self, distance: np.ndarray) -> np.ndarray:
        """The tap at spread * (operand's index) - stride * (result's index); -1 if there is none.

        Args:
          distance: int.
        """
        t, rest = np.divmod(distance + self.low, self.apart)
        return np.where((rest == 0) & (t >= 0) & (t < self.taps), t, -1)

    @property
    def least(self) -> int:
        """The least distance."""
        return -self.stride * (self.count - 1)

    @property
    def distances(self) -> np.ndarray:
        return np.arange(self.least, self.spread * (self.size - 1) + 1)


@dataclass(frozen=True)
class Part:
    """A digit of a summed axis of which a map leaves the sums apart, to be added up afterwards.

    Attributes:
      axis: of the operand. stride, size: of the digit.
    """

    axis: int
    stride: int
    size: int

    def of(self, index: np.ndarray) -> np.ndarray:
        return index // self.stride % self.size


@dataclass(frozen=True)
class Convolution:
    """What a convolution by a public kernel joins.

    Attributes:
      channels: (axis of the operand, axis of the result), of one member of the batch.
      ins, outs: channels of the operand and of the result. groups: of channels.
      windows: the other axes. members: (axis, axis) of a batch that is an axis like others.
      kernel: strides of the flat kernel: of a result's channel, of an operand's, of each tap.
    """

    channels: tuple[int, int]
    ins: int
    outs: int
    groups: int
    windows: tuple[Window, ...]
    members: tuple[int, int] | None
    count: int
    kernel: tuple[int, ...]

    def joined(self, parts: Sequence[Part], rank: int) -> Iterator[_Joined]:
        """Indices along axes of the operand and of the result that go together.

        Args:
          parts: axes of the result from `rank` on.
        """

        def with_parts(source: int, index: np.ndarray, out: dict[int, np.ndarray]) -> _Joined:
            own = {rank + k: p.of(index) for k, p in enumerate(parts) if p.axis == source}
            return _Joined({source: index}, {**out, **own})

        if self.members is not None:
            every = np.arange(self.count)
            yield _Joined({self.members[0]: every}, {self.members[1]: every})
        i, o = np.divmod(np.arange(self.ins * self.outs), self.outs)
        same = i // (self.ins // self.groups) == o // (self.outs // self.groups)
        yield with_parts(self.channels[0], i[same], {self.channels[1]: o[same]})
        for w in self.windows:
            a, p = np.divmod(np.arange(w.size * w.count), w.count)
            held = w.tap(w.spread * a - w.stride * p) >= 0
            yield with_parts(w.source, a[held], {w.target: p[held]})

    def weights(self, parts: Sequence[Part]) -> Weights | None:
        """How places are looked up; None if the table would be too large."""
        sizes = [self.ins, self.outs, *(len(w.distances) for w in self.windows)]
        sizes += [p.size for p in parts]
        if math.prod(sizes) > _MOST_WEIGHTS:
            return None
        steps = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
        rank = len(sizes)

        def along(k: int, values: np.ndarray) -> np.ndarray:
            return values.reshape([-1 if j == k else 1 for j in range(rank)])

        i, o = along(0, np.arange(self.ins)), along(1, np.arange(self.outs))
        group = self.ins // self.groups
        place = o * self.kernel[0] + i % group * self.kernel[1]
        held = i // group == o // (self.outs // self.groups)
        into, out = {self.channels[0]: steps[0]}, {self.channels[1]: steps[1]}
        digit = {self.channels[0]: i}
        offset = 0
        for k, w in enumerate(self.windows):
            distance = along(2 + k, w.distances)
            tap = w.tap(distance)
            place, held = place + tap * self.kernel[2 + k], held & (tap >= 0)
            into[w.source] = steps[2 + k] * w.spread
            out[w.target] = -steps[2 + k] * w.stride
            offset -= steps[2 + k] * w.least
            digit[w.source] = distance % w.stride
        first = 2 + len(self.windows)
        for k, p in enumerate(parts):
            held = held & (p.of(digit[p.axis]) == along(first + k, np.arange(p.size)))
        table = np.where(held, place, -1).astype(np.int32)
        return Weights(np.broadcast_to(table, sizes).reshape(-1), into, out, steps[first:], offset)


@dataclass(frozen=True, eq=False)
class Weights:
    """The kernel by places.

    Attributes:
      table: flat place in the kernel by number, -1 for none.
      into, out: what an index along each axis of operand and result adds to the number.
      parts: the same of each part. offset: what is added to all.
    """

    table: np.ndarray
    into: Mapping[int, int]
    out: Mapping[int, int]
    parts: Sequence[int]
    offset: int


@dataclass(frozen=True, eq=False)
class _Joined:
    """Indices by axis, arrays of one length: of the operand, of the result."""

    into: Mapping[int, np.ndarray]
    out: Mapping[int, np.ndarray]


@functools.lru_cache(maxsize=4096)
def window_plan(
    conv: Convolution, source: Layout, target: Layout, parts: tuple[Part, ...]
) -> MapPlan | None:
    """The cheapest plan of a convolution between two layouts.

    Args:
      target: whose last axes are `parts`.

    Returns:
      None if layouts are rolled, have no common refinement, leave an axis of the operand out, or
      the map is too large.
    """
    if source.rolls or target.rolls:
        return None
    try:
        x, y = refined([source, target])
    except ValueError:
        return None
    repeats = period(x)
    ways = list(conv.joined(parts, len(target.shape) - len(parts)))
    for way in ways:
        if any(source.shape[a] > 1 and not source.pieces(a) for a in way.into):
            if conv.members is None or conv.members[0] not in way.into:
                return None
    own = [c.axis != REPLICATED for c in x.slots]
    sums = [_offsets(x, y, own, way, repeats) for way in ways]
    sums += list(_copied(x, y, repeats))
    terms = _summed(sums, source.ciphertexts, repeats)
    if terms is None or not len(terms):
        return None
    return planned(terms, target.ciphertexts, target.columns, repeats)


Triples = np.ndarray
"""int64 (3, terms): ciphertext of the result, of the operand, and the shift between columns."""


def _offsets(x: Layout, y: Layout, own: Sequence[bool], way: _Joined, repeats: int) -> Triples:
    """What the axes of one way add: columns of the result count where the operand has its own."""
    count = len(next(iter(way.into.values())))
    everywhere = [True] * len(own)
    out = _place(y.ciphers, [True] * len(y.ciphers), way.out, count)
    into = _place(x.ciphers, [True] * len(x.ciphers), way.into, count)
    shift = _place(x.slots, everywhere, way.into, count) - _place(y.slots, own, way.out, count)
    return np.unique(np.stack([out, into, shift % repeats]), axis=1)


def _place(
    coordinates: Sequence[Coordinate],
    counted: Sequence[bool],
    index: Mapping[int, np.ndarray],
    count: int,
) -> np.ndarray:
    found = np.zeros(count, np.int64)
    at = 1
    for c, there in zip(coordinates, counted, strict=True):
        if there and c.axis in index:
            found += at * (index[c.axis] // c.stride % c.size)
        at *= c.size
    return found


def _copied(x: Layout, y: Layout, repeats: int) -> Iterator[Triples]:
    """Positions to which results are copied, where the operand is not."""
    at = 1
    for c, d in zip(x.slots, y.slots, strict=True):
        if d.axis == REPLICATED and c.axis != REPLICATED:
            nothing = np.zeros(d.size, np.int64)
            yield np.stack([nothing, nothing, -at * np.arange(d.size) % repeats])
        at *= d.size


def _summed(parts: Sequence[Triples], operands: int, repeats: int) -> Terms | None:
    """All sums of one triple of each part, each once."""
    out, into, shift = np.zeros((3, 1), np.int64)
    for part in sorted(parts, key=lambda p: p.shape[1]):
        if len(out) * part.shape[1] > 8 * _MOST_TERMS:
            return None
        out, into = ((a[:, None] + b[None, :]).reshape(-1) for a, b in zip((out, into), part[:2]))
        shift = (shift[:, None] + part[2][None, :]).reshape(-1) % repeats
        found = np.unique((out * operands + into) * repeats + shift)
        both, shift = np.divmod(found, repeats)
        out, into = np.divmod(both, operands)
    return Terms(out, into, shift) if len(out) <= _MOST_TERMS else None
