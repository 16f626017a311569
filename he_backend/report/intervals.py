"""Prediction intervals for the errors of an encrypted run: chance told from a fault.

The std of an operation's error differs from key to key and from draw to draw, and the simulator
draws both. What one run measured is held against what so many simulated keys say: operation by
operation, *given what the errors of its operands turned out to be*, and all operations together.

A linear regression over the simulated keys says what the operands' errors leave open. So a
deviation counts where it arises and not again in all that follows, and the interval of a sum or a
product of tensors that were decrypted, too, is narrow. The errors of all operations together
estimate one figure, the bits by which a run is noisier than predicted, with weights as in
generalized least squares: the chain of regressions is a factorization of the errors' joint law.

Mean squares of few or of key-dependent errors are not normal. Two scales are used and the more
lenient one counts: the logarithm, whose upper tail is too heavy where a run has few errors, and the
cube root of the mean square, which is nearly normal for sums of squares (Wilson and Hilferty 1931).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CONFIDENCE", "TOLERANCE_BITS", "Interval", "Observed", "Overall", "judge"]

CONFIDENCE = 0.99
"""Probability that a run is within all its intervals, if the simulator is right."""

TOLERANCE_BITS = 0.05
"""Bits by which the simulator itself may be off: what its formulas leave out, whatever the key.

Twice the largest mean deviation of an operation over 150 encrypted runs of each of seven programs.
"""

_POWERS = (0.0, 2.0 / 3.0)
"""Powers of the std that are compared, as Box and Cox (1964) do; 0 is the logarithm."""

_OPERANDS = 4
"""Operands, at most, whose errors an operation's is compared with: those that say most of it."""

_FREEDOM = 5
"""Degrees of freedom that a spread is estimated with, at least, before an operand is looked at."""

_RIDGE = 0.01
"""Relative error of a std that means nothing: of rounding, and of what is left of a copy."""

_COPY = 2e-3
"""Relative spread below which an operation's error is taken for a copy of its operands'."""


@dataclass(frozen=True)
class Observed:
    """An operation's error, measured and predicted.

    Attributes:
      measured: std of the error, in units of the values.
      by_key: the same under each simulated key, positive; as many for every operation.
      elements: that were measured.
      operands: places, in the list that holds this one, of the nearest results that it is made of.
    """

    measured: float
    by_key: tuple[float, ...]
    elements: int
    operands: tuple[int, ...] = ()


@dataclass(frozen=True)
class Interval:
    """Where the std of an operation's error is expected, given its operands' errors.

    Attributes:
      low, high: in units of the values; a sound run leaves none of them with `CONFIDENCE`.
      chance: probability that some operation of a sound run is as far from its prediction.
    """

    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Overall:
    """How much noisier a whole run is than predicted.

    Attributes:
      bits: by which errors are larger, by all operations together; negative if smaller.
      margin: bits that a sound run stays within, on either side.
      chance: probability that a sound run is as far off.

    Examples:
      >>> from he_backend.report.intervals import Overall
      >>> Overall(bits=0.4, margin=0.2, chance=0.001).sound
      False
    """

    bits: float
    margin: float
    chance: float

    @property
    def sound(self) -> bool:
        """Whether the run is as noisy as predicted, as far as can be told."""
        return self.chance >= 1.0 - CONFIDENCE


def judge(
    ops: Sequence[Observed],
    *,
    tolerance: float = TOLERANCE_BITS,
    confidence: float = CONFIDENCE,
    above_only: bool = False,
) -> tuple[list[Interval], Overall | None]:
    """An interval for every operation, and how much noisier they all are than predicted.

    Half of ``1 - confidence`` is shared among the operations (Bonferroni; copies of their operands
    take no share, as they leave no room for chance), the other half is for all of them together.

    Args:
      ops: in program order, each with errors under the same simulated keys.
      tolerance: bits by which the simulator may be off, see `TOLERANCE_BITS`.
      confidence: see `CONFIDENCE`.
      above_only: too small an error is no surprise, as on a machine that adds none: then operands
        say nothing, and there is no figure for all together.

    Returns:
      Intervals in the order of `ops`; those of all are (0, inf) from fewer than two keys.
    """
    if not ops:
        return [], None
    if len(ops[0].by_key) < 2:
        return [Interval(0.0, math.inf, math.nan)] * len(ops), None
    scales = [_Scale(power, ops, tolerance, alone=above_only) for power in _POWERS]
    tail = (1.0 - confidence) / 2.0
    if above_only:
        tail *= 2.0
    each = tail / max(scales[0].open, scales[1].open, 1)
    found = []
    for k in range(len(ops)):
        # One-sided: all of it lies above.
        pairs = [scale.interval(k, 2.0 * each if above_only else each) for scale in scales]
        low = 0.0 if above_only else min(pair[0] for pair in pairs)
        chances = [scale.chance(k, above_only) for scale in scales]
        family = (1.0 - confidence) / each
        found.append(Interval(low, max(p[1] for p in pairs), min(1.0, family * max(chances))))
    if above_only:
        return found, None
    wholes = [scale.together(tail, tolerance) for scale in scales]
    known = [whole for whole in wholes if whole is not None]
    if not known:
        return found, None
    margin, chance = max(w.margin for w in known), max(w.chance for w in known)
    return found, Overall(known[0].bits, margin, min(1.0, chance * (1.0 - confidence) / tail))


