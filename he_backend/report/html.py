"""A Report as one self-contained HTML page: figures embedded as SVG, no script, nothing fetched."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from he_backend.report import figures
from he_backend.report.intervals import CONFIDENCE
from he_backend.report.verdict import percent
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from he_backend.report.report import OpRecord, Report

__all__ = [
    "Check",
    "Row",
    "body",
    "error_figure",
    "key_row",
    "page",
    "power_of_two",
    "refreshed",
    "render",
]

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Row:
    """A figure with its name, and what one should know about it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Check:
    """A statement about a run. A broken `guarantee` fails the run; the others are reported."""

    name: str
    passed: bool
    detail: str
    guarantee: bool = True


def render(
    template: str,
    drawings: Mapping[str, Callable[[], Figure]],
    *folders: str | Path,
    **values: Any,
) -> str:
    """A page from a template that may extend `base.html` and import `parts.html`.

    Args:
      template: name of the file.
      drawings: functions that draw the page's figures, by the names that the template knows.
      folders: where templates are looked for before the backend's own.
      values: what the template reads, `title`, `cards` and `environment` among them.

    Raises:
      jinja2.UndefinedError: the template reads a value that is not there.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["powers"] = _powers
    environment.filters["scientific"] = lambda v: f"{v:.1e}" if v == v else "–"
    environment.filters["short"] = lambda v: f"{v:.4g}" if math.isfinite(v) else "–"
    environment.filters["fixed"] = lambda v, digits=2: f"{v:.{digits}f}" if v == v else "–"
    drawn = {name: Markup(figures.svg(name, make)) for name, make in drawings.items()}
    return environment.get_template(template).render(figures=drawn, **values)


def page(report: Report) -> str:
    """The whole page of a run as text."""
    subject = report.subject
    return render(
        "run.html",
        _drawings(report),
        title=_title(report),
        subject=subject,
        environment=subject.environment if subject is not None else None,
        backend=report.backend,
        log_n=report.params.log_n,
        security=report.params.security,
        cards=_cards(report),
        warnings=_warnings(report),
        **body(
            report.ops,
            vars(report.ledger),
            encrypted=report.encrypted,
            compared=report.compared,
            refreshes=report.refreshes,
            rounds=report.refresh_rounds,
            refresher=report.refresher,
            checks=_checks(report),
            groups=_groups(report),
            listing=subject.listing if subject is not None else "",
        ),
    )


def body(
    ops: Sequence[OpRecord],
    ledger: Mapping[str, Any],
    *,
    encrypted: bool,
    refreshes: int,
    rounds: int,
    checks: Sequence[Check],
    groups: Sequence[tuple[str, Sequence[Row]]],
    listing: str,
    refresher: Refresher = KEY_HOLDER,
    compared: bool = True,
) -> dict[str, Any]:
    """What the body of `run.html`, and of pages that extend it, reads.

    Args:
      ops: of the run. ledger: the Circuit's, by name.
      encrypted: whether anything was. compared: whether operations were decrypted and compared.
      refreshes, rounds: ciphertexts refreshed, and how many of these follow each other.
      refresher: who refreshed.
      checks: statements about the run. groups: its figures by subject.
      listing: the Program, one line an operation; empty if it is not known.
    """
    return {
        "ops": ops,
        "ledger": {k: v for k, v in ledger.items() if k != "operations"},
        "ledger_rows": ledger.get("operations") or [],
        "encrypted": encrypted,
        "compared": compared,
        "refreshes": refreshes,
        "rounds": rounds,
        "refresher": refresher,
        "checks": checks,
        "groups": groups,
        "listing": listing,
        "confidence": percent(CONFIDENCE),
    }


def error_figure(report: Report) -> Figure:
    """A matplotlib Figure: measured std of every operation over its prediction interval, log scale.

    Those that leave it are red, the first one is named.
    """
    return figures.errors(report.ops, report.encrypted)


def power_of_two(value: float) -> str:
    """A positive number as a power of two, "2^-20.3"; whole exponents without decimals."""
    if not value > 0:
        return "0"
    exponent = math.log2(value)
    return f"2^{exponent:.0f}" if exponent == round(exponent) else f"2^{exponent:.1f}"


def _powers(text: str) -> Any:
    """Text with every 2^x as a superscript."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\^(-?[\d.]*\d)", r"<sup>\1</sup>", str(escape(text))))


