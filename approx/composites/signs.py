"""Sign, and ReLU, absolute value and maximum from it, by composition of odd minimax polynomials.

Each stage is the minimax approximation of sign on the image of the stage before it (Lee, Lee, No
and Kim 2021, "Minimax approximation of sign function by composite polynomial for homomorphic
comparison"). Every stage but the last is divided by the largest value it takes, so that the next
one has half width exactly 1 and its affine map costs nothing.

Degrees are found by dynamic programming from the last stage back: for each number of levels and
products, the chain that starts from the smallest gap. A prefix only needs to hand over that gap,
so the smallest one is best for every prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from approx import certify, plan, planning, remez
from approx.composites import early, sign_table
from approx.composites.graph import Composite, Node
from approx.enclosure import certified, estimate
from approx.errors import ApproxError, DomainError, ToleranceError
from approx.polynomial import Interval, Polynomial
from approx.targets import NAMED

_SLACK = 1e-13  # widening of each image, above the rounding of the coefficients
_MARGINS = (0.998, 0.98, 0.9, 0.7)  # of the tolerance, asked of searches that read a table
_MOST_LEVELS = 60


@lru_cache(maxsize=1024)
def _stage(degree: int, gap: float, certified: bool) -> tuple[Polynomial, float]:
    """The minimax sign polynomial for this gap, and its error (a bound if certified)."""
    intervals = ((-1.0, -gap), (gap, 1.0))
    indices = range(1, degree + 1, 2)
    found = remez.minimax(np.ones_like, [(gap, 1.0)], indices, tolerance=1e-6, floor=1e-14)
    poly = Polynomial(tuple(found.coefficients.tolist()), intervals, name="sign")
    if not certified:
        return poly, found.error
    parts = certify.residuals(poly, NAMED["sign"])
    assert parts is not None
    # where the error is near 1 its distance from 1 counts, so the bound is taken tightly
    return poly, max(part.bound(oversampling=1500) for part in parts)


def stages(
    degrees: Sequence[int], gap: float, certified: bool = True
) -> tuple[list[Polynomial], float]:
    """Polynomials whose composition approximates sign on gap <= |x| <= 1, and the final error."""
    chain: list[Polynomial] = []
    error = 1.0
    for position, degree in enumerate(degrees):
        if degree < 1 or degree % 2 == 0:
            raise ApproxError(f"The stages of sign are odd polynomials; degree {degree} is not.")
        poly, error = _stage(degree, gap, certified)
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


# --- degrees by dynamic programming -------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """Degrees of the stages, first to last, and what they cost and reach.

    Attributes:
      gap: the smallest that they bring to the error that was asked.
    """

    levels: int
    products: int
    gap: float
    degrees: tuple[int, ...]


def chains(
    wanted: float, levels: int = _MOST_LEVELS, multiplied: str = ""
) -> Iterator[list[Chain]]:
    """For each number of levels from 0, the chains of ascending products and falling gap.

    Args:
      wanted: largest final error of sign, below 1.
      levels: where to stop.
      multiplied: whether a product with the input is counted: "" no, "after" the last stage (its
        level is not counted here), "early" inside the last stage (``approx.composites.early``).
    """
    reached: list[list[Chain]] = [[Chain(0, 0, (1.0 - wanted) / (1.0 + wanted), ())]]
    yield reached[0]
    for level in range(1, levels + 1):
        found = []
        for degree, plain, plain_depth in _steps():
            last = early.products(degree) if multiplied == "early" else plain + 1
            for after in reached[level - plain_depth] if plain_depth <= level else []:
                cost = last if multiplied and not after.degrees else plain
                first = wanted if not after.degrees else (1.0 - after.gap) / (1.0 + after.gap)
                gap = sign_table.smallest_gap(degree, first)
                found.append(Chain(level, after.products + cost, gap, (degree, *after.degrees)))
        kept: list[Chain] = []
        for chain in sorted(found, key=lambda c: (c.products, c.gap)):
            if not kept or chain.gap < 0.999 * kept[-1].gap:
                kept.append(chain)
        reached.append(kept)
        yield kept


@lru_cache(maxsize=1)
def _steps() -> tuple[tuple[int, int, int], ...]:
    """(degree, products, levels) of the stages worth taking: the largest degree at each cost."""
    best: dict[tuple[int, int], int] = {}
    for degree in sign_table.DEGREES:
        best[planning.products(degree, 1), plan.minimal_depth(degree)] = degree
    return tuple((degree, *cost) for cost, degree in best.items())


# --- sign ---------------------------------------------------------------------------------------


def sign(
    intervals: tuple[Interval, ...],
    tol: float | None,
    degrees: Sequence[int] | None,
    depth: int | None = None,
    products: int | None = None,
) -> Composite:
    """The sign composite on [-b, -a] | [a, b]; certified."""
    if len(intervals) != 2 or not intervals[0][1] < 0.0 < intervals[1][0]:
        raise DomainError("sign needs a union around a gap, such as [(-1, -0.01), (0.01, 1)].")
    half_width = max(-intervals[0][0], intervals[1][1])
    gap = min(-intervals[0][1], intervals[1][0]) / half_width
    free = 0 if half_width == 1.0 else 1
    if degrees is None:
        if tol is None:
            degrees = _most_accurate(gap, depth, products, free)
        else:
            degrees = _cheapest(gap, _MARGINS[0] * tol, depth, products, free)
    chain, error = stages(degrees, gap)
    chain[0] = chain[0].rescaled(1.0 / half_width)
    if tol is not None and error > tol:
        raise ToleranceError(f"Degrees {tuple(degrees)} reach {error:.2e}, not tol={tol:g}.")
    nodes = tuple(Node("polynomial", (i,), p) for i, p in enumerate(chain))
    return Composite("sign", intervals, nodes, error, True, (("degrees", tuple(degrees)),))


def _cheapest(
    gap: float, tol: float, depth: int | None, products: int | None, free: int
) -> tuple[int, ...]:
    limit = _MOST_LEVELS if depth is None else depth - free
    for level in chains(min(tol, 0.999), limit):
        for chain in level:
            fits = products is None or chain.products <= products
            if fits and chain.degrees and chain.gap <= gap:
                return chain.degrees
    raise ToleranceError(
        f"sign does not reach tol={tol:g} from a gap of {gap:g} within {limit} levels"
        + ("." if products is None else f" and {products} products.")
    )


def _most_accurate(
    gap: float, depth: int | None, products: int | None, free: int
) -> tuple[int, ...]:
    if depth is None:
        raise ApproxError("sign needs degrees= (such as (15, 15, 27)), tol= or depth=.")
    best: tuple[int, ...] | None = None
    low, high = math.log(1e-10), math.log(0.9)
    for _ in range(20):
        middle = 0.5 * (low + high)
        try:
            best = _cheapest(gap, math.exp(middle), depth, products, free)
            high = middle
        except ToleranceError:
            low = middle
    if best is None:
        raise ToleranceError(f"No sign from a gap of {gap:g} within {depth} levels; allow more.")
    return best


# --- relu and abs -------------------------------------------------------------------------------


def relu(
    intervals: tuple[Interval, ...],
    tol: float | None,
    degrees: Sequence[int] | None,
    gap: float | None,
    depth: int | None = None,
    products: int | None = None,
    multiplied: str | None = None,
) -> Composite:
    """x * (1/2 + sign(x)/2)."""
    a, b = intervals[0][0], intervals[-1][1]
    if len(intervals) != 1 or not a < 0.0 < b:
        raise DomainError(f"relu needs one interval (a, b) with a < 0 < b, not [{a:g}, {b:g}].")
    half_width = max(-a, b)
    limit = None if depth is None else depth - (0 if half_width == 1.0 else 1)
    if degrees is not None:
        graph = _relu_graph(
            intervals, half_width, degrees, gap or _balanced(degrees), multiplied or "after"
        )
        if tol is None or graph.max_error <= tol:
            return graph
        raise ToleranceError(
            f"Degrees {tuple(degrees)} reach {graph.max_error:.2e}, not tol={tol:g}; "
            "use more stages or higher degrees."
        )
    if tol is None:
        if limit is None:
            raise ApproxError("relu needs degrees= (such as (15, 15, 27)), tol= or depth=.")
        found = _relu_within(limit, products, multiplied)
        if found is not None:
            gap = _balanced(found[0].degrees)
            return _relu_graph(intervals, half_width, found[0].degrees, gap, found[1])
    for margin in _MARGINS:
        if tol is None:
            break
        found = _relu_chain(margin * tol / half_width, limit, products, multiplied)
        if found is None:
            break
        graph = _relu_graph(intervals, half_width, found[0].degrees, found[0].gap, found[1])
        if graph.max_error <= tol:
            return graph
    raise ToleranceError(
        f"relu does not reach the request on [{a:g}, {b:g}]; allow more levels or products, "
        "narrow the domain or relax tol."
    )


def absolute(
    intervals: tuple[Interval, ...],
    tol: float | None,
    degrees: Sequence[int] | None,
    gap: float | None,
    depth: int | None = None,
    products: int | None = None,
    multiplied: str | None = None,
) -> Composite:
    """x * sign(x) = 2 relu(x) - x with the same sign: twice relu's error, the same levels."""
    half = relu(
        intervals, None if tol is None else 0.5 * tol, degrees, gap, depth, products, multiplied
    )
    knobs = dict(half.knobs)
    half_width = max(-intervals[0][0], intervals[-1][1])
    return _relu_graph(
        intervals, half_width, knobs["degrees"], knobs["gap"], knobs["multiplied"], "abs"
    )


