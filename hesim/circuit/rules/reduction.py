"""Rules of reductions: sums, products and running sums over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.kernels import elementwise, linear, product, reduce
from hesim.circuit.layout import Tensor, unique_rows
from hesim.program import Equation

if TYPE_CHECKING:
    from hesim.circuit.lower import Lowering

__all__ = ["cumsum", "reduce_prod", "reduce_sum"]


def reduce_sum(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    node, column = _rows(x, eqn.params["axes"])
    out_node, out_column, gain = reduce.apply(lo.b, lo.source, node, column)
    return [lo.result(var, out_node, out_column, x.gain * gain)]


def _rows(x: Tensor, axes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tables (results, terms) for a reduction over `axes` of the full shape."""
    batch = x.batch_axis
    gone = [a - (batch is not None and a > batch) for a in axes]
    kept = [k for k in range(x.node.ndim) if k not in gone]
    results = int(np.prod([x.node.shape[k] for k in kept], dtype=np.int64))
    node, column = (
        t.transpose([*kept, *gone]).reshape(results, -1).astype(np.int64)
        for t in (x.node, x.column)
    )
    return node, column


def reduce_prod(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    node, column = _rows(x, eqn.params["axes"])
    parts = [(node[:, k : k + 1], column[:, k : k + 1], x.gain) for k in range(node.shape[1])]
    while len(parts) > 1:
        half = []
        for (n1, c1, g1), (n2, c2, g2) in zip(parts[::2], parts[1::2], strict=False):
            made, at, gain = product.apply(lo.b, lo.source, (n1, c1), (n2, c2))
            half.append(
                (made[:, None].astype(np.int64), at[:, None].astype(np.int64), g1 * g2 * gain)
            )
        if len(parts) % 2:
            half.append(parts[-1])
        parts = half
    n, c, gain = parts[0]
    return [lo.result(var, n, c, gain)]


def cumsum(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    (axis,) = [eqn.params["axis"]]
    axis -= x.batch_axis is not None and axis > x.batch_axis
    node = np.moveaxis(x.node, axis, -1).astype(np.int64)
    column = np.moveaxis(x.column, axis, -1).astype(np.int64)
    shape = node.shape
    node, column = node.reshape(-1, shape[-1]), column.reshape(-1, shape[-1])
    n = shape[-1]
    reach = np.tri(n, dtype=bool).T if eqn.params["reverse"] else np.tri(n, dtype=bool)
    out, term = np.nonzero(reach)
    ones = np.ones(1)
    places = elementwise.explicit(lo.b, lo.source, x)
    at_node = np.moveaxis(places.node, axis, -1).reshape(-1, n).astype(np.int64)
    at_column = np.moveaxis(places.column, axis, -1).reshape(-1, n).astype(np.int64)
    # Each result takes its own ciphertext class: elements of one place that sum other elements differ.
    table = np.stack(
        [
            (at_node[:, out]).reshape(-1),
            np.broadcast_to(out, (len(node), len(out))).reshape(-1),
            at_column[:, out].reshape(-1),
            node[:, term].reshape(-1),
            column[:, term].reshape(-1),
        ],
        1,
    )
    slots = unique_rows(table[:, [0, 2]])[1]
    members = unique_rows(np.stack([slots, table[:, 1]], 1))
    shared = len(members[0]) > int(slots.max()) + 1
    key = table[:, [0, 1]] if shared else table[:, [0]]
    _, number = unique_rows(key)
    live = table[:, 3] >= 0
    used, dense = np.unique(number[live], return_inverse=True)
    rows = unique_rows(np.concatenate([dense.reshape(-1, 1), table[live][:, 2:]], 1))[0]
    made = linear.apply(
        lo.b,
        lo.source,
        linear.Terms(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]),
        None if _unit(rows) else linear.Coefficients(-1, literal=ones),
    )
    of = np.full(int(number.max()) + 1, -1, np.int64)
    of[used] = made
    result = np.zeros((len(node), n), np.int64)
    result[:, out] = of[number].reshape(len(node), len(out))
    back = lambda t: np.moveaxis(t.reshape(shape), -1, axis)  # noqa: E731
    return [lo.result(var, back(result), back(at_column), x.gain)]


def _unit(rows: np.ndarray) -> bool:
    return len(unique_rows(rows)[0]) == len(rows)
