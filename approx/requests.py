"""What a request may say: domains, degrees, depths and tolerances, checked and explained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from approx.errors import ApproxError, DomainError
from approx.polynomial import Interval, affine_map, intervals_of

LARGEST_DEGREE = 511
_NARROWEST = 1e-10  # width of the domain by its largest point: below, u = scale x + shift is noise


def domain(spans: Any) -> tuple[Interval, ...]:
    """(a, b) or a list of such pairs, as intervals; raises DomainError where it is malformed."""
    intervals = intervals_of(spans)
    low, high = intervals[0][0], intervals[-1][1]
    if not math.isfinite(high - low):
        raise DomainError(f"float64 cannot hold the width of ({low:g}, {high:g}); narrow it.")
    if not math.isfinite(2.0 / (high - low)):
        raise DomainError(f"float64 cannot map ({low!r}, {high!r}) to [-1, 1]; widen it.")
    if high - low < _NARROWEST * max(abs(low), abs(high)):
        raise DomainError(
            f"float64 cannot tell the points of ({low!r}, {high!r}) apart; shift the variable so "
            "that the domain lies about 0, or widen it."
        )
    return intervals


def largest_degree(
    intervals: tuple[Interval, ...],
    degree: int | None,
    depth: int | None,
    tol: float | None,
    affine: str,
) -> int:
    """The highest degree that the request leaves; raises ApproxError where it is malformed."""
    if degree is None and depth is None and tol is None:
        raise ApproxError(
            "Ask for a degree, a depth or a tol, as in fit('gelu', (-8, 8), depth=6)."
        )
    limit = LARGEST_DEGREE
    if degree is not None:
        degree = whole("degree", degree)
        if degree > LARGEST_DEGREE:
            raise ApproxError(
                f"degree {degree} is above {LARGEST_DEGREE}; use a composite or a narrower domain."
            )
        limit = degree
    if depth is not None:
        levels = whole("depth", depth)
        if levels == 0:
            raise ApproxError("depth 0 leaves only a constant; allow at least 1, or ask degree=0.")
        if affine != "folded" and abs(affine_map(intervals)[0]) != 1.0:
            levels -= 1
        if levels == 0:
            raise ApproxError(
                "The affine map to [-1, 1] takes that level; allow one more, fold the map "
                "(affine='folded'), or use a domain of half width 1."
            )
        limit = min(limit, 2 ** min(levels, 16) - 1)
    tolerance(tol)
    return limit


def constraints(through: Any, bounds: Any) -> None:
    """Raises ApproxError unless these are pairs (x, y), and a pair of numbers or None."""
    try:
        for x, y in through:
            _ = float(x), float(y)
    except (TypeError, ValueError) as error:
        raise ApproxError(f"through= is a list of points (x, y), not {through!r}.") from error
    try:
        low, high = (None if v is None else float(v) for v in bounds)
    except (TypeError, ValueError) as error:
        raise ApproxError(
            f"bounds= is (lowest, highest), None for none, not {bounds!r}."
        ) from error
    if any(v is not None and math.isnan(v) for v in (low, high)):
        raise ApproxError(f"bounds= must not be NaN, not {bounds!r}.")


def activations(samples: Any) -> np.ndarray:
    """The samples as a flat float64 array; raises ApproxError if they are not finite numbers."""
    try:
        data = np.asarray(samples, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise ApproxError("samples= must be an array of numbers.") from error
    if not np.all(np.isfinite(data)):
        raise ApproxError("samples= holds NaN or infinite values; leave them out.")
    return data


def whole(name: str, value: Any, least: int = 0) -> int:
    """The value as an int; raises ApproxError if it is not a whole number >= least."""
    try:
        if not isinstance(value, (bool, str)) and value == int(value) and value >= least:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ApproxError(f"{name} must be a whole number >= {least}, not {value!r}.")


def tolerance(tol: Any) -> None:
    """Raises ApproxError unless tol is None or a finite positive number."""
    if tol is None:
        return
    try:
        good = not isinstance(tol, (bool, str)) and math.isfinite(tol) and tol > 0.0
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise ApproxError(f"tol must be finite and positive, not {tol!r}.")
