"""Gains that public products are asked to give, so that a constant factor costs no level later.

A polynomial first maps its domain to [-1, 1]: a product by a constant, one level. Where a public
matrix or mask comes before it, with sums, products and moves in between, the constant goes into
those coefficients instead: the gain of their result is chosen so that the slots already hold what
the polynomial wants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hesim.circuit import gains
from hesim.circuit.publics import Publics
from hesim.primitives import PRIMITIVES
from hesim.program import Equation, Program, Var

__all__ = ["LINEAR", "expected_gains", "numbers", "public_product", "wishes"]

_MOST_BITS = 6.0
"""Bits of a gain beyond which it is not wished for: slots would lose as much precision."""

LINEAR = ("add", "add_any", "sub", "neg", "reduce_sum", "slice")
"""Operations that hand the gain of their operands on."""


def wishes(program: Program, publics: Publics) -> dict[int, float]:
    """Per value id of a public product's result, the gain that it should have."""
    wanted: dict[int, float] = {}
    for eqn in reversed(program.ops):
        if eqn.name == "polynomial":
            scale = abs(eqn.params["poly"].scale)
            if scale > 0.0:
                _wish(wanted, eqn.inputs[0], 1.0 / scale)
            continue
        gain = wanted.get(eqn.outputs[0].id)
        if gain is not None:
            for v, each in _asked(eqn, gain, publics):
                _wish(wanted, v, each)
    return {
        v.id: wanted[v.id]
        for eqn in program.ops
        for v in eqn.outputs
        if v.id in wanted and public_product(eqn, publics)
    }


def _wish(wanted: dict[int, float], value: object, gain: float) -> None:
    if isinstance(value, Var) and value.encrypted and abs(math.log2(gain)) <= _MOST_BITS:
        wanted.setdefault(value.id, gain)


def _asked(eqn: Equation, gain: float, publics: Publics) -> list[tuple[object, float]]:
    """What an operation asks of its operands for its result to have this gain."""
    secret = [v for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
    both = len(eqn.inputs) == len(secret) == 2
    if eqn.name in ("add", "add_any") and both and secret[0] is secret[1]:
        return [(secret[0], gain / 2.0)]
    if eqn.name in LINEAR or PRIMITIVES[eqn.name].moves:
        return [(v, gain) for v in secret]
    if eqn.name in ("mul", "dot_general") and both or eqn.name == "square":
        return [(v, math.sqrt(gain)) for v in secret]
    if eqn.name == "integer_pow" and eqn.params["y"] > 0:
        return [(v, gain ** (1.0 / eqn.params["y"])) for v in secret]
    number = _number(eqn, publics)
    return [(v, gain / abs(number)) for v in secret] if number else []


def _number(eqn: Equation, publics: Publics) -> float | None:
    """The constant by which an operation multiplies, None if it does something else."""
    if eqn.name not in ("mul", "div"):
        return None
    public = [v for v in eqn.inputs if not v.encrypted]
    found = publics.uniform(public[0]) if public else None
    if not found or not math.isfinite(found):
        return None
    return 1.0 / found if eqn.name == "div" else found


def public_product(eqn: Equation, publics: Publics) -> bool:
    """Whether an operation multiplies by public coefficients that are not all the same."""
    if eqn.name not in ("dot_general", "conv_general_dilated", "mul", "div"):
        return False
    return any(not v.encrypted for v in eqn.inputs) and _number(eqn, publics) is None


def numbers(program: Program, publics: Publics) -> dict[int, float | None]:
    """By index of an equation, the constant by which it multiplies, None if it does otherwise."""
    return {eqn.index: _number(eqn, publics) for eqn in program.ops}


def expected_gains(
    program: Program,
    publics: Publics,
    wished: Mapping[int, float],
    known: Mapping[int, float | None] | None = None,
) -> dict[int, float]:
    """Per value id, the gain that it will have, as far as layouts leave it alone.

    known: `numbers` of the program, if they are.
    """
    known = numbers(program, publics) if known is None else known
    out = {v.id: 1.0 for v in program.inputs if v.encrypted}
    for eqn in program.ops:
        secret = [out[v.id] for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
        for v in eqn.outputs:
            out[v.id] = wished.get(v.id) or _gain(eqn, secret, known[eqn.index])
    return out


def _gain(eqn: Equation, secret: list[float], number: float | None) -> float:
    first = secret[0] if secret else 1.0
    if eqn.name == "polynomial":
        return 1.0
    both = len(eqn.inputs) == len(secret) == 2
    if eqn.name in ("add", "add_any", "sub") and both:
        if eqn.inputs[0] is eqn.inputs[1]:
            return 2.0 * first
        sign = -1 if eqn.name == "sub" else 1
        met = gains.meeting(first, sign * secret[1])
        if met is not None:
            return met[1]
        return secret[1] if gains.scales_left(first, secret[1]) else first
    if eqn.name in ("mul", "dot_general") and both:
        return first * secret[1]
    if eqn.name == "square":
        return first * first
    if eqn.name == "integer_pow":
        return first ** eqn.params["y"]
    if number is not None:
        return first * number
    return -first if eqn.name == "neg" else first
