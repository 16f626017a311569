"""Prediction intervals for the error of an encrypted run, from the spread between sampled keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["CONFIDENCE", "interval"]

CONFIDENCE = 0.99
"""Probability that no operation of a run leaves its interval, if the simulator is right."""


def interval(
    by_key: Sequence[float], part: float, operations: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Where the std of one operation's error is expected under one more key.

    log2 of the std under a key is taken as normal, so that with mean m and spread s over k keys
    the next one lies in m ± t·s·√(1 + 1/k), t the quantile of Student's distribution with k - 1
    degrees of freedom. The spread holds both that of keys and that of the slots of a tensor; if
    only a part of the elements is measured it grows by 1/√part.

    Args:
      by_key: predicted std under each key, in units of the values.
      part: measured elements over all elements of the tensor, in (0, 1].
      operations: compared in the run; the confidence is shared among them (Bonferroni).
      confidence: see `CONFIDENCE`.

    Returns:
      (low, high) in units of the values; (0, inf) from fewer than two keys, or if the error is 0
      under one of them.
    """
    from scipy import stats

    stds = np.asarray(by_key, np.float64)
    if len(stds) < 2 or not np.all(np.isfinite(stds)) or np.any(stds <= 0.0):
        return 0.0, math.inf
    logs = np.log2(stds)
    each = 1.0 - (1.0 - confidence) / (2.0 * max(operations, 1))
    quantile = float(stats.t.ppf(each, len(stds) - 1))
    spread = float(logs.std(ddof=1)) / math.sqrt(part)
    half = quantile * spread * math.sqrt(1.0 + 1.0 / len(stds))
    middle = float(logs.mean())
    return 2.0 ** (middle - half), 2.0 ** min(middle + half, 1000.0)
