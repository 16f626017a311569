"""The table that ends a demo: the same sentences four ways, how precise, and what it cost.

One list of rows serves the terminal and the page, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from experiments.validation import bootstrapped
from experiments.validation.results import COSINE_ERROR, LOGIT_ERROR, Results, bits
from he_backend.report.html import Row, key_row, power_of_two, refreshed
from hesim.circuit.refresher import BOOTSTRAP_SECONDS

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Ways", "groups", "render", "ways"]


@dataclass(frozen=True)
class Ways:
    """One way of running the model: score on the encrypted sentences and on all held-out ones,
    share of labels equal to the polynomial model's, largest difference of a logit from its.
    """

    name: str
    score: str
    held_out: str
    agreement: str
    difference: str


def ways(results: Results) -> list[Ways]:
    """Exact, polynomial, simulated and encrypted, on the same sentences; and some of these
    bootstrapped, if that was run.
    """
    n = results.sentences
    last = "encrypted" if results.was_encrypted else "plain vectors (nothing encrypted)"
    rows = [
        ("exact functions, in the clear", results.exact[:n], results.exact),
        ("polynomials, in the clear", results.reference, results.polynomial),
        ("polynomials, simulated noise (nothing encrypted)", results.simulated, None),
        (f"polynomials, {last}", results.encrypted, None),
    ]
    out = []
    for name, logits, everything in rows:
        same = np.mean(logits.argmax(-1) == results.reference.argmax(-1))
        reference = logits is results.reference
        out.append(
            Ways(
                name,
                _score(results, logits),
                "" if everything is None else _score(results, everything),
                "" if reference or not results.labelled else f"{same:.1%}",
                "" if reference else f"{np.max(np.abs(logits - results.reference)):.1e}",
            )
        )
    beside = results.bootstrapped
    if beside is not None and not beside.reason:
        same = np.mean(beside.encrypted.argmax(-1) == beside.reference.argmax(-1))
        agreement = f"{same:.1%}" if results.labelled else ""
        score = _score(results, beside.encrypted)
        out.append(Ways(beside.name, score, "", agreement, f"{beside.max_error:.1e}"))
    return out


def groups(results: Results) -> list[tuple[str, list[Row]]]:
    """The rest of the table, by subject."""
    beside = results.bootstrapped
    seeds = [("Models in the clear", [_seeds(results)])] if len(results.seeds) > 1 else []
    return [
        *seeds,
        (f"Precision of the {results.answers}", _precision(results)),
        ("Levels and refreshes", _levels(results)),
        ("Time", _time(results)),
        ("Memory and keys", _memory(results)),
        *([("Without a key holder", bootstrapped.rows(beside))] if beside is not None else []),
    ]


def _seeds(r: Results) -> Row:
    exact, polynomial = (_percent(r, r.mean_score(kind)) for kind in ("exact", "polynomial"))
    label = f"held-out {r.metric}, mean of {len(r.seeds)}"
    return Row(label, exact, f"exact functions; {polynomial} with polynomials, in the clear")


def _precision(r: Results) -> list[Row]:
    most = COSINE_ERROR if r.answer == "cosine" else LOGIT_ERROR
    limit = f"limit {power_of_two(most)}, against polynomials in float64"
    rows = [Row("largest error", f"{r.max_error:.2e} = {power_of_two(r.max_error)}", limit)]
    known = not math.isnan(r.predicted_std)
    for name, std, how in (
        ("measured", r.measured_std, ""),
        ("predicted", r.predicted_std, ", by simulation"),
    ):
        label = f"standard deviation, {name}"
        if known or name == "measured":
            rows.append(Row(label, f"{std:.2e}", f"{bits(std):.1f} bits{how}"))
        else:
            rows.append(Row(label, "-", "not predicted, since nothing was compared"))
    if r.was_encrypted and known:
        rows.append(Row("measured over predicted", f"{r.ratio:.2f}"))
    return rows


def _levels(r: Results) -> list[Row]:
    ring, ledger = r.plan["ring"], r.plan["ledger"]
    security = f"{ring['security']}-bit security" if ring["security"] else "no security"
    return [
        Row(
            "ring",
            f"N = 2^{ring['log_n']}, {ring['levels']} levels",
            f"log2(QP) = {ring['log_qp']:.0f}, {security}",
        ),
        Row("levels of the program", str(r.plan["depth"]), "on its longest path"),
        Row(
            "levels between refreshes",
            f"at most {ledger.get('levels', ledger['depth'])}",
        ),
        *refreshed(r.refresher, r.total("refreshes"), r.total("refresh_rounds")),
    ]


def _time(r: Results) -> list[Row]:
    rows = [Row(name, f"{seconds:.1f} s") for name, seconds in r.seconds.items()]
    core = sum(float(b["core_seconds"]) for b in r.batches)
    predicted = float(r.plan["ledger"]["seconds"]) * len(r.batches)
    how = "encrypted evaluation" if r.was_encrypted else "evaluation on plain vectors"
    told = any(batch.get("compared", True) for batch in r.batches)
    note = "wall clock" + ("; results of every operation were decrypted to compare" if told else "")
    note = note if r.was_encrypted else ""
    place = list(r.seconds).index("evaluation")
    one = "sentence" if r.answer == "logits" else "pair"
    rows[place] = Row(how, f"{r.seconds['evaluation']:.1f} s", note)
    rows += [
        Row(f"a {one}, amortised", f"{r.seconds_a_sentence:.2f} s", "evaluation only"),
        Row("core-seconds as run", f"{core:.0f}", f"{predicted:.0f} predicted for encryption"),
    ]
    if r.refresher.interactive:
        note = f"{BOOTSTRAP_SECONDS:g} s a ciphertext, on this very plan"
        label = "core-seconds, refreshes as bootstraps"
        rows.append(Row(label, f"{r.bootstrapped_seconds:,.0f}", note))
    return rows


def _memory(r: Results) -> list[Row]:
    ledger = r.plan["ledger"]
    return [
        Row("peak memory", f"{r.peak_bytes / 1e9:.2f} GB", "all processes, each at its peak"),
        key_row(r.refresher, ledger["refreshes"], ledger["rotation_keys"], ledger["key_bytes"]),
        Row("workers replaced", str(sum(int(b["replaced"]) for b in r.batches))),
    ]


def render(results: Results, *, notes: bool = True) -> RenderableType:
    """The whole table for a terminal; `notes` wants a hundred columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    same = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    same.add_column(f"the same {results.sentences} held-out {results.rows}")
    same.add_column(results.metric, justify="right")
    same.add_column(f"all {len(results.labels):,} held out", justify="right")
    if results.labelled:
        same.add_column("labels as\npolynomial", justify="right")
    same.add_column(f"largest {results.answer.removesuffix('s')}\ndifference", justify="right")
    for way in ways(results):
        style = "bold" if way.name.endswith("encrypted") else ""
        agreement = (way.agreement,) if results.labelled else ()
        cells = (way.name, way.score, way.held_out, *agreement, way.difference)
        same.add_row(*cells, style=style)
    rest = Table(box=None, show_header=False, pad_edge=False)
    rest.add_column(no_wrap=True)
    rest.add_column(no_wrap=True)
    rest.add_column(style="dim")
    for title, rows in groups(results):
        rest.add_row(Text(title, style="bold"))
        for row in rows:
            rest.add_row("  " + row.label, row.value, row.note if notes else "")
    verdicts = [
        Text.assemble(
            ("✓ " if check.passed else "✗ ", "green" if check.passed else "red"),
            check.name,
            (f"  ({check.detail})", "dim"),
        )
        for check in results.checks
    ]
    return Group(same, rest, Text(), *verdicts)


def _score(results: Results, logits: np.ndarray) -> str:
    return _percent(results, results.score(logits))


def _percent(results: Results, value: float) -> str:
    """Accuracy and F1 in per cent, correlations as they are."""
    return f"{value:.1%}" if results.metric in ("accuracy", "f1") else f"{value:.3f}"
