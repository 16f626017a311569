"""Errors of one ciphertext's slots, column by column, and what copies of an element share of them.

Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

__all__ = ["NO_ERRORS", "SlotErrors", "mean", "summed"]


@dataclass(frozen=True, eq=False)
class SlotErrors:
    """Errors that one operation has made so far in a ciphertext; numbers, or arrays by column.

    T copies of an element with errors of variance v each, independent of each other, have v / T in
    common, their mean; T copies of one error have all of it. `total` is the variance of the sum
    over an element's copies, over their number: v for independent errors, T·v for one error.

    Attributes:
      variance: in each slot. total: see above.
      source: by column, the column of the whole tensor of which it is a copy, -1 for none; None for
        all of them, rotated.
      shift: by which they are rotated, where `source` is None.
    """

    variance: Any = 0.0
    total: Any = 0.0
    source: np.ndarray | None = None
    shift: int = 0

    def plus(self, variance: float, total: float) -> SlotErrors:
        """With independent errors in every slot."""
        return replace(self, variance=self.variance + variance, total=self.total + total)

    def scaled(self, share: float) -> SlotErrors:
        """A share of the variances."""
        return replace(self, variance=share * self.variance, total=share * self.total)

    def alone(self, more: float = 0.0) -> SlotErrors:
        """With errors that are independent in all slots, and `more` of them in the total."""
        return replace(self, total=self.variance + more)

    def rotated(self, step: int) -> SlotErrors:
        """After a left rotation by this many columns."""
        return SlotErrors(
            _rolled(self.variance, -step),
            _rolled(self.total, -step),
            _rolled(self.source, -step),
            self.shift + step,
        )

    def times(self, factors: np.ndarray) -> SlotErrors:
        """After a product by these numbers, one a column or one for all."""
        squares = factors**2 if len(factors) > 1 else float(factors[0] ** 2)
        source = self.source
        if len(factors) > 1:
            kept = np.roll(np.arange(len(factors)), -self.shift) if source is None else source
            source = np.where(factors != 0.0, kept, -1)
        return SlotErrors(self.variance * squares, self.total * squares, source, self.shift)

    def copies(self, needed: np.ndarray, elements: int) -> float:
        """Of how many columns that are needed an element of the tensor has its copies, in the mean.

        needed: bool[columns]. elements: columns in which the tensor's own elements lie.
        """
        count = sources = int(needed.sum())
        if self.source is not None:
            taken = self.source[needed]
            taken = taken[taken >= 0]
            count, sources = len(taken), len(np.unique(taken))
        return max(count / max(min(sources, elements), 1), 1.0)


NO_ERRORS = SlotErrors()


def summed(terms: Sequence[SlotErrors], factors: np.ndarray, *, doubled: bool) -> SlotErrors:
    """A sum of ciphertexts times numbers; `doubled`: of one and itself rotated, as copies are made,
    whose total then counts twice in amplitude, but for what the rotation added.
    """
    squares = factors**2
    variance = sum(f * t.variance for f, t in zip(squares, terms, strict=True))
    if doubled:
        total = 3.0 * terms[0].total + terms[1].total
    else:
        total = sum(f * t.total for f, t in zip(squares, terms, strict=True))
    sources = [t.source for t in terms if t.source is not None]
    source = reduce(_joined, sources) if len(sources) == len(terms) else None
    return SlotErrors(variance, total, source, terms[0].shift)


def mean(values: Any, needed: np.ndarray) -> float:
    """Of numbers by column, over those that are needed."""
    if np.ndim(values) == 0:
        return float(values)
    return float(values[needed].mean()) if needed.any() else 0.0


def _joined(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Sources of a sum of ciphertexts in which different columns were kept."""
    return np.where(one < 0, two, one)


def _rolled(values: Any, step: int) -> Any:
    return np.roll(values, step) if np.ndim(values) else values
