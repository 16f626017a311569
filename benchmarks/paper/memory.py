"""Memory of a process and all that it started, together, while something runs."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

import psutil

__all__ = ["FamilyPeak"]


class FamilyPeak:
    """Looks at the proportional memory of this process and its descendants at short intervals.

    Attributes:
      peak: bytes of all of them together at the highest, what they share counted once.
    """

    def __init__(self, seconds: float = 1.0):
        self.peak = 0
        self._ended = threading.Event()
        self._seconds = seconds
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> FamilyPeak:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, _together())
            if self._ended.wait(self._seconds):
                return


def _together() -> int:
    """Bytes of this process and its descendants, of shared pages each one's part."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended
            total += process.memory_full_info().pss
    return total
