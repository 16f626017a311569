"""Where the batch axis of an operation's results lies, given that of its operands: a rule a kind.

Each takes (program, equation, axes by value id, members of the batch) and returns the axis of every
result, None for one that is alike in all members; `Mixed` where members would meet.
"""

from __future__ import annotations

import math

import numpy as np

from hesim.circuit import sizes
from hesim.circuit.layout import stripped
from hesim.circuit.moves import index_places, move_table, scatter_targets
from hesim.program import Equation, Program, Var

__all__ = [
    "Axes",
    "Mixed",
    "added_at",
    "contracted",
    "convolved",
    "cumulated",
    "elementwise",
    "mixing",
    "moved",
    "reduced",
]

Axes = dict[int, int | None]


class Mixed(Exception):
    """An operation mixes members of the batch."""


def _known(eqn: Equation, axes: Axes) -> list[int | None]:
    """The axes of the encrypted operands."""
    return [axes[v.id] for v in eqn.inputs if isinstance(v, Var) and v.encrypted]


def mixing(program: Program, eqn: Equation, axes: Axes, size: int) -> list[int | None]:
    """Any operation that says nothing about members: none may have a batch axis."""
    if any(axis is not None for axis in _known(eqn, axes)):
        raise Mixed
    return [None] * len(eqn.outputs)


def elementwise(program: Program, eqn: Equation, axes: Axes, size: int) -> list[int | None]:
    """Operations on elements of the same place."""
    found = {a for a in _known(eqn, axes) if a is not None}
    if len(found) > 1:
        raise Mixed
    out = eqn.outputs[0].shape
    axis = found.pop() if found else _public_axis(eqn, size)
    for v in eqn.inputs:
        if not isinstance(v, Var) or not v.encrypted or axis is None or axes[v.id] is not None:
            continue
        if len(v.shape) == len(out) and v.shape[axis] > 1:
            raise Mixed
    return [axis] * len(eqn.outputs)


def contracted(program: Program, eqn: Equation, axes: Axes, size: int) -> list[int | None]:
    """Contractions of two tensors."""
    return [_dot(eqn, axes)]


def reduced(program: Program, eqn: Equation, axes: Axes, size: int) -> list[int | None]:
    """Reductions over the axes of their parameters."""
    (axis,) = _known(eqn, axes)
    if axis is None:
        return [None]
    if axis in eqn.params["axes"]:
        raise Mixed
    return [axis - sum(int(a < axis) for a in eqn.params["axes"])]


def cumulated(program: Program, eqn: Equation, axes: Axes, size: int) -> list[int | None]:
    """Running reductions along one axis."""
    known = _known(eqn, axes)
    if known[0] is not None and known[0] == eqn.params["axis"]:
        raise Mixed
    return known


def convolved(program: Program, eqn: Equation, axes: Axes, size: int) -> list[int | None]:
    """Convolutions: their own batch axis."""
    spec = eqn.params["dimension_numbers"]
    axis = _known(eqn, axes)[0]
    if axis is None:
        return [None]
    if axis != spec.lhs_spec[0] or eqn.params["batch_group_count"] != 1:
        raise Mixed
    return [spec.out_spec[0]]


def _public_axis(eqn: Equation, size: int) -> int | None:
    """An axis that only public operands of an elementwise operation have: members may lie there."""
    out = eqn.outputs[0].shape
    for k, extent in enumerate(out):
        if extent == size and all(
            len(v.shape) != len(out) or v.shape[k] == 1 for v in eqn.inputs if v.encrypted
        ):
            return k
    return None


def _dot(eqn: Equation, axes: Axes) -> int | None:
    (left_c, right_c), (left_b, right_b) = eqn.params["dimension_numbers"]
    left, right = eqn.inputs
    a = axes.get(left.id) if isinstance(left, Var) and left.encrypted else None
    b = axes.get(right.id) if isinstance(right, Var) and right.encrypted else None
    if a is None and b is None:
        return None
    if a is not None and a in left_c or b is not None and b in right_c:
        raise Mixed
    place = list(left_b).index(a) if a is not None and a in left_b else None
    if b in right_b and b is not None:
        other = list(right_b).index(b)
        if a is not None and place != other:
            raise Mixed
        place = other
    elif b is not None and a is not None:
        raise Mixed
    if place is not None:
        both = (
            isinstance(left, Var) and left.encrypted and isinstance(right, Var) and right.encrypted
        )
        if both and (a is None or b is None):
            raise Mixed
        return place
    batch = len(left_b)
    if a is not None:
        free = [k for k in range(len(left.shape)) if k not in left_b and k not in left_c]
        return batch + free.index(a)
    assert b is not None
    free_left = len(left.shape) - batch - len(left_c)
    free = [k for k in range(len(right.shape)) if k not in right_b and k not in right_c]
    return batch + free_left + free.index(b)


