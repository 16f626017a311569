"""A Report as one self-contained HTML page: figures embedded as SVG, no script, nothing fetched."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from he_backend.report.report import Report

__all__ = ["error_figure", "level_figure", "page", "summary_rows"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child, td.text, th.text { text-align: left; }
td.text { font-family: ui-monospace, monospace; font-size: 12px; }
p.good { background: #e3f4e3; padding: .5rem .8rem; }
p.warning { background: #fff3cd; padding: .5rem .8rem; }
svg { max-width: 100%; height: auto; }
"""


def page(report: Report) -> str:
    """The whole page as text."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Encrypted run</title>"]
    parts.append(f"<style>{_STYLE}</style><h1>{_title(report)}</h1>")
    parts += [f"<p class=warning>{html.escape(message)}</p>" for message in _warnings(report)]
    parts.append(_table(("", ""), summary_rows(report)))
    if report.compared:
        parts.append("<h2>Error of each operation, measured and predicted</h2>")
        mark = "warning" if report.first_unpredicted else "good"
        parts.append(f"<p class={mark}>{html.escape(report.verdict())}</p>")
        parts.append(_svg(error_figure(report)))
        parts.append("<h2>Levels along the program</h2>")
        parts.append(_svg(level_figure(report)))
    parts.append("<h2>Operations</h2>")
    parts.append(_table(*_operations(report)))
    return "\n".join(parts)


def summary_rows(report: Report) -> list[tuple[str, str]]:
    """What a run was and cost, as (label, value) pairs."""
    p, ledger = report.params, report.ledger
    security = "security check off" if p.security is None else f"{p.security}-bit security"
    return [
        ("machine", report.backend),
        ("ring", f"N = 2^{p.log_n}, {p.levels} levels, log2(QP) = {p.log_qp:.0f}, {security}"),
        ("largest error of the outputs", f"{report.max_error:.3g}"),
        ("wall-clock seconds", f"{report.seconds:.2f}"),
        ("seconds for keys", f"{report.key_seconds:.2f}"),
        ("core-seconds, each refresh priced as a bootstrap", f"{report.bootstrapped_seconds:.1f}"),
        ("peak memory, all processes", f"{report.peak_bytes / 1e9:.2f} GB"),
        ("refreshed ciphertexts, rounds", f"{report.refreshes}, {report.refresh_rounds}"),
        (
            "rotation keys",
            f"{ledger.rotation_keys} ({ledger.key_bytes / 1e6:.0f} MB, relinearization included)",
        ),
        *((name.replace("_", " "), f"{count:,}") for name, count in report.counts.items()),
        ("tasks", f"{report.tasks}, of which {report.skipped} were done before"),
        ("workers replaced", str(report.replaced)),
    ]


def error_figure(report: Report):
    """A matplotlib Figure: measured std of every operation over its prediction interval, log scale.

    Those that leave it are red, the first one is named.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    places = np.arange(len(report.ops))
    judged = [k for k, op in enumerate(report.ops) if np.isfinite(op.high)]
    low = [max(report.ops[k].low, report.ops[k].predicted_std / 64.0) for k in judged]
    high = [report.ops[k].high for k in judged]
    axes.vlines(judged, low, high, color="C1", alpha=0.35, linewidth=4, label="interval")
    for name, values, style in (
        ("measured", [op.measured_std for op in report.ops], "o"),
        ("predicted", [op.predicted_std for op in report.ops], "_"),
    ):
        shown = np.array([v if v > 0 else np.nan for v in values])
        axes.semilogy(places, shown, style, label=name, markersize=6)
    left = [k for k, op in enumerate(report.ops) if op.excess_bits and op.measured_std > 0]
    axes.semilogy(
        left, [report.ops[k].measured_std for k in left], "o", color="C3", label="outside it"
    )
    first = report.first_unpredicted
    if first is not None:
        place = first.source.rsplit("/", 1)[-1]
        axes.set_title(f"first outside: {first.name}, {place}", fontsize=10)
    axes.set_xlabel("operation, in program order")
    axes.set_ylabel("std of the error")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper")
    return figure


def level_figure(report: Report):
    """A matplotlib Figure: level of every operation's result."""
    figure, axes = _figure()
    levels = [op.level if op.level >= 0 else np.nan for op in report.ops]
    axes.step(np.arange(len(levels)), levels, where="mid")
    axes.set_ylim(-0.2, report.params.levels + 0.5)
    axes.set_xlabel("operation, in program order")
    axes.set_ylabel("level")
    return figure


def _figure():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _title(report: Report) -> str:
    return "Encrypted run" if report.encrypted else "Run on plain vectors (nothing was encrypted)"


def _warnings(report: Report) -> list[str]:
    found = list(report.outside)
    if report.params.security is None:
        found.insert(0, "The security check was off: these parameters protect nothing.")
    if report.interactive:
        found.append(
            f"Interactive: the key holder refreshed {report.refreshes} ciphertexts in "
            f"{report.refresh_rounds} rounds. This is not a non-interactive evaluation."
        )
    return found


def _operations(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = (
        "operation",
        "level",
        "measured",
        "predicted",
        "ratio",
        "interval",
        "bits off",
        "q99.9",
        "predicted",
        "seconds",
        "source",
    )
    rows = [
        (
            op.name,
            str(op.level),
            f"{op.measured_std:.2e}",
            f"{op.predicted_std:.2e}",
            f"{op.ratio:.2f}",
            f"{op.low:.1e} to {op.high:.1e}" if np.isfinite(op.high) else "",
            f"{op.excess_bits:+.2f}" if op.excess_bits else "",
            f"{op.measured_q999:.2e}",
            f"{op.predicted_q999:.2e}",
            f"{op.seconds:.3f}",
            op.source,
        )
        for op in report.ops
    ]
    return head, rows


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        last = len(cells) - 1
        inner = "".join(
            f"<{tag}{' class=text' if k == last and last > 1 else ''}>{html.escape(cell)}</{tag}>"
            for k, cell in enumerate(cells)
        )
        return f"<tr>{inner}</tr>"

    top = line(head, "th") if any(head) else ""
    return "<table>" + top + "".join(line(row, "td") for row in rows) + "</table>"
