"""Rules of reductions: sums, products and running sums over axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hesim.circuit import sizes
from hesim.circuit.context import Context
from hesim.circuit.kernels import elementwise, linear, matmul, product, reduce
from hesim.circuit.layout import Tensor
from hesim.circuit.rules.contraction import check_size
from hesim.program import Equation, Var

__all__ = ["cumsum", "reduce_prod", "reduce_sum"]

_PAIR_BYTES = 9
"""Bytes of a running sum for each pair of elements: whether one adds to the other, and its weight.
"""


def reduce_sum(ctx: Context, eqn: Equation) -> list[Tensor]:
    (var,), (operand,) = eqn.outputs, eqn.inputs
    assert isinstance(operand, Var)
    if operand.id in ctx.pending:
        a, b = ctx.pending.pop(operand.id)
        same = a is b
        a = ctx.bounded(a)
        b = a if same else ctx.bounded(b)
        left, right = _rows(a, eqn.params["axes"]), _rows(b, eqn.params["axes"])
        check_size(ctx, left[0].size)
        return [ctx.product(var, left, right, a.gain * b.gain)]
    x = ctx.tensor(operand)
    node, column = _rows(x, eqn.params["axes"])
    out_node, out_column, gain = reduce.apply(ctx.b, ctx.source, node, column)
    return [ctx.result(var, out_node, out_column, x.gain * gain)]


def _rows(x: Tensor, axes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tables (results, terms) for a reduction over `axes` of the full shape."""
    batch = x.batch_axis
    gone = [a - (batch is not None and a > batch) for a in axes]
    kept = [k for k in range(x.node.ndim) if k not in gone]
    results = int(np.prod([x.node.shape[k] for k in kept], dtype=np.int64))
    terms = int(np.prod([x.node.shape[k] for k in gone], dtype=np.int64))
    node, column = (
        t.transpose([*kept, *gone]).reshape(results, terms).astype(np.int64)
        for t in (x.node, x.column)
    )
    return node, column


def reduce_prod(ctx: Context, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, ctx.tensor(eqn.inputs[0])
    node, column = _rows(x, eqn.params["axes"])
    if not node.shape[1]:
        return [ctx.constant(var, 1.0)]
    parts = [(node[:, k : k + 1], column[:, k : k + 1], x.gain) for k in range(node.shape[1])]
    while len(parts) > 1:
        half = []
        for (n1, c1, g1), (n2, c2, g2) in zip(parts[::2], parts[1::2], strict=False):
            made, at, gain = product.apply(ctx.b, ctx.source, (n1, c1), (n2, c2))
            half.append(
                (made[:, None].astype(np.int64), at[:, None].astype(np.int64), g1 * g2 * gain)
            )
        if len(parts) % 2:
            half.append(parts[-1])
        parts = half
    n, c, gain = parts[0]
    return [ctx.result(var, n, c, gain)]


def cumsum(ctx: Context, eqn: Equation) -> list[Tensor]:
    """Running sums: additions across ciphertexts, else a product by a triangle of ones."""
    (var,), x = eqn.outputs, ctx.tensor(eqn.inputs[0])
    axis = eqn.params["axis"]
    axis -= x.batch_axis is not None and axis > x.batch_axis
    node, column = (np.moveaxis(t, axis, -1) for t in (x.node, x.column))
    shape = node.shape
    n = shape[-1]
    node, column = (t.reshape(-1, n).astype(np.int64) for t in (node, column))
    order = range(n - 1, -1, -1) if eqn.params["reverse"] else range(n)

    def part(k: int) -> Tensor:
        return Tensor(node[:, k], column[:, k], 1.0, None, (len(node),))

    if np.all((column == column[:, :1]) | (node < 0)):
        total: Tensor | None = None
        sums = {}
        for k in order:
            here = part(k)
            if total is not None:
                here = Tensor(
                    *elementwise.add(ctx.b, ctx.source, total, here, (1, 1)), 1.0, None, here.shape
                )
            total = sums[k] = here
        made, at = (
            np.stack([getattr(sums[k], t) for k in range(n)], 1) for t in ("node", "column")
        )
    else:
        sizes.reserve(lambda: f"`cumsum` at {eqn.source}", _PAIR_BYTES * n * n)
        reach = np.tri(n, dtype=bool).T if eqn.params["reverse"] else np.tri(n, dtype=bool)
        weight = np.broadcast_to(np.where(reach, 0, -1), (len(node), n, n))
        check_size(ctx, weight.size)
        ones = linear.Coefficients(-1, literal=np.ones(1))
        made, at = matmul.apply(ctx.b, ctx.source, node, column, weight, ones)
    made, at = (np.moveaxis(t.reshape(shape), -1, axis) for t in (made, at))
    return [ctx.result(var, made, at, x.gain)]
