"""What a function's values on calibration batches tell of its comparisons and maxima."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hesim.approximating.evaluate import exactly
from hesim.approximating.places.graph import Graph, is_float
from hesim.approximating.rewritings.maxima import Shift
from hesim.approximating.rewritings.rewriting import FAR, Decisions, Path, hides
from hesim.tracing.flat import Flat

__all__ = ["decided"]

_BUMP = 0.25
"""What is added to a maximum to see whether anything comes of it."""

_STILL = 2e-5
"""Part of the largest result by which the results may differ where nothing has come of it."""

_COMPARED = ("max", "min", "lt", "le", "gt", "ge", "eq", "ne")
_SINGULAR = frozenset({"rsqrt", "sqrt", "log", "pow"})
_LEAST_GAIN = 0.5
"""Natural logs by which a shift by the mean must bring maxima nearer to each other."""

Range = tuple[float, float]


@dataclass(frozen=True)
class _Met:
    """Ranges by path: of differences of what is compared, of maxima, of their distances from the
    mean, of public summands; and which maxima nothing depends on.
    """

    compared: Mapping[Path, Sequence[Range]]
    maxima: Mapping[Path, Sequence[Range]]
    publics: Mapping[Path, Sequence[Range]]
    still: frozenset[Path]


_MARGIN = 0.2
"""Part of its width by which a range must keep away from where a comparison turns, if none is
given."""


def decided(flat: Flat, batches: Sequence[Sequence[Any]], margin: float | None) -> Decisions:
    """What can be decided on argument leaves of calibration batches."""
    margin = _MARGIN if margin is None else margin
    graph = Graph(flat)
    watched = [eqn for eqn in flat.closed.jaxpr.eqns if _watched(graph, eqn)]
    if not watched:
        return Decisions({}, {})
    met = _met(graph, watched, batches)
    masks = frozenset(p for p, ranges in met.publics.items() if ranges[0][0] <= -FAR)
    known = {
        flat.mark_of(eqn).path: hides(graph, masks, eqn.invars[0]) is not None
        for eqn in watched
        if eqn.primitive.name == "reduce_max"
    }
    shifts = {path: _shift(met.maxima[path], known[path]) for path in met.still}
    return Decisions(shifts, _chosen(graph, met, margin), masks)


def _watched(graph: Graph, eqn: Any) -> bool:
    name = eqn.primitive.name
    secret = [graph.secret(v) for v in eqn.invars]
    if name == "add":
        return any(secret) and not all(secret) and _open(graph, eqn)
    watched = name in _COMPARED or name in ("clamp", "reduce_max")
    return watched and any(secret) and all(is_float(v) for v in eqn.invars)


def _open(graph: Graph, eqn: Any) -> bool:
    """Whether the public summand of a sum may be a mask."""
    (public,) = (v for v in eqn.invars if not graph.secret(v))
    return graph.uniform(public) is None and public.aval.ndim > 1


def _met(graph: Graph, watched: Sequence[Any], batches: Sequence[Sequence[Any]]) -> _Met:
    paths = [graph.flat.mark_of(eqn).path for eqn in watched]
    maxima = [p for p, e in zip(paths, watched, strict=True) if e.primitive.name == "reduce_max"]
    distinct = list(dict.fromkeys(maxima))
    number = {path: k for k, path in enumerate(distinct)}
    asked = {id(eqn) for eqn in watched}

    @jax.jit
    def look(leaves: Any, bumps: Any) -> Any:
        seen: dict[Path, list[Any]] = {}

        def hook(eqn: Any, read: Callable[[Any], Any], out: list[Any]) -> list[Any]:
            if id(eqn) not in asked:
                return out
            values = [read(v) for v in eqn.invars]
            path = graph.flat.mark_of(eqn).path
            seen.setdefault(path, []).append(_ranges(graph, eqn, values, out))
            if path not in number:
                return out
            (top,) = out
            noise = 0.5 + jax.random.uniform(jax.random.key(number[path]), top.shape, top.dtype)
            return [top + bumps[number[path]].astype(top.dtype) * noise]

        out = exactly(graph.flat, leaves, hook)
        merged = {p: jnp.stack([_low(rows), _high(rows)], -1) for p, rows in seen.items()}
        return [merged[p] for p in dict.fromkeys(paths)], out

    ranges: dict[Path, np.ndarray] = {}
    moved = np.zeros(len(distinct))
    size = 0.0
    for leaves in batches:
        rest = np.zeros(max(len(distinct), 1), np.float32)
        found, out = look(list(leaves), rest)
        for path, pair in zip(dict.fromkeys(paths), found, strict=True):
            ranges[path] = _wider(ranges.get(path), np.asarray(pair, np.float64))
        size = max(size, _largest(out))
        for k in range(len(distinct)):
            bumped = rest.copy()
            bumped[k] = _BUMP
            moved[k] = max(moved[k], _distance(look(list(leaves), bumped)[1], out))
    kinds = {p: e.primitive.name for p, e in zip(paths, watched, strict=True)}
    parts: list[dict[Path, Sequence[Range]]] = [{}, {}, {}]
    for path, pairs in ranges.items():
        kind = 1 if kinds[path] == "reduce_max" else 2 if kinds[path] == "add" else 0
        parts[kind][path] = [(float(low), float(high)) for low, high in pairs]
    still = frozenset(p for p, k in number.items() if moved[k] <= _STILL * size)
    compared, maxima_met, publics = parts
    return _Met(compared, maxima_met, publics, still)


def _ranges(graph: Graph, eqn: Any, values: Sequence[Any], out: Sequence[Any]) -> Any:
    """Rows (low, high) of what an equation is watched for."""
    name = eqn.primitive.name
    if name == "add":
        (public,) = (x for x, v in zip(values, eqn.invars, strict=True) if not graph.secret(v))
        asked = [public]
    elif name == "clamp":
        low, x, high = values
        asked = [x - low, high - x]
    elif name == "reduce_max":
        (x,), axes = values, tuple(eqn.params["axes"])
        valid = x > -FAR
        count = jnp.maximum(valid.sum(axes), 1)
        asked = [out[0], out[0] - jnp.where(valid, x, 0).sum(axes) / count, x]
    else:
        difference = jnp.asarray(values[0]) - jnp.asarray(values[1])
        asked = [jnp.abs(difference) if name in ("eq", "ne") else difference]
    return jnp.stack([jnp.stack([jnp.min(x), jnp.max(x)]) for x in map(jnp.asarray, asked)])


def _low(rows: Sequence[Any]) -> Any:
    return jnp.min(jnp.stack([row[:, 0] for row in rows]), 0)


def _high(rows: Sequence[Any]) -> Any:
    return jnp.max(jnp.stack([row[:, 1] for row in rows]), 0)


def _wider(known: np.ndarray | None, met: np.ndarray) -> np.ndarray:
    if known is None:
        return met
    low, high = np.minimum(known[:, 0], met[:, 0]), np.maximum(known[:, 1], met[:, 1])
    return np.stack([low, high], -1)


def _largest(values: Sequence[Any]) -> float:
    arrays = [np.asarray(x, np.float64) for x in values if jnp.issubdtype(x.dtype, jnp.floating)]
    return max((float(np.max(np.abs(a))) for a in arrays if a.size), default=0.0)


def _distance(values: Sequence[Any], others: Sequence[Any]) -> float:
    """The largest difference of results; infinite between whole numbers that differ."""
    found = 0.0
    for a, b in zip(values, others, strict=True):
        one, two = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if jnp.issubdtype(a.dtype, jnp.floating):
            found = max(found, float(np.max(np.abs(one - two), initial=0.0)))
        elif not np.array_equal(one, two):
            return np.inf
    return found


def _shift(ranges: Sequence[Range], maskable: bool) -> Shift:
    (low, high), (near, far), (least, _) = ranges
    whole = maskable or least > -FAR
    mean = whole and np.isfinite([near, far]).all() and far - near < high - low - _LEAST_GAIN
    return Shift(0.5 * (near + far) if mean else 0.5 * (low + high), bool(mean))


# --- comparisons --------------------------------------------------------------------------------


def _chosen(graph: Graph, met: _Met, margin: float) -> dict[Path, int]:
    found: dict[Path, int] = {}
    said: dict[Any, bool] = {}
    for eqn in graph.flat.closed.jaxpr.eqns:
        if not any(graph.secret(v) for v in eqn.invars):
            continue
        path, name = graph.flat.mark_of(eqn).path, eqn.primitive.name
        answer = _answer(graph, eqn, met.compared.get(path), margin, said)
        if answer is None:
            continue
        found[path] = answer
        if name not in ("max", "min", "clamp", "select_n"):
            said[eqn.outvars[0]] = bool(answer)
    return found


def _answer(
    graph: Graph, eqn: Any, ranges: Sequence[Range] | None, margin: float, said: Mapping[Any, bool]
) -> int | None:
    name = eqn.primitive.name
    if name == "is_finite":
        return 1
    if name == "select_n":
        known = said.get(eqn.invars[0])
        return None if known is None else int(known)
    if name in ("not", "broadcast_in_dim", "reshape", "and", "or"):
        return _of_bools(eqn, said)
    if ranges is None:
        return None
    if name in ("eq", "ne"):
        if eqn.invars[0] is eqn.invars[1]:
            return int(name == "eq")
        return int(name == "ne") if ranges[0][0] > 0.0 else None
    if name == "clamp":
        sides = [_side(graph, eqn, r, margin) for r in ranges]
        return 1 if sides == [1, 1] else 0 if sides[0] == -1 else 2 if sides[1] == -1 else None
    side = _side(graph, eqn, ranges[0], margin)
    if side is None:
        return None
    if name in ("max", "min"):
        return int((side < 0) == (name == "max"))
    return int(
        {
            "lt": side < 0,
            "le": side < 0,
        }.get(name, side > 0)
    )


def _of_bools(eqn: Any, said: Mapping[Any, bool]) -> int | None:
    if eqn.outvars[0].aval.dtype != np.bool_:
        return None
    known = [said.get(v) if not hasattr(v, "val") else None for v in eqn.invars]
    if any(k is None for k in known):
        return None
    if eqn.primitive.name == "not":
        return int(not known[0])
    return int(any(known) if eqn.primitive.name == "or" else all(known))


def _side(graph: Graph, eqn: Any, met: Range, margin: float) -> int | None:
    """1 where the first of two compared values is always the larger, -1 where the second is."""
    low, high = met
    if np.isinf(low) and np.isinf(high):
        return int(np.sign(low)) if low == high else None
    wider = margin * (high - low)
    slack = 1e-6 * max(abs(low), abs(high))
    guarded = _guarded(graph, eqn)
    if low - wider > 0.0 or guarded == 0 and low >= -slack:
        return 1
    return -1 if high + wider < 0.0 or guarded == 1 and high <= slack else None


def _guarded(graph: Graph, eqn: Any) -> int | None:
    """Number of the operand that a maximum with a constant only keeps away from where what follows
    is not defined, as that of a variance with 0 does; None if it is for something else.
    """
    constants = [graph.uniform(v) is not None for v in eqn.invars]
    if eqn.primitive.name != "max" or sum(constants) != 1:
        return None
    seen, waiting = set(), list(eqn.outvars)
    while waiting:
        v = waiting.pop()
        for user in graph.users.get(v, ()):
            if user.primitive.name in _SINGULAR or _divides(user, v):
                return constants.index(False)
            outs = [o for o in user.outvars if is_float(o) and o not in seen]
            shape = user.primitive.name in ("broadcast_in_dim", "reshape")
            waiting += [o for o in outs if shape or graph.root(o) is graph.root(v)]
            seen.update(outs)
    return None


def _divides(eqn: Any, var: Any) -> bool:
    if eqn.primitive.name == "integer_pow":
        return eqn.params["y"] < 0
    return eqn.primitive.name == "div" and eqn.invars[1] is var
