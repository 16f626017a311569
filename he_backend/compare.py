"""Measured against predicted error, operation by operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from he_backend.execute import Spent
from he_backend.intervals import interval
from he_backend.report import OpRecord
from hesim.circuit.circuit import Circuit, Tap

if TYPE_CHECKING:
    from he_backend.exact import Exact
    from hesim.predictions import Prediction

__all__ = ["Vectors", "op_records"]


class Vectors(Mapping[int, np.ndarray]):
    """Slot vectors by ciphertext, read when asked for; absent ones are simply not there."""

    def __init__(self, present: Sequence[int], read: Callable[[int], np.ndarray]):
        self._present = frozenset(present)
        self._read = read

    def __getitem__(self, c: int) -> np.ndarray:
        if c not in self._present:
            raise KeyError(c)
        return self._read(c)

    def __iter__(self) -> Iterator[int]:
        return iter(self._present)

    def __len__(self) -> int:
        return len(self._present)


def op_records(
    circuit: Circuit,
    exact: Exact,
    vectors: Mapping[int, np.ndarray] | None,
    prediction: Prediction | None,
    spent: Spent,
    encrypted: bool = True,
) -> tuple[OpRecord, ...]:
    """One record an operation.

    Args:
      circuit: its taps say where each operation's result lies.
      exact: the exact twin, with the value of each operation if the run compares.
      vectors: decrypted slot values of the tapped ciphertexts, or None if the run did not compare.
      prediction: of the simulator, or None.
      spent: seconds by operation.
      encrypted: whether the machine encrypts; if not, errors below an interval are no surprise.
    """
    # An operation may have no ciphertext of its own: dead, or a product left to the sum after it.
    taps = {tap.op: tap for tap in circuit.taps}
    records = []
    for k, (name, source) in enumerate(zip(circuit.op_names, circuit.op_sources, strict=True)):
        tap = taps.get(k)
        error = np.zeros(0)
        if vectors is not None and tap is not None:
            error = _error(tap, vectors, exact.ops[k])
        expected = prediction.ops[k] if prediction is not None else None
        low, high = 0.0, math.inf
        if expected is not None and error.size:
            part = min(1.0, error.size / exact.ops[k].size)
            low, high = interval(expected.by_key, part, len(taps))
        records.append(
            OpRecord(
                name=name,
                source=source,
                level=_level(circuit, tap),
                measured_std=float(np.sqrt(np.mean(error**2))) if error.size else float("nan"),
                predicted_std=expected.std if expected else float("nan"),
                measured_q999=_quantile(np.abs(error)),
                predicted_q999=expected.q999 if expected else float("nan"),
                seconds=float(spent.seconds.get(k, 0.0)),
                minimum=exact.ranges[k][0],
                maximum=exact.ranges[k][1],
                low=low if encrypted else 0.0,
                high=high,
            )
        )
    return tuple(records)


def _level(circuit: Circuit, tap: Tap | None) -> int:
    if tap is None or not len(tap.ciphers):
        return -1
    return int(circuit.level[tap.ciphers].min())


def _error(tap: Tap, vectors: Mapping[int, np.ndarray], exact: np.ndarray) -> np.ndarray:
    difference: Any = tap.read(vectors) - exact
    return difference[np.isfinite(difference)]


def _quantile(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.999, method="higher")) if values.size else float("nan")
