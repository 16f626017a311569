"""Prediction intervals for the error of an encrypted run, from the spread between sampled keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CONFIDENCE", "TOLERANCE_BITS", "chance", "interval"]

CONFIDENCE = 0.99
"""Probability that no operation of a run leaves its interval, if the simulator is right."""

TOLERANCE_BITS = 0.25
"""Bits by which the simulator itself may be off: what its formulas leave out, whatever the key."""

_LOG2_SPREAD = math.log2(math.e) / math.sqrt(2.0)
"""Spread of log2 of the std of n independent normal errors, times sqrt(n)."""


@dataclass(frozen=True)
class _Expected:
    """log2 of the std under one more key: where it is expected, and how widely it is spread.

    Attributes:
      middle: mean over keys. rms: of the std itself, log2. spread: of one more key about the mean.
      freedom: degrees of freedom of that spread. parts: independent errors that the std is made of.
      lowest: False where some key has no error at all, so that none is too small.
    """

    middle: float
    rms: float
    spread: float
    freedom: int
    parts: float
    lowest: bool


def interval(
    by_key: Sequence[float],
    part: float,
    operations: int,
    confidence: float = CONFIDENCE,
    *,
    elements: int | None = None,
    tolerance: float = 0.0,
) -> tuple[float, float]:
    """Where the std of one operation's error is expected under one more key.

    log2 of the std under a key is taken as normal, so that with mean m and spread s over k keys
    the next one lies in m ± t·s·√(1 + 1/k), t the quantile of Student's distribution with k - 1
    degrees of freedom. The spread holds both that of keys and that of the slots of a tensor; if
    only a part of the elements is measured it grows by 1/√part. It is never taken for less than
    that of independent errors. Few errors can come out far smaller than a normal log2 lets them, by
    the lower tail of a chi-square distribution, which the lower end leaves room for.

    Args:
      by_key: predicted std under each key, in units of the values.
      part: measured elements over all elements of the tensor, in (0, 1].
      operations: compared in the run; the confidence is shared among them (Bonferroni).
      confidence: see `CONFIDENCE`.
      elements: measured elements, None if their number is to play no part.
      tolerance: bits by which both ends are moved out, see `TOLERANCE_BITS`.

    Returns:
      (low, high) in units of the values; (0, inf) from fewer than two keys with an error, or if a
      prediction is not finite. low is 0 if the error is 0 under one of the keys.
    """
    from scipy import stats

    expected = _expected(by_key, part, elements)
    if expected is None:
        return 0.0, math.inf
    tail = (1.0 - confidence) / (2.0 * max(operations, 1))
    half = float(stats.t.ppf(1.0 - tail, expected.freedom)) * expected.spread
    low = expected.middle - half
    if elements is not None:
        few = float(stats.chi2.ppf(tail, expected.parts)) / expected.parts
        low = min(low, expected.rms + 0.5 * math.log2(few)) if few > 0.0 else -math.inf
    high = 2.0 ** min(expected.middle + half + tolerance, 1000.0)
    return (2.0 ** (low - tolerance) if expected.lowest else 0.0), high


def chance(
    measured: float,
    by_key: Sequence[float],
    part: float,
    operations: int,
    *,
    elements: int,
    tolerance: float = TOLERANCE_BITS,
    above_only: bool = False,
) -> float:
    """Probability that a sound run has some operation as far from its prediction as this one.

    An operation leaves its interval at confidence c where this is below 1 - c.

    Args:
      measured: std of the error, in units of the values.
      above_only: too small an error is no surprise, as on a machine that adds none.
      by_key, part, operations, elements, tolerance: as for `interval`.

    Returns:
      A probability for the whole run, at most 1; NaN where there is no interval.
    """
    from scipy import stats

    expected = _expected(by_key, part, elements)
    if expected is None:
        return math.nan
    if not math.isfinite(measured):
        return 0.0
    bits = math.log2(measured) if measured > 0.0 else -math.inf
    above = (bits - expected.middle - tolerance) / expected.spread
    tails = [float(stats.t.sf(above, expected.freedom))]
    if expected.lowest and not above_only:
        below = (expected.middle - tolerance - bits) / expected.spread
        squares = 4.0 ** min(bits + tolerance - expected.rms, 500.0)
        few = float(stats.chi2.cdf(expected.parts * squares, expected.parts))
        tails.append(max(float(stats.t.sf(below, expected.freedom)), few))
    return min(1.0, 2.0 * max(operations, 1) * min(tails))


def _expected(by_key: Sequence[float], part: float, elements: int | None) -> _Expected | None:
    stds = np.asarray(by_key, np.float64)
    if not np.all(np.isfinite(stds)) or np.any(stds < 0.0):
        return None
    some = stds[stds > 0.0]
    if len(some) < 2:
        return None
    logs = np.log2(some)
    spread = float(logs.std(ddof=1)) / math.sqrt(part)
    parts = math.inf
    if elements is not None:
        spread = max(spread, _LOG2_SPREAD / math.sqrt(elements))
        parts = max((_LOG2_SPREAD / spread) ** 2, 1.0)
    return _Expected(
        middle=float(logs.mean()),
        rms=0.5 * math.log2(float(np.mean((some / some.max()) ** 2))) + float(logs.max()),
        spread=max(spread, 1e-9) * math.sqrt(1.0 + 1.0 / len(some)),
        freedom=len(some) - 1,
        parts=parts,
        lowest=len(some) == len(stds),
    )
