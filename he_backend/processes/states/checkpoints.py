"""What of a batch's work in progress is on the disk, so that a later attempt goes on from there.

Ciphertexts pass from task to task through memory, and most are read soon and never again. Only
those that still lie there when a checkpoint is due are written, one at a time between other work:
all that was made by then and is still needed, so that what was done before it is never done again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from he_backend.processes.store import Journal
from he_backend.processes.tasks import Schedule, Task
from he_backend.processes.transit import Transit

__all__ = ["Checkpoints"]

_SHARE = 30.0
"""A checkpoint is due after so many times what the last one took, at the earliest."""


class Checkpoints:
    """The checkpoints of a batch.

    Args:
      schedule, journal, transit: of the batch.
      done: tasks that earlier attempts did; what is still needed of them is in the store.
      seconds: from one checkpoint to the next, at least; with 0 there is one after every task.
        None: no attempt is to come, and none is made.
    """

    def __init__(
        self,
        schedule: Schedule,
        journal: Journal,
        transit: Transit,
        done: Iterable[int],
        seconds: float | None,
    ):
        self._journal, self._transit, self._seconds = journal, transit, seconds
        finished, readers = set(done), schedule.consumers
        made = (c for n in finished for c in schedule.tasks[n].gives)
        self._alive = {c for c in made if not finished.issuperset(readers[c])}
        self._files = transit.store.ciphers()
        self._sure = frozenset(self._alive)
        self._cut: frozenset[int] | None = None
        self._todo: dict[int, None] = {}
        self._late: set[int] = set()
        self._lines = self._kept = journal.lines
        self._took = 0.0
        self._due = time.monotonic() + (seconds or 0.0)

    def finish(self, task: Task, unread: Iterable[int]) -> None:
        """A task is done, and noted in the journal; nobody reads `unread` any more."""
        self._alive.update(task.gives)
        for c in task.gives:
            (self._files.discard if self._transit.holds(c) else self._files.add)(c)
        for c in unread:
            self._let_go(c)
        if self._seconds == 0.0:
            self.complete()

    def advance(self) -> bool:
        """Write one ciphertext of a checkpoint, if one is due; whether there was something to do.
        Raises StorageError.
        """
        if self._cut is None:
            if self.patience != 0.0:
                return False
            self._begin()
        started = time.monotonic()
        self._write() if self._todo else self._end()
        self._took += time.monotonic() - started
        return True

    def complete(self) -> None:
        """A checkpoint of all that is done by now. Raises StorageError."""
        if self._seconds is None:
            return
        self._begin()
        while self._todo:
            self._write()
        self._end()

    @property
    def patience(self) -> float | None:
        """Seconds until there is something to write; None if nothing was done since."""
        if self._cut is not None:
            return 0.0
        if self._seconds is None or self._journal.lines == self._kept:
            return None
        return max(0.0, self._due - time.monotonic())

    def clear(self) -> None:
        """The batch is done: nothing of it is needed. Raises StorageError."""
        if self._seconds is not None:
            self._journal.checkpoint(self._journal.lines)
        self._transit.store.delete(self._files)
        self._files.clear()

    def _begin(self) -> None:
        self._transit.give_back(self._late)
        self._late.clear()
        self._cut, self._took, self._lines = frozenset(self._alive), 0.0, self._journal.lines
        self._todo = dict.fromkeys(sorted(self._cut - self._files))

    def _write(self) -> None:
        c, _ = self._todo.popitem()
        self._transit.store.write(c, self._transit.read(c))
        self._files.add(c)
        if c in self._late:
            self._late.remove(c)
            self._transit.give_back((c,))

    def _end(self) -> None:
        assert self._cut is not None
        self._journal.checkpoint(self._lines)
        self._sure, self._cut = self._cut, None
        unneeded = self._files - self._sure - self._alive
        self._transit.store.delete(unneeded)
        self._files -= unneeded
        self._kept = self._lines + 1
        self._due = time.monotonic() + max(self._seconds or 0.0, _SHARE * self._took)

    def _let_go(self, c: int) -> None:
        self._alive.discard(c)
        if c in self._todo:
            self._late.add(c)
            return
        self._transit.give_back((c,))
        held = c in self._sure or (self._cut is not None and c in self._cut)
        if c in self._files and not held:
            self._transit.store.delete((c,))
            self._files.discard(c)
