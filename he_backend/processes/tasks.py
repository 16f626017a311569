"""Cuts a Circuit into tasks: what one worker or client does in one go, and what waits for what.

Between two visits to the client, instructions are put into depth-first order from their last
results backwards, so that what is made is used soon, and cut into pieces of about a predicted tenth
of a second, several at a time that do not wait for each other: most ciphertexts then never leave
the task that makes them, and workers seldom wait. Inputs, refreshes and decryptions are the
client's tasks; the server itself keeps what is carried to the next batch, and takes it from there.
A task depends only on tasks before it, so any ready-first order ends; of those that
could run, the ones with the most to do behind them come first. The plan is a function of the
Circuit and of the table of costs: a resumed run finds the same tasks.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.cost import encoding_seconds, instruction_seconds
from hesim.circuit.costs.table import suited
from hesim.circuit.plain.execute import scalar_groups
from hesim.circuit.refresher import KEY_HOLDER

__all__ = ["CLIENT_BATCH", "Schedule", "Task", "plan", "predicted_seconds"]

CLIENT_BATCH = 16
"""Ciphertexts that the client is asked for at a time, at most."""

_LANES = 4
"""Tasks of a round that are cut so that none of them waits for another."""

_LEAST = 0.05
"""Of the target, what a task takes at least, if there is so much to do: handing it out takes time,
too.
"""

_SIDES = {"evaluate": "worker", "carry": "server", "keep": "server"}

_AMONG = (16, None)
"""Tasks among which the most urgent is looked for, all that could come next if None: of the orders
that this gives, the one whose results take the least memory is taken. Near tasks use what has just
been made; where many branches end in one sum, as gradients do, the most urgent of all ends them.
"""


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
      id: position in the plan; every task it waits for has a smaller one.
      kind: "evaluate" (a worker), "input", "refresh", "decrypt" (the client), or "carry", "keep"
        (the server itself): carried inputs that are taken from the batch before, and results that
        are kept for the one after.
      instructions: ascending; for "decrypt" and "keep" ciphertexts.
      needs: ciphertexts made by other tasks. gives: results that other tasks need.
      seconds: predicted.
      op: Program operation of its last instruction, -1 for inputs.
    """

    id: int
    kind: str
    instructions: tuple[int, ...]
    needs: tuple[int, ...]
    gives: tuple[int, ...]
    seconds: float
    op: int

    @property
    def side(self) -> str:
        """Who does it: "worker", "client" or "server"."""
        return _SIDES.get(self.kind, "client")

    @property
    def client(self) -> bool:
        return self.side == "client"


@dataclass(frozen=True)
class Schedule:
    """All tasks, in an order in which they could run one by one."""

    tasks: tuple[Task, ...]

    @cached_property
    def producer(self) -> dict[int, int]:
        """Task that makes each ciphertext which another task needs."""
        return {c: task.id for task in self.tasks for c in task.gives}

    @cached_property
    def consumers(self) -> dict[int, tuple[int, ...]]:
        """Tasks that need each ciphertext; when all are done it can be deleted."""
        found: dict[int, list[int]] = {}
        for task in self.tasks:
            for c in task.needs:
                found.setdefault(c, []).append(task.id)
        return {c: tuple(tasks) for c, tasks in found.items()}

    @cached_property
    def last_readers(self) -> dict[int, int]:
        """Of each ciphertext that a worker reads, the last of its tasks that does."""
        return {c: t.id for t in self.tasks if t.side == "worker" for c in t.needs}

    @cached_property
    def digest(self) -> str:
        """Of all tasks, by which a journal knows whose numbers it holds."""
        said = repr([(task.kind, task.instructions) for task in self.tasks])
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def most_bytes(self, circuit: Circuit) -> int:
        """Bytes of ciphertexts on their way between tasks, at most, if these run one by one."""
        held = most = 0
        left = {c: len(readers) for c, readers in self.consumers.items()}
        parts = circuit.components
        sizes = {
            c: circuit.params.ciphertext_bytes(int(circuit.level[c]), int(parts[c]))
            for c in self.producer
        }
        for task in self.tasks:
            held += sum(sizes[c] for c in task.gives)
            most = max(most, held)
            for c in task.needs:
                left[c] -= 1
                held -= 0 if left[c] else sizes[c]
        return most

    def waits_for(self, task: Task) -> set[int]:
        """Tasks that must be done before `task`."""
        return {self.producer[c] for c in task.needs}

    @cached_property
    def followers(self) -> dict[int, tuple[int, ...]]:
        """Tasks that wait for each, ascending."""
        found: dict[int, list[int]] = {}
        for task in self.tasks:
            for before in self.waits_for(task):
                found.setdefault(before, []).append(task.id)
        return {number: tuple(after) for number, after in found.items()}

    @cached_property
    def seconds(self) -> float:
        """Predicted seconds of all tasks on one core."""
        return sum(task.seconds for task in self.tasks)


