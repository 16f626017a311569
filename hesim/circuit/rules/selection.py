"""Rule of `select_n` by a public mask: known at compile time, or an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.batching import linear_index
from hesim.circuit.kernels import elementwise
from hesim.circuit.layout import Tensor, stripped
from hesim.circuit.rules.elementwise import zeros_like
from hesim.errors import LayoutError
from hesim.program import Equation, Var

if TYPE_CHECKING:
    from hesim.circuit.lower import Lowering

__all__ = ["select_n"]


def select_n(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,) = eqn.outputs
    which, *cases = eqn.inputs
    chosen = lo.program.constant(which)
    if chosen is not None:
        return [_select_known(lo, eqn, var, np.asarray(chosen).astype(np.int64), cases)]
    total: Tensor | None = None
    for k, case in enumerate(cases):
        if not case.encrypted:
            continue
        x = lo.spread(case, var)
        operand = lo.publics.mask(eqn, k)
        index = np.arange(var.size).reshape(var.shape)
        first, stride = linear_index(index, lo.axis(var)) or (index, 0)
        node, column = elementwise.scaled_by_public(lo.b, lo.source, x, operand, first, stride, 1.0)
        part = lo.result(var, node, column, x.gain)
        total = part if total is None else lo.sum(var, total, part, 1)
    assert total is not None
    return [_plus_cases(lo, eqn, var, total, cases)]


def _plus_cases(lo: Lowering, eqn: Equation, var: Var, total: Tensor, cases) -> Tensor:
    for k, case in enumerate(cases):
        if case.encrypted or lo.publics.uniform(case) == 0.0:
            continue
        total = elementwise.explicit(lo.b, lo.source, total)
        index = np.arange(var.size).reshape(var.shape)
        first, stride = linear_index(index, lo.axis(var)) or (index, 0)
        node, column = elementwise.add_public(
            lo.b, lo.source, total, lo.publics.selected(eqn, k), first, stride, 1.0 / total.gain
        )
        total = lo.result(var, node, column, total.gain)
    return total


def _select_known(lo: Lowering, eqn: Equation, var: Var, chosen: np.ndarray, cases) -> Tensor:
    """A choice known at compile time only picks places."""
    chosen = np.broadcast_to(chosen, var.shape)
    axis = lo.axis(var)
    if axis is not None:
        first = chosen.take(0, axis=axis)
        if np.any(chosen != np.expand_dims(first, axis)):
            raise LayoutError(
                "a selection differs between members of the batch; compile with batch=False"
            )
        chosen = first
    secret = [k for k, case in enumerate(cases) if case.encrypted and np.any(chosen == k)]
    if not secret:
        secret = [k for k, case in enumerate(cases) if case.encrypted][:1]
    gain = lo.tensor(cases[secret[0]]).gain
    node = np.full(stripped(var.shape, axis), -1, np.int64)
    column = np.zeros_like(node)
    for k in secret:
        x = lo.with_gain(lo.spread(cases[k], var), gain)
        node = np.where(chosen == k, x.node, node)
        column = np.where(chosen == k, x.column, column)
    total = lo.result(var, node, column, gain)
    used = [case for k, case in enumerate(cases) if not case.encrypted and np.any(chosen == k)]
    if not used:
        return total
    if not len(total.nodes):
        total = zeros_like(lo, var, lo.tensor(cases[secret[0]]))
    return _plus_cases(lo, eqn, var, total, cases)
