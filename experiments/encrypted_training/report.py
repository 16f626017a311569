"""What came of a rehearsal and of an encrypted training: a table, `report.json`, and a page."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from experiments.console import clock
from experiments.encrypted_training.rehearsing import REHEARSED
from experiments.validation.folder import RunFolder
from he_backend.report import figures
from he_backend.report.figures import MEASURED, PREDICTED, THIRD, new_figure
from he_backend.report.html import render
from hesim.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Found", "curves", "margins", "table", "write_report"]


@dataclasses.dataclass(frozen=True)
class Way:
    """One way in which the training was gone: its name; loss by step; scores on the validation and
    the held-out rows; whether it is finished.
    """

    name: str
    losses: dict[int, float]
    validation: dict[str, float] = dataclasses.field(default_factory=dict)
    test: dict[str, float] = dataclasses.field(default_factory=dict)
    finished: bool = True


@dataclasses.dataclass(frozen=True)
class Found:
    """All that a run folder holds of a training.

    Attributes:
      settings: of the job. plan: of a step. rehearsal: figures, empty without one.
      runs: figures of encrypted runs by name; measured: means of their steps, by name.
      ways: exact, simulated, and each run.
    """

    settings: dict[str, Any]
    plan: dict[str, Any]
    rehearsal: dict[str, Any]
    runs: dict[str, dict[str, Any]]
    measured: dict[str, dict[str, float]]
    ways: list[Way]

    @property
    def interactive(self) -> bool:
        """Whether the key holder refreshes."""
        return bool(self.plan.get("interactive", True))

    @classmethod
    def of(cls, folder: RunFolder) -> Found:
        """Read a folder. ExperimentError where something is damaged."""
        rehearsal = folder.figures(REHEARSED) if folder.done(REHEARSED) else {}
        rows = _metrics(folder.path / "rehearsal")
        ways = []
        if rows:
            both = rehearsal.get("validation", {})
            ways = [
                Way("exact", _column(rows, "exact_loss"), _scores(both, "exact_")),
                Way("simulated", _column(rows, "loss"), _scores(both, "")),
            ]
        runs, measured = {}, {}
        for name, place in _runs(folder):
            rows = _metrics(place)
            runs[name] = folder.figures(name) if folder.done(name) else {}
            own = runs[name]
            validation, test = own.get("validation", {}), own.get("test", {})
            ways.append(Way(_label(name), _column(rows, "loss"), validation, test, bool(own)))
            beside = _column(rows, "exact_loss")
            if beside and not any(way.name == "exact" for way in ways):
                ways.insert(0, Way("exact", beside))
            if "exact_test" in own:
                exact = next(way for way in ways if way.name == "exact")
                known = dataclasses.replace(
                    exact, validation=own["exact_validation"], test=own["exact_test"]
                )
                ways[ways.index(exact)] = known
            measured[name] = {
                figure: sum(column.values()) / len(column)
                for figure in ("seconds", "core_seconds", "refreshes", "peak_bytes")
                if (column := _column(rows, figure))
            }
        return cls(folder.settings, folder.figures("plan"), rehearsal, runs, measured, ways)

    @property
    def warnings(self) -> list[str]:
        """What a reader must know: sites whose domain leaves little room."""
        return [f"little room at {line}" for line in self.rehearsal.get("thin", ())]

    @property
    def measures(self) -> list[str]:
        """The leading measure of the task, if anything was scored."""
        return list(next((w.validation for w in self.ways if w.validation), {}))[:1]

    def plain(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return dataclasses.asdict(self)


def _runs(folder: RunFolder) -> list[tuple[str, Path]]:
    """Encrypted runs of a folder, finished or not, with the folders of their figures."""
    found = [("encrypted", folder.path)] if (folder.path / "metrics.csv").exists() else []
    others = [*folder.path.glob("encrypted-from-*"), *folder.path.glob("plain*")]
    return found + sorted((p.name, p) for p in others if (p / "metrics.csv").exists())


def _label(name: str) -> str:
    """Of a run, for people."""
    return name.replace("plain", "on plain vectors").replace("-from-", ", from step ")


def _metrics(folder: Path) -> list[dict[str, str]]:
    try:
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def _column(rows: list[dict[str, str]], name: str) -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


def _scores(both: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Those of one of the two ways of a rehearsal."""
    exact = {n.removeprefix("exact_"): v for n, v in both.items() if n.startswith("exact_")}
    return exact if prefix else {n: v for n, v in both.items() if n in exact}


def _mean_loss(losses: Mapping[int, float], last: bool) -> float:
    """Over the first or the last tenth of the steps."""
    steps = sorted(losses)
    few = max(1, len(steps) // 10)
    chosen = steps[-few:] if last else steps[:few]
    return sum(losses[k] for k in chosen) / len(chosen) if chosen else math.nan


def table(found: Found) -> Table:
    """The ways beside each other: loss at the beginning and at the end, scores."""
    names = found.measures
    shown = Table(
        "", "steps", "first loss", "last loss", title="loss: means of a tenth of the steps"
    )
    for name in names:
        shown.add_column(f"{name}, validation")
        shown.add_column(f"{name}, held out")
    for way in found.ways:
        row = [f"{len(way.losses):,}"]
        row += [f"{_mean_loss(way.losses, last):.4f}" for last in (False, True)]
        for name in names:
            for scores in (way.validation, way.test):
                row.append(f"{scores[name]:.4f}" if name in scores else "–")
        shown.add_row(way.name, *row)
    return shown


def curves(found: Found) -> Figure:
    """Loss of every step, smoothed, of all ways in one plot."""
    figure, axes = new_figure(1, 1, height=3.4)
    styles = {"exact": (MEASURED, 4.0), "simulated": (PREDICTED, 2.4)}  # seen where they agree
    for way in found.ways:
        if not way.losses:
            continue
        color, width = styles.get(way.name, (THIRD, 1.0))
        steps = sorted(way.losses)
        losses = [way.losses[k] for k in steps]
        axes.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smoothed(losses), color=color, linewidth=width, label=way.name)
    axes.set_xlabel("step")
    axes.set_title("Loss of each step's batch, and its mean over the steps around it")
    axes.legend(loc="upper right")
    return figure


