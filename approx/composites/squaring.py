"""exp on (a, 0) by repeated squaring: a seed for exp(x / 2^k), squared k times.

The plain seed 1 + x / 2^k keeps the result within [0, 1] on (-2^(k+1), 0) and costs k products;
its error is about 2 e^-2 / 2^k. A minimax seed of higher degree needs fewer squarings: it is
accurate near 0 and merely small elsewhere, where the squarings crush it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from approx.composites.graph import Composite, Node
from approx.enclosure import SPARED, certified, estimate
from approx.errors import ApproxError, DomainError, ToleranceError
from approx.polynomial import Interval

_SEEDS = (1, 3, 5, 7, 11, 15, 23, 31, 47, 63, 95, 127)  # degrees tried for a tolerance
_WIDEST = 2.0**22  # width beyond which the grid of a fitted seed does not resolve exp near 0
_SHARES = (0.9, 0.6, 0.35, 0.2)  # of the tolerance, asked of the seed


def exp(
    intervals: tuple[Interval, ...],
    tol: float | None,
    squarings: int | None,
    degree: int | None,
) -> Composite:
    """The composite that ``approx.composite("exp_squaring", ...)`` returns; see there.

    With ``squarings`` and no degree the seed is 1 + x / 2^k. With only ``tol`` the fewest levels
    are taken, then the fewest products.
    """
    a, b = intervals[0][0], intervals[-1][1]
    if b > 0.0 or len(intervals) > 1:
        raise DomainError(
            f"exp_squaring needs one interval (a, b) with b <= 0, not [{a:g}, {b:g}]."
        )
    if squarings is None and tol is None:
        raise ApproxError("exp_squaring needs squarings= or tol=.")
    if squarings is not None and squarings < 0 or degree is not None and degree < 1:
        raise ApproxError("squarings is at least 0 and degree at least 1.")
    if tol is None:
        assert squarings is not None
        return certified(_best((a, b), squarings, degree or 1), np.exp)
    best: Composite | None = None
    seeds = _SEEDS if b - a <= _WIDEST else _SEEDS[:1]
    for n in [degree] if degree is not None else [1] if squarings is not None else seeds:
        for k in [squarings] if squarings is not None else _ladder((a, b), n):
            graph = _at((a, b), k, n, None)
            if best is not None and (graph.depth, graph.products) >= (best.depth, best.products):
                break  # more squarings only cost more
            graph = _reaching((a, b), k, n, tol)
            if graph is not None:
                best = graph
                break
    if best is not None:
        best = certified(best, np.exp)
    if best is None or best.max_error > tol:
        raise ToleranceError(
            f"exp_squaring does not reach tol={tol:g}; allow more squarings or a higher degree."
        )
    return best


def _ladder(hull: Interval, degree: int) -> range:
    """Squarings worth trying: from where |1 + x / 2^k| <= 1 on the domain for the plain seed.

    A seed of degree n that stays near [-1, 1] has slope at most 2 n^2 / (b - a) (Markov), and it
    must have about 2^-k at 0.
    """
    if degree > 1:
        least = math.log2(max(hull[1] - hull[0], 1e-300) / (4.0 * degree**2))
        start = max(0, math.floor(least)) if hull[1] > -1.0 else 0
        return range(start, start + 25)
    return range(max(0, math.ceil(math.log2(max(-hull[0], 2.0))) - 1), 41)


def _reaching(hull: Interval, k: int, degree: int, tol: float) -> Composite | None:
    for share in _SHARES if degree > 1 else (1.0,):
        graph = _at(hull, k, degree, share * tol)
        if graph.max_error <= SPARED * tol:
            return graph
    return None


def _best(hull: Interval, k: int, degree: int) -> Composite:
    """The graph of these knobs with the least error over a range of goals."""
    if degree == 1:
        return _at(hull, k, 1, 1.0)
    goals = [10.0 ** (-0.5 * i) for i in range(4, 25)]
    return min((_at(hull, k, degree, g) for g in goals), key=lambda c: c.max_error)


def _at(hull: Interval, k: int, degree: int, goal: float | None) -> Composite:
    """The graph for a goal; without a goal its shape only, of the right levels and products."""
    if degree == 1:
        seed = Node("sum", (0,), factors=(2.0**-k,), constant=1.0)
    elif goal is None:
        seed = _unfitted(hull, degree)
    else:
        seed = _fitted(hull, k, degree, goal)
    nodes = [seed] + [Node("product", (i + 1, i + 1)) for i in range(k)]
    knobs = (("degree", degree), ("squarings", k))
    graph = Composite("exp_squaring", (hull,), tuple(nodes), math.inf, False, knobs)
    if goal is None:
        return graph
    return dataclasses.replace(graph, max_error=estimate(graph, np.exp))


def _unfitted(hull: Interval, degree: int) -> Node:
    from approx.polynomial import Polynomial, affine_map

    series = tuple(1.0 / (k + 1) for k in range(degree + 1))  # no quotient vanishes
    shape = Polynomial(series, (hull,), *affine_map((hull,)))
    return Node("polynomial", (0,), shape)


def _fitted(hull: Interval, k: int, degree: int, goal: float) -> Node:
    """The seed q ~ exp(x / 2^k) whose error is weighted by what the squarings make of it.

    q^(2^k) errs by 2^k exp(x (1 - 2^-k)) |q - exp(x / 2^k)| to first order; where that weight
    vanishes, |q| need only stay below goal^(2^-k), so that its power stays below the goal.
    """
    from approx.fitting import fit

    power = 2.0**k
    floor = goal / (0.9 * goal ** (1.0 / power))

    def seed(x: np.ndarray) -> np.ndarray:
        return np.exp(x / power)

    def weight(x: np.ndarray) -> np.ndarray:
        return np.maximum(power * np.exp(x * (1.0 - 1.0 / power)), floor)

    poly = fit(seed, hull, degree=degree, weight=weight)
    return Node("polynomial", (0,), dataclasses.replace(poly, name=f"exp(x/2^{k})"))
