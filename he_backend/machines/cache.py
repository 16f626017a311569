"""A least-recently-used cache whose size is counted in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["ByteCache"]

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Keeps the values used last, up to `limit` bytes.

    Args:
      limit: bytes that all values together may take; a larger value is not kept.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.held = 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], tuple[T, int]]) -> T:
        """The value of `key`; `make` returns it with its size in bytes when it is not here."""
        found = self.find(key)
        if found is not None:
            return found
        value, size = make()
        self.put(key, value, size)
        return value

    def find(self, key: Hashable) -> T | None:
        """The value of `key`, None if it is not here."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        """Keep `value`, dropping the least recently used others."""
        self.discard(key)
        if size > self.limit:
            return
        self._values[key] = (value, size)
        self.held += size
        while self.held > self.limit:
            _, (_, freed) = self._values.popitem(last=False)
            self.held -= freed

    def discard(self, key: Hashable) -> None:
        """Forget `key` if it is here."""
        found = self._values.pop(key, None)
        if found is not None:
            self.held -= found[1]

    def __len__(self) -> int:
        return len(self._values)
