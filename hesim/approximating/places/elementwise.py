"""The primitives that work element by element, as functions of float64 NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

__all__ = ["FUNCTIONS", "Function", "elementwise"]

Function = Callable[..., Any]
"""Of float64 and bool arrays, one for each operand."""


def _same(x: Any) -> Any:
    return x


def _selected(which: Any, *cases: Any) -> Any:
    return np.select([np.asarray(which) == k for k in range(len(cases))], cases)


def _clipped(low: Any, x: Any, high: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _root(x: Any) -> Any:
    return 1.0 / np.sqrt(x)


FUNCTIONS: dict[str, Function] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "square": np.square,
    "max": np.maximum,
    "min": np.minimum,
    "clamp": _clipped,
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "pow": np.power,
    "sqrt": np.sqrt,
    "rsqrt": _root,
    "cbrt": np.cbrt,
    "tanh": np.tanh,
    "logistic": special.expit,
    "erf": special.erf,
    "erfc": special.erfc,
    "erf_inv": special.erfinv,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "lgamma": special.gammaln,
    "digamma": special.digamma,
    "bessel_i0e": special.i0e,
    "bessel_i1e": special.i1e,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
    "select_n": _selected,
    "is_finite": np.isfinite,
    "copy": _same,
    "copy_p": _same,
    "stop_gradient": _same,
    "reduce_precision": _same,
}
"""Of a primitive; steps (floor, round …) are left out, since no polynomial follows them."""


def elementwise(eqn: Any) -> Function | None:
    """What a jaxpr equation computes of each element; None if it is not of this kind, or if
    integers are involved.
    """
    name = eqn.primitive.name
    if any(jnp.issubdtype(v.aval.dtype, jnp.integer) for v in eqn.outvars):
        return None
    if name == "integer_pow":
        power = float(eqn.params["y"])
        return lambda x: np.power(x, power)
    if name == "convert_element_type":
        return _converted(eqn)
    return FUNCTIONS.get(name)


def _converted(eqn: Any) -> Function | None:
    old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    if old == new or jnp.issubdtype(old, jnp.floating) and jnp.issubdtype(new, jnp.floating):
        return _same
    if old == np.bool_ and jnp.issubdtype(new, jnp.floating):
        return lambda x: np.asarray(x, np.float64)
    return None
