"""Layouts that fresh inputs may have: the client packs them as the plan wants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hesim.circuit.packing.arrangement import like
from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout
from hesim.program import Program, Var

_MANY = 32
"""Members of a leading axis from which it is taken for a batch."""

__all__ = ["alike", "digits", "factors", "input_layouts", "meeting", "members_lowest"]


def factors(
    program: Program, axes: Mapping[int, int | None], inner: Callable[[Var, int], int | None]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Per value id and axis of one member, the sizes into which later reshapes split it, lowest
    first; of inputs also the strides of windows, of which the last size may reach beyond the axis.

    Follows reshapes backwards through operations that keep axes where they are, and through
    contractions of encrypted values.
    """
    out: dict[tuple[int, int], tuple[int, ...]] = {}
    strided: set[tuple[int, int]] = set()
    for eqn in reversed(program.ops):
        if eqn.name == "conv_general_dilated":
            strided |= set(_split_by_windows(eqn, out, inner))
            continue
        if eqn.name in ("reshape", "squeeze", "expand_dims"):
            _split_by_reshape(eqn, out, inner)
            continue
        for v, a, b in _followed(eqn):
            y = eqn.outputs[0]
            i, j = inner(v, a), inner(y, b)
            if i is not None and j is not None and (y.id, j) in out:
                if v.shape[a] == y.shape[b]:
                    out.setdefault((v.id, i), out[y.id, j])
                    strided |= {(v.id, i)} if (y.id, j) in strided else set()
    fresh = {v.id for v in program.inputs}
    return {k: sizes for k, sizes in out.items() if k not in strided or k[0] in fresh}


