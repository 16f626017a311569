"""The approximations for the places of a function: ranges, how much each matters, the choice."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hesim.approximating import sharing
from hesim.approximating.compiled import Compiled
from hesim.approximating.demands import (
    given,
    met_once,
    problem_of,
    told_of,
    wider_problems,
)
from hesim.approximating.fitting import Problem
from hesim.approximating.places.search import Key, Place
from hesim.approximating.requests import Asked
from hesim.approximating.trial import Met, Trial, distance, largest, places_of, table_of
from hesim.domains import not_finite
from hesim.errors import ArgumentError, ConstantValuesWarning

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
    told = told_of(places, asked)
    problems = {
        key: problem_of(place, met[key], told[key], asked.margin, runs.blamed)
        for key, place in places.items()
    }
    constant = met_once(places, met, told)
    if constant:
        warnings.warn(
            f"{'; '.join(constant)}: the domain fitted holds little else. Weights that are all "
            "zero still, as B of LoRA and moments before the first step, do so: take batches with "
            "those of later steps, too, or name a domain by overrides=",
            ConstantValuesWarning,
            stacklevel=3,
        )
    fixed = given(problems, told, asked)
    size = max((largest(out) for out in runs.exactly), default=0.0)
    tol = asked.tol
    if tol is None and asked.degree is None and asked.levels is None:
        undecided = [problems[key] for key in problems if key not in fixed]
        tol = DEFAULT_PART * max(_measurable(size, runs, undecided), 1e-30)
    gains = runs.gains(problems) if problems else {}
    found = _choice(runs, problems, gains, fixed, asked, tol)
    for _ in range(_WIDENINGS):
        met = {}
        runs.error(problems, found, met)
        wider = wider_problems(problems, met, told, asked.margin)
        if not wider:
            break
        problems |= wider
        fixed = given(problems, told, asked)
        found = _choice(runs, problems, gains, fixed, asked, tol)
    ordered = {key: found[key] for key in places}
    error = runs.error(problems, ordered, None)
    return Results(ordered, met, gains, error, size, tol, places)


def _measurable(size: float, runs: _Runs, undecided: Sequence[Problem]) -> float:
    """The largest absolute result, by which a tolerance is set where none is asked for.

    undecided: what depends on it.

    Raises:
      ArgumentError: it is no number, or nothing.
    """
    if not undecided:
        return size
    if not all(np.all(np.isfinite(x)) for out in runs.exactly for x in out):
        huge = [
            f"{p.name} at {p.source} on ({p.domain[0]:.4g}, {p.domain[1]:.4g})"
            for p in undecided
            if not np.all(np.isfinite(np.asarray(p.function(np.asarray(p.domain)), np.float32)))
        ]
        too_large = f" Too large for float32 are {'; '.join(huge)}." if huge else ""
        raise ArgumentError(
            f"a result is NaN or infinite on the batches; {runs.blamed}.{too_large}"
        )
    if size == 0.0:
        raise ArgumentError(
            "every result is 0 on the batches, as with weights that are all zero still: give "
            "tol=, the largest error at the output, or batches on which it is not."
        )
    return size


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

    @property
    def blamed(self) -> str:
        """Where values that are not finite come from: arguments of batches, or functions that grow
        too large on what they met.
        """
        strange = [
            f"{label} of batch {number} holds such values"
            for number, (trial, leaves) in enumerate(zip(self._trial_of, self.batches, strict=True))
            for label in not_finite(trial.found.flat.labels, leaves)
        ]
        return "; ".join(strange) or "all arguments are finite: some operation leaves float32"

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
