"""Operations of the published algorithms by their own formulas, and their seconds at the published
prices of an operation (Rho et al. 2025, section 5.1 and Tables 5 to 9).

Operands lie as they lie there: 128 x 256 values in a ciphertext, two blocks of 128 x 128 side by
side, so that 128 tokens of 768 features are 3 ciphertexts and a matrix of 768 x 768 is 18.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "BLOCK",
    "LOW",
    "MILLISECONDS",
    "TOP",
    "Spent",
    "adapter",
    "inner",
    "left",
    "level_factor",
    "right",
    "series",
    "transposed",
]

BLOCK = 128
"""Rows and columns of a block."""

TOP, LOW = 12, 7
"""Levels: after a bootstrap, where operations have the published prices; and the lowest at which a
matrix product of 3 levels starts that ends where a bootstrap may begin, with one to spare.
"""

MILLISECONDS = {
    "additions": 0.02,
    "by_plaintexts": 0.1,
    "rotations": 0.49,
    "products": 0.6,
    "bootstraps": 60.0,
    "extended": 137.0,
}
"""Of an operation on one RTX 4090; `extended` is the bootstrap of values up to 2^20."""

_AT_LOW = 0.103 / 0.242
"""Seconds of the same product at level 7 over those at 12 (Table 8)."""


def level_factor(level: int) -> float:
    """Price at a level over that at the top: the power of the primes that are left which goes
    through both figures of Table 8.
    """
    power = math.log(_AT_LOW) / math.log((LOW + 1) / (TOP + 1))
    return ((level + 1) / (TOP + 1)) ** power


@dataclass(frozen=True)
class Spent:
    """Counts of operations; they add up, and are taken several times."""

    additions: float = 0.0
    by_plaintexts: float = 0.0
    rotations: float = 0.0
    products: float = 0.0
    bootstraps: float = 0.0
    extended: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, n) + getattr(other, n) for n in MILLISECONDS))

    def __rmul__(self, times: float) -> Spent:
        return Spent(*(times * getattr(self, n) for n in MILLISECONDS))

    def seconds(self, level: int = TOP) -> float:
        """At the published prices; the level does not matter to a bootstrap."""
        fixed = ("bootstraps", "extended")
        return 1e-3 * sum(
            getattr(self, n) * ms * (1.0 if n in fixed else level_factor(level))
            for n, ms in MILLISECONDS.items()
        )


def left(d: int = BLOCK) -> Spent:
    """What a left operand of a product of d x d blocks goes through, once for all right ones."""
    return Spent(3 * d, 3 * d, 2 * d + 3 * math.sqrt(d))


def right(d: int = BLOCK) -> Spent:
    """What a right operand goes through if it is encrypted; a public one does so in the clear."""
    return Spent(d, d, d + 2 * math.sqrt(d))


def inner(public: bool, d: int = BLOCK) -> Spent:
    """The products of both, summed. With `left` and `right` these are the counts of Table 6."""
    return Spent(2 * d, d) if public else Spent(2 * d, products=d)


def transposed(d: int = BLOCK) -> Spent:
    """A block by the other diagonal, in baby steps and giant steps."""
    return Spent(2 * d, 2 * d, 3 * math.sqrt(d))


def adapter(rank: int = 2) -> Spent:
    """x A B for 128 x 768 by Algorithm 5, as Table 9 counts it."""
    return Spent(42 * rank - 3, 4 * rank, 40 * rank - 1, 6 * rank)


def series(degree: int) -> Spent:
    """A Chebyshev series by baby steps and giant steps: 4 babies for degree 15, 8 for 63, 16 for
    127.
    """
    babies = 2 ** math.ceil(math.log2(degree + 1) / 2)
    giants = math.ceil((degree + 1) / babies)
    products = (babies - 1) + math.ceil(math.log2(giants)) + (giants - 1)
    return Spent(additions=degree, by_plaintexts=degree + 1, products=products)
