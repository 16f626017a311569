"""The report's figures as inline SVG: learning curve, ranges, errors and levels, logits, seconds.

Each function takes `Results` and returns a matplotlib Figure that belongs to no window.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.demo.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
MEASURED, PREDICTED, THIRD, WASH = "#0f6fb4", "#e07b19", "#2f9e6e", "#eef4f9"

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#aab4be",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "hesim",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
}


def learning_curve(results: Results) -> Figure:
    """Training loss and range penalty, and the validation score, step by step."""
    figure, (left, right) = _figure(1, 2, height=3.1)
    steps = [row["step"] for row in results.history]
    switch = next((r["step"] for r in results.history if r["phase"] == "polynomial"), None)
    before = [r["step"] for r in results.history if r["phase"] == "exact"]
    for axes, height, side in ((left, 0.97, "top"), (right, 0.05, "bottom")):
        if switch is not None:
            start = before[-1] if before else 0
            axes.axvspan(start, steps[-1], color=WASH, linewidth=0)
            axes.text(
                (start + steps[-1]) / 2,
                height,
                "polynomials\nand noise",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va=side,
                color=MUTED,
                fontsize=8.5,
            )
        axes.set_xlabel("training step")
    left.plot(steps, _column(results, "loss"), color=MEASURED, marker="o", ms=3.5, label="loss")
    left.plot(
        steps, _column(results, "penalty"), color=PREDICTED, marker="o", ms=3, label="range penalty"
    )
    left.set_ylim(bottom=0)
    left.set_title("Loss of the last batch")
    left.legend(loc="center left", bbox_to_anchor=(0.02, 0.28))
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
    sites = results.sites
    figure, axes = _figure(1, 1, height=0.55 + 0.36 * max(len(sites), 2))
    places = np.arange(len(sites))[::-1]
    for place, site in zip(places, sites):
        low, high = site.fitted
        width = high - low
        start, end = (site.met[0] - low) / width, (site.met[1] - low) / width
        inside = MEASURED if site.inside else "#c0392b"
        axes.barh(place, 1.0, height=0.62, color="#dfe7ee", linewidth=0)
        axes.barh(place, end - start, left=start, height=0.3, color=inside, linewidth=0)
        for x, value, side in ((-0.012, low, "right"), (1.012, high, "left")):
            axes.text(x, place, f"{value:.3g}", ha=side, va="center", color=MUTED, fontsize=8.5)
        for x, value, side in ((start, site.met[0], "left"), (end, site.met[1], "right")):
            shift = 0.008 if side == "left" else -0.008
            axes.text(
                x + shift,
                place,
                f"{value:.3g}",
                ha=side,
                va="center",
                color="white",
                fontsize=7.5,
                fontweight="bold",
            )
    axes.set_yticks(places, [f"{site.name}  ·  degree {site.degree}" for site in sites])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_xlim(-0.09, 1.09)
    axes.set_ylim(-0.7, len(sites) - 0.3)
    axes.set_xticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def errors_and_levels(results: Results) -> Figure:
    """Along the program: error of each operation measured and predicted, their ratio, the level."""
    figure, panels = _figure(3, 1, height=6.8, heights=(3.2, 1.2, 1.5), sharex=True)
    top, middle, bottom = panels
    places = np.arange(len(results.ops))
    measured = _positive(op.measured_std for op in results.ops)
    predicted = _positive(op.predicted_std for op in results.ops)
    predicted[np.isnan(measured)] = np.nan  # fused with the next: nothing to hold it against
    name = "measured, encrypted" if results.was_encrypted else "measured, plain vectors"
    top.plot(places, measured, "o", ms=4.5, color=MEASURED, label=name)
    top.plot(
        places,
        predicted,
        "_",
        ms=9,
        mew=2,
        color=PREDICTED,
        label="predicted by simulation",
    )
    top.set_yscale("log", base=2)
    top.set_ylabel("standard deviation")
    lowest, highest = top.get_ylim()
    top.set_ylim(lowest / 2, highest)  # room for the legend
    top.legend(loc="lower right", ncols=2)
    middle.axhspan(1 / 1.5, 1.5, color=WASH, linewidth=0)
    middle.axhline(1.0, color=MUTED, linewidth=0.8)
    middle.plot(places, _positive(op.ratio for op in results.ops), "o", ms=3.2, color=THIRD)
    middle.set_yscale("log", base=2)
    middle.set_ylabel("measured /\npredicted")
    low, high = middle.get_ylim()
    middle.set_ylim(min(low, 0.4), max(high, 2.5))
    levels = np.array([op.level if op.level >= 0 else math.nan for op in results.ops])
    bottom.vlines(places, -0.3, levels, color="#c4d8e8", linewidth=2)
    bottom.plot(places, levels, "o", ms=4, color=MEASURED)
    bottom.set_ylim(-0.3, results.plan["ring"]["levels"] + 0.3)
    bottom.set_yticks(range(results.plan["ring"]["levels"] + 1))
    bottom.set_ylabel("level of\nthe result")
    bottom.set_xlabel("operation, in program order")
    bottom.set_xlim(-1, len(places))
    _mark_polynomials(results, panels)
    return figure


def logit_errors(results: Results) -> Figure:
    """How the errors of the logits are spread, and the normal distribution that was predicted."""
    figure, axes = _figure(1, 1, height=2.7, width=5.2)
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
    spent: defaultdict[str, float] = defaultdict(float)
    for op, label in zip(results.ops, results.plan["labels"]):
        spent[label] += op.seconds
    rows = sorted((seconds, name) for name, seconds in spent.items() if seconds > 0)[-9:]
    figure, axes = _figure(1, 1, height=2.7, width=5.2)
    axes.barh([name for _, name in rows], [s for s, _ in rows], color="#8fb3d1", height=0.66)
    largest = max((s for s, _ in rows), default=1.0)
    for place, (seconds, _) in enumerate(rows):
        axes.text(seconds + 0.01 * largest, place, f"{seconds:.1f}", va="center", fontsize=8.5)
    axes.set_xlim(0, 1.12 * largest)
    axes.set_xlabel("core-seconds")
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(False, axis="y")
    return figure


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
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = FIGURES[name](results)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)


def _figure(
    rows: int,
    columns: int,
    *,
    height: float,
    width: float = 10.5,
    heights: tuple[float, ...] | None = None,
    sharex: bool = False,
) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    ratios = {"height_ratios": heights} if heights else None
    return figure, figure.subplots(rows, columns, sharex=sharex, gridspec_kw=ratios)


def _column(results: Results, name: str) -> list[float]:
    return [float(row.get(name, math.nan)) for row in results.history]


def _positive(values: Any) -> np.ndarray:
    """Values for a logarithmic axis: NaN where there is nothing to draw."""
    array = np.array([float(v) for v in values])
    return np.where(array > 0, array, np.nan)


def _mark_polynomials(results: Results, panels: Any) -> None:
    """A faint line at every polynomial, with the name of its function above the first panel."""
    top: Axes = panels[0]
    for place, label in enumerate(results.plan["labels"]):
        if not label.startswith("polynomial "):
            continue
        for axes in panels:
            axes.axvline(place, color="#c9d3dc", linewidth=0.8, zorder=0.5)
        top.text(
            place,
            1.015,
            label.removeprefix("polynomial "),
            transform=top.get_xaxis_transform(),
            rotation=40,
            ha="left",
            va="bottom",
            color=MUTED,
            fontsize=8.5,
        )
