"""Functions of masked values: a public mask is moved behind the function, f(where(m, x, -1e9)) to
where(m, f(x), f(-1e9)), so that the function meets the values alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax._src import source_info_util
from jax.extend import core

from hesim.approximating.graph import Graph
from hesim.approximating.rewriting import FAR
from hesim.tracing.flat import Flat, without_dead

__all__ = ["masks_after_functions"]


class _Masked(NamedTuple):
    """where(which == case, value, number), not yet computed."""

    which: Any
    case: int
    value: Any
    number: float

    def whole(self, like: Any) -> Any:
        number = lax.full(like.aval.shape, self.number, like.aval.dtype)
        cases = (self.value, number) if self.case == 0 else (number, self.value)
        return lax.select_n(self.which, *cases)


def masks_after_functions(flat: Flat) -> Flat:
    """The same function; as it is if nothing is masked so."""
    graph = Graph(flat)
    if not any(_far_case(graph, eqn) is not None for eqn in flat.closed.jaxpr.eqns):
        return flat
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in flat.closed.jaxpr.invars]
    closed = jax.make_jaxpr(functools.partial(_walk, graph))(*avals)
    return replace(flat, closed=without_dead(closed))


def _far_case(graph: Graph, eqn: Any) -> int | None:
    """Number of the encrypted case of a public choice of which the other is a far number."""
    if eqn.primitive.name != "select_n" or len(eqn.invars) != 3 or graph.secret(eqn.invars[0]):
        return None
    for case, (one, other) in enumerate((eqn.invars[1:], eqn.invars[:0:-1])):
        number = graph.uniform(other)
        if graph.secret(one) and number is not None and abs(number) >= FAR:
            return case
    return None


def _walk(graph: Graph, *args: Any) -> list[Any]:
    closed = graph.flat.closed
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        if isinstance(v, core.Literal):
            return v.val
        value = env[v]
        return value.whole(v) if isinstance(value, _Masked) else value

    for eqn in jaxpr.eqns:
        stack = eqn.source_info.name_stack
        traceback = eqn.source_info.traceback
        with source_info_util.user_context(traceback, name_stack=stack), eqn.ctx.manager:
            env.update(zip(eqn.outvars, _results(graph, eqn, env, read), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _results(graph: Graph, eqn: Any, env: dict[Any, Any], read: Callable[[Any], Any]) -> list[Any]:
    params = eqn.primitive.get_bind_params(eqn.params)
    case = _far_case(graph, eqn)
    if case is not None:
        number = graph.uniform(eqn.invars[2 - case])
        assert number is not None
        return [_Masked(read(eqn.invars[0]), case, read(eqn.invars[1 + case]), float(number))]
    held = [None if isinstance(v, core.Literal) else env.get(v) for v in eqn.invars]
    masked = [h for h in held if isinstance(h, _Masked)]
    if masked and graph.unary(eqn.outvars[0]):
        first = masked[0]
        values = [
            h.value if isinstance(h, _Masked) else read(v)
            for h, v in zip(held, eqn.invars, strict=True)
        ]
        root = graph.maker(graph.root(eqn.outvars[0]))
        far = graph.uniform(root.invars[2 - first.case])
        number = float(graph.expression(eqn.outvars[0])(np.asarray(far)))
        return [_Masked(first.which, first.case, eqn.primitive.bind(*values, **params), number)]
    out = eqn.primitive.bind(*map(read, eqn.invars), **params)
    return list(out) if eqn.primitive.multiple_results else [out]
