"""Rules of operations that move elements: indexing of the tables, where places are known."""

from __future__ import annotations

import numpy as np

from hesim.circuit.context import Context
from hesim.circuit.kernels import elementwise, linear, matmul
from hesim.circuit.layout import Tensor, linear_index, ranks, stripped, unique_rows
from hesim.circuit.moves import index_places, move_table, scatter_targets
from hesim.circuit.rules.contraction import check_size
from hesim.errors import LayoutError
from hesim.program import Equation, Literal, Var

__all__ = ["move", "scatter_add"]


def move(ctx: Context, eqn: Equation) -> list[Tensor]:
    """Moves elements: indexing of the tables, and nothing for a ciphertext to do."""
    places = index_places(eqn)
    indices = [ctx.program.constant(v) if k in places else None for k, v in enumerate(eqn.inputs)]
    if any(indices[k] is None for k in places):
        return _by_matrix(ctx, eqn)
    # Every element gets a number: 0 stands for zero, then the encrypted ones, then the public ones.
    secret = [v for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
    gain = max((x.gain for x in map(ctx.tensor, secret) if len(x.nodes)), key=abs, default=1.0)
    nodes, columns = [np.full(1, -1, np.int64)], [np.zeros(1, np.int64)]
    tables: list[np.ndarray | None] = [None] * len(eqn.inputs)
    count = 1
    for k, v in enumerate(eqn.inputs):
        if v.encrypted:
            x = ctx.with_gain(ctx.tensor(v), gain)
            nodes.append(x.node.reshape(-1).astype(np.int64))
            columns.append(x.column.reshape(-1).astype(np.int64))
            table = np.arange(count, count + x.node.size, dtype=np.int32).reshape(x.node.shape)
            if x.batch_axis is not None:
                table = np.broadcast_to(np.expand_dims(table, x.batch_axis), v.shape)
            tables[k] = table
            count += x.node.size
    first_public = {}
    for k, v in enumerate(eqn.inputs):
        if not v.encrypted and k not in places:
            size = int(np.prod(v.shape, dtype=np.int64))
            first_public[k] = count
            tables[k] = np.arange(count, count + size, dtype=np.int32).reshape(v.shape)
            count += size
    node, column = (np.concatenate(t) for t in (nodes, columns))
    out = []
    for var, table in zip(eqn.outputs, move_table(eqn, tables, indices), strict=True):
        axis = ctx.axis(var)
        inner = table if axis is None else table.take(0, axis=axis)
        inner = np.where(inner < len(node), inner, 0)
        moved = ctx.result(var, node[inner], column[inner], gain)
        for k, first in first_public.items():
            size = int(np.prod(eqn.inputs[k].shape, dtype=np.int64))
            if ctx.publics.uniform(eqn.inputs[k]) != 0.0:
                taken = np.where((table >= first) & (table < first + size), table - first, -1)
                moved = add_at(ctx, var, moved, eqn.inputs[k], taken)
        out.append(moved)
    return out


def add_at(
    ctx: Context, var: Var, total: Tensor, value: Var | Literal, taken: np.ndarray
) -> Tensor:
    """total + elements of a public value.

    Args:
      taken: int of the full shape: flat index into `value` of what is added, -1 for nothing.
    """
    if not np.any(taken >= 0):
        return total
    axis = ctx.axis(var)
    operand, index, _ = ctx.public(value, value.shape, None)
    wanted = np.where(taken >= 0, index.reshape(-1)[np.maximum(taken, 0)], -1)
    split = linear_index(wanted, axis)
    if split is None:
        raise LayoutError(
            "a public part is laid out irregularly along the batch; compile with batch=False"
        )
    first, stride = split
    total = ctx.open_to(total, ctx.publics.magnitude(value))
    live = first.reshape(-1) >= 0
    old, at = total.node.reshape(-1), total.column.reshape(-1)
    part = Tensor(np.where(live, old, -1), at, total.gain, total.batch_axis, total.shape)
    node, column = elementwise.add_public(
        ctx.b,
        ctx.source,
        part,
        operand,
        np.maximum(first.reshape(-1), 0),
        stride,
        1.0 / total.gain,
    )
    made = _with_bystanders(old, at, live, node.reshape(-1))
    return ctx.result(var, made, np.where(live, column.reshape(-1), at), total.gain)


def _with_bystanders(
    old: np.ndarray, column: np.ndarray, live: np.ndarray, made: np.ndarray
) -> np.ndarray:
    """New nodes of all elements, of which the `live` ones changed.

    What lies beside a changed element moves along with it, so that a tensor stays in as few
    ciphertexts as it was.
    """
    out = np.where(live, made, old)
    pairs = unique_rows(np.stack([old[live], made[live]], 1).astype(np.int64))[0]
    single, count = np.unique(pairs[:, 0], return_counts=True)
    follow = {int(a): int(b) for a, b in pairs if count[np.searchsorted(single, a)] == 1}
    changed = set(zip(old[live].tolist(), column[live].tolist(), strict=True))
    for i in np.flatnonzero(~live):
        place = (int(old[i]), int(column[i]))
        if place[0] in follow and place not in changed:
            out[i] = follow[place[0]]
    return out


def _by_matrix(ctx: Context, eqn: Equation) -> list[Tensor]:
    """A move to places known only at run time: products by public one-hot matrices."""
    (var,) = eqn.outputs
    axis = ctx.axis(var)
    places = index_places(eqn)
    inner = stripped(var.shape, axis)
    size = int(np.prod(inner, dtype=np.int64))
    total: Tensor | None = None
    for k, v in enumerate(eqn.inputs):
        if not v.encrypted:
            continue
        x = ctx.tensor(v)
        weight = np.arange(size * x.node.size).reshape(1, size, x.node.size)
        check_size(ctx, weight.size)
        part = ctx.result(
            var,
            *matmul.apply(
                ctx.b,
                ctx.source,
                x.node.reshape(1, -1).astype(np.int64),
                x.column.reshape(1, -1).astype(np.int64),
                weight,
                linear.Coefficients(ctx.publics.one_hot(eqn, k, x.batch_axis, axis)),
            ),
            x.gain,
        )
        total = part if total is None else ctx.sum(var, total, part, 1)
    assert total is not None
    for k, v in enumerate(eqn.inputs):
        if not v.encrypted and k not in places and ctx.publics.uniform(v) != 0.0:
            index = np.arange(var.size).reshape(var.shape)
            total = ctx.plus_operand(var, total, ctx.publics.moved(eqn, k), index)
    return [total]


def scatter_add(ctx: Context, eqn: Equation) -> list[Tensor]:
    """operand + updates moved to their places; updates that share a place go in layers."""
    (var,) = eqn.outputs
    operand, indices, updates = eqn.inputs
    where = ctx.program.constant(indices)
    if where is None:
        return _add_by_matrix(ctx, eqn)
    target = scatter_targets(eqn, where).reshape(-1)
    layer = np.where(target >= 0, ranks(target), -1)
    axis = ctx.axis(var)
    total: Tensor | None = ctx.tensor(operand) if operand.encrypted else None
    size = int(np.prod(operand.shape, dtype=np.int64))
    for k in range(int(layer.max(initial=-1)) + 1):
        source = np.flatnonzero(layer == k)
        table = np.full(size, -1, np.int64)
        table[target[source]] = source
        table = table.reshape(operand.shape)
        if not isinstance(updates, Var) or not updates.encrypted:
            assert total is not None
            total = add_at(ctx, var, total, updates, table)
            continue
        x = ctx.tensor(updates)
        pick = _first_member(table, axis, updates.shape, x.batch_axis).reshape(-1)
        taken = np.maximum(pick, 0)
        part = ctx.result(
            var,
            np.where(pick >= 0, x.node.reshape(-1)[taken], -1),
            np.where(pick >= 0, x.column.reshape(-1)[taken], 0),
            x.gain,
        )
        total = part if total is None else ctx.sum(var, total, part, 1)
    if total is None:  # no update falls inside
        total = ctx.zero(var)
    if not operand.encrypted and ctx.publics.uniform(operand) != 0.0:
        total = ctx.plus_public(var, total, operand, 1.0)
    return [ctx.result(var, total.node, total.column, total.gain)]


def _first_member(
    table: np.ndarray, axis: int | None, shape: tuple[int, ...], batch_axis: int | None
) -> np.ndarray:
    """Flat indices into updates of `shape`, turned into those of one member of the batch."""
    if axis is None:
        return table
    first = table.take(0, axis=axis)
    places = np.unravel_index(np.maximum(first, 0), shape)
    kept = [p for k, p in enumerate(places) if k != batch_axis]
    flat = np.ravel_multi_index(kept, stripped(shape, batch_axis)) if kept else np.zeros_like(first)
    return np.where(first >= 0, flat, -1)


def _add_by_matrix(ctx: Context, eqn: Equation) -> list[Tensor]:
    """A scatter-add to places known only at run time."""
    (var,) = eqn.outputs
    operand, _, updates = eqn.inputs
    size = int(np.prod(operand.shape, dtype=np.int64))
    total: Tensor | None = ctx.tensor(operand) if operand.encrypted else None
    if updates.encrypted:
        x = ctx.tensor(updates)
        weight = np.arange(size * x.node.size).reshape(1, size, x.node.size)
        check_size(ctx, weight.size)
        made = matmul.apply(
            ctx.b,
            ctx.source,
            x.node.reshape(1, -1).astype(np.int64),
            x.column.reshape(1, -1).astype(np.int64),
            weight,
            linear.Coefficients(ctx.publics.one_hot(eqn, 2, None, None)),
        )
        part = ctx.result(var, *made, x.gain)
        total = part if total is None else ctx.sum(var, total, part, 1)
    assert total is not None
    for k in (0, 2):
        value = eqn.inputs[k]
        if not value.encrypted and ctx.publics.uniform(value) != 0.0:
            index = np.arange(size).reshape(operand.shape)
            total = ctx.plus_operand(var, total, ctx.publics.moved(eqn, k), index)
    return [total]
