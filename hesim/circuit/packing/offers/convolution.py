"""Offers of convolutions by public kernels: one public map, whose results stay where windows start.

Channels of the result lie where those of the operand lay, or the positions between strides, or on
copies; what is left of the summed positions is added up by rotations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.circuit import Kind
from hesim.circuit.packing.arrangement import reduction
from hesim.circuit.packing.costs import counted, map_work, shaped
from hesim.circuit.packing.emission import Emission, Packed
from hesim.circuit.packing.gathering import packings
from hesim.circuit.packing.inputs import digits
from hesim.circuit.packing.layout import GAP, REPLICATED, Coordinate, Layout
from hesim.circuit.packing.offers.offer import Offer, Setting
from hesim.circuit.packing.operations import Operation
from hesim.circuit.packing.windows import Convolution, Part, Window, window_plan
from hesim.program import Equation

__all__ = ["anywhere", "convolution"]

_TARGETS = 5
"""Layouts of a result that are looked at where windows do not start where it could stay."""


def convolution(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    """With every result in a column where its window starts, or a whole channel beside it."""
    (eqn,), (layout,) = op.equations, layouts
    conv = _read(s, eqn)
    if conv is None or layout.rolls:
        return
    (var,) = op.outputs
    sizes = s.factors.get((var.id, conv.channels[1]), (conv.outs // conv.groups,))
    if math.prod(sizes) * conv.groups != conv.outs:
        sizes = (conv.outs // conv.groups,)
    seen = set()
    for order in itertools.permutations(digits(conv.channels[1], sizes)):
        for copies in (False, True):
            way = _beside(conv, layout, s.shape(var), order, copies)
            if way is not None and way not in seen:
                seen.add(way)
                yield from _offered(conv, layout, way)


def anywhere(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    """With results in a few layouts, wherever they were."""
    (eqn,), (layout,) = op.equations, layouts
    conv = _read(s, eqn)
    if conv is None or layout.rolls:
        return
    for target in itertools.islice(packings(s.shape(op.outputs[0]), s.columns), _TARGETS):
        yield from _offered(conv, layout, _Way(target, ()))


@dataclass(frozen=True)
class _Way:
    """Where a convolution leaves its sums.

    Attributes:
      target: the layout; its last axes are `parts`.
    """

    target: Layout
    parts: tuple[Part, ...]


def _read(s: Setting, eqn: Equation) -> Convolution | None:
    """What an equation joins; None for a convolution whose batch is cut into groups."""
    x, kernel = eqn.inputs
    y, p = eqn.outputs[0], eqn.params
    spec = p["dimension_numbers"]
    if p["batch_group_count"] != 1 or kernel.encrypted:
        return None
    axes = [(s.inner(x, a), s.inner(y, b)) for a, b in zip(spec.lhs_spec, spec.out_spec)]
    steps = [math.prod(kernel.shape[k + 1 :]) for k in range(len(kernel.shape))]
    windows = []
    for k, (source, target) in enumerate(axes[2:]):
        if source is None or target is None:
            return None
        a, b, c = (t[2 + k] for t in (spec.lhs_spec, spec.out_spec, spec.rhs_spec))
        windows.append(
            Window(
                *(source, target, x.shape[a], y.shape[b], kernel.shape[c]),
                *(p["window_strides"][k], p["rhs_dilation"][k], p["lhs_dilation"][k]),
                p["padding"][k][0],
            )
        )
    (members, channels) = axes[:2]
    if channels[0] is None or channels[1] is None or (members[0] is None) != (members[1] is None):
        return None
    return Convolution(
        (channels[0], channels[1]),
        x.shape[spec.lhs_spec[1]],
        y.shape[spec.out_spec[1]],
        p["feature_group_count"],
        tuple(windows),
        None if members[0] is None or members[1] is None else (members[0], members[1]),
        x.shape[spec.lhs_spec[0]],
        tuple(steps[a] for a in spec.rhs_spec),
    )


def _offered(conv: Convolution, source: Layout, way: _Way) -> Iterator[Offer]:
    target, parts = way.target, way.parts
    rank = len(target.shape) - len(parts)
    plan = window_plan(conv, source, target, parts)
    total = reduction(target, tuple(range(rank, rank + len(parts))), tuple(range(rank)))
    if plan is None or total is None or conv.weights(parts) is None:
        return
    numbers = not plan.terms.shift.any() and _numbers(conv, source, target)
    zeros = plan.outs - len(np.unique(plan.terms.out))  # results under padding alone
    rows = [*map_work(plan, scalar=numbers).rows.items(), *total.rows(1)]
    rows.append(counted(Kind.DOT_PLAIN, zeros, scalar=True))
    work = shaped(rows, 1, total.layout.ciphertexts)

    def emit(em: Emission, op: Operation, xs: tuple[Packed, ...]) -> list[Packed]:
        (eqn,), (x,) = op.equations, xs
        gain = em.wished(eqn.outputs[0], x.gain)
        weights = conv.weights(parts)
        assert weights is not None, "it was offered"
        kernel = em.public(eqn.inputs[1], eqn.inputs[1].shape, None)
        place = kernel.index.reshape(-1)[np.maximum(weights.table, 0)]
        table = np.where(weights.table < 0, -1, place).astype(np.int32)
        out = {**weights.out, **{rank + k: step for k, step in enumerate(weights.parts)}}
        kept = (conv.members,) if conv.members is not None else ()
        em.b.begin(em.source)
        plains = em.looked_up(
            plan,
            *(source, target, kept, weights.into, out, weights.offset),
            *(table, kernel.operand, x.gain / gain),
            numbers=numbers,
        )
        nodes = em.mapped(plan, x.nodes, plains)
        made = [
            em.reduced(
                nodes[g[0]] if len(g) == 1 else em.b.add([(1, nodes[k]) for k in g]), total.steps
            )
            for g in total.groups
        ]
        return [Packed(total.layout, tuple(em.b.end(made)), gain)]

    yield Offer((total.layout,), (work,), emit)


def _numbers(conv: Convolution, source: Layout, target: Layout) -> bool:
    """Whether every coefficient of a map without shifts is the same in all columns."""
    if source.padded and not source.zeros:
        return False  # what is no element is to be zero
    for c, d in zip(source.slots, target.slots, strict=False):
        member = conv.members is not None and c.axis == conv.members[0]
        own = c._replace(axis=conv.members[1]) if member and conv.members is not None else c
        if own != d or not (member or c.axis < 0):
            return False
    return len(source.slots) == len(target.slots)


def _beside(
    conv: Convolution,
    layout: Layout,
    shape: tuple[int, ...],
    order: Sequence[Coordinate],
    copies: bool,
) -> _Way | None:
    """Results where the starts of their windows lie; None if digits do not tell them apart.

    Args:
      order: digits of the result's channels, of one group, as they are placed, lowest first.
      copies: whether they may be placed where the operand is repeated.
    """
    queue = list(order)
    slots: list[Coordinate] = []
    extents = list(shape)
    parts: list[Part] = []
    for c in layout.slots:
        split = _split(conv, c)
        if split is None:
            return None
        free, kept = split
        room = free.size if free is not None else 1
        if c.axis == REPLICATED and not copies:
            slots.append(c)
            continue
        while room > 1 and queue:
            d = queue[0]
            size = 1 << (d.size - 1).bit_length()
            highest = not any(e.stride > d.stride for e in order)
            if size != d.size and not (highest and conv.groups == 1):
                return None
            taken = min(size, room)
            if taken < d.size and d.size % taken and not highest:
                return None
            slots.append(Coordinate(d.axis, taken, d.stride))
            queue.pop(0)
            if taken < d.size:
                queue.insert(0, Coordinate(d.axis, -(-d.size // taken), d.stride * taken))
            room //= taken
        if room > 1 and free is not None:
            if c.axis < 0:
                slots.append(Coordinate(c.axis, room))
            else:
                stride = free.stride * (free.size // room)
                slots.append(Coordinate(len(extents), room, 1))
                parts.append(Part(c.axis, stride, room))
                extents.append(room)
        if kept is not None:
            slots += _shortened(kept, shape)
    ciphers = []
    for c in layout.ciphers:
        split = _split(conv, c)
        if split is None:
            return None
        if split[1] is not None:
            ciphers.append(_trimmed(split[1], shape))
    ciphers += [d for d in queue if d.size > 1]
    target = Layout(tuple(extents), tuple(slots), tuple(ciphers), (), True)
    if any(target.extent(a) < d for a, d in enumerate(shape) if target.pieces(a)):
        return None
    held = {conv.channels[1], *(w.target for w in conv.windows)}
    if any(shape[a] > 1 and not target.pieces(a) for a in held):
        return None
    return _Way(target, tuple(parts))


def _shortened(c: Coordinate, shape: Sequence[int]) -> Iterator[Coordinate]:
    """A coordinate of columns, with a gap in place of what is beyond the extent of the result."""
    needed = 1 << (max(-(-shape[c.axis] // c.stride), 1) - 1).bit_length()
    if needed >= c.size:
        yield c
        return
    yield c._replace(size=needed)
    yield Coordinate(GAP, c.size // needed)


def _trimmed(c: Coordinate, shape: Sequence[int]) -> Coordinate:
    """A coordinate of ciphertexts without positions beyond the extent of the result."""
    return c._replace(size=min(c.size, -(-shape[c.axis] // c.stride)))


def _split(conv: Convolution, c: Coordinate) -> tuple[Coordinate | None, Coordinate | None] | None:
    """(what of a coordinate is summed, or holds nothing of its own; what stays, as the result's);
    None if they cannot be told apart.
    """
    if c.axis in (REPLICATED, GAP):
        return c, None
    if conv.members is not None and c.axis == conv.members[0]:
        return None, c._replace(axis=conv.members[1])
    if c.axis == conv.channels[0]:
        group = conv.ins // conv.groups
        axis, unit, factor = conv.channels[1], group, conv.outs // conv.groups
    else:
        (w,) = [w for w in conv.windows if w.source == c.axis]
        if w.spread != 1:
            return None
        axis, unit, factor = w.target, w.stride, 1
    if c.axis == conv.channels[0] and conv.groups == 1:
        return c, None
    below = max(1, unit // c.stride)
    if c.stride % unit == 0:
        return None, Coordinate(axis, c.size, c.stride // unit * factor)
    if unit % (c.stride * c.size) == 0:
        return c, None
    if unit % c.stride or c.size % below:
        return None
    low = Coordinate(c.axis, below, c.stride)
    return low, Coordinate(axis, c.size // below, factor)
