"""What studies over tasks share: how they stop, names that must be known, and rows as numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from experiments.errors import ExperimentError
from experiments.training.finetune import Start, load_rows
from experiments.training.finetune_settings import TaskSettings
from models.data.tasks import TaskData

__all__ = ["Stopped", "check_names", "glue_task"]


class Stopped(Exception):
    """A study that was told to stop. Its folder holds what is finished, and the checkpoint of the
    run that was not; the same call goes on from there.
    """


def check_names(kind: str, chosen: Collection[str], known: Collection[str]) -> None:
    """Raises ExperimentError for no name at all, or one that is not known."""
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ExperimentError(
            f"there is no {kind} {', '.join(unknown)}: choose among {', '.join(known)}"
        )


def glue_task(
    task: str, start: Start, length: int, data_dir: str, table: Mapping[str, TaskSettings]
) -> TaskData:
    """The rows of a GLUE task for a start's tokenizer, as many to train on as its settings say.

    length: tokens of a row. Raises DataError where the data is missing.
    """
    row = table[task]
    return load_rows(start, f"glue/{task}", length, row.train_rows, row.pairs, data_dir)
