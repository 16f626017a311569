"""Functions of masked values: a public mask is moved behind the function, f(where(m, x, -1e9)) to
where(m, f(x), f(-1e9)), so that the function meets the values alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax._src import source_info_util
from jax.extend import core

from hesim.approximating.places.elementwise import elementwise
from hesim.approximating.places.graph import Graph, is_float
from hesim.approximating.rewritings.rewriting import FAR, far_case
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
    if not any(far_case(graph, eqn) is not None for eqn in flat.closed.jaxpr.eqns):
        return flat
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in flat.closed.jaxpr.invars]
    closed = jax.make_jaxpr(functools.partial(_walk, graph))(*avals)
    return replace(flat, closed=without_dead(closed))


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
    case = far_case(graph, eqn)
    if case is not None:
        number = graph.uniform(eqn.invars[2 - case])
        assert number is not None
        return [_Masked(read(eqn.invars[0]), case, read(eqn.invars[1 + case]), float(number))]
    held = [None if isinstance(v, core.Literal) else env.get(v) for v in eqn.invars]
    masked = [h for h in held if isinstance(h, _Masked)]
    number = _number(graph, eqn, held) if masked else None
    if number is not None:
        values = [
            h.value if isinstance(h, _Masked) else read(v)
            for h, v in zip(held, eqn.invars, strict=True)
        ]
        value = eqn.primitive.bind(*values, **params)
        return [_Masked(masked[0].which, masked[0].case, value, number)]
    out = eqn.primitive.bind(*map(read, eqn.invars), **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _number(graph: Graph, eqn: Any, held: Sequence[Any]) -> float | None:
    """What an equation makes of the numbers behind masks; None if the mask is not to be moved
    behind it.
    """
    masked = [h for h in held if isinstance(h, _Masked)]
    alike = all(h.which is masked[0].which and h.case == masked[0].case for h in masked)
    function = elementwise(eqn)
    if not alike or function is None or not is_float(eqn.outvars[0]):
        return None
    if len(masked) == 1 and eqn.primitive.name in ("add", "sub") and _far(masked[0].number):
        first = isinstance(held[0], _Masked) or eqn.primitive.name == "add"
        return masked[0].number if first else -masked[0].number  # still far, whatever is added
    pairs = list(zip(held, eqn.invars, strict=True))
    numbers = [h.number if isinstance(h, _Masked) else graph.uniform(v) for h, v in pairs]
    if any(n is None for n in numbers):
        return None
    with np.errstate(all="ignore"):
        return float(function(*numbers))


def _far(number: float) -> bool:
    return abs(number) >= FAR
