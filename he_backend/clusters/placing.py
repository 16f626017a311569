"""Which worker of a cluster does what, and what it does in one go. No JAX.

Tasks that can be given out together are put on workers in the order of their urgency, each where it
would be done first by predicted seconds, counting what would have to move; neighbours on a worker
become one piece of work, so that a scheduler which knows a thousand tasks a second has few to know.
A piece ends where it has taken long enough, or where what follows waits for another worker. Pieces
wait for each other without circles: what comes after a move is of a later stage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from he_backend.processes.tasks import Schedule, Task

__all__ = ["Piece", "Placement"]

_MOVE_SECONDS = 4e-3
_MOVE_RATE = 5e8
"""Seconds that a move takes at least, and bytes that move in one, between workers of a host."""


@dataclass(frozen=True)
class Piece:
    """Tasks that a worker does in one go, each after those that it waits for.

    Attributes:
      worker: its address. tasks: ascending by number.
    """

    worker: str
    tasks: tuple[Task, ...]

    @property
    def id(self) -> int:
        """Number of its first task, of no other piece."""
        return self.tasks[0].id

    def needs(self, schedule: Schedule) -> tuple[int, ...]:
        """Ciphertexts that come from outside of the piece, ascending."""
        own = {task.id for task in self.tasks}
        needed = {c for task in self.tasks for c in task.needs}
        return tuple(sorted(c for c in needed if schedule.producer[c] not in own))

    def gives(self, schedule: Schedule) -> tuple[int, ...]:
        """Ciphertexts that others read, ascending."""
        own = {task.id for task in self.tasks}
        given = (c for task in self.tasks for c in task.gives)
        return tuple(sorted(c for c in given if not own.issuperset(schedule.consumers.get(c, ()))))


@dataclass
class _Open:
    """A piece while tasks are put into it. end: when it would be done. closed: whether somebody
    waits for it.
    """

    stage: int
    end: float
    tasks: list[Task] = field(default_factory=list)
    seconds: float = 0.0
    closed: bool = False


@dataclass
class _Lane:
    """A worker while tasks are put on workers: when it is free, and its pieces."""

    free: float
    pieces: list[_Open] = field(default_factory=list)

    @property
    def stage(self) -> int:
        return self.pieces[-1].stage if self.pieces else 0

    def append(self, task: Task, stage: int, end: float, longest: float) -> _Open:
        """The piece of which the task is one from now on."""
        last = self.pieces[-1] if self.pieces else None
        if last is None or last.closed or stage > last.stage or last.seconds >= longest:
            self.pieces.append(last := _Open(stage, end))
        last.tasks.append(task)
        last.seconds += task.seconds
        self.free = last.end = end
        return last


class Placement:
    """Where the tasks of a batch are done.

    Args:
      schedule: all of them. size: bytes of a ciphertext.
      longest: seconds after which a piece is long enough.
    """

    def __init__(self, schedule: Schedule, size: Callable[[int], int], longest: float):
        self._producer, self._size, self._longest = schedule.producer, size, longest
        self._tasks = schedule.tasks
        self._at: dict[int, str] = {}
        self._left: dict[int, float] = {}

    def finish(self, task: Task) -> None:
        """A task is done."""
        self._left.pop(task.id, None)

    def pieces(self, tasks: Sequence[Task], workers: Collection[str]) -> list[Piece]:
        """All of these tasks, on workers of which there is at least one; each piece after those
        that it waits for.

        tasks: each after those that it waits for.
        """
        busy = dict.fromkeys(workers, 0.0)
        for number, seconds in self._left.items():
            if self._at[number] in busy:
                busy[self._at[number]] += seconds
        lanes = {worker: _Lane(seconds) for worker, seconds in busy.items()}
        within: dict[int, _Open] = {}
        for task in tasks:
            before = self._before(task)
            worker, end = self._best(task, before, lanes, busy, within)
            stage = lanes[worker].stage
            for number in before.keys() & within.keys():
                away = self._at[number] != worker
                within[number].closed |= away
                stage = max(stage, within[number].stage + away)
            within[task.id] = lanes[worker].append(task, stage, end, self._longest)
            self._at[task.id], self._left[task.id] = worker, task.seconds
        found = [
            ((piece.stage, k), Piece(worker, tuple(piece.tasks)))
            for worker, lane in lanes.items()
            for k, piece in enumerate(lane.pieces)
        ]
        return [piece for _, piece in sorted(found, key=lambda each: (each[0], each[1].id))]

    def _before(self, task: Task) -> dict[int, int]:
        """Bytes by worker's task that a task waits for."""
        found: dict[int, int] = {}
        for c in task.needs:
            number = self._producer[c]
            if self._tasks[number].side == "worker":
                found[number] = found.get(number, 0) + self._size(c)
        return found

    def _best(
        self,
        task: Task,
        before: Mapping[int, int],
        lanes: Mapping[str, _Lane],
        busy: Mapping[str, float],
        within: Mapping[int, _Open],
    ) -> tuple[str, float]:
        """The worker that would have done a task first, and when that would be."""
        idle = min(lanes, key=lambda worker: lanes[worker].free)
        near: Iterable[str] = (self._at.get(n, idle) for n in before)
        found: dict[str, float] = {}
        for worker in dict.fromkeys(w for w in (*near, idle) if w in lanes):
            start = lanes[worker].free
            for number, moved in before.items():
                if (at := self._at.get(number)) != worker:
                    there = busy.get(at or "", 0.0) if number in self._left else 0.0
                    there = within[number].end if number in within else there
                    start = max(start, there + _MOVE_SECONDS + moved / _MOVE_RATE)
            found[worker] = start + task.seconds
        worker = min(found, key=lambda w: found[w])
        return worker, found[worker]
