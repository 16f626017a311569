"""Finds the batch axis: the one that every encrypted value carries and nothing mixes.

Its members then lie side by side in the slots, and the compiler works on one member.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hesim.circuit.moves import FREE_MOVES, INDEXED_MOVES, move_table
from hesim.program import Equation, Literal, Program, Var
from hesim.trace import IDENTITIES

__all__ = ["batch_axes", "candidates", "linear_index"]

_ELEMENTWISE = IDENTITIES | {
    *("add", "add_any", "sub", "neg", "mul", "square", "integer_pow", "div", "select_n"),
    *("convert_element_type", "polynomial", "refresh"),
}


class _Mixed(Exception):
    """An operation mixes members of the batch."""


def candidates(program: Program) -> Iterator[dict[int, int | None]]:
    """Guesses at the batch axis of each encrypted input: axis 0 where the sizes agree."""
    secret = [v for v in program.inputs if v.encrypted]
    sizes = [v.shape[0] for v in secret if v.shape]
    for size in dict.fromkeys(s for s in sizes if s > 1):
        yield {v.id: 0 if v.shape and v.shape[0] == size else None for v in secret}


def batch_axes(
    program: Program, start: dict[int, int | None], size: int
) -> dict[int, int | None] | None:
    """The batch axis of every encrypted value, None for those that are alike in all members.

    Args:
      start: axis per encrypted input.
      size: members of the batch.

    Returns:
      Axes by value id, or None if some operation mixes members.
    """
    axes = dict(start)
    try:
        for eqn in program.ops:
            for var, axis in zip(eqn.outputs, _rule(program, eqn, axes, size), strict=True):
                axes[var.id] = axis
    except _Mixed:
        return None
    return axes


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
        axis = found.pop() if found else None
        out = eqn.outputs[0].shape
        if axis is None and any(_varies(v, out, size) for v in eqn.inputs if not v.encrypted):
            axis = next((k for k, d in enumerate(out) if d == size), None)
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
    raise _Mixed


def _varies(value: Var | Literal, shape: tuple[int, ...], size: int) -> bool:
    return value.shape == shape and size in shape


def _dot(eqn: Equation, axes: dict[int, int | None]) -> int | None:
    (left_c, right_c), (left_b, right_b) = eqn.params["dimension_numbers"]
    left, right = eqn.inputs
    a = axes.get(left.id) if isinstance(left, Var) and left.encrypted else None
    b = axes.get(right.id) if isinstance(right, Var) and right.encrypted else None
    if a is None and b is None:
        return None
    if a is not None and a in left_c or b is not None and b in right_c:
        raise _Mixed
    place = list(left_b).index(a) if a in left_b else None
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
    free_left = len(left.shape) - batch - len(left_c)
    free = [k for k in range(len(right.shape)) if k not in right_b and k not in right_c]
    return batch + free_left + free.index(b)


def _move(
    program: Program, eqn: Equation, axes: dict[int, int | None], size: int
) -> list[int | None]:
    """Runs the move on the members' numbers: they must come out along one axis."""
    tables, operands = [], []
    any_member = False
    index_places = () if eqn.name in FREE_MOVES else _index_places(eqn)
    for k, v in enumerate(eqn.inputs):
        if k in index_places:
            constant = program.constant(v)
            if constant is None:
                if all(
                    axes.get(u.id) is None for u in eqn.inputs if isinstance(u, Var) and u.encrypted
                ):
                    return [None] * len(eqn.outputs)
                raise _Mixed
            tables.append(None)
            operands.append(constant)
            continue
        operands.append(None)
        axis = axes.get(v.id) if isinstance(v, Var) and v.encrypted else None
        if axis is None:
            tables.append(np.full(v.shape, size, np.int32))
        else:
            any_member = True
            view = [1] * len(v.shape)
            view[axis] = size
            tables.append(np.broadcast_to(np.arange(size, dtype=np.int32).reshape(view), v.shape))
    if not any_member:
        if eqn.name == "broadcast_in_dim" and size in eqn.params["shape"]:
            new = [
                k
                for k, d in enumerate(eqn.params["shape"])
                if d == size and (k not in eqn.params["broadcast_dimensions"])
            ]
            return [new[0] if new else None]
        return [None] * len(eqn.outputs)
    return [_member_axis(t, size) for t in move_table(eqn, tables, operands)]


def _index_places(eqn: Equation) -> tuple[int, ...]:
    if eqn.name == "dynamic_slice":
        return tuple(range(1, len(eqn.inputs)))
    if eqn.name == "dynamic_update_slice":
        return tuple(range(2, len(eqn.inputs)))
    return (1,)


def _member_axis(table: np.ndarray, size: int) -> int:
    for axis, extent in enumerate(table.shape):
        if extent != size:
            continue
        view = [1] * table.ndim
        view[axis] = size
        members = np.arange(size).reshape(view)
        if np.all((table == members) | (table >= size) | (table < 0)) and np.any(table < size):
            return axis
    raise _Mixed


def linear_index(index: np.ndarray, axis: int | None) -> tuple[np.ndarray, int] | None:
    """Splits flat indices into those of the first member and a constant stride per member.

    Args:
      index: integers of the full shape. axis: the batch axis, None if there is none.

    Returns:
      (index of the first member, stride), or None if the members differ otherwise.
    """
    if axis is None:
        return index, 0
    first = index.take(0, axis=axis)
    if index.shape[axis] == 1:
        return first, 0
    stride = index.take(1, axis=axis).astype(np.int64) - first
    if stride.size == 0:
        return first, 0
    if np.any(stride != stride.flat[0]):
        return None
    step = int(stride.flat[0])
    last = index.take(index.shape[axis] - 1, axis=axis)
    if np.any(last != first + step * (index.shape[axis] - 1)):
        return None
    return first, step
