"""Where ciphertexts lie between the task that makes them and those that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from he_backend.processes.arena import Arena
from he_backend.processes.store import Store

__all__ = ["Transit"]


class Transit:
    """Ciphertexts in the arena as far as it has room, and in files of the store.

    Args:
      store, arena: where they lie.
      size: bytes of a ciphertext, by its number.
      durable: whether those in the arena are in the store, too, for a later attempt.
    """

    def __init__(self, store: Store, arena: Arena, size: Callable[[int], int], durable: bool):
        self.store, self.arena, self.durable = store, arena, durable
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
        if cipher not in self._places or self.durable:
            self.store.write(cipher, blob)

    def read(self, cipher: int) -> bytes:
        """The bytes of a ciphertext. Raises RunFolderError if they are in a file that is gone."""
        if cipher in self._places:
            return self.arena.read(self._places[cipher], self._size(cipher))
        return self.store.read(cipher)

    def delete(self, ciphers: Iterable[int]) -> None:
        """Forget ciphertexts that nobody reads any more."""
        for cipher in ciphers:
            place = self._places.pop(cipher, None)
            if place is not None:
                self.arena.give_back(place, self._size(cipher))
            if place is None or self.durable:
                self.store.delete([cipher])