def predicted_seconds(circuit: Circuit) -> np.ndarray:
    """float64[instructions]: the cost model's seconds, each plaintext encoded where it is used
    first, matrix products on residues as such; by the table that compiling the Circuit used, unless
    another is named.
    """
    with suited(circuit.params.digits):
        return _seconds(circuit)


def _seconds(circuit: Circuit) -> np.ndarray:
    """float64[instructions]: as `predicted_seconds`, by the table in use."""
    log_n = circuit.params.log_n
    seconds = np.zeros(len(circuit))
    refresher = circuit.refresher.in_slots(circuit.slots)
    grouped = scalar_groups(circuit, range(len(circuit)))
    encoded: set[int] = set()
    for i in range(len(circuit)):
        part = circuit.args(i)
        kind, level, terms = int(circuit.kind[i]), int(circuit.level[i]), part.stop - part.start
        below = int(circuit.level[circuit.arg[part.start]]) if terms else level
        if kind == Kind.REFRESH:
            seconds[i] = refresher.seconds(below, level, log_n)
            continue
        seconds[i] = instruction_seconds(kind, below, terms, log_n, scalar=i in grouped)
        if kind in (Kind.DOT_PLAIN, Kind.ADD_PLAIN) and i not in grouped:
            new = set(circuit.arg2[part].tolist()) - encoded
            encoded |= new
            vectors = sum(not circuit.scalars[p] for p in new)
            seconds[i] += vectors * encoding_seconds(below, log_n)
    return seconds


def plan(
    circuit: Circuit, decrypt: Iterable[int], target: float = 0.1, *, follows: bool = False
) -> Schedule:
    """The tasks of a Circuit.

    Args:
      circuit: the instructions.
      decrypt: ciphertexts that the client decrypts: outputs, and taps in a comparing run.
      target: seconds that a task should take, where the Circuit allows it.
      follows: whether carried inputs are those of the batch before. Tasks are cut alike without.
    """
    seconds = predicted_seconds(circuit)
    carried = {i for _, i in circuit.carried}
    operands = [circuit.operands(i) for i in range(len(circuit))]
    client = circuit.of_key_holder
    rounds = _rounds(circuit, operands, client)
    pieces: list[list[int]] = []
    for members in rounds:
        if client[members[0]]:
            share = min(target, float(seconds[members].sum()) / _LANES)
            for own in (False, True):  # no task is half the client's and half the server's
                part = [i for i in members if (i in carried) is own]
                pieces += _batches(part, seconds, share) if part else []
        else:
            pieces += _Cut(_depth_first(members, operands), operands, seconds).pieces(target)
    decrypted = sorted({int(c) for c in decrypt})
    orders = [_urgent_first(pieces, operands, seconds, among) for among in _AMONG]
    found = [
        _scheduled(circuit, order, operands, seconds, decrypted, follows=follows)
        for order in orders
    ]
    return min(found, key=lambda schedule: schedule.most_bytes(circuit))


def _scheduled(
    circuit: Circuit,
    pieces: Sequence[list[int]],
    operands: Sequence[list[int]],
    seconds: np.ndarray,
    decrypted: Sequence[int],
    *,
    follows: bool,
) -> Schedule:
    """The tasks that these pieces are, in their order, and those that end a batch."""
    owner = np.empty(len(circuit), dtype=np.int64)
    for number, piece in enumerate(pieces):
        owner[piece] = number
    kept = sorted({c for c, _ in circuit.carried})
    shared = {a for i in range(len(circuit)) for a in operands[i] if owner[a] != owner[i]}
    shared |= {*decrypted, *kept}
    tasks = [
        _task(circuit, number, piece, operands, owner, shared, seconds)
        for number, piece in enumerate(pieces)
    ]
    if follows:
        carried = {i for _, i in circuit.carried}
        tasks = [
            replace(t, kind="carry", seconds=0.0) if carried.issuperset(t.instructions) else t
            for t in tasks
        ]
    tasks += _decryptions(circuit, decrypted, len(tasks), owner)
    return Schedule((*tasks, *_keeping(circuit, kept, len(tasks), owner)))


