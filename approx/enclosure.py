"""Rigorous bounds on |graph - f| for composites: Taylor models in ball arithmetic.

On a cell c + h t, |t| <= 1, every register of the graph is a polynomial of t of degree at most 10
whose coefficients are balls; what is cut off above that degree is added to the radius of the
constant. The target's remainder is Lagrange's, from its Taylor series over the whole cell. Cells
are halved until the radii are below 1e-5 of the error. On a cell |e| is bounded by the sum of its
coefficients, or, where that is above what the error is known to reach, by its values at equally
spaced angles divided by cos(pi 10 / 2N), an inequality for trigonometric polynomials (Ehlich and
Zeller 1964): 0.013 % with N = 1000.

The graph is taken with its stored float64 numbers and exact arithmetic between them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from approx.polynomial import Polynomial
from approx.remez import grid, split

if TYPE_CHECKING:
    from approx.composites.graph import Composite, Node

_DEGREE = 10  # of the models
_ANGLES = 1000
_CELLS = 30_000  # most cells examined
_ACCURACY = 1e-5  # radii accepted, by the error
_SLACK = 2e-5  # by which a crude bound may exceed the known error
_PRECISION = 200  # bits, and 4 for each degree of a polynomial

_T = np.cos(np.linspace(0.0, np.pi, _ANGLES + 1))
_POWERS = np.vander(_T, _DEGREE + 1, increasing=True)
_FACTOR = (1.0 + 1e-12) / math.cos(0.5 * math.pi * _DEGREE / _ANGLES)

SPARED = 1.0 - 4e-4  # of a tolerance, asked of estimates: a certificate is up to 0.02 % above them

# (series of the target, from that of x and a point of the piece), for each kind of composite
SERIES: dict[str, Callable[[Any, float], Any]] = {
    "exp_squaring": lambda s, x: s.exp(),
    "inv": lambda s, x: 1 / s,
    "inv_sqrt": lambda s, x: s.rsqrt(),
    "sign": lambda s, x: 0 * s + (1 if x > 0 else -1),
    "relu": lambda s, x: s if x > 0 else 0 * s,
    "abs": lambda s, x: s if x > 0 else -s,
}


def bound(graph: Composite, near: Sequence[float] = (), floor: float = 0.0) -> float | None:
    """Rigorous upper bound on max |graph - target| over the domain, within 0.02 % of it.

    Args:
      graph: of a kind in ``SERIES``.
      near: points where the error is known to be large; they only save time.
      floor: no bound below this is looked for, so that it may be as loose as this.

    Returns:
      The bound, or None if 30,000 cells do not suffice.
    """
    import flint

    degrees = [p.degree for p in graph.polynomials]
    kinks = (0.0,) if graph.name in ("sign", "relu", "abs") else ()
    with flint.ctx.workprec(_PRECISION + 4 * max(degrees, default=1)), terms():
        model = Model(graph)
        cells = []
        for a, b in split(graph.intervals, kinks):
            edges = np.linspace(a, b, 17).tolist()
            edges[0], edges[-1] = a, b
            cells += list(zip(edges, edges[1:]))
        known = floor
        for x in [*near, *(0.5 * (a + b) for a, b in cells)]:
            known = max(known, float(abs(model.error(x, x)[0]).lower()))
        largest, budget = known, _CELLS
        cells.reverse()
        while cells:
            a, b = cells.pop()
            middle = 0.5 * (a + b)
            budget -= 1
            if budget < 0 or not a < middle < b:
                return None
            error = model.error(a, b)
            crude = _size(error)
            if crude <= known * (1.0 + _SLACK):
                largest = max(largest, crude)
                continue
            radii = float(sum((c.rad() for c in error), flint.arb(0)).upper())
            if radii <= _ACCURACY * known:
                mids = np.zeros(_DEGREE + 1)
                mids[: len(error)] = [float(c.mid()) for c in error]
                top = float(np.max(np.abs(_POWERS @ mids)))
                lost = 1e-14 * float(np.sum(np.abs(mids)))  # float64's rounding of the two lines
                known = max(known, top - radii - lost)
                largest = max(largest, top * _FACTOR + radii + lost)
            else:
                cells += [(middle, b), (a, middle)]
        return largest * (1.0 + 1e-12)


def estimate(graph: Composite, function: Callable[[Any], Any]) -> float:
    """max |graph - function| on a dense grid of the domain, dense near 0 and the ends too."""
    a, b = graph.hull
    small = np.geomspace(min(1e-8, 1e-4 / max(-a, b)), 1.0, 4001)
    points = np.concatenate([grid(graph.intervals, 16385), a * small, b * small])
    inside = np.zeros(len(points), dtype=bool)
    for low, high in graph.intervals:
        inside |= (points >= low) & (points <= high)
    x = points[inside]
    with np.errstate(all="ignore"):
        errors = np.abs(graph(x) - function(x))
    return float(np.max(np.where(np.isnan(errors), np.inf, errors)))


def certified(graph: Composite, function: Callable[[Any], Any]) -> Composite:
    """The graph with a rigorous ``max_error``, or with the estimate where ball arithmetic fails.

    ``max_error`` must hold the graph's ``estimate``. A bound below what float64 evaluation showed
    on the grid is raised to that.
    """
    found = graph.max_error
    points = grid(graph.intervals, 4097)
    with np.errstate(all="ignore"):
        values = function(points)
        worst = points[np.argsort(np.abs(graph(points) - values))[-32:]]
    size = float(np.max(np.abs(values)))
    floor = found if found <= 1e-14 * size else 0.0  # rounding, which no bound can be near
    reached = bound(graph, worst.tolist(), floor)
    if reached is None:
        return graph
    return dataclasses.replace(graph, max_error=max(reached, found), certified=True)


def recheck(graph: Composite) -> bool:
    """Whether the composite's certificate holds: computes a bound of its own and compares.

    True if ``graph.certified`` and ``max_error`` is at least the largest error but for 0.02 %, the
    slack of the computed bound.
    """
    if not graph.certified or graph.name not in SERIES:
        return False
    reached = bound(graph, floor=graph.max_error * (1.0 - 2.5e-4))
    return reached is not None and graph.max_error >= reached * (1.0 - 2.5e-4)


@contextmanager
def terms() -> Iterator[None]:
    """Lets python-flint's series keep the terms that models need; by default they drop some."""
    import flint

    count = _DEGREE + 2
    before = flint.ctx.cap
    flint.ctx.cap = max(before, count)
    try:
        yield
    finally:
        flint.ctx.cap = before


