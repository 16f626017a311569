"""A stream of normal numbers that is far cheaper than drawing each of them.

Imports no JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["Normals"]

_POOL = 1 << 22


class Normals:
    """Normal numbers out of a pool of 2^22 that is read again from random places once used up.

    A variance taken over the whole pool has a relative standard error of 0.07 %. Within one pass
    all numbers are independent; two passes join numbers at unrelated positions.

    Args:
      rng: draws the pool, and where each pass over it begins.
      largest: numbers in a single request, at most.
    """

    def __init__(self, rng: np.random.Generator, largest: int) -> None:
        self._rng = rng
        self._size = max(_POOL, 4 * largest)
        self._pool = np.empty(0, np.float32)
        self._cursor = 0

    def take(self, *shape: int) -> Float32[np.ndarray, "*shape"]:
        """Numbers of this shape, a view that must not be written to."""
        count = int(np.prod(shape))
        if self._cursor + count > self._size:
            self._cursor = int(self._rng.integers(0, count))
        stop = self._cursor + count
        if stop > len(self._pool):
            # Drawn only as far as asked for: a short computation needs little of it.
            more = self._rng.standard_normal(
                min(self._size, max(2 * len(self._pool), stop)) - len(self._pool), dtype=np.float32
            )
            self._pool = np.concatenate([self._pool, more])
        found = self._pool[self._cursor : stop]
        self._cursor = stop
        return found.reshape(shape)
