"""A trade-off study told: tables of configurations, fronts, answers and checks, and a CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.studies.shown import ruled
from experiments.studies.tradeoff.folder import Results, load_results
from experiments.studies.tradeoff.knobs import KNOBS
from experiments.studies.tradeoff.plots import plot_checks, plot_fronts, plot_interactions
from experiments.studies.tradeoff.rows import Cost
from experiments.studies.tradeoff.spots import rank_correlations
from experiments.studies.tradeoff.statistics import (
    BUDGETS,
    Point,
    best_within,
    cheapest,
    dominating,
    front,
)
from hesim.files import write_whole

__all__ = ["Question", "answers", "configurations_table", "text", "write_csv", "write_report"]

_WIDEST = 72
_NOTES = (
    "score: held-out points through polynomials with the noise of the plan, its 95 % interval over "
    "seeds and rows; change: against the reference, on the same seeds and rows; exact: in the "
    "clear; levels to seconds: of one sentence; many: seconds a sentence, side by side; noise: "
    "root mean square in a logit, simulated over all rows, and certified for one; * on a front of "
    "score against seconds; K: the key holder refreshes, B: bootstraps do."
)


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of a study: the cheapest configuration of at least `accuracy` points, by each
    cost; and the best for each of the budgets. Raises ExperimentError for NaN.
    """

    accuracy: float | None = None
    seconds: float | None = None
    levels: float | None = None
    bootstraps: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and math.isnan(value):
                raise ExperimentError(f"{name}={value} is no number to ask for")


def text(results: Results, question: Question = Question()) -> str:
    """Everything, task by task."""
    parts: list[str] = []
    for task in results.tasks.values():
        own = [p for p in results.points if p.task == task.name]
        seeds = max((p.seeds for p in own), default=0)
        parts.append(
            f"{task.name}: {task.metric} on {len(task.targets):,} held-out rows, {seeds} seeds; "
            f"most frequent label {task.majority:.1f}"
        )
        parts.append(configurations_table(results, own))
        parts.append(_refused(results, own))
        parts.append(_dominating(results, own))
        parts.append(answers(results, own, question))
    parts.append(_unscored(results))
    parts.append(_checks(results))
    return "\n\n".join(part for part in (*parts, _NOTES) if part) + "\n"


def configurations_table(results: Results, points: Sequence[Point]) -> str:
    """A line a configuration that was scored, the reference first, then by seconds."""
    shown = [p for p in points if math.isfinite(p.score.mean)]
    order = sorted(shown, key=lambda p: (p.knobs != results.reference, p.cost("seconds")))
    best = {
        id(p)
        for interactive in (True, False)
        for p in front(shown, lambda p: p.cost("seconds"), interactive=interactive)
    }
    checked = {(spot.task, spot.knobs) for spot in results.spots if not spot.reason}
    head = ("configuration", "", "score", "change", "exact", "levels", "refreshes", "seconds")
    lines: list[tuple[str, ...]] = [(*head, "many", "noise", "certified", "checked")]
    for p in order:
        one = p.one
        lines.append(
            (
                _cut(p.knobs.label(results.reference)),
                ("K" if p.knobs.interactive else "B") + ("*" if id(p) in best else ""),
                f"{p.score}" + ("" if p.sound else " !"),
                f"{p.change:+.1f}",
                f"{p.exact:.1f}",
                *(("-", "-", "-") if one is None else _counts(one)),
                "-" if p.many is None else f"{p.many.seconds / p.many.sentences:.2f}",
                _number(p.noise),
                _number(p.certified),
                "yes" if (p.task, p.knobs) in checked else "",
            )
        )
    return ruled(lines)


def answers(results: Results, points: Sequence[Point], question: Question = Question()) -> str:
    """The cheapest for a score, by each cost, and the best for a budget; where nothing is asked,
    the front of each cost.
    """
    lines: list[str] = []
    if question.accuracy is not None:
        for budget in BUDGETS:
            found = cheapest(points, question.accuracy, budget)
            what = f"fewest {budget} for {question.accuracy:g} points or more"
            lines.append(f"{what}: {_point(results, found)}")
    for budget in BUDGETS:
        most = getattr(question, budget)
        if most is not None:
            found = best_within(points, budget, most)
            lines.append(f"best within {most:g} {budget}: {_point(results, found)}")
    if lines:
        return "\n".join(lines)
    for budget in BUDGETS:
        for interactive, who in ((True, "the key holder refreshes"), (False, "bootstraps")):
            found = front(points, lambda p, b=budget: p.cost(b), interactive=interactive)
            lines += [f"Front of score against {budget}, {who}:"] if found else []
            lines += [f"  {_point(results, p)}" for p in found]
    return "\n".join(lines)


