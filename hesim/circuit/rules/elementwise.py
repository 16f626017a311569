"""Rules of elementwise operations: sums, products, powers, polynomials, refreshes."""

from __future__ import annotations

import numpy as np

from hesim.circuit import gains
from hesim.circuit.context import Context
from hesim.circuit.kernels import elementwise
from hesim.circuit.kernels import polynomial as chebyshev
from hesim.circuit.layout import Tensor
from hesim.program import Equation, Literal, Var

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


def identity(ctx: Context, eqn: Equation) -> list[Tensor]:
    out = []
    for var, value in zip(eqn.outputs, eqn.inputs, strict=False):
        x = ctx.tensor(value)
        out.append(ctx.result(var, x.node, x.column, x.gain))
    return out


def add(ctx: Context, eqn: Equation, sign: int = 1) -> list[Tensor]:
    (var,), (a, b) = eqn.outputs, eqn.inputs
    if a.encrypted and b.encrypted:
        return [ctx.sum(var, ctx.spread(a, var), ctx.spread(b, var), sign)]
    if a.encrypted:
        return [ctx.plus_public(var, ctx.spread(a, var), b, float(sign))]
    x = ctx.spread(b, var)
    turned = Tensor(x.node, x.column, sign * x.gain, x.batch_axis, x.shape)
    return [ctx.plus_public(var, turned, a, 1.0)]


def sub(ctx: Context, eqn: Equation) -> list[Tensor]:
    return add(ctx, eqn, -1)


def neg(ctx: Context, eqn: Equation) -> list[Tensor]:
    x = ctx.tensor(eqn.inputs[0])
    return [ctx.result(eqn.outputs[0], x.node, x.column, -x.gain)]


def mul(ctx: Context, eqn: Equation) -> list[Tensor]:
    (var,), (a, b) = eqn.outputs, eqn.inputs
    if a.encrypted and b.encrypted:
        left = ctx.spread(a, var)
        return _product(ctx, var, left, left if a is b else ctx.spread(b, var))
    secret, public = (a, b) if a.encrypted else (b, a)
    return [_scaled(ctx, var, ctx.spread(secret, var), public, "value")]


def div(ctx: Context, eqn: Equation) -> list[Tensor]:
    (var,), (x, divisor) = eqn.outputs, eqn.inputs
    return [_scaled(ctx, var, ctx.spread(x, var), divisor, "inverse")]


def _scaled(ctx: Context, var: Var, x: Tensor, value: Var | Literal, kind: str) -> Tensor:
    number = ctx.publics.uniform(value)
    if number == 0.0 and kind == "value":
        return ctx.zero(var)
    if number is not None and np.isfinite(number) and number != 0.0:
        return ctx.times(var, x, number if kind == "value" else 1.0 / number)
    operand, index, stride = ctx.public(value, var.shape, ctx.axis(var), kind)
    size = _far_from_one(ctx.publics.magnitude(value)) if kind == "value" else 1.0
    node, column = elementwise.scaled_by_public(
        ctx.b, ctx.source, x, operand, index, stride, 1.0 / size
    )
    return ctx.times(var, ctx.result(var, node, column, x.gain), size)


def _far_from_one(magnitude: float) -> float:
    """Of public factors all far from 1, the size that is kept as a gain: encoded as they are, small
    ones would leave the slots below their noise, which a later large factor makes large.
    """
    usable = magnitude > 0.0 and gains.representable(magnitude)
    return 1.0 if not usable or gains.stays_pending(magnitude) else magnitude


def _squared(ctx: Context, var: Var, a: Tensor, b: Tensor) -> Tensor:
    same = a is b
    a = ctx.bounded(a)
    b = a if same else ctx.bounded(b)
    left, right = (
        (t.node.reshape(-1, 1).astype(np.int64), t.column.reshape(-1, 1).astype(np.int64))
        for t in (a, b)
    )
    return ctx.product(var, left, right, a.gain * b.gain)


def square(ctx: Context, eqn: Equation) -> list[Tensor]:
    x = ctx.tensor(eqn.inputs[0])
    return _product(ctx, eqn.outputs[0], x, x)


def _product(ctx: Context, var: Var, a: Tensor, b: Tensor) -> list[Tensor]:
    """a * b; left to the sum where one follows, which then relinearizes and rescales once."""
    if ctx.only_summed(var):
        ctx.pending[var.id] = (a, b)
        return []
    return [_squared(ctx, var, a, b)]


def integer_pow(ctx: Context, eqn: Equation) -> list[Tensor]:
    (var,), y = eqn.outputs, eqn.params["y"]
    powers = {1: ctx.tensor(eqn.inputs[0])}
    if y == 0:
        return [ctx.constant(var, 1.0)]

    def power(k: int) -> Tensor:
        if k not in powers:
            half = 1 << ((k - 1).bit_length() - 1)
            powers[k] = _squared(ctx, var, power(half), power(k - half))
        return powers[k]

    return [power(y)]


def polynomial(ctx: Context, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, ctx.tensor(eqn.inputs[0])
    poly = eqn.params["poly"]
    if poly.degree == 0:
        return [ctx.constant(var, float(poly.coefficients[0]))]
    out = chebyshev.apply(ctx.b, ctx.source, elementwise.explicit(ctx.b, ctx.source, x), poly)
    return [ctx.result(var, out.node, out.column, out.gain)]


def refresh(ctx: Context, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, ctx.tensor(eqn.inputs[0])
    nodes = [int(n) for n in x.nodes]
    if not nodes:
        return [x]
    ctx.b.begin(ctx.source)
    made = ctx.b.end([ctx.b.refresh(n) for n in nodes], refreshed=True)
    renamed = ctx.renamed(x.node, dict(zip(nodes, made, strict=True)))
    return [ctx.result(var, renamed, x.column, x.gain)]
