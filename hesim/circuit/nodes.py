"""What a Builder holds of its nodes, leanly: terms as arrays, and columns in sets that are shared.

A dense layer has millions of terms. A ciphertext of thousands of columns may differ from zero in
one of few sets of them, mostly in all, and there may be a hundred thousand ciphertexts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from hesim.circuit.circuit import Kind

__all__ = ["Supports", "Term", "Terms", "compact"]

Term = tuple[int, int, Any]
"""(factor, node, second): the second by kind, a node (dot), a plaintext (pack, row), or None."""

_FEW = 4
"""Terms up to which tuples take less memory than an array."""


class Terms(Sequence[Term]):
    """Terms as one array, 12 bytes each; as a sequence, the tuples that they stand for.

    Attributes:
      table: int32 (3, terms): node, pack and row of terms with plaintexts; otherwise node, factor
        and second node, -1 if there is none.
      plain: whether they are terms with plaintexts.
    """

    __slots__ = ("plain", "table")

    def __init__(self, table: np.ndarray, *, plain: bool):
        self.table = table
        self.plain = plain

    def __len__(self) -> int:
        return self.table.shape[1]

    def __iter__(self) -> Iterator[Term]:
        node, second, third = self.table.tolist()
        if self.plain:
            return zip([1] * len(node), node, zip(second, third, strict=True), strict=True)
        return zip(second, node, [None if n < 0 else n for n in third], strict=True)

    @overload
    def __getitem__(self, k: int) -> Term: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[Term]: ...
    def __getitem__(self, k: int | slice) -> Term | Sequence[Term]:
        if isinstance(k, slice):
            return Terms(self.table[:, k], plain=self.plain)
        return next(iter(self[k : k + 1 or None]))

    @property
    def first(self) -> list[int]:
        """The nodes that come first in the terms."""
        return self.table[0].tolist()


def compact(kind: int, terms: Sequence[Term]) -> Sequence[Term]:
    """These terms of a node of this kind, in whichever form takes less memory."""
    if isinstance(terms, Terms) or len(terms) <= _FEW:
        return terms if isinstance(terms, Terms) else tuple(terms)
    count = len(terms)
    table = np.empty((3, count), np.int32)
    plain = kind in (Kind.DOT_PLAIN, Kind.ADD_PLAIN)
    table[0] = np.fromiter((node for _, node, _ in terms), np.int32, count)
    if plain:
        table[1:] = np.array([second for _, _, second in terms], np.int32).T
    else:
        table[1] = np.fromiter((factor for factor, _, _ in terms), np.int32, count)
        seconds = (-1 if second is None else second for _, _, second in terms)
        table[2] = np.fromiter(seconds, np.int32, count)
    return Terms(table, plain=plain)


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
