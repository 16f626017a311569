"""Batches of sequences of similar length, cut to that length: the same numbers for less work.

Attention masks padding exactly, so a batch of short sentences may be cut to the shortest bucket
that holds them all. The order depends on the seed and the epoch alone, so a resumed training meets
the batches that it would have met.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from models.data.batches import Batch, select_rows
from models.errors import DataError

__all__ = ["Plan", "bucket_batches", "lengths_of", "plan_epoch", "trim"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One batch: row numbers, how many of them count, and the tokens a row is cut to."""

    rows: np.ndarray
    count: int
    length: int


def lengths_of(data: Batch) -> np.ndarray:
    """Tokens of each row up to the last real one, of a pair that is read apart the longer one's:
    int64 (n,).
    """
    mask = np.asarray(data.mask) > 0
    lengths = mask.shape[-1] - np.argmax(mask[..., ::-1], axis=-1)
    return lengths if lengths.ndim == 1 else lengths.max(axis=-1)


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """The numbers of tokens in order, each once; DataError unless there is one, each at least 1."""
    if not buckets or any(not isinstance(b, int) or b < 1 for b in buckets):
        raise DataError(f"buckets are token counts of at least 1, got {tuple(buckets)}")
    return tuple(sorted(set(buckets)))


def _checked(lengths: np.ndarray, buckets: Sequence[int]) -> tuple[int, ...]:
    edges = check_buckets(buckets)
    longest = int(lengths.max(initial=0))
    if longest > edges[-1]:
        raise DataError(
            f"a sequence has {longest} tokens and the longest bucket {edges[-1]}: add a bucket, or "
            "encode with a smaller length"
        )
    return edges


def plan_epoch(
    lengths: np.ndarray, batch: int, buckets: Sequence[int], seed: int, epoch: int
) -> tuple[Plan, ...]:
    """The batches of one epoch, ceil(n / batch) of them, in random order.

    Rows that do not fill a batch of their bucket go into the next longer one; the last batch of the
    longest is filled up with rows of other batches, which count again. Raises DataError for a
    sequence that no bucket holds.
    """
    edges = _checked(lengths, buckets)
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    places = np.searchsorted(edges, lengths[order])
    waiting = np.empty(0, order.dtype)
    plans: list[Plan] = []
    for place, edge in enumerate(edges):
        waiting = np.concatenate([waiting, order[places == place]])
        full = len(waiting) // batch * batch
        plans += [Plan(r, batch, edge) for r in waiting[:full].reshape(-1, batch)]
        waiting = waiting[full:]
    if len(waiting):
        filled = np.concatenate([waiting, np.resize(order, batch - len(waiting))])
        longest = edges[int(np.searchsorted(edges, lengths[filled].max()))]
        plans.append(Plan(filled, batch, longest))
    return tuple(plans[i] for i in random.permutation(len(plans)))


def bucket_batches(lengths: np.ndarray, batch: int, buckets: Sequence[int]) -> Iterator[Plan]:
    """Batches that hold every row once, bucket by bucket; a bucket's last one is padded by
    repeating its rows, and `count` says how many are its own.
    """
    edges = _checked(lengths, buckets)
    places = np.searchsorted(edges, lengths)
    for place, edge in enumerate(edges):
        rows = np.flatnonzero(places == place)
        for start in range(0, len(rows), batch):
            own = rows[start : start + batch]
            yield Plan(np.resize(own, batch), len(own), edge)


def trim(data: Batch, plan: Plan) -> Batch:
    """The rows of a batch; tokens, mask and types cut to its length."""
    chosen = select_rows(data, plan.rows)
    return chosen._replace(
        tokens=chosen.tokens[..., : plan.length],
        mask=chosen.mask[..., : plan.length],
        types=None if chosen.types is None else chosen.types[..., : plan.length],
    )
