"""Remez exchange: the polynomial of least maximum error on a union of intervals.

Works on any family of Chebyshev polynomials {T_j : j in indices}, so that even and odd functions
need half the unknowns, and with a weight. The function is a callable, so that the caller may pass
a residual computed in extended precision: minimax(f) = p0 + minimax(f - p0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from approx import interior
from approx.polynomial import Interval

Array = np.ndarray
Function = Callable[[Array], Array]
_EPSILON = 2.0**-52
_ACCEPTED = 10.0  # tolerances above its bound at which the exchange's error is taken
_ADDED = 16  # points that a round of the interior-point method adds, at most, by unknowns
_ROUNDS = 12  # of the interior-point method; each adds the points where the last one errs most


@dataclass(frozen=True)
class Minimax:
    """Result of the exchange.

    Attributes:
      coefficients: of T_0 ... T_max(indices); zero where the index is not in the family.
      error: largest weighted error found, at the last exchange.
      level: the levelled error, a lower bound on what any member of the family can reach.
      reference: the alternation points, ascending.
    """

    coefficients: Array
    error: float
    level: float
    reference: Array


def basis(indices: Sequence[int], u: Array) -> Array:
    """T_j(u), shape (len(u), len(indices)); |u| <= 1 up to rounding."""
    return np.cos(np.outer(np.arccos(np.clip(u, -1.0, 1.0)), np.asarray(indices)))


def grid(intervals: Sequence[Interval], count: int, kinks: Sequence[float] = ()) -> Array:
    """About ``count`` points, Chebyshev distributed on each piece between kinks, ends included."""
    pieces = split(intervals, kinks)
    widths = np.array([np.sqrt(b - a) for a, b in pieces])
    parts = []
    for (a, b), share in zip(pieces, widths / widths.sum(), strict=True):
        n = max(int(count * share), count // (2 * len(pieces)), 33)
        x = 0.5 * (a + b) - 0.5 * (b - a) * np.cos(np.linspace(0.0, np.pi, n))
        x[0], x[-1] = a, b
        parts.append(x)
    return np.concatenate(parts)


def split(intervals: Sequence[Interval], kinks: Sequence[float]) -> list[Interval]:
    """The intervals cut at the kinks inside them."""
    pieces: list[Interval] = []
    for a, b in intervals:
        cuts = [a, *sorted(k for k in kinks if a < k < b), b]
        pieces += list(zip(cuts, cuts[1:], strict=False))
    return pieces


def minimax(
    function: Function,
    intervals: Sequence[Interval],
    indices: Sequence[int],
    weight: Function | None = None,
    kinks: Sequence[float] = (),
    tolerance: float = 1e-5,
    floor: float = 0.0,
    seen: Array | None = None,
) -> Minimax:
    """The member of span{T_j} with least max |weight * (function - p)| on the intervals.

    The exchange, and where it ends with an error above its bound, as it does where many members
    are almost as good as the best, the interior-point method on the points that matter.

    Args:
      function: values at points of [-1, 1].
      intervals: disjoint, ascending, inside [-1, 1].
      indices: ascending j of the T_j; the family must be a Haar system on the intervals.
      weight: positive; by default 1.
      kinks: points where the function is not smooth.
      tolerance: stop when the error exceeds the levelled one by less than this fraction.
      floor: stop when the error is below this: nothing but rounding is left.
      seen: points to look at besides those of a grid made for functions that swing no more often
        than the family.
    """
    search = _Search.of(function, intervals, indices, weight, kinks, seen)
    found = _exchanged(search, tolerance, floor)
    excess = found.error - found.level
    rounding = 16.0 * _EPSILON * float(np.sum(np.abs(found.coefficients)))
    if found.error <= floor or excess <= max(_ACCEPTED * tolerance * found.error, rounding):
        return found
    return _programmed(search, found, tolerance)


@dataclass(frozen=True)
class _Search:
    """A problem, with the grid on which errors are looked at."""

    function: Function
    indices: Sequence[int]
    weight: Function | None
    pieces: Sequence[Interval]
    points: Array
    values: Array
    weights: Array
    table: Array

    @classmethod
    def of(
        cls,
        function: Function,
        intervals: Sequence[Interval],
        indices: Sequence[int],
        weight: Function | None,
        kinks: Sequence[float],
        seen: Array | None,
    ) -> _Search:
        points = grid(intervals, 16 * (max(indices) + 4), kinks)
        if seen is not None and len(seen):
            points = np.sort(np.concatenate([points, np.setdiff1d(seen, points)]))
        weights = np.ones_like(points) if weight is None else np.asarray(weight(points))
        return cls(
            function,
            indices,
            weight,
            split(intervals, kinks),
            points,
            function(points),
            weights,
            basis(indices, points),
        )

    def errors(self, coefficients: Array) -> Function:
        """The weighted error as a function of u."""

        def error(u: Array) -> Array:
            e = self.function(u) - basis(self.indices, u) @ coefficients
            return e if self.weight is None else e * self.weight(u)

        return error

    def extrema(self, coefficients: Array) -> tuple[Array, Array]:
        """Where the weighted error is largest in each run of equal sign, and its values there."""
        on_grid = self.weights * (self.values - self.table @ coefficients)
        return _extrema(self.errors(coefficients), self.points, on_grid, self.pieces)

    def series(self, coefficients: Array) -> Array:
        """The coefficients of T_0 ... T_max(indices)."""
        out = np.zeros(max(self.indices) + 1)
        out[list(self.indices)] = coefficients
        return out


def _exchanged(search: _Search, tolerance: float, floor: float) -> Minimax:
    """The best of the exchange, with the highest bound that its references give."""
    m = len(search.indices)
    reference = _start(search.points, search.indices)
    best: Minimax | None = None
    bound, stalled = 0.0, 0
    for _ in range(80):
        coefficients, level = _level(search.function, search.weight, reference, search.indices)
        extrema, heights = search.extrema(coefficients)
        largest = float(np.max(np.abs(heights)))
        lost = 4.0 * _EPSILON * float(np.sum(np.abs(coefficients)))
        better = best is None or largest < best.error
        higher = abs(level) - lost > bound * (1.0 + 1e-12)
        bound = max(bound, abs(level) - lost)
        if better:
            best = Minimax(search.series(coefficients), largest, bound, reference)
        # Errors may rise for a while; it is stuck if the level, which must rise, does not either.
        stalled = 0 if better or higher else stalled + 1
        if stalled > 8 or largest <= floor or largest - abs(level) <= tolerance * largest:
            break
        exchanged = _alternation(extrema, heights, m + 1)
        if exchanged is None:
            error = search.errors(coefficients)
            exchanged = _single_exchange(error, reference, extrema, heights)
        if np.array_equal(exchanged, reference):
            break
        reference = exchanged
    assert best is not None
    return dataclasses.replace(best, level=min(max(bound, 0.0), best.error))


def _programmed(search: _Search, start: Minimax, tolerance: float) -> Minimax:
    """The least maximum error by linear programming; points where it is exceeded are added."""
    m = len(search.indices)
    best, origin = start, start.coefficients[list(search.indices)]
    stride = max(len(search.points) // (6 * (m + 1)), 1)
    edges = [end for piece in search.pieces for end in piece]
    points = np.unique(np.concatenate([search.points[::stride], edges, start.reference]))
    for _ in range(_ROUNDS):
        weights = np.ones_like(points) if search.weight is None else search.weight(points)
        table = basis(search.indices, points)
        missing = weights * (search.function(points) - table @ origin)
        solved = interior.least_maximum(weights[:, None] * table, missing)
        coefficients = origin + solved.coefficients
        extrema, heights = search.extrema(coefficients)
        largest = float(np.max(np.abs(heights)))
        level = max(best.level, solved.bound)
        if largest < best.error:
            reference = _alternation(extrema, heights, m + 1)
            reference = extrema if reference is None else reference
            best = Minimax(search.series(coefficients), largest, level, reference)
        best = dataclasses.replace(best, level=min(level, best.error))
        order = np.argsort(-np.abs(heights))[: _ADDED * (m + 1)]
        high = extrema[order[np.abs(heights[order]) > 0.5 * best.level]]
        if best.error - best.level <= tolerance * best.error or np.isin(high, points).all():
            break
        points = np.union1d(points, high)
    return best


def _start(points: Array, indices: Sequence[int]) -> Array:
    """Approximate Fekete points: where the family, with one more function, is best conditioned."""
    stride = indices[1] - indices[0] if len(indices) > 1 else 1
    extended = [*indices, indices[-1] + stride]
    thin = points[:: max(1, len(points) // (12 * len(extended)))]
    _, _, order = linalg.qr(basis(extended, thin).T, mode="economic", pivoting=True)  # type: ignore[misc]
    return np.sort(thin[order[: len(extended)]])


def _level(
    function: Function, weight: Function | None, reference: Array, indices: Sequence[int]
) -> tuple[Array, float]:
    """Coefficients whose weighted error alternates with equal height on the reference."""
    signs = (-1.0) ** np.arange(len(reference))
    last = signs if weight is None else signs / weight(reference)
    system = np.column_stack([basis(indices, reference), last])
    try:
        solution = np.linalg.solve(system, function(reference))
    except np.linalg.LinAlgError:  # the family is dependent to rounding: a very short interval
        solution, *_ = np.linalg.lstsq(system, function(reference), rcond=None)
    return solution[:-1], float(solution[-1])


def _extrema(
    error: Function, points: Array, values: Array, pieces: Sequence[Interval]
) -> tuple[Array, Array]:
    """The highest point of each run of equal sign, refined by parabolas inside its piece."""
    signs = np.where(values >= 0.0, 1, -1)
    starts = np.flatnonzero(np.diff(signs)) + 1
    bounds = np.concatenate([[0], starts, [len(points)]])
    tops = np.array(
        [lo + int(np.argmax(np.abs(values[lo:hi]))) for lo, hi in zip(bounds, bounds[1:])]
    )
    x, y = points[tops].copy(), values[tops].copy()
    low = points[np.maximum(tops - 1, 0)]
    high = points[np.minimum(tops + 1, len(points) - 1)]
    for a, b in pieces:
        inside = (x >= a) & (x <= b)
        low, high = (
            np.where(inside, np.maximum(low, a), low),
            np.where(inside, np.minimum(high, b), high),
        )
    step = 0.5 * np.minimum(
        np.where(x > low, x - low, np.inf), np.where(high > x, high - x, np.inf)
    )
    step = np.where(np.isfinite(step), step, 0.0)
    for _ in range(3):
        left, right = np.clip(x - step, low, high), np.clip(x + step, low, high)
        yl, yr = error(left), error(right)
        curvature = yl - 2.0 * y + yr
        with np.errstate(all="ignore"):
            shift = 0.5 * (yl - yr) / curvature * step
        shift = np.where(np.isfinite(shift), np.clip(shift, -step, step), 0.0)
        middle = np.clip(x + shift, low, high)
        for candidate, height in ((left, yl), (right, yr), (middle, error(middle))):
            better = np.abs(height) > np.abs(y)
            x, y = np.where(better, candidate, x), np.where(better, height, y)
        step = 0.3 * step
    return x, y


def _alternation(extrema: Array, heights: Array, count: int) -> Array | None:
    """``count`` of the alternating extrema, the largest among them; None if there are fewer."""
    x, y = extrema, np.abs(heights)
    while len(x) > count:
        k = int(np.argmin(y))
        if len(x) == count + 1:
            dropped = [0 if y[0] < y[-1] else len(x) - 1]
        elif k in (0, len(x) - 1):
            dropped = [k]
        else:
            dropped = [k, k - 1 if y[k - 1] < y[k + 1] else k + 1]
        x, y = np.delete(x, dropped), np.delete(y, dropped)
    return x if len(x) == count else None


def _single_exchange(error: Function, reference: Array, extrema: Array, heights: Array) -> Array:
    """Brings the point of largest error into the reference in place of a neighbour of its sign."""
    k = int(np.argmax(np.abs(heights)))
    x, sign = extrema[k], np.sign(heights[k])
    old = np.sign(error(reference))
    new = reference.copy()
    at = int(np.searchsorted(reference, x))
    if at == 0:
        if old[0] == sign:
            new[0] = x
        else:
            new = np.concatenate([[x], reference[:-1]])
    elif at == len(reference):
        if old[-1] == sign:
            new[-1] = x
        else:
            new = np.concatenate([reference[1:], [x]])
    else:
        new[at - 1 if old[at - 1] == sign else at] = x
    return np.sort(new)