def _split_by_windows(
    eqn: Any, out: dict[tuple[int, int], tuple[int, ...]], inner: Callable
) -> Iterator[tuple[int, int]]:
    """Splits axes by the strides of windows; yields those that were split."""
    x = eqn.inputs[0]
    for axis, stride in zip(
        eqn.params["dimension_numbers"].lhs_spec[2:], eqn.params["window_strides"], strict=True
    ):
        i = inner(x, axis)
        if i is not None and 1 < stride < x.shape[axis] and (x.id, i) not in out:
            out[x.id, i] = (stride, -(-x.shape[axis] // stride))
            yield x.id, i


def _followed(eqn: Any) -> Iterator[tuple[Var, int, int]]:
    """(encrypted operand, its axis, the axis of the result that it is)."""
    x, y = eqn.inputs[0], eqn.outputs[0]
    if eqn.name == "dot_general":
        if all(v.encrypted for v in eqn.inputs):
            yield from _contracted(eqn)
        return
    if eqn.name == "transpose":
        moves = [(a, b) for b, a in enumerate(eqn.params["permutation"])]
    elif eqn.name == "broadcast_in_dim":
        moves = list(enumerate(eqn.params["broadcast_dimensions"]))
    elif all(v.shape in (y.shape, ()) for v in eqn.inputs):
        moves = [(k, k) for k in range(len(y.shape))]
    else:
        return
    for v in eqn.inputs:
        if isinstance(v, Var) and v.encrypted and len(v.shape) == len(x.shape):
            yield from ((v, a, b) for a, b in moves)


def _contracted(eqn: Any) -> Iterator[tuple[Var, int, int]]:
    (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
    a, b = eqn.inputs
    at = len(ba)
    for v, summed, shared in ((a, ca, ba), (b, cb, bb)):
        for k, axis in enumerate(shared):
            yield v, axis, k
        for axis in range(len(v.shape)):
            if axis not in summed and axis not in shared:
                yield v, axis, at
                at += 1


def _split_by_reshape(eqn: Any, out: dict, inner: Callable) -> None:
    x, y = eqn.inputs[0], eqn.outputs[0]
    before = [math.prod(x.shape[k + 1 :]) for k in range(len(x.shape))]
    after = [math.prod(y.shape[k + 1 :]) for k in range(len(y.shape))]
    for a, extent in enumerate(x.shape):
        i = inner(x, a)
        if i is None or extent == 1:
            continue
        sizes: list[int] = []
        for b in reversed(range(len(y.shape))):
            low, high = after[b], after[b] * y.shape[b]
            if low >= before[a] and high <= before[a] * extent and y.shape[b] > 1:
                j = inner(y, b)
                sizes += out.get((y.id, j), (y.shape[b],)) if j is not None else (y.shape[b],)
        if math.prod(sizes) == extent and len(sizes) > 1:
            out[x.id, i] = tuple(sizes)


def digits(axis: int, sizes: Sequence[int]) -> list[Coordinate]:
    """The factors of an axis as coordinates, lowest stride first."""
    out = []
    stride = 1
    for size in sizes:
        if size > 1:
            out.append(Coordinate(axis, size, stride))
        stride *= size
    return out


def input_layouts(
    shape: Sequence[int], split: Mapping[int, Sequence[int]], columns: int, most: int
) -> Iterator[Layout]:
    """Layouts of a fresh tensor: every order of a subset of its digits on columns, the rest on
    ciphertexts, with what is left of the columns replicated on top.

    Where digits do not fit, the highest or one of the others has a part of it on ciphertexts.
    """
    every = [d for a, extent in enumerate(shape) for d in digits(a, split.get(a, (extent,)))]
    seen = set()
    whole = math.prod(shape)
    for count in range(len(every) + 1):
        for order in itertools.permutations(every, count):
            for cut in (None, *order):
                layout = _laid(shape, every, order, columns, cut)
                if layout is None or layout in seen or layout.ciphertexts > most:
                    continue
                if layout.ciphertexts > 1 and whole < layout.ciphertexts * columns / 128:
                    continue
                seen.add(layout)
                yield layout


def members_lowest(layouts: Sequence[Layout]) -> list[Layout]:
    """Of layouts of a tensor of many ciphertexts, those in which its first axis has the lowest
    columns, or ciphertexts of its own, if that may be a batch.

    What is done to each member alike then never moves anything across its neighbours.
    """
    if not layouts:
        return []
    shape = layouts[0].shape
    large = all(x.ciphertexts > 1 for x in layouts)
    if not large or len(shape) < 3 or shape[0] < _MANY:
        return list(layouts)
    found = [
        x
        for x in layouts
        if (x.slots and x.slots[0] == Coordinate(0, shape[0], 1)) or 0 not in x.along_slots
    ]
    return found or list(layouts)


def _laid(
    shape: Sequence[int],
    every: Sequence[Coordinate],
    order: Sequence[Coordinate],
    columns: int,
    cut: Coordinate | None,
) -> Layout | None:
    """Digits on columns in this order, lowest first; `cut` takes what room the others leave."""
    slots: list[Coordinate] = []
    rest = [d for d in every if d not in order]
    sizes = {d: 1 << (d.size - 1).bit_length() for d in order}
    if cut is not None:
        others = math.prod(sizes[e] for e in order if e != cut)
        if not 1 < columns // others < sizes[cut]:
            return None
        sizes[cut] = columns // others
    room = columns
    for d in order:
        padded = 1 << (d.size - 1).bit_length()
        highest = not any(e.axis == d.axis and e.stride > d.stride for e in every)
        if padded != d.size and not highest:
            return None
        taken = min(sizes[d], room)
        if taken > 1:
            slots.append(Coordinate(d.axis, taken, d.stride))
        if taken < padded:
            if d.size % taken and not highest:
                return None
            rest.append(Coordinate(d.axis, -(-d.size // taken), d.stride * taken))
        room //= taken
    if room > 1:
        slots.append(Coordinate(REPLICATED, room))
    return Layout(tuple(shape), tuple(slots), tuple(rest), (), True).canonical()


def alike(model: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The layout in which a tensor of this shape meets the model as it is, if all of it has a place
    there.
    """
    if len(model.shape) != len(shape):
        return None
    axes = [a for a in model.axes if shape[a] == model.shape[a]]
    found = like(model, axes, shape)
    if found is None or any(d > 1 and not found.pieces(a) for a, d in enumerate(shape)):
        return None
    return found


def meeting(model: Layout, fresh: Sequence[Coordinate], shape: Sequence[int]) -> Iterator[Layout]:
    """Layouts in which a tensor meets a model that lacks some of its axes.

    The axes that both have lie as in the model. The others lie where the model repeats, or on
    ciphertexts, in every order.

    Args:
      model: with the axes of the tensor. fresh: digits of those that it lacks. shape: of the
        tensor; 1 for axes that the model alone has.
    """
    own = [a for a, extent in enumerate(shape) if extent > 1]
    seen = set()
    for order in itertools.permutations(fresh):
        for slots, rest in (_filled(model.slots, order), (model.slots, order)):
            both = model._replace(slots=tuple(slots), ciphers=(*model.ciphers, *rest))
            found = like(both, own, shape)
            if found is None or found in seen or any(not found.pieces(a) for a in own):
                continue
            seen.add(found)
            yield found


def _filled(
    slots: Sequence[Coordinate], order: Sequence[Coordinate]
) -> tuple[list[Coordinate], list[Coordinate]]:
    """(slots whose replicated coordinates hold the digits, lowest first; what had no room)."""
    queue, out = list(order), []
    for c in slots:
        room = c.size
        while c.axis == REPLICATED and c.stride == 0 and queue and room > 1:
            d = queue[0]
            taken = min(1 << (d.size - 1).bit_length(), room)
            if taken > d.size and any(e.axis == d.axis and e.stride > d.stride for e in order):
                break  # padding lies above all else of its axis
            if taken < d.size and d.size % taken:
                break
            out.append(Coordinate(d.axis, taken, d.stride))
            queue.pop(0)
            if taken < d.size:
                queue.insert(0, Coordinate(d.axis, d.size // taken, d.stride * taken))
            room //= taken
        if room > 1 or c.axis != REPLICATED or c.stride:
            out.append(c._replace(size=room))
    return out, queue
