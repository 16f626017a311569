"""What takes several encrypted values, or compares them, written with functions of one value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import source_info_util
from jax.extend import core

from hesim.approximating.places.elementwise import FUNCTIONS
from hesim.approximating.places.graph import Graph, is_float
from hesim.approximating.rewritings import maxima
from hesim.tracing.flat import Flat, without_dead

__all__ = ["Decisions", "FAR", "Path", "far_case", "hides", "replaceable", "rewritten"]


Path = tuple[int, ...]

FAR = 1e3
"""Size of a number that stands for infinity in a mask."""


@dataclass(frozen=True)
class Decisions:
    """What the values on the calibration batches tell of operations, by their paths.

    Attributes:
      shifts: maxima that only shift what is taken from them, and how they are replaced.
      chosen: comparisons that always come out in one way: number of the operand that max, min,
        clamp and select_n give, or what the comparison says.
      masks: sums with a public value that is far below everything where it masks.
    """

    shifts: Mapping[Path, maxima.Shift]
    chosen: Mapping[Path, int]
    masks: frozenset[Path] = frozenset()


class _Walk:
    """State of one walk: values of variables, reciprocals that were taken, and comparisons of which
    it is known what they say.
    """

    def __init__(self, graph: Graph, args: Sequence[Any]):
        jaxpr = graph.flat.closed.jaxpr
        self.env: dict[Any, Any] = dict(zip(jaxpr.constvars, graph.flat.closed.consts, strict=True))
        self.env.update(zip(jaxpr.invars, args, strict=True))
        self.reciprocals: dict[Any, Any] = {}
        self.said: dict[Any, bool] = {}

    def read(self, v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else self.env[v]


@dataclass(frozen=True, eq=False)
class _Step:
    """One equation of the walk."""

    eqn: Any
    graph: Graph
    decisions: Decisions
    path: Path
    walk: _Walk

    def secret(self, number: int) -> bool:
        return self.graph.secret(self.eqn.invars[number])


Rule = Callable[[_Step, Sequence[Any]], Any]
"""The results of an equation in other operations; None where it stays."""


def rewritten(flat: Flat, decisions: Decisions) -> Flat:
    """The same function, in which whatever additions and products cannot express is a function of
    one value, or has no other form.
    """
    graph = Graph(flat)
    jaxpr = flat.closed.jaxpr
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
    walk = functools.partial(_walk, graph, decisions)
    return replace(flat, closed=without_dead(jax.make_jaxpr(walk)(*avals)))


def _walk(graph: Graph, decisions: Decisions, *args: Any) -> list[Any]:
    jaxpr = graph.flat.closed.jaxpr
    walk = _Walk(graph, args)
    for eqn in jaxpr.eqns:
        stack, traceback = eqn.source_info.name_stack, eqn.source_info.traceback
        with source_info_util.user_context(traceback, name_stack=stack), eqn.ctx.manager:
            results = _results(graph, decisions, eqn, walk)
        walk.env.update(zip(eqn.outvars, results, strict=True))
    return [walk.read(v) for v in jaxpr.outvars]


def _results(graph: Graph, decisions: Decisions, eqn: Any, walk: _Walk) -> list[Any]:
    values = [walk.read(v) for v in eqn.invars]
    rule = _RULES.get(eqn.primitive.name)
    if rule is not None and any(graph.secret(v) for v in eqn.invars):
        path = graph.flat.mark_of(eqn).path
        made = rule(_Step(eqn, graph, decisions, path, walk), values)
        if made is not None:
            return list(made) if eqn.primitive.multiple_results else [made]
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


# --- the table ----------------------------------------------------------------------------------


def _whole(step: _Step) -> bool:
    """Whether an operation is part of a function of one value."""
    return step.graph.unary(step.eqn.outvars[0])


def _full(step: _Step, value: Any) -> Any:
    (out,) = step.eqn.outvars
    value = jnp.asarray(value, out.aval.dtype)
    return value if value.shape == out.aval.shape else jnp.broadcast_to(value, out.aval.shape)


def _larger(step: _Step, values: Sequence[Any]) -> Any:
    if step.path in step.decisions.chosen:
        return _full(step, values[step.decisions.chosen[step.path]])
    if _whole(step) and not (step.secret(0) and step.secret(1)):
        return None
    a, b = values if step.secret(0) else values[::-1]
    return maxima.larger(a, b)


def _smaller(step: _Step, values: Sequence[Any]) -> Any:
    if step.path in step.decisions.chosen:
        return _full(step, values[step.decisions.chosen[step.path]])
    if _whole(step) and not (step.secret(0) and step.secret(1)):
        return None
    a, b = values if step.secret(0) else values[::-1]
    return maxima.smaller(a, b)


def _clamped(step: _Step, values: Sequence[Any]) -> Any:
    if step.path in step.decisions.chosen:
        return _full(step, values[step.decisions.chosen[step.path]])
    if _whole(step):
        return None
    low, x, high = values
    if any(step.secret(k) for k in (0, 2)):
        return maxima.smaller(maxima.larger(low, x), high)
    return maxima.smaller(maxima.larger(x, low), high)


def _quotient(step: _Step, values: Sequence[Any]) -> Any:
    constant = step.graph.uniform(step.eqn.invars[0]) is not None
    if not step.secret(1) or constant and _whole(step):
        return None
    return values[0] * _reciprocal(step, step.eqn.invars[1])


def _reciprocal(step: _Step, var: Any) -> Any:
    """1 / a value, taken before it is spread over an axis."""
    maker: Any = step.graph.maker(var)
    if maker is not None and maker.primitive.name in ("broadcast_in_dim", "reshape"):
        inner = _reciprocal(step, maker.invars[0])
        return maker.primitive.bind(inner, **maker.primitive.get_bind_params(maker.params))
    found = step.walk.reciprocals.get(var)
    if found is None:
        value = step.walk.read(var)
        found = step.walk.reciprocals[var] = lax.div(jnp.ones_like(value), value)
    return found


def _whole_power(step: _Step, values: Sequence[Any]) -> Any:
    power, (base,) = step.eqn.params["y"], step.eqn.invars
    if power >= 0 or step.graph.unary(base):
        return None
    inverse = _reciprocal(step, base)
    return inverse if power == -1 else lax.integer_pow(inverse, -power)


def _power(step: _Step, values: Sequence[Any]) -> Any:
    if _whole(step):
        return None
    base, exponent = values
    return jnp.exp(exponent * jnp.log(base))


def _compared(step: _Step, values: Sequence[Any]) -> Any:
    (out,) = step.eqn.outvars
    said = step.decisions.chosen.get(step.path)
    name = step.eqn.primitive.name
    if name in ("eq", "ne") and values[0] is values[1]:
        said = int(name == "eq")
    if said is not None:
        step.walk.said[out] = bool(said)
        return lax.full(out.aval.shape, bool(said))
    if _whole(step) or not all(is_float(v) for v in step.eqn.invars):
        return None
    a, b = values
    return step.eqn.primitive.bind(a - b, jnp.zeros_like(a), **step.eqn.params)


def _chosen(step: _Step, values: Sequence[Any]) -> Any:
    which, *cases = values
    said = step.decisions.chosen.get(step.path)
    if said is None and not isinstance(step.eqn.invars[0], core.Literal):
        said = step.walk.said.get(step.eqn.invars[0])
    if said is not None:
        return cases[said]
    if _whole(step) or not step.secret(0) or len(cases) != 2 or which.dtype != np.bool_:
        return None
    no, yes = cases
    return no + _indicator(step, step.eqn.invars[0], no.dtype) * (yes - no)


def _indicator(step: _Step, var: Any, dtype: Any) -> Any:
    """1 where a comparison holds and 0 elsewhere, as a function of what is compared."""
    if isinstance(var, core.Literal) or not step.graph.secret(var):
        return lax.convert_element_type(step.walk.read(var), dtype)
    maker: Any = step.graph.maker(var)
    name, inner = maker.primitive.name, maker.invars
    if name in ("broadcast_in_dim", "reshape", "transpose", "squeeze"):
        value = _indicator(step, inner[0], dtype)
        return maker.primitive.bind(value, **maker.primitive.get_bind_params(maker.params))
    if name == "convert_element_type" and not is_float(inner[0]):
        return _indicator(step, inner[0], dtype)
    if name == "not":
        return 1 - _indicator(step, inner[0], dtype)
    if name in ("and", "or") and not step.graph.unary(var):
        a, b = (_indicator(step, v, dtype) for v in inner)
        return a * b if name == "and" else a + b - a * b
    return lax.convert_element_type(step.walk.read(var), dtype)


def _masked(step: _Step, values: Sequence[Any]) -> Any:
    if step.path not in step.decisions.masks:
        return None
    x, mask = values if step.secret(0) else values[::-1]
    far = mask < -FAR
    near = x + lax.select(far, jnp.zeros_like(mask), mask)
    return lax.select_n(jnp.broadcast_to(far, near.shape), near, _full(step, -FAR * FAR))


def hides(graph: Graph, masks: frozenset[Path], var: Any) -> tuple[str, Any] | None:
    """(how, the public operand) of what puts far numbers into a value where a mask says so: a
    "choice", whose predicate it is, or a "sum"; None if nothing does.
    """
    maker = graph.maker(var)
    if maker is None:
        return None
    if maker.primitive.name == "add" and graph.flat.mark_of(maker).path in masks:
        return "sum", next(v for v in maker.invars if not graph.secret(v))
    case = far_case(graph, maker)
    return None if case is None else (f"choice {case}", maker.invars[0])


def far_case(graph: Graph, eqn: Any) -> int | None:
    """Number of the encrypted case of a public choice of which the other is a far number."""
    if eqn.primitive.name != "select_n" or len(eqn.invars) != 3 or graph.secret(eqn.invars[0]):
        return None
    for case, (one, other) in enumerate((eqn.invars[1:], eqn.invars[:0:-1])):
        number = graph.uniform(other)
        if graph.secret(one) and number is not None and abs(number) >= FAR:
            return case
    return None


def _hidden(step: _Step) -> Any:
    """Where what a maximum is taken of holds far numbers; None if it holds none."""
    found = hides(step.graph, step.decisions.masks, step.eqn.invars[0])
    if found is None:
        return None
    how, public = found
    value = step.walk.read(public)
    if how == "sum":
        return jnp.broadcast_to(value < -FAR, step.eqn.invars[0].aval.shape)
    return value if how == "choice 0" else lax.bitwise_not(value)


def _maximum(sign: int) -> Rule:
    def rule(step: _Step, values: Sequence[Any]) -> Any:
        (x,), axes = values, step.eqn.params["axes"]
        shift = step.decisions.shifts.get(step.path)
        if shift is not None:
            hidden = _hidden(step) if shift.mean else None
            return shift.apply(x, axes, hidden)
        return sign * maxima.over_axes(sign * x, axes)

    return rule


def _windows(sign: int) -> Rule:
    def rule(step: _Step, values: Sequence[Any]) -> Any:
        return sign * maxima.over_windows(sign * values[0], step.eqn.params)

    return rule


def _cumulative(sign: int) -> Rule:
    def rule(step: _Step, values: Sequence[Any]) -> Any:
        p = step.eqn.params
        return sign * maxima.cumulative(sign * values[0], p["axis"], p["reverse"])

    return rule


_RULES: dict[str, Rule] = {
    "add": _masked,
    "max": _larger,
    "min": _smaller,
    "clamp": _clamped,
    "div": _quotient,
    "pow": _power,
    "integer_pow": _whole_power,
    "select_n": _chosen,
    "reduce_max": _maximum(1),
    "reduce_min": _maximum(-1),
    "reduce_window_max": _windows(1),
    "reduce_window_min": _windows(-1),
    "cummax": _cumulative(1),
    "cummin": _cumulative(-1),
    **dict.fromkeys(("lt", "le", "gt", "ge"), _compared),
    **dict.fromkeys(("eq", "ne", "is_finite"), _compared),
}


def replaceable(operation: str) -> bool:
    """Whether functions of one value, or several of them, can stand for a primitive."""
    return operation in _RULES or operation in FUNCTIONS
