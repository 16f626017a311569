"""A function of one value, as the operations of a jaxpr between that value and another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hesim.approximating.places.elementwise import Function

__all__ = ["Expression", "FREE", "INPUT"]

FREE = frozenset({"copy", "copy_p", "stop_gradient", "convert_element_type", "reduce_precision"})
"""Operations that give their operand."""


class Expression:
    """One operation on expressions of the same value, and on numbers; called with values, it is the
    function.

    Attributes:
      name: of the primitive; "x" for the value itself.
      function: what it computes.
      operands: expressions, and numbers.
      var: the variable of the jaxpr that holds it.
      key: the same for equal functions, whatever their shapes and dtypes.
    """

    def __init__(
        self, name: str, function: Function, operands: Sequence[Any], var: Any, detail: str = ""
    ):
        self.name = name
        self.function = function
        self.operands = tuple(operands)
        self.var = var
        parts = (name, detail, *(_key(operand) for operand in self.operands))
        same = name in FREE  # a conversion is there or not by the dtypes of the arguments
        self.key = parts[2] if same else hashlib.sha1("|".join(parts).encode()).hexdigest()[:16]

    def __call__(self, x: Any) -> np.ndarray:
        x = np.asarray(x, np.float64)
        with np.errstate(all="ignore"):
            out = self._evaluate(x, {})
        return np.broadcast_to(np.asarray(out, np.float64), x.shape)

    def primitives(self) -> list[str]:
        """Names of the operations, each once, the outermost first."""
        seen: set[int] = set()
        names: dict[str, None] = {}
        waiting: list[Expression] = [self]
        while waiting:
            top = waiting.pop(0)
            if id(top) not in seen:
                seen.add(id(top))
                names[top.name] = None
                waiting += [o for o in top.operands if isinstance(o, Expression)]
        return list(names)

    def _evaluate(self, x: Any, done: dict[int, Any]) -> Any:
        """Values, each shared operation once."""
        waiting = [self]
        while waiting:
            top = waiting[-1]
            below = [o for o in top.operands if isinstance(o, Expression) and id(o) not in done]
            if below:
                waiting += below
                continue
            waiting.pop()
            if id(top) not in done:
                values = [done[id(o)] if isinstance(o, Expression) else o for o in top.operands]
                done[id(top)] = x if top.name == "x" else top.function(*values)
        return done[id(self)]

    def rebased(self, new: Expression) -> Expression:
        """The same function of the value that `new`, a part of it, stands for."""
        return self._rebased(new, {id(new): INPUT})

    def _rebased(self, new: Expression, done: dict[int, Expression]) -> Expression:
        if id(self) not in done:
            operands = [
                o._rebased(new, done) if isinstance(o, Expression) else o for o in self.operands
            ]
            made = Expression.__new__(Expression)
            made.name, made.function, made.var = self.name, self.function, self.var
            made.operands = tuple(operands)
            parts = (self.name, self.key, *(_key(o) for o in operands))
            same = self.name in FREE
            made.key = parts[2] if same else hashlib.sha1("|".join(parts).encode()).hexdigest()[:16]
            done[id(self)] = made
        return done[id(self)]

    def gate(self) -> Expression | None:
        """The operation on the value itself through which all of the function passes; None if there
        is no such one.
        """
        first: dict[int, Expression] = {}
        seen: set[int] = set()
        waiting = [self]
        while waiting:
            top = waiting.pop()
            if id(top) in seen:
                continue
            seen.add(id(top))
            inner = [o for o in top.operands if isinstance(o, Expression)]
            if any(o.name == "x" for o in inner):
                first[id(top)] = top
            waiting += [o for o in inner if o.name != "x"]
        if len(first) != 1:
            return None
        (found,) = first.values()
        return None if found is self or len(found.operands) > 2 else found


def _key(operand: Any) -> str:
    if isinstance(operand, Expression):
        return operand.key
    return f"{float(np.float32(operand)):.6g}"  # constants differ in digits under x64


INPUT = Expression("x", lambda x: x, (), None)
