"""Levels that a Program needs at least, counted on tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hesim.program import Equation, Program

__all__ = ["operation_depth", "program_depth"]

_PRODUCTS = frozenset({"mul", "square", "dot_general", "div", "select_n", "conv_general_dilated"})


def operation_depth(equation: Equation) -> int:
    """Levels between the operands and the result of one operation, in the best layout."""
    name, params = equation.name, equation.params
    if name in _PRODUCTS:
        return 1
    if name == "polynomial":
        return params["poly"].depth
    if name == "integer_pow":
        return math.ceil(math.log2(params["y"])) if params["y"] > 1 else 0
    if name == "reduce_prod":
        operand = equation.inputs[0]
        terms = int(np.prod([operand.shape[a] for a in params["axes"]], dtype=np.int64))
        return math.ceil(math.log2(terms)) if terms > 1 else 0
    return 0


def program_depth(program: Program) -> int:
    """Levels on the longest path, counting anew after each `refresh`."""
    depth: dict[int, int] = {}
    longest = 0
    for equation in program.ops:
        before = max((depth.get(getattr(v, "id", -1), 0) for v in equation.inputs), default=0)
        after = 0 if equation.name == "refresh" else before + operation_depth(equation)
        longest = max(longest, after)
        for v in equation.outputs:
            depth[v.id] = after
    return longest