def _rounds(circuit: Circuit, operands: Sequence[list[int]], client: np.ndarray) -> list[list[int]]:
    """Instructions by visits to the client so far and whose turn it is, in an acyclic order.

    The key (visits and changes of side on the longest path, side) grows along every dependency.
    """
    visits = np.zeros(len(circuit), dtype=np.int64)
    found: dict[tuple[int, bool], list[int]] = {}
    for i in range(len(circuit)):
        visits[i] = max((visits[a] + (client[a] or client[i]) for a in operands[i]), default=0)
        found.setdefault((int(visits[i]), bool(client[i])), []).append(i)
    return [found[key] for key in sorted(found)]


def _depth_first(members: Sequence[int], operands: Sequence[list[int]]) -> list[int]:
    """`members` in an order where operands come shortly before their use."""
    inside = set(members)
    used = {a for i in members for a in operands[i]}
    last = [i for i in members if i not in used]
    order: list[int] = []
    seen: set[int] = set()
    for sink in last:
        stack = [(sink, False)]
        while stack:
            i, ready = stack.pop()
            if ready:
                order.append(i)
            elif i not in seen:
                seen.add(i)
                stack.append((i, True))
                stack += [(a, False) for a in reversed(operands[i]) if a in inside]
    return order


class _Cut:
    """Cuts the instructions of a round into pieces, so that several workers have something to do.

    In each step up to `_LANES` pieces are filled that do not wait for each other, only for earlier
    steps: first in `order`, which keeps together what is used together. Pieces take `target`
    seconds, and less where what can be done at once would not fill as many.
    """

    def __init__(self, order: Sequence[int], operands: Sequence[list[int]], seconds: np.ndarray):
        self._seconds = seconds
        self._place = {i: k for k, i in enumerate(order)}
        self._waits = {i: sum(a in self._place for a in operands[i]) for i in order}
        self._users: dict[int, list[int]] = {i: [] for i in order}
        for i in order:
            for a in operands[i]:
                if a in self._place:
                    self._users[a].append(i)
        self._ready = [(self._place[i], i) for i in order if not self._waits[i]]
        heapq.heapify(self._ready)
        self._open = sum(float(seconds[i]) for _, i in self._ready)

    def pieces(self, target: float) -> list[list[int]]:
        """All pieces, each waiting for earlier ones only."""
        found: list[list[int]] = []
        least = _LEAST * target
        while self._ready:
            goal = min(target, max(least, self._open / _LANES))
            step = [self._piece(goal) for _ in range(_LANES) if self._ready]
            self._finish(step)
            found += [sorted(piece) for piece in step]
        return found

    def _piece(self, goal: float) -> list[int]:
        """The first that are ready, and what becomes ready by these alone."""
        piece: list[int] = []
        held, own = 0.0, []
        waits: dict[int, int] = {}
        while (own or self._ready) and (not piece or held < goal):
            near = own and (not self._ready or own[0] < self._ready[0])
            _, i = heapq.heappop(own if near else self._ready)
            piece.append(i)
            held += float(self._seconds[i])
            if not near:
                self._open -= float(self._seconds[i])
            for u in self._users[i]:
                waits[u] = waits.get(u, self._waits[u]) - 1
                if not waits[u]:
                    heapq.heappush(own, (self._place[u], u))
        return piece

    def _finish(self, step: Sequence[Sequence[int]]) -> None:
        """What waited for these pieces is ready, if it is not in one of them."""
        placed = {i for piece in step for i in piece}
        for i in placed:
            for u in self._users[i]:
                self._waits[u] -= 1
                if not self._waits[u] and u not in placed:
                    heapq.heappush(self._ready, (self._place[u], u))
                    self._open += float(self._seconds[u])


