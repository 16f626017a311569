"""Functions with kinks or jumps: a smooth rest, and multiples of relu and sign composites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import approx
from approx.composites.graph import Composite, Node
from approx.errors import ToleranceError

__all__ = ["Kink", "composed", "gap", "kinks_of", "without"]

Function = Callable[[Any], Any]
Range = tuple[float, float]

_POINTS = 4097
_MOST = 6
"""Kinks of one function."""

_ZOOMS = 14
_SHARP = 1e-4
"""Change of slope, by the function's span over the width of its domain, that is a kink."""

_GAP = 0.01
"""Half width around a jump, by that of the domain, where no values were met."""


class Kink(NamedTuple):
    """A place where a function's slope or value jumps.

    Attributes:
      at: where. slope, jump: by how much the slope and the value change there.
    """

    at: float
    slope: float
    jump: float


def kinks_of(function: Function, domain: Range) -> list[Kink]:
    """The kinks and jumps inside a domain, in ascending order."""
    low, high = domain
    x = np.linspace(low, high, _POINTS)
    values = function(x)
    bends = np.abs(np.diff(values, 2))
    width, span = high - low, max(float(np.ptp(values)), 1e-12)
    around = np.maximum(np.roll(bends, 3), np.roll(bends, -3))
    tops = np.flatnonzero((bends > 3.0 * around) & (bends * _POINTS > _SHARP * span))
    found: list[Kink] = []
    for k in tops:
        kink = _measured(function, _located(function, x[k], x[k + 2]), width)
        if not np.isfinite([kink.slope, kink.jump]).all():
            continue
        sharp = abs(kink.slope) * width > _SHARP * span or abs(kink.jump) > _SHARP * span
        if sharp and all(abs(kink.at - other.at) > 4 * width / _POINTS for other in found):
            found.append(kink)
    return found


def _located(function: Function, low: float, high: float) -> float:
    """The middle of where a function bends most, inside of an interval."""
    for _ in range(_ZOOMS):
        x = np.linspace(low, high, 17)
        k = int(np.argmax(np.abs(np.diff(function(x), 2))))
        low, high = float(x[k]), float(x[k + 2])
        if high - low < 1e-9 * max(1.0, abs(low)):
            break
    middle = 0.5 * (low + high)
    return round(middle, 7) if abs(middle - round(middle, 7)) < 1e-8 else middle


def _measured(function: Function, at: float, width: float) -> Kink:
    near, far = 1e-6 * width, 2e-4 * width
    x = np.array([at - far, at - near, at + near, at + far])
    a, b, c, d = (float(v) for v in function(x))
    slopes = (b - a) / (far - near), (d - c) / (far - near)
    jump = (c - near * slopes[1]) - (b + near * slopes[0])
    size = max(abs(v) for v in (a, b, c, d))
    slope = slopes[1] - slopes[0]
    if np.isfinite(slope) and abs(slope - round(slope)) < 1e-7:
        slope = float(round(slope))
    return Kink(at, slope, 0.0 if abs(jump) < 1e-5 * max(size, 1e-12) else jump)


def without(function: Function, kinks: Sequence[Kink]) -> Function:
    """A function less its kinks and jumps."""

    def rest(x: Any) -> np.ndarray:
        x = np.asarray(x, np.float64)
        out = np.array(function(x), np.float64)
        for kink in kinks:
            out = out - kink.slope * np.maximum(x - kink.at, 0.0) - kink.jump * (x > kink.at)
        return out

    return rest


def composed(
    name: str,
    domain: Range,
    smooth: approx.Polynomial | None,
    kinks: Sequence[Kink],
    tol: float,
    samples: np.ndarray | None,
) -> Composite:
    """smooth(x) + Σ slope·relu(x - at) + Σ jump·step(x - at).

    Args:
      smooth: None for a rest that is zero. tol: error that all kinks may make together.
      samples: values met, which say how near to a jump they come.

    Raises:
      ApproxError: the tolerance is out of reach.
    """
    if not 0 < len(kinks) <= _MOST:
        raise ToleranceError(f"{name} has {len(kinks)} kinks on {domain}, and no composite.")
    graph = _Graph()
    parts = sum((k.slope != 0.0) + (k.jump != 0.0) for k in kinks)
    for kink in kinks:
        x = graph.shifted(kink.at)
        reach = max(domain[1] - kink.at, kink.at - domain[0])
        if kink.slope:
            size = abs(kink.slope)
            relu = approx.composite("relu", (-size * reach, size * reach), tol=tol / parts)
            graph.add(relu.rescaled(size).nodes, x, float(np.sign(kink.slope)))
        if kink.jump:
            near = gap(kink.at, reach, samples)
            spans = [(-reach, -near), (near, reach)]
            sign = approx.composite("sign", spans, tol=min(2.0 * tol / parts / abs(kink.jump), 0.5))
            graph.add(_halved(sign.nodes, 0.5 * kink.jump), x, 1.0)
    if smooth is not None:
        graph.add((Node("polynomial", (0,), smooth),), 0, 1.0)
    return graph.composite(name, domain)


def gap(at: float, reach: float, samples: np.ndarray | None) -> float:
    """Half width around a jump in which no values were met."""
    near = _GAP * reach if samples is None else 0.5 * float(np.min(np.abs(samples - at)))
    return float(np.clip(near, 1e-4 * reach, 0.5 * reach))


def _halved(nodes: Sequence[Node], factor: float) -> tuple[Node, ...]:
    """factor * (1 + the result of nodes), whose last is a polynomial."""
    *rest, last = nodes
    assert last.polynomial is not None
    moved = last.polynomial.multiplied(factor, factor)
    return (*rest, dataclasses.replace(last, polynomial=moved))


class _Graph:
    """Nodes of a composite, added part by part."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._terms: list[tuple[int, float]] = []
        self._constant = 0.0

    def shifted(self, at: float) -> int:
        """The register of x - at."""
        if at == 0.0:
            return 0
        self._nodes.append(Node("sum", (0,), factors=(1.0,), constant=-at))
        return len(self._nodes)

    def add(self, nodes: Sequence[Node], source: int, factor: float) -> None:
        """A part that reads the register `source`."""
        first = len(self._nodes)
        for node in nodes:
            inputs = tuple(source if j == 0 else first + j for j in node.inputs)
            self._nodes.append(dataclasses.replace(node, inputs=inputs))
        self._terms.append((len(self._nodes), factor))

    def composite(self, name: str, domain: Range) -> Composite:
        """The sum of the parts; its error is not yet known."""
        inputs, factors = zip(*self._terms, strict=True)
        nodes = (*self._nodes, Node("sum", inputs, factors=factors))
        return Composite(name, (domain,), nodes, np.inf, False)
