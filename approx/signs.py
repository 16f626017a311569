"""Sign, ReLU and absolute value by composition of odd minimax polynomials.

Each stage is the minimax approximation of sign on the image of the stage before it (Lee, Lee, No
and Kim 2021, "Minimax approximation of sign function by composite polynomial for homomorphic
comparison"). Every stage but the last is divided by the largest value it takes, so that the next
one has half width exactly 1 and its affine map costs nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from approx.composites import Composite, Node, estimate
from approx.errors import ApproxError, DomainError, ToleranceError
from approx.plan import minimal_depth, structure
from approx.polynomial import Interval, Polynomial

_SLACK = 1e-13  # widening of each image, above the rounding of the coefficients
_STAGES = (3, 7, 15, 31)  # the largest odd degrees of 2 to 5 levels


@lru_cache(maxsize=1024)
def _stage(degree: int, gap: float) -> tuple[Polynomial, float]:
    """The minimax sign polynomial on [-1, -gap] | [gap, 1], and a bound on its error."""
    from approx.fitting import fit

    poly = fit("sign", [(-1.0, -gap), (gap, 1.0)], degree=degree)
    return poly, poly.max_error


def stages(degrees: Sequence[int], gap: float) -> tuple[list[Polynomial], float]:
    """Polynomials whose composition approximates sign on gap <= |x| <= 1, and the final error."""
    chain: list[Polynomial] = []
    error = 1.0
    for position, degree in enumerate(degrees):
        if degree < 1 or degree % 2 == 0:
            raise ApproxError(f"The stages of sign are odd polynomials; degree {degree} is not.")
        poly, error = _stage(degree, gap)
        if error >= 1.0:
            raise ToleranceError(
                f"A stage of degree {degree} cannot approximate sign beyond a gap of {gap:g}; "
                "raise its degree or widen the gap."
            )
        if position < len(degrees) - 1:
            top = (1.0 + error) * (1.0 + _SLACK)
            gap = (1.0 - error) * (1.0 - _SLACK) / top
            poly = poly.multiplied(1.0 / top)
        chain.append(poly)
    return chain, error


def sign(
    intervals: tuple[Interval, ...], tol: float | None, degrees: Sequence[int] | None
) -> Composite:
    """The sign composite on [-b, -a] | [a, b]; certified."""
    if len(intervals) != 2 or not intervals[0][1] < 0.0 < intervals[1][0]:
        raise DomainError("sign needs a union around a gap, such as [(-1, -0.01), (0.01, 1)].")
    half_width = max(-intervals[0][0], intervals[1][1])
    gap = min(-intervals[0][1], intervals[1][0]) / half_width
    if degrees is None:
        degrees = _search_sign(gap, _needed(tol, "sign"))
    chain, error = stages(degrees, gap)
    chain[0] = chain[0].rescaled(1.0 / half_width)
    if tol is not None and error > tol:
        raise ToleranceError(f"Degrees {tuple(degrees)} reach {error:.2e}, not tol={tol:g}.")
    nodes = tuple(Node("polynomial", (i,), p) for i, p in enumerate(chain))
    return Composite("sign", intervals, nodes, error, True, (("degrees", tuple(degrees)),))


def relu(
    intervals: tuple[Interval, ...],
    tol: float | None,
    degrees: Sequence[int] | None,
    gap: float | None,
) -> Composite:
    """x * (1/2 + sign(x)/2); max_error is an estimate on a dense grid."""
    a, b = intervals[0][0], intervals[-1][1]
    if len(intervals) != 1 or not a < 0.0 < b:
        raise DomainError(f"relu needs one interval (a, b) with a < 0 < b, not [{a:g}, {b:g}].")
    half_width = max(-a, b)
    if degrees is not None:
        best = _balanced(intervals, half_width, degrees, gap)
        if tol is not None and best.max_error > tol:
            raise ToleranceError(
                f"Degrees {tuple(degrees)} reach {best.max_error:.2e}, not tol={tol:g}; "
                "use more stages or higher degrees."
            )
        return best
    goal = _needed(tol, "relu")
    # Outside the gap the error at x is |x| |s - sign| / 2; inside, the steep rise of s leaves
    # between 1/16 and 1/3 of the gap, and no rule says which: candidates are tried by cost.
    relative = min(goal / half_width, 0.45)
    candidates: set[tuple[int, ...]] = set()
    for share in (16.0, 12.0, 8.0, 5.0, 3.0):
        if share * relative < 0.9:
            candidates.add(_search_sign(share * relative, min(2.0 * relative, 0.9)))
    for tried in sorted(candidates or {(3,)}, key=_cost):
        graph = _balanced(intervals, half_width, tried, gap)
        if graph.max_error <= goal:
            return _trimmed(graph, intervals, half_width, goal, gap)
    raise ToleranceError(f"relu does not reach tol={goal:g}; narrow the domain or relax tol.")


def absolute(
    intervals: tuple[Interval, ...],
    tol: float | None,
    degrees: Sequence[int] | None,
    gap: float | None,
) -> Composite:
    """x * sign(x) = 2 relu(x) - x with the same sign: twice relu's error, the same levels."""
    half = relu(intervals, None if tol is None else 0.5 * tol, degrees, gap)
    last = half.nodes[-2]
    assert last.polynomial is not None
    doubled = dataclasses.replace(last, polynomial=last.polynomial.multiplied(2.0, -1.0))
    nodes = (*half.nodes[:-2], doubled, half.nodes[-1])
    graph = dataclasses.replace(half, name="abs", nodes=nodes)
    return dataclasses.replace(graph, max_error=estimate(graph, np.abs))


