"""One polynomial, or composite, for a function on a domain, by degree or by tolerance."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

import approx
from approx.polynomial import Polynomial, affine_map
from approx.targets import Target
from hesim.approximating import kinks
from hesim.approximating.places.expressions import Expression
from hesim.errors import HesimError
from hesim.source import Source

__all__ = ["Approximation", "Passed", "Problem", "finest", "quick"]

MOST_DEGREE = 255
_COMPOSITE_FROM = 127
"""Degree above which a composite is looked at too."""

_NODES = 4096
_COMPOSITES = ("relu", "abs", "inv", "inv_sqrt")


@dataclass(frozen=True)
class Passed:
    """A function that a value passes through as it is, or times a number, on its domain.

    Attributes:
      name: of the function. domain: (low, high).
      slope, constant: the function there is slope * x + constant.
    """

    name: str
    domain: tuple[float, float]
    slope: float
    constant: float
    max_error: float = 0.0
    certified: bool = False

    @property
    def degree(self) -> int:
        return int(self.slope != 0.0)

    @property
    def depth(self) -> int:
        """Levels: none for x, -x and constants."""
        return 0 if self.slope in (0.0, 1.0, -1.0) else 1

    def __call__(self, x: Any) -> Any:
        if self.slope == 0.0:
            return 0.0 * x + self.constant
        out = x if self.slope == 1.0 else -x if self.slope == -1.0 else self.slope * x
        return out + self.constant if self.constant else out


Approximation = approx.Polynomial | approx.Composite | Passed


@dataclass(frozen=True, eq=False)
class Problem:
    """A function to be approximated.

    Attributes:
      name: of the function. known: whether `approx` has a target of this name.
      function: of float64 arrays. domain: (low, high).
      samples: values that were met. source: the caller's line.
    """

    name: str
    known: bool
    function: Expression
    domain: tuple[float, float]
    samples: np.ndarray | None = None
    source: Source | None = None

    @property
    def target(self) -> Any:
        """What `approx.fit` takes."""
        named = self.known and not (self.name in ("log", "sqrt") and self.domain[0] < 0.0)
        return self.name if named else Target(self.name, self.function)

    def straight(self) -> Passed | None:
        """The function itself where it is a straight line on its domain, as |x| of positive x."""
        low, high = self.domain
        x = np.linspace(low, high, 513)
        y = self.function(x)
        if not np.all(np.isfinite(y)):
            return None
        slope = float(y[-1] - y[0]) / (high - low)
        if abs(slope - round(slope)) < 1e-9:
            slope = float(round(slope))
        constant = float(np.mean(y - slope * x))
        size = max(float(np.max(np.abs(y))), 1e-12)
        if float(np.max(np.abs(y - slope * x - constant))) > 1e-9 * size:
            return None
        constant = 0.0 if abs(constant) <= 1e-9 * size else constant
        return Passed(self.name, self.domain, slope, constant)


def quick(problem: Problem, tol: float) -> Approximation | None:
    """The approximation of the fewest levels within a tolerance, its polynomials interpolated; None
    if there is none.
    """
    line = problem.straight()
    if line is not None:
        return line
    series = _series(problem)
    degree = _least_degree(series, tol)
    plain = None
    if degree is not None:
        scale, shift = affine_map((problem.domain,))
        kept = tuple(series[: max(degree, 1) + 1].tolist())
        tail = float(np.sum(np.abs(series[degree + 1 :])))
        plain = Polynomial(kept, (problem.domain,), scale, shift, problem.name, tail)
    if degree is not None and degree <= _COMPOSITE_FROM:
        return plain
    other = _composite(problem, tol)
    if plain is None or other is None:
        return plain or other
    return other if other.depth < plain.depth else plain


def finest(problem: Problem, degree: int) -> Approximation:
    """The best polynomial of a degree.

    Raises:
      ApproxError: as `approx.fit`.
    """
    line = problem.straight()
    if line is not None:
        return line
    return approx.fit(problem.target, problem.domain, degree=degree)


def _series(problem: Problem) -> np.ndarray:
    """Chebyshev coefficients on the domain."""
    low, high = problem.domain
    u = np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    values = problem.function(0.5 * (low + high) + 0.5 * (high - low) * u)
    found = np.asarray(fft.dct(values, type=2)) / _NODES
    found[0] *= 0.5
    return found


def _least_degree(series: np.ndarray, tol: float) -> int | None:
    if not np.all(np.isfinite(series)):
        return None
    tails = np.cumsum(np.abs(series[::-1]))[::-1]
    size = float(np.max(np.abs(series)))
    within = np.flatnonzero(tails[1 : MOST_DEGREE + 2] <= max(tol, 1e-13 * size * _NODES))
    return int(within[0]) if len(within) else None


def _composite(problem: Problem, tol: float) -> Approximation | None:
    try:
        if problem.known and problem.name in _COMPOSITES:
            low, high = problem.domain
            if problem.name in ("relu", "abs"):
                bound = max(-low, high)
                return approx.composite(problem.name, (-bound, bound), tol=tol)
            return approx.composite(problem.name, problem.domain, tol=tol)
        return _kinked(problem, tol)
    except HesimError:
        return None


def _kinked(problem: Problem, tol: float) -> Approximation | None:
    """A smooth rest of half the tolerance, and composites for kinks and jumps."""
    found = kinks.kinks_of(problem.function, problem.domain)
    if not found:
        return None
    low, high = problem.domain
    rest = kinks.without(problem.function, found)
    values = rest(np.linspace(low, high, 513))
    smooth = None
    if float(np.max(np.abs(values))) > 1e-3 * tol:
        target = Target(problem.name, rest)
        smooth = approx.fit(target, problem.domain, tol=0.5 * tol, degree=MOST_DEGREE)
    made = kinks.composed(problem.name, problem.domain, smooth, found, 0.5 * tol, problem.samples)
    x = np.linspace(low, high, _NODES)
    for kink in (k for k in found if k.jump):
        reach = max(high - kink.at, kink.at - low)
        x = x[np.abs(x - kink.at) > kinks.gap(kink.at, reach, problem.samples)]
    error = float(np.max(np.abs(made(x) - problem.function(x))))
    return dataclasses.replace(made, max_error=error)


def finished(problem: Problem, chosen: Approximation) -> Approximation:
    """The same with its polynomial the best of its degree."""
    if not isinstance(chosen, Polynomial):
        return chosen
    try:
        best = finest(problem, chosen.degree)
    except HesimError:
        return chosen
    small = not math.isfinite(chosen.max_error) or best.max_error <= chosen.max_error
    return best if small else chosen
