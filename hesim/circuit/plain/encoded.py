"""Encoded plaintexts that a Circuit uses more than once, kept as far as memory allows.

Encoding takes several times as long as the product that follows, and a layer of a large model has
more plaintexts than memory holds. Those that are used again are kept until their last use, as many
as have room: where all are read in turn, as often as there are ciphertexts, this saves what room
there is, while forgetting the least recently used one saves nothing. What is used again at once is
the matter of a machine's own cache.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.circuit import sizes
from hesim.circuit.circuit import Circuit, Kind

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

__all__ = ["EncodedPlaintexts", "next_uses"]

_PART = 4
"""Of the memory that is free, one part in so many is taken at most."""


class EncodedPlaintexts:
    """Gives the plaintexts of a Circuit, encoded anew or kept from an earlier use.

    Args:
      circuit: whose operands they are.
      limit: bytes that are kept, less if the Circuit is for less memory; a quarter of what is free
        by default.
      repeated: whether the Circuit is run again and again: then what has room stays.

    Attributes:
      held: bytes that are kept now until their next use.
      encoded: vectors that were encoded so far.
    """

    def __init__(self, circuit: Circuit, limit: int | None = None, *, repeated: bool = False):
        self.held = self.encoded = 0
        self._repeated = repeated
        spare = circuit.spare_bytes
        self._most = sizes.available() if spare is None else spare
        self._limit = min(sizes.available() // _PART if limit is None else limit, self._most)
        self._plain, self._next = circuit.arg2, next_uses(circuit)
        self._vectors = ~circuit.scalars
        self._kept: dict[int, tuple[Any, int]] = {}  # with the place of the next use
        self._due: list[tuple[int, int]] = []
        self._ahead: dict[int, Any] = {}
        self._staying: dict[int, Any] = {}

    def encode_ahead(
        self,
        places: Iterable[int],
        limit: int,
        encode: Callable[[int], Any],
        stop: Callable[[], bool],
        *,
        stay: bool = False,
    ) -> None:
        """Encode vectors before anything asks for them, each until its first use.

        Args:
          places: of operands, in `arg2`, in the order in which they will be used.
          limit: bytes of all together.
          encode: makes a plaintext, by its number. stop: whether to leave it at that.
          stay: keep them for good instead, or until they are forgotten.
        """
        kept = self._staying if stay else self._ahead
        size, limit = sum(plain.nbytes for plain in kept.values()), min(limit, self._most)
        for place in places:
            p = int(self._plain[place])
            if not self._vectors[p] or p in self._ahead or p in self._staying:
                continue
            if size >= limit or stop():
                return
            kept[p] = plain = encode(p)
            self.encoded += 1
            size += plain.nbytes

    def forget(self, plaintexts: Bool[np.ndarray, " plaintexts"]) -> None:
        """Forget those that these are, since what they encode has changed."""
        for kept in (self._ahead, self._staying):
            for p in [p for p in kept if plaintexts[p]]:
                del kept[p]
        for p in [p for p in self._kept if plaintexts[p]]:
            self._forget(p)

    def get(self, place: int, encode: Callable[[], Any]) -> Any:
        """The plaintext of an operand.

        Args:
          place: of the operand, in `arg2`. encode: makes it, with its size as `nbytes`.
        """
        p, then = int(self._plain[place]), int(self._next[place])
        staying = self._staying.get(p)
        if staying is not None:
            return staying
        plain, _ = self._kept.get(p, (None, -1))
        if self._repeated:
            return self._stays(p, encode) if plain is None else plain
        if plain is None:
            plain = self._ahead.pop(p, None) or self._counted(p, encode)
            if then >= 0 and self._has_room(plain.nbytes, place):
                self.held += plain.nbytes
                self._keep(p, plain, then)
        elif then >= 0:
            self._keep(p, plain, then)
        else:
            self._forget(p)
        return plain

    def _stays(self, p: int, encode: Callable[[], Any]) -> Any:
        plain = self._counted(p, encode)
        if self.held + plain.nbytes <= self._limit:
            self.held += plain.nbytes
            self._kept[p] = plain, -1
        return plain

    def _counted(self, p: int, encode: Callable[[], Any]) -> Any:
        self.encoded += int(self._vectors[p])
        return encode()

    def _keep(self, p: int, plain: Any, then: int) -> None:
        self._kept[p] = plain, then
        heapq.heappush(self._due, (then, p))

    def _forget(self, p: int) -> None:
        self.held -= self._kept.pop(p)[0].nbytes

    def _has_room(self, size: int, place: int) -> bool:
        """Whether so much fits, without what was due before `place`: another process used it."""
        while self.held + size > self._limit and self._due and self._due[0][0] < place:
            then, p = heapq.heappop(self._due)
            if p in self._kept and self._kept[p][1] == then:
                self._forget(p)
        return self.held + size <= self._limit


def next_uses(circuit: Circuit) -> Int[np.ndarray, " terms"]:
    """int32 (operands,): by place in `arg2`, that of the next use of the same plaintext; -1 for the
    last use, for ciphertexts, and for numbers, which need no encoding to speak of.
    """
    kinds = np.repeat(circuit.kind, np.diff(circuit.arg_ptr))
    place = np.flatnonzero(np.isin(kinds, (Kind.DOT_PLAIN, Kind.ADD_PLAIN)))
    place = place[~circuit.scalars[circuit.arg2[place]]]
    place = place[np.argsort(circuit.arg2[place], kind="stable")]
    plain = circuit.arg2[place]
    again = np.flatnonzero(plain[1:] == plain[:-1])
    found = np.full(len(circuit.arg2), -1, np.int32)
    found[place[again]] = place[again + 1]
    return found
