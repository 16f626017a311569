"""Terms of one node, few of them as tuples, many as arrays: a dense layer has millions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from hesim.circuit.circuit import Kind

__all__ = ["Term", "Terms", "compact"]

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
