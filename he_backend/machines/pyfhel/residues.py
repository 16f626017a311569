"""Many linear combinations of ciphertexts at once: exact float64 matrix products of residues.

A product of a ciphertext by a scalar multiplies every residue by one integer, so a plaintext matrix
times a column of ciphertexts is an integer matrix product modulo each prime. Both factors are cut
into limbs so small that float64 sums of their products stay below 2^53, where they are exact; the
partial sums are then put together by Horner's rule with one reduction a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["linear_combinations"]

_CHUNK = 1 << 11
_EXACT_BITS = 53


def linear_combinations(
    read: Callable[[int, int], np.ndarray],
    shape: tuple[int, int],
    integers: np.ndarray,
    primes: Sequence[int],
) -> list[np.ndarray]:
    """Sums of integer multiples of residue arrays, modulo each prime.

    Args:
      read: uint64[K, N], the reduced residues of one component (the first argument) and one prime
        of all K arrays; asked for one by one, so that they never need to be there together.
      shape: components, and N.
      integers: float64[R, K], whole numbers.
      primes: one modulus below 2^60 for each prime index.

    Returns:
      R arrays uint64[components, primes, N], reduced.
    """
    components, n = shape
    out = [np.empty((components, len(primes), n), dtype=np.uint64) for _ in integers]
    for i, q in enumerate(primes):
        scalars = _centred(integers, q)
        scalar_limb, column_limb = _limb_bits(scalars, q, integers.shape[1])
        left = _signed_limbs(scalars, scalar_limb)
        for c in range(components):
            columns = read(c, i)
            for start in range(0, n, _CHUNK):
                part = slice(start, min(start + _CHUNK, n))
                right = _unsigned_limbs(columns[:, part], column_limb, q)
                found = _product(left, right, scalar_limb, column_limb, q)
                for whole, row in zip(out, found, strict=True):
                    whole[c, i, part] = row
    return out


def _centred(integers: np.ndarray, q: int) -> np.ndarray:
    """int64, each whole number modulo q in (-q/2, q/2]."""
    if float(np.max(np.abs(integers), initial=0.0)) < q // 2:
        return integers.astype(np.int64)
    half = (q - 1) // 2
    flat = [(int(v) + half) % q - half for v in integers.ravel()]
    return np.array(flat, dtype=np.int64).reshape(integers.shape)


def _limb_bits(scalars: np.ndarray, q: int, terms: int) -> tuple[int, int]:
    """Limb widths (scalars, residues) that need the fewest matrix products and keep sums exact."""
    room = _EXACT_BITS - (terms - 1).bit_length() + 1
    scalar_bits = int(np.max(np.abs(scalars), initial=1)).bit_length() + 2
    choices = []
    for pieces in range(1, 8):
        column = -(-q.bit_length() // pieces)
        if room - column >= 2:
            limbs = -(-scalar_bits // (room - column))
            choices.append((limbs * pieces, -(-scalar_bits // limbs), column))
    _, scalar, column = min(choices)
    return scalar, column


def _signed_limbs(scalars: np.ndarray, bits: int) -> list[np.ndarray]:
    """float64 digits in [-2^(bits-1), 2^(bits-1)), lowest first."""
    half = 1 << (bits - 1)
    limbs = []
    rest = scalars.copy()
    while rest.any() or not limbs:
        digit = ((rest + half) & ((1 << bits) - 1)) - half
        limbs.append(digit.astype(np.float64))
        rest = (rest - digit) >> bits
    return limbs


def _unsigned_limbs(columns: np.ndarray, bits: int, q: int) -> list[np.ndarray]:
    """float64 digits in [0, 2^bits), lowest first."""
    mask = np.uint64((1 << bits) - 1)
    shifts = range(0, q.bit_length(), bits)
    return [((columns >> np.uint64(s)) & mask).astype(np.float64) for s in shifts]


def _product(
    left: list[np.ndarray], right: list[np.ndarray], scalar_limb: int, column_limb: int, q: int
) -> np.ndarray:
    """uint64[R, M]: sum of left[a] @ right[b] · 2^(a·scalar_limb + b·column_limb), modulo q."""
    outer: np.ndarray | None = None
    for column in reversed(right):
        inner: np.ndarray | None = None
        for scalar in reversed(left):
            exact = scalar @ column
            whole = exact.astype(np.int64)
            inner = whole if inner is None else _horner(inner, scalar_limb, whole, exact, q)
        assert inner is not None
        as_float = inner.astype(np.float64)
        outer = inner if outer is None else _horner(outer, column_limb, inner, as_float, q)
    assert outer is not None
    rest = _horner(outer, 0, np.zeros((), np.int64), np.zeros(()), q)
    rest[rest < 0] += q
    return rest.view(np.uint64)


def _horner(
    high: np.ndarray, shift: int, low: np.ndarray, low_float: np.ndarray, q: int
) -> np.ndarray:
    """int64 congruent to high · 2^shift + low mod q, of magnitude at most 0.6·q.

    The quotient comes from float64, off by less than one from the true one as long as it is below
    2^50; the remainder is then exact in 64-bit arithmetic that wraps.
    """
    quotient = high.astype(np.float64)
    quotient *= 2.0**shift / q
    quotient += low_float * (1.0 / q)
    np.rint(quotient, out=quotient)
    multiple = quotient.astype(np.int64)
    multiple *= q
    result = high << shift
    result += low
    result -= multiple
    return result