def _urgent_first(
    pieces: Sequence[list[int]],
    operands: Sequence[list[int]],
    seconds: np.ndarray,
    among: int | None,
) -> list[list[int]]:
    """The pieces in another order, each after what it waits for: of the first `among` that could
    come next, or of all, the one whose results are followed by the longest chain of work, in
    seconds.
    """
    owner = {i: number for number, piece in enumerate(pieces) for i in piece}
    before = [
        {owner[a] for i in piece for a in operands[i]} - {n} for n, piece in enumerate(pieces)
    ]
    after: list[list[int]] = [[] for _ in pieces]
    for number, those in enumerate(before):
        for other in those:
            after[other].append(number)
    left = [0.0] * len(pieces)
    for number in reversed(range(len(pieces))):
        behind = max((left[other] for other in after[number]), default=0.0)
        left[number] = behind + float(seconds[pieces[number]].sum())
    rank = range(len(pieces)) if among else [-seconds_left for seconds_left in left]
    ready = [(rank[number], number) for number, those in enumerate(before) if not those]
    heapq.heapify(ready)
    order: list[list[int]] = []
    while ready:
        near = [heapq.heappop(ready) for _ in range(min(among or 1, len(ready)))]
        chosen = max(near, key=lambda each: (left[each[1]], -each[1]))
        order.append(pieces[chosen[1]])
        for each in near:
            if each != chosen:
                heapq.heappush(ready, each)
        for number in after[chosen[1]]:
            before[number].discard(chosen[1])
            if not before[number]:
                heapq.heappush(ready, (rank[number], number))
    return order


def _batches(members: list[int], seconds: np.ndarray, target: float) -> list[list[int]]:
    """Client instructions, which do not wait for each other, in batches."""
    pieces: list[list[int]] = [[]]
    held = 0.0
    for i in members:
        if pieces[-1] and (held >= target or len(pieces[-1]) >= CLIENT_BATCH):
            pieces.append([])
            held = 0.0
        pieces[-1].append(i)
        held += float(seconds[i])
    return pieces


def _task(
    circuit: Circuit,
    number: int,
    piece: list[int],
    operands: Sequence[list[int]],
    owner: np.ndarray,
    shared: set[int],
    seconds: np.ndarray,
) -> Task:
    names = {Kind.INPUT: "input", Kind.REFRESH: "refresh"}
    served = bool(circuit.of_key_holder[piece[0]])
    return Task(
        id=number,
        kind=names[int(circuit.kind[piece[0]])] if served else "evaluate",
        instructions=tuple(int(i) for i in piece),
        needs=tuple(sorted({int(a) for i in piece for a in operands[i] if owner[a] != number})),
        gives=tuple(int(i) for i in piece if i in shared),
        seconds=float(seconds[piece].sum()),
        op=int(circuit.source[piece[-1]]),
    )


def _decryptions(
    circuit: Circuit, ciphers: Sequence[int], first: int, owner: np.ndarray
) -> list[Task]:
    """Decryptions, in batches of ciphertexts made by neighbouring tasks."""
    tasks = []
    for batch in _neighbours(ciphers, owner):
        cost = sum(
            KEY_HOLDER.seconds(int(circuit.level[c]), 0, circuit.params.log_n) / 2 for c in batch
        )
        op = int(circuit.source[batch[0]])
        tasks.append(Task(first + len(tasks), "decrypt", batch, batch, (), cost, op))
    return tasks


def _keeping(circuit: Circuit, ciphers: Sequence[int], first: int, owner: np.ndarray) -> list[Task]:
    """What is carried is kept for the next batch as soon as it is there."""
    return [
        Task(first + k, "keep", batch, batch, (), 0.0, int(circuit.source[batch[0]]))
        for k, batch in enumerate(_neighbours(ciphers, owner))
    ]


def _neighbours(ciphers: Sequence[int], owner: np.ndarray) -> list[tuple[int, ...]]:
    """Ciphertexts made by neighbouring tasks, in batches."""
    ordered = sorted(ciphers, key=lambda c: (int(owner[c]), c))
    starts = range(0, len(ordered), CLIENT_BATCH)
    return [tuple(sorted(ordered[start : start + CLIENT_BATCH])) for start in starts]
