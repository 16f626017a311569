"""Offers of operations that move elements: coordinates get other names, and nothing happens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hesim.circuit.packing.arrangement import straight
from hesim.circuit.packing.emission import Emission, Packed
from hesim.circuit.packing.layout import GAP, Coordinate, Layout, Roll
from hesim.circuit.packing.offers.offer import Offer, Setting
from hesim.circuit.packing.operations import Operation

__all__ = ["broadcast_in_dim", "flat_strides", "reshape", "reshaped", "sliced", "transpose"]


def _renaming(
    s: Setting, op: Operation, layout: Layout, names: Mapping[int, int]
) -> Iterator[Offer]:
    shape = s.shape(op.outputs[0])
    gapped = layout
    gone = [a for a in layout.axes if a not in names]
    if gone:
        return  # an axis of one position has no coordinate but gaps
    out = gapped.renamed(shape, dict(names)).canonical()

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        return [replace(xs[0], layout=out)]

    yield Offer((out,), (), emit)


def transpose(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,) = op.equations
    a, b = eqn.inputs[0], eqn.outputs[0]
    names = {}
    for to, source in enumerate(eqn.params["permutation"]):
        x, y = s.inner(a, source), s.inner(b, to)
        if x is not None and y is not None:
            names[x] = y
    yield from _renaming(s, op, layouts[0], names)


def broadcast_in_dim(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,) = op.equations
    a, b = eqn.inputs[0], eqn.outputs[0]
    names = {}
    for source, to in enumerate(eqn.params["broadcast_dimensions"]):
        x, y = s.inner(a, source), s.inner(b, to)
        if (x is None) != (y is None):
            return
        if x is not None and y is not None and a.shape[source] == b.shape[to]:
            names[x] = y
    yield from _renaming(s, op, layouts[0], names)


def reshape(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,) = op.equations
    if s.axis(eqn.inputs[0]) is not None:
        batch = s.axis(eqn.inputs[0]), s.axis(eqn.outputs[0])
        if batch[1] is None:
            return
    shape = s.shape(eqn.outputs[0])
    for source in (layouts[0], straight(layouts[0])):
        out = None if source is None else reshaped(source, shape)
        if out is None:
            continue

        def emit(
            em: Emission, op: Operation, xs: tuple[Packed, ...], out: Layout = out
        ) -> list[Packed]:
            return [replace(xs[0], layout=out)]

        moved = () if source == layouts[0] else (source,)
        yield Offer((out,), (), emit, moved)


def reshaped(layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The same positions as a tensor of another shape; None if digits do not fall together."""
    before, after = flat_strides(layout.shape), flat_strides(shape)
    rename: dict[tuple[int, int], list[Coordinate]] = {}
    whole: dict[int, int] = {}
    for axis in range(len(layout.shape)):
        extent = layout.extent(axis)
        if layout.shape[axis] == 1:
            continue
        same = [
            b
            for b in range(len(shape))
            if shape[b] == layout.shape[axis] and after[b] == before[axis]
        ]
        if same:
            whole[axis] = same[0]
            for c in layout.pieces(axis):
                rename[c.axis, c.stride] = [c._replace(axis=same[0])]
            continue
        if not layout.pieces(axis):
            # Constant along it: fine as long as it stays an axis, or axes, of its own.
            if not _covered(before[axis], layout.shape[axis], shape, after):
                return None
            continue
        if layout.rolled(axis):
            return None
        turning = {r.by_stride for r in layout.rolls if r.by_axis == axis}
        for c in layout.pieces(axis):
            parts = _parted(c.stride * before[axis], c.size, shape, after)
            if parts is None or (c.stride in turning and len(parts) != 1):
                return None
            rename[c.axis, c.stride] = parts
        if extent != layout.shape[axis] and not _topmost(layout, axis, before, shape, after):
            return None

    def renamed(cs: Sequence[Coordinate]) -> tuple[Coordinate, ...]:
        return tuple(d for c in cs for d in (rename[c.axis, c.stride] if c.axis >= 0 else [c]))

    def turned(r: Roll) -> Roll:
        if r.by_axis < 0:
            return r._replace(axis=whole[r.axis])
        (by,) = rename[r.by_axis, r.by_stride]
        return Roll(whole[r.axis], by.axis, by.stride, r.factor)

    rolls = tuple(sorted(turned(r) for r in layout.rolls))
    out = Layout(shape, renamed(layout.slots), renamed(layout.ciphers), rolls, layout.zeros)
    for axis in range(len(shape)):
        pieces = out.pieces(axis)
        if not pieces:
            continue
        stride = 1
        for c in pieces:
            if c.stride != stride:
                return None  # constant along a part of an axis
            stride *= c.size
        if stride < shape[axis]:
            return None
    return out.canonical()


def flat_strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[k + 1 :]) for k in range(len(shape))]


def _covered(stride: int, size: int, shape: Sequence[int], after: Sequence[int]) -> bool:
    """Whether an axis is a product of whole axes of the new shape."""
    inside = [
        k for k in range(len(shape)) if after[k] >= stride and after[k] * shape[k] <= stride * size
    ]
    return math.prod(shape[k] for k in inside) == size


