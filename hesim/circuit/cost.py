"""Predicted seconds of ciphertext operations, by ring and level, for one core.

The figures are of SEAL 4.1 by Pyfhel 3.5.0 on a 2020s x86-64 core (N = 2^14, levels 0 to 8), fitted
by low-order polynomials in the number of primes left, and scaled by N log N. Cost follows the level
in use, not the length of the chain. They steer choices and estimates; benchmarks measure.
"""

from __future__ import annotations

import math

import numpy as np

from hesim.circuit.circuit import Kind
from hesim.circuit.refresher import ring_size

__all__ = ["instruction_seconds", "relative_cost"]


def instruction_seconds(
    kind: int, level: int, terms: int, log_n: int, *, scalar: bool = False
) -> float:
    """Seconds of one instruction at `level` (of its operands) with `terms` operands.

    scalar: the plaintexts are numbers rather than vectors; then their encoding is in the figure.
    """
    k = level + 1.0
    if kind == Kind.DOT_PLAIN and scalar:
        return 0.055 * k * terms * 1e-3 * ring_size(log_n)
    ms = {
        Kind.INPUT: 4.0 + 1.3 * k,
        Kind.ADD: 0.04 * k * max(terms - 1, 0),
        Kind.DOT: 0.22 * k * terms,
        Kind.DOT_PLAIN: (0.14 * k + 0.1) * terms,
        Kind.ADD_PLAIN: 0.5 + 0.1 * k,
        Kind.ROTATE: 0.95 * k + 0.165 * k * k if terms else 0.0,
        Kind.RELINEARIZE: 0.95 * k + 0.165 * k * k,
        Kind.RESCALE: max(0.6 * k - 0.2, 0.2),
        Kind.DROP: 0.1 * k,
        Kind.REFRESH: 0.0,
    }[kind]
    return ms * 1e-3 * ring_size(log_n)


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