def _smoothed(values: list[float]) -> list[float]:
    half = max(0, len(values) // 20)
    return [
        sum(part) / len(part)
        for k in range(len(values))
        if (part := values[max(0, k - half) : k + half + 1])
    ]


def margins(found: Found) -> Figure:
    """Of every polynomial, its domain and what the rehearsal met."""
    rows = [
        figures.Met(row["name"], (tuple(row["domain"]),), tuple(row["met"]), row["room"] >= 0)
        for row in found.rehearsal["margins"]
    ]
    return figures.ranges(rows)


def write_report(found: Found, folder: RunFolder) -> Path:
    """Write `report.json` and `report.html`, whole; the page's path."""
    plain = json.dumps(found.plain(), indent=1, default=float)
    write_whole(folder.path / "report.json", plain.encode())
    target = folder.path / "report.html"
    write_whole(target, _page(found).encode())
    return target


def _page(found: Found) -> str:
    drawings = {"curves": lambda: curves(found)}
    if found.rehearsal:
        drawings["margins"] = lambda: margins(found)
    settings, plan = found.settings, found.plan
    rows = settings["settings"]["batch"]
    names = found.measures
    return render(
        "training.html",
        drawings,
        Path(__file__).parent / "templates",
        title=_title(found),
        cards=_cards(found),
        found=found,
        names=names,
        rows=rows,
        spent=_spent(found),
        errors=_errors(found),
        first=lambda way: _mean_loss(way.losses, False),
        last=lambda way: _mean_loss(way.losses, True),
        environment=plan["environment"],
    )


def _title(found: Found) -> str:
    task = str(found.settings["task"]).rsplit("/", 1)[-1]
    done = [name for name, run in found.runs.items() if run.get("encrypted")]
    what = "encrypted" if done else "rehearsed" if found.rehearsal else "on plain vectors"
    return f"Fine-tuning on {task}, {what}"


def _cards(found: Found) -> list[tuple[str, str, str]]:
    """(figure, name, note) of what a reader wants to know first."""
    cards = []
    for way in found.ways:
        if way.losses:
            note = f"from {_mean_loss(way.losses, False):.3f}, {len(way.losses):,} steps"
            cards.append((f"{_mean_loss(way.losses, True):.3f}", f"loss, {way.name}", note))
    ledger = found.plan["ledger"]
    for name, measured in found.measured.items():
        note = f"{ledger['seconds']:,.0f} core-seconds predicted"
        cards.append(
            (f"{measured.get('seconds', math.nan):,.0f} s", f"a step, {_label(name)}", note)
        )
    if not found.measured:
        hours = ledger["seconds"] * found.plan["steps"] / 3600
        cards.append(
            (f"{ledger['seconds']:,.0f} s", "of a core a step, predicted", f"{hours:.1f} h in all")
        )
    return cards


def _errors(found: Found) -> list[tuple[str, int, float | None, float | None, float | None]]:
    """(run, steps, predicted, its spread, measured) of what was trained, as log2; None where it is
    not known, or nothing differs.
    """

    def bits(run: Mapping[str, Any], name: str) -> float | None:
        return run[name] if math.isfinite(run.get(name, math.nan)) else None

    rows = []
    if found.rehearsal:
        own = found.rehearsal
        rows.append(("rehearsal", own["steps"], bits(own, "error_bits"), None, None))
    for name, run in found.runs.items():
        if run.get("encrypted") and "error_bits" in run:
            own = (bits(run, k) for k in ("predicted_bits", "predicted_spread", "error_bits"))
            rows.append((_label(name), run["steps"] - run["start"], *own))
    return rows


def _spent(found: Found) -> list[tuple[str, str, str]]:
    """(what, predicted, measured) of a step."""
    ledger = found.plan["ledger"]
    runs = list(found.measured.values())
    own = runs[0] if runs else {}
    refreshed = "ciphertexts refreshed by the key holder"
    if not found.interactive:
        refreshed = "ciphertexts bootstrapped by the server"

    def of(name: str, form: str = "{:,.0f}", unit: float = 1.0) -> str:
        return form.format(own[name] / unit) if name in own else "–"

    return [
        ("core-seconds a step", f"{ledger['seconds']:,.0f}", of("core_seconds")),
        ("seconds a step", "–", of("seconds")),
        (
            "time in all, one core",
            clock(ledger["seconds"] * found.plan["steps"]),
            "–",
        ),
        (refreshed, f"{ledger['refreshes']:,}", of("refreshes")),
        ("rounds of refreshes", f"{ledger['refresh_rounds']:,}", "–"),
        (
            "memory of all processes, GB",
            f"{ledger['peak_bytes'] / 1e9:.1f} in one that evaluates",
            of("peak_bytes", "{:.1f}", 1e9),
        ),
        ("keys, GB", f"{ledger['key_bytes'] / 1e9:.1f}", "–"),
        ("rotation keys", f"{ledger['rotation_keys']:,}", "–"),
    ]
