"""Figures of a run, for pages and notebooks: errors and levels along the program, ranges, seconds.

Each function takes records of operations and returns a matplotlib Figure that belongs to no window;
`svg` turns one into an element for a page.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from he_backend.report.report import OpRecord

__all__ = [
    "Met",
    "errors",
    "errors_and_levels",
    "levels_of",
    "new_figure",
    "ranges",
    "ranges_of",
    "seconds_by_kind",
    "svg",
]

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
MEASURED, PREDICTED, THIRD, WASH, WRONG = "#0f6fb4", "#e07b19", "#2f9e6e", "#eef4f9", "#c0392b"

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

_NAMED = 160
"""Operations, at most, that all have their names on the axis."""

_NARROW = 8
"""Operations, at most, whose figure is drawn for the width of a phone."""

_LEAST = 0.65
"""Part of a figure's natural size at which its smallest letters can just be read."""

_UPRIGHT = 16
"""Operations, at most, whose names are not turned by a right angle."""


@dataclass(frozen=True)
class Met:
    """A range that a polynomial was fitted on, and the one that it met.

    Attributes:
      label: name of the row.
      intervals: fitted, in ascending order.
      met: smallest and largest value.
      inside: whether all values lay in the intervals.
    """

    label: str
    intervals: tuple[tuple[float, float], ...]
    met: tuple[float, float]
    inside: bool


def errors(ops: Sequence[OpRecord], encrypted: bool) -> Figure:
    """Measured std of every operation's error over its prediction interval, log scale.

    Those that leave it are red, and the first one is named in the title.
    """
    figure, axes = new_figure(1, 1, height=3.6, width=_width(len(ops)))
    _draw_errors(axes, ops, encrypted)
    _name_operations(axes, ops)
    first = next((op for op in ops if op.excess_bits), None)
    if first is not None:
        axes.set_title(f"first outside: {first.label}, {_short(first.source)}")
    _legend(figure)
    return figure


def errors_and_levels(ops: Sequence[OpRecord], levels: int, encrypted: bool) -> Figure:
    """Along the program: error of each operation measured and predicted, their ratio, the level of
    the result, and where ciphertexts were refreshed.

    Args:
      levels: of the parameters, for the axis.
      encrypted: whether the measured errors are those of ciphertexts.
    """
    figure, panels = new_figure(
        3, 1, height=7.4, width=_width(len(ops)), heights=(3.2, 1.2, 1.7), sharex=True
    )
    top, middle, bottom = panels
    _draw_errors(top, ops, encrypted)
    _draw_ratios(middle, ops)
    _draw_levels(bottom, ops, levels)
    _name_operations(bottom, ops)
    for place, op in enumerate(ops):
        if op.function:
            for axes in panels:
                axes.axvline(place, color="#c9d3dc", linewidth=0.8, zorder=0.5)
    _legend(figure)
    return figure


def levels_of(ops: Sequence[OpRecord], levels: int) -> Figure:
    """The last panel of `errors_and_levels` alone, for a run that compared nothing."""
    figure, axes = new_figure(1, 1, height=3.0, width=_width(len(ops)))
    _draw_levels(axes, ops, levels)
    _name_operations(axes, ops)
    _legend(figure)
    return figure


