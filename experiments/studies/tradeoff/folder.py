"""The folder of a trade-off study: a file a fine-tuning, row, cost, task and encrypted check.

study.json   what is the same for all of it       trained/KEY.npz    what was fine-tuned
asked.json   what the last call asked for         rows/*.json        see `Row`
spots/*.json encrypted runs                       costs/, tasks/     see `Cost`, `Task`
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import ExperimentError, first_line
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
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
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
        return self.folder / "rows" / f"{_row_name(task, knobs, seed, share)}.json"

    def row(self, task: str, knobs: Knobs, seed: int, share: float) -> Row | None:
        """One that is there, finished or not."""
        path = self.row_path(task, knobs, seed, share)
        return read_all(Row, path.parent, path.stem).get(path.stem)

    def finished(self, task: str, knobs: Knobs, seed: int, share: float) -> bool:
        """Whether a row is there, with its task and the costs that it names: who deletes a file has
        what it held computed again.
        """
        row = self.row(task, knobs, seed, share)
        if row is None or row.unfinished:
            return False
        costs = [self.folder / "costs" / f"{key}.json" for key in (row.one, row.many) if key]
        return all(path.exists() for path in (self._task_path(task), *costs))

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
        """Unless it is there. ExperimentError where that one has other held-out rows: scores on
        both would be compared.
        """
        path = self._task_path(task.name)
        known = read_all(Task, path.parent, path.stem).get(path.stem)
        if known is None:
            save(path, task)
        elif known.targets != task.targets:
            raise ExperimentError(
                f"{path} has other held-out rows than {task.name} has now: give --data-dir the "
                "data that the folder was begun with, or choose another --out"
            )

    def _task_path(self, task: str) -> Path:
        return self.folder / "tasks" / f"{task.replace('/', '-')}.json"

    def spot_path(self, task: str, knobs: Knobs) -> Path:
        """Where an encrypted check is, if it was made."""
        return self.folder / "spots" / f"{task.replace('/', '-')}-{knobs.digest()}.json"


def is_tradeoff(folder: str | Path) -> bool:
    """Whether a folder is of such a study, damaged or not."""
    try:
        asked = json.loads((Path(folder) / "asked.json").read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return Path(folder, "rows").is_dir()
    return isinstance(asked, dict) and asked.get("kind") == KIND


def load_results(folder: str | Path, only: Sequence[Knobs] | None = None) -> Results:
    """What a folder holds, finished or not. only: these configurations alone. ExperimentError where
    it is of no such study, or a file is damaged.
    """
    top = Path(folder)
    if not is_tradeoff(top):
        raise ExperimentError(f"{top} holds no trade-off study: hesim study tradeoff makes one")
    reference, varied, paired = _asked(top / "asked.json")
    chosen = None if only is None else set(only)
    costs = read_all(Cost, top / "costs")
    tasks = {task.name: task for task in read_all(Task, top / "tasks").values()}
    found = read_all(Row, top / "rows")
    for name, row in found.items():
        _check_row(top / "rows" / f"{name}.json", row, tasks.get(row.task))
    rows = tuple(row for row in found.values() if chosen is None or row.knobs in chosen)
    return Results(
        reference=reference,
        varied=varied,
        paired=paired,
        rows=rows,
        costs=costs,
        tasks=tasks,
        spots=tuple(read_all(Spot, top / "spots").values()),
        points=tuple(points_of(rows, costs, tasks, reference)),
    )


def _row_name(task: str, knobs: Knobs, seed: int, share: float) -> str:
    part = "" if share == 1.0 else f"-{share:.4f}"
    return f"{task.replace('/', '-')}-{knobs.digest()}-{seed}{part}"


def _asked(path: Path) -> tuple[Knobs, dict[str, tuple[Any, ...]], tuple[str, ...]]:
    """The reference, what was combined, and which knobs go together."""
    try:
        asked: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        varied = {name: tuple(values) for name, values in asked["varied"].items()}
        paired = tuple(asked["paired"])
        if unknown := [name for name in (*varied, *paired) if name not in KNOBS]:
            raise KeyError(*unknown)
        return Knobs(**asked["reference"]), varied, paired
    except (KeyError, TypeError, ValueError, AttributeError, ExperimentError) as error:
        raise ExperimentError(
            f"{path} is damaged ({first_line(error)}): the command that made the study writes it "
            "again, and repeats nothing"
        ) from error


def _check_row(path: Path, row: Row, task: Task | None) -> None:
    """ExperimentError for a row that would count as another one, or twice."""
    place = _row_name(row.task, row.knobs, row.seed, row.share)
    if path.stem != place:
        raise ExperimentError(
            f"{path} is a copy of what {place}.json holds, or has the wrong name: delete it"
        )
    if task is not None and row.answers and len(row.answers) != len(task.targets):
        raise ExperimentError(
            f"{path} has {len(row.answers)} answers to the {len(task.targets)} held-out rows of "
            f"{task.name}: delete it, and what it held is computed again"
        )
