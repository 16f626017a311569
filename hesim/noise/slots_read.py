"""Which slots a tensor is read in, and which slots of other tensors these are made of."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np

from hesim.circuit.circuit import Circuit, Kind, TensorLocation

__all__ = ["masks", "read", "sources", "within"]


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


def masks(circuit: Circuit, i: int) -> list[np.ndarray]:
    """bool[slots] of the plaintexts of a `DOT_PLAIN`: False where they are zero whatever public
    operands hold.
    """
    found = []
    part = circuit.args(i)
    for p in circuit.arg2[part].tolist():
        pack, row = circuit.packs[int(circuit.plain_pack[p])], int(circuit.plain_row[p])
        if pack.operand < 0 and pack.literal is not None:
            held = np.asarray(pack.vector(row, ())) != 0.0
        else:
            held = np.repeat(pack.row(row) >= 0, circuit.slots // pack.rows.columns)
        found.append(np.broadcast_to(held, circuit.slots))
    return found


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
        for a, slots in _needed(circuit, i, held):
            if a in needed:
                needed[a] = needed[a] | slots
            else:
                needed[a] = slots
                heapq.heappush(waiting, -a)
    return found


def _needed(circuit: Circuit, i: int, held: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Arguments of an instruction, and of which of their slots these of the result are made."""
    kind = circuit.kind[i]
    if kind == Kind.ROTATE:
        return [(circuit.operands(i)[0], np.roll(held, int(circuit.param[i])))]
    if kind == Kind.DOT_PLAIN:
        arg = circuit.arg[circuit.args(i)].tolist()
        return [(a, held & mask) for a, mask in zip(arg, masks(circuit, i), strict=True)]
    return [(a, held) for a in circuit.operands(i)]
