"""Figures about approximations: errors, behaviour outside the domain, Pareto fronts, damage.

Each function returns a matplotlib Figure that belongs to no window, for notebooks and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from approx.remez import grid
from approx.targets import find

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from approx.choice.choosing import Front
    from approx.choice.reporting import Report
    from approx.composites.graph import Composite
    from approx.polynomial import Polynomial


def error_curve(approximation: Polynomial | Composite, target: Any, count: int = 4001) -> Figure:
    """p - f over the domain, with its bound and the local extrema where it equioscillates.

    Args:
      approximation: a polynomial or a composite.
      target: a name or a callable, as for ``approx.fit``.
      count: points drawn.
    """
    function = find(target)
    figure, axes = _figure("x", "approximation - target")
    tops = []
    for a, b in approximation.intervals:
        x = grid([(a, b)], count, function.kinks)
        error = approximation(x) - function(x)
        axes.plot(x, error, color="C0", linewidth=1.2)
        for run in np.split(np.arange(len(x)), np.flatnonzero(np.diff(np.sign(error))) + 1):
            top = run[int(np.argmax(np.abs(error[run])))]
            tops.append((x[top], error[top]))
    high = np.array([t for t in tops if abs(t[1]) > 0.9 * approximation.max_error])
    if len(high):
        axes.plot(
            high[:, 0], high[:, 1], "o", color="C1", markersize=4, label=f"{len(high)} extrema"
        )
    for sign in (-1.0, 1.0):
        label = _bound_label(approximation) if sign > 0 else None
        level = sign * approximation.max_error
        axes.axhline(level, color="C3", linestyle="--", linewidth=0.8, label=label)
    axes.set_title(_title(approximation))
    _legend(figure)
    return figure


def outside(
    approximation: Polynomial | Composite, target: Any, fraction: float = 0.25, count: int = 2001
) -> Figure:
    """The approximation and its target up to ``fraction`` of the domain's width outside it."""
    function = find(target)
    a, b = approximation.hull
    margin = fraction * (b - a)
    x = np.linspace(a - margin, b + margin, count)
    figure, axes = _figure("x", "value")
    with np.errstate(all="ignore"):
        values, wanted = approximation(x), function(x)
    # They coincide inside: a dashed line over a broad one shows both.
    axes.plot(x, wanted, color="0.65", linewidth=4.0, label=str(function.name))
    axes.plot(x, values, color="C0", linewidth=1.5, linestyle="--", label="approximation")
    for k, (low, high) in enumerate(approximation.intervals):
        axes.axvspan(low, high, color="C2", alpha=0.12, label=None if k else "domain")
    inside = wanted[(x >= a) & (x <= b) & np.isfinite(wanted)]
    axes.set_yscale("symlog", linthresh=max(float(np.max(np.abs(inside))), 1e-12))
    axes.set_title(_title(approximation))
    _legend(figure)
    return figure


def error_against_degree(
    target: Any,
    domain: Any,
    degrees: Sequence[int],
    methods: Sequence[str] = ("minimax", "chebyshev"),
) -> Figure:
    """max_error of ``approx.fit`` for each degree and method, on a logarithmic axis."""
    from approx.fitting import fit

    figure, axes = _figure("degree", "maximum error")
    for k, method in enumerate(methods):
        errors = [fit(target, domain, degree=n, method=method).max_error for n in degrees]
        style = ("o-", "s--", "^:", "D-.")[k % 4]  # where lines coincide, all are seen
        axes.semilogy(list(degrees), errors, style, markersize=4, label=method.replace("_", " "))
    axes.set_title(f"{find(target).name} on {domain}")
    axes.grid(True, which="both", alpha=0.3)
    _legend(figure)
    return figure


def pareto(front: Front) -> Figure:
    """Error of each choice of ``approx.choose`` against its levels, labelled by its products."""
    figure, axes = _figure("levels", "root mean square error on the samples")
    steps: dict[int, float] = {}
    for c in front.choices:  # by levels: the least error so far
        steps[c.levels] = min(c.error, *steps.values()) if steps else c.error
    axes.step(list(steps), list(steps.values()), where="post", color="0.8", linewidth=1.0, zorder=0)
    for k, method in enumerate(sorted({c.method for c in front.choices})):
        own = [c for c in front.choices if c.method == method]
        axes.semilogy(
            [c.levels for c in own],
            [c.error for c in own],
            "o",
            markersize=5,
            color=f"C{k}",
            label=method.replace("_", " "),
        )
    errors = [c.error for c in front.choices]
    room = 0.035 * (math.log(max(errors) / min(errors)) or 1.0)
    for levels in steps:
        last = math.inf
        for c in (c for c in front.choices if c.levels == levels):  # falling errors
            if last - math.log(c.error) > room or math.isinf(last):
                at = (c.levels, c.error)
                axes.annotate(
                    str(c.products), at, (6, 0), textcoords="offset points", fontsize=7, va="center"
                )
                last = math.log(c.error)
    best = front.best
    axes.plot(best.levels, best.error, "o", markersize=11, fillstyle="none", color="black")
    axes.set_title(f"{front.target}: choices with their products; circled: the best", fontsize=11)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.08)
    axes.grid(True, which="major", alpha=0.3)
    _legend(figure)
    return figure


def damage(report: Report) -> Figure:
    """Error of each sample over x, and the samples' density, the domain shaded."""
    figure, axes = _figure("x", "|approximation - target|")
    for a, b in report.approximation.intervals:
        axes.axvspan(a, b, color="C2", alpha=0.12)
    a, b = report.approximation.hull
    x = (
        report.data
        if report.samples
        else np.linspace(1.05 * a - 0.05 * b, 1.05 * b - 0.05 * a, 999)
    )
    with np.errstate(all="ignore"):
        errors = np.abs(report.approximation(x) - report.target(x))
    axes.semilogy(x, np.maximum(errors, 1e-17), ".", markersize=3, color="C0", label="error")
    axes.axhline(
        report.approximation.max_error,
        color="C3",
        linestyle="--",
        linewidth=0.8,
        label=_bound_label(report.approximation),
    )
    if report.samples:
        density = axes.twinx()
        density.hist(x, bins=80, density=True, histtype="step", color="grey", linewidth=0.8)
        density.set_ylabel("density of the samples")
    axes.set_title(f"{_title(report.approximation)}; {report.outside:.2%} outside")
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """Below the axes, where it hides no point of the curve."""
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")


def _figure(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    from approx.choice.figures import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _title(approximation: Polynomial | Composite) -> str:
    return (
        f"{approximation.name}: degree {approximation.degree}, {approximation.depth} levels, "
        f"max error {approximation.max_error:.2e}"
    )


def _bound_label(approximation: Polynomial | Composite) -> str:
    return "certified bound" if approximation.certified else "estimated maximum"
