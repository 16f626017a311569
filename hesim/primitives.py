"""The primitives that encrypted values may pass through, and what to use instead of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from hesim.errors import NotHomomorphicError

if TYPE_CHECKING:
    from hesim.program import Literal, Var
    from hesim.source import Source

__all__ = ["IDENTITIES", "SUPPORTED", "check"]

IDENTITIES = frozenset(
    {
        "copy",
        "copy_p",
        "device_put",
        "name",
        "reshard",
        "layout_constraint",
        "stop_gradient",
        "optimization_barrier",
        "sharding_constraint",
        "reduce_precision",
    }
)
"""Primitives that leave encrypted values as they are."""

SUPPORTED = IDENTITIES | {
    *("add", "add_any", "sub", "neg", "mul", "square", "integer_pow", "div", "dot_general"),
    *("reduce_sum", "reduce_prod", "cumsum", "broadcast_in_dim", "reshape", "transpose"),
    *("slice", "dynamic_slice", "squeeze", "expand_dims", "concatenate", "split", "stack", "tile"),
    *("pad", "rev", "gather", "scatter", "scatter-add", "select_n", "conv_general_dilated"),
    *("convert_element_type", "polynomial", "refresh", "dynamic_update_slice"),
}
"""Primitives that encrypted values may pass through."""

_PLACES = {
    "dynamic_slice": slice(1, None),
    "dynamic_update_slice": slice(2, None),
    "gather": slice(1, 2),
    "scatter": slice(1, 2),
    "scatter-add": slice(1, 2),
}
"""Operands that say where."""

_TARGETS = {
    "exp": '"exp"',
    "exp2": "jnp.exp2",
    "expm1": "jnp.expm1",
    "erf": '"erf"',
    "erfc": "jax.scipy.special.erfc",
    "erf_inv": "jax.scipy.special.erfinv",
    "tanh": '"tanh"',
    "logistic": '"sigmoid"',
    "log": '"log"',
    "log1p": "jnp.log1p",
    "rsqrt": '"inv_sqrt"',
    "sqrt": '"sqrt"',
    "cbrt": "jnp.cbrt",
    "abs": '"abs"',
    "sign": '"sign"',
    "sin": "jnp.sin",
    "cos": "jnp.cos",
    "tan": "jnp.tan",
    "atan": "jnp.arctan",
    "sinh": "jnp.sinh",
    "cosh": "jnp.cosh",
}
"""First argument of the `approx.fit` call that replaces a function of one variable."""


_COMPARING = frozenset(
    {
        *("max", "min", "clamp", "sort", "argmax", "argmin", "reduce_max", "reduce_min", "top_k"),
        *("cummax", "cummin", "approx_top_k", "reduce_window_max", "reduce_window_min"),
        *("scatter-max", "scatter-min", "scatter_max", "scatter_min", "select_and_scatter_add"),
        *("select_and_gather_add", "select_and_scatter"),
    }
)
"""Primitives that ask which of two encrypted values is larger."""


def check(eqn: Any, operands: Sequence[Var | Literal], source: Source | None) -> None:
    """Says why an equation with an encrypted operand cannot be computed, if it cannot.

    Args:
      eqn: a jaxpr equation. operands: its operands. source: its place in the caller's code.

    Raises:
      NotHomomorphicError: additions and products cannot express it.
    """
    found = _objection(eqn, [v.encrypted for v in operands])
    if found is not None:
        raise NotHomomorphicError(eqn.primitive.name, source, *found)


def _objection(eqn: Any, secret: Sequence[bool]) -> tuple[str, str] | None:
    """(reason, what to use instead), or None for an operation that can be computed."""
    name = eqn.primitive.name
    if name == "div" and secret[1]:
        return (
            "CKKS cannot divide by an encrypted value.",
            'Multiply by a fitted reciprocal: approx.fit("inv", (low, high), depth=...)(x), on the '
            "range that the divisor keeps to.",
        )
    if name == "cond" or name == "select_n" and secret[0]:
        return (
            "the choice depends on an encrypted value.",
            "Compute both sides and blend them with a polynomial of the condition, e.g. "
            'approx.composite("sign", (-1, 1), tol=1e-3).',
        )
    if name == "while":
        return (
            "how often a loop over encrypted values runs must be known when tracing.",
            "Use a fixed number of steps (jax.lax.scan, or fori_loop with Python numbers).",
        )
    if name in _PLACES and any(secret[_PLACES[name]]):
        return (
            "the place depends on an encrypted value.",
            "Multiply by an encrypted one-hot vector instead, or make the index public.",
        )
    if name == "pow":
        return (
            "only a whole, non-negative exponent that is known when tracing is a polynomial.",
            "Use jax.lax.integer_pow, or approx.fit(lambda x: x**a, (low, high), depth=...).",
        )
    if name == "integer_pow" and eqn.params["y"] < 0:
        return (
            "a negative power is a division.",
            'Use approx.fit("inv", (low, high), depth=...) and powers of it.',
        )
    if name not in SUPPORTED:
        return _unsupported(eqn)
    for v in eqn.outvars:
        if not jnp.issubdtype(v.aval.dtype, jnp.floating):
            return (
                f"its result has dtype {v.aval.dtype}, and CKKS carries real numbers only.",
                "Keep encrypted values floating point.",
            )
    return None


def _unsupported(eqn: Any) -> tuple[str, str]:
    name = eqn.primitive.name
    if name == "max" and _meets_zero(eqn):
        return (
            "it is not a polynomial.",
            "Fit one on the range that the values keep to: "
            'approx.fit("relu", (low, high), depth=...)(x).',
        )
    if name in _COMPARING:
        return (
            "it compares encrypted values.",
            "max(a, b) = (a + b + |a - b|)/2 with |x| = x * sign(x) and "
            'approx.composite("sign", (low, high), tol=...), or for an activation '
            'approx.fit("relu", (low, high), depth=...).',
        )
    if name in ("eq", "ne", "lt", "le", "gt", "ge"):
        return (
            "it compares encrypted values.",
            'Use a polynomial of the difference: approx.composite("sign", (low, high), tol=...).',
        )
    if name in _TARGETS:
        return (
            "it is not a polynomial.",
            "Fit one on the range that the values keep to: "
            f"approx.fit({_TARGETS[name]}, (low, high), depth=...)(x).",
        )
    return (
        "additions and products cannot express it.",
        "Compute it on public values before the encrypted part or after decryption, or replace it "
        "by a polynomial: approx.fit(callable, (low, high), depth=...).",
    )


def _meets_zero(eqn: Any) -> bool:
    return any(isinstance(v, core.Literal) and np.all(np.asarray(v.val) == 0) for v in eqn.invars)
