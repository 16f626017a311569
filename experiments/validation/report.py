"""The report of a demo as one HTML page: figures inline, no script, nothing fetched."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from experiments.validation.plots import FIGURES
from experiments.validation.results import Results, bits
from experiments.validation.table import groups, ways
from he_backend.report.html import body, render

__all__ = ["page", "write_report"]


def write_report(results: Results, path: str | Path) -> Path:
    """Write the page and return its path; it replaces an older one as a whole.

    Args:
      results: of a finished run.
      path: of the page; its folder is made if absent.

    Raises:
      OSError: the page cannot be written.

    Examples:
      >>> import tempfile
      >>> from experiments import Results, RunFolder, Settings, write_report
      >>> folder = RunFolder.claim(tempfile.mkdtemp(), Settings())
      >>> write_report(Results.load(folder), folder.path / "report.html")  # nothing has run yet
      Traceback (most recent call last):
          ...
      experiments.errors.ExperimentError: ...
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + ".new")
    beside.write_text(page(results), encoding="utf-8")
    return beside.replace(target)


def page(results: Results) -> str:
    """The whole page as text."""
    ring = results.plan["ring"]
    return render(
        "report.html",
        {
            name: functools.partial(make, results)
            for name, make in FIGURES.items()
            if results.history or name != "learning_curve"
        },
        Path(__file__).parent / "templates",
        r=results,
        title=_title(results),
        cards=_cards(results),
        subject=None,
        backend=str(results.batches[0].get("backend", "pyfhel")),
        log_n=ring["log_n"],
        security=ring["security"],
        warnings=results.outside,
        ways=ways(results),
        **body(
            results.ops,
            results.plan["ledger"],
            encrypted=results.was_encrypted,
            refreshes=results.total("refreshes"),
            rounds=results.total("refresh_rounds"),
            refresher=results.refresher,
            checks=results.checks,
            groups=groups(results),
            listing=results.plan["listing"],
        ),
        command=_command(results),
        environment=results.environment,
    )


def _title(results: Results) -> str:
    what = "encrypted" if results.was_encrypted else "on plain vectors (nothing was encrypted)"
    return f"{results.sentences:,} {results.rows} through a transformer, {what}"


def _cards(results: Results) -> list[tuple[str, str, str]]:
    """(figure, name, note) of what a reader wants to know first."""
    every = ways(results)
    kept = "encrypted" if results.was_encrypted else "on plain vectors"
    seconds = results.seconds_a_sentence
    cards = [
        (every[3].score, f"{results.metric} {kept}", f"{every[0].score} with exact functions"),
        (
            f"{bits(results.measured_std):.1f} bits",
            f"precision of the {results.answers}",
            f"{bits(results.predicted_std):.1f} bits predicted",
        ),
        (
            f"{seconds:.2f} s",
            "a sentence" if results.answer == "logits" else "a pair",
            f"{results.seconds['evaluation']:.0f} s for {results.sentences:,} together",
        ),
        (
            f"{results.peak_bytes / 1e9:.1f} GB",
            "peak memory",
            f"keys {int(results.plan['ledger']['key_bytes']) / 1e6:.0f} MB",
        ),
    ]
    if not results.regression:
        cards.insert(1, (f"{results.agreement:.1%}", "labels agree", "with the polynomial model's"))
    return cards


def _command(results: Results) -> str:
    settings: dict[str, Any] = results.settings
    if "command" in settings:
        return str(settings["command"])
    parts = ["hesim demo"]
    if settings["data"] != "reviews":
        parts.append(f"--data {settings['data']}")
    parts.append(f"--sentences {settings['sentences']}")
    parts.append(f"--seed {settings['seed']}")
    return " ".join(parts)
