"""Seconds that a run will take by the clock, with so many workers: its tasks, before they run.

The model is the server's own: tasks as they will be cut, given out as soon as what they wait for is
there, the first ones first, to workers and clients that are idle. All processes share the cores.
Seconds of a task are the cost table's, with the bytes that it reads and writes and a fixed time for
its messages. It leaves out keys, starting, and whatever else the machine does. Imports no JAX.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable

from he_backend.errors import need_count
from he_backend.processes.tasks import Schedule, Task, plan
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.costs.memory import staying_bytes
from hesim.circuit.costs.table import CostTable, current, suited
from hesim.circuit.sizes import available

__all__ = ["bytes_seconds", "decrypted_outputs", "encoded_seconds", "expected_seconds"]

_HANDED = 6e-4
"""Seconds of all processes for the messages and the books of one task (measured: 0.5 to 0.7 ms)."""

_PASSED = 0.65
"""Seconds of writing a ciphertext to shared memory, or of reading it there, over those of turning
it into bytes and back (measured at N = 2^14).
"""


def expected_seconds(
    circuit: Circuit,
    *,
    workers: int = 2,
    clients: int = 2,
    cores: int | None = None,
    again: bool = True,
    task_seconds: float = 0.1,
) -> float:
    """Wall-clock seconds of one batch, by the cost table in use.

    Args:
      circuit: what is run.
      workers, clients: processes.
      cores: that all of them share; those of this machine by default.
      again: whether it is a batch of a session after the first one: then plaintexts that have room
        are encoded already, and what is carried is there.
      task_seconds: that a task should take.

    Raises:
      BackendError: no worker, client or core.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), params)
      >>> one = he_backend.expected_seconds(circuit, workers=1, cores=4)
      >>> one >= he_backend.expected_seconds(circuit, workers=2, cores=4) > 0
      True
    """
    cores = (os.cpu_count() or 1) if cores is None else cores
    for name, count in (("workers", workers), ("clients", clients), ("cores", cores)):
        need_count(name, count)
    decrypt, carried = decrypted_outputs(circuit)
    schedule = plan(circuit, decrypt, task_seconds, follows=again and bool(carried))
    encoded = encoded_seconds(circuit, schedule) if again else {}
    works = [_work(circuit, schedule, task, workers, encoded) for task in schedule.tasks]
    return _simulated(schedule, works, {"worker": workers, "client": clients, "server": 1}, cores)


def decrypted_outputs(circuit: Circuit) -> tuple[set[int], set[int]]:
    """Ciphertexts that the client decrypts in a batch that compares nothing, and those that are
    carried to the next.
    """
    carried = {c for c, _ in circuit.carried}
    taps = (tap for tap in circuit.outputs if tap is not None)
    return {int(c) for tap in taps for c in tap.ciphers} - carried, carried


def encoded_seconds(circuit: Circuit, schedule: Schedule) -> dict[int, float]:
    """Seconds saved in each instruction whose vectors stay encoded from the batches before: of
    those that are used first, as many as have room.
    """
    room, table = staying_bytes(circuit.spare_bytes, available()), _table(circuit)
    seen: set[int] = set()
    saved: dict[int, float] = {}
    evaluated = (t for t in schedule.tasks if t.side == "worker")
    for i in (i for task in evaluated for i in task.instructions):
        if circuit.kind[i] not in (Kind.DOT_PLAIN, Kind.ADD_PLAIN):
            continue
        for p in circuit.arg2[circuit.args(i)].tolist():
            level = int(circuit.plain_level[p])
            size = circuit.params.plaintext_bytes(level)
            if p in seen or circuit.scalars[p] or size > room:
                continue
            seen.add(p)
            room -= size
            each = table.seconds("encode", level, circuit.params.log_n)
            saved[i] = saved.get(i, 0.0) + each
    return saved


def _work(
    circuit: Circuit, schedule: Schedule, task: Task, workers: int, encoded: dict[int, float]
) -> float:
    """Seconds of one core for a task. What a worker has made itself it need not read."""
    if task.side != "worker":
        return task.seconds + _HANDED  # the key holder's has the way of its ciphertexts in it
    computed = max(0.0, task.seconds - sum(encoded.get(i, 0.0) for i in task.instructions))
    made = [c for c in task.needs if schedule.tasks[schedule.producer[c]].side == "worker"]
    held = bytes_seconds(circuit, made) / workers
    moved = bytes_seconds(circuit, (*task.needs, *task.gives)) - held
    return computed + _HANDED + _PASSED * moved


def bytes_seconds(circuit: Circuit, ciphers: Iterable[int]) -> float:
    """Seconds of turning ciphertexts into bytes and back."""
    table, log_n = _table(circuit), circuit.params.log_n
    return sum(table.seconds("transport", int(circuit.level[c]), log_n) for c in ciphers)


def _table(circuit: Circuit) -> CostTable:
    """Of the library that the Circuit is for, as when it was compiled."""
    with suited(circuit.params.digits):
        return current()


def _simulated(schedule: Schedule, works: list[float], idle: dict[str, int], cores: int) -> float:
    """When the last task ends. All that run share the cores alike, so they advance together: the
    clock of `done` goes by the seconds of one of them.
    """
    waits = {task.id: len(schedule.waits_for(task)) for task in schedule.tasks}
    ready: dict[str, list[int]] = {side: [] for side in idle}
    for task in schedule.tasks:
        if not waits[task.id]:
            heapq.heappush(ready[task.side], task.id)
    now = done = 0.0
    running: list[tuple[float, int]] = []
    while running or any(ready.values()):
        for side, numbers in ready.items():
            while numbers and idle[side]:
                number = heapq.heappop(numbers)
                idle[side] -= 1
                heapq.heappush(running, (done + works[number], number))
        end, number = running[0]
        now += (end - done) * max(1.0, len(running) / cores)
        heapq.heappop(running)
        done = end
        idle[schedule.tasks[number].side] += 1
        for after in schedule.followers.get(number, ()):
            waits[after] -= 1
            if not waits[after]:
                heapq.heappush(ready[schedule.tasks[after].side], after)
    return now
