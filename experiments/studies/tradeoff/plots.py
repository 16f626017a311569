"""A trade-off study drawn: fronts, interactions of knobs, and checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies.tradeoff.folder import Results
from experiments.studies.tradeoff.statistics import (
    Interaction,
    Point,
    front,
    interactions,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_checks", "plot_fronts", "plot_interactions"]

_HANDS = ((True, "C0", "o", "key holder"), (False, "C1", "s", "bootstraps"))
_NEAR = 6.0
"""Points above the most frequent label up to which that is drawn."""

_PAIRS = 3
"""Interactions that are drawn, the strongest ones, of each response."""


def plot_fronts(results: Results) -> Figure:
    """A row a task: score against seconds of one sentence, seconds a sentence of many, levels and
    refreshed ciphertexts. Stepped lines are fronts, by who refreshes; the star is the reference,
    rings are what was run encrypted, hollow points left their range.
    """
    from matplotlib.figure import Figure

    names = list(results.tasks)
    figure = Figure(figsize=(15.0, 3.6 * max(len(names), 1) + 0.4), layout="constrained")
    if not names:
        return figure
    panels = figure.subplots(len(names), 4, squeeze=False, sharey="row")
    axes_of: list[tuple[str, Callable[[Point], float], bool]] = [
        ("core-seconds, one sentence", lambda p: p.cost("seconds"), True),
        ("core-seconds a sentence, many", _many, True),
        ("levels", lambda p: p.cost("levels"), False),
        ("refreshed ciphertexts", lambda p: p.cost("bootstraps"), True),
    ]
    checked = {(s.task, s.knobs) for s in results.spots if s.encrypted and not s.reason}
    for row, name in zip(panels, names, strict=True):
        points = [p for p in results.points if p.task == name and p.one is not None]
        task = results.tasks[name]
        lowest = min((p.score.mean for p in points if math.isfinite(p.score.mean)), default=0.0)
        near = lowest - task.majority < _NEAR
        for axes, (label, cost, logarithmic) in zip(row, axes_of, strict=True):
            _scatter(axes, points, cost, results, checked)
            if near:
                axes.axhline(task.majority, color="grey", linewidth=0.8, linestyle=":")
            if not any(math.isfinite(cost(p)) for p in points):
                axes.text(0.5, 0.5, "no plans", transform=axes.transAxes, ha="center", color="grey")
                axes.set_xticks([])
            elif logarithmic:
                axes.set_xscale("log")
                _plain_numbers(axes.xaxis)
            axes.set_xlabel(label)
            axes.grid(True, alpha=0.3)
        row[0].set_ylabel(f"{name.removeprefix('glue/')}: {task.metric}, points")
        if not near:
            row[0].set_title(f"most frequent label: {task.majority:.1f}", fontsize=9, color="grey")
    _legend(figure, panels[0, 0], bool(checked))
    return figure


def _scatter(
    axes: Any,
    points: Sequence[Point],
    cost: Callable[[Point], float],
    results: Results,
    checked: set[tuple[str, Any]],
) -> None:
    for interactive, color, marker, _ in _HANDS:
        own = [p for p in points if p.knobs.interactive == interactive and math.isfinite(cost(p))]
        for sound in (True, False):
            part = [p for p in own if p.sound == sound and math.isfinite(p.score.mean)]
            face = color if sound else "none"
            look = {"marker": marker, "facecolors": face, "edgecolors": color}
            _dots(axes, part, cost, s=22, linewidths=0.8, alpha=0.65, **look)
        best = front(own, cost)
        if best:
            x = [cost(p) for p in best]
            y = [p.score.mean for p in best]
            axes.step([*x, max(map(cost, own))], [*y, y[-1]], where="post", color=color)
            half = [p.score.half if math.isfinite(p.score.half) else 0.0 for p in best]
            axes.errorbar(x, y, half, fmt="none", color=color, capsize=2, alpha=0.5, linewidth=0.8)
    rings = [p for p in points if (p.task, p.knobs) in checked]
    _dots(axes, rings, cost, s=90, facecolors="none", edgecolors="C2", linewidths=1.4)
    theirs = [p for p in points if p.knobs == results.reference and math.isfinite(p.score.mean)]
    look = {"marker": "*", "color": "C3", "edgecolors": "black", "linewidths": 0.6}
    _dots(axes, theirs, cost, s=170, zorder=5, **look)


def _dots(axes: Any, points: Sequence[Point], cost: Callable[[Point], float], **look: Any) -> None:
    axes.scatter([cost(p) for p in points], [p.score.mean for p in points], **look)


def _legend(figure: Figure, axes: Any, checked: bool) -> None:
    for _, color, marker, label in _HANDS:
        axes.plot([], [], marker + "-", color=color, markersize=5, label=f"refreshed: {label}")
    axes.plot([], [], "*", color="C3", markeredgecolor="black", markersize=11, label="reference")
    if checked:
        axes.plot([], [], "o", color="none", markeredgecolor="C2", markersize=9, label="encrypted")
    axes.plot([], [], ":", color="grey", label="most frequent label")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )


def plot_interactions(results: Results) -> Figure | None:
    """For each task a row of the score's strongest interactions, and one row of those of seconds;
    None where no two knobs were combined. Parallel lines say that two effects add up.
    """
    from matplotlib.figure import Figure

    if len(results.axes) < 2:
        return None
    rows: list[tuple[str, list[Interaction]]] = []
    for name, task in results.tasks.items():
        own = [p for p in results.combined(name) if p.one is not None]
        found = interactions(own, results.axes, lambda p: p.score.mean)[:_PAIRS]
        rows.append((f"{name.removeprefix('glue/')}: {task.metric}", found))
    first = [p for p in results.combined(next(iter(results.tasks), "")) if p.one is not None]
    found = interactions(first, results.axes, lambda p: math.log2(p.cost("seconds")))[:_PAIRS]
    rows.append(("log2 core-seconds", found))
    if not any(found for _, found in rows):
        return None
    most = max(len(found) for _, found in rows)
    figure = Figure(figsize=(4.5 * most, 3.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), most, squeeze=False)
    for line, (label, found) in zip(panels, rows, strict=True):
        for axes in line[len(found) :]:
            axes.set_visible(False)
        for axes, each in zip(line, found, strict=False):
            _lines(axes, each, results)
        line[0].set_ylabel(label)
    return figure


def _lines(axes: Any, each: Interaction, results: Results) -> None:
    places = np.arange(len(each.firsts))
    for k, value in enumerate(each.seconds):
        axes.plot(places, each.means[:, k], "o-", markersize=4, label=f"{value}")
    axes.set_xticks(places, [str(value) for value in each.firsts], fontsize=8)
    axes.set_xlim(-0.3, len(places) - 0.7)
    axes.set_xlabel(_knob(each.first, results), fontsize=9)
    axes.legend(title=_knob(each.second, results), fontsize=7, title_fontsize=8)
    axes.grid(True, alpha=0.3)


def plot_checks(results: Results) -> Figure | None:
    """Predicted against measured: core-seconds on the left, errors of logits on the right; None
    where nothing was run.
    """
    from matplotlib.figure import Figure

    good = [s for s in results.spots if not s.reason]
    if not good:
        return None
    figure = Figure(figsize=(8.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, title, pairs in (
        (left, "core-seconds of a sentence", [(s.predicted_seconds, s.seconds) for s in good]),
        (right, "error of a logit", [(s.predicted_error, s.error) for s in good]),
    ):
        x, y = zip(*pairs, strict=True)
        axes.loglog(x, y, "o", color="C2" if all(s.encrypted for s in good) else "C7")
        ends = [min(*x, *y) / 1.3, max(*x, *y) * 1.3]
        axes.plot(ends, ends, color="grey", linewidth=0.8, zorder=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("measured" if all(s.encrypted for s in good) else "not encrypted")
        axes.set_title(title, fontsize=10)
        if axes is left:
            _plain_numbers(axes.xaxis)
            _plain_numbers(axes.yaxis)
        axes.grid(True, alpha=0.3)
    return figure


def _plain_numbers(axis: Any) -> None:
    """1, 2, 5, 10 along a logarithmic axis, however few decades it has."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _many(point: Point) -> float:
    return math.inf if point.many is None else point.many.seconds / point.many.sentences


def _knob(name: str, results: Results) -> str:
    return " / ".join(results.paired) if name in results.paired else name.replace("_", " ")
