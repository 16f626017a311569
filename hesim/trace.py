"""`trace`: reads a JAX function into a Program, and refuses what no polynomial can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from hesim.depth import longest_path
from hesim.errors import NotHomomorphicError, Obstacle, TraceError
from hesim.program import Equation, Literal, Program, Var, is_key
from hesim.source import of_frames
from hesim.tracing.flat import Flat, flattened
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
    return _build(flattened(fn, args, encrypted, name))


# --- from the flat jaxpr to the Program ---------------------------------------------------------


def _build(flat: Flat) -> Program:
    closed, jaxpr = flat.closed, flat.closed.jaxpr
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
    inputs = tuple(define(v, flag) for v, flag in zip(jaxpr.invars, flat.flags, strict=True))
    equations: list[Equation] = []
    obstacles: dict[tuple[str, str], Obstacle] = {}

    for eqn in jaxpr.eqns:
        operands = tuple(map(read, eqn.invars))
        encrypted = any(v.encrypted for v in operands)
        trail = flat.mark_of(eqn).trail
        source = of_frames(trail) or flat.traced_at
        lost = any(v.encrypted and not _carried(v) for v in operands)
        if encrypted and not lost:  # what follows from an obstacle is none
            found = obstacle(eqn, operands, source, trail)
            if found is not None:
                obstacles.setdefault((str(source), found.layer or found.operation), found)
        outputs = tuple(define(v, encrypted) for v in eqn.outvars)
        made = Equation(eqn.primitive, operands, outputs, dict(eqn.params), source, len(equations))
        equations.append(made)
    if obstacles:
        all_of_them = list(obstacles.values())
        raise NotHomomorphicError.of(all_of_them, _by_itself(flat.name, all_of_them))
    results = tuple(map(read, jaxpr.outvars))
    kept = _alive(equations, results)
    depth, levels = longest_path(kept), longest_path(kept, anew=True)
    return Program(
        *(flat.name, kept, inputs, consts, results),
        *(flat.in_tree, flat.out_tree, flat.labels, depth, levels),
    )


def _by_itself(name: str, obstacles: Sequence[Obstacle]) -> str:
    """What `hesim.approximate` would do about obstacles; empty if nothing."""
    from hesim.approximating.rewritings.rewriting import replaceable

    operations = [one.operation for one in obstacles]
    rest = list(dict.fromkeys(f"`{op}`" for op in operations if not replaceable(op)))
    if all(not replaceable(op) for op in operations):
        return ""
    but = f", all but {', '.join(rest)}" if rest else ""
    return f"hesim.approximate({name}, batches) puts polynomials in their places by itself{but}."


def _carried(value: Var | Literal) -> bool:
    """Whether CKKS can carry a value: real numbers."""
    return isinstance(value, Literal) or jnp.issubdtype(value.dtype, jnp.floating)


def _alive(equations: Sequence[Equation], outputs: Sequence[Var | Literal]) -> tuple[Equation, ...]:
    """The equations that the outputs depend on, numbered anew."""
    needed = {v.id for v in outputs if isinstance(v, Var)}
    kept: list[Equation] = []
    for eqn in reversed(equations):
        if any(v.id in needed for v in eqn.outputs):
            kept.append(eqn)
            needed.update(v.id for v in eqn.inputs if isinstance(v, Var))
    return tuple(dataclasses.replace(eqn, index=k) for k, eqn in enumerate(reversed(kept)))