def _cost(degrees: Sequence[int]) -> tuple[int, int]:
    """Levels and products of a chain of stages."""
    products = sum(_products(d) for d in degrees)
    return sum(minimal_depth(d) for d in degrees), products


@lru_cache(maxsize=256)
def _products(degree: int) -> int:
    return structure(degree, 1, minimal_depth(degree)).total(degree, 1, minimal_depth(degree))


def _trimmed(
    graph: Composite,
    intervals: tuple[Interval, ...],
    half_width: float,
    goal: float,
    gap: float | None,
) -> Composite:
    """The graph with lower degrees of the same depth wherever the goal stays within reach."""
    degrees = list(dict(graph.knobs)["degrees"])
    for position in range(len(degrees)):
        while True:
            lower = degrees[position] - 2
            while lower >= 3 and _products(lower) == _products(degrees[position]):
                lower -= 2
            if lower < 3 or minimal_depth(lower) < minimal_depth(degrees[position]):
                break
            trial = [*degrees[:position], lower, *degrees[position + 1 :]]
            candidate = _balanced(intervals, half_width, trial, gap)
            if candidate.max_error > goal:
                break
            degrees, graph = trial, candidate
    return graph


def _needed(tol: float | None, kind: str) -> float:
    if tol is None:
        raise ApproxError(f"{kind} needs degrees= (such as (15, 15, 27)) or tol=.")
    return tol


def _balanced(
    intervals: tuple[Interval, ...], half_width: float, degrees: Sequence[int], gap: float | None
) -> Composite:
    """The relu of these degrees whose gap gives the least error."""
    if gap is not None:
        return _relu_graph(intervals, half_width, degrees, gap)
    low, high = math.log(1e-7), math.log(0.5)
    best: Composite | None = None
    for _ in range(16):  # the sign's error falls as the gap grows, and the error inside grows
        middle = 0.5 * (low + high)
        try:
            graph = _relu_graph(intervals, half_width, degrees, math.exp(middle))
        except ToleranceError:
            low = middle
            continue
        if best is None or graph.max_error < best.max_error:
            best = graph
        x = np.linspace(0.0, half_width * math.exp(middle), 1001)
        inside = float(np.max(np.abs(graph(x) - x)))
        if inside < 0.98 * graph.max_error:
            low = middle
        else:
            high = middle
    if best is None:
        raise ToleranceError(f"Degrees {tuple(degrees)} reach no sign; raise them.")
    return best


def _relu_graph(
    intervals: tuple[Interval, ...], half_width: float, degrees: Sequence[int], gap: float
) -> Composite:
    chain, _ = stages(degrees, gap)
    chain[-1] = chain[-1].multiplied(0.5, 0.5)
    chain[0] = chain[0].rescaled(1.0 / half_width)
    nodes = [Node("polynomial", (i,), p) for i, p in enumerate(chain)]
    nodes.append(Node("product", (0, len(chain))))
    knobs = (("degrees", tuple(degrees)), ("gap", gap))
    graph = Composite("relu", intervals, tuple(nodes), math.inf, False, knobs)
    return dataclasses.replace(graph, max_error=estimate(graph, lambda x: np.maximum(x, 0.0)))


# --- degrees of fewest levels -------------------------------------------------------------------


def _search_sign(gap: float, tol: float) -> tuple[int, ...]:
    """Degrees that bring the gap to an error of tol at the fewest levels, then products.

    Breadth first over levels: after L levels, keep for each product count the largest reached gap.
    """
    products = {d: _products(d) for d in _STAGES}
    frontier: dict[int, list[tuple[float, int, tuple[int, ...]]]] = {0: [(gap, 0, ())]}
    goal = (1.0 - tol) / (1.0 + tol)
    for level in range(2, 61):
        reached: list[tuple[float, int, tuple[int, ...]]] = []
        for d in _STAGES:
            for from_gap, cost, path in frontier.get(level - minimal_depth(d), []):
                error = _stage(d, _rounded(from_gap))[1]
                if error < 1.0:
                    to_gap = (1.0 - error) * (1.0 - _SLACK) / ((1.0 + error) * (1.0 + _SLACK))
                    reached.append((to_gap, cost + products[d], (*path, d)))
        done = [r for r in reached if r[0] >= goal]
        if done:
            return min(done, key=lambda r: (r[1], -r[0]))[2]
        frontier[level] = _pareto(reached)
    raise ToleranceError(f"sign does not reach tol={tol:g} from a gap of {gap:g} in 60 levels.")


def _pareto(
    reached: list[tuple[float, int, tuple[int, ...]]],
) -> list[tuple[float, int, tuple[int, ...]]]:
    kept: list[tuple[float, int, tuple[int, ...]]] = []
    for candidate in sorted(reached, key=lambda r: (r[1], -r[0])):
        if not kept or candidate[0] > kept[-1][0]:
            kept.append(candidate)
    return kept[:6]


def _rounded(gap: float) -> float:
    """The gap rounded down to 1/16 octave from 0 or from 1, so that the search meets few values."""
    if gap < 0.5:
        return 2.0 ** (math.floor(16.0 * math.log2(gap)) / 16.0)
    return 1.0 - 2.0 ** (math.ceil(16.0 * math.log2(1.0 - gap)) / 16.0)
