"""Rules of elementwise operations: sums, products, powers, polynomials, refreshes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit import gains
from hesim.circuit.kernels import elementwise
from hesim.circuit.kernels import polynomial as chebyshev
from hesim.circuit.layout import Tensor
from hesim.program import Equation, Literal, Var

if TYPE_CHECKING:
    from hesim.circuit.lower import Lowering

__all__ = [
    "add",
    "div",
    "identity",
    "integer_pow",
    "mul",
    "neg",
    "polynomial",
    "refresh",
    "square",
    "sub",
]


def identity(lo: Lowering, eqn: Equation) -> list[Tensor]:
    out = []
    for var, value in zip(eqn.outputs, eqn.inputs, strict=False):
        x = lo.tensor(value)
        out.append(lo.result(var, x.node, x.column, x.gain))
    return out


def add(lo: Lowering, eqn: Equation, sign: int = 1) -> list[Tensor]:
    (var,), (a, b) = eqn.outputs, eqn.inputs
    if a.encrypted and b.encrypted:
        return [lo.sum(var, lo.spread(a, var), lo.spread(b, var), sign)]
    if a.encrypted:
        return [lo.plus_public(var, lo.spread(a, var), b, float(sign))]
    x = lo.spread(b, var)
    turned = Tensor(x.node, x.column, sign * x.gain, x.batch_axis, x.shape)
    return [lo.plus_public(var, turned, a, 1.0)]


def sub(lo: Lowering, eqn: Equation) -> list[Tensor]:
    return add(lo, eqn, -1)


def neg(lo: Lowering, eqn: Equation) -> list[Tensor]:
    x = lo.tensor(eqn.inputs[0])
    return [lo.result(eqn.outputs[0], x.node, x.column, -x.gain)]


def mul(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), (a, b) = eqn.outputs, eqn.inputs
    if a.encrypted and b.encrypted:
        left = lo.spread(a, var)
        return _product(lo, var, left, left if a is b else lo.spread(b, var))
    secret, public = (a, b) if a.encrypted else (b, a)
    return [_scaled(lo, var, lo.spread(secret, var), public, "value")]


def div(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), (x, divisor) = eqn.outputs, eqn.inputs
    return [_scaled(lo, var, lo.spread(x, var), divisor, "inverse")]


def _scaled(lo: Lowering, var: Var, x: Tensor, value: Var | Literal, kind: str) -> Tensor:
    number = lo.publics.uniform(value)
    if number == 0.0 and kind == "value":
        return lo.zero(var)
    if number is not None and np.isfinite(number) and number != 0.0:
        return lo.times(var, x, number if kind == "value" else 1.0 / number)
    operand, index, stride = lo.public(value, var.shape, lo.axis(var), kind)
    size = _far_from_one(lo.publics.magnitude(value)) if kind == "value" else 1.0
    node, column = elementwise.scaled_by_public(
        lo.b, lo.source, x, operand, index, stride, 1.0 / size
    )
    return lo.times(var, lo.result(var, node, column, x.gain), size)


def _far_from_one(magnitude: float) -> float:
    """Of public factors all far from 1, the size that is kept as a gain: encoded as they are, small
    ones would leave the slots below their noise, which a later large factor makes large.
    """
    usable = magnitude > 0.0 and gains.representable(magnitude)
    return 1.0 if not usable or gains.stays_pending(magnitude) else magnitude


def _squared(lo: Lowering, var: Var, a: Tensor, b: Tensor) -> Tensor:
    same = a is b
    a = lo.bounded(a)
    b = a if same else lo.bounded(b)
    left, right = (
        (t.node.reshape(-1, 1).astype(np.int64), t.column.reshape(-1, 1).astype(np.int64))
        for t in (a, b)
    )
    return lo.product(var, left, right, a.gain * b.gain)


def square(lo: Lowering, eqn: Equation) -> list[Tensor]:
    x = lo.tensor(eqn.inputs[0])
    return _product(lo, eqn.outputs[0], x, x)


def _product(lo: Lowering, var: Var, a: Tensor, b: Tensor) -> list[Tensor]:
    """a * b; left to the sum where one follows, which then relinearizes and rescales once."""
    if lo.only_summed(var):
        lo.pending[var.id] = (a, b)
        return []
    return [_squared(lo, var, a, b)]


def integer_pow(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), y = eqn.outputs, eqn.params["y"]
    powers = {1: lo.tensor(eqn.inputs[0])}
    if y == 0:
        return [lo.constant(var, 1.0)]

    def power(k: int) -> Tensor:
        if k not in powers:
            half = 1 << ((k - 1).bit_length() - 1)
            powers[k] = _squared(lo, var, power(half), power(k - half))
        return powers[k]

    return [power(y)]


def polynomial(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    poly = eqn.params["poly"]
    if poly.degree == 0:
        return [lo.constant(var, float(poly.coefficients[0]))]
    out = chebyshev.apply(lo.b, lo.source, elementwise.explicit(lo.b, lo.source, x), poly)
    return [lo.result(var, out.node, out.column, out.gain)]


def refresh(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    nodes = [int(n) for n in x.nodes]
    if not nodes:
        return [x]
    lo.b.begin(lo.source)
    made = lo.b.end([lo.b.refresh(n) for n in nodes], refreshed=True)
    renamed = lo.renamed(x.node, dict(zip(nodes, made, strict=True)))
    return [lo.result(var, renamed, x.column, x.gain)]
