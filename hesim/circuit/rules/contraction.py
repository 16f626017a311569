"""Rules of `dot_general`: contractions of two tensors, one of them or both encrypted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hesim.circuit.context import Context
from hesim.circuit.kernels import linear, matmul
from hesim.circuit.layout import Tensor
from hesim.circuit.sizes import TERM_BYTES
from hesim.errors import LayoutError
from hesim.program import Equation, Literal, Var

_LARGEST = 2 * 10**8
"""Terms of one contraction that the tables may hold."""

__all__ = ["check_size", "dot_general"]


def dot_general(ctx: Context, eqn: Equation) -> list[Tensor]:
    (var,), (a, b) = eqn.outputs, eqn.inputs
    (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
    letters = _dimensions(len(a.shape), len(b.shape), ca, cb, ba, bb)
    if a.encrypted and b.encrypted:
        return [_dot_encrypted(ctx, var, ctx.tensor(a), ctx.tensor(b), letters)]
    if a.encrypted:
        return [_dot_public(ctx, var, ctx.tensor(a), b, *letters)]
    return [_dot_public(ctx, var, ctx.tensor(b), a, letters[1], letters[0], letters[2])]


def _dimensions(
    rank_a: int,
    rank_b: int,
    ca: Sequence[int],
    cb: Sequence[int],
    ba: Sequence[int],
    bb: Sequence[int],
) -> tuple[list[int], list[int], list[int]]:
    """Labels of the dimensions of both operands and of the result, as in einsum."""
    labels_a: list[int] = [-1] * rank_a
    labels_b: list[int] = [-1] * rank_b
    label = 0
    out = []
    for i, j in zip(ba, bb, strict=True):
        labels_a[i] = labels_b[j] = label
        out.append(label)
        label += 1
    for i, j in zip(ca, cb, strict=True):
        labels_a[i] = labels_b[j] = label
        label += 1
    for labels in (labels_a, labels_b):
        for k, known in enumerate(labels):
            if known < 0:
                labels[k] = label
                out.append(label)
                label += 1
    return labels_a, labels_b, out


def _arranged(
    table: np.ndarray, labels: Sequence[int], order: Sequence[int], sizes: dict[int, int]
):
    """`table` with its axes in the given order of labels, absent ones broadcast."""
    present = [x for x in order if x in labels]
    moved = table.transpose([list(labels).index(x) for x in present])
    view = moved.reshape([sizes[x] if x in labels else 1 for x in order])
    return np.broadcast_to(view, [sizes[x] for x in order])


def _dot_encrypted(
    ctx: Context, var: Var, a: Tensor, b: Tensor, letters: tuple[list[int], list[int], list[int]]
) -> Tensor:
    la, lb, out = letters
    x, y = ctx.bounded(a), ctx.bounded(b)
    batch = ctx.axis(var)
    la = [k for i, k in enumerate(la) if i != x.batch_axis]
    lb = [k for i, k in enumerate(lb) if i != y.batch_axis]
    out = [k for i, k in enumerate(out) if i != batch]
    sizes = {**dict(zip(la, x.node.shape, strict=True)), **dict(zip(lb, y.node.shape, strict=True))}
    summed = [k for k in la if k in lb and k not in out]
    order = [*out, *summed]
    terms = int(np.prod([sizes[k] for k in summed], dtype=np.int64))
    results = int(np.prod([sizes[k] for k in out], dtype=np.int64))
    check_size(ctx, terms * results)

    def places(t: Tensor, labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
        def laid(table: np.ndarray) -> np.ndarray:
            arranged = _arranged(table, labels, order, sizes)
            return arranged.reshape(results, terms).astype(np.int64)

        return laid(t.node), laid(t.column)

    return ctx.product(var, places(x, la), places(y, lb), x.gain * y.gain)


def check_size(ctx: Context, terms: int) -> None:
    """LayoutError for more terms of one operation than tables, or memory, can hold."""
    if terms > _LARGEST:
        eqn = ctx.program.ops[ctx.source]
        raise LayoutError(
            f"{eqn.name} at {eqn.source} has {terms:,} terms for one batch member, more than the "
            f"{_LARGEST:,} that can be laid out; split the batch or the tensor."
        )
    ctx.b.reserve(TERM_BYTES * terms)


def _dot_public(
    ctx: Context,
    var: Var,
    x: Tensor,
    public: Var | Literal,
    ls: list[int],
    lp: list[int],
    out: list[int],
) -> Tensor:
    batch = ctx.axis(var)
    batch_label = out[batch] if batch is not None else None
    where = lp.index(batch_label) if batch_label in lp else None
    operand, index, stride = ctx.public(public, public.shape, where)
    lp = [k for k in lp if k != batch_label or where is None]
    ls = [k for i, k in enumerate(ls) if i != x.batch_axis]
    out = [k for i, k in enumerate(out) if i != batch]
    sizes = {**dict(zip(lp, index.shape, strict=True)), **dict(zip(ls, x.node.shape, strict=True))}
    summed = [k for k in ls if k in lp and k not in out]
    rows = [k for k in out if k in ls]  # the operand's batch and free dimensions
    fresh = [k for k in out if k not in ls]  # dimensions that only the public operand has
    order = [*rows, *fresh, *summed]
    r, n, c = (
        int(np.prod([sizes[k] for k in group], dtype=np.int64)) for group in (rows, fresh, summed)
    )
    check_size(ctx, r * n * c)
    node, column = (
        _arranged(t, ls, [*rows, *summed], sizes).reshape(r, c).astype(np.int64)
        for t in (x.node, x.column)
    )
    weight = _arranged(index, lp, order, sizes).reshape(r, n, c)
    made, at = matmul.apply(
        ctx.b, ctx.source, node, column, weight, linear.Coefficients(operand, stride)
    )
    shape = [sizes[k] for k in (*rows, *fresh)]
    perm = [[*rows, *fresh].index(k) for k in out]
    return ctx.result(
        var, made.reshape(shape).transpose(perm), at.reshape(shape).transpose(perm), x.gain
    )
