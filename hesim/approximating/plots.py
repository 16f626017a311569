"""The figure of a function made polynomial: what stands in each place, and how far it is off."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hesim.approximating.approximated import Site

__all__ = ["figure"]

_COLUMNS = 3
_MOST = 24
"""Sites that are drawn."""


def figure(sites: Sequence[tuple[Site, Callable[[Any], Any], np.ndarray]]) -> Figure:
    """Two panels a site: its function with the approximation over it, and their difference.

    Args:
      sites: each with its function and values that were met.
    """
    from approx.choice.figures import Figure

    shown = sites[:_MOST]
    columns = max(min(_COLUMNS, len(shown)), 1)
    rows = max(math.ceil(len(shown) / columns), 1)
    made = Figure(figsize=(4.4 * columns, 3.9 * rows), layout="constrained")
    grid = made.add_gridspec(2 * rows, columns, height_ratios=[2, 1] * rows)
    for k, (site, function, samples) in enumerate(shown):
        row, column = divmod(k, columns)
        upper = made.add_subplot(grid[2 * row, column])
        lower = made.add_subplot(grid[2 * row + 1, column], sharex=upper)
        _values(upper, site, function, samples)
        _difference(lower, site, function)
    if len(sites) > len(shown):
        made.suptitle(f"the first {len(shown)} of {len(sites)} sites")
    return made


def _values(axes: Axes, site: Site, function: Callable[[Any], Any], samples: np.ndarray) -> None:
    low, high = site.domain
    reach = 0.06 * (high - low)
    x = np.linspace(low - reach, high + reach, 800)
    wanted = function(x)
    inside = function(np.linspace(low, high, 400))
    axes.plot(x, wanted, color="0.7", linewidth=4.0, label="function")
    with np.errstate(all="ignore"):  # outside of the domain anything may come
        values_there = site.approximation(x)
    axes.plot(x, values_there, color="C0", linewidth=1.4, label=f"degree {site.degree}")
    axes.axvspan(low, high, color="C2", alpha=0.10)
    span = max(float(np.ptp(inside)), 1e-9)
    axes.set_ylim(float(np.min(inside)) - 0.15 * span, float(np.max(inside)) + 0.15 * span)
    place = "" if site.source is None else f", {site.source.brief}"
    axes.set_title(f"{site.number}: {site.operation}{place}", fontsize=9)
    values = axes.twinx()
    values.hist(samples, bins=60, range=(low - reach, high + reach), color="C1", alpha=0.35)
    values.set_yticks([])
    axes.set_zorder(values.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.legend(loc="best", fontsize=7)
    axes.tick_params(labelbottom=False, labelsize=7)


def _difference(axes: Axes, site: Site, function: Callable[[Any], Any]) -> None:
    x = np.linspace(*site.domain, 1200)
    axes.plot(x, site.approximation(x) - function(x), color="C3", linewidth=0.9)
    axes.axhline(0.0, color="0.5", linewidth=0.6)
    axes.set_ylabel("error", fontsize=8)
    axes.set_xlabel("value met (bars), domain (green)", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.yaxis.get_offset_text().set_fontsize(7)
