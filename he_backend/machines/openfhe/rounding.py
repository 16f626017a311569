"""What OpenFHE's key switches leave out when they divide by the special primes, put back.

It divides without rounding, and brings the remainder to the other primes as a sum of one number
from [0, 1) for each special prime. So in each coefficient of both components half their number is
missing in the mean: the same in all key switches, and thousands of times what rounding leaves in
the slots whose roots are near 1. What is missing is added, to both components.

Where it is a whole number and a half, coefficients are rounded up and down by the signs of Rudin
and Shapiro, whose spectrum is flat (Rudin, "Some theorems on Fourier coefficients", Proc. AMS 10,
1959): no slot has much of the other halves. Of these there are a pair and its negatives, and the
rotations of a sum take turns: what all of them had in common would add up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from he_backend.machines.openfhe.contexts import root_of_unity
from he_backend.machines.openfhe.wire import Wire

if TYPE_CHECKING:
    from jaxtyping import UInt64

    from hesim.params import CKKSParams

__all__ = ["Rounding", "missing", "turn"]

_KEPT = 8
"""Ciphertexts of what is missing, kept beside those at the top level."""


class Rounding:
    """Of the key switches of one machine.

    Args:
      cc: its context. wire: its ciphertexts.
      slots: in use.
    """

    def __init__(self, cc: Any, wire: Wire, slots: int):
        self._cc, self._wire, self._slots = cc, wire, slots
        self._tops: list[Any] = []
        self._at = lru_cache(maxsize=_KEPT)(self._compressed)

    def correct(self, switched: Any, level: int, step: int = 0) -> None:
        """Change the result of a key switch at this level in place; of a rotation by `step`."""
        if not self._tops:
            each = missing(self._wire.params)
            self._tops = [self._wire.handle(np.stack([r, r]), self._slots) for r in each]
        number = turn(min(step, self._slots - step)) % len(self._tops)
        self._cc.EvalAddInPlace(switched, self._at(number, level))

    def _compressed(self, number: int, level: int) -> Any:
        """What is missing, as a ciphertext at this level."""
        return self._cc.Compress(self._tops[number], level + 1, 1)


def turn(step: int) -> int:
    """Whose turn it is in a rotation by this step: powers of two take turns, and neighbours do."""
    return sum(k for k in range(step.bit_length()) if step >> k & 1)


def missing(params: CKKSParams) -> UInt64[np.ndarray, "turns primes n"]:
    """Residues of that polynomial in OpenFHE's form, by data prime its values at the roots: one, or
    four where coefficients have halves.
    """
    specials = len(params.moduli) - len(params.primes)
    return np.stack([_missing(params.n, prime, specials) for prime in params.primes], axis=1)


def _missing(n: int, prime: int, specials: int) -> np.ndarray:
    q = np.uint64(prime)
    x = _roots(n, prime)
    every = np.ones(n, np.uint64)  # Σ X^k = Π (1 + X^(2^k))
    one, two = every, every  # of Rudin and Shapiro: P + X^(2^k)·Q, P - X^(2^k)·Q
    for _ in range(n.bit_length() - 1):
        every = (every + _times(every, x, q)) % q
        moved = _times(two, x, q)
        one, two = (one + moved) % q, (one + (q - moved)) % q
        x = _times(x, x, q)
    whole = _times(every, np.full(n, specials, np.uint64), q)
    half = np.full(n, pow(2, -1, prime), np.uint64)
    signs = (one, two, q - one, q - two) if specials % 2 else (np.zeros(n, np.uint64),)
    return np.stack([_times((whole + each) % q, half, q) for each in signs])


def _roots(n: int, prime: int) -> np.ndarray:
    """The N primitive roots of unity of order 2N, in the order of OpenFHE's transform: odd powers
    of the context's one, by bits reversed.
    """
    q, step = np.uint64(prime), root_of_unity(prime, 2 * n)
    found = np.array([step], np.uint64)
    for k in range(n.bit_length() - 1):  # odd powers below 2^(k + 1), then below 2^(k + 2)
        further = pow(step, 2 << k, prime)
        found = np.concatenate([found, _times(found, np.full(1 << k, further, np.uint64), q)])
    bits = n.bit_length() - 1
    order = np.zeros(n, np.int64)
    for k in range(bits):
        order |= ((np.arange(n) >> k) & 1) << (bits - 1 - k)
    return found[order]


def _times(a: np.ndarray, b: np.ndarray, q: np.uint64) -> np.ndarray:
    """Products modulo a prime below 2^61, by a quotient that is off by one at most."""
    quotient = (a.astype(np.longdouble) * b / np.longdouble(q)).astype(np.uint64)
    rest = (a * b - quotient * q).astype(np.int64)  # modulo 2^64
    prime = np.int64(q)
    rest = np.where(rest < 0, rest + prime, rest)
    return np.where(rest >= prime, rest - prime, rest).astype(np.uint64)
