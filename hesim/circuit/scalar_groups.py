"""Instructions that are one matrix product together. Imports no JAX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from hesim.circuit.circuit import Circuit, Kind

__all__ = ["numbers", "scalar_groups"]

_GROUP_ROWS = 4
_GROUP_TERMS = 4


def scalar_groups(circuit: Circuit, order: Iterable[int]) -> dict[int, list[int]]:
    """Groups of dot_plain over the same ciphertexts by scalars only, each one matrix product.

    Returns:
      The group of each instruction that is in one.
    """
    found: dict[tuple, list[int]] = {}
    for i in order:
        if circuit.kind[i] != Kind.DOT_PLAIN:
            continue
        part = circuit.args(i)
        if part.stop - part.start < _GROUP_TERMS:
            continue
        plains = circuit.arg2[part]
        scales = circuit.plain_scale[plains]
        if np.all(scales == scales[0]) and np.all(circuit.scalars[plains]):
            key = (circuit.arg[part].tobytes(), float(scales[0]))
            found.setdefault(key, []).append(i)
    return {i: group for group in found.values() if len(group) >= _GROUP_ROWS for i in group}


def numbers(circuit: Circuit, group: Sequence[int], operands: Sequence[np.ndarray]) -> np.ndarray:
    """float64 (instructions, terms): the factors of one of `scalar_groups`, of public operands."""
    plains = np.stack([circuit.arg2[circuit.args(i)] for i in group])
    families, rows = circuit.plain_pack[plains], circuit.plain_row[plains]
    found = np.empty(plains.shape)
    for number in np.unique(families).tolist():
        here = families == number
        found[here] = circuit.packs[number].numbers(rows[here], operands)
    return found
