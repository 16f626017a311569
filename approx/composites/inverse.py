"""Reciprocals by iteration from a fitted seed: 1 / x by Goldschmidt, 1 / sqrt(x) by Newton.

Goldschmidt: a seed y, e = 1 - x y, then y <- y (1 + e), e <- e^2. After k steps the relative error
is e^(2^k). A step takes one level and two products (the last one product), and the first e one more
of each, so wide ranges cost few levels: the seed need only have relative error below 1.

Newton: y <- 1.5 y - x y^3 / 2, which squares the relative error; two levels and three products a
step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from approx.composites.graph import Composite, Node
from approx.enclosure import SPARED, certified, estimate
from approx.errors import ApproxError, DomainError, ToleranceError
from approx.plan import minimal_depth
from approx.polynomial import Interval, Polynomial
from approx.targets import NAMED

_SEEDS = (3, 5, 7, 9, 11, 13, 15, 19, 23, 27, 31, 39, 47, 55, 63, 95, 127)  # degrees tried


def inv(
    intervals: tuple[Interval, ...], tol: float | None, degree: int | None, steps: int | None
) -> Composite:
    """The composite that ``approx.composite("inv", ...)`` returns; see there."""
    a, b = intervals[0][0], intervals[-1][1]
    if len(intervals) > 1 or a <= 0.0 <= b:
        raise DomainError(f"inv needs one interval that does not hold 0, not [{a:g}, {b:g}].")
    return _shallowest("inv", _goldschmidt, (a, b), tol, degree, steps, most=11, added=0)


def inv_sqrt(
    intervals: tuple[Interval, ...], tol: float | None, degree: int | None, steps: int | None
) -> Composite:
    """The composite that ``approx.composite("inv_sqrt", ...)`` returns; see there."""
    a, b = intervals[0][0], intervals[-1][1]
    if a <= 0.0 or len(intervals) > 1:
        raise DomainError(f"inv_sqrt needs one interval (a, b) with 0 < a, not [{a:g}, {b:g}].")
    return _shallowest("inv_sqrt", _newton, (a, b), tol, degree, steps, most=6, added=1)


def _shallowest(
    kind: str,
    make: Callable[[Interval, int, int], Composite],
    hull: Interval,
    tol: float | None,
    degree: int | None,
    steps: int | None,
    *,
    most: int,
    added: int,
) -> Composite:
    """The composite of fewest levels, then products, within tol; or of the degree and steps given.

    Args:
      make: (domain, degree, steps) -> composite. most: steps tried.
      added: levels that any composite takes beyond its seed's least.
    """
    if tol is None:
        if degree is None or steps is None:
            raise ApproxError(f"{kind} needs degree= and steps=, or tol=.")
        return certified(make(hull, degree, steps), NAMED[kind])
    best: Composite | None = None
    for n in [degree] if degree is not None else _SEEDS:
        if best is not None and minimal_depth(n) + added > best.depth:
            break
        for count in [steps] if steps is not None else range(most + 1):
            graph = make(hull, n, count)
            if graph.max_error <= SPARED * tol:
                if best is None or (graph.depth, graph.products) < (best.depth, best.products):
                    best = graph
                break
    if best is not None:
        best = certified(best, NAMED[kind])
    if best is None or best.max_error > tol:
        a, b = hull
        raise ToleranceError(
            f"{kind} does not reach tol={tol:g} on [{a:g}, {b:g}]; narrow the domain, or raise "
            "degree and steps."
        )
    return best


@lru_cache(maxsize=64)
def _seed(name: str, hull: Interval, degree: int, weight: Callable[[Any], Any]) -> Polynomial:
    """The seed of least relative error, in float64 coefficients alone; claims nothing itself."""
    from approx.fitting import fit

    poly = fit(NAMED[name], hull, degree=degree, weight=weight)
    return dataclasses.replace(poly, tails=(), max_error=math.inf, certified=False)


def _goldschmidt(hull: Interval, degree: int, steps: int) -> Composite:
    seed = _seed("inv", hull, degree, np.abs)
    nodes = [Node("polynomial", (0,), seed)]

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes)

    y, error = 1, 0
    for step in range(steps):
        if step == 0:
            error = add(Node("product", (0, y)))
            error = add(Node("sum", (error,), factors=(-1.0,), constant=1.0))
        else:
            error = add(Node("product", (error, error)))
        factor = add(Node("sum", (error,), factors=(1.0,), constant=1.0))
        y = add(Node("product", (y, factor)))
    knobs = (("degree", degree), ("steps", steps))
    graph = Composite("inv", (hull,), tuple(nodes), math.inf, False, knobs)
    return dataclasses.replace(graph, max_error=estimate(graph, NAMED["inv"]))


def _newton(hull: Interval, degree: int, steps: int) -> Composite:
    seed = _seed("inv_sqrt", hull, degree, np.sqrt)
    nodes = [Node("polynomial", (0,), seed), Node("sum", (0,), factors=(-0.5,))]
    y, minus_half_x = 1, 2
    if steps == 0:
        nodes.pop()
    for _ in range(steps):  # y <- 1.5 y + (-x/2 y) y^2: two levels, three products
        n = len(nodes)
        nodes += [
            Node("product", (minus_half_x, y)),
            Node("product", (y, y)),
            Node("product", (n + 1, n + 2)),
            Node("sum", (y,), factors=(1.5,)),
            Node("sum", (n + 3, n + 4), factors=(1.0, 1.0)),
        ]
        y = n + 5
    knobs = (("degree", degree), ("steps", steps))
    graph = Composite("inv_sqrt", (hull,), tuple(nodes), math.inf, False, knobs)
    return dataclasses.replace(graph, max_error=estimate(graph, NAMED["inv_sqrt"]))
