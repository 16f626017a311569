"""Memory of a process and all that it started, together, while something runs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

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
            self.peak = max(self.peak, sum(map(_proportional, _family(os.getpid()))))
            if self._ended.wait(self._seconds):
                return


def _family(root: int) -> list[int]:
    """Process numbers of `root` and its descendants."""
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            parents.setdefault(_parent(place), []).append(int(place.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def _parent(place: Path) -> int:
    try:
        return int((place / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):  # it has ended
        return -1


def _proportional(pid: int) -> int:
    """Bytes of a process, of shared pages its part; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