def moved(program: Program, eqn: Equation, axes: Axes, size: int) -> list[int | None]:
    """Runs the move on numbered elements: members must come out along one axis, all alike."""
    members = [axes.get(v.id) if isinstance(v, Var) and v.encrypted else None for v in eqn.inputs]
    places = index_places(eqn)
    indices = [program.constant(v) if k in places else None for k, v in enumerate(eqn.inputs)]
    if all(axis is None for axis in members):
        if eqn.name == "broadcast_in_dim":
            new = [
                k
                for k, extent in enumerate(eqn.params["shape"])
                if extent == size and k not in eqn.params["broadcast_dimensions"]
            ]
            return [new[0] if new else None]
        return [None] * len(eqn.outputs)
    if any(indices[k] is None for k in places):
        return [_passed_through(eqn, members[0])]
    whole = sum(math.prod(v.shape) for v in (*eqn.inputs, *eqn.outputs))
    sizes.reserve(lambda: f"`{eqn.name}` at {eqn.source}", sizes.INDEX_BYTES * whole)
    # Number of an element: place within a member, times size + 1, plus the member (or `size`).
    tables: list[np.ndarray | None] = []
    first = 0
    for k, (v, axis) in enumerate(zip(eqn.inputs, members, strict=True)):
        if k in places:
            tables.append(None)
            continue
        if not v.encrypted:
            tables.append(np.full(v.shape, size, np.int32))
            continue
        inner = stripped(v.shape, axis)
        count = int(np.prod(inner, dtype=np.int64))
        place = np.arange(first + 1, first + 1 + count, dtype=np.int64).reshape(inner) * (size + 1)
        first += count
        if axis is None:
            tables.append(place + size)
        else:
            view = [1] * len(v.shape)
            view[axis] = size
            tables.append(np.expand_dims(place, axis) + np.arange(size).reshape(view))
    if (first + 1) * (size + 1) >= 2**31:
        raise Mixed
    return [_member_axis(t, size) for t in move_table(eqn, tables, indices, size)]


def added_at(program: Program, eqn: Equation, axes: Axes, size: int) -> list[int | None]:
    """The axis of a scatter-add that adds to each member at the same places, its own updates."""
    if all(axis is None for axis in _known(eqn, axes)):
        return [None]
    operand, indices, updates = eqn.inputs
    where = program.constant(indices)
    if where is None:
        raise Mixed
    target = scatter_targets(eqn, where)
    shape = operand.shape
    given = axes.get(operand.id) if isinstance(operand, Var) and operand.encrypted else None
    source = axes.get(updates.id) if isinstance(updates, Var) and updates.encrypted else None
    if operand.encrypted and given is None or updates.encrypted and source is None:
        raise Mixed
    possible = [k for k, d in enumerate(shape) if d == size] if given is None else [given]
    sources = [k for k, d in enumerate(updates.shape) if d == size] if source is None else [source]
    places = np.unravel_index(np.maximum(target, 0), shape)
    for axis in possible:
        rest = [p for k, p in enumerate(places) if k != axis]
        inner = np.ravel_multi_index(rest, stripped(shape, axis)) if rest else 0 * target
        inner = np.where(target < 0, -1, inner)
        for k in sources:
            view = [1] * target.ndim
            view[k] = size
            ordered = (places[axis] == np.arange(size).reshape(view)) | (target < 0)
            if np.all(ordered) and np.all(inner == inner.take([0], axis=k)):
                return [axis]
    raise Mixed


def _passed_through(eqn: Equation, axis: int | None) -> int:
    """The batch axis of a dynamic_slice or gather at unknown places that takes the axis whole."""
    p = eqn.params
    if axis is None or p.get("slice_sizes", ())[axis : axis + 1] != eqn.inputs[0].shape[axis:][:1]:
        raise Mixed
    if eqn.name == "dynamic_slice":
        return axis
    d = p["dimension_numbers"]
    gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    if eqn.name != "gather" or axis in d.start_index_map or axis in gone:
        raise Mixed
    kept = [k for k in range(len(eqn.inputs[0].shape)) if k not in gone]
    return d.offset_dims[kept.index(axis)]


def _member_axis(table: np.ndarray, size: int) -> int | None:
    """The axis along which members lie in order, with the same places; None without members."""
    place, member = np.divmod(table.astype(np.int64), size + 1)
    if np.all(member == size):
        return None
    for axis, extent in enumerate(table.shape):
        if extent != size:
            continue
        view = [1] * table.ndim
        view[axis] = size
        ordered = (member == np.arange(size).reshape(view)) | (member == size)
        if np.all(ordered) and np.all(place == place.take([0], axis=axis)):
            return axis
    raise Mixed