def _relu_chain(
    relative: float, levels: int | None, products: int | None, multiplied: str | None
) -> tuple[Chain, str] | None:
    """The cheapest chain whose relu errs by at most ``relative`` on [-1, 1], and its form."""
    goal = min(relative, 0.49)
    most = _MOST_LEVELS if levels is None else levels
    found: list[tuple[int, int, Chain, str]] = []
    for form in ("early", "after") if multiplied is None else (multiplied,):
        extra = 1 if form == "after" else 0
        chain = _first(goal, most - extra, products, form)
        if chain is not None:
            found.append((chain.levels + extra, chain.products, chain, form))
            most = chain.levels + extra
    return min(found, key=lambda f: f[:2])[2:] if found else None


def _first(goal: float, levels: int, products: int | None, form: str) -> Chain | None:
    for level in chains(2.0 * goal, levels, form):
        for chain in level:
            if not chain.degrees or products is not None and chain.products > products:
                continue
            if chain.gap < 20.0 * goal and _bump(chain.degrees, chain.gap) <= goal:
                return chain
    return None


def _relu_within(
    levels: int, products: int | None, multiplied: str | None
) -> tuple[Chain, str] | None:
    """The chain of least relu error within these levels and products, and its form."""
    best: tuple[Chain, str] | None = None
    low, high = math.log(1e-8), math.log(0.4)
    for _ in range(16):
        middle = 0.5 * (low + high)
        found = _relu_chain(math.exp(middle), levels, products, multiplied)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _bump(degrees: Sequence[int], gap: float) -> float:
    """max |x| (1 - s(x)) / 2 inside the gap, where the sign still rises."""
    try:
        chain, _ = stages(degrees, gap, certified=False)
    except ToleranceError:
        return math.inf
    x = np.linspace(0.0, gap, 801)
    y = x
    for poly in chain:
        y = poly(y)
    return float(np.max(np.abs(0.5 * x * (1.0 - y))))


