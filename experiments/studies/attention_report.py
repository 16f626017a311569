"""The study of attention shown: a table of scores, errors and costs by way, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.studies.attention import WAYS, Run, Twin
from experiments.studies.shown import interval, ruled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot", "table"]

_NOTES = (
    "polynomials, noise: root mean square of what they do to the logits, by the logits' own spread;"
    " outside: largest share of values out of a domain; lost: rows that ran away;",
    "levels to seconds: of one small model with these polynomials, compiled, on one core",
)


def table(runs: Sequence[Run]) -> str:
    """A line a task and way: mean scores in points with 95 % intervals over the seeds; root mean
    squares of what polynomials and noise do to the logits, as shares of the logits' own spread; the
    largest share of values out of a domain, and rows that ran away; and what the small model
    spends, each the largest over the seeds.
    """
    head = (
        *("task (measure)", "way", "exact", "polynomial", "simulated", "polynomials", "noise"),
        *("outside", "lost", "levels", "products", "refreshes", "rotations", "seconds", "seeds"),
    )
    lines: list[tuple[str, ...]] = [head]
    for task in _tasks(runs):
        own = [run for run in runs if run.task == task]
        first = f"{task} ({own[0].metric})"
        lines.append((first, "most frequent label", f"{own[0].majority:.1f}", *[""] * 12))
        for name in WAYS:
            found = _of_way(own, name)
            if not found:
                continue
            exact = str(interval([run.exact for run, _ in found]))
            twins = [twin for _, twin in found if twin is not None]
            if twins:
                cells = _cells([run for run, _ in found], twins)
            else:
                cells = ("-",) * 11
            lines.append((first, WAYS[name].label, exact, *cells, str(len(found))))
    return "\n".join([ruled(lines), *_NOTES])


def _cells(runs: Sequence[Run], twins: Sequence[Twin]) -> tuple[str, ...]:
    pairs = list(zip(runs, twins, strict=True))
    costs = [twin.cost for twin in twins]
    return (
        str(interval([twin.polynomial for twin in twins])),
        str(interval([twin.simulated for twin in twins])),
        f"{_mean([twin.approximation / run.spread for run, twin in pairs]):.2g}",
        f"{_mean([twin.noise / run.spread for run, twin in pairs]):.2g}",
        f"{max(twin.outside for twin in twins):.3%}",
        str(max(twin.lost for twin in twins)),
        *(
            f"{max(getattr(cost, name) for cost in costs):,}"
            for name in ("depth", "products", "refreshes", "rotations")
        ),
        f"{max(cost.seconds for cost in costs):.1f}",
    )


def plot(runs: Sequence[Run]) -> Figure:
    """A panel a task: exact, polynomial and simulated score of each way, means with 95 % intervals
    and every seed a dot. Beside them the levels and the products of two ciphertexts of each way.
    """
    from matplotlib.figure import Figure

    tasks, names = _tasks(runs), [name for name in WAYS if _of_way(runs, name)]
    figure = Figure(figsize=(4.2 * len(tasks) + 4.4, 4.2), layout="constrained")
    panels = figure.subplots(1, len(tasks) + 2, width_ratios=(*[3.0] * len(tasks), 1.2, 1.2))
    places = np.arange(len(names))
    kinds = ("exact", "polynomial", "simulated")
    for axes, task in zip(panels, tasks, strict=False):
        own = [run for run in runs if run.task == task]
        for shift, (kind, color) in zip((-0.22, 0.0, 0.22), zip(kinds, ("C0", "C2", "C1"))):
            for place, name in enumerate(names):
                values = _scores(own, name, kind)
                if not values:
                    continue
                found = interval(values)
                half = found.half if found.count > 1 else 0.0
                style = {"fmt": "s", "color": color, "capsize": 3, "markersize": 4}
                axes.errorbar(found.mean, place + shift, xerr=half, **style)
                axes.plot(values, [place + shift] * len(values), ".", color=color, alpha=0.5)
            axes.plot([], [], "s", color=color, label=kind)
        axes.set_title(f"{task} ({own[0].metric}, points)", fontsize=10)
        axes.set_yticks(places, [WAYS[name].label for name in names] if task == tasks[0] else [])
    for axes, title, field in (
        (panels[-2], "levels", "depth"),
        (panels[-1], "ciphertext products", "products"),
    ):
        most = [
            max((getattr(twin.cost, field) for _, twin in _of_way(runs, name) if twin), default=0)
            for name in names
        ]
        axes.barh(places, most, color="C7", height=0.5)
        for place, value in zip(places, most, strict=True):
            axes.annotate(
                f" {value:,}" if value else " not encrypted", (value, place), va="center", size=8
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlim(0, 1.45 * max(most, default=1) or 1)
        axes.set_yticks(places, [])
    for axes in panels:
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(True, axis="x", alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def _tasks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.task for run in runs))


def _of_way(runs: Sequence[Run], name: str) -> list[tuple[Run, Twin | None]]:
    """The runs of a way, with its twins where it has any."""
    own = [run for run in runs if run.attention == WAYS[name].attention]
    return [(run, run.twins.get(name)) for run in own]


def _scores(runs: Sequence[Run], name: str, kind: str) -> list[float]:
    found = _of_way(runs, name)
    if kind == "exact":
        return [run.exact for run, _ in found]
    return [getattr(twin, kind) for _, twin in found if twin is not None]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
