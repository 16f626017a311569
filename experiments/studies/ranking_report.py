"""A ranking study shown: a table by group, what agrees, a CSV, and simulated against encrypted."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from experiments.console import make_console
from experiments.studies.ranking import GUESSES, Ranked, agreement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["agreement_table", "plot", "table", "text", "write_csv"]


def table(results: Sequence[Ranked]) -> Table:
    """A row a variant, the smallest encrypted error of a group first."""
    out = Table(
        title="error of the logits (+- bits), share of the sentences that are right (+- points), "
        "and share of the batches that the client refused"
    )
    for name in ("scale", "variant"):
        out.add_column(name)
    for name in ("simulated", "encrypted", "twin", "simulated", "encrypted", "refused"):
        out.add_column(name, justify="right")
    last = None
    for r in sorted(results, key=lambda r: (-r.variant.scale_bits, r.encrypted_error)):
        scale = f"2^{r.variant.scale_bits}"
        if last not in (None, scale):
            out.add_section()
        out.add_row(
            "" if scale == last else scale,
            r.variant.name,
            f"2^{np.log2(r.simulated_error):.2f} +- {r.simulated_bits:.2f}",
            f"2^{np.log2(r.encrypted_error):.2f} +- {r.encrypted_bits:.2f}",
            f"{r.twin_score:.1%}",
            f"{r.simulated_score:.1%} +- {100 * r.simulated_points:.1f}",
            f"{r.encrypted_score:.1%} +- {100 * r.encrypted_points:.1f}",
            f"{r.simulated_lost:.0%} / {r.encrypted_lost:.0%}",
        )
        last = scale
    return out


def agreement_table(results: Sequence[Ranked]) -> Table:
    """Rank correlations by group and overall: of the simulation's errors and scores, and of guesses
    without a simulation, with the encrypted ones. Beside them what a simulator without any fault
    would reach with as few keys: the median, and what 95 % of its repetitions exceed.
    """
    out = Table(title="Spearman correlation with the encrypted error, and with the score")
    names = ("group", "error", "reachable", "score", "reachable", "furthest", "missed")
    for name in (*names, *(f"by {guess}" for guess in GUESSES)):
        out.add_column(name, justify="left" if name == "group" else "right")
    for name, found in agreement(results).items():
        out.add_row(
            name,
            f"{found['error']:.3f}",
            f"{found['error reachable']:.3f} (> {found['error at least']:.3f})",
            f"{found['score']:.3f}",
            f"{found['score reachable']:.3f} (> {found['score at least']:.3f})",
            f"{found['bits']:.2f} bit",
            f"{found['missed']:.0f}",
            *(f"{found[guess]:.3f}" for guess in GUESSES),
        )
    return out


def text(results: Sequence[Ranked]) -> str:
    """Both tables, as wide as they are."""
    out = io.StringIO()
    console = make_console(file=out, width=140)
    console.print(table(results))
    console.print(agreement_table(results))
    return out.getvalue()


def write_csv(results: Sequence[Ranked], path: str | Path) -> None:
    """A line a variant with all its settings and figures."""
    rows: list[dict[str, Any]] = []
    for found in results:
        figures = dataclasses.asdict(found)
        rows.append(figures.pop("variant") | figures)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot(results: Sequence[Ranked]) -> Figure:
    """Simulated against encrypted: errors on the left, scores on the right, a colour a scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    errors, scores = figure.subplots(1, 2)
    for bits in sorted({r.variant.scale_bits for r in results}, reverse=True):
        group = [r for r in results if r.variant.scale_bits == bits]
        label = f"scale $2^{{{bits}}}$"
        errors.loglog(
            [r.simulated_error for r in group], [r.encrypted_error for r in group], "o", label=label
        )
        x, y, dx, dy = (
            [getattr(r, f"{side}_{name}") for r in group]
            for name in ("score", "points")
            for side in ("simulated", "encrypted")
        )
        unknown = np.isinf(dx) | np.isinf(dy)
        scores.errorbar(x, y, np.where(unknown, 0.0, dy), np.where(unknown, 0.0, dx), fmt="o")
    for axes, title in ((errors, "error of the logits"), (scores, "share right")):
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="grey", linewidth=0.8, zorder=0)
        axes.set_xlabel("simulated")
        axes.set_ylabel("encrypted")
        axes.set_title(title)
        axes.grid(True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure
