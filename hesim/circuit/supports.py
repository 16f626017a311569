"""In which columns ciphertexts may differ from zero: each set is held once, however many share it.

A ciphertext of thousands of columns has one of few sets, mostly that of all columns, and there may
be a hundred thousand ciphertexts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["Supports"]


class Supports:
    """Makes sets of columns: bool (columns,), not to be written to; equal ones are one array.

    Args:
      columns: their length.

    Attributes:
      everywhere: the set of all columns; `joined`, `common` and `rotated` need no pass over it.
      size: bytes that all sets take.
    """

    def __init__(self, columns: int):
        self.size = 0
        self._known: dict[bytes, np.ndarray] = {}
        self._ids: set[int] = set()
        self.everywhere = self.shared(np.ones(columns, bool))

    def shared(self, held: np.ndarray) -> np.ndarray:
        """The one array with the columns of `held`, bool (columns,)."""
        if id(held) in self._ids:
            return held
        key = np.packbits(held).tobytes()
        found = self._known.get(key)
        if found is None:
            found = np.array(held, bool)
            found.flags.writeable = False
            self._known[key] = found
            self._ids.add(id(found))
            self.size += found.nbytes + len(key)
        return found

    def joined(self, sets: Iterable[np.ndarray]) -> np.ndarray:
        """Columns that are in any of the sets, of which there is at least one."""
        out: np.ndarray | None = None
        for held in sets:
            if held is self.everywhere:
                return held
            out = held if out is None or out is held else out | held
        assert out is not None, "a union has parts"
        return self.shared(out)

    def common(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Columns that are in both; not yet shared."""
        if first is self.everywhere or first is second:
            return second
        return first if second is self.everywhere else first & second

    def rotated(self, held: np.ndarray, step: int) -> np.ndarray:
        """The set of a ciphertext rotated left by `step`."""
        return held if held is self.everywhere else self.shared(np.roll(held, -step))
