"""Which tasks of a batch a cluster can be given by now, and what travels together. No JAX.

What a worker's task waits for is another one's, or the key holder's. The cluster sees to the first
by itself, so a task is given out as soon as all that leads to it is on the cluster or here: in
waves between visits to the key holder.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from he_backend.processes.pending import Pending
from he_backend.processes.tasks import Task

__all__ = ["Waves", "grouped"]

_SMALL = 1 << 21
"""Bytes that travel together whoever reads them: about what moves in the time that Dask's scheduler
takes for one more key.
"""


class Waves:
    """The workers' tasks of a batch that were not given out.

    Args:
      pending: at the beginning of the batch.
    """

    def __init__(self, pending: Pending):
        self._tasks = pending.schedule.tasks
        mine = {n for n in pending.waiting if self._tasks[n].side == "worker"}
        self._waits = {n: set(pending.waiting[n]) for n in mine}
        self._followers: dict[int, list[int]] = {}
        for number, before in self._waits.items():
            for other in before:
                self._followers.setdefault(other, []).append(number)
        self._ready = [n for n in mine if not self._waits[n]]

    def finish(self, task: Task) -> None:
        """A task of the key holder's, or of the coordinator's, is done."""
        if task.side != "worker":
            self._settle(task.id)

    def take(self) -> list[Task]:
        """All that can be given out now, each after those that it waits for."""
        found: list[Task] = []
        while self._ready:
            number = self._ready.pop()
            found.append(self._tasks[number])
            self._settle(number)
        return sorted(found, key=lambda task: task.id)

    def _settle(self, number: int) -> None:
        for other in self._followers.get(number, ()):
            waits = self._waits[other]
            if number in waits:
                waits.remove(number)
                if not waits:
                    self._ready.append(other)


def grouped(
    ciphers: Iterable[int],
    readers: Callable[[int], Hashable],
    size: Callable[[int], int],
    here: Callable[[int], bool] = lambda c: False,
) -> list[tuple[int, ...]]:
    """Ciphertexts by who reads them: what the same ones read travels together, so that nothing
    moves to where it is not used; but for little ones, of which a few cost less to move than to
    tell of.

    readers: of a ciphertext. size: bytes of one. here: whether the coordinator reads it; these
    travel apart from others.
    """
    found: dict[tuple[bool, Hashable], list[int]] = {}
    for c in ciphers:
        found.setdefault((here(c), readers(c)), []).append(c)
    parts: list[tuple[int, ...]] = []
    open_parts: dict[bool, list[int]] = {}
    for (own, _), part in found.items():
        held = open_parts.pop(own, [])
        if held and sum(map(size, (*held, *part))) > _SMALL:
            parts.append(tuple(held))
            held = []
        open_parts[own] = held + part
    return parts + [tuple(held) for held in open_parts.values()]
