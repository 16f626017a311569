"""DC errors that meet another factor: whose element's value multiplies the error in a single slot.

The other factor of a product of ciphertexts lies in whole tensors, rotated and masked. Its value in
one slot is followed back through these instructions to the slots of the tensors, and from there to
their elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hesim.circuit.circuit import Circuit, Kind
from hesim.noise.dc_slots import ALONE, Amplitudes, Element, Factor, Origin

__all__ = ["SlotValues"]

_MOST = 64
"""Terms of a sum, above which a slot's value is not followed."""

_UNCHANGED = (Kind.RELINEARIZE, Kind.RESCALE, Kind.DROP, Kind.REFRESH)


class SlotValues:
    """Values in single slots of a Circuit's ciphertexts, as sums of elements of whole tensors."""

    def __init__(self, circuit: Circuit, tensor: np.ndarray) -> None:
        """
        Args:
          circuit: the instructions; elements of inputs are known if it still has its Program.
          tensor: by ciphertext, number of the tensor it holds: index into ``circuit.taps``, then
            the encrypted inputs; -1 if none.
        """
        self._circuit, self._tensor = circuit, tensor
        program = circuit.program
        leaves = [] if program is None else [v for v in program.inputs if v.encrypted]
        self._shapes = [v.shape for v in leaves]
        self._found: dict[Factor, tuple[Element, float] | None] = {}
        self._terms: dict[tuple[int, int], Mapping[Factor, float] | None] = {}

    def product(self, errors: Amplitudes, other: int) -> tuple[Amplitudes, Amplitudes]:
        """Errors in single slots times what ciphertext `other` has there, and those for which that
        is not known; without those that were multiplied before.
        """
        self._terms.clear()
        met: dict[int, dict[tuple[Origin, Factor], float]] = {}
        rest: dict[int, dict[tuple[Origin, Factor], float]] = {}
        for slot, own in errors.items():
            alone = {term: a for term, a in own.items() if term[1] == ALONE}
            terms = self.at(other, slot % self._circuit.slots) if alone else {}
            if terms is None:
                rest[slot] = alone
                continue
            met[slot] = {
                (origin, place): amplitude * weight
                for (origin, _), amplitude in alone.items()
                for place, weight in terms.items()
            }
        return met, rest

    def at(self, cipher: int, slot: int) -> Mapping[Factor, float] | None:
        """The value in a slot as weights of slots of whole tensors; None if it is not such a sum of
        few, or not of elements.
        """
        place = int(cipher), int(slot)
        if place not in self._terms:
            self._terms[place] = self._followed(*place)
        return self._terms[place]

    def element(self, factor: Factor) -> tuple[Element, float]:
        """The element in a slot that `at` returned, and the slot's value over the element's."""
        found = self._find(factor)
        assert found is not None, f"no element lies in {factor}"
        return found

    def _followed(self, cipher: int, slot: int) -> Mapping[Factor, float] | None:
        c = self._circuit
        part, kind = c.args(cipher), c.kind[cipher]
        if self._tensor[cipher] >= 0 and kind != Kind.REFRESH:
            return None if self._find((cipher, slot)) is None else {(cipher, slot): 1.0}
        arg = c.arg[part].tolist()
        if kind == Kind.ROTATE:
            return self.at(arg[0], (slot + int(c.param[cipher])) % c.slots)
        if kind in _UNCHANGED:
            return self.at(arg[0], slot)
        if kind == Kind.ADD:
            weights: list[float] | None = c.factor[part].astype(float).tolist()
        else:
            weights = self._plain(cipher, slot) if kind == Kind.DOT_PLAIN else None
        if weights is None:
            return None
        total: dict[Factor, float] = {}
        for a, weight in zip(arg, weights, strict=True):
            terms = self.at(a, slot) if weight else {}
            if terms is None or len(total) > _MOST:
                return None
            for place, own in terms.items():
                total[place] = total.get(place, 0.0) + weight * own
        return total

    def _plain(self, cipher: int, slot: int) -> list[float] | None:
        """What plaintexts hold in a slot, if these are known numbers."""
        c = self._circuit
        plain = c.arg2[c.args(cipher)]
        packs, rows = c.plain_pack[plain], c.plain_row[plain]
        found = np.zeros(len(plain))
        for number in np.unique(packs).tolist():
            pack = c.packs[number]
            if pack.operand >= 0 or pack.literal is None:
                return None
            own = packs == number
            found[own] = pack.in_slot(rows[own], slot, ())
        return found.tolist()

    def _find(self, factor: Factor) -> tuple[Element, float] | None:
        if factor not in self._found:
            number = int(self._tensor[factor[0]]) - len(self._circuit.taps)
            of = self._of_result if number < 0 else self._of_input
            self._found[factor] = of(*factor)
        return self._found[factor]

    def _of_result(self, cipher: int, slot: int) -> tuple[Element, float] | None:
        tap = self._circuit.taps[self._tensor[cipher]]
        column, member = divmod(slot, tap.width)
        held = np.flatnonzero((tap.cipher == cipher) & (tap.column == column))
        members = tap.batch if tap.batch_axis >= 0 else 1
        if not len(held) or member >= members or tap.op < 0:
            return None
        return Element(tap.op, tap.batch_axis, int(held[0]), member), 1.0 / tap.gain

    def _of_input(self, cipher: int, slot: int) -> tuple[Element, float] | None:
        c = self._circuit
        number, row = c.input_rows[int(c.param[cipher])]
        pack = c.inputs[number]
        column, member = divmod(slot, pack.width)
        line = pack.row(row)
        first = int(line[column % len(line)])
        axis = self._batch_axis(number)
        if axis is None or first < 0 or member >= (pack.batch if axis >= 0 else 1):
            return None
        stride = pack.stride * pack.batch
        place = first // stride * pack.stride + first % pack.stride if axis >= 0 else first
        return Element(-1 - number, axis, place, member), 1.0 / pack.weight

    def _batch_axis(self, number: int) -> int | None:
        """Along which axis of an input its batch lies, -1 if it has none; None if that is open."""
        pack = self._circuit.inputs[number]
        if number >= len(self._shapes):
            return None
        if not pack.stride:
            return -1
        shape = self._shapes[number]
        found = [
            a
            for a, size in enumerate(shape)
            if size == pack.batch and math.prod(shape[a + 1 :]) == pack.stride
        ]
        return found[0] if len(found) == 1 else None
