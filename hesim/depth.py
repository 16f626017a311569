"""Levels that a Program needs at least, counted on tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hesim.primitives import PRIMITIVES

if TYPE_CHECKING:
    from hesim.program import Equation

__all__ = ["longest_path", "operation_depth"]


def operation_depth(equation: Equation) -> int:
    """Levels between the operands and the result of one operation, in the best layout."""
    return PRIMITIVES[equation.name].depth(equation)


def longest_path(equations: Iterable[Equation], *, anew: bool = False) -> int:
    """Levels on the longest path through encrypted values; `anew`: counted anew after each
    `refresh`.
    """
    depth: dict[int, int] = {}
    longest = 0
    for equation in equations:
        if not equation.encrypted:
            continue
        before = max((depth.get(getattr(v, "id", -1), 0) for v in equation.inputs), default=0)
        again = anew and equation.name == "refresh"
        after = 0 if again else before + operation_depth(equation)
        longest = max(longest, after)
        for v in equation.outputs:
            depth[v.id] = after
    return longest
