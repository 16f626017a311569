"""The report's figures as inline SVG: learning curve, ranges, errors and levels, logits, seconds.

Each function takes `Results` and returns a matplotlib Figure that belongs to no window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.validation.results import Results
from he_backend.report import figures
from he_backend.report.figures import MEASURED, PREDICTED, THIRD, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES",
    "errors_and_levels",
    "learning_curve",
    "logit_errors",
    "ranges",
    "seconds_by_kind",
    "svg",
]


def learning_curve(results: Results) -> Figure:
    """Training loss and range penalty, and the validation score, step by step."""
    figure, (left, right) = new_figure(1, 2, height=3.1)
    steps = [row["step"] for row in results.history]
    switch = next((r["step"] for r in results.history if r["phase"] == "polynomial"), None)
    before = [r["step"] for r in results.history if r["phase"] == "exact"]
    for axes in (left, right):
        if switch is not None:
            start = before[-1] if before else 0
            label = "polynomials and noise" if axes is left else None
            axes.axvspan(start, steps[-1], color="#dde8f2", linewidth=0, label=label)
        axes.set_xlabel("training step")
    loss, penalty = _column(results, "loss"), _column(results, "penalty")
    left.plot(steps, loss, color=MEASURED, marker="o", ms=3.5, label="loss")
    left.plot(steps, penalty, color=PREDICTED, marker="s", ms=3, ls="--", label="range penalty")
    left.set_ylim(bottom=0)
    left.set_title("Loss of the last batch")
    figure.legend(loc="outside upper left", ncols=3)
    score = np.array(_column(results, results.metric))
    right.plot(steps, score, color=THIRD, marker="o", ms=3.5)
    right.annotate(
        f"{score[-1]:.3f}",
        (steps[-1], score[-1]),
        xytext=(0, -12),
        textcoords="offset points",
        ha="right",
        va="top",
        color=THIRD,
        fontweight="bold",
    )
    right.set_title(f"{results.metric.capitalize()} on the validation split")
    return figure


def ranges(results: Results) -> Figure:
    """Of every polynomial, the range fitted and the range met, as shares of the fitted one."""
    return figures.ranges(
        [
            figures.Met(f"{s.name}  ·  degree {s.degree}", (s.fitted,), s.met, s.inside)
            for s in results.sites
        ]
    )


def errors_and_levels(results: Results) -> Figure:
    """Along the program: error of each operation measured and predicted, their ratio, the level."""
    levels = int(results.plan["ring"]["levels"])
    return figures.errors_and_levels(results.ops, levels, results.was_encrypted)


def logit_errors(results: Results) -> Figure:
    """How the errors of the logits are spread, and the normal distribution that was predicted."""
    figure, axes = new_figure(1, 1, height=2.7, width=5.2)
    error = results.error.ravel()
    unit = 2.0 ** math.floor(math.log2(max(results.measured_std, 1e-300)))
    span = 4.5 * results.measured_std
    edges = np.linspace(-span, span, 46)
    axes.hist(error / unit, edges / unit, density=True, color="#8fb3d1", label="measured")
    if results.was_encrypted and results.predicted_std > 0:
        x = np.linspace(-span, span, 400)
        s = results.predicted_std
        normal = np.exp(-0.5 * (x / s) ** 2) / (s * math.sqrt(2 * math.pi))
        axes.plot(x / unit, normal * unit, color=PREDICTED, linewidth=1.8, label="predicted")
    axes.set_xlabel(f"logit error, in units of $2^{{{round(math.log2(unit))}}}$")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    axes.legend(loc="upper right")
    return figure


def seconds_by_kind(results: Results) -> Figure:
    """CPU seconds of the encrypted evaluation by kind of operation."""
    return figures.seconds_by_kind(results.ops)


FIGURES: dict[str, Callable[[Results], Any]] = {
    "learning_curve": learning_curve,
    "ranges": ranges,
    "errors_and_levels": errors_and_levels,
    "logit_errors": logit_errors,
    "seconds_by_kind": seconds_by_kind,
}
"""The figures of the report by name."""


def svg(name: str, results: Results) -> str:
    """A figure as an <svg> element for a page: nothing fetched, identifiers of its own."""
    return figures.svg(name, lambda: FIGURES[name](results))


def _column(results: Results, name: str) -> list[float]:
    return [float(row.get(name, math.nan)) for row in results.history]
