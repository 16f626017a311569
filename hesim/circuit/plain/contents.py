"""What the slots of a Circuit hold, operation by operation, whether or not its levels have room."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.execute import Executor
from hesim.circuit.plain.slots import PlainMachine, SlotsCipher, SlotsPlain

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["slot_contents", "slot_ranges"]


def slot_contents(
    circuit: Circuit,
    inputs: Sequence[Float[np.ndarray, "..."]],
    operands: Sequence[Float[np.ndarray, "..."]],
) -> dict[int, float]:
    """By operation of the Program, -1 for inputs, the largest mean magnitude of the slots of any
    ciphertext that is made for it: times the scale, a bound of the coefficients of its encoding.

    Args:
      circuit: run on plain vectors, without a look at levels.
      inputs: encrypted leaves. operands: public operands, both float64.
    """
    ciphers = _Noting(circuit)
    _walk(circuit, _Boundless(circuit.params, circuit.slots), inputs, operands, ciphers)
    return ciphers.largest


def slot_ranges(
    circuit: Circuit,
    inputs: Sequence[Float[np.ndarray, "..."]],
    operands: Sequence[Float[np.ndarray, "..."]],
) -> dict[int, tuple[float, float]]:
    """Smallest and largest slot value of every ciphertext that the key holder decrypts: what is
    refreshed, and the outputs.

    Args:
      circuit: run on plain vectors.
      inputs: encrypted leaves. operands: public operands, both float64.

    Raises:
      BackendError: a level does not hold a value, or values are not finite.
    """
    refreshed = np.flatnonzero(circuit.kind == Kind.REFRESH)
    wanted = {int(circuit.arg[circuit.arg_ptr[i]]) for i in refreshed}
    wanted |= {int(c) for tap in circuit.outputs if tap is not None for c in tap.ciphers}
    ciphers = _Ranging(wanted)
    machine = PlainMachine(circuit.params, circuit.slots, circuit.rotation_steps)
    _walk(circuit, machine, inputs, operands, ciphers)
    return ciphers.found


def _walk(
    circuit: Circuit,
    machine: PlainMachine,
    inputs: Sequence[np.ndarray],
    operands: Sequence[np.ndarray],
    ciphers: UserDict[int, SlotsCipher],
) -> None:
    """Run a Circuit; each ciphertext is put into `ciphers` when it is made, and out when it has
    been read.
    """
    executor = Executor(circuit, machine, operands)
    last = circuit.last_uses
    client = np.isin(circuit.kind, (Kind.INPUT, Kind.REFRESH))
    bounds = [0, *(np.flatnonzero(np.diff(client)) + 1).tolist(), len(circuit)]
    for first, stop in zip(bounds, bounds[1:]):
        if client[first]:
            for i in range(first, stop):
                level, scale = int(circuit.level[i]), float(circuit.scale[i])
                if circuit.kind[i] == Kind.INPUT:
                    family, row = circuit.input_rows[int(circuit.param[i])]
                    vector = circuit.inputs[family].vector(row, inputs)
                    ciphers[i] = machine.encrypt(vector, level, scale)
                else:
                    held = ciphers[int(circuit.arg[circuit.args(i)][0])].values
                    ciphers[i] = machine.encrypt(held, level, scale)
        else:
            executor.run(range(first, stop), ciphers, lambda c, until=stop: bool(last[c] >= until))
        for c in [c for c in ciphers if last[c] < stop]:
            del ciphers[c]


class _Ranging(UserDict[int, SlotsCipher]):
    """Ciphertexts by number; notes what those hold that are asked for."""

    def __init__(self, wanted: set[int]):
        self.wanted = wanted
        self.found: dict[int, tuple[float, float]] = {}
        super().__init__()

    def __setitem__(self, i: int, cipher: SlotsCipher) -> None:
        if i in self.wanted:
            self.found[i] = float(cipher.values.min()), float(cipher.values.max())
        super().__setitem__(i, cipher)


class _Noting(UserDict[int, SlotsCipher]):
    """Ciphertexts by number; notes how large the contents are of all that are put in."""

    def __init__(self, circuit: Circuit):
        self.largest: dict[int, float] = {}
        self._source = circuit.source
        super().__init__()

    def __setitem__(self, i: int, cipher: SlotsCipher) -> None:
        source = int(self._source[i])
        mean = float(np.mean(np.abs(cipher.values))) if cipher.values.size else 0.0
        self.largest[source] = max(self.largest.get(source, 0.0), mean)
        super().__setitem__(i, cipher)


class _Boundless(PlainMachine):
    """Plain vectors under a modulus that everything fits."""

    def encode(
        self, values: Float[np.ndarray, " slots"] | float, level: int, scale: float
    ) -> SlotsPlain:
        array = np.asarray(values, dtype=np.float64)
        return SlotsPlain(array, level, scale, not np.any(array))

    def encrypt(
        self, values: Float[np.ndarray, " slots"] | float, level: int, scale: float
    ) -> SlotsCipher:
        array = np.asarray(values, dtype=np.float64)
        return SlotsCipher(np.broadcast_to(array, (self.slots,)), level, scale)

    def dot_scalars(
        self, ciphers: Sequence[SlotsCipher], rows: Float[np.ndarray, "rows ciphers"], scale: float
    ) -> list[SlotsCipher]:
        values = np.asarray(rows, dtype=np.float64) @ np.stack([c.values for c in ciphers])
        components = max(c.components for c in ciphers)
        level, product = ciphers[0].level, ciphers[0].scale * scale
        return [SlotsCipher(row, level, product, components) for row in values]

    def _result(self, values: np.ndarray, level: int, scale: float, components: int) -> SlotsCipher:
        return SlotsCipher(values, level, scale, components)
