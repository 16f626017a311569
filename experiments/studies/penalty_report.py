"""The study of the range penalty shown: a table of scores, one of sites, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.studies.penalty import Arm
from experiments.studies.shown import interval
from models.sites.sites import Range, is_norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot", "scores", "sites"]

_NAMES = {False: "off", True: "on"}


def scores(arms: Sequence[Arm]) -> str:
    """A line a task and setting: mean scores in points with 95 % intervals, what the polynomials
    and the noise cost, and the largest share of values outside at any site.
    """
    lines = [
        f"{'task (measure)':<18} {'penalty':<8} {'exact':<13} {'simulated':<13} {'lost':<13} "
        f"{'most outside':<22} seeds"
    ]
    for task in _tasks(arms):
        for on in (False, True):
            own = _chosen(arms, task, on)
            if not own:
                continue
            worst = max(own, key=lambda arm: max(arm.outside.values()))
            site = max(worst.outside, key=lambda name: worst.outside[name])
            cells = (
                interval([arm.exact for arm in own]),
                interval([arm.simulated for arm in own]),
                interval([arm.exact - arm.simulated for arm in own]),
            )
            said = f"{worst.outside[site]:.3%} {site}" if worst.outside[site] else "none"
            lines.append(
                f"{f'{task} ({own[0].metric})':<18} {_NAMES[on]:<8} "
                + " ".join(f"{cell!s:<13}" for cell in cells)
                + f" {said:<22} {len(own)}"
            )
    return "\n".join(lines)


def sites(arms: Sequence[Arm]) -> str:
    """A line a task and site: the domain, and without and with penalty the range met over all seeds
    and the mean share of values outside.
    """
    lines = [
        f"{'task':<7} {'site':<32} {'domain':<18} {'met, off':<20} {'met, on':<20} "
        f"{'outside, off':>12} {'on':>9}"
    ]
    for task in _tasks(arms):
        off, on = (_chosen(arms, task, penalty) for penalty in (False, True))
        for site in (off or on)[0].domains:
            domain = _hull([arm.domains[site] for arm in (*off, *on)])
            met = [
                _range(_hull([a.ranges[site] for a in own])) if own else "-" for own in (off, on)
            ]
            share = [
                f"{np.mean([a.outside[site] for a in own]):.4%}" if own else "-"
                for own in (off, on)
            ]
            lines.append(
                f"{task:<7} {site:<32} {_range(domain):<18} {met[0]:<20} {met[1]:<20} "
                f"{share[0]:>12} {share[1]:>9}"
            )
    return "\n".join(lines)


def plot(arms: Sequence[Arm]) -> Figure:
    """Per task, above: exact and simulated score of every seed; below: how far each site's values
    reach, in half-widths of its domain (beyond 1 the polynomial says nothing).
    """
    from matplotlib.figure import Figure

    tasks = _tasks(arms)
    names = list(arms[0].domains)
    figure = Figure(figsize=(5.4 * len(tasks), 4.0 + 0.22 * len(names)), layout="constrained")
    rows = figure.subplots(2, len(tasks), squeeze=False, height_ratios=(2.4, 0.22 * len(names)))
    for column, task in enumerate(tasks):
        above, below = rows[0, column], rows[1, column]
        for place, (on, color) in enumerate(((False, "C1"), (True, "C0"))):
            own = _chosen(arms, task, on)
            for arm in own:
                above.plot([place, place + 0.5], [arm.exact, arm.simulated], "o-", color=color)
                reach = [_reach(name, arm.ranges[name], arm.domains[name]) for name in names]
                label = f"penalty {_NAMES[on]}" if arm is own[0] else None
                places = np.arange(len(names)) + (0.12 if on else -0.12)
                below.plot(reach, places, "o", color=color, label=label, alpha=0.7)
        above.set_xticks([0, 0.5, 1, 1.5], ["exact", "simulated", "exact", "simulated"])
        above.set_xlim(-0.25, 1.75)
        above.set_title(f"{task} ({_chosen(arms, task, None)[0].metric}, points)", fontsize=10)
        below.axvline(1.0, color="grey", linewidth=1.0, linestyle="--")
        below.set_yticks(range(len(names)), names if column == 0 else [], fontsize=8)
        below.invert_yaxis()
        below.set_xlabel("farthest value, in half-widths of the domain")
        for axes in (above, below):
            axes.grid(True, alpha=0.3)
    figure.legend(*rows[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _tasks(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(arm.task for arm in arms))


def _chosen(arms: Sequence[Arm], task: str, penalty: bool | None) -> list[Arm]:
    return [arm for arm in arms if arm.task == task and penalty in (None, arm.penalty)]


def _hull(ranges: Sequence[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _range(pair: Range) -> str:
    return f"[{pair[0]:.3g}, {pair[1]:.3g}]"


def _reach(name: str, met: Range, domain: Range) -> float:
    """Largest distance from the domain's centre in its half-widths; of exponents downwards alone,
    which cannot exceed 0, and of variances by logarithms, since 1/sqrt is as steep at both ends.
    """
    edges = np.array([*met, *domain])
    low, high, left, right = np.log(edges) if is_norm(name) else edges
    centre, half = (left + right) / 2, (right - left) / 2
    reach = (centre - low) / half
    return float(reach if name.endswith(".exp") else max(reach, (high - centre) / half))
