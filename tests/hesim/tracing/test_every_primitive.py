"""Every primitive that JAX has is supported for encrypted values, or refused for a true reason."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src.lax import convolution, fft, linalg, slicing, special, windowed_reductions
from jax._src.lax import lax as core_lax
from jax._src.lax.control_flow import loops
from jax.extend import core

from hesim import NotHomomorphicError, trace
from hesim.primitives import PRIMITIVES

X = np.linspace(0.1, 0.9, 12).reshape(4, 3)
MODULES = (core_lax, slicing, special, windowed_reductions, convolution, linalg, fft, loops)

# Linear in x, with public operands of the run: what JAX calls it, and a function that uses it.
LINEAR: dict[str, Callable] = {
    "add": lambda x, w: x + w,
    "sub": lambda x, w: w - x,
    "neg": lambda x, w: -x,
    "mul": lambda x, w: x * w,
    "div": lambda x, w: x / w,
    "add_any": lambda x, w: jax.grad(lambda x: (x * w).sum() + (x * 2.0).sum())(x) * x,
    "dot_general": lambda x, w: x @ w.T,
    "reduce_sum": lambda x, w: x.sum(0) * w[0],
    "cumsum": lambda x, w: lax.cumsum(x, 1, reverse=True) * w,
    "broadcast_in_dim": lambda x, w: x[None] + w,
    "reshape": lambda x, w: x.reshape(3, 4) @ w,
    "transpose": lambda x, w: x.T @ w,
    "rev": lambda x, w: lax.rev(x, (0,)) * w,
    "slice": lambda x, w: x[1:, ::2] * w[1:, ::2],
    "squeeze": lambda x, w: lax.squeeze(x[:1], (0,)) * w[0],
    "expand_dims": lambda x, w: lax.expand_dims(x, (0,)) * w,
    "concatenate": lambda x, w: jnp.concatenate([x, w]),
    "pad": lambda x, w: lax.pad(x, w[0, 0], ((1, 0, 1), (0, -1, 0))),
    "split": lambda x, w: lax.split(x, (1, 3))[1] * w[1:],
    "tile": lambda x, w: jnp.tile(x, (2, 1)) * jnp.tile(w, (2, 1)),
    "unstack": lambda x, w: jnp.unstack(x)[1] * w[0],
    "select_n": lambda x, w: jnp.where(w > 0.5, x, w),
    "dynamic_slice": lambda x, w: lax.dynamic_slice(x, (jnp.argmax(w[0]), 0), (2, 3)),
    "dynamic_update_slice": lambda x, w: lax.dynamic_update_slice(w, x[:2], (jnp.argmin(w[0]), 0)),
    "gather": lambda x, w: x[jnp.argsort(w[:, 0])],
    "scatter": lambda x, w: x.at[jnp.argmax(w[0])].set(w[1]),
    "scatter-add": lambda x, w: x.at[jnp.argmax(w[0])].add(w[1]),
    "scatter-sub": lambda x, w: x.at[jnp.argmax(w[0])].subtract(w[1]),
    "scatter-mul": lambda x, w: x.at[jnp.argmax(w[0])].multiply(w[1]),
    "sort": lambda x, w: lax.sort((w[:, 0], x[:, 0]), num_keys=1)[1],
    "reduce_window_sum": lambda x, w: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "SAME"),
    "select_and_gather_add": lambda x, w: jax.jvp(_pooled, (w,), (x,))[1],
    "conv_general_dilated": lambda x, w: lax.conv(x[None, None], w[None, None], (1, 1), "SAME"),
    "ragged_dot_general": lambda x, w: lax.ragged_dot(
        x, jnp.stack([w.T, 2.0 * w.T]), jnp.stack([jnp.int32(w[0, 0] > 0), jnp.int32(3)])
    ),
    "triangular_solve": lambda x, w: lax.linalg.triangular_solve(
        w[:3] + 2.0 * jnp.eye(3), x, lower=True
    ),
    "tridiagonal_solve": lambda x, w: lax.linalg.tridiagonal_solve(
        jnp.array([0.0, 1, 1, 1]) * w[:, 0], w[:, 1] + 3.0, jnp.array([1.0, 1, 1, 0]), x
    ),
    "convert_element_type": lambda x, w: x.astype(jnp.bfloat16).astype(w.dtype) * w,
    "reduce_precision": lambda x, w: lax.reduce_precision(x, 8, 23) * w,
    "copy": lambda x, w: jnp.copy(x) * w,
    "optimization_barrier": lambda x, w: lax.optimization_barrier((x, w))[0] * w,
}

# Encrypted values are carried without rounding to the dtypes of the trace.
ROUNDED = {"convert_element_type": 1e-2, "reduce_precision": 1e-6}

# Products of encrypted values.
PRODUCTS: dict[str, Callable] = {
    "square": lambda x: lax.square(x),
    "integer_pow": lambda x: x**5,
    "pow": lambda x: x ** np.array([1.0, 2.0, 3.0]),
    "reduce_prod": lambda x: x.prod(1),
    "cumprod": lambda x: lax.cumprod(x, 0),
    "reduce": lambda x: lax.reduce(x, 0.0, lambda a, b: a + b - a * b, (1,)),
    "reduce_window": lambda x: lax.reduce_window(x, 1.0, lax.mul, (2, 1), (1, 1), "VALID"),
    "symmetric_product": lambda x: lax.linalg.symmetric_product(x, jnp.eye(4)),
}

# No polynomials, or not of these operands.
REFUSED: dict[str, Callable] = {
    **{
        name: getattr(lax, name)
        for name in (
            *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sin", "cos", "tan"),
            *("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "sqrt", "rsqrt"),
            *("cbrt", "abs", "sign", "floor", "ceil", "round", "is_finite", "erf", "erfc"),
            *("erf_inv", "lgamma", "digamma", "bessel_i0e", "bessel_i1e"),
        )
    },
    "max": lambda x: lax.max(x, 2.0 * x),
    "min": lambda x: lax.min(x, 2.0 * x),
    "clamp": lambda x: lax.clamp(0.0, x, 1.0),
    "nextafter": lambda x: lax.nextafter(x, x * 2.0),
    "rem": lambda x: lax.rem(x, x * 2.0),
    "atan2": lambda x: lax.atan2(x, x * 2.0),
    "pow": lambda x: x**0.5,
    "div": lambda x: 1.0 / x,
    "igamma": lambda x: lax.igamma(x, x),
    "igammac": lambda x: lax.igammac(x, x),
    "zeta": lambda x: lax.zeta(x + 2.0, x),
    "polygamma": lambda x: lax.polygamma(x, x),
    "regularized_incomplete_beta": lambda x: lax.betainc(x, x, x),
    "cummax": lambda x: lax.cummax(x, 0),
    "cummin": lambda x: lax.cummin(x, 0),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x, 0),
    "sort": lambda x: lax.sort(x),
    "top_k": lambda x: lax.top_k(x, 2)[0],
    "approx_top_k": lambda x: lax.approx_max_k(x, 2)[0],
    "argmax": lambda x: lax.argmax(x, 0, np.int32),
    "argmin": lambda x: lax.argmin(x, 0, np.int32),
    "reduce_max": lambda x: x.max(),
    "reduce_min": lambda x: x.min(),
    "reduce_window_max": lambda x: _pooled(x),
    "select_and_scatter_add": lambda x: jax.grad(lambda x: _pooled(x).sum())(x),
    "gt": lambda x: x > 0,
    "scatter-max": lambda x: x.at[0].max(0.0),
    "scatter-min": lambda x: x.at[0].min(0.0),
    "bitcast_convert_type": lambda x: lax.bitcast_convert_type(x, np.int32),
    "complex": lambda x: lax.complex(x, x),
    "triangular_solve": lambda x: lax.linalg.triangular_solve(x[:3], np.eye(3)),
    "cholesky": lambda x: lax.linalg.cholesky(x[:3]),
    "lu": lambda x: lax.linalg.lu(x[:3])[0],
    "qr": lambda x: lax.linalg.qr(x[:3])[0],
    "eigh": lambda x: lax.linalg.eigh(x[:3])[0],
    "svd": lambda x: lax.linalg.svd(x[:3])[1],
    "schur": lambda x: lax.linalg.schur(x[:3])[0],
    "hessenberg": lambda x: lax.linalg.hessenberg(x[:3])[0],
    "tridiagonal": lambda x: lax.linalg.tridiagonal(x[:3])[0],
}


def _pooled(w):
    return lax.reduce_window(w, -jnp.inf, lax.max, (2, 1), (2, 1), "VALID")


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_is_supported(name):
    """In the primitives of the table, with the values of the function itself."""
    fn = LINEAR[name]
    assert name in _primitives(jax.make_jaxpr(fn)(X, X[::-1])) or name in ("copy", "expand_dims")
    _agrees(fn, X, X[::-1] * 1.5, rtol=ROUNDED.get(name, 1e-9))


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_supported(name):
    assert name in _primitives(jax.make_jaxpr(PRODUCTS[name])(X))
    _agrees(PRODUCTS[name], X)


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_by_its_own_name(name):
    with pytest.raises(NotHomomorphicError) as caught:
        trace(REFUSED[name], X.astype(np.float32))
    first = caught.value.obstacles[0]
    assert first.operation == name or first.operation in _inside(name)
    assert first.reason.endswith(".") and first.instead.endswith(".")
    general = "additions and products cannot express it."
    assert first.reason != general or name in ("bitcast_convert_type", "is_finite")


def _inside(name: str) -> tuple[str, ...]:
    """What JAX writes an operation in before anybody sees it."""
    return ("convert_element_type",) if name in ("complex",) else ("select_n", "lt", "sign")


def test_no_primitive_of_jax_is_forgotten():
    """Whoever adds a primitive to JAX adds it here: supported, or with a reason of its own."""
    known = {*PRIMITIVES, *LINEAR, *PRODUCTS, *REFUSED, *IRRELEVANT}
    assert {p for p in _all_primitives() if p not in known} == set()


# Of integers, bools and keys only; without operands; between devices; or inside of others.
IRRELEVANT = {
    *("and", "or", "xor", "not", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
    *("population_count", "clz", "mulhi", "iota", "rng_bit_generator", "rng_uniform", "empty"),
    *("reduce_and", "reduce_or", "reduce_xor", "after_all", "create_token", "to_edtype"),
    *("from_edtype", "lu_pivots_to_permutation", "empty2", "dce_sink", "eq_to", "le_to", "lt_to"),
    *(
        "reduce_window_min",
        "stage",
        "eq",
        "ne",
        "lt",
        "le",
        "ge",
        "real",
        "imag",
        "conj",
        "fft",
        "tie",
        "copy_p",
    ),
    *("scan", "while", "eval_jaxpr", "select_and_scatter", "igamma_grad_a", "cholesky_update"),
    *("geqrf", "geqp3", "ormqr", "householder_product", "eig", "scaled_dot", "composite"),
    *("random_gamma_grad", "geqrf", "psum", "reduced_vary_cast", "vary_unreduced_cast"),
    *("triangular_solve", "rng_uniform", "unreduced_psum"),
}


def _all_primitives() -> set[str]:
    return {
        value.name
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, core.Primitive)
    }


def _primitives(closed: core.ClosedJaxpr) -> set[str]:
    found = set()
    waiting = [closed.jaxpr]
    while waiting:
        for eqn in waiting.pop().eqns:
            found.add(eqn.primitive.name)
            inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: x is None)
            waiting += [getattr(x, "jaxpr", x) for x in inner if hasattr(x, "jaxpr")]
    return found


def _agrees(fn, *args, rtol=1e-9):
    """A Program only of primitives with rows, whose values are those of the function."""
    with jax.enable_x64(True):
        program = trace(fn, *args)
        assert {e.name for e in program.ops} <= set(PRIMITIVES)
        assert program.ops
        found = jax.tree.leaves(program(*args, precision="float64"))
        wanted = jax.tree.leaves(jax.jit(fn)(*args))
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=rtol)
