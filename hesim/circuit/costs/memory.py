"""Memory that a run of a Circuit takes, known before it runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hesim.circuit.circuit import Kind
from hesim.circuit.costs.spending import Ledger
from hesim.circuit.costs.table import current
from hesim.params import CKKSParams

__all__ = [
    "ENCODED_AHEAD",
    "KEPT_CIPHERTEXTS",
    "KEPT_PLAINTEXTS",
    "cipher_bytes",
    "evaluator_bytes",
    "plaintext_bytes",
    "run_bytes",
    "staying_bytes",
]

KEPT_PLAINTEXTS = 1 << 26
"""Bytes of encoded plaintexts that a machine keeps in case they are used again at once; what a
Circuit uses again later is kept besides (`hesim.circuit.plain.encoded`).
"""


KEPT_CIPHERTEXTS = 1 << 29
"""Bytes of ciphertexts, at most, that a worker keeps for its next tasks."""

_TASK_BYTES = 1 << 26
"""Bytes of ciphertexts that are alive within a task, at most: it takes a tenth of a second."""

ENCODED_AHEAD = 1 << 28
"""Bytes of plaintexts, at most, that a run with several workers encodes while keys are made."""


def cipher_bytes(params: CKKSParams, data: Mapping[str, np.ndarray]) -> int:
    """Bytes of the ciphertexts that are alive at a time, at most, each from its instruction to its
    last use, in the order of the instructions; those of each size by themselves, since a library
    like SEAL gives what was freed only to ciphertexts of the same size.

    data: instruction arrays (`emission.arrays`).
    """
    kind, ptr, arg = data["kind"], data["arg_ptr"], data["arg"]
    count = len(kind)
    ends = np.arange(count)
    consumer = np.repeat(ends, np.diff(ptr))
    dots = kind[consumer] == Kind.DOT
    np.maximum.at(ends, arg, consumer)
    np.maximum.at(ends, data["arg2"][dots], consumer[dots])
    sizes = _components(kind, ptr, arg) * (data["level"].astype(np.int64) + 1) * 8 * params.n
    total = 0
    for size in np.unique(sizes).tolist():
        own = np.flatnonzero(sizes == size)
        change = np.zeros(count + 1, np.int64)
        change[own] = 1
        np.subtract.at(change, ends[own] + 1, 1)
        total += size * int(np.cumsum(change).max(initial=0))
    return total


def _components(kind: np.ndarray, ptr: np.ndarray, arg: np.ndarray) -> np.ndarray:
    """int64 (instructions,): polynomials of each result, 2 or 3."""
    found = np.where(kind == Kind.DOT, 3, 2).tolist()
    starts, ends, operands = ptr[:-1].tolist(), ptr[1:].tolist(), arg.tolist()
    inherit = (Kind.ADD, Kind.DOT_PLAIN, Kind.ADD_PLAIN, Kind.RESCALE, Kind.DROP)
    for i in np.flatnonzero(np.isin(kind, inherit)).tolist():
        found[i] = max([found[a] for a in operands[starts[i] : ends[i]]])
    return np.asarray(found, np.int64)


def plaintext_bytes(
    params: CKKSParams, levels: np.ndarray, numbers: np.ndarray | None = None
) -> int:
    """Bytes of plaintexts encoded at these levels, but for those that are `numbers`."""
    primes = np.asarray(levels, np.int64) + 1
    if numbers is not None:
        primes = primes[~numbers]
    return int(primes.sum()) * 8 * params.n


def evaluator_bytes(
    params: CKKSParams, keys: int, ciphers: int, plaintexts: int, levels: np.ndarray
) -> int:
    """Bytes of one process that runs a Circuit, by the cost table in use.

    Args:
      params: ring and primes.
      keys, ciphers: bytes of evaluation keys, and of ciphertexts alive at a time.
      plaintexts: bytes of plaintexts that it keeps encoded.
      levels: at which vectors are encoded: there is a context for each.
    """
    table = current()
    contexts = table.machine_bytes(params.log_n, params.levels)
    for level in sorted(set(levels.tolist()) - {params.levels}):
        contexts += table.machine_bytes(params.log_n, level) - table.base_bytes
    return int(contexts + table.key_factor * keys) + ciphers + plaintexts


def staying_bytes(spare: int | None, free: int) -> int:
    """Bytes of encoded plaintexts, at most, that a server keeps for batch after batch; workers keep
    a third of that besides until they use them again.

    Args:
      spare: what a Circuit for so much memory leaves for plaintexts; None if nobody said how much.
      free: bytes of memory that are free.
    """
    budget = free // 4 if spare is None else min(spare, 3 * free // 4)
    return 3 * budget // 4


def run_bytes(
    params: CKKSParams,
    ledger: Ledger,
    workers: int,
    clients: int,
    passing: int | None = None,
    staying: int | None = None,
) -> int:
    """Bytes of all processes of a run together, each at its peak, by the cost table in use: a
    server with the keys, workers that share them and keep ciphertexts and plaintexts of their own,
    memory for what passes between them, and clients.

    passing: bytes of ciphertexts on their way between tasks, at most; by default those that are
      alive in the order of the instructions.
    staying: bytes of plaintexts that the server keeps encoded, at most; by default those that a run
      with several workers encodes while keys are made.
    """
    kept = min(ledger.plaintext_bytes, KEPT_PLAINTEXTS)
    client = current().machine_bytes(params.log_n, params.levels)
    passing = ledger.cipher_bytes if passing is None else passing
    own = passing + (workers + 1) * min(passing, KEPT_CIPHERTEXTS)
    own += workers * min(ledger.cipher_bytes, _TASK_BYTES)
    own += min(ledger.plaintext_bytes, workers * kept)
    staying = (ENCODED_AHEAD if workers > 1 else 0) if staying is None else staying
    own += min(ledger.plaintext_bytes, staying)
    return ledger.peak_bytes - ledger.cipher_bytes - kept + own + int(clients * client)