def _balanced(degrees: Sequence[int]) -> float:
    """The gap at which the errors inside and outside of it are equal."""
    low, high = math.log(1e-9), math.log(0.9)
    for _ in range(30):
        middle = 0.5 * (low + high)
        gap = math.exp(middle)
        try:
            _, error = stages(degrees, gap, certified=False)
        except ToleranceError:
            low = middle
            continue
        if _bump(degrees, gap) < 0.5 * error:
            low = middle
        else:
            high = middle
    if high == math.log(0.9):
        raise ToleranceError(f"Degrees {tuple(degrees)} reach no sign; raise them.")
    return math.exp(high)


def _relu_graph(
    intervals: tuple[Interval, ...],
    half_width: float,
    degrees: Sequence[int],
    gap: float,
    multiplied: str,
    name: str = "relu",
) -> Composite:
    """x (1 + s(x)) / 2, or x s(x) for name "abs"."""
    # A value in the gap is as good as any other here: x times a sign that still rises is bounded.
    chain = [replace(p, intervals=(p.hull,)) for p in stages(degrees, gap)[0]]
    chain[0] = chain[0].rescaled(1.0 / half_width)
    share, constant = (0.5, 0.5) if name == "relu" else (1.0, 0.0)
    if multiplied == "early" and len(chain) > 1:
        last = chain.pop()
        nodes = [Node("polynomial", (i,), p) for i, p in enumerate(chain)]
        nodes.append(Node("sum", (0,), factors=(1.0,)))  # where a later factor of x goes
        x = len(nodes)
        nodes += early.nodes([share * c for c in last.coefficients], x, len(chain), x + 1)
        if constant:
            nodes.append(Node("sum", (x, len(nodes)), factors=(constant, 1.0)))
    else:
        chain[-1] = chain[-1].multiplied(share, constant)
        nodes = [Node("polynomial", (i,), p) for i, p in enumerate(chain)]
        nodes.append(Node("product", (0, len(chain))))
    knobs = (("degrees", tuple(degrees)), ("gap", gap), ("multiplied", multiplied))
    bound = _bound(degrees, gap) * half_width * (1.0 if name == "relu" else 2.0)
    found = estimate(Composite(name, intervals, tuple(nodes), math.inf, False), NAMED[name])
    if math.isfinite(bound) and bound <= 1.001 * found + 1e-13 * half_width:
        return Composite(name, intervals, tuple(nodes), bound, True, knobs)
    graph = Composite(name, intervals, tuple(nodes), found, False, knobs)
    return certified(graph, NAMED[name]) if math.prod(degrees) <= 1000 else graph


