"""approx.choose: the Pareto front of error against levels and products for a target and its data.

The error that counts is what the encrypted evaluation does to the data: the approximation's error
on the samples inside the range, the damage of those outside, and the rounding of CKKS, magnified
by the form of evaluation (``approx.noise``). A narrow range fits better and loses more samples; a
high degree fits better and costs levels; squaring and composites reach wide ranges and magnify
noise. So ranges, degrees, methods and forms are searched together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from approx.composites import Composite, composite
from approx.errors import ApproxError, ToleranceError
from approx.fitting import fit
from approx.noise import amplification
from approx.polynomial import Polynomial
from approx.targets import Target, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TAILS = (0.0, 1e-4, 1e-3, 1e-2)  # share of the samples that a range may leave outside
_DEGREES = (3, 5, 7, 9, 11, 13, 15, 19, 23, 27, 31, 39, 47, 55, 59, 63, 95, 119, 127)
_SAMPLES = 4000  # at most so many are evaluated


@dataclass(frozen=True)
class Choice:
    """One way to approximate, and what it costs and does.

    Attributes:
      approximation: ready to use.
      method: "minimax", "least_squares", or the kind of composite.
      error: root mean square on all samples, CKKS rounding included.
      damage: largest error of a sample, without the rounding (infinite where it overflows).
      magnification: of CKKS rounding, by the form of evaluation, on the samples inside.
      outside: share of the samples outside the range.
    """

    approximation: Polynomial | Composite
    method: str
    error: float
    damage: float
    magnification: float
    outside: float

    @property
    def levels(self) -> int:
        """Levels consumed."""
        return self.approximation.depth

    @property
    def products(self) -> int:
        """Products of two ciphertexts."""
        a = self.approximation
        return a.plan.nonscalar_mults if isinstance(a, Polynomial) else a.products

    def __str__(self) -> str:
        low, high = self.approximation.hull
        return (
            f"{self.levels:>2} levels {self.products:>3} products  error {self.error:.2e}  "
            f"noise x{self.magnification:<7.3g} [{low:.4g}, {high:.4g}] "
            f"{self.method} degree {self.approximation.degree}, {self.outside:.2%} outside"
        )


@dataclass(frozen=True)
class Front:
    """Pareto-optimal choices by levels, then products; ``str`` is a table, ``best`` the answer."""

    target: str
    choices: tuple[Choice, ...]
    best: Choice

    def __str__(self) -> str:
        rows = [("* " if c is self.best else "  ") + str(c) for c in self.choices]
        return "\n".join([f"{self.target}: error against levels and products", *rows])

    def plot(self) -> Figure:
        """Error against levels, a mark a choice."""
        from approx.plots import pareto

        return pareto(self)


def choose(
    target: str | Callable[[Any], Any],
    samples: Any,
    *,
    max_levels: int | None = None,
    max_error: float | None = None,
    noise_bits: float = 30.0,
) -> Front:
    """Searches range, degree, method and form for a target and samples of its input.

    Args:
      target: a name or a callable, as for ``approx.fit``.
      samples: activations, of any shape.
      max_levels: of the best choice, and of the front.
      max_error: root mean square wanted; the best choice reaches it at the fewest levels, then
        products. Without it the best choice is the most accurate.
      noise_bits: the rounding of one rescale is 2^-noise_bits (some 10 below log2 of the scale).

    Raises:
      ApproxError: no samples, samples that are not finite, or no request.
      ToleranceError: max_error is out of reach; the message says what is reached.
    """
    known = find(target)
    x = np.asarray(samples, dtype=np.float64).ravel()
    if len(x) == 0 or not np.all(np.isfinite(x)):
        raise ApproxError("choose needs at least one sample, and finite ones.")
    if max_levels is None and max_error is None:
        raise ApproxError(
            "Ask for max_levels= or max_error=, as in choose('gelu', x, max_levels=6)."
        )
    limit = 20 if max_levels is None else int(max_levels)
    if limit < 1:
        raise ApproxError(f"max_levels must be at least 1, not {max_levels}.")
    wanted = known(x)
    if not np.all(np.isfinite(wanted)):
        raise ApproxError(f"{known.name} is not finite on some samples; leave those out.")
    rounding = 2.0**-noise_bits
    tried = []
    for low, high in _ranges(known, x):
        for method, made in _candidates(target, known, (low, high), x, limit, rounding):
            if made.depth <= limit:
                tried.append(_measure(made, method, x, wanted, rounding))
    front = _front(tried)
    if not front:
        raise ToleranceError(
            f"Nothing approximates {known.name} within {limit} levels; allow more."
        )
    if max_error is None:
        best = min(front, key=lambda c: c.error)
    else:
        enough = [c for c in front if c.error <= max_error]
        if not enough:
            least = min(c.error for c in front)
            raise ToleranceError(
                f"max_error={max_error:g} is out of reach: {least:.2e} within {limit} levels at "
                f"{noise_bits:g} noise bits. Allow more levels, a larger scale, a narrower range."
            )
        best = enough[0]
    return Front(known.name, tuple(front), best)


def _ranges(target: Target, x: np.ndarray) -> Iterator[tuple[float, float]]:
    seen = set()
    symmetric = target.remainder is not None
    for tail in _TAILS:
        low, high = (float(q) for q in np.quantile(x, [0.5 * tail, 1.0 - 0.5 * tail]))
        margin = 0.01 * (high - low) if tail == 0.0 else 0.0
        if target.forbidden is not None and low > target.forbidden[1]:
            low, high = max(low - margin, 0.9 * low), high + margin
        else:
            low, high = low - margin, high + margin
        if target.name == "exp" and high <= 0.0 or target.name == "exp" and float(np.max(x)) <= 0.0:
            high = 0.0
        if symmetric and low < 0.0 < high:
            high = max(-low, high)
            low = -high
        if high - low > 1e-9 * max(abs(low), abs(high), 1e-300) and (low, high) not in seen:
            seen.add((low, high))
            yield low, high


def _candidates(
    target: Any,
    known: Target,
    domain: tuple[float, float],
    x: np.ndarray,
    limit: int,
    rounding: float,
) -> Iterator[tuple[str, Polynomial | Composite]]:
    inside = x[(x >= domain[0]) & (x <= domain[1])]
    for degree in _DEGREES:
        if degree.bit_length() > limit:
            break
        p = fit(target, domain, degree=degree)
        yield "minimax", p
        if len(inside) > 4 * degree:
            thin = inside[:: max(1, len(inside) // _SAMPLES)]
            yield (
                "least_squares",
                fit(target, domain, degree=degree, method="least_squares", samples=thin),
            )
        if p.max_error < 0.3 * rounding:
            break
    for kind, knobs in _composites(known.name, domain, limit, rounding):
        try:
            yield kind, composite(kind, domain, **knobs)
        except ToleranceError:
            continue


def _composites(
    name: str, domain: tuple[float, float], limit: int, rounding: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    tolerances = [10.0**-k for k in range(2, 8) if 10.0**-k > 0.3 * rounding]
    if name in ("relu", "abs") and domain[0] < 0.0 < domain[1]:
        for levels in range(7, limit + 1):
            yield name, {"depth": levels}
    if name == "exp" and domain[1] == 0.0:
        yield from (("exp_squaring", {"squarings": k}) for k in range(4, min(limit, 12)))
        yield from (("exp_squaring", {"tol": t, "degree": 7}) for t in tolerances)
    if name in ("inv_sqrt", "inv") and domain[0] > 0.0:
        for degree in (3, 7, 15, 31):
            yield from ((name, {"degree": degree, "steps": k}) for k in range(1, 5))


def _measure(
    made: Polynomial | Composite, method: str, x: np.ndarray, wanted: np.ndarray, rounding: float
) -> Choice:
    low, high = made.hull
    inside = (x >= low) & (x <= high)
    with np.errstate(all="ignore"):
        errors = np.abs(made(x) - wanted)
        errors = np.where(np.isnan(errors), np.inf, errors)
        mean_square = float(np.mean(errors * errors))
    points = x[inside]
    points = points[:: max(1, len(points) // 512)] if len(points) else None
    magnified = amplification(made, points)
    return Choice(
        made,
        method,
        math.sqrt(mean_square + (magnified * rounding) ** 2),
        float(np.max(errors)),
        magnified,
        float(np.mean(~inside)),
    )


def _front(tried: list[Choice]) -> list[Choice]:
    """Those that no other beats in levels, products and error."""
    front: list[Choice] = []
    for choice in sorted(tried, key=lambda c: (c.levels, c.products, c.error)):
        if math.isfinite(choice.error) and all(
            choice.error < 0.98 * c.error for c in front if c.products <= choice.products
        ):
            front.append(choice)
    return front
