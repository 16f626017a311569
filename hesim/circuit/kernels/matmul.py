"""Products of an encrypted tensor by a public matrix, in the cheapest of three layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.cost import relative_cost
from hesim.circuit.kernels import linear, reduce
from hesim.circuit.layout import ranks, unique_rows

__all__ = ["apply"]

Emit = Callable[[], tuple[np.ndarray, np.ndarray]]


def apply(
    b: Builder,
    source: int,
    node: np.ndarray,
    column: np.ndarray,
    weight: np.ndarray,
    coefficients: linear.Coefficients,
) -> tuple[np.ndarray, np.ndarray]:
    """out[r, n] = sum over c of in[r, c] * weight[r, n, c]: the cheapest of three layouts.

    Kept: results lie where their operand row lies (the contraction is across ciphertexts).
    Diagonal: result n takes the place of contraction element n modulo their number.
    Reduced: each n is a masked copy, summed over slots afterwards (few results, many slots).

    Args:
      node, column: int64 (r, c), places of the operand; node -1 is zero.
      weight: int (r, n, c), flat indices into the coefficients; -1 where the weight is zero.

    Returns:
      (node, column) of the results, each (r, n).
    """
    r, n, c = weight.shape
    distinct_weights = unique_rows(weight.reshape(r, -1).astype(np.int64))[1]
    if np.all(column == column[:, :1]):
        rows_class = unique_rows(node)[1]
        # Rows that share a place but meet other weights need a layer of their own.
        pairs, pair = unique_rows(np.stack([rows_class, column[:, 0], distinct_weights], 1))
        layer = ranks(pairs[:, 0] * b.columns + pairs[:, 1])[pair]
        key = np.stack([np.repeat(rows_class, n), np.repeat(layer, n), np.tile(np.arange(n), r)], 1)
        at = np.broadcast_to(column[:, :1], (r, n))
        return _direct(b, source, node, column, weight, coefficients, key, at)[1]()
    plans = [_reduced(b, source, node, column, weight, coefficients)]
    target, block = np.arange(n) % c, np.arange(n) // c
    at = column[:, target]
    _, place = unique_rows(np.stack([node[:, target].reshape(-1), at.reshape(-1)], 1))
    rows_class = unique_rows(np.concatenate([node, column], 1))[1]
    results = [place, np.tile(block, r), np.tile(np.arange(n), r)]
    results += [np.repeat(rows_class, n), np.repeat(distinct_weights, n)]
    distinct = unique_rows(np.stack(results, 1))[0]
    if np.all(node >= 0) and not ranks(distinct[:, 0] * (block.max() + 1) + distinct[:, 1]).any():
        key = np.stack([node[:, target].reshape(-1), np.tile(block, r)], 1)
        plans.append(_direct(b, source, node, column, weight, coefficients, key, at))
    return min(plans, key=lambda plan: plan[0])[1]()


def _direct(
    b: Builder,
    source: int,
    node: np.ndarray,
    column: np.ndarray,
    weight: np.ndarray,
    coefficients: Any,
    key: np.ndarray,
    at: np.ndarray,
) -> tuple[float, Emit]:
    """Cost and emission where result (r, n) goes to column `at` of the ciphertext of its `key`."""
    r, n, c = weight.shape
    _, number = unique_rows(key)
    # Results that share a slot are the same sum: the first one speaks for all.
    _, first = np.unique(number * b.columns + at.reshape(-1), return_index=True)
    weights = weight.reshape(r * n, c)[first]
    nodes, columns = node[first // n], column[first // n]
    live = (nodes >= 0) & (weights >= 0)
    spread = np.broadcast_to(number[first, None], live.shape)[live]
    # Ciphertexts without any term are exact zeros: the others are numbered anew.
    used, dense = np.unique(spread, return_inverse=True)
    terms = linear.Terms(
        dense.reshape(-1),
        np.broadcast_to(at.reshape(-1)[first, None], live.shape)[live],
        nodes[live],
        columns[live],
        weights[live].astype(np.int64),
    )

    def emit() -> tuple[np.ndarray, np.ndarray]:
        if not len(used):
            return np.full((r, n), -1), at
        table = np.full(int(number.max()) + 1, -1, np.int64)
        table[used] = linear.apply(b, source, terms, coefficients)
        return table[number].reshape(r, n), at

    return linear.estimate(b, terms, True) if len(used) else 0.0, emit


def _reduced(
    b: Builder,
    source: int,
    node: np.ndarray,
    column: np.ndarray,
    weight: np.ndarray,
    coefficients: Any,
) -> tuple[float, Emit]:
    r, n, c = weight.shape
    row = np.repeat(np.arange(r), c)
    again = ranks(unique_rows(np.stack([row, node.reshape(-1), column.reshape(-1)], 1))[1])

    def spread(table: np.ndarray) -> np.ndarray:
        return np.broadcast_to(table.reshape(r, 1, c), weight.shape).reshape(-1)

    cells = np.stack(
        [
            spread(node),
            np.tile(np.repeat(np.arange(n), c), r),
            spread(column),
            weight.reshape(-1).astype(np.int64),
            spread(again),
        ],
        1,
    )
    live = (cells[:, 0] >= 0) & (cells[:, 3] >= 0)
    distinct, inverse = unique_rows(cells[live])
    layer = ranks((distinct[:, 0] * n + distinct[:, 1]) * b.columns + distinct[:, 2])
    keys, number = unique_rows(np.stack([distinct[:, 0], distinct[:, 1], layer], 1))
    spans = max(len(np.unique(column[k])) for k in range(min(r, 4))) if r else 1
    operands = max(len(np.unique(distinct[:, 0])), 1)
    results = max(len(keys) // operands, 1)
    cost = relative_cost(
        plain_products=len(keys),
        rescales=len(keys),
        rotations=float(results * np.log2(max(spans, 2)) * operands / max(c // max(spans, 1), 1)),
        additions=len(keys),
    )

    def emit() -> tuple[np.ndarray, np.ndarray]:
        places = np.full(len(cells), -1, np.int64)
        if len(distinct):
            terms = linear.Terms(
                number, distinct[:, 2], distinct[:, 0], distinct[:, 2], distinct[:, 3]
            )
            made = np.asarray(linear.apply(b, source, terms, coefficients))
            places[np.flatnonzero(live)] = made[number][inverse]
        out_node, out_column, gain = reduce.apply(
            b, source, places.reshape(r * n, c), cells[:, 2].reshape(r * n, c)
        )
        assert gain == 1.0, "masked copies are summed once each"
        return out_node.reshape(r, n), out_column.reshape(r, n)

    return cost, emit
