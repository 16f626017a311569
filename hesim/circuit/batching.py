"""Finds the batch axis: the one that every encrypted value carries and nothing mixes.

Its members then lie side by side in the slots, and the compiler works on one member.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from hesim.circuit import sizes
from hesim.circuit.layout import stripped
from hesim.circuit.moves import (
    FREE_MOVES,
    INDEXED_MOVES,
    index_places,
    move_table,
    scatter_targets,
)
from hesim.primitives import IDENTITIES
from hesim.program import Equation, Program, Var

__all__ = ["batch_axes", "candidates", "linear_index"]

_ELEMENTWISE = IDENTITIES | {
    *("add", "add_any", "sub", "neg", "mul", "square", "integer_pow", "div", "select_n"),
    *("convert_element_type", "polynomial", "refresh"),
}


class _Mixed(Exception):
    """An operation mixes members of the batch."""


def candidates(program: Program) -> Iterator[dict[int, int | None]]:
    """Guesses at the batch axis of the encrypted inputs: axis 0 of all of one size, or of one.

    Two sizes may agree by accident, as those of a batch and of an encrypted matrix.
    """
    secret = [v for v in program.inputs if v.encrypted]
    for size in dict.fromkeys(v.shape[0] for v in secret if v.shape and v.shape[0] > 1):
        fitting = [v for v in secret if v.shape and v.shape[0] == size]
        for chosen in [fitting, *([v] for v in fitting if len(fitting) > 1)]:
            yield {v.id: 0 if v in chosen else None for v in secret}


def batch_axes(
    program: Program, start: dict[int, int | None], size: int
) -> dict[int, int | None] | None:
    """The batch axis of every encrypted value, None for those that are alike in all members.

    Args:
      start: axis per encrypted input.
      size: members of the batch.

    Returns:
      Axes by value id, or None if some operation mixes members, or if most values are alike in all
      of them (they would be computed once for each).
    """
    axes = dict(start)
    try:
        for eqn in program.ops:
            for var, axis in zip(eqn.outputs, _rule(program, eqn, axes, size), strict=True):
                axes[var.id] = axis
    except _Mixed:
        return None
    made = [axes[v.id] for eqn in program.ops for v in eqn.outputs]
    return None if 2 * made.count(None) > len(made) else axes


def _rule(
    program: Program, eqn: Equation, axes: dict[int, int | None], size: int
) -> list[int | None]:
    name = eqn.name
    secret = [(i, v) for i, v in enumerate(eqn.inputs) if isinstance(v, Var) and v.encrypted]
    known = [axes[v.id] for _, v in secret]
    if name in _ELEMENTWISE:
        found = {a for a in known if a is not None}
        if len(found) > 1:
            raise _Mixed
        out = eqn.outputs[0].shape
        axis = found.pop() if found else _public_axis(eqn, size)
        for _, v in secret:
            if (
                axis is not None
                and axes[v.id] is None
                and len(v.shape) == len(out)
                and v.shape[axis] > 1
            ):
                raise _Mixed
        return [axis]
    if name == "dot_general":
        return [_dot(eqn, axes)]
    if name in ("reduce_sum", "reduce_prod"):
        (axis,) = known
        if axis is None:
            return [None]
        if axis in eqn.params["axes"]:
            raise _Mixed
        return [axis - sum(a < axis for a in eqn.params["axes"])]
    if name == "cumsum":
        if known[0] is not None and known[0] == eqn.params["axis"]:
            raise _Mixed
        return known
    if name == "conv_general_dilated":
        spec = eqn.params["dimension_numbers"]
        if known[0] is None:
            return [None]
        if known[0] != spec.lhs_spec[0] or eqn.params["batch_group_count"] != 1:
            raise _Mixed
        return [spec.out_spec[0]]
    if name in FREE_MOVES or name in INDEXED_MOVES:
        return _move(program, eqn, axes, size)
    if all(a is None for a in known):
        return [None] * len(eqn.outputs)
    if name == "scatter-add":
        return [_scatter_add(program, eqn, axes, size)]
    raise _Mixed


def _public_axis(eqn: Equation, size: int) -> int | None:
    """An axis that only public operands of an elementwise operation have: members may lie there."""
    out = eqn.outputs[0].shape
    for k, extent in enumerate(out):
        if extent == size and all(
            len(v.shape) != len(out) or v.shape[k] == 1 for v in eqn.inputs if v.encrypted
        ):
            return k
    return None


def _dot(eqn: Equation, axes: dict[int, int | None]) -> int | None:
    (left_c, right_c), (left_b, right_b) = eqn.params["dimension_numbers"]
    left, right = eqn.inputs
    a = axes.get(left.id) if isinstance(left, Var) and left.encrypted else None
    b = axes.get(right.id) if isinstance(right, Var) and right.encrypted else None
    if a is None and b is None:
        return None
    if a is not None and a in left_c or b is not None and b in right_c:
        raise _Mixed
    place = list(left_b).index(a) if a is not None and a in left_b else None
    if b in right_b and b is not None:
        other = list(right_b).index(b)
        if a is not None and place != other:
            raise _Mixed
        place = other
    elif b is not None and a is not None:
        raise _Mixed
    if place is not None:
        both = (
            isinstance(left, Var) and left.encrypted and isinstance(right, Var) and right.encrypted
        )
        if both and (a is None or b is None):
            raise _Mixed
        return place
    batch = len(left_b)
    if a is not None:
        free = [k for k in range(len(left.shape)) if k not in left_b and k not in left_c]
        return batch + free.index(a)
    assert b is not None
    free_left = len(left.shape) - batch - len(left_c)
    free = [k for k in range(len(right.shape)) if k not in right_b and k not in right_c]
    return batch + free_left + free.index(b)


def _move(
    program: Program, eqn: Equation, axes: dict[int, int | None], size: int
) -> list[int | None]:
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
        raise _Mixed
    return [_member_axis(t, size) for t in move_table(eqn, tables, indices, size)]


def _scatter_add(program: Program, eqn: Equation, axes: dict[int, int | None], size: int) -> int:
    """The axis of a scatter-add that adds to each member at the same places, its own updates."""
    operand, indices, updates = eqn.inputs
    where = program.constant(indices)
    if where is None:
        raise _Mixed
    target = scatter_targets(eqn, where)
    shape = operand.shape
    given = axes.get(operand.id) if isinstance(operand, Var) and operand.encrypted else None
    source = axes.get(updates.id) if isinstance(updates, Var) and updates.encrypted else None
    if operand.encrypted and given is None or updates.encrypted and source is None:
        raise _Mixed
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
                return axis
    raise _Mixed


def _passed_through(eqn: Equation, axis: int | None) -> int:
    """The batch axis of a dynamic_slice or gather at unknown places that takes the axis whole."""
    p = eqn.params
    if axis is None or p.get("slice_sizes", ())[axis : axis + 1] != eqn.inputs[0].shape[axis:][:1]:
        raise _Mixed
    if eqn.name == "dynamic_slice":
        return axis
    d = p["dimension_numbers"]
    gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    if eqn.name != "gather" or axis in d.start_index_map or axis in gone:
        raise _Mixed
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
    raise _Mixed


def linear_index(index: np.ndarray, axis: int | None) -> tuple[np.ndarray, int] | None:
    """Splits flat indices into those of the first member and a constant stride per member.

    Args:
      index: integers of the full shape, -1 where there is no element (in every member alike).
      axis: the batch axis, None if there is none.

    Returns:
      (index of the first member, stride), or None if the members differ otherwise.
    """
    if axis is None:
        return index, 0
    first = index.take(0, axis=axis)
    if index.shape[axis] == 1:
        return first, 0
    live = first >= 0
    every = np.expand_dims(live, axis)
    stride = (index.take(1, axis=axis).astype(np.int64) - first)[live]
    if np.any((index >= 0) != every):
        return None
    step = int(stride.flat[0]) if stride.size else 0
    view = [1] * index.ndim
    view[axis] = index.shape[axis]
    along = np.arange(index.shape[axis]).reshape(view) * step
    if np.any((index != np.expand_dims(first, axis) + along) & every):
        return None
    return first, step