def _bound(degrees: Sequence[int], gap: float) -> float:
    """Rigorous bound on |x| |s(x) - sign(x)| / 2 over [-1, 1], within 0.02 % where it can be.

    Outside the gap it is half of the last stage's certified error. Inside, [0, gap] is cut into
    cells until a ball enclosure of x (1 - s(x)) / 2 on each is below what a cell is known to
    reach, or below the bound outside; T_j(u) = cos(j acos u) keeps the enclosures narrow.
    """
    import flint

    chain, error = stages(degrees, gap)
    with flint.ctx.workprec(80):

        def enclosure(low: float, high: float) -> tuple[float, float]:
            x = flint.arb(low).union(flint.arb(high))
            y = x
            for poly in chain:
                angle = y.acos()
                y = sum(
                    (c * (j * angle).cos() for j, c in enumerate(poly.coefficients) if c),
                    flint.arb(0),
                )
            value = x * (1 - y) / 2
            if not value.is_finite():
                return math.inf, 0.0
            return float(value.abs_upper()), float(value.abs_lower())

        known, largest = 0.5 * error, 0.5 * error
        cells = [(gap * k / 64, gap * (k + 1) / 64) for k in range(64)]
        for low, high in cells:
            middle = 0.5 * (low + high)
            known = max(known, enclosure(middle, middle)[1])
        for _ in range(6000):
            if not cells:
                return largest * (1.0 + 1e-12) + 1e-13
            low, high = cells.pop()
            top, _ = enclosure(low, high)
            if top <= 1.0001 * known:
                largest = max(largest, top)
                continue
            middle = 0.5 * (low + high)
            known = max(known, enclosure(middle, middle)[1])
            cells += [(low, middle), (middle, high)]
    return math.inf
