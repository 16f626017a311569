"""What the tables of studies share: a mean with its interval, and columns under a rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from hesim.display import text_table
from hesim.errors import ArgumentError

__all__ = ["Interval", "interval", "ruled"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over `count` values and the half-width of its 95 % interval, in the units of the
    values; the half-width is infinite for fewer than two. A format is the mean's, ".1f" by default.

    Examples:
      >>> f"{interval([1.0, 2.0, 3.0])}, {interval([1.0, 2.0, 3.0]):+.2f}, {interval([5.0])}"
      '2.0 ± 2.5, +2.00 ± 2.5, 5.0'
    """

    mean: float
    half: float
    count: int

    def __format__(self, spec: str) -> str:
        half = f" ± {self.half:.1f}" if math.isfinite(self.half) else ""
        return f"{self.mean:{spec or '.1f'}}{half}"

    def __str__(self) -> str:
        return f"{self}"


def interval(values: Sequence[float]) -> Interval:
    """By Student's t. ArgumentError for no values."""
    if not len(values):
        raise ArgumentError("no values to take the mean of")
    found, n = np.asarray(values, float), len(values)
    half = math.inf
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1)) * float(found.std(ddof=1)) / math.sqrt(n)
    return Interval(float(found.mean()), half, n)


def ruled(rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells, columns aligned on the left, under a rule below the head, the first row.

    Examples:
      >>> print(ruled([("task", "score"), ("RTE", "55.6")]))
      task  score
      -----------
      RTE   55.6
    """
    head, *lines = text_table(rows).split("\n")
    return "\n".join([head, "-" * max(map(len, (head, *lines))), *lines])
