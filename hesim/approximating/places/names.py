"""Which well-known function an expression is, found by its values."""

from __future__ import annotations

from typing import Any

import numpy as np

from approx.targets import NAMED
from hesim.approximating.places.expressions import FREE, Expression
from hesim.source import Frame

__all__ = ["known_name", "label", "rebased"]

_ANYWHERE = np.concatenate([np.linspace(-4.13, 4.37, 35), [-0.011, 0.013]])
_POSITIVE = np.geomspace(0.07, 9.1, 35)
_REAL = (
    *("exp", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "softplus", "erf", "relu", "sign"),
    "abs",
)
_OF_POSITIVE = ("inv", "inv_sqrt", "sqrt", "log")
_DIGITS = 2e-6
"""Relative difference that the rounding of constants to float32 leaves."""

_STEP = 1e-4
"""Of the difference quotient that shows a derivative."""

_PLAIN = frozenset({"x", "add", "sub", "add_any", "mul", "neg", "square", "copy", "copy_p"}) | {
    *("stop_gradient", "convert_element_type", "reduce_precision", "integer_pow")
}
_MOST_TOLD = 3
"""Primitives that the name of a function without one is made of."""

_SHIFTS = frozenset({"add", "sub", "add_any", "neg"})


def known_name(function: Expression) -> str | None:
    """The name that `approx.fit` has for a function of one value; None if it has none."""
    for points, names in ((_ANYWHERE, _REAL), (_POSITIVE, _OF_POSITIVE)):
        values = function(points)
        if not np.all(np.isfinite(values)):
            continue
        for name in names:
            wanted = NAMED[name](points)
            if np.max(np.abs(values - wanted)) <= _DIGITS * max(1.0, float(np.max(np.abs(wanted)))):
                return name
    return None


def derivative_of(function: Expression) -> str | None:
    """The name of the function that this one is the derivative of."""
    values = function(_ANYWHERE)
    if not np.all(np.isfinite(values)):
        return None
    for name in _REAL:
        slopes = (NAMED[name](_ANYWHERE + _STEP) - NAMED[name](_ANYWHERE - _STEP)) / (2 * _STEP)
        if np.max(np.abs(values - slopes)) <= 1e-5 * max(1.0, float(np.max(np.abs(slopes)))):
            return name
    return None


def rebased(function: Expression, root: Any) -> tuple[Expression, Any]:
    """A function without what costs nothing at its beginning: sums with constants, and copies.

    Returns:
      (the rest, the variable that it is a function of).
    """
    while (gate := function.gate()) is not None and gate.name in _SHIFTS | FREE:
        function, root = function.rebased(gate), gate.var
    return function, root


def label(function: Expression, trail: tuple[Frame, ...]) -> str:
    """A name for a function that has none in `approx.fit`: the one that the caller called."""
    found = derivative_of(function)
    if found is not None:
        return "step" if found == "relu" else f"{found}'"
    for frame in reversed(trail):
        path = frame.file.replace("\\", "/")
        if path.endswith(("jax/_src/nn/functions.py", "jax/_src/ops/special.py")):
            return frame.function.split(".")[0].lstrip("_")
    told = [name for name in function.primitives() if name not in _PLAIN]
    return ", ".join(told[:_MOST_TOLD]) + (", …" if len(told) > _MOST_TOLD else "")