def _dominating(results: Results, points: Sequence[Point]) -> str:
    found = dominating(points, results.reference)
    if not found:
        return "No configuration dominates the reference."
    first = [f"  {_point(results, p)}, change {p.change:+.1f}" for p in found[:5]]
    more = [f"  and {len(found) - 5} others"] if len(found) > 5 else []
    head = (
        f"{len(found)} configurations dominate the reference: fewer levels and seconds, refreshed "
        "by the same hand, and no lower mean score:"
    )
    return "\n".join([head, *first, *more])


def _refused(results: Results, points: Sequence[Point]) -> str:
    """What could not be built, planned or trusted."""
    lines = [f"  {_cut(p.knobs.label(results.reference))}: {p.reason}" for p in points if p.reason]
    return "\n".join(["Not planned, or to be read with care:", *lines]) if lines else ""


def _unscored(results: Results) -> str:
    """Of tasks of which no configuration was scored, why."""
    reasons = [(row.task, row.reason) for row in results.rows if row.task not in results.tasks]
    return "\n".join(f"{task}: {reason}" for task, reason in dict.fromkeys(reasons))


def _checks(results: Results) -> str:
    if not results.spots:
        return "No configuration was run encrypted: all figures above are simulated or planned."
    lines: list[tuple[str, ...]] = [
        ("checked", "", "core-seconds", "predicted", "error", "predicted", "")
    ]
    for spot in sorted(results.spots, key=lambda s: s.seconds):
        how = f"{spot.backend}, encrypted" if spot.encrypted else f"{spot.backend}, NOT encrypted"
        figures = (
            (f"{spot.seconds:.2f}", f"{spot.predicted_seconds:.2f}")
            + (_number(spot.error), _number(spot.predicted_error))
            if not spot.reason
            else ("-",) * 4
        )
        name = f"{spot.task}, {spot.knobs.label(results.reference)}"
        lines.append((_cut(name), how, *figures, spot.reason))
    found = rank_correlations(results.spots)
    good = sum(not spot.reason for spot in results.spots)
    said = (
        f"Spearman's rank correlation of predicted with measured, {good} checks: seconds "
        f"{found['seconds']:.3f}, error {found['error']:.3f}"
    )
    return f"{ruled(lines)}\n{said}"


def write_csv(results: Results, path: str | Path) -> None:
    """A line a configuration and task."""
    out = io.StringIO()
    costs = [field.name for field in dataclasses.fields(Cost)]
    own = ("noise", "certified", "outside", "lost", "sound", "seeds", "reason")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["task", "metric", *KNOBS, "score", "score_half", "change", "change_half", "exact"]
        + [f"{layout}_{name}" for layout in ("one", "many") for name in costs]
        + list(own)
    )
    for p in results.points:
        figures: list[object] = [p.score.mean, p.score.half, p.change.mean, p.change.half, p.exact]
        for cost in (p.one, p.many):
            figures += [""] * len(costs) if cost is None else [getattr(cost, n) for n in costs]
        knobs = [getattr(p.knobs, name) for name in KNOBS]
        metric = results.tasks[p.task].metric
        writer.writerow([p.task, metric, *knobs, *figures, *(getattr(p, n) for n in own)])
    write_whole(Path(path), out.getvalue().encode())


def write_report(folder: str | Path, question: Question = Question()) -> tuple[str, list[Path]]:
    """The text of all that a folder holds, and the files that were written beside it."""
    top = Path(folder)
    results = load_results(top)
    said = text(results, question)
    paths = [top / "tradeoff.txt", top / "tradeoff.csv"]
    write_whole(paths[0], said.encode())
    write_csv(results, paths[1])
    figures = {
        "fronts.png": plot_fronts(results),
        "interactions.png": plot_interactions(results),
        "checks.png": plot_checks(results),
    }
    for name, figure in figures.items():
        if figure is not None:
            paths.append(top / name)
            figure.savefig(paths[-1], dpi=150)
    return said, paths


def _point(results: Results, p: Point | None) -> str:
    if p is None:
        return "none"
    seconds, levels, refreshes = (f"{p.cost(budget):,.4g}" for budget in BUDGETS)
    costs = f"{seconds} s, {levels} levels, {refreshes} refreshes"
    return f"{_cut(p.knobs.label(results.reference))}: {p.score}; {costs}"


def _counts(cost: Cost) -> tuple[str, str, str]:
    return f"{cost.depth:,}", f"{cost.refreshes:,}", f"{cost.seconds:,.1f}"


def _number(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "-"


def _cut(label: str) -> str:
    return label if len(label) <= _WIDEST else label[: _WIDEST - 3] + "..."
