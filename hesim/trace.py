"""`trace`: reads a JAX function into a Program, and refuses what no polynomial can do."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util
from jax._src import source_info_util
from jax.extend import core
from jax.interpreters import partial_eval as pe

from hesim.errors import TraceError
from hesim.primitives import check
from hesim.program import Equation, Literal, Program, Var, is_key
from hesim.source import of_traceback

__all__ = ["trace"]

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
        `jax.ShapeDtypeStruct`). JAX rounds the function's own constants to float32 on the way;
        trace under `jax.enable_x64(True)` to keep them in double precision.
      encrypted: which arguments are encrypted: argument numbers as in `jax.grad`, or a pytree of
        bools that is a prefix of the tuple of arguments.
      name: shown in listings; the function's own name by default.

    Returns:
      The Program: dead equations removed; jit, custom derivatives and remat inlined; scans over
      encrypted values unrolled; conditionals on public predicates turned into selections.

    Raises:
      NotHomomorphicError: an operation on encrypted values that additions and products cannot
        express, named with the caller's file and line and with what to use instead.
      TraceError: `encrypted` does not fit the arguments, an encrypted leaf is not a float, or
        Python control flow depends on a traced value.
    """
    name = name or getattr(fn, "__name__", type(fn).__name__)
    paths, in_tree = tree_util.tree_flatten_with_path(tuple(args))
    labels = tuple("args" + tree_util.keystr(path) for path, _ in paths)
    avals = [_abstract(leaf, label) for (_, leaf), label in zip(paths, labels, strict=True)]
    flags = _flags(encrypted, args, in_tree, len(avals))
    for aval, flag, label in zip(avals, flags, labels, strict=True):
        if flag and not jnp.issubdtype(aval.dtype, jnp.floating):
            raise TraceError(
                f"{label} of {name} is encrypted but has dtype {aval.dtype}: CKKS carries real "
                "numbers. Pass it as floating point (integers as floats, token ids embedded first)."
            )
    out_tree = None

    def flat_fn(*leaves):
        nonlocal out_tree
        out = fn(*tree_util.tree_unflatten(in_tree, leaves))
        flat, out_tree = tree_util.tree_flatten(out)
        return flat

    if not callable(fn):
        raise TraceError(f"trace takes a function first, not a {type(fn).__name__}.")
    try:
        closed = jax.make_jaxpr(flat_fn)(*avals)
    except jax.errors.ConcretizationTypeError as error:
        frames = reversed(traceback.extract_tb(error.__traceback__))
        source = of_traceback([_Frame(f.filename, f.lineno or 0, f.name) for f in frames])
        raise TraceError(
            f"{name} needs the number in a traced value at {source}: a Python `if`, `while` or "
            "int() cannot ask for what is not known when tracing. Use a product with a mask, "
            "jnp.where on public values, or pass the value as a plain Python number."
        ) from error
    closed = _without_dead(closed)
    flat = jax.make_jaxpr(functools.partial(_inline, closed, flags))(*avals)
    return _build(name, _without_dead(flat), flags, in_tree, out_tree, labels)


class _Frame(NamedTuple):
    """As frames of JAX's own tracebacks are."""

    file_name: str
    line_num: int
    function_name: str


def _abstract(leaf: Any, label: str) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
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
    numbers = _numbers(encrypted)
    if numbers is not None:
        chosen = set()
        for i in numbers:
            if not -len(args) <= i < len(args):
                raise TraceError(
                    f"encrypted names argument {i}, but there are {len(args)} arguments."
                )
            chosen.add(i % len(args))
        prefix: Any = tuple(i in chosen for i in range(len(args)))
    else:
        prefix = tuple(encrypted) if isinstance(encrypted, list) else encrypted
    whole = tree_util.tree_unflatten(in_tree, [0] * leaves)

    def spread_over(flag: Any, part: Any) -> list[bool]:
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{flag!r} is not a bool")
        return [bool(flag)] * len(jax.tree.leaves(part))

    try:
        spread = jax.tree.map(spread_over, prefix, whole)
    except (TypeError, ValueError) as error:
        raise TraceError(
            "`encrypted` must be argument numbers or a pytree of bools that is a prefix of the "
            f"tuple of arguments: {error}"
        ) from error
    flags = [bool(f) for f in jax.tree.leaves(spread)]
    if len(flags) != leaves:
        raise TraceError("`encrypted` does not cover every argument exactly once.")
    return flags


def _numbers(encrypted: Any) -> list[int] | None:
    """Argument numbers, or None if `encrypted` is something else."""
    if not isinstance(encrypted, (tuple, list, set, frozenset, range)):
        return None
    whole = all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in encrypted)
    return [int(i) for i in encrypted] if whole else None


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
        if name == "optimization_barrier":  # its operands are public or encrypted one by one
            return list(values), list(secret)
        if name == "scan":
            return _unroll(eqn.params, values, secret, here)
        if name == "reduce_window_sum":
            return [_windows(values[0], eqn.params)], [True]
        if name == "cond" and not secret[0]:
            return _choose(eqn.params["branches"], values, secret, here)
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    out = list(out) if eqn.primitive.multiple_results else [out]
    return out, [any(secret)] * len(out)


