"""The approximations for the places of a function: ranges, how much each matters, the choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import approx
from hesim.approximating import sharing
from hesim.approximating.compiled import Compiled
from hesim.approximating.domains import widened
from hesim.approximating.fitting import Approximation, Problem, finest
from hesim.approximating.requests import Asked, Override, override_of
from hesim.approximating.search import Key, Place
from hesim.approximating.trial import Met, Trial, distance, largest, places_of, table_of
from hesim.errors import ArgumentError

__all__ = ["Results", "chosen"]

DEFAULT_PART = 1e-3
"""Of the largest result: the error at the output where nothing is asked for."""

_WAVES = (0, 3, 12)
"""Degrees of the Chebyshev polynomials whose multiples show how much an error matters."""

_PROBE = 1e-2
"""Size of these errors, by the span of the function."""

_PROBED = 2
"""Batches on which it is looked at."""

_WIDENINGS = 3


@dataclass
class Results:
    """What was chosen, and what it was chosen by.

    Attributes:
      approximations: by the key of a place, in the order in which they are met.
      met: values at the places, with the approximations in the places before.
      gains: error at the output by the error at a place.
      output_error: largest difference at the output on the calibration batches.
      largest: absolute result on them.
      tol: error at the output that was asked for; None if it was not.
      places: one for each key.
    """

    approximations: dict[Key, Any]
    met: dict[Key, Met]
    gains: dict[Key, float]
    output_error: float
    largest: float
    tol: float | None
    places: dict[Key, Place]


def chosen(made: Compiled, batches: Sequence[tuple[Any, ...]], asked: Asked) -> Results:
    """Chooses the approximations of a function on calibration batches."""
    made.decide(batches, asked.margin)
    runs = _Runs(made, batches)
    places = runs.places
    met = runs.exact()
    names: dict[str, None] = {}
    fixed, problems = _problems(places, met, asked, names)
    _all_used(asked, names)
    size = max((largest(out) for out in runs.exactly), default=0.0)
    tol = asked.tol
    if tol is None and asked.degree is None and asked.levels is None:
        tol = DEFAULT_PART * max(size, 1e-30)
    gains = runs.gains(problems) if problems else {}
    found = _choice(runs, problems, gains, fixed, asked, tol)
    for _ in range(_WIDENINGS):
        met = {}
        runs.error(problems, found, met)
        if not _widen(problems, met, asked, places):
            break
        fixed, problems = _refixed(places, problems, asked, fixed)
        found = _choice(runs, problems, gains, fixed, asked, tol)
    ordered = {key: found[key] for key in places}
    error = runs.error(problems, ordered, None)
    return Results(ordered, met, gains, error, size, tol, places)


class _Runs:
    """Trials of a function on its calibration batches."""

    def __init__(self, made: Compiled, batches: Sequence[tuple[Any, ...]]):
        self.batches = [made.leaves(args) for args in batches]
        self._trials: list[Trial] = []
        self._trial_of: list[Trial] = []
        known: dict[int, Trial] = {}
        for args in batches:
            found = made.found(args)
            trial = known.setdefault(id(found), Trial(found))
            self._trial_of.append(trial)
        self._trials = list(known.values())
        self.found = self._trials[0].found
        self.places: dict[Key, Place] = {}
        for trial in self._trials:
            self.places = places_of(trial.found) | self.places
        self.exactly: list[list[np.ndarray]] = []

    def exact(self) -> dict[Key, Met]:
        """Runs the function as it is, and returns what it met at its places."""
        met: dict[Key, Met] = {}
        for trial, leaves in zip(self._trial_of, self.batches, strict=True):
            self.exactly.append(trial(leaves, met=met))
        return met

    def gains(self, problems: Mapping[Key, Problem]) -> dict[Key, float]:
        """The largest error at the output by the error at each place."""
        domains = {key: p.domain for key, p in problems.items()}
        found = dict.fromkeys(problems, 0.0)
        for key, problem in problems.items():
            values = problem.function(np.linspace(*problem.domain, 513))
            size = _PROBE * max(float(np.ptp(values)), 1e-6)
            for wave in _WAVES:
                table = table_of(problem.domain, _wave(wave, size, problem.domain))
                error = self._distance(domains, {key: table}, None, _PROBED)
                found[key] = max(found[key], error / size)
        return found

    def error(
        self,
        problems: Mapping[Key, Problem],
        approximations: Mapping[Key, Any],
        met: dict[Key, Met] | None,
    ) -> float:
        """The largest error at the output with approximations in the places."""
        domains = {key: p.domain for key, p in problems.items()}
        tables = {
            key: table_of(p.domain, _error_of(approximations[key], p.function))
            for key, p in problems.items()
        }
        return self._distance(domains, tables, met, len(self.batches))

    def _distance(
        self,
        domains: Mapping[Key, tuple[float, float]],
        tables: Mapping[Key, np.ndarray],
        met: dict[Key, Met] | None,
        count: int,
    ) -> float:
        rows = zip(self._trial_of, self.batches, self.exactly, strict=True)
        return max(
            distance(trial(leaves, domains, tables, met), exact)
            for trial, leaves, exact in list(rows)[:count]
        )


def _wave(degree: int, size: float, domain: tuple[float, float]) -> Any:
    low, high = domain
    series = np.zeros(degree + 1)
    series[degree] = size
    return lambda x: np.polynomial.chebyshev.chebval((2 * x - low - high) / (high - low), series)


def _error_of(approximation: Any, function: Any) -> Any:
    return lambda x: np.asarray(approximation(x), np.float64) - function(x)


def _problems(
    places: Mapping[Key, Place], met: Mapping[Key, Met], asked: Asked, names: dict[str, None]
) -> tuple[dict[Key, Any], dict[Key, Problem]]:
    """(approximations that are given, what is to be approximated), by key."""
    fixed: dict[Key, Any] = {}
    problems: dict[Key, Problem] = {}
    for key, place in places.items():
        override = override_of(asked.overrides, place)
        value: Any = {}
        if override is not None:
            names[override[0]] = None
            value = override[1]
        if not isinstance(value, Mapping):
            fixed[key] = value
            what = place.name, place.known, place.function, value.hull
            problems[key] = Problem(*what, source=place.source)
            continue
        domain = _domain(place, met[key], value, asked.margin)
        samples = np.concatenate(met[key].samples)
        what = place.name, place.known, place.function, domain, samples
        problems[key] = Problem(*what, source=place.source)
        one = _given(problems[key], value, asked)
        if one is not None:
            fixed[key] = one
    return fixed, problems


def _domain(place: Place, met: Met, value: Override, margin: float | None) -> tuple[float, float]:
    if "domain" in value:
        low, high = value["domain"]
        return float(low), float(high)
    if not (np.isfinite(met.low) and np.isfinite(met.high)):
        raise ArgumentError(
            f"{place.name} at {place.source} meets NaN or infinite values on the batches: find "
            "where they come from."
        )
    samples = np.concatenate(met.samples)
    return widened((met.low, met.high), samples, place.function, value.get("margin", margin))


def _given(problem: Problem, value: Override, asked: Asked) -> Approximation | None:
    """What an override, or one degree for all, says of a problem by itself."""
    line = problem.straight()
    if line is not None:
        return line
    if "tol" in value:
        return approx.fit(problem.target, problem.domain, tol=value["tol"])
    if "depth" in value:
        return approx.fit(problem.target, problem.domain, depth=value["depth"])
    degree = value.get("degree", asked.degree)
    return None if degree is None else finest(problem, int(degree))


def _all_used(asked: Asked, names: Mapping[str, None]) -> None:
    unused = [name for name in asked.overrides if name not in names]
    if unused:
        raise ArgumentError(
            f"overrides has {', '.join(map(repr, unused))}, but no such function or line needs a "
            "polynomial: see the names and lines of .sites of a run without overrides."
        )


def _choice(
    runs: _Runs,
    problems: Mapping[Key, Problem],
    gains: Mapping[Key, float],
    fixed: Mapping[Key, Any],
    asked: Asked,
    tol: float | None,
) -> dict[Key, Any]:
    if len(fixed) == len(problems):
        return dict(fixed)
    shares = sharing.Shares(problems, gains, fixed)
    if tol is not None:
        return sharing.within_tolerance(shares, lambda c: runs.error(problems, c, None), tol)
    assert asked.levels is not None
    return sharing.within_levels(shares, runs.found, asked.levels)


def _widen(
    problems: dict[Key, Problem],
    met: Mapping[Key, Met],
    asked: Asked,
    places: Mapping[Key, Place],
) -> bool:
    """Makes the domains wider that values left with approximations in the places before."""
    changed = False
    for key, problem in problems.items():
        override = override_of(asked.overrides, places[key])
        told = override is not None and (
            not isinstance(override[1], Mapping) or "domain" in override[1]
        )
        if told or met[key].outside == 0:
            continue
        low, high = problem.domain
        ends = met[key].low, met[key].high
        wider = widened(ends, np.concatenate(met[key].samples), problem.function, asked.margin)
        wider = min(low, wider[0]), max(high, wider[1])
        problems[key] = dataclasses.replace(problem, domain=wider)
        changed = True
    return changed


def _refixed(
    places: Mapping[Key, Place],
    problems: dict[Key, Problem],
    asked: Asked,
    fixed: Mapping[Key, Any],
) -> tuple[dict[Key, Any], dict[Key, Problem]]:
    """The given approximations on domains that have changed."""
    again: dict[Key, Any] = {}
    for key in fixed:
        override = override_of(asked.overrides, places[key])
        value = {} if override is None else override[1]
        if isinstance(value, Mapping):
            one = _given(problems[key], value, asked)
            if one is not None:
                again[key] = one
        else:
            again[key] = value
    return again, problems
