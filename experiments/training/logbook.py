"""Figures of a running training on disk: a CSV, and event files that TensorBoard reads.

A resumed training continues both: what was written after its checkpoint is dropped first.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

from hesim.files import write_whole

__all__ = ["Logbook"]


class Logbook:
    """`metrics.csv` and `tensorboard/` of a folder; a context manager.

    from_step: the step that the training goes on from; later rows of an earlier run are dropped. A
    figure that appears late adds a column, empty in the rows before. Nothing is touched before the
    first figures come.
    """

    def __init__(self, folder: str | Path, from_step: int = 0) -> None:
        self.path = Path(folder) / "metrics.csv"
        self._from_step = from_step
        self._columns = ["step"]
        self._rows: list[dict[str, Any]] = []
        self._events: SummaryWriter | None = None

    def _open(self) -> SummaryWriter:
        """What was written up to `from_step` is kept, a line that was cut off is not."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or self._columns)
                rows: list[Any] = list(reader)
            self._rows = [row for row in rows if _step_of(row) <= self._from_step]
            self._tell_of_lost(rows)
        self._rewrite()
        purged = self._from_step + 1 if self._from_step else None
        return SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=purged)

    def _tell_of_lost(self, rows: Sequence[Mapping[str | None, Any]]) -> None:
        """Warn if rows before `from_step` are damaged, or missing at the end.

        A kill cuts off the last line at most, and that one is of a step after the checkpoint.
        """
        damaged = sum(_step_of(row) == math.inf for row in rows[:-1])
        steps = [0, *(int(row["step"]) for row in self._rows)]
        apart = max((b - a for a, b in zip(steps, steps[1:])), default=self._from_step)
        lost = [f"{damaged} of its rows cannot be read"] if damaged else []
        if self._from_step - steps[-1] > max(apart, 1):
            lost.append(f"no row is left after step {steps[-1]}")
        if lost:
            warnings.warn(
                f"{self.path} was damaged: {' and '.join(lost)}, though the training was at step "
                f"{self._from_step}; these figures stay lost, the training goes on",
                stacklevel=4,
            )

    def __enter__(self) -> Logbook:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of a step, on the disk when this returns (the events within seconds)."""
        if self._events is None:
            self._events = self._open()
        row = {"step": step, **figures}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        else:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        for name, value in figures.items():
            self._events.add_scalar(name, value, step)

    def _rewrite(self) -> None:
        """The whole file, replaced in one go."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_whole(self.path, text.getvalue().encode())


def _step_of(row: Mapping[str | None, Any]) -> float:
    """The step of a row, infinity for one that is damaged."""
    whole = None not in row and None not in row.values() and str(row.get("step")).isdigit()
    return int(row["step"]) if whole else math.inf
