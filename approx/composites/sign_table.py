"""Minimax errors of odd polynomials to sign on gap <= |x| <= 1, tabulated for searches.

With E the error of degree d and g the gap, log(E / (1 - E)) is a smooth function of
log((1 - g) / g), so a few Chebyshev coefficients a degree give E to a part in ten thousand.
``python -m approx.composites.sign_table`` measures them again and writes sign_table.json. Only
searches read the table: whatever they choose is fitted, and its error bounded, afresh.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from approx import remez

DEGREES = tuple(range(3, 64, 2))
SMALLEST = 2.0**-24  # gap; below it E is extrapolated, where 1 - E is proportional to it
_NODES = 25
_FLOOR = 1e-11  # E below it is not tabulated: no stage needs it
_PATH = Path(__file__).with_name("sign_table.json")


def measure(degree: int, gap: float) -> float:
    """The minimax error by the exchange, in float64."""
    indices = range(1, degree + 1, 2)
    found = remez.minimax(np.ones_like, [(gap, 1.0)], indices, floor=1e-14)
    return found.error


def error(degree: int, gap: float) -> float:
    """E from the table; 0 < gap < 1."""
    s_points, y_points = _curve(degree)
    s = math.log1p(-gap) - math.log(gap)
    y = float(np.interp(s, s_points, y_points))
    if s > s_points[-1]:
        y += s - s_points[-1]  # 1 - E falls as the gap
    if s < s_points[0]:
        y += 0.5 * (degree + 1) * (s - s_points[0])  # E falls as (1 - g)^((d + 1) / 2)
    return 1.0 / (1.0 + math.exp(-y))


def smallest_gap(degree: int, wanted: float) -> float:
    """The smallest gap that a stage of this degree brings to an error of at most ``wanted``."""
    s_points, y_points = _curve(degree)
    y = math.log(wanted) - math.log1p(-wanted)
    s = float(np.interp(y, y_points, s_points))
    if y > y_points[-1]:
        s += y - y_points[-1]
    if y < y_points[0]:
        s += 2.0 / (degree + 1) * (y - y_points[0])
    return 1.0 / (1.0 + math.exp(s))


@lru_cache(maxsize=128)
def _curve(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """log((1 - g) / g), ascending, and log(E / (1 - E)) there."""
    low, high, series = _table()[str(degree)]
    t = np.linspace(-1.0, 1.0, 8193)
    return 0.5 * (low + high) + 0.5 * (high - low) * t, np.polynomial.chebyshev.chebval(t, series)


@lru_cache(maxsize=1)
def _table() -> dict[str, tuple[float, float, list[float]]]:
    return json.loads(_PATH.read_text())


def _tabulate(degree: int) -> tuple[float, float, list[float]]:
    """(lowest and highest log((1 - g) / g), Chebyshev coefficients of log(E / (1 - E)))."""
    low_gap, high_gap = 0.05, 1.0 - 1e-7  # the largest gap whose error is above the floor
    while high_gap - low_gap > 1e-4 * (1.0 - low_gap):
        middle = 1.0 - math.sqrt((1.0 - low_gap) * (1.0 - high_gap))
        if measure(degree, middle) > _FLOOR:
            low_gap = middle
        else:
            high_gap = middle
    low = math.log1p(-low_gap) - math.log(low_gap)
    high = math.log1p(-SMALLEST) - math.log(SMALLEST)
    t = np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    values = []
    for s in 0.5 * (low + high) + 0.5 * (high - low) * t:
        e = measure(degree, 1.0 / (1.0 + math.exp(s)))
        values.append(math.log(e) - math.log1p(-e))
    series = remez.basis(range(_NODES), t).T @ np.array(values) * (2.0 / _NODES)
    series[0] *= 0.5
    return round(low, 6), round(high, 6), [round(float(c), 7) for c in series]


def main() -> None:
    """Measure every degree and write the table."""
    rows = {str(d): _tabulate(d) for d in DEGREES}
    text = ",\n".join(f'"{d}": {json.dumps(row)}' for d, row in rows.items())
    _PATH.write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
