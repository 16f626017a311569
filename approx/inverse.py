"""1 / x by Goldschmidt's iteration: a seed y, e = 1 - x y, then y <- y (1 + e), e <- e^2.

After k steps the relative error is e^(2^k). A step takes one level and two products (the last one
product), and the first e one more of each, so wide ranges cost few levels: the seed need only have
relative error below 1.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from approx.composites import SEEDS, Composite, Node, estimate
from approx.errors import ApproxError, DomainError, ToleranceError
from approx.plan import minimal_depth
from approx.polynomial import Interval
from approx.targets import NAMED


def inv(
    intervals: tuple[Interval, ...], tol: float | None, degree: int | None, steps: int | None
) -> Composite:
    """The composite that ``approx.composite("inv", ...)`` returns; see there."""
    a, b = intervals[0][0], intervals[-1][1]
    if len(intervals) > 1 or a <= 0.0 <= b:
        raise DomainError(f"inv needs one interval that does not hold 0, not [{a:g}, {b:g}].")
    if tol is None:
        if degree is None or steps is None:
            raise ApproxError("inv needs degree= and steps=, or tol=.")
        return _goldschmidt((a, b), degree, steps)
    best: Composite | None = None
    for n in [degree] if degree is not None else SEEDS:
        if best is not None and minimal_depth(n) > best.depth:
            break
        for count in [steps] if steps is not None else range(12):
            graph = _goldschmidt((a, b), n, count)
            if graph.max_error <= tol:
                if best is None or (graph.depth, graph.products) < (best.depth, best.products):
                    best = graph
                break
    if best is None:
        raise ToleranceError(
            f"inv does not reach tol={tol:g} on [{a:g}, {b:g}]; narrow the domain, or raise "
            "degree and steps."
        )
    return best


def _goldschmidt(hull: Interval, degree: int, steps: int) -> Composite:
    from approx.fitting import fit

    seed = fit(NAMED["inv"], hull, degree=degree, weight=np.abs)
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
