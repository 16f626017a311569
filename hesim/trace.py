"""`trace`: reads a JAX function into a Program, and refuses what no polynomial can do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util
from jax._src import source_info_util
from jax.extend import core
from jax.interpreters import partial_eval as pe

from hesim.errors import NotHomomorphicError, TraceError
from hesim.program import Equation, Literal, Program, Var
from hesim.source import of_traceback

__all__ = ["IDENTITIES", "SUPPORTED", "trace"]

IDENTITIES = frozenset(
    {
        "copy",
        "copy_p",
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

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_lin": "call_jaxpr",
}

_FITTED = {
    "exp": "exp",
    "exp2": "exp",
    "erf": "erf",
    "tanh": "tanh",
    "logistic": "sigmoid",
    "log": "log",
    "log1p": "log",
    "rsqrt": "inv_sqrt",
    "sqrt": "sqrt",
    "abs": "abs",
    "sign": "sign",
    "max": "relu",
    "reduce_max": "relu",
    "erfc": "erf",
    "expm1": "exp",
}


def trace(
    fn: Callable[..., Any],
    *args: Any,
    encrypted: int | Sequence[int] | Any = (0,),
    name: str | None = None,
) -> Program:
    """Reads `fn` once and returns its Program.

    Args:
      fn: any JAX function of pytrees of arrays: a forward pass, its `jax.grad`, a whole
        training step. Flax NNX modules are split and merged in the usual way.
      args: example arguments; only structures, shapes and dtypes matter (arrays or
        `jax.ShapeDtypeStruct`).
      encrypted: which arguments are encrypted: argument numbers as in `jax.grad`, or a pytree of
        bools that is a prefix of the tuple of arguments.
      name: shown in listings; the function's own name by default.

    Returns:
      The Program: dead equations removed; jit, custom derivatives and remat inlined; scans over
      encrypted values unrolled; conditionals on public predicates turned into selections.

    Raises:
      NotHomomorphicError: an operation on encrypted values that additions and products cannot
        express, named with the caller's file and line and with what to use instead.
      TraceError: `encrypted` does not fit the arguments, or an encrypted leaf is not a float.
    """
    name = name or getattr(fn, "__name__", type(fn).__name__)
    paths, in_tree = tree_util.tree_flatten_with_path(tuple(args))
    labels = tuple("args" + tree_util.keystr(path) for path, _ in paths)
    avals = [_abstract(leaf, label) for (_, leaf), label in zip(paths, labels, strict=True)]
    flags = _flags(encrypted, args, in_tree, len(avals))
    for aval, flag, label in zip(avals, flags, labels, strict=True):
        if flag and not jnp.issubdtype(aval.dtype, jnp.floating):
            raise TraceError(
                f"{label} of {name} is encrypted but has dtype {aval.dtype}: CKKS carries real numbers. "
                "Pass it as floating point (integers as floats, token ids embedded first)."
            )
    out_tree = None

    def flat_fn(*leaves):
        nonlocal out_tree
        out = fn(*tree_util.tree_unflatten(in_tree, leaves))
        flat, out_tree = tree_util.tree_flatten(out)
        return flat

    closed = jax.make_jaxpr(flat_fn)(*avals)
    closed = _without_dead(closed)
    flat = jax.make_jaxpr(functools.partial(_inline, closed, flags))(*avals)
    return _build(name, _without_dead(flat), flags, in_tree, out_tree, labels)


def _abstract(leaf: Any, label: str) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    try:
        return jax.ShapeDtypeStruct(
            np.shape(leaf), jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
        )
    except (TypeError, ValueError) as error:
        raise TraceError(
            f"{label} is a {type(leaf).__name__}, which is not an array; close over it instead of "
            "passing it as an argument."
        ) from error


def _flags(encrypted: Any, args: Sequence[Any], in_tree: Any, leaves: int) -> list[bool]:
    if isinstance(encrypted, (int, np.integer)) and not isinstance(encrypted, bool):
        encrypted = (int(encrypted),)
    numbers = isinstance(encrypted, (tuple, list, set, frozenset, range)) and all(
        isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in encrypted
    )
    if numbers:
        chosen = set()
        for i in encrypted:
            if not -len(args) <= i < len(args):
                raise TraceError(
                    f"encrypted names argument {i}, but there are {len(args)} arguments."
                )
            chosen.add(i % len(args))
        prefix: Any = tuple(i in chosen for i in range(len(args)))
    else:
        prefix = tuple(encrypted) if isinstance(encrypted, list) else encrypted
    whole = tree_util.tree_unflatten(in_tree, [0] * leaves)
    try:
        spread = jax.tree.map(
            lambda flag, sub: [bool(flag)] * len(jax.tree.leaves(sub)), prefix, whole
        )
    except ValueError as error:
        raise TraceError(
            "`encrypted` must be argument numbers or a pytree of bools that is a prefix of the tuple of "
            f"arguments: {error}"
        ) from error
    flags = [bool(f) for f in jax.tree.leaves(spread)]
    if len(flags) != leaves:
        raise TraceError("`encrypted` does not cover every argument exactly once.")
    return flags


def _without_dead(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    used = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, used, instantiate=True)
    return core.ClosedJaxpr(jaxpr, closed.consts)


# --- inlining: an interpreter that is itself traced, so the result is again a jaxpr ---------------


def _inline(closed: core.ClosedJaxpr, flags: Sequence[bool], *args: Any) -> list[Any]:
    out, _ = _walk(closed.jaxpr, closed.consts, args, flags)
    return out


def _walk(jaxpr, consts, args, flags, outer=None) -> tuple[list[Any], list[bool]]:
    """Evaluates `jaxpr` with calls inlined; `outer` is the traceback of the enclosing call.

    A library function under `jit` leaves no user frame in its equations: they get the caller's.
    """
    env: dict[Any, tuple[Any, bool]] = {}

    def read(v):
        return (v.val, False) if isinstance(v, core.Literal) else env[v]

    env.update({v: (c, False) for v, c in zip(jaxpr.constvars, consts, strict=True)})
    env.update({v: (a, f) for v, a, f in zip(jaxpr.invars, args, flags, strict=True)})
    for eqn in jaxpr.eqns:
        values, secret = zip(*map(read, eqn.invars), strict=True) if eqn.invars else ((), ())
        here = eqn.source_info.traceback
        if of_traceback(here) is None:
            here = outer
        with (
            source_info_util.user_context(here, name_stack=eqn.source_info.name_stack),
            eqn.ctx.manager,
        ):
            out, marks = _apply(eqn, values, secret, here)
        env.update({v: (o, m) for v, o, m in zip(eqn.outvars, out, marks, strict=True)})
    out, marks = zip(*map(read, jaxpr.outvars), strict=True) if jaxpr.outvars else ((), ())
    return list(out), list(marks)


def _apply(eqn, values, secret, here) -> tuple[list[Any], list[bool]]:
    name = eqn.primitive.name
    if name in _CALLS and _CALLS[name] in eqn.params:
        inner, consts = _open(eqn.params[_CALLS[name]])
        return _walk(inner, consts, values, secret, here)
    if any(secret):
        if name == "scan":
            return _unroll(eqn.params, values, secret, here)
        if name == "cond" and not secret[0]:
            return _choose(eqn.params["branches"], values, secret, here)
        if name == "pow" and not secret[1]:
            exponent = _whole(values[1])
            if exponent is not None:
                return [lax.integer_pow(values[0], exponent)], [True]
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    out = list(out) if eqn.primitive.multiple_results else [out]
    return out, [any(secret)] * len(out)


def _open(jaxpr) -> tuple[Any, Sequence[Any]]:
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


def _whole(exponent: Any) -> int | None:
    if isinstance(exponent, jax.core.Tracer):
        return None
    array = np.asarray(exponent)
    if array.size == 0 or not np.all(array == array.flat[0]):
        return None
    value = float(array.flat[0])
    return int(value) if value.is_integer() and value >= 0 else None


def _unroll(params, values, secret, here) -> tuple[list[Any], list[bool]]:
    inner, consts = _open(params["jaxpr"])
    n_consts, n_carry, length = params["num_consts"], params["num_carry"], params["length"]
    fixed, carry, xs = (
        values[:n_consts],
        list(values[n_consts : n_consts + n_carry]),
        values[n_consts + n_carry :],
    )
    f_fixed, f_carry = secret[:n_consts], list(secret[n_consts : n_consts + n_carry])
    f_xs = secret[n_consts + n_carry :]
    rows: list[list[Any]] = []
    marks: list[list[bool]] = []
    steps = range(length - 1, -1, -1) if params["reverse"] else range(length)
    for i in steps:
        x_i = [lax.index_in_dim(x, i, 0, keepdims=False) for x in xs]
        out, flags = _walk(inner, consts, (*fixed, *carry, *x_i), (*f_fixed, *f_carry, *f_xs), here)
        carry, f_carry = out[:n_carry], flags[:n_carry]
        rows.append(out[n_carry:])
        marks.append(flags[n_carry:])
    if params["reverse"]:
        rows.reverse()
    stacked, flags = [], []
    for k, aval in enumerate(v.aval for v in inner.outvars[n_carry:]):
        column = [row[k] for row in rows]
        stacked.append(jnp.stack(column) if column else jnp.zeros((0, *aval.shape), aval.dtype))
        flags.append(any(mark[k] for mark in marks))
    return [*carry, *stacked], [*f_carry, *flags]


def _choose(branches, values, secret, here) -> tuple[list[Any], list[bool]]:
    index, operands = values[0], values[1:]
    results = [_walk(*_open(branch), operands, secret[1:], here) for branch in branches]
    which = jnp.clip(jnp.asarray(index, jnp.int32), 0, len(branches) - 1)
    out, marks = [], []
    for k in range(len(results[0][0])):
        cases = [jnp.asarray(r[0][k]) for r in results]
        chosen = which if len(cases) > 2 else which.astype(bool)
        out.append(cases[0] if len(cases) == 1 else lax.select_n(chosen, *cases))
        marks.append(any(r[1][k] for r in results))
    return out, marks


# --- from the flat jaxpr to the Program ------------------------------------------------------------


def _build(name, closed, flags, in_tree, out_tree, labels) -> Program:
    jaxpr = closed.jaxpr
    env: dict[Any, Var] = {}

    def define(v, encrypted: bool) -> Var:
        var = Var(len(env), tuple(v.aval.shape), np.dtype(v.aval.dtype), encrypted)
        env[v] = var
        return var

    def read(v) -> Var | Literal:
        return Literal(np.asarray(v.val, v.aval.dtype)) if isinstance(v, core.Literal) else env[v]

    consts = tuple(
        (define(v, False), np.asarray(c))
        for v, c in zip(jaxpr.constvars, closed.consts, strict=True)
    )
    inputs = tuple(define(v, flag) for v, flag in zip(jaxpr.invars, flags, strict=True))
    equations: list[Equation] = []
    for eqn in jaxpr.eqns:
        operands = tuple(map(read, eqn.invars))
        encrypted = any(v.encrypted for v in operands)
        if encrypted:
            _check(eqn, operands)
        # pad/gather and friends keep an unused index operand public; results are what counts.
        outputs = tuple(define(v, encrypted) for v in eqn.outvars)
        source = of_traceback(eqn.source_info.traceback)
        equations.append(
            Equation(eqn.primitive, operands, outputs, dict(eqn.params), source, len(equations))
        )
    return Program(
        name,
        tuple(equations),
        inputs,
        consts,
        tuple(map(read, jaxpr.outvars)),
        in_tree,
        out_tree,
        labels,
    )


def _check(eqn, operands: Sequence[Var | Literal]) -> None:
    name = eqn.primitive.name
    secret = [v.encrypted for v in operands]

    def refuse(reason: str, instead: str):
        raise NotHomomorphicError(name, of_traceback(eqn.source_info.traceback), reason, instead)

    if name == "div" and secret[1]:
        refuse(
            "CKKS cannot divide by an encrypted value.",
            'Multiply by a fitted reciprocal: approx.fit("inv", (low, high), depth=...)(x), on the range '
            "that the divisor keeps to.",
        )
    if name == "cond" or name == "select_n" and secret[0]:
        refuse(
            "the choice depends on an encrypted value.",
            "Compute both sides and blend them with a polynomial of the condition, e.g. "
            'approx.composite("sign", (-1, 1), tol=1e-3).',
        )
    if name == "while":
        refuse(
            "the number of iterations depends on an encrypted value.",
            "Use a fixed number of steps.",
        )
    if name in ("dynamic_slice", "gather", "scatter", "scatter-add", "dynamic_update_slice"):
        places = {"dynamic_slice": 1, "gather": 1, "dynamic_update_slice": 2}.get(name, 1)
        indices = (
            secret[places : places + 1]
            if name in ("gather", "scatter", "scatter-add")
            else secret[places:]
        )
        if any(indices):
            refuse(
                "the place depends on an encrypted value.",
                "Multiply by an encrypted one-hot vector instead, or make the index public.",
            )
    if name == "conv_general_dilated" and secret[1]:
        refuse(
            "the convolution's weights are encrypted.",
            "Keep them public, or write it with jnp.einsum.",
        )
    if name == "pow":
        refuse(
            "only a whole, non-negative, public exponent is a polynomial.",
            "Use jax.lax.integer_pow, or approx.fit(lambda x: x**a, (low, high), depth=...).",
        )
    if name == "integer_pow" and eqn.params["y"] < 0:
        refuse(
            "a negative power is a division.",
            'Use approx.fit("inv", (low, high), depth=...) and powers of it.',
        )
    if name not in SUPPORTED:
        if name in ("max", "reduce_max") and not _is_relu(eqn):
            refuse(
                "a maximum compares encrypted values.",
                'max(a, b) = (a + b + |a - b|)/2 with approx.composite("abs" or "sign", ...), or for an '
                'activation approx.fit("relu", (-8, 8), degree=15).',
            )
        target = _FITTED.get(name)
        if target:
            refuse(
                "it is not a polynomial.",
                f'Fit one on the range that the values keep to: approx.fit("{target}", (low, high), '
                "depth=...)(x).",
            )
        refuse(
            "additions and products cannot express it.",
            "Compute it on public values before the encrypted part or after decryption, or replace it by a "
            "polynomial: approx.fit(callable, (low, high), depth=...).",
        )
    for v in eqn.outvars:
        if not jnp.issubdtype(v.aval.dtype, jnp.floating):
            refuse(
                f"its result has dtype {v.aval.dtype}, and CKKS carries real numbers only.",
                "Keep encrypted values floating point.",
            )


def _is_relu(eqn) -> bool:
    return any(isinstance(v, core.Literal) and np.all(np.asarray(v.val) == 0) for v in eqn.invars)
