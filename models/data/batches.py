"""Batches of rows: chosen, shuffled by a seed and a step number, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Batch", "batch_rows", "batches_of", "select_rows", "shuffled"]


class Batch(NamedTuple):
    """Rows of token ids with their labels.

    Where the sentences of a pair are read apart, shapes are (n, 2, sequence) in place of
    (n, sequence).

    Attributes:
      tokens: int32 (n, sequence).
      mask: float32 (n, sequence), 1 for tokens and 0 for padding.
      targets: (n,) labels, or (n, classes) shares or ratings.
      types: int32 (n, sequence) token types; None where all are 0.

    Examples:
      >>> import numpy as np
      >>> from models import Batch
      >>> labels = np.array([0, 1, 0, 1])
      >>> rows = Batch(np.zeros((4, 8), np.int32), np.ones((4, 8), np.float32), labels)
      >>> rows.tokens.shape, rows.types
      ((4, 8), None)
    """

    tokens: Any
    mask: Any
    targets: Any
    types: Any = None


def batch_rows(seed: int, step: int, rows: int, size: int) -> np.ndarray:
    """Row numbers (size,) of the step's batch: epochs are permutations of all rows, drawn from
    (seed, epoch).
    """
    places = np.arange(step * size, (step + 1) * size)
    epochs = places // rows
    out = np.empty(size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng((seed, int(epoch))).permutation(rows)
        chosen = epochs == epoch
        out[chosen] = order[places[chosen] % rows]
    return out


def shuffled(data: Batch, size: int, seed: int) -> Callable[[int], Batch]:
    """The batch of a step number: rows in an order that depends on the seed and the step alone.

    Args:
      data: rows of tokens (n, sequence).
      size: rows of a batch.
      seed: of the order; each pass over the data has another.

    Returns:
      A function from a step number to a `Batch` of `size` rows.

    Raises nothing of its own.

    Examples:
      >>> import numpy as np
      >>> from models import Batch, shuffled
      >>> rows = Batch(np.arange(6).reshape(6, 1), np.ones((6, 1)), np.zeros(6))
      >>> batch_of = shuffled(rows, 2, seed=0)
      >>> sorted(int(t) for n in range(3) for t in batch_of(n).tokens[:, 0])
      [0, 1, 2, 3, 4, 5]
    """
    rows = len(data.tokens)
    return lambda number: select_rows(data, batch_rows(seed, number, rows, size))


def select_rows(data: Batch, rows: np.ndarray) -> Batch:
    """Rows of every field."""
    return Batch(*(None if field is None else np.asarray(field)[rows] for field in data))


def batches_of(data: Batch, size: int) -> Iterator[tuple[Batch, int]]:
    """Consecutive batches of one shape and how many of their rows count (the last is padded by
    repeating rows).
    """
    total = len(data.tokens)
    for start in range(0, total, size):
        rows = np.arange(start, start + size)
        yield select_rows(data, rows % total), min(size, total - start)
