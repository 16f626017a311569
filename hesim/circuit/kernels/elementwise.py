"""Sums of two encrypted tensors, sums with public ones, and changes of gain."""

from __future__ import annotations

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import PlaintextFamily
from hesim.circuit.cost import relative_cost
from hesim.circuit.kernels import spread as spreading
from hesim.circuit.layout import Tensor, ranks, unique_rows

__all__ = ["add", "add_public", "cleaned", "explicit", "scaled", "scaled_by_public"]


def add(
    b: Builder, source: int, left: Tensor, right: Tensor, factors: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of small whole factors times the slots of left and right; returns (node, column)."""
    shape = left.node.shape
    an, ac = left.node.reshape(-1).astype(np.int64), left.column.reshape(-1).astype(np.int64)
    bn, bc = right.node.reshape(-1).astype(np.int64), right.column.reshape(-1).astype(np.int64)
    forward, backward = _triples(b, an, ac, bn, bc), _triples(b, bn, bc, an, ac)
    fewest = min(len(forward[0]), len(backward[0]))
    if fewest > 2 * max(len(left.nodes), len(right.nodes)):
        # Many distances: copying the narrow operand once beats a ciphertext for every distance.
        for wide, narrow, at in ((an, bn, ac), (bn, an, bc)):
            column = bc if narrow is bn else ac
            spread = spreading.plan(b, np.where(wide >= 0, narrow, -1), column, at)
            if spread is not None and spread.cost < relative_cost(rotations=fewest) / 2:
                table = np.full(len(b.nodes) + 1, -1, np.int64)
                for old, new in spread.emit(b, source).items():
                    table[old] = new
                both = (an >= 0) & (bn >= 0)
                renamed, moved = np.where(both, table[narrow], narrow), np.where(both, at, column)
                if narrow is bn:
                    bn, bc = renamed, moved
                else:
                    an, ac = renamed, moved
                forward, backward = _triples(b, an, ac, bn, bc), _triples(b, bn, bc, an, ac)
                break
    swap = len(backward[0]) < len(forward[0])
    triples, klass = backward if swap else forward
    column = np.where(an < 0, bc, np.where(bn < 0, ac, bc if swap else ac))
    factor = factors[::-1] if swap else factors
    nodes = np.full(len(triples), -1, np.int64)
    todo = []
    for k, (first, second, _) in enumerate(triples):
        if first >= 0 and second >= 0:
            todo.append(k)
        elif first >= 0 or second >= 0:
            lone, times = (first, factor[0]) if first >= 0 else (second, factor[1])
            if times == 1:
                nodes[k] = lone
            else:
                todo.append(k)
    if todo:
        b.reserve_nodes(2 * len(todo))
        b.begin(source)
        made = []
        for k in todo:
            first, second, shift = (int(x) for x in triples[k])
            terms = [(factor[0], first)] if first >= 0 else []
            if second >= 0:
                terms.append((factor[1], b.rotate(second, shift)))
            made.append(b.add(terms))
        nodes[todo] = b.end(made)
    return nodes[klass].reshape(shape).astype(np.int32), column.reshape(shape).astype(np.int32)


def _triples(b: Builder, an: np.ndarray, ac: np.ndarray, bn: np.ndarray, bc: np.ndarray):
    period = np.asarray([*b.period, b.columns])
    both = (an >= 0) & (bn >= 0)
    shift = np.where(both, (bc - ac) % b.columns % period[bn], 0)
    return unique_rows(np.stack([an, bn, shift], 1))


def add_public(
    b: Builder, source: int, x: Tensor, operand: int, index: np.ndarray, stride: int, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """x + weight * operand[index]; elements that are exactly zero must not be among them."""
    return _with_public(b, source, x, (operand, index, stride, weight), add=True)


def scaled_by_public(
    b: Builder, source: int, x: Tensor, operand: int, index: np.ndarray, stride: int, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """x * weight * operand[index]: one level."""
    return _with_public(b, source, x, (operand, index, stride, weight), add=False)


def _with_public(
    b: Builder, source: int, x: Tensor, public: tuple[int, np.ndarray, int, float], *, add: bool
) -> tuple[np.ndarray, np.ndarray]:
    operand, index, stride, weight = public
    node, table, layer_node = _lined_up(b, x, index)
    if not len(layer_node):
        return x.node, x.column
    b.begin(source)
    plains = _packs(b, table, operand, stride, weight, add=add)
    made = []
    for n, plain in zip(layer_node, plains, strict=True):
        made.append(
            b.add_plain(int(n), plain) if add else b.rescale(b.dot_plain([(int(n), plain)]))
        )
    made = np.asarray([*b.end(made), -1])  # row -1, an exact zero, stays one
    return made[node].astype(np.int32), x.column


def _lined_up(b: Builder, x: Tensor, index: np.ndarray):
    """One row of public indices per resulting ciphertext.

    Returns:
      (row of each element or -1, table (rows, columns), node of each row).
    """
    node = x.node.reshape(-1).astype(np.int64)
    column = x.column.reshape(-1).astype(np.int64)
    wanted = np.broadcast_to(index, x.node.shape).reshape(-1).astype(np.int64)
    live = np.flatnonzero(node >= 0)
    cells, cell = unique_rows(np.stack([node[live], column[live], wanted[live]], 1))
    # A place that must meet several public values (the operand is a broadcast) is repeated.
    layer = ranks(cells[:, 0] * b.columns + cells[:, 1]) if len(cells) else np.zeros(0, np.int64)
    rows, row = (
        unique_rows(np.stack([cells[:, 0], layer], 1)) if len(cells) else (cells[:, :2], layer)
    )
    b.reserve_nodes(2 * len(rows), len(rows))
    table = np.full((len(rows), b.columns), -1, np.int32)
    table[row, cells[:, 1]] = cells[:, 2]
    out = np.full(len(node), -1, np.int64)
    out[live] = row[cell]
    return out.reshape(x.node.shape), table, rows[:, 0]


def _packs(b: Builder, table: np.ndarray, operand: int, stride: int, weight: float, *, add: bool):
    """Plaintext per row: a scalar where one public value serves a whole ciphertext."""
    plains: list[tuple[int, int]] = [(-1, -1)] * len(table)
    scalar = np.zeros(len(table), bool)
    for k, line in enumerate(table):
        asked = line >= 0
        values = line[asked]
        same = stride == 0 and bool(np.all(values == values[0]))
        scalar[k] = same and (bool(asked.all()) or not add)
    common = {
        "operand": operand,
        "stride": stride,
        "weight": weight,
        "width": b.width,
        "columns": b.columns,
    }
    for chosen in (np.flatnonzero(scalar), np.flatnonzero(~scalar)):
        if not len(chosen):
            continue
        index = table[chosen]
        if scalar[chosen[0]]:
            index = index.max(axis=1, keepdims=True)
        number = b.pack(PlaintextFamily(index=np.ascontiguousarray(index), batch=b.batch, **common))
        for row, k in enumerate(chosen):
            plains[k] = (number, row)
    return plains


def scaled(b: Builder, source: int, nodes: np.ndarray, factor: float) -> dict[int, int]:
    """Nodes times a known number: additions for -1, else one level. Returns old -> new."""
    b.begin(source)
    if abs(factor) == 1.0:
        made = b.end([b.add([(int(factor), int(n))]) for n in nodes])
    else:
        number = b.pack(
            PlaintextFamily(
                -1,
                np.zeros((1, 1), np.int32),
                0,
                b.batch,
                b.width,
                b.columns,
                1.0,
                np.array([factor]),
            )
        )
        made = b.end([b.rescale(b.dot_plain([(int(n), (number, 0))])) for n in nodes])
    return {int(n): m for n, m in zip(nodes, made, strict=True)}


def explicit(b: Builder, source: int, x: Tensor) -> Tensor:
    """x with its exact zeros held by a ciphertext of zeros (made of an input: x loses no level)."""
    absent = x.node.reshape(-1) < 0
    if not absent.any():
        return x
    count = int(absent.sum())
    (zero,) = scaled(b, source, np.zeros(1, int), 0.0).values()
    b.support[zero] = b.supports.shared(np.zeros(b.columns, bool))
    b.period[zero] = b.columns
    node, column = x.node.reshape(-1).copy(), x.column.reshape(-1).copy()
    node[absent] = zero
    column[absent] = np.arange(count) % b.columns
    return Tensor(
        node.reshape(x.node.shape), column.reshape(x.node.shape), x.gain, x.batch_axis, x.shape
    )


def cleaned(b: Builder, source: int, x: Tensor) -> Tensor:
    """x with zeros wherever a ciphertext holds no element of it: one level, or free if it is so."""
    asked = x.referenced(b.columns)
    for n, places in asked.items():
        period = b.period[n]
        if period < b.columns:
            places |= np.tile(places.reshape(-1, period).any(0), b.columns // period)
    dirty = [n for n, places in asked.items() if np.any(b.support[n] & ~places)]
    if not dirty:
        return x
    b.begin(source)
    table = np.stack([np.where(asked[n], 0, -1) for n in asked]).astype(np.int32)
    number = b.pack(PlaintextFamily(-1, table, 0, b.batch, b.width, b.columns, 1.0, np.ones(1)))
    made = b.end([b.rescale(b.dot_plain([(n, (number, k))])) for k, n in enumerate(asked)])
    renamed = np.full(len(b.nodes) + 1, -1, np.int32)
    renamed[list(asked)] = made
    return Tensor(renamed[x.node], x.column, x.gain, x.batch_axis, x.shape)
