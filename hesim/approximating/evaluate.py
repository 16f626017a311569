"""Runs a flat jaxpr, with polynomials or anything else in its places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from jax._src import source_info_util
from jax.extend import core

from hesim.approximating.places.search import Found, Place
from hesim.tracing.flat import Flat

__all__ = ["exactly", "replaced"]

Hook = Callable[[Any, Callable[[Any], Any], list[Any]], list[Any]]
"""Of an equation, what reads variables, and its results: what stands for the results."""


def exactly(
    flat: Flat,
    leaves: Sequence[Any],
    hook: Hook | None = None,
    equations: Iterable[Any] | None = None,
    places: dict[Any, Place] | None = None,
    given: Callable[[Place, Any], Any] | None = None,
) -> list[Any]:
    """The results for argument leaves.

    Args:
      hook: called after each equation.
      equations: those to run; all by default.
      places, given: of a value that stands in a place, `given(place, root)` as soon as its root is
        there, instead of what its equation gives.
    """
    closed = flat.closed
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    waiting: dict[Any, list[Place]] = {}
    for place in (places or {}).values():
        waiting.setdefault(place.root, []).append(place)

    def read(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else env[v]

    def define(variables: Sequence[Any], values: Sequence[Any]) -> None:
        for v, value in zip(variables, values, strict=True):
            env[v] = value
            for place in waiting.get(v, ()):
                assert given is not None
                with _as_made(flat, place.told_by):
                    define([place.var], [given(place, value)])

    define(jaxpr.invars, leaves)
    for eqn in jaxpr.eqns if equations is None else equations:
        values = [read(v) for v in eqn.invars]
        with _as_made(flat, eqn), eqn.ctx.manager:
            params = eqn.primitive.get_bind_params(eqn.params)
            out = eqn.primitive.bind(*values, **params)
        out = list(out) if eqn.primitive.multiple_results else [out]
        define(eqn.outvars, out if hook is None else hook(eqn, read, out))
    return [read(v) for v in jaxpr.outvars]


def replaced(found: Found, leaves: Sequence[Any], given: Callable[[Place, Any], Any]) -> list[Any]:
    """The results where `given(place, root)` gives the values in the places."""
    return exactly(found.flat, leaves, equations=found.equations, places=found.places, given=given)


def _as_made(flat: Flat, eqn: Any) -> Any:
    """A context in which operations count as made where this one was."""
    traceback = flat.mark_of(eqn).traceback
    return nullcontext() if traceback is None else source_info_util.user_context(traceback)