def _drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    ops, levels = report.ops, report.params.levels
    found: dict[str, Callable[[], Figure]] = {
        "seconds_by_kind": lambda: figures.seconds_by_kind(ops)
    }
    if report.compared:
        along = lambda: figures.errors_and_levels(ops, levels, report.encrypted)
        found["errors_and_levels"] = along
    else:
        found["levels"] = lambda: figures.levels_of(ops, levels)
    met = figures.ranges_of(ops)
    if met:
        found["ranges"] = lambda: figures.ranges(met)
    return found


def _title(report: Report) -> str:
    name = report.subject.name if report.subject is not None else "A program"
    how = "encrypted" if report.encrypted else "on plain vectors (nothing was encrypted)"
    return f"{name}, {how}"


def _cards(report: Report) -> list[tuple[str, str, str]]:
    """(figure, name, note) of what a reader wants to know first."""
    error, ledger = report.max_error, report.ledger
    cards = [(f"{error:.1e}", "largest error of the outputs", power_of_two(error))]
    if report.exact is None:
        cards = [("–", "largest error of the outputs", "not checked")]
    if report.compared:
        judged = sum(op.judged for op in report.ops)
        outside = sum(bool(op.excess_bits) for op in report.ops)
        note = f"{outside} outside their predictions" if outside else "all as predicted"
        if not outside and report.as_predicted is False:
            note = "not as predicted, all together"
        cards.append(
            (f"{judged} of {len(report.ops)}", "operations judged", note if judged else "")
        )
    predicted = f"{ledger.seconds:.2g} predicted" if report.encrypted else "nothing encrypted"
    cards.append(
        (
            f"{report.seconds:.3g} s",
            "wall clock",
            f"{report.key_seconds:.2g} s for keys; {report.core_seconds:.2g} core-seconds, "
            f"{predicted}",
        )
    )
    cards.append(_refreshing(report))
    cards.append(
        (
            f"{report.peak_bytes / 1e9:.2g} GB",
            "peak memory",
            f"keys {ledger.key_bytes / 1e6:.0f} MB, {ledger.rotation_keys} rotations",
        )
    )
    return cards


def _refreshing(report: Report) -> tuple[str, str, str]:
    if not report.refreshes:
        return ("none", "refreshes", "the key holder was not needed")
    if report.interactive:
        return (f"{report.refresh_rounds}", "refresh rounds", f"{report.refreshes:,} ciphertexts")
    note = f"{report.refresh_rounds:,} in sequence; no round trip to the key holder"
    return (f"{report.refreshes:,}", "bootstraps", note)


def key_row(refresher: Refresher, refreshes: int, rotations: int, nbytes: int) -> Row:
    """The row of a table that says which evaluation keys there are, and their bytes."""
    boots = " + bootstraps" if refreshes and not refresher.interactive else ""
    value = f"{rotations} rotations + relinearization{boots}"
    return Row("keys", value, f"{nbytes / 1e6:,.0f} MB")


def refreshed(refresher: Refresher, refreshes: int, rounds: int) -> list[Row]:
    """The rows of a table that say what was refreshed, by whom.

    refreshes: ciphertexts. rounds: how many refreshes follow each other.
    """
    if refresher.interactive:
        return [
            Row("refresh rounds", f"{rounds:,}", "round trips to the key holder, in sequence"),
            Row("refreshed ciphertexts", f"{refreshes:,}"),
        ]
    return [
        Row("round trips to the key holder", "none", "between encryption and decryption"),
        Row("bootstraps", f"{refreshes:,}", f"{rounds:,} in sequence; {refresher.name}"),
    ]


