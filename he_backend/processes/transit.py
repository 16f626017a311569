"""Where ciphertexts lie between the task that makes them and those that read them.

A server shares memory with the workers that it forks: what one task makes and another reads goes
through it without files, a copy each way. The server alone says what lies where, and tells a worker
with its task. Pages are taken when they are written first, so a large arena that is hardly used
costs nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable

from he_backend.processes.store import Store

__all__ = ["Arena", "Transit"]


class Arena:
    """Places for blobs of a few sizes; a place that is free again serves the next of its size.

    Args:
      limit: bytes in all; none if the system refuses to share so much.

    Attributes:
      top: bytes up to the end of the highest place that was ever given away.

    Examples:
      >>> arena = Arena(1 << 16)
      >>> place = arena.take(5)
      >>> arena.write(place, b"abcde")
      >>> arena.read(place, 5)
      b'abcde'
      >>> arena.give_back(place, 5)
      >>> arena.take(5) == place, arena.take(1 << 16) is None
      (True, True)
    """

    def __init__(self, limit: int):
        self.top = 0
        try:  # anonymous memory, shared with processes that are forked later
            self._memory, self.limit = mmap.mmap(-1, max(1, limit)), limit
        except OSError:
            self._memory, self.limit = mmap.mmap(-1, 1), 0
        self._free: dict[int, list[int]] = {}

    def take(self, size: int) -> int | None:
        """A place for `size` bytes; None if there is no room."""
        free = self._free.get(size)
        if free:
            return free.pop()
        if self.top + size > self.limit:
            return None
        place, self.top = self.top, self.top + size
        return place

    def give_back(self, place: int, size: int) -> None:
        """A place that `take` gave for `size` bytes is free."""
        self._free.setdefault(size, []).append(place)

    def write(self, place: int, blob: bytes) -> None:
        """Put the bytes at a place of their size."""
        self._memory[place : place + len(blob)] = blob

    def read(self, place: int, size: int) -> bytes:
        """The bytes at a place."""
        return self._memory[place : place + size]


class Transit:
    """Ciphertexts in the arena as far as it has room, and in files of the store.

    Args:
      store, arena: where they lie.
      size: bytes of a ciphertext, by its number.
    """

    def __init__(self, store: Store, arena: Arena, size: Callable[[int], int]):
        self.store, self.arena = store, arena
        self._size = size
        self._places: dict[int, int] = {}

    def reserve(self, cipher: int) -> None:
        """Find room in the arena for a result, unless it has some."""
        if cipher not in self._places:
            place = self.arena.take(self._size(cipher))
            if place is not None:
                self._places[cipher] = place

    def places(self, ciphers: Iterable[int]) -> list[tuple[int, int]]:
        """(ciphertext, place) of those that lie, or will lie, in the arena."""
        return [(c, self._places[c]) for c in ciphers if c in self._places]

    def write(self, cipher: int, blob: bytes) -> None:
        """Keep the bytes of a ciphertext. Raises StorageError."""
        self.reserve(cipher)
        if cipher in self._places:
            self.arena.write(self._places[cipher], blob)
        else:
            self.store.write(cipher, blob)

    def read(self, cipher: int) -> bytes:
        """The bytes of a ciphertext. Raises RunFolderError if they are in a file that is gone."""
        if cipher in self._places:
            return self.arena.read(self._places[cipher], self._size(cipher))
        return self.store.read(cipher)

    def holds(self, cipher: int) -> bool:
        """Whether it lies in the arena, or will."""
        return cipher in self._places

    def give_back(self, ciphers: Iterable[int]) -> None:
        """Places in the arena of ciphertexts that nobody reads from there any more."""
        for cipher in ciphers:
            place = self._places.pop(cipher, None)
            if place is not None:
                self.arena.give_back(place, self._size(cipher))
