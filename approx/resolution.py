"""Whether the points of a fit show all that a function does: its swings, spikes and jumps.

A grid made for a polynomial shows a function that swings about as often. A callable may swing
more often, or have a spike between two points; then more points are needed, or, where the function
jumps, no polynomial will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from approx.errors import DomainError
from approx.polynomial import Interval
from approx.remez import grid, split
from approx.targets import NAMED, Target

Array = np.ndarray
_SAMPLED = 1 << 13  # points at which swings are counted
_FINE = 1 << 16  # points, equally spaced, at which an error is looked at again
_NUMBERS = 4_000_000  # most entries of a table of points and T_j
_MISSED = 1e-4  # by which an error between the points may exceed that on them
_ADDED = 512  # most points added at a time
_STEP = 0.3  # of a function's range, between neighbours of a grid that shows it no more
_FEW = 4  # of such steps; more of them are no jump, but swings
_NEEDLE = 1e-6  # of a domain: what varies within less, degree 511 does not follow at its ends


def known(target: Target) -> bool:
    """Whether the function is one of the named ones, which do not swing."""
    named = NAMED.get(target.name)
    return named is not None and named.function is target.function


def points(function: Callable[[Array], Array], spans: Sequence[Interval], unknowns: int) -> Array:
    """Points that show a function that swings more often than its polynomial; else none."""
    count = 16 * (_swings(function(grid(spans, _SAMPLED))) + 4)
    if count <= 16 * (unknowns + 4):
        return np.empty(0)
    return np.unique(grid(spans, min(count, _NUMBERS // unknowns, 2 * _SAMPLED)))


def _swings(values: Array) -> int:
    """How often the values turn, by more than a hundredth of their range."""
    size = float(np.max(values) - np.min(values))
    if not size > 1e-12 * float(np.max(np.abs(values))):
        return 0
    steps = np.diff(np.round(values / (0.02 * size)))
    signs = np.sign(steps[steps != 0.0])
    return int(np.count_nonzero(np.diff(signs)))


def missed(
    error: Callable[[Array], Array],
    spans: Sequence[Interval],
    kinks: Sequence[float],
    reached: float,
) -> Array:
    """Where the error between the points of a fit is above the ``reached`` one on them."""
    found = []
    for a, b in split(spans, kinks):
        u = np.linspace(a, b, _FINE + 1)
        sizes = np.abs(error(u))
        inner = sizes[1:-1]
        top = np.r_[True, (inner >= sizes[:-2]) & (inner >= sizes[2:]), True]
        found.append(u[top & (sizes > (1.0 + _MISSED) * reached)])
        found[-1] = found[-1][np.argsort(-np.abs(error(found[-1])))[:_ADDED]]
    return np.unique(np.concatenate(found))


def check(target: Target, intervals: Sequence[Interval]) -> None:
    """For a target that no constant betters: whether a jump or a needle is what the matter is.

    Raises:
      DomainError: the function changes by a good part of its range within a millionth of the
        domain, where no polynomial of any degree that is offered follows.
    """
    pieces = split(intervals, target.kinks)
    grids = [np.unique(grid([piece], 1 << 14)) for piece in pieces]
    values = [target(x) for x in grids]
    size = float(np.max(np.concatenate(values)) - np.min(np.concatenate(values)))
    steps = [np.abs(np.diff(y)) for y in values]
    if sum(int(np.count_nonzero(step > _STEP * size)) for step in steps) > _FEW:
        return  # it swings everywhere, and the points show how high
    for x, step in zip(grids, steps, strict=True):
        k = int(np.argmax(step))
        if step[k] > _STEP * size:
            _check_change(target, (x[k], x[k + 1]), intervals, _STEP * size)


def _check_change(
    target: Target, between: Interval, intervals: Sequence[Interval], change: float
) -> None:
    """Raises DomainError if the function changes this much within a millionth of the domain."""
    low, high = between
    a, b = intervals[0][0], intervals[-1][1]
    while high - low > 4.0 * np.spacing(max(-a, b)):
        middle = 0.5 * (low + high)
        left, centre, right = target(np.array([low, middle, high]))
        halves = abs(centre - left), abs(right - centre)
        if max(halves) < 0.8 * change:
            break
        low, high = (low, middle) if halves[0] > halves[1] else (middle, high)
    else:
        at = round(high / (b - a), 9) * (b - a)
        raise DomainError(
            f"{target.name} jumps at x = {at:.6g}, where no polynomial follows it; leave a gap "
            "there with a list of two intervals, or use approx.composite('sign', ...)."
        )
    if high - low < _NEEDLE * (b - a):
        raise DomainError(
            f"No polynomial follows {target.name} on [{a:g}, {b:g}]: near x = {middle:.3g} it "
            f"varies within {high - low:.1g}. The domain is too wide to resolve that; narrow it, "
            "or use approx.composite."
        )