def _checks(report: Report) -> list[Check]:
    found = []
    if report.compared:
        verdict, sound = report.verdict(), report.as_predicted
        if report.first_unpredicted is not None:
            found.append(
                Check("an operation is not as far from exact as predicted", False, verdict)
            )
        elif sound is False:
            found.append(Check("errors as a whole are not as predicted", False, verdict))
        else:
            found.append(Check("errors are as predicted", bool(sound), verdict, sound is not None))
    inside = not report.outside
    count = len(report.outside)
    detail = "" if inside else f"{count} {'warning' if count == 1 else 'warnings'}, below"
    found.append(Check("values lay where they were fitted and calibrated", inside, detail, False))
    return found


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


def _groups(report: Report) -> list[tuple[str, list[Row]]]:
    """What a run was and cost, by subject."""
    p, ledger = report.params, report.ledger
    security = "security check off" if p.security is None else f"{p.security}-bit security"
    primes = f"first prime {p.first_bits} bits, scale {p.scale_bits}, special {p.special_bits}"
    precision = _precision(report)
    levels = [
        Row(
            "ring", f"N = 2^{p.log_n}, {p.levels} levels", f"log2(QP) = {p.log_qp:.0f}, {security}"
        ),
        Row("primes", primes),
        Row("levels between refreshes", f"at most {ledger.levels}"),
        *refreshed(report.refresher, report.refreshes, report.refresh_rounds),
    ]
    if report.subject is not None:
        depth = Row("levels of the program", str(report.subject.depth), "on its longest path")
        levels.insert(2, depth)
    how = "encrypted evaluation" if report.encrypted else "evaluation on plain vectors"
    spent = [
        Row(how, f"{report.evaluation_seconds:.2f} s", "wall clock, all attempts"),
        Row("making keys", f"{report.key_seconds:.2f} s", _keys_predicted(report)),
        Row("core-seconds", f"{report.core_seconds:.2f}", "measured, workers and clients together"),
        Row("core-seconds predicted", f"{ledger.seconds:.2f}", f"by {ledger.costs or 'estimate'}"),
    ]
    if report.refresher.interactive:
        bootstrapped = f"{report.bootstrapped_seconds:,.1f}"
        note = f"{BOOTSTRAP_SECONDS:g} s a ciphertext, on this very plan"
        spent.append(Row("core-seconds, refreshes as bootstraps", bootstrapped, note))
    memory = [
        Row("peak memory", f"{report.peak_bytes / 1e9:.2f} GB", "all processes, each at its peak"),
        Row(
            "peak memory predicted",
            f"{report.predicted_peak_bytes / 1e9:.2f} GB" if report.encrypted else "–",
        ),
        key_row(report.refresher, report.refreshes, ledger.rotation_keys, ledger.key_bytes),
    ]
    work = [Row(name.replace("_", " "), f"{n:,}") for name, n in report.counts.items() if n]
    work.append(Row("tasks", f"{report.tasks:,}", f"{report.skipped:,} were done before"))
    work.append(Row("workers replaced", str(report.replaced)))
    return [
        ("Precision of the outputs", precision),
        ("Levels and refreshes", levels),
        ("Time", spent),
        *([("The whole call, wall clock", _phases(report))] if report.phases else []),
        ("Memory and keys", memory),
        ("Operations on ciphertexts, counted", work),
    ]


def _precision(report: Report) -> list[Row]:
    error, overall = report.max_error, report.overall
    rows = [Row("largest error", f"{error:.2e} = {power_of_two(error)}", "against exact float64")]
    if report.exact is None:
        rows = [Row("largest error", "–", "not checked")]
    if overall is not None:
        rows.append(
            Row(
                "errors against predicted",
                f"{round(overall.bits, 2) + 0.0:+.2f} bits",
                f"of all operations together; a sound run stays within ±{overall.margin:.2f}",
            )
        )
    return rows


def _keys_predicted(report: Report) -> str:
    expected = report.ledger.key_seconds
    return f"{expected:.2f} core-seconds predicted" if report.encrypted and expected else ""


def _phases(report: Report) -> list[Row]:
    # What was expected of a phase is in brackets.
    return [
        Row(name.split(" (", 1)[0], f"{seconds:.2f} s") for name, seconds in report.phases.items()
    ]
