"""`trace`: reads a JAX function into a Program, and refuses what no polynomial can do."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jax.extend import core
from jax.interpreters import partial_eval as pe

from hesim.depth import longest_path
from hesim.errors import NotHomomorphicError, Obstacle, TraceError
from hesim.program import Equation, Literal, Program, Var, is_key
from hesim.source import Source, of_frames
from hesim.tracing.failures import explained
from hesim.tracing.frames import Frame, registered
from hesim.tracing.inline import Inliner
from hesim.tracing.objections import obstacle

__all__ = ["trace"]


def trace(
    fn: Callable[..., Any],
    *args: Any,
    encrypted: int | Sequence[int] | Any = (0,),
    name: str | None = None,
    **keywords: Any,
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
      keywords: none; arguments come by position.

    Returns:
      The Program: dead equations removed; jit, custom derivatives and remat inlined; scans over
      encrypted values unrolled; conditionals on public predicates turned into selections.

    Raises:
      NotHomomorphicError: an operation on encrypted values that additions and products cannot
        express: all of them, each named with the caller's file and line, the layer of a library
        that it lies in, and what to use instead.
      TraceError: `encrypted` does not fit the arguments, an encrypted leaf is not a float, Python
        control flow depends on a traced value, or NumPy or SciPy is asked to compute with one.

    Examples:
      >>> import hesim, numpy as np
      >>> program = hesim.trace(lambda x, w: (x * x) @ w, np.ones((2, 3)), np.ones((3, 4)))
      >>> [op.name for op in program.ops], program.depth  # x is encrypted, w is public
      (['mul', 'dot_general'], 2)
    """
    if not callable(fn):
        raise TraceError(f"trace takes a function first, not a {type(fn).__name__}.")
    if keywords:
        given = ", ".join(f"{key}={key}" for key in keywords)
        raise TraceError(
            f"trace takes the arguments of a function by position, not {', '.join(keywords)}= by "
            f"name: hesim.trace(lambda x, {', '.join(keywords)}: fn(x, {given}), ...)."
        )
    name = str(name or getattr(fn, "__name__", type(fn).__name__))
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

    def flat_fn(*leaves: Any):
        nonlocal out_tree
        out = fn(*tree_util.tree_unflatten(in_tree, leaves))
        flat, out_tree = tree_util.tree_flatten(out)
        return flat

    traced_at = _caller(name)
    with explained(name, fn, traced_at):
        closed = jax.make_jaxpr(flat_fn)(*avals)
    closed = _without_dead(closed)
    inline = Inliner()
    flat = jax.make_jaxpr(functools.partial(inline, closed, flags))(*avals)
    return _build(name, _without_dead(flat), flags, in_tree, out_tree, labels, inline, traced_at)


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
        if isinstance(leaf, np.ndarray | np.generic):
            raise TraceError(
                f"{label} is an array of dtype {leaf.dtype}, which JAX does not take: convert it, "
                f"np.asarray(x, np.float64)."
            ) from error
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
            raise TraceError(f"{flag!r} is not a bool")
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


# --- from the flat jaxpr to the Program ---------------------------------------------------------


def _build(
    name: str,
    closed: Any,
    flags: Sequence[bool],
    in_tree: Any,
    out_tree: Any,
    labels: tuple[str, ...],
    inline: Inliner,
    traced_at: Source | None,
) -> Program:
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
    obstacles: dict[tuple[str, str], Obstacle] = {}

    for eqn in jaxpr.eqns:
        operands = tuple(map(read, eqn.invars))
        encrypted = any(v.encrypted for v in operands)
        trail = inline.trail_of(eqn)
        source = of_frames(trail) or traced_at
        lost = any(v.encrypted and not _carried(v) for v in operands)
        if encrypted and not lost:  # what follows from an obstacle is none
            found = obstacle(eqn, operands, source, trail)
            if found is not None:
                obstacles.setdefault((str(source), found.layer or found.operation), found)
        outputs = tuple(define(v, encrypted) for v in eqn.outvars)
        made = Equation(eqn.primitive, operands, outputs, dict(eqn.params), source, len(equations))
        equations.append(made)
    if obstacles:
        raise NotHomomorphicError.of(list(obstacles.values()))
    results = tuple(map(read, jaxpr.outvars))
    kept = _alive(equations, results)
    depth, levels = longest_path(kept), longest_path(kept, anew=True)
    return Program(name, kept, inputs, consts, results, in_tree, out_tree, labels, depth, levels)


def _carried(value: Var | Literal) -> bool:
    """Whether CKKS can carry a value: real numbers."""
    return isinstance(value, Literal) or jnp.issubdtype(value.dtype, jnp.floating)


def _caller(name: str) -> Source | None:
    """Where a function is traced: the place of operations of a library function that is itself
    traced, which has no line of the caller's.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        found = of_frames((Frame(code.co_filename, frame.f_lineno, f"{name}, traced here"),))
        if found is not None and not code.co_filename.startswith(registered().packages):
            return found
        frame = frame.f_back
    return None


def _alive(equations: Sequence[Equation], outputs: Sequence[Var | Literal]) -> tuple[Equation, ...]:
    """The equations that the outputs depend on, numbered anew."""
    needed = {v.id for v in outputs if isinstance(v, Var)}
    kept: list[Equation] = []
    for eqn in reversed(equations):
        if any(v.id in needed for v in eqn.outputs):
            kept.append(eqn)
            needed.update(v.id for v in eqn.inputs if isinstance(v, Var))
    return tuple(dataclasses.replace(eqn, index=k) for k, eqn in enumerate(reversed(kept)))
