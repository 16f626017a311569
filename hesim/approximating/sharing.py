"""How an error at the output, or a number of levels, is shared out over the places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.extend import core

from approx.errors import ToleranceError
from approx.polynomial import Polynomial
from hesim.approximating.fitting import Approximation, Problem, finest, finished, quick
from hesim.approximating.places.search import Found, Key

__all__ = ["critical_levels", "within_levels", "within_tolerance"]

SAFE = 0.5
"""Part of the tolerance that the calibration batches may use: inputs held out may be worse."""

_COARSEST = 0.05
"""Part of a function's span that its error may be at most, however little comes of it."""

_POLES = ("inv", "inv_sqrt", "log")
_APART = 1e-4
"""Ratio of the ends of a domain below which a pole is said to be near."""

_ROUNDS = 9
_MISSES = 4
_FULL = 0.6
"""Part of what is allowed that an error takes when no coarser approximations are looked for."""

_FINEST, _LOOSEST = -40.0, 4.0

Chosen = dict[Key, Approximation]
Measure = Callable[[Mapping[Key, Approximation]], float]


class Shares:
    """Tolerances of places, in proportion to what they may take.

    Attributes:
      problems: by key. fixed: what is not chosen here.
    """

    def __init__(
        self,
        problems: Mapping[Key, Problem],
        gains: Mapping[Key, float],
        fixed: Mapping[Key, Approximation],
    ):
        self.problems = problems
        self.fixed = dict(fixed)
        self._gains = gains
        self._open = [key for key in problems if key not in fixed]
        self._coarsest = {k: _COARSEST * _span(problems[k]) for k in self._open}
        self._known: dict[tuple[Key, float], Approximation | None] = {}

    def at(self, budget: float) -> dict[Key, Approximation | None]:
        """The cheapest approximations whose errors, added up, make this much at the output."""
        found: dict[Key, Approximation | None] = dict(self.fixed)
        for key in self._open:
            share = budget / (len(self._open) * max(self._gains[key], 1e-30))
            tol = float(f"{min(share, self._coarsest[key]):.2e}")
            if (key, tol) not in self._known:
                self._known[key, tol] = quick(self.problems[key], tol)
            found[key] = self._known[key, tol]
        return found

    def lacking(self, found: Mapping[Key, Approximation | None]) -> list[Key]:
        """The keys of places for which there is none."""
        return [key for key, one in found.items() if one is None]


def _span(problem: Problem) -> float:
    values = problem.function(np.linspace(*problem.domain, 513))
    return max(float(np.ptp(values)), 1e-9)


def within_tolerance(shares: Shares, measure: Measure, tol: float) -> Chosen:
    """The approximations that keep the error measured at the output within a part of `tol`.

    Raises:
      ToleranceError: none do; the places that cannot are named.
    """
    goal, budget = SAFE * tol, SAFE * tol
    best: Chosen | None = None
    low, high, error = 0.0, np.inf, np.inf
    lacking: list[Key] = []
    misses = 0
    for _ in range(_ROUNDS):
        found = shares.at(budget)
        missing = shares.lacking(found)
        chosen: Chosen = {k: v for k, v in found.items() if v is not None}
        reached = np.inf if missing else measure(chosen)
        lacking = missing or lacking
        if missing and best is None and not np.isfinite(error):
            misses += 1
            if misses == _MISSES:
                break
            budget *= 16.0  # as yet too little for some place
            continue
        error = reached
        if error <= goal:
            best, low = chosen, budget
        else:
            high = budget
        if error <= goal and (error >= _FULL * goal or budget > 1e6 * tol):
            break
        budget *= float(np.clip(0.8 * goal / max(error, 1e-30), 0.02, 16.0))
        if low > 0.0 and not low < budget < high:
            budget = float(np.sqrt(low * high))
        if high < 1.3 * low:
            break
    if best is None:
        raise ToleranceError(_out_of_reach(shares, tol, error, lacking))
    best = _lowered(shares, best, measure, goal)
    finest_of_them: Chosen = {k: finished(shares.problems[k], v) for k, v in best.items()}
    return finest_of_them if measure(finest_of_them) <= 1.2 * goal else best


