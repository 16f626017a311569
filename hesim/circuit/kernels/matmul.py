"""Products of an encrypted tensor by a public matrix, in the cheapest of three layouts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.kernels import linear, reduce
from hesim.circuit.layout import ranks, unique_rows

__all__ = ["apply"]


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
    """
    r, n, c = weight.shape
    plans: list[tuple[float, Callable[[], tuple[np.ndarray, np.ndarray]]]] = []

    def direct(out_key, out_column):
        live = node >= 0
        keep = np.broadcast_to(live[:, None, :], weight.shape).reshape(-1)
        _, number = unique_rows(out_key)
        number = number.reshape(r, n)
        spread = np.broadcast_to(number[:, :, None], weight.shape).reshape(-1)[keep]
        # Ciphertexts without any term are exact zeros: renumber the others.
        used, dense = np.unique(spread, return_inverse=True)
        terms = linear.Terms(
            dense.reshape(-1),
            np.broadcast_to(out_column[:, :, None], weight.shape).reshape(-1)[keep],
            np.broadcast_to(node[:, None, :], weight.shape).reshape(-1)[keep],
            np.broadcast_to(column[:, None, :], weight.shape).reshape(-1)[keep],
            weight.reshape(-1)[keep].astype(np.int64),
        )

        def emit():
            if not len(used):
                return np.full((r, n), -1), out_column
            made = linear.apply(b, source, terms, coefficients)
            table = np.full(int(number.max()) + 1, -1, np.int64)
            table[used] = made
            return table[number], out_column

        return linear.estimate(b, terms, True) if len(used) else 0.0, emit

    same_column = bool(np.all(column == column[:, :1]))
    distinct_weights = (
        unique_rows(weight.reshape(r, -1).astype(np.int64))[1] if n * c else np.zeros(r, int)
    )
    if same_column:
        rows_class = unique_rows(node)[1]
        at = np.broadcast_to(column[:, :1], (r, n))
        # Rows that share a place but meet other weights need a layer of their own.
        pairs, pair = unique_rows(np.stack([rows_class, column[:, 0], distinct_weights], 1))
        layer = ranks(pairs[:, 0] * b.columns + pairs[:, 1])[pair]
        key = np.stack([np.repeat(rows_class, n), np.repeat(layer, n), np.tile(np.arange(n), r)], 1)
        plans.append(direct(key, at))
    else:
        target = np.arange(n) % c
        block = np.arange(n) // c
        places, place = unique_rows(
            np.stack([node[:, target].reshape(-1), column[:, target].reshape(-1)], 1)
        )
        other = unique_rows(
            np.stack(
                [
                    place,
                    np.tile(np.arange(n), r),
                    np.repeat(distinct_weights, n),
                    np.tile(block, r),
                ],
                1,
            )
        )[0]
        clash = ranks(other[:, 0] * (block.max() + 1) + other[:, 3])
        if clash.max(initial=0) == 0 and np.all(node >= 0):
            key = np.stack([node[:, target].reshape(-1), np.tile(block, r)], 1)
            plans.append(direct(key, column[:, target]))
        plans.append(_reduced(b, source, node, column, weight, coefficients))
    return min(plans, key=lambda plan: plan[0])[1]()


def _reduced(b: Builder, source: int, node, column, weight, coefficients):
    r, n, c = weight.shape
    cells = np.stack(
        [
            np.broadcast_to(node[:, None, :], weight.shape).reshape(-1),
            np.tile(np.repeat(np.arange(n), c), r),
            np.broadcast_to(column[:, None, :], weight.shape).reshape(-1),
            weight.reshape(-1).astype(np.int64),
        ],
        1,
    )
    live = cells[:, 0] >= 0
    distinct, inverse = unique_rows(cells[live])
    layer = ranks((distinct[:, 0] * n + distinct[:, 1]) * b.columns + distinct[:, 2])
    keys, number = unique_rows(np.stack([distinct[:, 0], distinct[:, 1], layer], 1))
    spans = max(len(np.unique(column[k])) for k in range(min(r, 4))) if r else 1
    results = max(len(keys) // max(len(np.unique(distinct[:, 0])), 1), 1)
    cost = linear.relative_cost(
        plain_products=len(keys),
        rescales=len(keys),
        rotations=results
        * np.log2(max(spans, 2))
        * len(np.unique(distinct[:, 0]))
        / max(c // max(spans, 1), 1),
        additions=len(keys),
    )

    def emit():
        terms = linear.Terms(number, distinct[:, 2], distinct[:, 0], distinct[:, 2], distinct[:, 3])
        made = np.asarray(linear.apply(b, source, terms, coefficients))
        places = np.full(len(cells), -1, np.int64)
        places[np.flatnonzero(live)] = made[number][inverse]
        out_node, out_column, gain = reduce.apply(
            b, source, places.reshape(r * n, c), cells[:, 2].reshape(r * n, c)
        )
        assert gain == 1.0, "masked copies are summed once each"
        return out_node.reshape(r, n), out_column.reshape(r, n)

    return cost, emit
