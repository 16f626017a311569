"""Which tasks of a batch are done, which are ready, and what the others wait for."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from he_backend.processes.store import Journal, Store
from he_backend.processes.tasks import Schedule, Task

__all__ = ["Pending", "unfinished", "unserved"]


class Pending:
    """The tasks of a batch that is run, or goes on.

    Args:
      schedule: all of them.
      journal: those that earlier attempts finished.
      store: the ciphertexts that these left.
      missing: ciphertexts whose decrypted values the client has no more.
      served: inputs and refreshes that the client knows to have served; None if it was not asked.
      left: where the batch keeps what is carried; None if it carries nothing.

    Attributes:
      done: numbers of finished tasks. waiting: of the others, each with those that it waits for.
      skipped: how many were done before. redone: how many run again that a checkpoint had kept.
      seconds, seconds_before: predicted for those that are done, and that were done before.
    """

    def __init__(
        self,
        schedule: Schedule,
        journal: Journal,
        store: Store,
        missing: Iterable[int] = (),
        served: Iterable[int] | None = None,
        left: Store | None = None,
    ):
        self.schedule = schedule
        self._left = left
        self._missing = frozenset(missing)
        self._served = None if served is None else frozenset(served)
        done = {n for n in journal.records if self._kept(schedule.tasks[n])}
        done -= unfinished(schedule, done, store)
        self.done = done
        self.skipped = len(done)
        self.redone = len(journal.sure - done) + journal.damaged
        if not journal.attempts and self._served:  # it is gone, what the client knows is not
            known = (t for t in schedule.tasks if t.kind in ("input", "refresh"))
            self.redone += sum(map(self._kept, known))
        self.seconds_before = sum(schedule.tasks[number].seconds for number in done)
        self.seconds = self.seconds_before
        pending = unserved(schedule, done)
        self.waiting = {n: before for n, before in pending.items() if n not in done}
        self._followers: dict[int, list[int]] = {}
        for number, before in self.waiting.items():
            for t in before:
                self._followers.setdefault(t, []).append(number)
        self._ready: dict[str, list[int]] = {"worker": [], "client": [], "server": []}
        for number, before in self.waiting.items():
            if not before:
                self._make_ready(number)

    def take(self, side: str) -> Task | None:
        """The first task that is ready for a "worker", a "client" or the "server"; None if there is
        none.
        """
        ready = self._ready[side]
        return self.schedule.tasks[heapq.heappop(ready)] if ready else None

    def put_back(self, task: Task) -> None:
        """A task that was taken is ready again."""
        self._make_ready(task.id)

    def finish(self, task: Task) -> list[int]:
        """A task that was taken is done. Ciphertexts are returned that nobody reads any more."""
        self.done.add(task.id)
        self.seconds += task.seconds
        self.waiting.pop(task.id)
        for number in self._followers.get(task.id, ()):
            self.waiting[number].discard(task.id)
            if not self.waiting[number]:
                self._make_ready(number)
        consumers = self.schedule.consumers
        return [c for c in task.needs if self.done.issuperset(consumers[c])]

    def _make_ready(self, number: int) -> None:
        heapq.heappush(self._ready[self.schedule.tasks[number].side], number)

    def _kept(self, task: Task) -> bool:
        """Whether the client still has what it decrypted, and knows what it encrypted, and the
        server what is carried.
        """
        if task.kind == "decrypt":
            return self._missing.isdisjoint(task.instructions)
        if task.kind == "keep":
            return self._left is not None and all(map(self._left.holds, task.instructions))
        if not task.client or self._served is None:
            return True
        return self._served.issuperset(task.instructions)


def unfinished(schedule: Schedule, done: set[int], store: Store) -> set[int]:
    """Tasks of `done` that must run again because a result that is still needed is gone."""
    again: set[int] = set()
    for task in reversed(schedule.tasks):
        if task.id not in done:
            continue
        needed = (
            c for c in task.gives if any(t not in done or t in again for t in schedule.consumers[c])
        )
        if any(not store.holds(c) for c in needed):
            again.add(task.id)
    return again


def unserved(schedule: Schedule, done: set[int]) -> dict[int, set[int]]:
    """What each task waits for: tasks that are not done, also those behind tasks that are. A client
    who has forgotten what it served is asked for that first, and knows what the rest depends on.
    """
    found: dict[int, set[int]] = {}
    for task in schedule.tasks:
        own = found[task.id] = set()
        for t in schedule.waits_for(task):
            own |= found[t] if t in done else {t}
    return found
