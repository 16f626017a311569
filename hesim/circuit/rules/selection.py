"""Rule of `select_n` by a public mask: known at compile time, or an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hesim.circuit.context import Context
from hesim.circuit.kernels import elementwise
from hesim.circuit.layout import Tensor, linear_index
from hesim.program import Equation, Var

__all__ = ["select_n"]


def select_n(ctx: Context, eqn: Equation) -> list[Tensor]:
    """A choice that is known, and alike in all members, only picks places; another is a mask."""
    (var,) = eqn.outputs
    which, *cases = eqn.inputs
    known = _of_one_member(ctx.program.constant(which), var.shape, ctx.axis(var))
    if known is not None:
        return [_picked(ctx, eqn, var, known, cases)]
    index = np.arange(var.size).reshape(var.shape)
    split = linear_index(index, ctx.axis(var))
    assert split is not None, "masks have the result's own shape"
    total: Tensor | None = None
    for k, case in enumerate(cases):
        if not case.encrypted:
            continue
        x = ctx.spread(case, var)
        operand = ctx.publics.mask(eqn, k)
        node, column = elementwise.scaled_by_public(ctx.b, ctx.source, x, operand, *split, 1.0)
        part = ctx.result(var, node, column, x.gain)
        total = part if total is None else ctx.sum(var, total, part, 1)
    assert total is not None
    return [_plus_public_cases(ctx, eqn, var, total, cases)]


def _of_one_member(
    chosen: np.ndarray | None, shape: tuple[int, ...], axis: int | None
) -> np.ndarray | None:
    """The choices of every member, or None where they differ or are not known."""
    if chosen is None:
        return None
    whole = np.broadcast_to(chosen.astype(np.int64), shape)
    if axis is None:
        return whole
    first = np.asarray(whole.take(0, axis=axis))
    return first if np.all(whole == np.expand_dims(first, axis)) else None


def _picked(
    ctx: Context, eqn: Equation, var: Var, chosen: np.ndarray, cases: Sequence[Any]
) -> Tensor:
    secret = [k for k, case in enumerate(cases) if case.encrypted and np.any(chosen == k)]
    tensors = [ctx.tensor(cases[k]) for k in secret]
    gain = max((x.gain for x in tensors if len(x.nodes)), key=abs, default=1.0)
    node = np.full(chosen.shape, -1, np.int64)
    column = np.zeros_like(node)
    for k in secret:
        x = ctx.with_gain(ctx.spread(cases[k], var), gain)
        node = np.where(chosen == k, x.node, node)
        column = np.where(chosen == k, x.column, column)
    total = ctx.result(var, node, column, gain)
    if all(case.encrypted or not np.any(chosen == k) for k, case in enumerate(cases)):
        return total
    return _plus_public_cases(ctx, eqn, var, total, cases)


def _plus_public_cases(
    ctx: Context, eqn: Equation, var: Var, total: Tensor, cases: Sequence[Any]
) -> Tensor:
    for k, case in enumerate(cases):
        if not case.encrypted and ctx.publics.uniform(case) != 0.0:
            index = np.arange(var.size).reshape(var.shape)
            total = ctx.plus_operand(var, total, ctx.publics.selected(eqn, k), index)
    return total
