"""The JAX primitive ``polynomial``: one equation for a whole polynomial, with all its rules.

Differentiation binds the derivative polynomial (or the rule that the polynomial carries), batching
is elementwise, lowering runs the evaluation plan, so jit, vmap, grad, hessian, scan, remat and
sharding work, and a traced gradient shows polynomials and nothing below them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from approx import plan as _plan

if TYPE_CHECKING:
    from approx.polynomial import Polynomial

polynomial_p = Primitive("polynomial")


def apply(poly: Polynomial, x: Any) -> jax.Array:
    """p(x) as one ``polynomial`` equation; integers are converted to the default float type."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    return polynomial_p.bind(x, poly=poly)


def plain(poly: Polynomial, x: Any) -> Any:
    """The same values in ordinary JAX operations, as the lowering computes them."""
    u = x if poly.scale == 1.0 else poly.scale * x
    if poly.shift != 0.0:
        u = u + poly.shift
    return _plan.evaluate(poly.plan, u)


@polynomial_p.def_impl
@partial(jax.jit, static_argnames="poly")
def _impl(x: Any, *, poly: Polynomial) -> Any:
    return jax.lax.convert_element_type(plain(poly, x), x.dtype)  # drops a weak type


@polynomial_p.def_abstract_eval
def _abstract(x: Any, *, poly: Polynomial) -> Any:
    del poly
    return x.update(weak_type=False)


def _jvp(primals: Any, tangents: Any, *, poly: Polynomial) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    value = polynomial_p.bind(x, poly=poly)
    if isinstance(dx, ad.Zero):
        return value, ad.Zero(jax.typeof(value).to_tangent_aval())
    return value, dx * _slope(poly, x, value)


def _slope(poly: Polynomial, x: Any, value: Any) -> Any:
    if poly.rule is None:
        return polynomial_p.bind(x, poly=poly.derivative())
    at = value if poly.rule_of == "value" else x
    identity = poly.rule.coefficients == (0.0, 1.0) and poly.rule.shift == 0.0
    if identity and poly.rule.scale == 1.0:
        return at
    return polynomial_p.bind(at, poly=poly.rule)


ad.primitive_jvps[polynomial_p] = _jvp
batching.defvectorized(polynomial_p)
mlir.register_lowering(
    polynomial_p, mlir.lower_fun(lambda x, *, poly: plain(poly, x), multiple_results=False)
)