def _windows(x: Any, params: dict[str, Any]) -> Any:
    """A sum over sliding windows as a sum of strided slices, one for each place in the window."""
    pads = [
        (low, high, spread - 1)
        for (low, high), spread in zip(params["padding"], params["base_dilation"], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), pads)
    extents, apart = params["window_dimensions"], params["window_dilation"]
    strides = params["window_strides"]
    counts = [
        (d - (w - 1) * a - 1) // s + 1
        for d, w, a, s in zip(x.shape, extents, apart, strides, strict=True)
    ]
    total = None
    for place in itertools.product(*map(range, extents)):
        start = [i * a for i, a in zip(place, apart, strict=True)]
        stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, counts, strides, strict=True)]
        part = lax.slice(x, start, stop, strides)
        total = part if total is None else total + part
    return total


def _open(jaxpr) -> tuple[Any, Sequence[Any]]:
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


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
        stacked.append(
            lax.concatenate([lax.expand_dims(x, (0,)) for x in column], 0)
            if column
            else lax.full((0, *aval.shape), 0, aval.dtype)
        )
        flags.append(any(mark[k] for mark in marks))
    return [*carry, *stacked], [*f_carry, *flags]


def _choose(branches, values, secret, here) -> tuple[list[Any], list[bool]]:
    index, operands = values[0], values[1:]
    results = [_walk(*_open(branch), operands, secret[1:], here) for branch in branches]
    last = np.int32(len(branches) - 1)
    which = lax.clamp(np.int32(0), lax.convert_element_type(index, np.int32), last)
    chosen = which if len(branches) > 2 else lax.convert_element_type(which, np.bool_)
    out, marks = [], []
    for k in range(len(results[0][0])):
        cases = [jnp.asarray(r[0][k]) for r in results]
        out.append(cases[0] if len(cases) == 1 else lax.select_n(chosen, *cases))
        marks.append(any(r[1][k] for r in results))
    return out, marks


# --- from the flat jaxpr to the Program ---------------------------------------------------------


def _build(name, closed, flags, in_tree, out_tree, labels) -> Program:
    jaxpr = closed.jaxpr
    env: dict[Any, Var] = {}

    def define(v: Any, encrypted: bool) -> Var:
        dtype = v.aval.dtype if is_key(v.aval) else np.dtype(v.aval.dtype)
        var = Var(len(env), tuple(v.aval.shape), dtype, encrypted)
        env[v] = var
        return var

    def read(v: Any) -> Var | Literal:
        if not isinstance(v, core.Literal):
            return env[v]
        aval: Any = v.aval
        return Literal(np.asarray(v.val, aval.dtype))

    consts = tuple(
        (define(v, False), c if is_key(v.aval) else np.asarray(c))
        for v, c in zip(jaxpr.constvars, closed.consts, strict=True)
    )
    inputs = tuple(define(v, flag) for v, flag in zip(jaxpr.invars, flags, strict=True))
    equations: list[Equation] = []

    def program(outputs: tuple[Var | Literal, ...]) -> Program:
        kept = _alive(equations, outputs)
        return Program(name, kept, inputs, consts, outputs, in_tree, out_tree, labels)

    for eqn in jaxpr.eqns:
        operands = tuple(map(read, eqn.invars))
        encrypted = any(v.encrypted for v in operands)
        source = of_traceback(eqn.source_info.traceback)
        primitive, params = eqn.primitive, dict(eqn.params)
        if primitive.name == "pow" and operands[0].encrypted and not operands[1].encrypted:
            exponent = _whole(program(operands[1:]).constant(operands[1]))
            if exponent is not None and operands[0].shape == eqn.outvars[0].aval.shape:
                primitive, params = lax.integer_pow_p, {"y": exponent}
                operands = operands[:1]
        if encrypted and primitive is eqn.primitive:
            check(eqn, operands, source)
        outputs = tuple(define(v, encrypted) for v in eqn.outvars)
        equations.append(Equation(primitive, operands, outputs, params, source, len(equations)))
    return program(tuple(map(read, jaxpr.outvars)))


def _alive(equations: Sequence[Equation], outputs: Sequence[Var | Literal]) -> tuple[Equation, ...]:
    """The equations that the outputs depend on, numbered anew."""
    needed = {v.id for v in outputs if isinstance(v, Var)}
    kept: list[Equation] = []
    for eqn in reversed(equations):
        if any(v.id in needed for v in eqn.outputs):
            kept.append(eqn)
            needed.update(v.id for v in eqn.inputs if isinstance(v, Var))
    return tuple(dataclasses.replace(eqn, index=k) for k, eqn in enumerate(reversed(kept)))


def _whole(exponent: np.ndarray | None) -> int | None:
    if exponent is None or exponent.size == 0 or not np.all(exponent == exponent.flat[0]):
        return None
    value = float(exponent.flat[0])
    return int(value) if value.is_integer() and value >= 0 else None
