"""Least maximum error on finitely many points, by a primal-dual interior-point method.

The linear program: the least e with |r - Q a| <= e in every row. Each row has two slacks,
e - (r - Q a) and e + (r - Q a), with multipliers y1 and y2; with sum(y1 + y2) = 1 and
Q' (y1 - y2) = 0 the number r' (y1 - y2) bounds e from below, whatever a is. Steps are Mehrotra's
(1992); the start, least squares and equal multipliers, satisfies all constraints, so each iterate
has an upper and a lower bound, and none needs the points to be well placed. That is what the
exchange of ``approx.remez`` cannot promise where many polynomials are almost the best one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

Array = np.ndarray
_STEPS = 60  # at most; about fifteen are usual
_GAP = 1e-7  # by the error, at which the bounds are close enough
_KEPT = 0.99  # of the way to the nearest constraint
_DEPENDENT = 1e-13  # columns with less than this share of their own are left out


@dataclass(frozen=True)
class Levelled:
    """What the method found.

    Attributes:
      coefficients: of the columns.
      error: largest |r - B a| on the points.
      bound: no coefficients have a smaller one, rounding aside.
    """

    coefficients: Array
    error: float
    bound: float


def least_maximum(table: Array, wanted: Array) -> Levelled:
    """The coefficients of least max |wanted - table @ a|.

    Args:
      table: shape (points, unknowns), points > unknowns; columns may depend on each other.
      wanted: shape (points,).
    """
    factors: Any = linalg.qr(table, mode="economic", pivoting=True)
    q, triangle, order = factors
    pivots = np.abs(np.diag(triangle))
    rank = int(np.count_nonzero(pivots > _DEPENDENT * pivots[0]))
    size = float(np.max(np.abs(wanted)))
    if size == 0.0:
        return Levelled(np.zeros(table.shape[1]), 0.0, 0.0)
    z, bound = _optimum(q[:, :rank], wanted / size)
    a = np.zeros(table.shape[1])
    a[order[:rank]] = linalg.solve_triangular(triangle[:rank, :rank], z)
    return Levelled(size * a, size * float(np.max(np.abs(wanted / size - table @ a))), size * bound)


def _optimum(q: Array, r: Array) -> tuple[Array, float]:
    """(a, lower bound) for orthonormal columns q."""
    count = len(r)
    a = q.T @ r
    e = 1.05 * float(np.max(np.abs(r - q @ a))) + 1e-300
    y1 = np.full(count, 0.5 / count)
    y2, bound = y1.copy(), 0.0
    for _ in range(_STEPS):
        s1, s2 = e - (r - q @ a), e + (r - q @ a)
        bound = max(bound, _bound(q, r, y1, y2))
        gap = float(y1 @ s1 + y2 @ s2)
        if gap <= _GAP * e or min(s1.min(), s2.min()) <= 0.0:
            break
        newton = _Newton.at(q, s1, s2, y1, y2)
        if newton is None:  # rounding: the bounds are as close as they get
            break
        predicted = newton.direction(-y1, -y2)
        primal, dual = newton.lengths(predicted)
        ahead = (y1 + dual * predicted.y1) @ (s1 + primal * predicted.s1)
        ahead += (y2 + dual * predicted.y2) @ (s2 + primal * predicted.s2)
        centre = (ahead / gap) ** 3 * gap / (2 * count)
        step = newton.direction(
            (centre - predicted.y1 * predicted.s1) / s1 - y1,
            (centre - predicted.y2 * predicted.s2) / s2 - y2,
        )
        primal, dual = newton.lengths(step)
        a, e = a + _KEPT * primal * step.a, e + _KEPT * primal * step.e
        y1, y2 = y1 + _KEPT * dual * step.y1, y2 + _KEPT * dual * step.y2
    return a, bound


def _bound(q: Array, r: Array, y1: Array, y2: Array) -> float:
    """The lower bound of the multipliers, freed of what rounding left in Q' (y1 - y2)."""
    y = y1 - y2
    y = y - q @ (q.T @ y)
    return float(r @ y) / max(float(np.sum(np.abs(y))), 1e-300)


@dataclass(frozen=True)
class _Direction:
    a: Array
    e: float
    s1: Array
    s2: Array
    y1: Array
    y2: Array


@dataclass(frozen=True)
class _Newton:
    """Newton's equations at one iterate, their matrix factored."""

    q: Array
    s1: Array
    s2: Array
    y1: Array
    y2: Array
    factor: tuple[Array, bool]

    @classmethod
    def at(cls, q: Array, s1: Array, s2: Array, y1: Array, y2: Array) -> _Newton | None:
        """None where the matrix is singular to rounding."""
        d1, d2 = y1 / s1, y2 / s2
        edge = q.T @ (d1 - d2)
        matrix = np.empty((q.shape[1] + 1, q.shape[1] + 1))
        scaled = np.sqrt(d1 + d2)[:, None] * q
        matrix[:-1, :-1] = scaled.T @ scaled
        matrix[:-1, -1] = matrix[-1, :-1] = edge
        matrix[-1, -1] = np.sum(d1 + d2)
        if not np.all(np.isfinite(matrix)):
            return None
        try:
            return cls(q, s1, s2, y1, y2, linalg.cho_factor(matrix))
        except linalg.LinAlgError:
            return None

    def direction(self, c1: Array, c2: Array) -> _Direction:
        """The step for which y_i becomes y_i + c_i, less what the change of the slacks takes."""
        dependence = self.q.T @ (self.y1 - self.y2)
        excess = np.sum(self.y1) + np.sum(self.y2) - 1.0
        right = np.r_[self.q.T @ (c1 - c2) + dependence, np.sum(c1 + c2) + excess]
        solved = linalg.cho_solve(self.factor, right)
        a, e = solved[:-1], float(solved[-1])
        change = self.q @ a
        s1, s2 = e + change, e - change
        return _Direction(a, e, s1, s2, c1 - self.y1 / self.s1 * s1, c2 - self.y2 / self.s2 * s2)

    def lengths(self, step: _Direction) -> tuple[float, float]:
        """How far slacks and multipliers can go along the step and stay positive; at most 1."""
        primal = min(_length(self.s1, step.s1), _length(self.s2, step.s2))
        return primal, min(_length(self.y1, step.y1), _length(self.y2, step.y2))


def _length(values: Array, change: Array) -> float:
    down = change < 0.0
    return min(1.0, float(np.min(-values[down] / change[down]))) if down.any() else 1.0
