"""What rows say together: means with intervals, differences from the reference, fronts, answers.

An interval has two parts, which add up in squares: over the seeds, by Student's t, and over the
held-out rows, by drawing them again. All configurations share these draws, so that differences are
of the same rows and seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.studies.shown import Interval, interval
from experiments.studies.tradeoff.knobs import Knobs
from experiments.studies.tradeoff.rows import Cost, Row, Task

__all__ = [
    "BUDGETS",
    "Interaction",
    "Point",
    "best_within",
    "cheapest",
    "dominating",
    "front",
    "interactions",
    "points_of",
]

BUDGETS = ("seconds", "levels", "bootstraps")
"""Costs of a sentence, one at a time: what `Point.cost` takes."""

_DRAWS = 400


@dataclasses.dataclass(frozen=True)
class Point:
    """A configuration on a task, over all its seeds.

    score: in points over seeds and held-out rows, simulated, or without noise where it cannot be
    encrypted. change: less the reference's, on the seeds that both have. exact: mean of the exact
    scores. one, many: costs, where it was planned. noise: root mean square over the seeds, and what
    was certified, in units of a logit.
    """

    knobs: Knobs
    task: str
    score: Interval
    change: Interval
    exact: float
    one: Cost | None
    many: Cost | None
    noise: float
    certified: float
    outside: float
    lost: int
    sound: bool
    seeds: int
    reason: str

    def cost(self, budget: str) -> float:
        """Of one sentence, by a name of `BUDGETS`; infinite where there is no plan."""
        if self.one is None:
            return math.inf
        found = {"seconds": "seconds", "levels": "depth", "bootstraps": "refreshes"}
        return float(getattr(self.one, found[budget]))


def points_of(
    rows: Sequence[Row], costs: Mapping[str, Cost], tasks: Mapping[str, Task], reference: Knobs
) -> list[Point]:
    """A point a task and configuration, of its rows of the largest share, the reference first; none
    of a task of which nothing could be scored.
    """
    groups: dict[tuple[str, Knobs], list[Row]] = {}
    known = [row for row in rows if row.task in tasks]
    for row in sorted(known, key=lambda row: (row.knobs != reference, row.seed)):
        groups.setdefault((row.task, row.knobs), []).append(row)
    found = []
    for (task, knobs), own in groups.items():
        most = max(row.share for row in own)
        others = [
            row for row in groups.get((task, reference), []) if row.share == most and row.answers
        ]
        found.append(_point(knobs, [r for r in own if r.share == most], others, costs, tasks[task]))
    return found


def _point(
    knobs: Knobs, own: Sequence[Row], others: Sequence[Row], costs: Mapping[str, Cost], task: Task
) -> Point:
    scored = [row for row in own if row.answers]
    theirs = {row.seed: row for row in others}
    shared = [(row, theirs[row.seed]) for row in scored if row.seed in theirs]
    reasons = dict.fromkeys(row.reason for row in own if row.reason)
    noise = [row.noise for row in own if math.isfinite(row.noise)]
    certified = [row.certified for row in own if math.isfinite(row.certified)]
    exact = [row.exact for row in own if math.isfinite(row.exact)]
    return Point(
        knobs=knobs,
        task=task.name,
        score=_estimate(task, [np.asarray(row.answers) for row in scored]),
        change=_estimate(
            task,
            [np.asarray(row.answers) for row, _ in shared],
            [np.asarray(row.answers) for _, row in shared],
        ),
        exact=float(np.mean(exact)) if exact else math.nan,
        one=costs.get(own[0].one),
        many=costs.get(own[0].many),
        noise=math.sqrt(float(np.mean(np.square(noise)))) if noise else math.nan,
        certified=certified[0] if certified else math.nan,
        outside=max(row.outside for row in own),
        lost=max(row.lost for row in own),
        sound=all(row.sound for row in own),
        seeds=len(own),
        reason="; ".join(reasons),
    )


def _estimate(
    task: Task, answers: Sequence[np.ndarray], less: Sequence[np.ndarray] = ()
) -> Interval:
    """Mean over seeds of the score, less that of the paired answers; NaN of none."""
    if not answers:
        return Interval(math.nan, math.inf, 0)

    def each(chosen: Any) -> np.ndarray:
        found = np.array([task.points(a, chosen) for a in answers])
        return found - [task.points(a, chosen) for a in less] if len(less) else found

    found = interval(each(slice(None)).tolist())
    if found.count < 2:
        return found
    drawn = [float(each(rows).mean()) for rows in _draws(len(task.targets))]
    over_rows = 1.96 * float(np.std(drawn, ddof=1))
    return dataclasses.replace(found, half=math.hypot(found.half, over_rows))


def _draws(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, rows, (_DRAWS, rows))


def front(
    points: Sequence[Point], cost: Callable[[Point], float], *, interactive: bool | None = None
) -> list[Point]:
    """Of the sound points those that no other one beats in score at no more cost, by rising cost.
    interactive: only those that the key holder refreshes, or only others.
    """
    chosen = [
        p
        for p in points
        if p.sound
        and math.isfinite(cost(p))
        and (interactive is None or p.knobs.interactive == interactive)
    ]
    found: list[Point] = []
    for point in sorted(chosen, key=lambda p: (cost(p), -p.score.mean)):
        if not found or point.score.mean > found[-1].score.mean:
            found.append(point)
    return found


def cheapest(points: Sequence[Point], accuracy: float, budget: str = "seconds") -> Point | None:
    """The sound point of at least this score, in points, that costs least; None without any."""
    chosen = [p for p in points if p.sound and p.score.mean >= accuracy]
    return min(chosen, key=lambda p: (p.cost(budget), -p.score.mean), default=None)


def best_within(points: Sequence[Point], budget: str, most: float) -> Point | None:
    """The sound point of the best score that costs no more; None if there is none."""
    chosen = [p for p in points if p.sound and p.cost(budget) <= most]
    return max(chosen, key=lambda p: (p.score.mean, -p.cost(budget)), default=None)


def dominating(points: Sequence[Point], reference: Knobs) -> list[Point]:
    """Sound points with fewer levels and seconds than the reference's and no lower mean score, with
    the same hand that refreshes; the fastest first.
    """
    theirs = {p.task: p for p in points if p.knobs == reference}
    found = [
        p
        for p in points
        if p.sound
        and p.task in theirs
        and p.knobs.refresh == reference.refresh
        and p.change.mean >= 0
        and p.cost("levels") < theirs[p.task].cost("levels")
        and p.cost("seconds") < theirs[p.task].cost("seconds")
    ]
    return sorted(found, key=lambda p: p.cost("seconds"))


@dataclasses.dataclass(frozen=True)
class Interaction:
    """Means of a response by the values of two knobs: means[i, j] at firsts[i] and seconds[j], NaN
    where there is none. strength: root mean square of what the sum of two effects leaves.
    """

    first: str
    second: str
    firsts: tuple[Any, ...]
    seconds: tuple[Any, ...]
    means: np.ndarray
    strength: float


def interactions(
    points: Sequence[Point], knobs: Sequence[str], response: Callable[[Point], float]
) -> list[Interaction]:
    """Every pair of knobs that take several values each, the strongest interaction first."""
    values = [(p.knobs, response(p)) for p in points]
    rows = [(own, y) for own, y in values if math.isfinite(y)]
    levels = {name: _levels([getattr(own, name) for own, _ in rows]) for name in knobs}
    found = []
    for one, two in itertools.combinations([n for n in knobs if len(levels[n]) > 1], 2):
        cells: dict[tuple[Any, Any], list[float]] = {}
        for own, y in rows:
            cells.setdefault((getattr(own, one), getattr(own, two)), []).append(y)
        pairs = itertools.product(levels[one], levels[two])
        means = np.array([_mean(cells.get(pair, [])) for pair in pairs])
        means = means.reshape(len(levels[one]), len(levels[two]))
        found.append(Interaction(one, two, levels[one], levels[two], means, _left(means)))
    return sorted(found, key=lambda each: -each.strength)


def _levels(values: Sequence[Any]) -> tuple[Any, ...]:
    """Each once, in order: texts by their words and then by their numbers."""
    return tuple(sorted(set(values), key=_order))


def _order(value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", value)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _left(means: np.ndarray) -> float:
    """Root mean square of a table less its row and column effects; 0 if a cell is missing."""
    if not np.isfinite(means).all():
        return 0.0
    rest = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    return float(np.sqrt(np.mean(rest**2)))
