"""Where a flat jaxpr needs polynomials: functions of one value, as large as they come whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax.extend import core

from hesim.approximating.places.expressions import FREE, Expression
from hesim.approximating.places.graph import Graph, is_float
from hesim.approximating.places.names import known_name, label, rebased
from hesim.errors import Obstacle
from hesim.source import Source, of_frames
from hesim.tracing.flat import Flat
from hesim.tracing.objections import obstacle

__all__ = ["Found", "Place", "found_in"]

Key = tuple[tuple[int, ...], str]

_LINEAR = frozenset({"add", "sub", "add_any", "neg", "mul", "div", *FREE})
_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Place:
    """One value that a polynomial is to give.

    Attributes:
      var: it. root: the value that it is a function of.
      function: the function.
      key: the same in all steps of a loop, and whatever the shapes of the arguments are.
      name: of the function. known: whether `approx.fit` knows it by this name.
      source: the caller's line. told_by: the equation that has this line.
    """

    var: Any
    root: Any
    function: Expression
    key: Key
    name: str
    known: bool
    source: Source | None
    told_by: Any


@dataclass(frozen=True, eq=False)
class Found:
    """What a flat jaxpr needs.

    Attributes:
      graph: its values.
      places: by variable.
      equations: those that are computed once the places are given by polynomials, in order.
      obstacles: what remains that additions and products cannot express.
    """

    graph: Graph
    places: dict[Any, Place]
    equations: tuple[Any, ...]
    obstacles: tuple[Obstacle, ...]

    @property
    def flat(self) -> Flat:
        return self.graph.flat


def found_in(flat: Flat) -> Found:
    """Searches a flat jaxpr."""
    cut: dict[Any, None] = {}
    graph = Graph(flat)
    for _ in range(_ROUNDS):
        wanted = [v for v in _in_order(graph) if v not in cut and _leaves(graph, v)]
        new = [part for v in wanted for part in _parts(graph, v) if part not in cut]
        if not new:
            break
        cut.update(dict.fromkeys(new))
        graph = Graph(flat, cut)
    chosen = {v for v in cut if v in graph.impure and is_float(v)}
    equations, used = _needed(graph, chosen)
    places = {v: _place(graph, v) for v in used}
    return Found(graph, places, tuple(equations), tuple(_obstacles(graph, equations)))


def _in_order(graph: Graph) -> list[Any]:
    eqns = graph.flat.closed.jaxpr.eqns
    return [v for eqn in eqns for v in eqn.outvars if v in graph.impure]


def _leaves(graph: Graph, var: Any) -> bool:
    """Whether a value is read by what is no function of the same root, or is a result."""
    if not is_float(var):
        return False
    root = graph.root(var)
    if any(v is var for v in graph.flat.closed.jaxpr.outvars):
        return True
    outs = (out for eqn in graph.users.get(var, ()) for out in eqn.outvars)
    return any(not graph.unary(out) or graph.root(out) is not root for out in outs)


def _parts(graph: Graph, var: Any) -> list[Any]:
    """The values to be given by polynomials so that sums and multiples of them give this one: it
    alone, unless all of them are functions with a name.
    """
    found = _named_parts(graph, var, 0)
    return [var] if found is None else found


def _named_parts(graph: Graph, var: Any, deep: int) -> list[Any] | None:
    function, _ = rebased(graph.expression(var), graph.root(var))
    if is_float(var) and known_name(function) is not None:
        return [var]
    eqn = graph.maker(var)
    if eqn.primitive.name not in _LINEAR or deep > _ROUNDS or graph.forbidden(eqn):
        return None
    secret = [v for v in eqn.invars if graph.secret(v)]
    if eqn.primitive.name in ("mul", "div") and len(secret) > 1:
        return None
    found: list[Any] = []
    for v in secret:
        if v not in graph.impure:
            continue
        inner = _named_parts(graph, v, deep + 1) if is_float(v) else None
        if inner is None:
            return None
        found += [part for part in inner if part not in found]
    return found


def _needed(graph: Graph, chosen: set[Any]) -> tuple[list[Any], list[Any]]:
    """(equations that run, places that are reached) where polynomials give what is chosen."""
    jaxpr = graph.flat.closed.jaxpr
    wanted = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    kept, used = [], []
    for eqn in reversed(jaxpr.eqns):
        asked = [v for v in eqn.outvars if v in wanted]
        if not asked:
            continue
        if len(asked) == 1 and asked[0] in chosen:
            used.append(asked[0])
            wanted.add(_rebased_root(graph, asked[0]))
            continue
        kept.append(eqn)
        wanted.update(v for v in eqn.invars if not isinstance(v, core.Literal))
    return kept[::-1], used[::-1]


def _rebased_root(graph: Graph, var: Any) -> Any:
    return rebased(graph.expression(var), graph.root(var))[1]


def _place(graph: Graph, var: Any) -> Place:
    function, root = rebased(graph.expression(var), graph.root(var))
    mark = graph.flat.mark_of(graph.maker(var))
    name = known_name(function)
    told_by = _telling(graph, var)
    source = of_frames(graph.flat.mark_of(told_by).trail) or graph.flat.traced_at
    text = label(function, mark.trail) if name is None else name
    key = mark.path, function.key
    return Place(var, root, function, key, text, name is not None, source, told_by)


def _telling(graph: Graph, var: Any) -> Any:
    """The last equation of a place that is not only a multiple of a value, or its sum with a
    number: those may be of the next layer, as the 1 * x of Flax's pooling is.
    """
    eqn = graph.maker(var)
    while eqn.primitive.name in _LINEAR:
        secret = [v for v in eqn.invars if graph.secret(v)]
        if len(secret) != 1 or secret[0] not in graph.impure:
            break
        eqn = graph.maker(secret[0])
    return eqn


def _obstacles(graph: Graph, equations: list[Any]) -> list[Obstacle]:
    found: dict[tuple[str, str], Obstacle] = {}
    lost: set[Any] = set()
    for eqn in equations:
        if not any(graph.secret(v) for v in eqn.invars):
            continue
        if any(v in lost for v in eqn.invars if not isinstance(v, core.Literal)):
            lost.update(eqn.outvars)
            continue
        if not graph.forbidden(eqn):
            continue
        lost.update(v for v in eqn.outvars if not is_float(v))
        trail = graph.flat.mark_of(eqn).trail
        source = of_frames(trail) or graph.flat.traced_at
        secret = [_Secret(graph.secret(v)) for v in eqn.invars]
        one: Any = obstacle(eqn, secret, source, trail)  # pyright: ignore[reportArgumentType]
        found.setdefault((str(source), one.layer or one.operation), one)
    return list(found.values())


@dataclass(frozen=True)
class _Secret:
    """What `obstacle` asks of an operand."""

    encrypted: bool
