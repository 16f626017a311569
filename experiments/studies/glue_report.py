"""The table, the losses and the plot of the study of GLUE."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.studies.glue import COLUMNS, TASKS, Run
from experiments.studies.shown import Interval, interval, ruled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Loss", "counted_tasks", "loss", "plot", "summary", "table"]

LEARNT = 5.0
"""Points by which Full with softmax must beat the most frequent label for a task to count."""


def counted_tasks(runs: Sequence[Run]) -> list[str]:
    """Tasks on which the mean of Full with softmax beats the most frequent label by `LEARNT`
    points: elsewhere there is nothing to lose.
    """
    found = []
    for task in TASKS:
        own = [run for run in runs if (run.task, run.column) == (task, "full-softmax")]
        if own and interval([r.score for r in own]).mean - own[0].majority >= LEARNT:
            found.append(task)
    return found


@dataclasses.dataclass(frozen=True)
class Loss:
    """What one column loses to another, in points: by task and seed where both were run, and the
    mean over the tasks, with an interval over the seeds that have all of these tasks.
    """

    tasks: tuple[str, ...]
    by_task: dict[str, Interval]
    average: Interval


def loss(
    runs: Sequence[Run], before: str, after: str, tasks: Sequence[str] | None = None
) -> Loss | None:
    """Paired by task and seed; of the counted tasks by default. None where no seed has both
    columns of all those of the tasks that were run in both.
    """
    wanted = counted_tasks(runs) if tasks is None else list(tasks)
    score = {(r.task, r.column, r.seed): r.score for r in runs}
    seeds = sorted({r.seed for r in runs})
    lost: dict[str, dict[int, float]] = {}
    for task in wanted:
        pairs = {
            s: score[task, before, s] - score[task, after, s]
            for s in seeds
            if (task, before, s) in score and (task, after, s) in score
        }
        if pairs:
            lost[task] = pairs
    complete = [s for s in seeds if lost and all(s in pairs for pairs in lost.values())]
    if not complete:
        return None
    means = [float(np.mean([pairs[s] for pairs in lost.values()])) for s in complete]
    by_task = {task: interval(list(pairs.values())) for task, pairs in lost.items()}
    return Loss(tuple(lost), by_task, interval(means))


def table(runs: Sequence[Run]) -> str:
    """Mean score in points with its 95 % interval, a line a task, a column a way of training."""
    columns = [name for name in COLUMNS if any(run.column == name for run in runs)]
    head = ["task (measure)", "majority", *(COLUMNS[name].label for name in columns), "seeds"]
    lines = [head]
    for task in TASKS:
        own = [run for run in runs if run.task == task]
        if not own:
            continue
        cells = [f"{task} ({own[0].metric})", f"{own[0].majority:.1f}"]
        for name in columns:
            scores = [run.score for run in own if run.column == name]
            cells.append(str(interval(scores)) if scores else "-")
        counts = [sum(run.column == name for run in own) for name in columns]
        seeds = [str(n) for n in sorted({n for n in counts if n})]
        lines.append([*cells, " to ".join([seeds[0], seeds[-1]][: len(seeds)])])
    return ruled(lines)


def summary(runs: Sequence[Run]) -> str:
    """The notes on the data, and what is lost on the tasks that were learnt."""
    lines = []
    for task in TASKS:
        own = [run for run in runs if run.task == task]
        if own and own[0].notes:
            lines.append(f"{task}: {'; '.join(own[0].notes)}")
    counted = counted_tasks(runs)
    lines.append(
        f"counted, Full with softmax {LEARNT:.0f} points above the most frequent label: "
        + (", ".join(counted) or "none")
    )
    for before, after in (
        ("full-softmax", "lora-gaussian"),
        ("full-softmax", "lora-simulated"),
        ("lora-gaussian", "lora-simulated"),
        ("full-softmax", "full-gaussian"),
        ("full-softmax", "lora-softmax"),
    ):
        found = loss(runs, before, after)
        if found is not None:
            each = ", ".join(f"{task} {value}" for task, value in found.by_task.items())
            lines.append(
                f"{COLUMNS[before].label} less {COLUMNS[after].label}: {found.average} points on "
                f"average, {found.average.count} paired seeds ({each})"
            )
    worst: dict[str, float] = {}
    for run in runs:
        for site, share in run.outside.items():
            worst[site] = max(worst.get(site, 0.0), share)
    if worst:
        said = ", ".join(f"{site} {share:.3%}" for site, share in sorted(worst.items()))
        lines.append(f"largest share of held-out values out of range, by site: {said}")
    return "\n".join(lines)


def plot(runs: Sequence[Run]) -> Figure:
    """A panel a task: mean and 95 % interval of each column, every seed a dot, the majority's score
    a line.
    """
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if any(run.task == task for run in runs)]
    across = min(3, len(tasks))
    down = -(-len(tasks) // across)
    figure = Figure(figsize=(3.6 * across + 0.6, 2.8 * down + 1.5 / across), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, task in zip(panels, tasks, strict=False):
        own = [run for run in runs if run.task == task]
        for place, name in enumerate(COLUMNS):
            scores = [run.score for run in own if run.column == name]
            if not scores:
                continue
            mean, color = interval(scores), f"C{place}"
            half = mean.half if mean.count > 1 else 0.0
            axes.errorbar(place, mean.mean, half, fmt="s", color=color, capsize=4)
            axes.plot([place + 0.2] * len(scores), scores, ".", color=color, alpha=0.5)
        axes.axhline(own[0].majority, color="grey", linewidth=0.8, linestyle="--")
        axes.set_title(f"{task} ({own[0].metric})", fontsize=10)
        axes.set_xticks([])
        axes.set_xlim(-0.6, len(COLUMNS) - 0.2)
        axes.grid(True, axis="y", alpha=0.3)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    for axes in panels[::across]:
        axes.set_ylabel("points")
    handles = [
        panels[0].plot([], [], "s", color=f"C{i}", label=column.label)[0]
        for i, column in enumerate(COLUMNS.values())
    ]
    handles += panels[0].plot([], [], "--", color="grey", linewidth=0.8, label="majority")
    figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False)
    return figure
