"""Linear combinations of residues are exact modulo every prime that SEAL may use."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from he_backend.machines.pyfhel.residues import linear_combinations

# Odd moduli of 20 to 60 bits; primality plays no role here.
MODULI = [(1 << 20) - 3, (1 << 30) - 35, (1 << 40) + 15, (1 << 50) - 27, (1 << 60) - 93]


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    terms=st.integers(1, 70),
    bits=st.integers(0, 62),
    extreme=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_against_whole_numbers(seed, rows, terms, bits, extreme):
    rng = np.random.default_rng(seed)
    n = 6
    inputs = [
        np.stack([[rng.integers(0, q, n, dtype=np.uint64) for q in MODULI] for _ in range(2)])
        for _ in range(terms)
    ]
    if extreme:
        for k, q in enumerate(MODULI):
            for x in inputs:
                x[:, k, : n // 2] = q - 1
    integers = np.rint(rng.uniform(-1, 1, (rows, terms)) * 2.0**bits)
    if extreme:
        integers[0] = np.copysign(2.0**bits, integers[0])
    stacked = np.stack(inputs)
    found = linear_combinations(lambda c, k: stacked[:, c, k], (2, n), integers, MODULI)
    result = np.stack(found)
    assert result.shape == (rows, 2, len(MODULI), n) and result.dtype == np.uint64
    for r in range(rows):
        for c in range(2):
            for k, q in enumerate(MODULI):
                for s in range(n):
                    expected = (
                        sum(int(w) * int(x[c, k, s]) for w, x in zip(integers[r], inputs)) % q
                    )
                    assert int(result[r, c, k, s]) == expected
