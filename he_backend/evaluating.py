"""One evaluation of a Circuit: on plain vectors, or encrypted in processes of a session."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from he_backend.errors import LedgerMismatchError
from he_backend.local import run_local, twin_ranges
from he_backend.machines.protocol import Machine
from he_backend.machines.slots import SlotsMachine
from he_backend.processes.memory import peak_bytes
from he_backend.processes.messages import Progress
from he_backend.processes.session import Result
from he_backend.refreshed import check_refreshed
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.execute import Spent
from hesim.progress import Reporter

__all__ = [
    "Outcome",
    "check_ledger",
    "check_on_slots",
    "decrypted",
    "expected_counts",
    "in_the_clear",
]


@dataclass(frozen=True)
class Outcome:
    """Decrypted slot vectors of an evaluation by ciphertext, and what it cost.

    Attributes:
      spent, seconds, key_seconds, peak_bytes, tasks, skipped, replaced, imported_jax: as in
        `he_backend.processes.session.Result`.
      predicted_peak_bytes: what `peak_bytes` was predicted to be, 0 where nothing is encrypted and
        on a cluster.
    """

    vectors: Mapping[int, np.ndarray]
    spent: Spent
    seconds: float
    key_seconds: float = 0.0
    peak_bytes: int = 0
    predicted_peak_bytes: int = 0
    tasks: int = 0
    skipped: int = 0
    replaced: int = 0
    imported_jax: bool = False

    @classmethod
    def of(cls, result: Result, vectors: Mapping[int, np.ndarray], predicted: int) -> Outcome:
        """Of an encrypted batch; predicted: bytes at the peak."""
        return cls(
            vectors,
            result.spent,
            result.seconds,
            result.key_seconds,
            result.peak_bytes,
            predicted,
            result.tasks,
            result.skipped,
            result.replaced,
            result.imported_jax,
        )


def decrypted(circuit: Circuit, sampled: int) -> list[int]:
    """Ciphertexts that the client decrypts: all outputs that are not carried to the next batch, and
    up to `sampled` of each operation.
    """
    found = {int(c) for tap in circuit.outputs if tap is not None for c in tap.ciphers}
    found -= {c for c, _ in circuit.carried}
    for tap in circuit.taps if sampled else ():
        places = np.linspace(0, len(tap.ciphers) - 1, min(sampled, len(tap.ciphers)))
        found.update(tap.ciphers[np.unique(places.astype(int))].tolist())
    return sorted(found)


def in_the_clear(
    circuit: Circuit,
    machine: Machine,
    inputs: Sequence[np.ndarray],
    operands: Sequence[np.ndarray],
    decrypt: Collection[int],
    ranges: Mapping[int, tuple[float, float]] | None,
    progress: Callable[[Progress], None],
    state: MutableMapping[int, Any] | None = None,
) -> Outcome:
    """Of a machine that does not encrypt, in this process; see `run_local`."""
    started = time.monotonic()

    def report(done: int, total: int) -> None:
        elapsed = time.monotonic() - started
        eta = elapsed * (total - done) / done
        progress(Progress(done, total, done, total, elapsed, eta))

    vectors, spent = run_local(
        *(circuit, machine, inputs, operands, list(decrypt)),
        ranges=ranges,
        progress=report,
        state=state,
    )
    return Outcome(vectors, spent, time.monotonic() - started, peak_bytes=peak_bytes())


def check_on_slots(
    circuit: Circuit,
    inputs: Sequence[np.ndarray],
    operands: Sequence[np.ndarray],
    decrypt: Sequence[int],
    reporter: Reporter,
) -> tuple[dict[int, tuple[float, float]], str | None]:
    """Overflow anywhere raises, and what no bootstrap refreshes; ranges of what the client will
    decrypt are returned, widened, and what `check_refreshed` says.
    """
    machine = SlotsMachine(circuit.params, circuit.slots, circuit.rotation_steps)
    found: dict[int, tuple[float, float]] = {}

    def note(c: int, vector: np.ndarray) -> None:
        found[c] = (float(vector.min()), float(vector.max()))

    run_local(
        circuit,
        machine,
        inputs,
        operands,
        decrypt,
        taken=note,
        keep=False,
        progress=lambda done, total: reporter.at(done / total),
    )
    said = check_refreshed(circuit, found)
    return twin_ranges(found), said


def expected_counts(circuit: Circuit, *, follows: bool = False) -> dict[str, int]:
    """What a batch spends, by the ledger's names; one that `follows` another encrypts less."""
    counts = circuit.ledger.counts()
    return counts | {"inputs": counts["inputs"] - len(circuit.carried)} if follows else counts


def check_ledger(circuit: Circuit, spent: Spent, *, follows: bool = False) -> None:
    """Raises LedgerMismatchError if something else was spent than the Circuit says.

    follows: whether the batch went on from another, so that what is carried was not encrypted.
    """
    wrong = {
        name: (expected, spent.counts.get(name, 0))
        for name, expected in expected_counts(circuit, follows=follows).items()
        if spent.counts.get(name, 0) != expected
    }
    if wrong:
        listed = ", ".join(f"{name} {was} instead of {said}" for name, (said, was) in wrong.items())
        raise LedgerMismatchError(f"the run spent {listed}")