class _Scale:
    """All operations on one scale of errors: y = (r^power - 1) / power of r = std over its middle
    under the simulated keys, ln r for power 0. An error of r = 1 + d is about d on each.
    """

    def __init__(self, power: float, ops: Sequence[Observed], tolerance: float, alone: bool):
        self.power = power
        self.slack = math.exp2(tolerance)
        stds = np.array([op.by_key for op in ops], np.float64)  # (operations, keys)
        self.middle = _power_mean(stds, power)
        self.ratio = np.array([op.measured for op in ops]) / self.middle
        self.keys = self._to(stds / self.middle[:, None])
        self.keys -= self.keys.mean(axis=1, keepdims=True)
        self.found = self._to(self.ratio)
        self.fits = [self._fit(k, () if alone else op.operands, op) for k, op in enumerate(ops)]
        self.open = sum(fit.spread > _COPY for fit in self.fits)

    def interval(self, k: int, tail: float) -> tuple[float, float]:
        """(low, high) that a sound run leaves with a probability of `tail`."""
        from scipy import stats

        fit = self.fits[k]
        half = float(stats.t.ppf(1.0 - tail / 2.0, fit.freedom)) * fit.width
        low, high = self._from(fit.middle - half), self._from(fit.middle + half)
        middle = float(self.middle[k])
        return middle * low / self.slack, middle * high * self.slack

    def chance(self, k: int, above_only: bool) -> float:
        """Probability that this operation is as far from its middle in a sound run."""
        from scipy import stats

        fit, ratio = self.fits[k], float(self.ratio[k])
        if not math.isfinite(ratio):
            return 0.0
        above = (float(self._to(ratio / self.slack)) - fit.middle) / fit.width
        below = (fit.middle - float(self._to(ratio * self.slack))) / fit.width
        worst = max(above, 0.0) if above_only else max(above, below, 0.0)
        return min(1.0, (1.0 if above_only else 2.0) * float(stats.t.sf(worst, fit.freedom)))

    def together(self, tail: float, tolerance: float) -> Overall | None:
        """The bits by which all are noisier, None if all that is known are copies or zeros."""
        from scipy import stats

        number = self.keys.shape[1]
        total = shift = 0.0
        draws = np.zeros(number)
        for k, fit in enumerate(self.fits):
            if fit.spread <= _COPY or not math.isfinite(self.found[k]):
                continue
            # An equal shift of all errors moves this one by `own` against what its operands say.
            own = 1.0 - float(fit.weights.sum())
            weight = own / (fit.spread**2 + math.log(self.slack) ** 2)
            shift += weight * float(self.found[k] - fit.middle)
            draws += weight * fit.left_out
            total += own * weight
        if total <= 0.0:
            return None
        # Each draw is what its key would have been judged by, had it been measured.
        spread = float(np.sqrt(np.mean((draws / total) ** 2))) / math.log(2.0)
        bits = shift / total / math.log(2.0)
        far = max(abs(bits) - tolerance, 0.0) / max(spread, 1e-9)
        margin = tolerance + float(stats.t.ppf(1.0 - tail / 2.0, number - 1)) * spread
        return Overall(bits, margin, min(1.0, 2.0 * float(stats.t.sf(far, number - 1))))

    def _fit(self, k: int, operands: Sequence[int], op: Observed) -> _Fit:
        """What is expected of operation k, and how sharply, from its operands' errors."""
        y, number = self.keys[k], self.keys.shape[1]
        known = [j for j in operands if math.isfinite(self.found[j])]
        some = min(_OPERANDS, max(0, number - 1 - _FREEDOM))
        if len(known) > some:
            size = np.sqrt(np.sum(self.keys[known] ** 2, axis=1)) + 1e-12
            says = np.abs(self.keys[known] @ y) / size
            known = [known[j] for j in np.argsort(-says)[:some]]
        x = self.keys[known]  # (operands, keys)
        gram = x @ x.T + number * _RIDGE**2 * np.eye(len(known))
        weights = np.linalg.solve(gram, x @ y)
        here = self.found[known]
        rest, freedom = y - weights @ x, number - 1 - len(known)
        spread = math.sqrt(float(rest @ rest) / freedom)
        if not known:
            # Independent errors alone spread by this much.
            spread = max(spread, 1.0 / math.sqrt(2.0 * max(op.elements, 1)))
        spread = max(spread, 1e-6)
        leverage = 1.0 / number + np.einsum("ik,ij,jk->k", x, np.linalg.inv(gram), x)
        far = 1.0 / number + float(here @ np.linalg.solve(gram, here))
        return _Fit(
            weights=weights,
            middle=float(weights @ here),
            spread=spread,
            width=spread * math.sqrt(1.0 + far),
            freedom=freedom,
            left_out=rest / np.maximum(1.0 - leverage, 0.1),
        )

    def _to(self, ratio: np.ndarray | float) -> np.ndarray:
        if self.power == 0.0:
            with np.errstate(divide="ignore"):
                return np.log(ratio)
        return (np.power(ratio, self.power) - 1.0) / self.power

    def _from(self, y: float) -> float:
        if self.power == 0.0:
            return math.exp(min(y, 700.0))
        return max(1.0 + self.power * y, 0.0) ** (1.0 / self.power)


@dataclass(frozen=True)
class _Fit:
    """What is expected of one operation on one scale.

    Attributes:
      weights: of its operands' deviations. middle: what they expect. spread: that remains, over
        keys. width: of one more key about `middle`, what the fit does not know included.
      freedom: degrees of freedom of the spread.
      left_out: (keys,) deviation of each simulated key from what the other keys expect of it.
    """

    weights: np.ndarray
    middle: float
    spread: float
    width: float
    freedom: int
    left_out: np.ndarray


def _power_mean(stds: np.ndarray, power: float) -> np.ndarray:
    """Over keys, per operation: (mean of std^power)^(1/power), geometric for 0."""
    if power == 0.0:
        return np.exp(np.mean(np.log(stds), axis=1))
    largest = stds.max(axis=1)
    inner = np.mean((stds / largest[:, None]) ** power, axis=1)
    return largest * inner ** (1.0 / power)
