"""Polynomial: a Chebyshev series on a domain, evaluated by NumPy or as one JAX primitive.

``p(x) = sum_k coefficients[k] * T_k(scale * x + shift)``. On a NumPy array or a number, ``p(x)``
is float64 NumPy by Clenshaw's recurrence; on a JAX array or tracer it is one equation
``polynomial`` (see ``approx.primitive``). This module imports no JAX.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from approx import planning as _planning
from approx.errors import ApproxError, DomainError
from approx.plan import Plan

Interval = tuple[float, float]


@dataclass(frozen=True, repr=False, eq=False)
class Polynomial:
    """A Chebyshev series on one interval or a union of intervals; immutable and hashable.

    Attributes:
      coefficients: Chebyshev coefficients on u = scale * x + shift, T_0 first.
      intervals: the domain as a tuple of disjoint intervals in ascending order.
      scale, shift: the affine map of the domain's hull to [-1, 1].
      name: of the target.
      max_error: bound on |p - target| over the domain (infinite: nothing is claimed).
      certified: whether max_error is rigorous; otherwise it is an estimate on a dense grid.
      affine: "own" if evaluation spends a level on the affine map, "folded" if whoever evaluates
        has merged ``scale`` into the constants of the operation before.
      rule: what differentiation uses in place of the exact derivative, or None.
      rule_of: "input" if the rule is a polynomial of x, "value" if it is one of p(x).
      tails: what each coefficient has beyond float64, where the error is so small that rounding
        the coefficients would spoil it; ``max_error`` is that of the sums, which NumPy evaluates.
        The plan (JAX, the simulator, encrypted kernels) leaves them out: see ``plan_error``.
      planning: how it is evaluated: "fewest" products of two ciphertexts at the least depth,
        "quiet" at the same depth without the recursion that saves products and costs one to three
        bits of CKKS noise, or "deeper": one level more where that saves products.

    Examples:
      >>> import approx
      >>> square = approx.Polynomial((0.5, 0.0, 0.5))  # (T_0 + T_2) / 2 on [-1, 1]
      >>> print(f"{square(0.3):.2f} {square.derivative()(0.3):.2f}", square.degree, square.depth)
      0.09 0.60 2 2
    """

    coefficients: tuple[float, ...]
    intervals: tuple[Interval, ...] = ((-1.0, 1.0),)
    scale: float = 1.0
    shift: float = 0.0
    name: str = "polynomial"
    max_error: float = math.inf
    certified: bool = False
    affine: str = "own"
    rule: Polynomial | None = None
    rule_of: str = "input"
    tails: tuple[float, ...] = ()
    planning: str = "fewest"

    def __post_init__(self) -> None:
        series = [float(c) for c in self.coefficients]
        if not series or not all(math.isfinite(c) for c in series):
            raise ApproxError(
                f"{self.name}: coefficients must be finite and at least one; "
                "fit the target on a domain where it is finite."
            )
        while len(series) > 1 and series[-1] == 0.0:
            series.pop()
        if self.affine not in ("own", "folded"):
            raise ApproxError(f'affine must be "own" or "folded", not {self.affine!r}.')
        if self.rule_of not in ("input", "value"):
            raise ApproxError(f'A rule is of "input" or "value", not {self.rule_of!r}.')
        if self.planning not in _planning.PLANNINGS:
            raise ApproxError(
                f"A plan is one of {', '.join(_planning.PLANNINGS)}, not {self.planning!r}."
            )
        intervals = check_intervals(self.intervals)
        tails = tuple(float(c) for c in self.tails[: len(series)])
        if not all(math.isfinite(c) for c in tails):
            raise ApproxError(f"{self.name}: the tails of the coefficients must be finite.")
        values = {
            "coefficients": tuple(series),
            "tails": tails if any(tails) else (),
            "intervals": intervals,
            "scale": float(self.scale),
            "shift": float(self.shift),
            "max_error": float(self.max_error),
            "certified": bool(self.certified),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_power(
        cls,
        coefficients: Sequence[float],
        domain: Any,
        *,
        name: str = "polynomial",
        affine: str = "own",
    ) -> Polynomial:
        """The polynomial sum_k coefficients[k] x^k, on a domain where it is to be evaluated.

        Papers and other libraries print polynomials like this. The Chebyshev coefficients are
        those of the exact polynomial, rounded once, however much the given ones cancel.

        Args:
          coefficients: of the powers of x, the constant first (``np.polyfit`` returns them last).
          domain: (a, b), or a list of disjoint intervals.
          name: of what it approximates.
          affine: "own" or "folded", as for ``approx.fit``.

        Raises:
          ApproxError: coefficients that are no finite numbers, or that exceed float64 in u.
          DomainError: the domain is malformed.
        """
        from approx.power import chebyshev

        try:
            powers = [float(c) for c in coefficients]
        except (TypeError, ValueError) as error:
            raise ApproxError(
                f"coefficients are numbers, that of x^0 first, not {coefficients!r}."
            ) from error
        if not powers or not all(math.isfinite(c) for c in powers):
            raise ApproxError("coefficients must be finite and at least one.")
        intervals = intervals_of(domain)
        scale, shift = affine_map(intervals)
        if not math.isfinite(scale) or not math.isfinite(shift):
            raise DomainError(f"float64 cannot map {domain!r} to [-1, 1]; widen it, or narrow it.")
        series = chebyshev(powers, scale, shift)
        return cls(series, intervals, scale, shift, name=name, affine=affine)

    # --- identity -------------------------------------------------------------------------------

    def _key(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @cached_property
    def _hash(self) -> int:
        return hash(self._key())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Polynomial) and self._key() == other._key()

    def __reduce__(self) -> tuple[Any, ...]:
        return Polynomial, self._key()

    def __repr__(self) -> str:
        spans = " | ".join(f"[{a:g}, {b:g}]" for a, b in self.intervals)
        error = "" if math.isinf(self.max_error) else f", max_error={self.max_error:.2e}"
        return f"Polynomial({self.name}, degree={self.degree}, {spans}{error})"

    # --- what it is -----------------------------------------------------------------------------

    @property
    def degree(self) -> int:
        """Highest k with a non-zero coefficient."""
        return len(self.coefficients) - 1

    @property
    def domain(self) -> Any:
        """(a, b), or a tuple of intervals if the domain is a union."""
        return self.intervals[0] if len(self.intervals) == 1 else self.intervals

    @property
    def hull(self) -> Interval:
        """The smallest interval that contains the domain."""
        return self.intervals[0][0], self.intervals[-1][1]

    def contains(self, x: Any, slack: float = 1e-9) -> np.ndarray:
        """Whether the values lie in the domain, gaps of a union left out; NaN lies nowhere.

        Args:
          x: values, of any shape, in the unit of the domain.
          slack: rounding that is forgiven at every end, as a part of the hull's width.

        Returns:
          bool, in the shape of x.
        """
        values = np.asarray(x, dtype=np.float64)
        wider = slack * (self.hull[1] - self.hull[0])
        found = np.zeros(values.shape, dtype=bool)
        for low, high in self.intervals:
            found |= (values >= low - wider) & (values <= high + wider)
        return found

    @property
    def parity(self) -> str | None:
        """ "even" or "odd" if p is, as a function of scale * x + shift; otherwise None."""
        present = {k % 2 for k, c in enumerate(self.coefficients) if c != 0.0}
        if len(present) != 1:
            return None
        return "odd" if present == {1} else "even"

    @cached_property
    def plan(self) -> Plan:
        """The straight-line program that encrypted evaluation runs on u = scale * x + shift."""
        return _planning.planned(self.coefficients, self.planning)

    @property
    def depth(self) -> int:
        """Levels that evaluation consumes, the affine map included unless it is free or folded."""
        free = self.degree == 0 or abs(self.scale) == 1.0 or self.affine == "folded"
        return self.plan.depth + (0 if free else 1)

    @property
    def plan_error(self) -> float:
        """Bound on |p - target| for the plan, which has the float64 coefficients alone.

        max_error plus the sum of |tails|, since |T_k| <= 1 on the domain; max_error itself for
        polynomials without tails. As rigorous as max_error is.
        """
        if not self.tails:
            return self.max_error
        return math.nextafter(self.max_error + math.fsum(map(abs, self.tails)), math.inf)

    # --- values ---------------------------------------------------------------------------------

    def __call__(self, x: Any) -> Any:
        """p(x): float64 for NumPy and numbers, one ``polynomial`` equation for JAX values."""
        if is_jax(x):
            from approx.primitive import apply

            return apply(self, x)
        u = self.scale * np.asarray(x, dtype=np.float64) + self.shift
        value = clenshaw(self.coefficients, u)
        return value + clenshaw(self.tails, u) if self.tails else value

    def derivative(self) -> Polynomial:
        """The exact derivative of the polynomial, on the same domain and affine map."""
        series = differentiate(self.coefficients)
        return dataclasses.replace(
            self,
            coefficients=tuple(self.scale * c for c in series),
            tails=(),
            name=f"{self.name}'",
            max_error=math.inf,
            certified=False,
            rule=None,
            rule_of="input",
        )

    def multiplied(self, factor: float, constant: float = 0.0) -> Polynomial:
        """factor * p + constant on the same domain; it claims no error of its own."""
        series = [factor * c for c in self.coefficients]
        series[0] += constant
        return dataclasses.replace(
            self, coefficients=tuple(series), tails=(), max_error=math.inf, certified=False
        )

    def with_derivative(self, rule: Polynomial | str, of: str = "input") -> Polynomial:
        """The same polynomial with another derivative rule, for cheap gradients.

        Args:
          rule: a polynomial, or "value": p' = p, exp's rule, which costs no evaluation at all.
          of: what the rule is applied to: "input" x or "value" p(x), as 1 - y^2 for tanh.

        Returns:
          A polynomial whose values are the same and whose derivative in JAX is the rule.
        """
        if isinstance(rule, str):
            if rule != "value":
                raise ApproxError(f'A rule is a Polynomial or "value", not {rule!r}.')
            rule, of = IDENTITY, "value"
        return dataclasses.replace(self, rule=rule, rule_of=of)

    def with_plan(self, planning: str) -> Polynomial:
        """The same polynomial under another plan: "fewest", "quiet" or "deeper" (see above).

        The simulator, the slot machine and the encrypted kernels run the plan it carries; depth,
        products and noise follow it, the values and the error do not.
        """
        return dataclasses.replace(self, planning=planning)

    def rescaled(self, m: float) -> Polynomial:
        """q with q(x) = p(m * x) on the domain divided by m.

        A preceding constant that absorbs 1/m makes the affine map cost no level: where the half
        width of the new domain is 1, ``q.scale`` is exactly 1 and only a shift remains.
        """
        if not math.isfinite(m) or m == 0.0:
            raise DomainError(f"rescaled needs a finite factor other than 0, not {m}.")
        spans = sorted((min(a / m, b / m), max(a / m, b / m)) for a, b in self.intervals)
        scale = _snap(self.scale * m)
        rule = self.rule
        if rule is not None and self.rule_of == "input":
            rule = rule.rescaled(m).multiplied(m)
        if rule is not None and self.rule_of == "value":
            rule = rule.multiplied(m)
        return dataclasses.replace(self, intervals=tuple(spans), scale=scale, rule=rule)

    def growth(self, fraction: float) -> float:
        """sup |p| within ``fraction`` of the hull's width outside the hull, the hull included."""
        a, b = self.hull
        margin = fraction * (b - a)
        if not (math.isfinite(margin) and margin >= 0.0):
            raise ApproxError(f"fraction must be finite and at least 0, not {fraction}.")
        count = 8 * (self.degree + 2) + 1
        angles = np.cos(np.linspace(0.0, np.pi, count))
        inside = 0.5 * (a + b) + 0.5 * (b - a) * angles
        outside = np.linspace(0.0, margin, 257)
        points = np.concatenate([inside, a - outside, b + outside])
        with np.errstate(all="ignore"):
            sizes = np.abs(self(points))
        return float(np.max(np.where(np.isnan(sizes), np.inf, sizes)))

    # --- storage --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON keeps bit for bit (Python prints floats so that they round trip)."""
        return {
            "kind": "polynomial",
            "coefficients": list(self.coefficients),
            "intervals": [list(i) for i in self.intervals],
            "scale": self.scale,
            "shift": self.shift,
            "name": self.name,
            "max_error": None if math.isinf(self.max_error) else self.max_error,
            "certified": self.certified,
            "affine": self.affine,
            "rule": None if self.rule is None else self.rule.to_dict(),
            "rule_of": self.rule_of,
            "tails": list(self.tails),
            "planning": self.planning,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Polynomial:
        """The inverse of ``to_dict``; raises ApproxError on anything else."""
        try:
            return cls(
                coefficients=tuple(data["coefficients"]),
                intervals=tuple((a, b) for a, b in data["intervals"]),
                scale=data["scale"],
                shift=data["shift"],
                name=data["name"],
                max_error=math.inf if data["max_error"] is None else data["max_error"],
                certified=data["certified"],
                affine=data["affine"],
                rule=None if data["rule"] is None else cls.from_dict(data["rule"]),
                rule_of=data["rule_of"],
                tails=tuple(data.get("tails", ())),
                planning=data.get("planning", "fewest"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ApproxError(
                f"Not a stored polynomial ({error!r}); write it with Polynomial.to_json."
            ) from error

    def to_json(self) -> str:
        """JSON text with full precision."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Polynomial:
        """The polynomial that ``to_json`` wrote, bit for bit; ApproxError if it is none."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ApproxError(f"Not a stored polynomial: no JSON ({error}).") from error
        return cls.from_dict(data)


def intervals_of(domain: Any) -> tuple[Interval, ...]:
    """(a, b) or a list of such pairs, as intervals; raises DomainError where it is malformed."""
    try:
        given = list(domain)
    except TypeError as error:
        raise DomainError(
            f"A domain is (a, b) with a < b, or a list of such pairs, not {domain!r}."
        ) from error
    return check_intervals([given] if len(given) == 2 and np.ndim(given[0]) == 0 else given)


def check_intervals(intervals: Any) -> tuple[Interval, ...]:
    """Intervals as sorted float pairs.

    Raises:
      DomainError: none, not finite, reversed or empty, or overlapping.
    """
    try:
        spans = tuple(sorted((float(a), float(b)) for a, b in intervals))
    except (TypeError, ValueError) as error:
        raise DomainError("A domain is (a, b) with a < b, or a list of such pairs.") from error
    if not spans:
        raise DomainError("The domain is empty; give (a, b) with a < b.")
    for a, b in spans:
        if not (math.isfinite(a) and math.isfinite(b)):
            raise DomainError(f"The domain ({a}, {b}) is not finite; a polynomial needs bounds.")
        if not a < b:
            raise DomainError(
                f"The domain ({a}, {b}) is empty or reversed; give (a, b) with a < b."
            )
    for (_, b), (a, _) in zip(spans, spans[1:]):
        if a <= b:
            raise DomainError(f"The intervals of the domain meet at {a}; merge them into one.")
    return spans


def affine_map(intervals: tuple[Interval, ...]) -> tuple[float, float]:
    """(scale, shift) of the map of the hull to [-1, 1]; scale is exactly 1 if the half width is."""
    a, b = intervals[0][0], intervals[-1][1]
    scale = _snap(2.0 / (b - a))
    return scale, -(0.5 * (a + b)) * scale


def clenshaw(coefficients: tuple[float, ...], u: Any) -> Any:
    """sum_k coefficients[k] * T_k(u) by Clenshaw's recurrence; u is a NumPy or JAX array."""
    one = two = 0.0 * u
    for c in reversed(coefficients[1:]):
        one, two = 2.0 * u * one - two + c, one
    return u * one - two + coefficients[0]


def differentiate(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    """Chebyshev coefficients of the derivative by u."""
    n = len(coefficients)
    if n == 1:
        return (0.0,)
    out = [0.0] * (n + 1)
    for k in range(n - 1, 0, -1):
        out[k - 1] = out[k + 1] + 2.0 * k * coefficients[k]
    out[0] *= 0.5
    return tuple(out[: n - 1])


def _snap(scale: float) -> float:
    """1 or -1 where rounding alone keeps the scale from it."""
    return math.copysign(1.0, scale) if abs(abs(scale) - 1.0) < 1e-14 else scale


def is_jax(x: Any) -> bool:
    """Whether x is a JAX array or tracer, found out without importing JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and (isinstance(x, jax.Array) or hasattr(x, "__jax_array__"))


IDENTITY = Polynomial((0.0, 1.0), name="identity", max_error=0.0, certified=True)
ONE_MINUS_SQUARE = Polynomial((0.5, 0.0, -0.5), name="1 - y^2", max_error=0.0, certified=True)
