"""Memory that a server shares with the workers that it forks, for ciphertexts on their way.

What one task makes and another reads goes through it without files: a copy each way. The server
alone says what lies where, and tells a worker with its task. Pages are taken when they are written
first, so a large arena that is hardly used costs nothing.
"""

from __future__ import annotations

import mmap

__all__ = ["Arena"]


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
