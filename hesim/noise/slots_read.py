"""Which slots a tensor is read in, and which slots of other tensors these are made of."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

from hesim.circuit.circuit import Circuit, Kind, TensorLocation

__all__ = ["mask", "read", "sources", "within"]


def read(tap: TensorLocation, cipher: int, slots: int) -> np.ndarray:
    """bool[slots]: where a ciphertext's elements are read. Slots beyond the batch repeat a member
    and nothing is made of them: they count as well.
    """
    found = np.zeros((slots // tap.width, tap.width), bool)
    found[tap.column[tap.cipher == cipher], slice(None) if tap.batch_axis >= 0 else 0] = True
    return found.reshape(-1)


def within(tap: TensorLocation, slots: Mapping[int, np.ndarray]) -> bool:
    """Whether all these slots, bool[slots] by ciphertext, are read as the tensor's elements."""
    return not any(np.any(held & ~read(tap, c, len(held))) for c, held in slots.items())


def mask(circuit: Circuit, p: int) -> np.ndarray:
    """bool[slots] of a plaintext: False where it is zero whatever public operands hold."""
    pack, row = circuit.packs[int(circuit.plain_pack[p])], int(circuit.plain_row[p])
    if pack.operand < 0 and pack.literal is not None:
        held = np.asarray(pack.vector(row, ())) != 0.0
    else:
        held = np.repeat(pack.row(row) >= 0, circuit.slots // pack.rows.columns)
    return np.broadcast_to(held, circuit.slots)


def sources(circuit: Circuit, tap: TensorLocation, whole: np.ndarray) -> dict[int, np.ndarray]:
    """bool[slots] by ciphertext of whole tensors, bool[instructions]: those of which the slots that
    the result of ``tap.op`` is read in are made.
    """
    needed = {int(c): read(tap, int(c), circuit.slots) for c in tap.ciphers}
    waiting = [-c for c in needed]
    heapq.heapify(waiting)
    found: dict[int, np.ndarray] = {}
    while waiting:
        i = -heapq.heappop(waiting)
        held = needed.pop(i)
        if whole[i] and (circuit.source[i] != tap.op or i not in tap.ciphers):
            found[i] = held
            continue
        for a, slots in _needed(circuit, i, held, needed):
            if a in needed:
                needed[a] = needed[a] | slots
            else:
                needed[a] = slots
                heapq.heappush(waiting, -a)
    return found


def _needed(
    circuit: Circuit, i: int, held: np.ndarray, known: Mapping[int, np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """Arguments of an instruction, and of which of their slots these of the result are made; those
    of which all are `known` are left out.
    """
    kind = circuit.kind[i]
    if kind == Kind.ROTATE:
        yield circuit.operands(i)[0], np.roll(held, int(circuit.param[i]))
    elif kind == Kind.DOT_PLAIN:
        part = circuit.args(i)
        for a, p in zip(circuit.arg[part].tolist(), circuit.arg2[part].tolist(), strict=True):
            if a not in known or np.any(held & ~known[a]):
                left = mask(circuit, p)
                yield a, held if left.all() else held & left
    else:
        for a in circuit.operands(i):
            yield a, held
