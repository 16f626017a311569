"""Minimax polynomials under linear constraints: values prescribed at points, bounds on p.

From the unconstrained minimax polynomial p0 the correction d is found by linear programming: the
least e with |w (f - p0 - d)| <= e on a grid, d prescribed at points, p0 + d within its bounds.
Everything is divided by the error of p0, so the solver's tolerance is relative to it. Points where
a dense grid finds a bound violated are added, and it is solved again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linprog

from approx.errors import ToleranceError
from approx.polynomial import Interval
from approx.remez import basis, grid

Array = np.ndarray
_ROUNDS = 12


def corrected(
    residual: Callable[[Array], Array],
    start: Callable[[Array], Array],
    intervals: Sequence[Interval],
    indices: Sequence[int],
    kinks: Sequence[float],
    weight: Callable[[Array], Array] | None,
    through: Sequence[tuple[float, float]],
    bounds: tuple[float | None, float | None],
) -> Array:
    """Chebyshev coefficients of d, of T_0 ... T_max(indices).

    Args:
      residual: f - p0 at points of [-1, 1].
      start: p0.
      intervals, indices, kinks, weight: as for ``remez.minimax``.
      through: (u, value) where p0 + d takes that value.
      bounds: lowest and highest value of p0 + d on the intervals; None for none.

    Raises:
      ToleranceError: no polynomial of the family meets the constraints.
    """
    u = grid(intervals, 24 * (max(indices) + 4), kinks)
    dense = grid(intervals, 400 * (max(indices) + 4), kinks)
    w = np.ones_like(u) if weight is None else np.asarray(weight(u))
    size = float(np.max(np.abs(w * residual(u))))
    size = max(size, 1e-14 * float(np.max(np.abs(start(u)) + np.abs(residual(u)))), 1e-300)
    table = basis(indices, u)
    error = residual(u) / size
    ones = np.ones((len(u), 1)) / w[:, None]
    fixed = np.array([p for p, _ in through])
    prescribed = None
    if through:
        missing = (np.array([v for _, v in through]) - start(fixed)) / size
        prescribed = (np.column_stack([basis(indices, fixed), np.zeros(len(fixed))]), missing)
    low_points, high_points = u, u
    series = np.zeros(max(indices) + 1)
    for _ in range(_ROUNDS):
        rows = [np.column_stack([table, -ones]), np.column_stack([-table, -ones])]
        limits = [error, -error]
        for bound, points, sign in ((bounds[0], low_points, -1.0), (bounds[1], high_points, 1.0)):
            if bound is not None:
                rows.append(np.column_stack([sign * basis(indices, points), np.zeros(len(points))]))
                limits.append(sign * (bound - start(points)) / size)
        solved = linprog(
            np.r_[np.zeros(len(indices)), 1.0],
            A_ub=np.concatenate(rows),
            b_ub=np.concatenate(limits),
            A_eq=None if prescribed is None else prescribed[0],
            b_eq=None if prescribed is None else prescribed[1],
            bounds=[(None, None)] * len(indices) + [(0.0, None)],
            method="highs",
            options={"primal_feasibility_tolerance": 1e-9},
        )
        if solved.status != 0:
            raise ToleranceError(
                "No polynomial of this degree meets the constraints; raise it or relax them."
            )
        series[list(indices)] = size * solved.x[:-1]
        values = start(dense) + basis(indices, dense) @ series[list(indices)]
        under = dense[values < bounds[0] - 1e-8 * size] if bounds[0] is not None else dense[:0]
        over = dense[values > bounds[1] + 1e-8 * size] if bounds[1] is not None else dense[:0]
        if not len(under) and not len(over):
            break
        low_points, high_points = np.union1d(low_points, under), np.union1d(high_points, over)
    return series
