"""The folder of a trade-off study: a file a fine-tuning, row, cost, task and encrypted check.

study.json   what is the same for all of it       trained/KEY.npz    what was fine-tuned
asked.json   what the last call asked for         rows/*.json        see `Row`
spots/*.json encrypted runs                       costs/, tasks/     see `Cost`, `Task`
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import ExperimentError
from experiments.studies.tradeoff.jobs import Trained
from experiments.studies.tradeoff.knobs import KNOBS, Knobs
from experiments.studies.tradeoff.rows import Cost, Row, Spot, Task, read_all, save
from experiments.studies.tradeoff.settings import TradeoffStudy
from experiments.studies.tradeoff.statistics import Point, points_of
from hesim.files import write_whole

__all__ = ["KIND", "Results", "Store", "is_tradeoff", "load_results"]

KIND = "tradeoff"


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a folder holds. varied: knobs that were combined, and their values; paired: those of
    them whose values go together.
    """

    reference: Knobs
    varied: Mapping[str, tuple[Any, ...]]
    paired: tuple[str, ...]
    rows: tuple[Row, ...]
    costs: Mapping[str, Cost]
    tasks: Mapping[str, Task]
    spots: tuple[Spot, ...]
    points: tuple[Point, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The knobs that were combined, one of each pair."""
        return tuple(name for name in self.varied if name not in self.paired[1:])

    def combined(self, task: str) -> list[Point]:
        """The points of a task that are combinations: their other knobs are the reference's, and
        none has a value that was tried by itself alone.
        """
        kept = {name: self.varied.get(name, (getattr(self.reference, name),)) for name in KNOBS}
        return [
            p
            for p in self.points
            if p.task == task
            and all(getattr(p.knobs, name) in values for name, values in kept.items())
        ]


class Store:
    """Reads and writes the files of a study, whose folder this process holds; each file is written
    complete or not at all. Raises ExperimentError for a row, cost or task that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("trained", "rows", "costs", "tasks", "spots"):
            (folder / name).mkdir(exist_ok=True)

    def ask(self, study: TradeoffStudy) -> None:
        """Notes what a call asks for, by which its report reads the rows."""
        space = study.space
        asked = {
            "kind": KIND,
            "reference": dataclasses.asdict(space.reference),
            "varied": {name: values for name, values in space.knobs if len(set(values)) > 1},
            "paired": list(space.paired),
        }
        write_whole(self.folder / "asked.json", json.dumps(asked).encode())

    def trained(self, key: str) -> Trained | None:
        """A fine-tuning, if it is there whole."""
        path = self.folder / "trained" / f"{key}.npz"
        try:
            with np.load(path) as found:
                weights = {name: found[name] for name in found.files}
        except (OSError, ValueError, EOFError, KeyError):
            return None
        return Trained(weights, float(weights.pop("seconds", np.nan)))

    def keep_trained(self, key: str, found: Trained) -> None:
        """By `training_key`."""
        out = io.BytesIO()
        arrays: dict[str, Any] = {**found.weights, "seconds": np.array(found.seconds)}
        np.savez(out, **arrays)
        write_whole(self.folder / "trained" / f"{key}.npz", out.getvalue())

    def row_path(self, task: str, knobs: Knobs, seed: int, share: float) -> Path:
        """Where a row is, if it is there. share: of the training rows."""
        part = "" if share == 1.0 else f"-{share:.4f}"
        name = f"{task.replace('/', '-')}-{knobs.digest()}-{seed}{part}.json"
        return self.folder / "rows" / name

    def row(self, task: str, knobs: Knobs, seed: int, share: float) -> Row | None:
        """One that is there, finished or not."""
        path = self.row_path(task, knobs, seed, share)
        return read_all(Row, path.parent, path.stem).get(path.stem)

    def keep_row(self, row: Row) -> None:
        """In place of an earlier one of the same task, knobs, seed and share."""
        save(self.row_path(row.task, row.knobs, row.seed, row.share), row)

    def cost(self, key: str) -> Cost | None:
        """By `cost_key`, if it is there."""
        return read_all(Cost, self.folder / "costs", key).get(key)

    def keep_cost(self, key: str, cost: Cost) -> None:
        """By `cost_key`."""
        save(self.folder / "costs" / f"{key}.json", cost)

    def keep_task(self, task: Task) -> None:
        """Unless it is there: the held-out rows are the same for all of a study."""
        path = self.folder / "tasks" / f"{task.name.replace('/', '-')}.json"
        if not path.exists():
            save(path, task)

    def spot_path(self, task: str, knobs: Knobs) -> Path:
        """Where an encrypted check is, if it was made."""
        return self.folder / "spots" / f"{task.replace('/', '-')}-{knobs.digest()}.json"


def is_tradeoff(folder: str | Path) -> bool:
    """Whether a folder is of such a study."""
    try:
        asked = json.loads((Path(folder) / "asked.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(asked, dict) and asked.get("kind") == KIND


def load_results(folder: str | Path, only: Sequence[Knobs] | None = None) -> Results:
    """What a folder holds, finished or not. only: these configurations alone. ExperimentError where
    it is of no such study, or a file is damaged.
    """
    top = Path(folder)
    if not is_tradeoff(top):
        raise ExperimentError(f"{top} holds no trade-off study: hesim study tradeoff makes one")
    asked: dict[str, Any] = json.loads((top / "asked.json").read_text(encoding="utf-8"))
    reference = Knobs(**asked["reference"])
    chosen = None if only is None else set(only)
    rows = tuple(
        row for row in read_all(Row, top / "rows").values() if chosen is None or row.knobs in chosen
    )
    costs = read_all(Cost, top / "costs")
    tasks = {task.name: task for task in read_all(Task, top / "tasks").values()}
    return Results(
        reference=reference,
        varied={name: tuple(values) for name, values in asked["varied"].items()},
        paired=tuple(asked["paired"]),
        rows=rows,
        costs=costs,
        tasks=tasks,
        spots=tuple(read_all(Spot, top / "spots").values()),
        points=tuple(points_of(rows, costs, tasks, reference)),
    )