def _parted(
    stride: int, size: int, shape: Sequence[int], after: Sequence[int]
) -> list[Coordinate] | None:
    """A piece of flat stride and size as pieces of the axes of the new shape, lowest first."""
    out = []
    while size > 1:
        for k in range(len(shape)):
            top = after[k] * shape[k]
            if shape[k] > 1 and after[k] <= stride < top:
                if stride % after[k]:
                    return None
                room = top // stride
                outermost = all(shape[j] == 1 for j in range(k))
                taken = size if size <= room or outermost else room
                if size % taken or top % stride:
                    return None
                out.append(Coordinate(k, taken, stride // after[k]))
                stride, size = stride * taken, size // taken
                break
        else:
            return None
    return out


def _topmost(
    layout: Layout,
    axis: int,
    before: Sequence[int],
    shape: Sequence[int],
    after: Sequence[int],
) -> bool:
    """Whether a padded axis is the highest part of an axis of the new shape."""
    return any(
        after[k] * shape[k] == before[axis] * layout.shape[axis] and after[k] <= before[axis]
        for k in range(len(shape))
    )


def sliced(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,) = op.equations
    layout, x = layouts[0], eqn.inputs[0]
    shape = s.shape(eqn.outputs[0])
    strides = eqn.params["strides"] or (1,) * len(x.shape)
    picks: dict[int, np.ndarray] = {}
    for axis, (low, high, step) in enumerate(
        zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, strict=True)
    ):
        inner = s.inner(x, axis)
        if (low, high, step) == (0, x.shape[axis], 1):
            continue
        if inner is None:
            return
        if layout.pieces(inner):
            picks[inner] = np.arange(low, high, step)
    out = layout._replace(shape=shape)
    chosen = np.arange(layout.ciphertexts)
    for axis, wanted in picks.items():
        if layout.rolled(axis) or any(r.by_axis == axis for r in layout.rolls):
            return
        on_slots = [c for c in out.slots if c.axis == axis]
        if not on_slots:
            taken = _taken(out, axis, wanted)
            if taken is None:
                return
            out, which = taken
            chosen = chosen[which]
        elif wanted[0] == 0:
            strided = _strided(out, axis, int(wanted[1])) if len(wanted) > 1 else None
            if strided is None and len(wanted) > 1:
                return
            out, which = strided or (out, np.arange(out.ciphertexts))
            chosen = chosen[which]
            out, which = _trimmed(out._replace(zeros=False), axis, len(wanted))
            chosen = chosen[which]
        else:
            return
    result = out.canonical()

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        return [Packed(result, tuple(xs[0].nodes[k] for k in chosen), xs[0].gain)]

    yield Offer((result,), (), emit)


def _taken(layout: Layout, axis: int, wanted: np.ndarray) -> tuple[Layout, np.ndarray] | None:
    """The ciphertexts of some positions of an axis that lies on one ciphertext coordinate."""
    pieces = layout.pieces(axis)
    if len(pieces) != 1 or pieces[0].stride != 1:
        return None
    return _at(layout, layout.ciphers.index(pieces[0]), wanted)


def _strided(layout: Layout, axis: int, step: int) -> tuple[Layout, np.ndarray] | None:
    """(layout, ciphertexts) of every step-th position of an axis, from the first on; None if digits
    do not tell them apart.
    """
    slots: list[Coordinate] = []
    for c in layout.slots:
        split = _stepped(c, step) if c.axis == axis else (1, c)
        if split is None:
            return None
        slots += [Coordinate(GAP, split[0]), *([split[1]] if split[1] is not None else [])]
    chosen = np.arange(layout.ciphertexts)
    ciphers = list(layout.ciphers)
    for k, c in enumerate(layout.ciphers):
        split = _stepped(c, step) if c.axis == axis else (1, c)
        if split is None:
            return None
        if split[0] > 1:
            layout, which = _at(layout, k, np.arange(0, c.size, split[0]))
            chosen = chosen[which]
        ciphers[k] = split[1] or Coordinate(axis, 1, 1)
    kept = tuple(c for c in slots if c.size > 1)
    return layout._replace(slots=kept, ciphers=tuple(ciphers)), chosen


def _stepped(c: Coordinate, step: int) -> tuple[int, Coordinate | None] | None:
    """(positions of a coordinate of which the first alone is taken, what is left of it)."""
    if c.stride % step == 0:
        return 1, c._replace(stride=c.stride // step)
    if step % (c.stride * c.size) == 0:
        return c.size, None
    below = step // c.stride
    if step % c.stride or c.size % below:
        return None
    return below, Coordinate(c.axis, c.size // below, 1)


def _trimmed(layout: Layout, axis: int, count: int) -> tuple[Layout, np.ndarray]:
    """The ciphertexts in which any of the first positions of an axis lie."""
    chosen = np.arange(layout.ciphertexts)
    for k, c in enumerate(layout.ciphers):
        if c.axis == axis:
            layout, which = _at(layout, k, np.arange(min(c.size, -(-count // c.stride))))
            chosen = chosen[which]
    return layout, chosen


def _at(layout: Layout, k: int, wanted: np.ndarray) -> tuple[Layout, np.ndarray]:
    """(layout, ciphertexts) of some positions of a coordinate of ciphertexts, from the first on."""
    below = math.prod(c.size for c in layout.ciphers[:k])
    above = math.prod(c.size for c in layout.ciphers[k + 1 :])
    ciphers = list(layout.ciphers)
    size = ciphers[k].size
    numbers = np.arange(layout.ciphertexts).reshape(above, size, below)[:, wanted, :].reshape(-1)
    ciphers[k] = ciphers[k]._replace(size=len(wanted))
    return layout._replace(ciphers=tuple(ciphers)), numbers