def ranges(rows: Sequence[Met]) -> Figure:
    """Of every polynomial, the range fitted and the range met, as shares of the fitted one."""
    lines = max((row.label.count("\n") + 1 for row in rows), default=1)
    each = 0.36 if lines == 1 else 0.46
    figure, axes = new_figure(1, 1, height=0.55 + each * max(len(rows), 2), width=9.0)
    places = np.arange(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        low, high = row.intervals[0][0], row.intervals[-1][1]
        width = high - low
        start, end = ((x - low) / width for x in row.met)
        for piece in row.intervals:
            left, right = ((x - low) / width for x in piece)
            axes.barh(place, right - left, left=left, height=0.62, color="#dfe7ee", linewidth=0)
        color = MEASURED if row.inside else WRONG
        shown = max(min(start, 1.08), -0.08), max(min(end, 1.08), -0.08)
        axes.barh(
            place, max(shown[1] - shown[0], 0.002), left=shown[0], height=0.3, color=color, lw=0
        )
        _write_ends(axes, place, (low, high), row.met, shown)
    axes.set_yticks(places, [row.label for row in rows])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_xlim(-0.14, 1.14)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def ranges_of(ops: Sequence[OpRecord]) -> list[Met]:
    """The rows of `ranges` for the polynomials of a run."""
    rows = []
    for op in ops:
        if op.met is None or not op.domain or not math.isfinite(op.met[0]):
            continue
        label = f"{op.function}  ·  degree {op.degree}\n{_short(op.source)}"
        rows.append(Met(label, op.domain, op.met, inside=not op.outside))
    return rows


def seconds_by_kind(ops: Sequence[OpRecord], *, most: int = 9) -> Figure:
    """CPU seconds by kind of operation, the `most` expensive ones: measured, and predicted."""
    spent: defaultdict[str, float] = defaultdict(float)
    predicted: defaultdict[str, float] = defaultdict(float)
    for op in ops:
        spent[op.label] += op.seconds
        if op.predicted_seconds == op.predicted_seconds:
            predicted[op.label] += op.predicted_seconds
    rows = sorted((seconds, name) for name, seconds in spent.items() if seconds > 0)[-most:]
    figure, axes = new_figure(1, 1, height=1.1 + 0.27 * max(len(rows), 3), width=5.2)
    places = np.arange(len(rows), dtype=float)
    axes.barh(places, [s for s, _ in rows], color="#8fb3d1", height=0.66, label="measured")
    largest = max((s for s, _ in rows), default=1.0)
    if predicted:
        expected = [predicted.get(name, math.nan) for _, name in rows]
        axes.plot(expected, places, "|", color=PREDICTED, ms=11, mew=2, label="predicted")
        largest = max([largest, *(s for s in expected if s == s)])
    for place, (seconds, name) in enumerate(rows):
        end = max(seconds, predicted.get(name, 0.0))
        axes.text(end + 0.02 * largest, place, f"{seconds:.3g}", va="center", fontsize=8.5)
    axes.set_yticks(places, [name for _, name in rows])
    axes.set_xlim(0, 1.16 * largest)
    axes.set_xlabel("core-seconds")
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(False, axis="y")
    _legend(figure)
    return figure


def svg(name: str, make: Callable[[], Figure]) -> str:
    """A figure as an <svg> element for a page: nothing fetched, identifiers of its own.

    Args:
      name: unique on the page, put before all identifiers.
      make: draws the figure; called with the style of the pages.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = make()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # About its own size: a page scales it no further than it stays legible, and no larger.
    pixels = 96.0 * float(figure.get_size_inches()[0])
    size = f"min-width: {_LEAST * pixels:.0f}px; max-width: {1.1 * pixels:.0f}px"
    text = text.replace("<svg ", f'<svg style="{size}" ', 1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)


def new_figure(
    rows: int,
    columns: int,
    *,
    height: float,
    width: float = 10.5,
    heights: tuple[float, ...] | None = None,
    sharex: bool = False,
) -> tuple[Figure, Any]:
    """A Figure of no window and its axes; sizes in inches, `heights` relative ones of the rows."""
    from approx.choice.figures import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    ratios = {"height_ratios": heights} if heights else None
    return figure, figure.subplots(rows, columns, sharex=sharex, gridspec_kw=ratios)


def _width(operations: int) -> float:
    """Inches: few operations fit a phone, many have room for their names."""
    if operations <= _NARROW:
        return 5.6
    return max(min(3.2 + 0.3 * operations, 10.5), 1.5 + 0.155 * min(operations, _NAMED))


def _legend(figure: Figure) -> None:
    """Above the panels, where it covers nothing; only of what was drawn."""
    entries = sum(len(axes.get_legend_handles_labels()[1]) for axes in figure.axes)
    if entries:
        narrow = figure.get_size_inches()[0] < 8.0
        figure.legend(loc="outside upper right", ncols=2 if narrow else entries)


def _draw_errors(axes: Axes, ops: Sequence[OpRecord], encrypted: bool) -> None:
    judged = [(k, op) for k, op in enumerate(ops) if op.judged and op.predicted_std > 0]
    if judged:
        axes.vlines(
            [k for k, _ in judged],
            [max(op.low, op.predicted_std / 64.0) for _, op in judged],
            [op.high for _, op in judged],
            color=PREDICTED,
            alpha=0.3,
            linewidth=5,
            label="prediction interval",
        )
    compared = [op for op in ops if op.measured_std == op.measured_std]
    predicted = _positive(
        op.predicted_std if op.measured_std == op.measured_std else math.nan for op in ops
    )
    if np.any(predicted > 0):
        axes.plot(predicted, "_", ms=9, mew=2, color=PREDICTED, label="predicted by simulation")
    name = "measured, encrypted" if encrypted else "measured, plain vectors"
    within = _positive(math.nan if op.excess_bits else op.measured_std for op in ops)
    outside = _positive(op.measured_std if op.excess_bits else math.nan for op in ops)
    if np.any(within > 0):
        axes.plot(within, "o", ms=4.5, color=MEASURED, label=name)
    if np.any(outside > 0):
        axes.plot(outside, "D", ms=5, color=WRONG, label=f"{name}, outside")
    if any(x > 0 for op in compared for x in (op.measured_std, op.predicted_std)):
        axes.set_yscale("log", base=2)
    axes.set_ylabel("std of the error")


def _draw_ratios(axes: Axes, ops: Sequence[OpRecord]) -> None:
    axes.axhspan(1 / 1.5, 1.5, color=WASH, linewidth=0)
    axes.axhline(1.0, color=MUTED, linewidth=0.8)
    axes.plot(_positive(op.ratio for op in ops), "o", ms=3.2, color=THIRD)
    axes.set_yscale("log", base=2)
    axes.set_ylabel("measured /\npredicted")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.4), max(high, 2.5))


def _draw_levels(axes: Axes, ops: Sequence[OpRecord], levels: int) -> None:
    places = np.arange(len(ops))
    found = np.array([op.level if op.level >= 0 else math.nan for op in ops])
    axes.vlines(places, -0.3, found, color="#c4d8e8", linewidth=2)
    axes.plot(places, found, "o", ms=4, color=MEASURED)
    refreshed = [k for k, op in enumerate(ops) if op.refreshes]
    if refreshed:
        axes.plot(
            refreshed,
            np.full(len(refreshed), levels + 0.45),
            "v",
            ms=5,
            color=THIRD,
            label="ciphertexts refreshed for it",
        )
    axes.set_ylim(-0.3, levels + 0.8)
    axes.set_yticks(_level_ticks(levels))
    axes.set_ylabel("level of\nthe result")


def _level_ticks(levels: int) -> range:
    return range(0, levels + 1, max(1, math.ceil(levels / 8)))


def _name_operations(axes: Axes, ops: Sequence[OpRecord]) -> None:
    """Names under the last panel; where there are too many, those that matter to levels."""
    axes.set_xlim(-1, len(ops))
    named = list(range(len(ops)))
    if len(ops) > _NAMED:
        named = _spread(ops)
        axes.set_xlabel("operation, in program order (polynomials and refreshed ones are named)")
    labels = [f"{k}  {ops[k].function or ops[k].name}" for k in named]
    if len(ops) <= _UPRIGHT:
        axes.set_xticks(named, labels, rotation=30, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(named, labels, rotation=90, fontsize=7)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    for label, k in zip(axes.get_xticklabels(), named, strict=True):
        if ops[k].function:
            label.set_color(INK)
            label.set_fontweight("bold")


def _spread(ops: Sequence[OpRecord]) -> list[int]:
    """Polynomials, then what ciphertexts were refreshed for, as far as their names do not meet."""
    room = len(ops) / _NAMED
    chosen: list[int] = []
    some = [k for k, op in enumerate(ops) if op.function]
    some += [k for k, op in enumerate(ops) if op.refreshes and not op.function]
    for k in some or range(len(ops)):
        if all(abs(k - other) >= room for other in chosen):
            chosen.append(k)
    return sorted(chosen)


def _write_ends(
    axes: Axes,
    place: float,
    fitted: tuple[float, float],
    met: tuple[float, float],
    shown: tuple[float, float],
) -> None:
    """Numbers at both ends of both bars; those of what was met beside it where it is short."""
    outer = min(0.0, shown[0]), max(1.0, shown[1])
    for x, value, side in (
        (outer[0] - 0.012, fitted[0], "right"),
        (outer[1] + 0.012, fitted[1], "left"),
    ):
        axes.text(x, place, f"{value:.3g}", ha=side, va="center", color=MUTED, fontsize=8.5)
    roomy = shown[1] - shown[0] > 0.14
    style: dict[str, Any] = {"va": "center", "fontsize": 7.5, "fontweight": "bold"}
    if roomy:
        axes.text(shown[0] + 0.008, place, f"{met[0]:.3g}", ha="left", color="white", **style)
        axes.text(shown[1] - 0.008, place, f"{met[1]:.3g}", ha="right", color="white", **style)
        return
    text = f"{met[0]:.3g} to {met[1]:.3g}"
    right = shown[1] < 0.8
    x = shown[1] + 0.008 if right else shown[0] - 0.008
    axes.text(x, place, text, ha="left" if right else "right", color=INK, **style)


def _short(source: str) -> str:
    return source.rsplit("/", 1)[-1]


def _positive(values: Any) -> np.ndarray:
    """Values for a logarithmic axis: NaN where there is nothing to draw."""
    array = np.array([float(v) for v in values])
    return np.where((array > 0) & np.isfinite(array), array, np.nan)
