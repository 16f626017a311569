"""A data set made ready for fine-tuning: token numbers, scaled targets, scores, majority baselines.

Scores of a regression do not change under the public affine map of its ratings onto [-1, 1], which
spares a head without bias the work of finding their mean.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, get_args

import numpy as np

from models.config import Pairs, present
from models.data import metrics
from models.data.batches import Batch
from models.data.datasets import Split, load
from models.data.tokenizer import Tokenizer
from models.errors import DataError

__all__ = ["TaskData", "baseline", "prepare_task"]


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData:
    """A task as numbers.

    Raises DataError, with split and row, for a label out of range or not finite.

    Attributes:
      name: as the data set's. classes: logits of its head, 1 for a regression.
      metrics: names of its measures, the leading one first.
      train, validation, test: token ids and masks of one length, (n, 2, length) of pairs that are
        read apart, token types of other pairs where the model has them; targets are class numbers,
        or ratings mapped onto [-1, 1].
      truncated: share of the training rows that lost pieces to the length.
      notes: how the splits were made, where that departs from the usual.
    """

    name: str
    classes: int
    metrics: tuple[str, ...]
    train: Batch
    validation: Batch
    test: Batch
    truncated: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            _check_targets(f"{self.name}, {name}", getattr(self, name).targets, self.classes)


def _check_targets(where: str, targets: Any, classes: int) -> None:
    """Raises DataError naming the first label that is no class number, or rating without value."""
    found = np.asarray(targets)
    if classes == 1:
        wrong = ~np.isfinite(found)
    else:
        wrong = (found != np.floor(found)) | (found < 0) | (found >= classes)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        wanted = "a finite rating" if classes == 1 else f"a class from 0 to {classes - 1}"
        raise DataError(f"{where}, row {row}: the label is {found[row]}, {wanted} is wanted")


def prepare_task(
    spec: str,
    tokenizer: Tokenizer,
    length: int,
    *,
    data_dir: str | None = None,
    train_rows: int | None = None,
    token_types: int = 0,
    pairs: Pairs = "cross-encoder",
) -> TaskData:
    """The data set `spec` (as `models.data.datasets.load`) for a tokenizer and a length in tokens.

    train_rows: at most so many training rows, chosen by a fixed shuffle, and a tenth as many to
    validate on, at least 512. token_types: of the model's configuration; from 2 on, the second
    sentence of a pair has type 1, as in BERT. pairs: one row each ("cross-encoder"), or one a
    sentence ("bi-encoder").

    Raises DataError as `load` does, where a split is empty, for an unknown `pairs`, for no training
    rows, and for single sentences read apart.
    """
    if train_rows is not None and train_rows < 1:
        raise DataError(f"train_rows={train_rows} must be at least 1, or None for all")
    pairs = present("pairs", pairs)
    if pairs not in get_args(Pairs):
        raise DataError(f"pairs={pairs!r} is one of {', '.join(get_args(Pairs))}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load(spec, data_dir=data_dir)
    notes = [str(w.message) for w in caught]
    train, validation = dataset.train, dataset.validation
    if train_rows is not None and len(train) > train_rows:
        notes.append(f"trained on {train_rows:,} of {len(train):,} rows")
        train = train.take(train_rows)
        validation = validation.take(max(train_rows // 10, 512))
    for name, split in (
        ("train", train),
        ("validation", validation),
        ("test", dataset.test),
    ):
        if not len(split):
            raise DataError(f"{dataset.name} has no {name} rows ({dataset.description})")
    classes = 1 if dataset.task == "regression" else len(dataset.classes)
    bounds = (float(train.labels.min()), float(train.labels.max()))
    if classes == 1 and bounds[0] == bounds[1]:
        raise DataError(f"every training rating of {dataset.name} is {bounds[0]}: nothing to learn")

    if pairs == "bi-encoder" and train.pairs is None:
        raise DataError(
            f"{dataset.name} has single sentences: pairs='bi-encoder' is for tasks of two"
        )

    def numbers(split: Split) -> tuple[Batch, np.ndarray]:
        targets = _scaled(split.labels, bounds) if classes == 1 else split.labels
        if pairs == "bi-encoder":
            assert split.pairs is not None
            first, second = (
                tokenizer.encode(texts, length=length) for texts in (split.texts, split.pairs)
            )
            ids = np.stack([first.ids, second.ids], axis=1)
            mask = np.stack([first.mask, second.mask], axis=1)
            return Batch(ids, mask, targets), first.truncated | second.truncated
        found = tokenizer.encode(split.texts, length=length, pairs=split.pairs)
        types = found.types if token_types > 1 and split.pairs is not None else None
        return Batch(found.ids, found.mask, targets, types), found.truncated

    first, cut = numbers(train)
    return TaskData(
        dataset.name,
        classes,
        dataset.metrics,
        first,
        numbers(validation)[0],
        numbers(dataset.test)[0],
        float(np.mean(cut)),
        tuple(notes),
    )


def baseline(data: TaskData) -> dict[str, float]:
    """The measures of always answering with the most frequent training label (of a regression:
    with one number, whose correlation is 0 by convention).
    """
    targets = np.asarray(data.test.targets)
    if data.classes == 1:
        return metrics.score(np.zeros((len(targets), 1)), targets)
    most = int(np.bincount(np.asarray(data.train.targets), minlength=data.classes).argmax())
    return metrics.score(np.tile(np.eye(data.classes)[most], (len(targets), 1)), targets)


def _scaled(labels: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    return ((labels - (low + high) / 2) * (2 / (high - low))).astype(np.float32)
