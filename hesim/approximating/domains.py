"""The domain of a polynomial, from the values that were met on calibration batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["widened"]

Range = tuple[float, float]

_POINTS = 257
_TAIL = 0.04
"""Part of the values, at each end, that say how a tail goes on."""

_LEAST_TAIL = 4
_RARE = 0.02
"""Probability that as many values again go beyond a domain at one end, by exponential tails."""

_LEAST = 0.05
"""Part of the width by which a domain is wider on each side at least, if no margin is given; of n
values 1 / sqrt(n) of it.
"""


def widened(
    met: Range,
    samples: Any,
    function: Callable[[Any], Any],
    margin: float | None = None,
) -> Range:
    """A range, made wider on each side.

    Where the function is not finite, or grows fast, beyond an end, as a reciprocal near 0, the
    range keeps its sign, and logarithms are made wider instead.

    Args:
      met: lowest and highest value. samples: some of the values.
      function: of float64 arrays.
      margin: part of the width; by default as far as the tails of the values go on.

    Examples:
      >>> import numpy as np
      >>> from hesim.approximating.domains import widened
      >>> widened((-1.0, 3.0), [-1.0, 3.0], np.tanh, margin=0.25)
      (-2.0, 4.0)
      >>> widened((1.0, 16.0), [1.0, 16.0], lambda x: 1 / x, margin=0.25)
      (0.5, 32.0)
      >>> normal = np.random.default_rng(0).normal(size=1000)
      >>> low, high = widened((normal.min(), normal.max()), normal, np.tanh)
      >>> 4.0 < high < 5.5
      True
    """
    low, high = met
    values = np.asarray(samples, np.float64)
    plain = _wider(low, high, values, margin)
    if not (low > 0.0 or high < 0.0) or _mild(function, plain, met):
        return plain
    sign = 1.0 if low > 0.0 else -1.0
    first, last = sorted((math.log(abs(low)), math.log(abs(high))))
    logs = np.log(np.abs(values[values * sign > 0.0]))
    small, large = _wider(first, last, logs, margin)
    found = sorted((sign * math.exp(small), sign * math.exp(large)))
    return found[0], found[1]


def _wider(low: float, high: float, values: np.ndarray, margin: float | None) -> Range:
    width = (high - low) or max(abs(low), 1e-3)
    if margin is not None:
        return low - margin * width, high + margin * width
    least = width * max(_LEAST, 1.0 / math.sqrt(max(values.size, 1)))
    return low - max(_reach(-values), least), high + max(_reach(values), least)


def _reach(values: np.ndarray) -> float:
    """How far beyond the largest value as many more go at most, with a probability of 1 - _RARE."""
    count = max(_LEAST_TAIL, int(_TAIL * values.size))
    if values.size <= count:
        return 0.0
    top = np.sort(values)[-count - 1 :]
    return float(np.mean(top[1:] - top[0])) * math.log(1.0 / _RARE)


def _mild(function: Callable[[Any], Any], domain: Range, met: Range) -> bool:
    """Whether a function is finite on a domain, and not much larger than on what was met of it."""
    points = np.linspace(*domain, _POINTS)
    if domain[0] < 0.0 < domain[1]:
        # A pole at 0 may lie between two points.
        points = np.append(points, 0.0)
    with np.errstate(all="ignore"):
        values = np.asarray(function(points))
    known = np.asarray(function(np.linspace(*met, _POINTS)))
    if not np.all(np.isfinite(values)):
        return False
    span = float(np.max(known) - np.min(known))
    return bool(np.ptp(values) <= 2.0 * max(span, 1e-12) + 1e-3 * float(np.max(np.abs(known))))
