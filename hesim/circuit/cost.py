"""Predicted seconds of ciphertext operations, by ring and level, for one core.

Figures are of the cost table in use (`hesim.circuit.costs.table`). Cost follows the level in use,
not the length of the chain. They steer choices and estimates; benchmarks measure.
"""

from __future__ import annotations

import math

import numpy as np

from hesim.circuit.circuit import Kind
from hesim.circuit.costs.table import current
from hesim.params import CKKSParams

__all__ = ["KEY_RUNS", "encoding_seconds", "instruction_seconds", "key_seconds", "relative_cost"]

_MATRIX_TERMS = 8
"""Terms from which a sum of products by numbers is taken for a row of a matrix product."""

KEY_RUNS = 10
"""Runs among which the seconds of making keys are shared where plans are compared."""

_OF_ENCRYPTION = 0.44
"""Seconds of a key, and prime, over those of an encryption with a public key (measured: 0.43 to
0.46 at N = 2^13 to 2^15 with Pyfhel 3.5).
"""

_OPERATIONS = {
    Kind.INPUT: "encrypt",
    Kind.ADD: "add",
    Kind.DOT: "dot",
    Kind.DOT_PLAIN: "dot_plain",
    Kind.ADD_PLAIN: "add_plain",
    Kind.ROTATE: "rotate",
    Kind.RELINEARIZE: "relinearize",
    Kind.RESCALE: "rescale",
    Kind.DROP: "drop",
}


def instruction_seconds(
    kind: int, level: int, terms: int, log_n: int, *, scalar: bool = False
) -> float:
    """Seconds of one instruction at `level` (of its operands) with `terms` operands; 0 for a
    refresh, whose price is the refresher's.

    scalar: the plaintexts are numbers rather than vectors; then their encoding is in the figure.
    """
    if kind == Kind.REFRESH or (kind == Kind.ROTATE and not terms):
        return 0.0
    table = current()
    if kind == Kind.DOT_PLAIN and scalar:
        if terms >= _MATRIX_TERMS:
            return table.parts("dot_scalars", level, log_n)[1] * terms
        encoded = table.seconds("encode_scalar", level, log_n)
        return table.seconds("dot_plain", level, log_n, terms) + terms * encoded
    call, each = table.parts(_OPERATIONS[kind], level, log_n)
    if kind == Kind.ADD:
        return call + each * max(terms - 1, 0)
    if kind in (Kind.DOT, Kind.DOT_PLAIN):
        return call + each * terms
    return call + each


def encoding_seconds(level: int, log_n: int) -> float:
    """Seconds in which a vector is encoded at `level`."""
    return current().seconds("encode", level, log_n)


def key_seconds(params: CKKSParams) -> float:
    """Seconds in which one rotation or relinearization key is made: an encryption for each prime of
    the chain.
    """
    each = current().seconds("encrypt", params.levels, params.log_n)
    return _OF_ENCRYPTION * (params.levels + 1) * each


def relative_cost(
    *,
    rotations: float = 0,
    products: float = 0,
    plain_products: float = 0,
    rescales: float = 0,
    additions: float = 0,
) -> float:
    """Cost in rotations at a middling level (3): for choosing between layouts of one operation."""
    at = 3
    unit = instruction_seconds(Kind.ROTATE, at, 1, 14)
    seconds = (
        rotations * unit
        + products * instruction_seconds(Kind.DOT, at, 1, 14)
        + plain_products * instruction_seconds(Kind.DOT_PLAIN, at, 1, 14)
        + rescales * instruction_seconds(Kind.RESCALE, at, 1, 14)
        + additions * instruction_seconds(Kind.ADD, at, 2, 14)
    )
    return float(np.float64(seconds / unit)) if math.isfinite(seconds) else math.inf
