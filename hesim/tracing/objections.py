"""Why operations on encrypted values are refused, and what to use instead of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from hesim.errors import Obstacle
from hesim.primitives import PRIMITIVES
from hesim.tracing.frames import Frame, layer_of, remedy_of

if TYPE_CHECKING:
    from hesim.program import Literal, Var
    from hesim.source import Source

__all__ = ["objection", "obstacle"]

Objection = tuple[str, str]
"""(reason, what to use instead)."""

_PLACES = {
    "dynamic_slice": slice(1, None),
    "dynamic_update_slice": slice(2, None),
    "gather": slice(1, 2),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub", "scatter-mul"), slice(1, 2)),
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
    "asin": "jnp.arcsin",
    "acos": "jnp.arccos",
    "atan": "jnp.arctan",
    "sinh": "jnp.sinh",
    "cosh": "jnp.cosh",
    "asinh": "jnp.arcsinh",
    "acosh": "jnp.arccosh",
    "atanh": "jnp.arctanh",
    "lgamma": "jax.scipy.special.gammaln",
    "digamma": "jax.scipy.special.digamma",
    "bessel_i0e": "jax.scipy.special.i0e",
    "bessel_i1e": "jax.scipy.special.i1e",
}
"""First argument of the `approx.fit` call that replaces a function of one variable."""

_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "eq_to", "le_to", "lt_to"})
_ORDERING = frozenset({"sort", "argmax", "argmin", "top_k", "approx_top_k"})
_COMPARING = frozenset(
    {
        *("max", "min", "clamp", "reduce_max", "reduce_min", "cummax", "cummin"),
        *("reduce_window_max", "reduce_window_min"),
        *("scatter-max", "scatter-min", "select_and_scatter_add", "select_and_gather_add"),
        *("select_and_scatter",),
    }
)
_STEPS = frozenset({"floor", "ceil", "round", "rem", "nextafter"})
_FACTORINGS = frozenset(
    {
        *("cholesky", "cholesky_update", "lu", "qr", "geqrf", "geqp3", "eig", "eigh", "svd"),
        *("schur", "hessenberg", "tridiagonal", "householder_product", "ormqr"),
        *("triangular_solve", "tridiagonal_solve", "custom_linear_solve"),
    }
)
_CALLBACKS = frozenset(
    {
        *("debug_callback", "debug_print", "pure_callback", "io_callback", "buffer_callback"),
        *("inspect_sharding",),
    }
)
_DEVICES = frozenset(
    {
        *("shard_map", "xla_pmap", "psum", "pmax", "pmin", "ppermute", "all_gather", "all_to_all"),
        *("reduce_scatter", "axis_index", "pbroadcast", "pvary", "ragged_all_to_all"),
    }
)
_OF_TWO = frozenset(
    {
        *("atan2", "igamma", "igammac", "igamma_grad_a", "polygamma", "zeta"),
        *("regularized_incomplete_beta", "random_gamma_grad"),
    }
)
_FOREIGN = frozenset(
    {
        *("pallas_call", "ffi_call", "tpu_custom_call", "custom_partitioning", "call_exported"),
        *("dot_product_attention_fwd", "cudnn_fusion", "scaled_dot", "scaled_matmul", "run_state"),
    }
)
_COMPLEX = (
    "it computes with complex numbers, and ciphertexts carry real ones here.",
    "Write it with the real and imaginary parts apart: a discrete Fourier transform is two "
    "products, x @ cos and x @ sin, by public matrices.",
)
_CUMULATIVE = {"cumlogsumexp": ("logs of sums of exponentials", "exp and log")}


def obstacle(
    eqn: Any, operands: Sequence[Var | Literal], source: Source | None, trail: Sequence[Frame]
) -> Obstacle | None:
    """Why an equation with an encrypted operand cannot be computed; None if it can.

    Args:
      eqn: a jaxpr equation. operands: its operands. source: its place in the caller's code.
      trail: stack frames around it, innermost first: what library function it lies in decides what
        to use instead.
    """
    found = objection(eqn, [v.encrypted for v in operands])
    if found is None:
        return None
    name = eqn.primitive.name
    remedy = remedy_of(name, trail)
    if remedy is not None:
        return Obstacle(name, source, remedy.reason, remedy.instead, remedy.name)
    return Obstacle(name, source, *found, layer_of(trail))


def objection(eqn: Any, secret: Sequence[bool]) -> Objection | None:
    """None for an operation that can be computed."""
    name = eqn.primitive.name
    found = _of_operands(eqn, secret)
    if found is not None:
        return found
    if name not in PRIMITIVES:
        return _unsupported(eqn)
    if _is_complex(eqn):
        return _COMPLEX
    for v in eqn.outvars:
        if not jnp.issubdtype(v.aval.dtype, jnp.floating):
            return (
                f"its result has dtype {v.aval.dtype}, and CKKS carries real numbers only.",
                "Keep encrypted values floating point.",
            )
    return None


def _of_operands(eqn: Any, secret: Sequence[bool]) -> Objection | None:
    """What is wrong with an operation only because of which operands are encrypted."""
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
    if name in ("scatter", "scatter-mul"):
        return _of_scatter(eqn)
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
    return None


def _of_scatter(eqn: Any) -> Objection | None:
    from hesim.tracing.scatters import sets

    if eqn.primitive.name == "scatter" and sets(eqn.params):
        return None
    return (
        "it computes elements from what is there, at many places that are known only when it runs "
        "and may coincide.",
        "Promise that they differ, x.at[i].apply(f, unique_indices=True), or use places that are "
        "known when tracing.",
    )


def _unsupported(eqn: Any) -> Objection:
    name = eqn.primitive.name
    if name == "max" and _meets_zero(eqn):
        return (
            "it is not a polynomial.",
            "Fit one on the range that the values keep to: "
            'approx.fit("relu", (low, high), depth=...)(x).',
        )
    if name in _ORDERING:
        return (
            "it compares encrypted values, to put them in order.",
            "Return the values and do it after decryption, or compare them two at a time by "
            'approx.composite("sign", (low, high), tol=...) of their difference.',
        )
    if name in _COMPARING:
        return (
            "it compares encrypted values.",
            "max(a, b) = (a + b + |a - b|)/2 with |x| = x * sign(x) and "
            'approx.composite("sign", (low, high), tol=...), or for an activation '
            'approx.fit("relu", (low, high), depth=...).',
        )
    if name in _COMPARISONS:
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
    return _of_kind(eqn, name)


def _of_kind(eqn: Any, name: str) -> Objection:
    if name in _STEPS:
        return (
            "it is a step function, which no polynomial follows near its steps.",
            "Leave the rounding to after decryption, or build steps from "
            'approx.composite("sign", (low, high), tol=...).',
        )
    if name in _CALLBACKS:
        return (
            "it hands values to Python, which would have to see them.",
            "Remove it; return the value from the function, or compare every operation of a run "
            "with he_backend.run(..., compare=True).",
        )
    if name in _DEVICES:
        return (
            "it spreads a computation over devices, and an encrypted one has none.",
            "Trace the function of one device: jax.vmap, or jit, instead of pmap and shard_map.",
        )
    if name in _FACTORINGS:
        return (
            "it divides by encrypted values, or compares them.",
            "Keep the matrix public (a product by its inverse is supported), or iterate with "
            'products: Newton\'s X (2 I - A X), approx.fit("inv", (low, high), depth=...).',
        )
    if name in _CUMULATIVE:
        what, fits = _CUMULATIVE[name]
        return (
            f"it takes {what}.",
            f"approx.fit {fits} on the ranges that values keep to, with jnp.cumsum between them.",
        )
    if name in _OF_TWO:
        return (
            "it is no polynomial of two encrypted values.",
            "Keep one of them public and constant, and fit the other: "
            "approx.fit(lambda x: ..., (low, high), depth=...).",
        )
    if name in _FOREIGN:
        return (
            "it is a kernel whose operations cannot be read.",
            "Use the same computation written with jnp, e.g. jnp.einsum.",
        )
    if _is_complex(eqn):
        return _COMPLEX
    return (
        "additions and products cannot express it.",
        "Compute it on public values before the encrypted part or after decryption, or replace it "
        "by a polynomial: approx.fit(callable, (low, high), depth=...).",
    )


def _is_complex(eqn: Any) -> bool:
    values = (*eqn.invars, *eqn.outvars)
    return any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in values)


def _meets_zero(eqn: Any) -> bool:
    return any(isinstance(v, core.Literal) and np.all(np.asarray(v.val) == 0) for v in eqn.invars)
