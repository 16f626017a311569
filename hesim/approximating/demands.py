"""What is asked of each place, and what is given for it by the caller."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

import approx
from approx.errors import ApproxError, ToleranceError
from hesim.approximating.domains import widened
from hesim.approximating.fitting import Approximation, Problem, finest
from hesim.approximating.places.search import Key, Place
from hesim.approximating.requests import Asked, override_of
from hesim.approximating.trial import Met
from hesim.errors import ArgumentError

__all__ = ["given", "met_once", "problem_of", "told_of", "wider_problems"]


def told_of(places: Mapping[Key, Place], asked: Asked) -> dict[Key, Any]:
    """The override of each place, an empty dictionary where there is none.

    Raises:
      ArgumentError: an override is about no place.
    """
    told: dict[Key, Any] = {}
    used = set()
    for number, (key, place) in enumerate(places.items()):
        override = override_of(asked.overrides, place, number)
        told[key] = {} if override is None else override[1]
        used.update([] if override is None else [override[0]])
    unused = [name for name in asked.overrides if name not in used]
    if unused:
        raise ArgumentError(
            f"overrides has {', '.join(map(repr, unused))}, but no such function or line needs a "
            "polynomial: see the names and lines of .sites of a run without overrides."
        )
    return told


def problem_of(
    place: Place, met: Met, told: Any, margin: float | None, blamed: str = ""
) -> Problem:
    """The function of a place on its domain.

    blamed: where values that are not finite come from, in words.

    Raises:
      ArgumentError: the values met are not finite.
    """
    if not isinstance(told, Mapping):
        what = place.name, place.known, place.function, told.hull
        return Problem(*what, source=place.source)
    samples = np.concatenate(met.samples)
    if "domain" in told:
        low, high = told["domain"]
        domain = float(low), float(high)
    elif not (np.isfinite(met.low) and np.isfinite(met.high)):
        raise ArgumentError(
            f"{place.name} at {place.source} meets NaN or infinite values on the batches; {blamed}."
        )
    else:
        own = told.get("margin", margin)
        domain = widened((met.low, met.high), samples, place.function, own)
    what = place.name, place.known, place.function, domain, samples
    return Problem(*what, source=place.source)


def met_once(
    places: Mapping[Key, Place], met: Mapping[Key, Met], told: Mapping[Key, Any]
) -> list[str]:
    """Places whose domain would follow from a single value, met several times, in words."""
    return [
        f"{place.name} at {place.source} met {met[key].low:.4g} only"
        for key, place in places.items()
        if isinstance(told[key], Mapping)
        and "domain" not in told[key]
        and met[key].low == met[key].high
        and met[key].count > 1
    ]


def given(problems: Mapping[Key, Problem], told: Mapping[Key, Any], asked: Asked) -> dict[Key, Any]:
    """The approximations that are told, or follow from one degree for all."""
    found: dict[Key, Any] = {}
    for key, problem in problems.items():
        one = _given(problem, told[key], asked.degree)
        if one is not None:
            found[key] = one
    return found


def _given(problem: Problem, told: Any, degree: int | None) -> Approximation | None:
    if not isinstance(told, Mapping):
        return told
    line = problem.straight()
    if line is not None:
        return line
    try:
        return _fitted(problem, told, degree)
    except ApproxError as error:
        raise ToleranceError(
            f"{problem.name} at {problem.source}: {error} Ask by tol=, which uses composites, or "
            "give an object of your own by overrides=."
        ) from error


def _fitted(problem: Problem, told: Mapping[str, Any], degree: int | None) -> Approximation | None:
    if "tol" in told:
        return approx.fit(problem.target, problem.domain, tol=told["tol"])
    if "depth" in told:
        return approx.fit(problem.target, problem.domain, depth=told["depth"])
    degree = told.get("degree", degree)
    return None if degree is None else finest(problem, int(degree))


def wider_problems(
    problems: Mapping[Key, Problem],
    met: Mapping[Key, Met],
    told: Mapping[Key, Any],
    margin: float | None,
) -> dict[Key, Problem]:
    """The problems whose domains values left, with approximations in the places before, on wider
    ones; domains that the caller gave stay.
    """
    found: dict[Key, Problem] = {}
    for key, problem in problems.items():
        own = not isinstance(told[key], Mapping) or "domain" in told[key]
        if own or met[key].outside == 0:
            continue
        samples = np.concatenate(met[key].samples)
        ends = met[key].low, met[key].high
        wider = widened(ends, samples, problem.function, told[key].get("margin", margin))
        low, high = problem.domain
        domain = min(low, wider[0]), max(high, wider[1])
        found[key] = dataclasses.replace(problem, domain=domain)
    return found
