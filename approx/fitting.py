"""approx.fit: the polynomial of smallest degree that meets a request."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from approx import certify, constrained, remez, requests, resolution
from approx.errors import ApproxError, ToleranceError
from approx.plan import minimal_depth
from approx.planning import PLANNINGS
from approx.polynomial import Interval, Polynomial, affine_map, clenshaw
from approx.targets import Target, find

METHODS = ("minimax", "chebyshev", "least_squares")
_REFINE_BELOW = 1e-8  # relative error from which the exchange runs on the extended residual
_LOOKS = 6  # fits, each on the points where the last one was worse than it seemed
_LOOSE = 1.05  # of the bound on every polynomial's error, above which none passes as minimax
_SPOILED = 1e-5  # rounding of the coefficients, by the error, from which their tails are kept


def fit(
    target: str | Callable[[Any], Any] | Target,
    domain: Any,
    *,
    degree: int | None = None,
    depth: int | None = None,
    tol: float | None = None,
    method: str = "minimax",
    affine: str = "own",
    parity: str | None = None,
    weight: Callable[[np.ndarray], np.ndarray] | None = None,
    samples: Any = None,
    ball: Callable[[Any], Any] | None = None,
    error: str = "absolute",
    through: Sequence[tuple[float, float]] = (),
    bounds: tuple[float | None, float | None] = (None, None),
    plan: str = "fewest",
    guard: float | None = None,
) -> Polynomial:
    """Fits a polynomial to a function.

    Args:
      target: a name (exp, gelu, gelu_tanh, silu, sigmoid, tanh, softplus, erf, relu, sign, abs,
        inv, inv_sqrt, sqrt, log) or a callable of NumPy or JAX arrays.
      domain: (a, b), or a list of disjoint intervals.
      degree: highest degree allowed.
      depth: levels allowed, the one for the affine map included (it is free if the half width of
        the domain is 1, or with affine="folded").
      tol: largest permitted |p - target| on the domain; the smallest degree that meets it is
        returned, within degree and depth if these are given too.
      method: "minimax" (Remez exchange), "chebyshev" (interpolation at Chebyshev points of the
        hull) or "least_squares" (Chebyshev density, or ``samples``).
      affine: "folded" if the neighbour's constants absorb ``scale``: no level is counted for it.
      parity: "even" or "odd" asserts a symmetry of a callable about 0, "none" ignores a known one;
        by default that of a named target is used where the domain is symmetric.
      weight: positive function of x that multiplies the error (minimax and least squares).
      samples: activations whose density weighs least squares; a small share of the weight stays
        on the whole domain, so that the error is bounded everywhere.
      error: "absolute" or "relative": which is made smallest, and which ``tol`` bounds (the
        relative one on a dense grid). ``max_error`` of the result is always the absolute one.
      through: points (x, y) with p(x) = y to rounding, such as [(0, 0)]; minimax only.
      bounds: lowest and highest value of p on the domain, or None,
        such as (None, 1.0) for p <= 1; minimax only, and met to 1e-5 of the error.
      plan: how the result is evaluated: with the "fewest" products at the least depth, "quiet"
        (same depth, up to three bits less CKKS noise, some products more) or "deeper" (one level
        more where that saves products); ``Polynomial.with_plan`` changes it afterwards.
      guard: least squares only: the largest error is kept to at most this many times that of the
        minimax polynomial of the same degree, by moving towards it no further than needed; >= 1.
      ball: the callable's version on complex balls (``flint.acb``), analytic wherever its result
        is finite: with it the optimum is exact beyond float64 and the error is certified.

    Returns:
      A Polynomial; ``max_error`` is rigorous (``certified``) for named targets and callables with
      a ball version wherever ball arithmetic can show it, otherwise an estimate on a dense grid.

    Raises:
      DomainError: the domain is malformed or the target is undefined on it.
      ToleranceError: tol is out of reach, or no polynomial near the least error was found.
      ApproxError: any other malformed request.

    Examples:
      >>> import approx
      >>> gelu = approx.fit("gelu", (-8, 8), degree=31)
      >>> gelu.depth, gelu.certified, gelu.max_error < 1e-4
      (6, True, True)
      >>> approx.fit("exp", (-1, 1), tol=1e-6).degree
      7
    """
    known = find(target, ball)
    intervals = requests.domain(domain)
    known.check(intervals)
    if method not in METHODS:
        raise ApproxError(f"Unknown method {method!r}; use one of {', '.join(METHODS)}.")
    if plan not in PLANNINGS:
        raise ApproxError(f"Unknown plan {plan!r}; use one of {', '.join(PLANNINGS)}.")
    if guard is not None and (method != "least_squares" or not guard >= 1.0):
        raise ApproxError('guard is at least 1 and needs method="least_squares".')
    limit = requests.largest_degree(intervals, degree, depth, tol, affine)
    requests.constraints(through, bounds)
    if weight is not None and not callable(weight):
        raise ApproxError(f"weight must be a function of x, not {weight!r}.")
    if plan == "deeper" and depth is not None:
        limit = min(
            limit, max(requests.largest_degree(intervals, None, depth, None, affine) // 2, 1)
        )
    if error not in ("absolute", "relative"):
        raise ApproxError(f'error is "absolute" or "relative", not {error!r}.')
    if error == "relative":
        if weight is not None:
            raise ApproxError("A weight and a relative error exclude each other; pass one of them.")
        weight = _reciprocal(known, intervals)
    problem = _Problem.of(known, intervals, parity, method, affine, weight, samples)
    if len(through) or tuple(bounds) != (None, None):
        problem = problem.constrained(through, bounds)
    if guard is not None:
        problem = dataclasses.replace(problem, guard=float(guard))
    if tol is None:
        found = _finish(problem.solve(limit), known)
        if problem.plain and limit > 0 and not found.certified and _hopeless(found, known):
            resolution.check(known, intervals)
    else:
        found = _smallest(problem, known, limit, tol, weight if error == "relative" else None)
    return found if plan == "fewest" else found.with_plan(plan)


def _reciprocal(
    target: Target, intervals: tuple[Interval, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    """1 / |f|, the weight that makes an error relative."""
    values = target(remez.grid(intervals, 4097))
    if np.min(values) <= 0.0 <= np.max(values):
        raise ApproxError(
            f"{target.name} vanishes on the domain, so no relative error is finite there; "
            "leave a gap around its zero."
        )
    return lambda x: 1.0 / np.abs(target(x))


@dataclass(frozen=True)
class _Problem:
    """A target on a domain with the symmetry in use; ``solve(n)`` fits degree at most n."""

    target: Target
    intervals: tuple[Interval, ...]
    scale: float
    shift: float
    remainder: str | None
    constant: float
    slope: float
    method: str
    affine: str
    weight: Callable[[np.ndarray], np.ndarray] | None
    samples: np.ndarray | None
    through: tuple[tuple[float, float], ...] = ()
    bounds: tuple[float | None, float | None] = (None, None)
    guard: float | None = None

    @classmethod
    def of(
        cls,
        target: Target,
        intervals: tuple[Interval, ...],
        parity: str | None,
        method: str,
        affine: str,
        weight: Callable[[np.ndarray], np.ndarray] | None,
        samples: Any,
    ) -> _Problem:
        mirrored = tuple((-b, -a) for a, b in reversed(intervals))
        symmetric = mirrored == intervals
        remainder, constant, slope = target.remainder, target.constant, target.slope
        if parity is not None:
            if parity not in ("even", "odd", "none"):
                raise ApproxError(f'parity is "even", "odd" or "none", not {parity!r}.')
            remainder = None if parity == "none" else parity
            constant = slope = 0.0
            if parity != "none" and not symmetric:
                raise ApproxError("A parity needs a domain that is symmetric about 0.")
            _check_parity(target, intervals, parity)
        if not symmetric or weight is not None:
            remainder = None
        if remainder is None:
            constant = slope = 0.0
        data = None if samples is None else requests.activations(samples)
        scale, shift = affine_map(intervals)
        return cls(
            target,
            intervals,
            scale,
            shift,
            remainder,
            constant,
            slope,
            method,
            affine,
            weight,
            data,
        )

    def constrained(
        self,
        through: Sequence[tuple[float, float]],
        bounds: tuple[float | None, float | None],
    ) -> _Problem:
        """The same problem under constraints on p."""
        low, high = bounds
        points = tuple((float(x), float(y)) for x, y in through)
        hull = self.intervals[0][0], self.intervals[-1][1]
        if self.method != "minimax":
            raise ApproxError('Constraints need method="minimax".')
        if low is not None and high is not None and not low < high:
            raise ApproxError(f"The bounds ({low}, {high}) leave no room; give low < high.")
        if any(not (hull[0] <= x <= hull[1] and math.isfinite(y)) for x, y in points):
            raise ApproxError(f"The points of through= must be finite and inside {hull}.")
        return dataclasses.replace(
            self, through=points, bounds=(low, high), remainder=None, constant=0.0, slope=0.0
        )

    @property
    def plain(self) -> bool:
        """Whether the largest absolute error alone is made small, under no constraints."""
        free = not self.through and self.bounds == (None, None)
        return self.method == "minimax" and self.weight is None and free

    def indices(self, degree: int) -> list[int]:
        """The T_j in use at this degree."""
        if self.remainder == "even" and (self.slope == 0.0 or degree >= 1):
            return list(range(0, degree + 1, 2))
        if self.remainder == "odd" and degree >= 1:
            return list(range(1, degree + 1, 2))
        return list(range(degree + 1))

    def reduced(self, degree: int) -> bool:
        """Whether the symmetry is in use at this degree."""
        return self.remainder is not None and len(self.indices(degree)) < degree + 1

    def spans(self, degree: int) -> list[Interval]:
        """The intervals in u, of which a symmetric problem needs the right half."""
        spans = [
            (max(self.scale * a + self.shift, -1.0), min(self.scale * b + self.shift, 1.0))
            for a, b in self.intervals
        ]
        if self.reduced(degree):
            spans = [(max(a, 0.0), b) for a, b in spans if b > 0.0]
        return spans

    def kinks(self) -> list[float]:
        return [self.scale * k + self.shift for k in self.target.kinks]

    def values(self, u: np.ndarray, degree: int) -> np.ndarray:
        """The target at u, without its constant and slope where symmetry is in use."""
        x = self.to_x(u)
        y = self.target(x)
        return y - self.constant - self.slope * x if self.reduced(degree) else y

    def to_x(self, u: np.ndarray) -> np.ndarray:
        a, b = self.intervals[0][0], self.intervals[-1][1]
        return np.clip((u - self.shift) / self.scale, a, b)

    def polynomial(self, series: np.ndarray, degree: int) -> Polynomial:
        full = np.zeros(max(len(series), 2))
        full[: len(series)] = series
        if self.reduced(degree):
            full[0] += self.constant
            full[1] += self.slope / self.scale
        return Polynomial(
            tuple(full.tolist()),
            self.intervals,
            self.scale,
            self.shift,
            name=self.target.name,
            affine=self.affine,
        )

    def solve(self, degree: int) -> Polynomial:
        """The fit of at most this degree, its error not yet bounded."""
        if self.method == "chebyshev":
            return self._interpolate(degree)
        if self.method == "least_squares":
            poly = self._least_squares(degree)
            return poly if self.guard is None else self._guarded(poly, degree, self.guard)
        return self._minimax(degree)

    def _guarded(self, poly: Polynomial, degree: int, guard: float) -> Polynomial:
        safe = dataclasses.replace(self, method="minimax", weight=None).solve(degree)
        return guarded(poly, safe, self.target, guard)

    def _interpolate(self, degree: int) -> Polynomial:
        if len(self.intervals) > 1:
            raise ApproxError('Interpolation needs one interval; use method="minimax" for a union.')
        n = degree + 1
        u = np.cos(np.pi * (np.arange(n) + 0.5) / n)
        series = remez.basis(range(n), u).T @ self.target(self.to_x(u)) * (2.0 / n)
        series[0] *= 0.5
        if self.reduced(degree):
            series[self._absent(degree)] = 0.0
            series[:2] -= np.array([self.constant, self.slope / self.scale])[: len(series)]
            series[self._absent(degree)] = 0.0
        return self.polynomial(series, degree)

    def _absent(self, degree: int) -> list[int]:
        present = set(self.indices(degree))
        return [j for j in range(degree + 1) if j not in present]

    def _least_squares(self, degree: int) -> Polynomial:
        indices = self.indices(degree)
        density = 32 if self.samples is None else 8
        u = remez.grid(self.spans(degree), density * (degree + 4), self.kinks())
        rows = np.full(len(u), 1.0 / math.sqrt(len(u)))
        if self.samples is not None:
            low, high = self.intervals[0][0], self.intervals[-1][1]
            data = self.samples[(self.samples >= low) & (self.samples <= high)]
            if len(data) == 0:
                raise ApproxError("No sample lies in the domain; widen it or pass other samples.")
            u = np.concatenate([u, self.scale * data + self.shift])
            rows = np.concatenate([0.1 * rows, np.full(len(data), 1.0 / math.sqrt(len(data)))])
        if self.weight is not None:
            rows = rows * np.asarray(self.weight(self.to_x(u)))
        system = remez.basis(indices, u) * rows[:, None]
        found = linalg.lstsq(
            system, rows * self.values(u, degree), check_finite=False, lapack_driver="gelsy"
        )
        assert found is not None
        series = np.zeros(max(indices) + 1)
        series[indices] = found[0]
        return self.polynomial(series, degree)

    def _minimax(self, degree: int) -> Polynomial:
        spans = self.spans(degree)
        weight = None
        if self.weight is not None:
            given = self.weight
            weight = lambda u: np.asarray(given(self.to_x(u)), dtype=np.float64)
            if not np.all(weight(remez.grid(spans, 513)) > 0.0):
                raise ApproxError("weight must be positive on the whole domain.")
        size = float(np.max(np.abs(self.values(remez.grid(spans, 513), degree))))
        found = self._optimum(degree, weight, size)
        poly = self.polynomial(found.coefficients, degree)
        if self.through or self.bounds != (None, None):
            return self._corrected(poly, degree, weight)
        if found.error > _REFINE_BELOW * size or self.target.ball is None:
            return poly
        return self._refined(poly, degree, weight)

    def _optimum(
        self, degree: int, weight: Callable[[np.ndarray], np.ndarray] | None, size: float
    ) -> remez.Minimax:
        """The minimax polynomial on as many points as the target, of this size, needs."""
        indices, spans, kinks = self.indices(degree), self.spans(degree), self.kinks()
        function, floor = lambda u: self.values(u, degree), 4e-16 * size
        if resolution.known(self.target):
            return remez.minimax(function, spans, indices, weight, kinks, floor=floor)
        seen = resolution.points(function, spans, len(indices))
        found = None
        for _ in range(_LOOKS):
            found = remez.minimax(function, spans, indices, weight, kinks, floor=floor, seen=seen)
            series = tuple(found.coefficients.tolist())

            def error(u: np.ndarray, series: tuple[float, ...] = series) -> np.ndarray:
                e = function(u) - clenshaw(series, u)
                return e if weight is None else e * weight(u)

            missed = resolution.missed(error, spans, kinks, max(found.error, floor))
            if len(missed) == 0:
                break
            seen = np.union1d(seen, missed)
        assert found is not None
        if found.error > _LOOSE * found.level and found.error > _REFINE_BELOW * size:
            raise ToleranceError(
                f"No minimax polynomial of degree {degree} was found for {self.target.name}: the "
                f"best one errs by {found.error:.3g}, and the best possible by at least "
                f'{found.level:.3g}; ask for another degree, or for method="least_squares".'
            )
        return found

    def _corrected(
        self, poly: Polynomial, degree: int, weight: Callable[[np.ndarray], np.ndarray] | None
    ) -> Polynomial:
        """Adds what brings the minimax polynomial under the constraints."""
        series = np.zeros(degree + 1)
        series[: len(poly.coefficients)] = poly.coefficients

        def start(u: np.ndarray) -> np.ndarray:
            return np.asarray(clenshaw(tuple(series.tolist()), u))

        added = constrained.corrected(
            lambda u: self.values(u, degree) - start(u),
            start,
            self.spans(degree),
            self.indices(degree),
            self.kinks(),
            weight,
            [(self.scale * x + self.shift, y) for x, y in self.through],
            self.bounds,
        )
        return self.polynomial(series + added, degree)

    def _refined(
        self, poly: Polynomial, degree: int, weight: Callable[[np.ndarray], np.ndarray] | None
    ) -> Polynomial:
        """Adds the minimax polynomial of the residual, which is known in extended precision."""
        parts = certify.residuals(poly, self.target)
        if parts is None:
            return poly
        everywhere = _joined(parts)
        found = remez.minimax(
            lambda u: everywhere(self.to_x(u)),
            self.spans(degree),
            self.indices(degree),
            weight,
            self.kinks(),
        )
        old, new = np.zeros((2, max(len(found.coefficients), len(poly.coefficients))))
        old[: len(poly.coefficients)] = poly.coefficients
        new[: len(found.coefficients)] = found.coefficients
        series = old + new
        tails = (old - (series - (series - old))) + (new - (series - old))  # Knuth's two-sum
        kept = np.sum(np.abs(tails)) > _SPOILED * found.error
        return dataclasses.replace(
            poly,
            coefficients=tuple(series.tolist()),
            tails=tuple(tails.tolist()) if kept else (),
        )


def _joined(parts: Sequence[certify.Residual]) -> Callable[[np.ndarray], np.ndarray]:
    def everywhere(x: np.ndarray) -> np.ndarray:
        out = np.zeros_like(x)
        for part in parts:
            inside = (x >= part.piece[0]) & (x <= part.piece[1])
            out[inside] = part(x[inside])
        return out

    return everywhere


def guarded(poly: Polynomial, safe: Polynomial, target: Target, guard: float) -> Polynomial:
    """(1 - t) poly + t safe with the least t for which its largest error is at most ``guard``
    times that of ``safe``; both on one domain. It claims no error."""
    count = 64 * (max(poly.degree, safe.degree) + 8)
    x = remez.grid(poly.intervals, count, target.kinks)
    wanted = target(x)
    far, near = poly(x) - wanted, safe(x) - wanted
    allowed = guard * float(np.max(np.abs(near)))
    if np.max(np.abs(far)) <= allowed:
        return poly
    low, high = 0.0, 1.0
    for _ in range(20):
        t = 0.5 * (low + high)
        fits = np.max(np.abs((1.0 - t) * far + t * near)) <= allowed
        low, high = (low, t) if fits else (t, high)
    series = np.zeros(max(len(poly.coefficients), len(safe.coefficients)))
    series[: len(poly.coefficients)] += (1.0 - high) * np.array(poly.coefficients)
    series[: len(safe.coefficients)] += high * np.array(safe.coefficients)
    return dataclasses.replace(
        poly, coefficients=tuple(series.tolist()), max_error=math.inf, certified=False
    )


def _check_parity(target: Target, intervals: tuple[Interval, ...], parity: str) -> None:
    if parity == "none":
        return
    x = remez.grid(intervals, 257)
    y, mirrored = target(x), target(-x)
    gap = np.max(np.abs(y - mirrored if parity == "even" else y + mirrored))
    if gap > 1e-6 * np.max(np.abs(y)):
        raise ApproxError(f"{target.name} is not {parity}: values at x and -x differ by {gap:.1e}.")


def _finish(poly: Polynomial, target: Target) -> Polynomial:
    """The polynomial with its certificate, or with an estimate of its error."""
    bound = certify.certify(poly, target)
    if bound is not None:
        return dataclasses.replace(poly, max_error=bound, certified=True)
    return dataclasses.replace(poly, max_error=certify.estimate(poly, target, fine=True))


def _hopeless(poly: Polynomial, target: Target) -> bool:
    """Whether a constant would do as well."""
    values = target(remez.grid(poly.intervals, 1 << 14, target.kinks))
    half_range = 0.5 * float(np.max(values) - np.min(values))
    return poly.max_error > 0.98 * half_range > 1e-12 * float(np.max(np.abs(values)))


def _smallest(
    problem: _Problem,
    target: Target,
    limit: int,
    tol: float,
    weight: Callable[[np.ndarray], np.ndarray] | None,
) -> Polynomial:
    """The fit of smallest degree whose error is at most tol: doubling, then bisection."""
    fits: dict[int, Polynomial] = {}

    def error(n: int) -> float:
        poly = problem.solve(n)
        if weight is not None:
            x = remez.grid(problem.intervals, 64 * (n + 8), target.kinks)
            fits[n] = poly
            return float(np.max(np.abs(weight(x) * (poly(x) - target(x)))))
        reached = certify.estimate(poly, target, fine=target.ball is None)
        fits[n] = dataclasses.replace(poly, max_error=reached)
        return fits[n].max_error

    low, high, previous = -1, min(2, limit), math.inf
    while (reached := error(high)) > tol:
        if high >= limit or (reached >= 0.9 * previous and reached < 1e-12):
            reason = (
                f"the fit of {target.name} at degree {high} has error {reached:.2e} "
                f"(float64 coefficients end near 1e-15 of the largest value)"
            )
            raise ToleranceError(
                f"tol={tol:g} is out of reach: {reason}. Allow more depth or degree, narrow the "
                "domain, or use approx.composite."
            )
        low, high, previous = high, min(2 * high + 1, limit), reached
    while high - low > 1:
        middle = (low + high) // 2
        if error(middle) <= tol:
            high = middle
        else:
            low = middle
    if weight is not None:
        return _finish(fits[high], target)
    for n in range(high, limit + 1):
        poly = _finish(fits[n] if n in fits else problem.solve(n), target)
        if poly.max_error <= tol:
            return poly
    raise ToleranceError(
        f"tol={tol:g} is met on a grid but cannot be certified; relax it slightly."
    )


def levels(degree: int, affine_is_free: bool = False) -> int:
    """Levels of one polynomial of this degree: ceil(log2(degree + 1)), one more for the map."""
    return minimal_depth(degree) + (0 if affine_is_free else 1)
