"""The domain of a polynomial, from the range that its values took on calibration batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["widened"]

Range = tuple[float, float]
_POINTS = 257


def widened(met: Range, margin: float, function: Callable[[Any], Any]) -> Range:
    """A range, wider on each side by a part of its width.

    Where the function is not finite there, as a reciprocal near 0, the range keeps its sign, and is
    made wider by that part of its ratio instead.

    Args:
      met: lowest and highest value. margin: the part. function: of float64 arrays.

    Examples:
      >>> import numpy as np
      >>> from hesim.approximating.domains import widened
      >>> widened((-1.0, 3.0), 0.25, np.tanh)
      (-2.0, 4.0)
      >>> low, high = widened((1.0, 16.0), 0.25, lambda x: 1 / x)
      >>> low, high
      (0.5, 32.0)
    """
    low, high = met
    width = (high - low) or max(abs(low), 1e-3)
    plain = low - margin * width, high + margin * width
    near_zero = low > 0.0 or high < 0.0
    if not near_zero or plain[0] * plain[1] > 0.0 and _mild(function, plain, met):
        return plain
    if _mild(function, plain, met):
        return plain
    sign = 1.0 if low > 0.0 else -1.0
    small, large = sorted((abs(low), abs(high)))
    ratio = max(large / small, math.e) ** margin
    ends = sorted((sign * small / ratio, sign * large * ratio))
    return ends[0], ends[1]


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
