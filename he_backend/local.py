"""A whole run in one process: on plain vectors, and as the twin that checks for overflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from he_backend.keyholder import KeyHolder
from he_backend.machines.protocol import Machine
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.execute import Executor, Spent
from hesim.circuit.plain.machine import Bootstrapper

__all__ = ["run_local", "twin_ranges"]


def run_local(
    circuit: Circuit,
    machine: Machine,
    inputs: Sequence[np.ndarray],
    operands: Sequence[np.ndarray],
    decrypt: Sequence[int],
    *,
    ranges: Mapping[int, tuple[float, float]] | None = None,
    taken: Callable[[int, np.ndarray], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: bool = True,
    executor: Executor | None = None,
    state: MutableMapping[int, Any] | None = None,
) -> tuple[dict[int, np.ndarray], Spent]:
    """Execute a Circuit from inputs to decrypted outputs.

    Args:
      circuit: the instructions.
      machine: holds all keys, if it has keys.
      inputs: encrypted leaves. operands: public operands, both float64.
      decrypt: ciphertexts to decrypt and return.
      ranges: calibrated ranges, see KeyHolder.
      taken: called with every refreshed or decrypted ciphertext and its decrypted values.
      progress: called with instructions done and in all.
      keep: whether what is decrypted is kept and returned, or only shown to `taken`.
      executor: of this Circuit, machine and operands, with plaintexts that earlier runs encoded.
      state: ciphertexts that the run before has handed on, by input instruction, none before the
        first; they are taken instead of inputs, and replaced by what this run hands on.

    Returns:
      Slot values of the decrypted ciphertexts, and what was spent.
    """
    holder = KeyHolder(circuit, machine, list(inputs), ranges)
    if executor is None:
        executor = Executor(circuit, machine, operands)
    last = circuit.last_uses
    wanted = set(decrypt)
    given = {} if state is None else dict(state)
    carried = circuit.carried if state is not None else ()
    kept = wanted.union(c for c, _ in carried)
    ciphers: dict[int, Any] = {}
    spent = Spent()
    client_side = circuit.of_key_holder
    if not isinstance(machine, Bootstrapper):  # it has the numbers, and refreshes as a client does
        client_side = client_side | (circuit.kind == Kind.REFRESH)
    for first, stop, client in _stretches(client_side):
        if client:
            started = time.thread_time()
            for i in range(first, stop):
                if i in given:
                    ciphers[i] = given[i]
                    continue
                ciphers[i] = _client_step(circuit, holder, i, ciphers, taken)
                spent.counts.update(executor.counts(i))
            elapsed = time.thread_time() - started
            spent.seconds[int(circuit.source[first])] += elapsed  # type: ignore[assignment]
        else:
            later = kept.union(np.flatnonzero(last >= stop).tolist())
            spent.add(executor.run(range(first, stop), ciphers, later.__contains__))
        for c in [c for c in ciphers if first <= c < stop and c in wanted]:
            vector = holder.decrypt(c, ciphers[c])
            if taken is not None:
                taken(c, vector)
            if not keep:
                holder.decrypted.clear()
        if state is not None:
            state.update((i, ciphers[c]) for c, i in carried if first <= c < stop)
        for c in [c for c in ciphers if last[c] < stop]:
            del ciphers[c]
        if progress is not None:
            progress(stop, len(circuit))
    return holder.decrypted, spent


def twin_ranges(
    found: Mapping[int, tuple[float, float]], widen: float = 0.25
) -> dict[int, tuple[float, float]]:
    """Calibrated ranges out of observed ones: wider by a part of their span and by 2^-10."""
    ranges = {}
    for c, (low, high) in found.items():
        margin = widen * max(high - low, abs(high), abs(low)) + 2.0**-10
        ranges[c] = (low - margin, high + margin)
    return ranges


def _client_step(
    circuit: Circuit,
    holder: KeyHolder,
    i: int,
    ciphers: Mapping[int, Any],
    taken: Callable[[int, np.ndarray], None] | None,
) -> Any:
    if circuit.kind[i] == Kind.INPUT:
        return holder.encrypt_input(i)
    argument = circuit.operands(i)[0]
    if taken is not None:
        taken(argument, holder.machine.decrypt(ciphers[argument]))
    return holder.refresh(i, ciphers[argument])


def _stretches(client: np.ndarray, longest: int = 512) -> list[tuple[int, int, bool]]:
    """Ranges of instructions that all belong to the client or all to the server, not too long.

    client: bool[instructions].
    """
    bounds = [0, *(np.flatnonzero(np.diff(client)) + 1).tolist(), len(client)]
    found = []
    for first, stop in zip(bounds, bounds[1:]):
        for start in range(first, stop, longest):
            found.append((start, min(start + longest, stop), bool(client[start])))
    return found
