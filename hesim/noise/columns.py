"""Which columns of each ciphertext of a Circuit are needed: what its tensors are made of.

A column is a place for one element, as wide as the batch. Imports no JAX.
"""

from __future__ import annotations

import numpy as np

from hesim.circuit.circuit import Circuit, Kind, PlaintextFamily

__all__ = ["Columns", "column_count", "factors"]


def column_count(circuit: Circuit) -> int:
    """Columns of every ciphertext."""
    widths = [tap.width for tap in (*circuit.taps, *circuit.outputs) if tap is not None]
    return circuit.slots // widths[0] if widths else circuit.slots


def factors(pack: PlaintextFamily, row: int, columns: int) -> np.ndarray | None:
    """By column, the numbers of a plaintext, or one for all; None where operands hold them."""
    if pack.operand >= 0 or pack.literal is None or pack.stride:
        return None
    line = pack.row(row)
    values = np.where(line >= 0, pack.literal[np.maximum(line, 0)] * pack.weight, 0.0)
    return values if len(line) in (1, columns) else None


class Columns:
    """bool[columns] by ciphertext: those on which a tensor depends, as far as plaintexts show it by
    zeros in which whatever the public operands are.
    """

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit
        self.count = column_count(circuit)
        self._every = np.ones(self.count, bool)
        self.needed = _Packed(len(circuit), self.count)
        #: Columns in which elements are read, by ciphertext of a tensor or an input.
        self.read: dict[int, np.ndarray] = {}
        self._read()
        for i in range(len(circuit) - 1, -1, -1):
            self._pass_on(i)

    def _read(self) -> None:
        c = self._circuit
        for i in np.flatnonzero(c.kind == Kind.INPUT):
            number, row = c.input_rows[int(c.param[i])]
            held = c.inputs[number].row(row) >= 0
            self.read[int(i)] = np.broadcast_to(held, self._every.shape)
        for tap in (*c.taps, *(t for t in c.outputs if t is not None)):
            for cipher in tap.ciphers.tolist():
                held = np.zeros(self.count, bool)
                held[tap.column[tap.cipher == cipher]] = True
                self.needed[cipher] = self.needed[cipher] | held
                # Of the tensors in one ciphertext the first has its elements, later ones copies.
                self.read.setdefault(cipher, held)

    def _pass_on(self, i: int) -> None:
        """Notes what instruction i needs of its operands."""
        c, held = self._circuit, self.needed[i]
        part, kind = c.args(i), c.kind[i]
        if kind == Kind.ROTATE:
            self._note(c.operands(i)[0], np.roll(held, int(c.param[i]) * self.count // c.slots))
        elif kind == Kind.DOT_PLAIN:
            for a, p in zip(c.arg[part].tolist(), c.arg2[part].tolist(), strict=True):
                if self.needed.covers(a, i):
                    continue  # whatever the plaintext leaves of it
                self._note(a, held & self._mask(int(c.plain_pack[p]), int(c.plain_row[p])))
        else:
            for a in c.operands(i):
                self._note(a, held)

    def _note(self, cipher: int, held: np.ndarray) -> None:
        self.needed[cipher] = self.needed[cipher] | held

    def _mask(self, pack: int, row: int) -> np.ndarray:
        data = self._circuit.packs[pack]
        known = factors(data, row, self.count)
        if known is not None:
            return np.broadcast_to(known != 0.0, self._every.shape)
        held = data.row(row) >= 0
        return (
            np.broadcast_to(held, self._every.shape)
            if len(held) in (1, self.count)
            else self._every
        )


class _Packed:
    """bool[columns] by ciphertext, as bits, and once what is alike: there may be a million."""

    def __init__(self, ciphers: int, columns: int) -> None:
        self._columns = columns
        nothing = np.packbits(np.zeros(columns, bool)).tobytes()
        self._every = np.packbits(np.ones(columns, bool)).tobytes()
        self._bits = [nothing] * ciphers
        self._known = {nothing: nothing, self._every: self._every}

    def covers(self, cipher: int, other: int) -> bool:
        """Whether all columns are held of a ciphertext, or just those of the other one."""
        held = self._bits[cipher]
        return held is self._every or held is self._bits[other]

    def __getitem__(self, cipher: int) -> np.ndarray:
        bits = np.frombuffer(self._bits[cipher], np.uint8)
        return np.unpackbits(bits, count=self._columns).view(bool)

    def __setitem__(self, cipher: int, held: np.ndarray) -> None:
        bits = np.packbits(held).tobytes()
        self._bits[cipher] = self._known.setdefault(bits, bits)
