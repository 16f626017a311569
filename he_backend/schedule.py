"""Cuts a Circuit into tasks: what one worker or client does in one go, and what waits for what.

Instructions of one Program operation that hang together become one task; small ones are merged and
large ones cut towards a fixed number of predicted seconds. Inputs, refreshes and decryptions are
the client's tasks. A task depends only on tasks before it, so any ready-first order ends. The plan
is a function of the Circuit alone: a resumed run finds the same tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from he_backend.execute import operands_of, scalar_groups
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.cost import instruction_seconds, refresh_seconds

__all__ = ["Schedule", "Task", "plan", "predicted_seconds"]

_GROUPED_PRODUCT = 0.2
"""Cost of a scalar product inside a matrix product on residues, relative to one by one."""

_CLIENT_BATCH = 16


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
      id: position in the plan; every task it waits for has a smaller one.
      kind: "evaluate" (a worker), or "input", "refresh", "deliver" (the client).
      instructions: ascending; for "deliver" the ciphertexts to decrypt.
      needs: ciphertexts made by other tasks. gives: results that other tasks need.
      seconds: predicted.
      op: Program operation, -1 for inputs.
    """

    id: int
    kind: str
    instructions: tuple[int, ...]
    needs: tuple[int, ...]
    gives: tuple[int, ...]
    seconds: float
    op: int

    @property
    def client(self) -> bool:
        return self.kind != "evaluate"


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

    def waits_for(self, task: Task) -> set[int]:
        """Tasks that must be done before `task`."""
        return {self.producer[c] for c in task.needs}

    @property
    def seconds(self) -> float:
        """Predicted seconds of all tasks on one core."""
        return sum(task.seconds for task in self.tasks)


def predicted_seconds(circuit: Circuit) -> np.ndarray:
    """float64[instructions]: the cost model's seconds, matrix products on residues included."""
    log_n = circuit.params.log_n
    seconds = np.zeros(len(circuit))
    grouped = scalar_groups(circuit, range(len(circuit)))
    for i in range(len(circuit)):
        part = circuit.args(i)
        kind, level = int(circuit.kind[i]), int(circuit.level[i])
        below = int(circuit.level[circuit.arg[part.start]]) if part.stop > part.start else level
        if kind == Kind.REFRESH:
            seconds[i] = refresh_seconds(below, level, log_n)
        else:
            seconds[i] = instruction_seconds(kind, below, part.stop - part.start, log_n)
        if i in grouped:
            seconds[i] *= _GROUPED_PRODUCT
    return seconds


def plan(circuit: Circuit, deliver: Iterable[int], target: float = 0.1) -> Schedule:
    """The tasks of a Circuit.

    Args:
      circuit: the instructions.
      deliver: ciphertexts that the client decrypts: outputs, and taps in a comparing run.
      target: seconds that a task should take, where the Circuit allows it.
    """
    seconds = predicted_seconds(circuit)
    operands = [operands_of(circuit, i) for i in range(len(circuit))]
    client = np.isin(circuit.kind, (Kind.INPUT, Kind.REFRESH))
    pieces: list[list[int]] = []
    for members in _groups(circuit, operands, client):
        limit = _CLIENT_BATCH if client[members[0]] else len(members)
        pieces += _cut(_components(members, operands), seconds, target, limit)
    owner = np.empty(len(circuit), dtype=np.int64)
    for number, piece in enumerate(pieces):
        owner[piece] = number
    delivered = sorted({int(c) for c in deliver})
    shared = {a for i in range(len(circuit)) for a in operands[i] if owner[a] != owner[i]}
    shared |= set(delivered)
    tasks = [
        _task(circuit, number, piece, operands, owner, shared, seconds)
        for number, piece in enumerate(pieces)
    ]
    return Schedule((*tasks, *_deliveries(circuit, delivered, len(tasks), owner)))


def _groups(circuit: Circuit, operands: Sequence[list[int]], client: np.ndarray) -> list[list[int]]:
    """Instructions of one operation between two visits to the client, in an acyclic order.

    The key (run of one operation, visits to the client so far in it, whose turn) grows along every
    dependency.
    """
    run = np.cumsum(np.diff(circuit.source, prepend=circuit.source[:1]) != 0)
    visits = np.zeros(len(circuit), dtype=np.int64)
    found: dict[tuple[int, int, bool], list[int]] = {}
    for i in range(len(circuit)):
        inside = [a for a in operands[i] if run[a] == run[i]]
        visits[i] = max((visits[a] + (client[a] != client[i]) for a in inside), default=0)
        found.setdefault((int(run[i]), int(visits[i]), bool(client[i])), []).append(i)
    return [found[key] for key in sorted(found)]


def _components(members: Sequence[int], operands: Sequence[list[int]]) -> list[list[int]]:
    """Weakly connected parts of `members`, each ascending, by first member."""
    parent = {i: i for i in members}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in members:
        for a in operands[i]:
            if a in parent:
                parent[root(i)] = root(a)
    parts: dict[int, list[int]] = {}
    for i in members:
        parts.setdefault(root(i), []).append(i)
    return list(parts.values())


def _cut(parts: list[list[int]], seconds: np.ndarray, target: float, limit: int) -> list[list[int]]:
    """Merge small parts and cut large ones into pieces of about `target` seconds."""
    pieces: list[list[int]] = []
    open_piece: list[int] = []
    held = 0.0
    for part in parts:
        cost = float(seconds[part].sum())
        if open_piece and (held + cost > 1.5 * target or len(open_piece) + len(part) > limit):
            pieces.append(open_piece)
            open_piece, held = [], 0.0
        if cost > 2 * target:
            pieces += _slices(part, seconds, target)
            continue
        open_piece = sorted(open_piece + part)
        held += cost
        if held >= target:
            pieces.append(open_piece)
            open_piece, held = [], 0.0
    if open_piece:
        pieces.append(open_piece)
    return pieces


def _slices(part: list[int], seconds: np.ndarray, target: float) -> list[list[int]]:
    """A connected part cut along its order."""
    total = np.cumsum(seconds[part])
    count = max(1, round(float(total[-1]) / target))
    bounds = np.searchsorted(total, np.arange(1, count) * total[-1] / count) + 1
    return [list(piece) for piece in np.split(np.asarray(part), bounds) if len(piece)]


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
    return Task(
        id=number,
        kind=names.get(int(circuit.kind[piece[0]]), "evaluate"),
        instructions=tuple(int(i) for i in piece),
        needs=tuple(sorted({int(a) for i in piece for a in operands[i] if owner[a] != number})),
        gives=tuple(int(i) for i in piece if i in shared),
        seconds=float(seconds[piece].sum()),
        op=int(circuit.source[piece[0]]),
    )


def _deliveries(
    circuit: Circuit, ciphers: Sequence[int], first: int, owner: np.ndarray
) -> list[Task]:
    """Decryptions, in batches of ciphertexts made by neighbouring tasks."""
    ordered = sorted(ciphers, key=lambda c: (int(owner[c]), c))
    tasks = []
    for start in range(0, len(ordered), _CLIENT_BATCH):
        batch = tuple(sorted(ordered[start : start + _CLIENT_BATCH]))
        cost = sum(
            refresh_seconds(int(circuit.level[c]), 0, circuit.params.log_n) / 2 for c in batch
        )
        op = int(circuit.source[batch[0]])
        tasks.append(Task(first + len(tasks), "deliver", batch, batch, (), cost, op))
    return tasks
