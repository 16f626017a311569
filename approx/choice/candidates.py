"""What ``approx.choose`` tries: ranges from the samples, then degrees, methods and composites."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from approx import certify
from approx.composites.composing import composite
from approx.composites.graph import Composite
from approx.errors import ApproxError
from approx.fitting import fit, guarded
from approx.plan import minimal_depth
from approx.planning import products
from approx.polynomial import Interval, Polynomial
from approx.targets import NAMED, Target

_TAILS = (0.0, 1e-4, 1e-3, 1e-2)  # share of the samples that a range may leave outside
_LARGEST = 127  # degree of one polynomial
_SAMPLES = 1500  # at most so many weigh least squares
_GUARD = 30.0  # largest error of least squares, by that of minimax
_SKEWED = 0.6  # shorter by longer side of 0, below which a range of its own is tried


def ranges(target: Target, x: np.ndarray) -> list[tuple[Interval, ...]]:
    """Domains that hold all samples or leave a small share of them out.

    Targets with a symmetry get domains about 0; those that jump or have a pole at 0, for samples
    on both sides of it, a union of two intervals.
    """
    found: dict[tuple[Interval, ...], None] = {}
    for tail in _TAILS:
        low, high = (float(q) for q in np.quantile(x, [0.5 * tail, 1.0 - 0.5 * tail]))
        if not low < high:
            continue
        margin = 0.01 * (high - low) if tail == 0.0 else 0.0
        if target.forbidden is not None and low > target.forbidden[1]:
            found[((max(low - margin, 0.9 * low), high + margin),)] = None
            continue
        if target.forbidden == (0.0, 0.0) and high < 0.0:
            found[((low - margin, min(high + margin, 0.9 * high)),)] = None
            continue
        low, high = low - margin, high + margin
        if target.name == "exp" and float(np.max(x)) <= 0.0:
            high = 0.0
        if low < 0.0 < high and target.forbidden == (0.0, 0.0):
            gap, reach = 0.9 * float(np.quantile(np.abs(x), tail)), max(-low, high)
            if 0.0 < gap < reach:
                found[((-reach, -gap), (gap, reach))] = None
        elif target.remainder is not None and low < 0.0 < high:
            reach = max(-low, high)
            found[((-reach, reach),)] = None
            if min(-low, high) < _SKEWED * reach:
                found[((low, high),)] = None
        elif low < high:
            if low < 0.0 and target.name == "sqrt":
                low = 0.0
            found[((low, high),)] = None
    apart: list[tuple[Interval, ...]] = []
    for domain in found:
        if not any(_alike(domain, other) for other in apart):
            apart.append(domain)
    return apart


def _alike(one: tuple[Interval, ...], other: tuple[Interval, ...]) -> bool:
    """Whether all ends agree within 3 %, and a fit on one would serve the other."""
    if len(one) != len(other):
        return False
    ends = zip(np.ravel(one), np.ravel(other), strict=True)
    return all(abs(a - b) <= 0.03 * max(abs(a), abs(b)) for a, b in ends)


def candidates(
    target: Target,
    domain: tuple[Interval, ...],
    inside: np.ndarray,
    limit: int,
    rounding: float,
    widest: bool,
) -> Iterator[tuple[str, Polynomial | Composite]]:
    """(method, approximation) on a domain, cheap ones first; errors are estimates.

    Args:
      inside: the samples in the domain.
      limit: levels.
      rounding: of one rescale; nothing much more accurate is tried.
      widest: whether no range is wider; sign's composites and squarings, which a wide range costs
        little, are then tried.
    """
    plain = dataclasses.replace(target, ball=None)  # no proof, which takes longer than the fit
    thin = inside[:: max(1, len(inside) // _SAMPLES)]
    mirrored = tuple((-b, -a) for a, b in reversed(domain)) == domain
    parity = {"even": 0, "odd": 1}.get(target.remainder or "") if mirrored else None
    for degree in degrees(parity, limit):
        p = _drafted(target, domain, degree)
        yield "minimax", p
        if len(domain) == 1:
            yield "chebyshev", fit(plain, domain, degree=degree, method="chebyshev")
        if len(inside) > 4 * degree and p.max_error > rounding:
            q = fit(plain, domain, degree=degree, method="least_squares", samples=thin)
            kept = guarded(q, p, plain, _GUARD)
            if kept is not q:
                kept = dataclasses.replace(kept, max_error=certify.estimate(kept, plain))
            yield "least_squares", kept
        if p.max_error < 0.3 * rounding:
            break
    if target is NAMED.get(target.name) and (widest or target.name in ("inv", "inv_sqrt")):
        for kind, knobs in _graphs(target.name, domain, limit, rounding):
            made = _built(kind, domain, knobs)
            if made is not None:
                yield kind, made


@lru_cache(maxsize=64)
def degrees(parity: int | None, limit: int) -> tuple[int, ...]:
    """The largest degree for each number of levels and products, within ``limit`` levels."""
    best: dict[tuple[int, int], int] = {}
    for degree in range(1, _LARGEST + 1):
        if minimal_depth(degree) <= limit and (parity is None or degree % 2 == parity):
            best[minimal_depth(degree), products(degree, parity)] = degree
    kept: list[int] = []
    for degree in sorted(best.values(), reverse=True):
        whole = degree & (degree + 1) == 0  # the most that a number of levels holds
        if whole or not kept or degree < 0.85 * kept[-1] or degree < 24:
            kept.append(degree)
    return tuple(reversed(kept))


@lru_cache(maxsize=512)
def _drafted(target: Target, domain: tuple[Interval, ...], degree: int) -> Polynomial:
    return fit(dataclasses.replace(target, ball=None), domain, degree=degree)


@lru_cache(maxsize=256)
def _built(
    kind: str, domain: tuple[Interval, ...], knobs: tuple[tuple[str, Any], ...]
) -> Composite | None:
    try:
        return composite(kind, domain, **dict(knobs))
    except ApproxError:  # out of reach within these knobs: another candidate will do
        return None


def _graphs(
    name: str, domain: tuple[Interval, ...], limit: int, rounding: float
) -> Iterator[tuple[str, tuple[tuple[str, Any], ...]]]:
    """(kind, knobs) of the composites that suit the target."""
    low, high = domain[0][0], domain[-1][1]
    if name in ("relu", "abs") and low < 0.0 < high or name == "sign" and len(domain) == 2:
        for levels in range(8, min(limit, 16) + 1):
            yield name, (("depth", levels),)
    if name == "exp" and high == 0.0:
        for k in range(4, min(limit, 12)):
            yield "exp_squaring", (("squarings", k),)
        for k in range(2, 8):
            if 10.0**-k > 0.3 * rounding:
                yield "exp_squaring", (("tol", 10.0**-k), ("degree", 7))
    if name in ("inv_sqrt", "inv") and low > 0.0:
        for degree in (3, 7, 15, 31):
            for k in range(1, 5):
                if degree.bit_length() + 1 + k <= limit:
                    yield name, (("degree", degree), ("steps", k))