def _lowered(shares: Shares, chosen: Chosen, measure: Measure, goal: float) -> Chosen:
    """A level less wherever a degree is little above a power of two and the error stays small."""
    for key in [k for k in chosen if k not in shares.fixed]:
        one = chosen[key]
        size = 2 ** (one.degree.bit_length() - 1)
        if not isinstance(one, Polynomial) or not 4 <= size <= one.degree <= 1.5 * size:
            continue
        tried = chosen | {key: finest(shares.problems[key], size - 1)}
        if measure(tried) <= goal:
            chosen = tried
    return chosen


def _out_of_reach(shares: Shares, tol: float, error: float, lacking: list[Key]) -> str:
    reached = f"; {error:.1e} was" if np.isfinite(error) else ""
    hard = "".join(
        f"\n - {p.name} on ({p.domain[0]:.4g}, {p.domain[1]:.4g}) at {p.source}"
        for p in (shares.problems[k] for k in lacking)
    )
    those = f" Out of reach there are:{hard}" if hard else ""
    those += _near_a_pole([shares.problems[k] for k in lacking])
    return (
        f"tol={tol:g} at the output is not reached{reached}. Ask for a larger tol, narrow the "
        f"ranges (smaller margin, normalised inputs), or name approximations by overrides=.{those}"
    )


def _near_a_pole(problems: list[Problem]) -> str:
    """What to do where a function is met on numbers that differ too much in size, in words."""
    near = [p for p in problems if p.name in _POLES and 0.0 < p.domain[0] < _APART * p.domain[1]]
    if not near:
        return ""
    name = near[0].name
    advice = (
        f"\n{name} grows without bound towards 0: add a constant to its argument, and name the "
        f"domain that is then kept to, overrides={{{name!r}: {{'domain': (1e-3, 10.0)}}}}."
    )
    if name == "inv_sqrt":
        advice += (
            " In Adam that constant is eps_root, optax.adam(rate, eps=0.0, eps_root=1e-3), and not "
            "eps, which is added after the root; models.adamw_he has it there."
        )
    return advice


def within_levels(shares: Shares, found: Found, levels: int) -> Chosen:
    """The most accurate approximations that take so many levels on every path.

    Raises:
      ToleranceError: not even the coarsest do.
    """
    low, high, best = _FINEST, _LOOSEST, None
    for _ in range(12):
        middle = 0.5 * (low + high)
        chosen = shares.at(float(10.0**middle))
        fits = not shares.lacking(chosen)
        taken: Chosen = {k: v for k, v in chosen.items() if v is not None}
        if fits and critical_levels(found, taken) <= levels:
            best, high = taken, middle
        else:
            low = middle
    if best is None:
        raise ToleranceError(
            f"the places on one path take more than levels={levels} however coarse their "
            f"polynomials are: allow more levels, or refresh between layers and ask by tol=."
        )
    return {k: finished(shares.problems[k], v) for k, v in best.items()}


def critical_levels(found: Found, chosen: Mapping[Key, Approximation]) -> int:
    """Levels of the approximations on the path that takes the most."""
    depth: dict[Any, int] = {}
    waiting: dict[Any, list[Any]] = {}
    for place in found.places.values():
        waiting.setdefault(place.root, []).append(place)

    def define(var: Any, level: int) -> None:
        depth[var] = level
        for place in waiting.get(var, ()):
            define(place.var, level + chosen[place.key].depth)

    jaxpr = found.flat.closed.jaxpr
    for v in (*jaxpr.invars, *jaxpr.constvars):
        define(v, 0)
    for eqn in found.equations:
        below = (depth.get(v, 0) for v in eqn.invars if not isinstance(v, core.Literal))
        level = max(below, default=0)
        for v in eqn.outvars:
            define(v, level)
    return max(depth.values(), default=0)