def _size(model: list[Any]) -> float:
    """Upper bound on |model| over the cell; infinite if a coefficient is not finite."""
    total: Any = sum((abs(c) for c in model[1:]), abs(model[0]))
    return float(total.abs_upper()) * (1.0 + 1e-15) if total.is_finite() else math.inf


def _cut(coefficients: list[Any]) -> list[Any]:
    """The model with what lies above its degree moved into the radius of the constant."""
    import flint

    if len(coefficients) <= _DEGREE + 1:
        return coefficients or [flint.arb(0)]
    rest = sum((abs(c) for c in coefficients[_DEGREE + 1 :]), flint.arb(0))
    kept = coefficients[: _DEGREE + 1]
    kept[0] = kept[0] + flint.arb(0, rest.abs_upper())
    return kept


class Model:
    """The registers of a graph on a cell."""

    def __init__(self, graph: Composite) -> None:
        self.graph = graph
        self.series = SERIES[graph.name]
        self.monomials = {
            i: monomial(n.polynomial) for i, n in enumerate(graph.nodes) if n.polynomial is not None
        }

    def error(self, a: float, b: float) -> list[Any]:
        """Coefficients in t of graph - f on [a, b], as balls; a point if a = b."""
        import flint

        low, high = flint.arb(a), flint.arb(b)
        middle, half = (low + high) / 2, (high - low) / 2
        registers = [flint.arb_poly([middle, half])]
        for i, node in enumerate(self.graph.nodes):
            value = self._node(i, node, registers)
            registers.append(flint.arb_poly(_cut(value.coeffs())))
        value = (registers[-1] - flint.arb_poly(self._target(middle, half, a, b))).coeffs()
        return _cut(value)

    def _node(self, i: int, node: Node, registers: list[Any]) -> Any:
        import flint

        first = registers[node.inputs[0]]
        if node.polynomial is not None:
            p = self.monomials[i]
            if node.inputs[0] == 0:
                return p(first)
            start = first.coeffs()[0].mid() if len(first) else flint.arb(0)
            shifted = p(flint.arb_poly([start, 1])).coeffs()
            step, total = first - start, flint.arb_poly([0])
            for c in reversed(shifted):
                total = flint.arb_poly(_cut((total * step + c).coeffs()))
            return total
        if node.kind == "product":
            return first * registers[node.inputs[1]]
        total = flint.arb_poly([node.constant])
        for f, j in zip(node.factors, node.inputs):
            total = total + flint.arb(f) * registers[j]
        return total

    def _target(self, middle: Any, half: Any, a: float, b: float) -> list[Any]:
        import flint

        m = flint.arb(self.graph.factor)  # rescaled graphs approximate f(factor x)
        inside = self.graph.factor * 0.5 * (a + b)
        count = _DEGREE + 1
        assert flint.ctx.cap > count, "series would lose terms; use terms()"
        at = self.series(flint.arb_series([m * middle, m * half], prec=count), inside)
        out = [at[j] for j in range(count)]
        if a < b:
            cell = m * flint.arb(a).union(flint.arb(b))
            over = self.series(flint.arb_series([cell, m * half], prec=count + 1), inside)
            out[0] = out[0] + flint.arb(0, abs(over[count]).abs_upper())
        return out


def monomial(poly: Polynomial) -> Any:
    """The polynomial of x as flint.arb_poly, its stored numbers taken as exact."""
    import flint

    u = flint.arb_poly([poly.shift, poly.scale])
    series: list[Any] = [flint.arb(c) for c in poly.coefficients]
    for k, tail in enumerate(poly.tails):
        series[k] += flint.arb(tail)
    one = two = flint.arb_poly([0])
    for c in reversed(series[1:]):
        one, two = 2 * u * one - two + c, one
    return u * one - two + series[0]
