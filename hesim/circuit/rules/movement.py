"""Rules of operations that move elements: indexing of the tables, where places are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.batching import linear_index
from hesim.circuit.kernels import elementwise, linear, matmul
from hesim.circuit.layout import Tensor, ranks, stripped
from hesim.circuit.moves import INDEXED_MOVES, move_table
from hesim.errors import LayoutError
from hesim.program import Equation, Literal, Var

if TYPE_CHECKING:
    from hesim.circuit.lower import Lowering

__all__ = ["move", "scatter_add"]


def move(lo: Lowering, eqn: Equation) -> list[Tensor]:
    """Moves elements: indexing of the tables, and nothing for a ciphertext to do."""
    operands: list[np.ndarray | None] = []
    for k, v in enumerate(eqn.inputs):
        is_index = eqn.name in INDEXED_MOVES and k in _places(eqn)
        constant = lo.program.constant(v) if is_index else None
        if is_index and constant is None:
            return _move_by_matrix(lo, eqn)
        operands.append(constant)
    secret = [v for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
    gain = lo.tensor(secret[0]).gain
    nodes, columns, tables = [np.full(1, -1, np.int64)], [np.zeros(1, np.int64)], []
    offset = 1
    publics: list[tuple[int, Var | Literal]] = []
    for k, v in enumerate(eqn.inputs):
        if operands[k] is not None:
            tables.append(None)
        elif v.encrypted:
            x = lo.with_gain(lo.tensor(v), gain)
            nodes.append(x.node.reshape(-1).astype(np.int64))
            columns.append(x.column.reshape(-1).astype(np.int64))
            table = np.arange(offset, offset + x.node.size, dtype=np.int32).reshape(x.node.shape)
            if x.batch_axis is not None:
                table = np.broadcast_to(np.expand_dims(table, x.batch_axis), v.shape)
            tables.append(table)
            offset += x.node.size
        else:
            tables.append(np.zeros(v.shape, np.int32))
            publics.append((k, v))
    node, column = np.concatenate(nodes), np.concatenate(columns)
    out = []
    for var, table in zip(eqn.outputs, move_table(eqn, tables, operands), strict=True):
        axis = lo.axis(var)
        table = np.where(table < 0, 0, table)
        table = table if axis is None else table.take(0, axis=axis)
        out.append(lo.result(var, node[table], column[table], gain))
    for k, value in publics:
        if lo.publics.uniform(value) != 0.0:
            out = [_with_public_part(lo, eqn, k, value, out[0])]
    return out


def _with_public_part(
    lo: Lowering, eqn: Equation, k: int, value: Var | Literal, total: Tensor
) -> Tensor:
    """Adds the elements that a concatenate or pad takes from a public operand."""
    (var,) = eqn.outputs
    total = elementwise.explicit(lo.b, lo.source, total)
    if eqn.name == "pad":
        tables = [np.zeros(v.shape, np.int32) for v in eqn.inputs]
        places = np.where(move_table(eqn, tables, [None] * len(tables))[0] < 0, 0, -1)
    else:
        tables = [
            np.arange(int(np.prod(v.shape, dtype=np.int64)), dtype=np.int32).reshape(v.shape)
            if i == k
            else np.full(v.shape, -1, np.int32)
            for i, v in enumerate(eqn.inputs)
        ]
        places = move_table(eqn, tables, [None] * len(tables))[0]
    operand, index, stride = lo.public(value, value.shape, None)
    axis = lo.axis(var)
    flat = index.reshape(-1)
    if axis is not None:
        split = linear_index(places, axis)
        if split is None:
            split = _strided(places, axis)
        places, stride = split
    spread = np.where(places >= 0, flat[np.maximum(places, 0)], -1).reshape(-1)
    live = spread >= 0
    part = Tensor(
        np.where(live, total.node.reshape(-1), -1),
        total.column.reshape(-1),
        total.gain,
        total.batch_axis,
        total.shape,
    )
    node, column = elementwise.add_public(
        lo.b, lo.source, part, operand, np.maximum(spread, 0), stride, 1.0 / total.gain
    )
    merged = np.where(live, node.reshape(-1), total.node.reshape(-1))
    return lo.result(var, merged, total.column, total.gain)


def _strided(places: np.ndarray, axis: int) -> tuple[np.ndarray, int]:
    first, second = places.take(0, axis=axis), places.take(1, axis=axis)
    steps = np.unique((second - first)[first >= 0])
    if len(steps) > 1:
        raise LayoutError(
            "a public part is laid out irregularly along the batch; compile with batch=False"
        )
    return first, int(steps[0]) if len(steps) else 0


def _places(eqn: Equation) -> tuple[int, ...]:
    if eqn.name == "dynamic_slice":
        return tuple(range(1, len(eqn.inputs)))
    if eqn.name == "dynamic_update_slice":
        return tuple(range(2, len(eqn.inputs)))
    return (1,)


def _move_by_matrix(lo: Lowering, eqn: Equation) -> list[Tensor]:
    """A move to places known only at run time: a product by a public one-hot matrix."""
    secret = [v for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
    (var,) = eqn.outputs
    if eqn.name not in ("dynamic_slice", "gather") or len(secret) != 1:
        raise LayoutError(
            f"{eqn.name} at {eqn.source} writes at a place that is known only at run time; write it as a "
            "sum with a one-hot mask instead."
        )
    x = lo.tensor(secret[0])
    if x.batch_axis is not None:
        raise LayoutError("a run-time index across a batch; compile with batch=False")
    operand = lo.publics.one_hot(eqn)
    size = x.node.size
    weight = np.arange(var.size * size).reshape(1, var.size, size)
    node = x.node.reshape(1, size).astype(np.int64)
    column = x.column.reshape(1, size).astype(np.int64)
    made, at = matmul.apply(lo.b, lo.source, node, column, weight, linear.Coefficients(operand))
    return [lo.result(var, made, at, x.gain)]


def scatter_add(lo: Lowering, eqn: Equation) -> list[Tensor]:
    """operand + updates moved to their places; updates that share a place go in layers."""
    (var,) = eqn.outputs
    operand, indices, updates = eqn.inputs
    where = lo.program.constant(indices)
    if where is None:
        raise LayoutError(
            f"scatter-add at {eqn.source} adds at a place that is known only at run time; write it as a "
            "product with a one-hot matrix instead."
        )
    target = _scatter_targets(eqn, where).reshape(-1)
    layer = np.where(target >= 0, ranks(target), -1)
    public_updates = not updates.encrypted
    axis = lo.axis(var)
    if axis is not None and (public_updates or lo.axis(updates) is None or not operand.encrypted):
        raise LayoutError("scatter-add of public values across a batch; compile with batch=False")
    total: Tensor | None = lo.tensor(operand) if operand.encrypted else None
    for k in range(int(layer.max(initial=-1)) + 1):
        source = np.flatnonzero(layer == k)
        table = np.full(int(np.prod(operand.shape, dtype=np.int64)), -1, np.int64)
        table[target[source]] = source
        table = table.reshape(operand.shape)
        if public_updates:
            assert total is not None
            total = _add_at(lo, var, total, updates, table)
            continue
        x = lo.tensor(updates)
        if axis is not None:
            table = _first_member(table, axis, updates.shape, x.batch_axis)
        pick = table.reshape(-1)
        part = lo.result(
            var,
            np.where(pick >= 0, x.node.reshape(-1)[np.maximum(pick, 0)], -1),
            np.where(pick >= 0, x.column.reshape(-1)[np.maximum(pick, 0)], 0),
            x.gain,
        )
        total = part if total is None else lo.sum(var, total, part, 1)
    assert total is not None
    if not operand.encrypted and lo.publics.uniform(operand) != 0.0:
        total = lo.plus_public(var, total, operand, 1.0)
    return [lo.result(var, total.node, total.column, total.gain)]


def _first_member(table: np.ndarray, axis: int, shape: tuple[int, ...], batch_axis: int | None):
    first = table.take(0, axis=axis)
    places = np.unravel_index(np.maximum(first, 0), shape)
    kept = [p for k, p in enumerate(places) if k != batch_axis]
    flat = np.ravel_multi_index(kept, stripped(shape, batch_axis)) if kept else np.zeros_like(first)
    return np.where(first >= 0, flat, -1)


def _add_at(
    lo: Lowering, var: Var, total: Tensor, updates: Var | Literal, table: np.ndarray
) -> Tensor:
    total = elementwise.explicit(lo.b, lo.source, total)
    operand, index, _ = lo.public(updates, updates.shape, None)
    flat = table.reshape(-1)
    live = flat >= 0
    part = Tensor(
        np.where(live, total.node.reshape(-1), -1),
        total.column.reshape(-1),
        total.gain,
        None,
        total.shape,
    )
    node, column = elementwise.add_public(
        lo.b, lo.source, part, operand, index.reshape(-1)[np.maximum(flat, 0)], 0, 1.0 / total.gain
    )
    merged = np.where(live, node.reshape(-1), total.node.reshape(-1))
    return lo.result(var, merged, total.column, total.gain)


def _scatter_targets(eqn: Equation, indices: np.ndarray) -> np.ndarray:
    """Flat place in the operand of every update element, -1 where it falls outside."""
    import jax
    import jax.numpy as jnp

    operand, _, updates = eqn.inputs
    d = eqn.params["dimension_numbers"]
    size = int(np.prod(operand.shape, dtype=np.int64))
    windows = iter([updates.shape[k] for k in d.update_window_dims])
    skipped = (*d.inserted_window_dims, *d.operand_batching_dims)
    slices = tuple(1 if k in skipped else next(windows) for k in range(len(operand.shape)))
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=d.update_window_dims,
        collapsed_slice_dims=d.inserted_window_dims,
        start_index_map=d.scatter_dims_to_operand_dims,
        operand_batching_dims=d.operand_batching_dims,
        start_indices_batching_dims=d.scatter_indices_batching_dims,
    )
    places = jnp.arange(size, dtype=jnp.int32).reshape(operand.shape)
    found = jax.lax.gather(
        places, jnp.asarray(indices), numbers, slices, mode="fill", fill_value=-1
    )
    return np.asarray(found, np.int64)
