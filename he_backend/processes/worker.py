"""A worker: forked from the server after the evaluation keys are loaded, runs tasks one at a time.

Imports no JAX. It shares the keys with the server by copy-on-write, reads operands of its tasks
from memory that they share or from the store, and writes results there before it reports the task
as done.
"""

from __future__ import annotations

import heapq
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from he_backend.errors import ProtocolError, to_message
from he_backend.machines.cache import ByteCache
from he_backend.processes.messages import receive, send
from he_backend.processes.store import Store
from he_backend.processes.tasks import Task
from he_backend.processes.transit import Arena
from hesim.circuit.costs.memory import KEPT_CIPHERTEXTS
from hesim.circuit.plain.execute import Executor, Spent

__all__ = ["TaskRunner", "fork_worker"]


class TaskRunner:
    """Runs tasks against a store and an arena.

    Args:
      executor: runs their instructions.
      store: where operands are and results go.
      cache_bytes: memory for ciphertexts that several tasks read.
      last_tasks: of ciphertexts that workers read, the last task that does; others are not kept,
        and none after that task: tasks are given out nearly in their order. Default: all are kept.
      arena: where ciphertexts lie that a task's `places` name.
    """

    def __init__(
        self,
        executor: Executor,
        store: Store,
        cache_bytes: int = KEPT_CIPHERTEXTS,
        last_tasks: Mapping[int, int] | None = None,
        arena: Arena | None = None,
    ):
        self.executor = executor
        self.circuit, self.machine = executor.circuit, executor.machine
        self.store = store
        self._components = self.circuit.components
        self._cache: ByteCache[Any] = ByteCache(cache_bytes)
        self._last_tasks = last_tasks
        self._arena = arena
        self._due: list[tuple[int, int]] = []

    def run(self, task: Task, places: Mapping[int, int] | None = None) -> Spent:
        """Execute an "evaluate" task; its results are where they belong when this returns.

        places: of operands and results in the arena; others are in the store.
        """
        places = places or {}
        ciphers: MutableMapping[int, Any] = {c: self._load(c, places.get(c)) for c in task.needs}
        gives = set(task.gives)
        spent = self.executor.run(task.instructions, ciphers, gives.__contains__)
        for c in task.gives:
            blob = self.machine.to_bytes(ciphers[c])
            self._write(c, blob, places.get(c))
            self._keep(c, ciphers[c], len(blob))
        while self._due and self._due[0][0] <= task.id:
            self._cache.discard(heapq.heappop(self._due)[1])
        return spent

    def _keep(self, c: int, cipher: Any, size: int) -> None:
        if self._last_tasks is None:
            self._cache.put(c, cipher, size)
        elif c in self._last_tasks:
            self._cache.put(c, cipher, size)
            heapq.heappush(self._due, (self._last_tasks[c], c))

    def _write(self, c: int, blob: bytes, place: int | None) -> None:
        if place is not None and self._arena is not None:
            self._arena.write(place, blob)
        else:
            self.store.write(c, blob)

    def _load(self, c: int, place: int | None) -> Any:
        held = self._cache.find(c)
        if held is None:
            level, scale = int(self.circuit.level[c]), float(self.circuit.scale[c])
            components = int(self._components[c])
            if place is None or self._arena is None:
                blob = self.store.read(c)
            else:
                blob = self._arena.read(place, self.machine.cipher_size(components, level))
            held = self.machine.from_bytes(blob, level, scale, components)
            self._keep(c, held, len(blob))
        return held


def fork_worker(
    runner: TaskRunner, tasks: Sequence[Task], close: Iterator[socket.socket]
) -> tuple[int, socket.socket]:
    """Start a worker.

    Args:
      runner: shared with the child by copy-on-write.
      tasks: the plan.
      close: the server's sockets, which the child must not keep.

    Returns:
      Process number and the link to it.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ours.close()
        for link in close:
            link.close()
        _loop(theirs, runner, tasks)
        status = 0
    except ProtocolError:
        status = 0
    finally:
        os._exit(status)


def _loop(link: socket.socket, runner: TaskRunner, tasks: Sequence[Task]) -> None:
    while True:
        header, _ = receive(link)
        places = {int(c): int(place) for c, place in header["places"]}
        try:
            answer: dict[str, Any] = runner.run(tasks[int(header["task"])], places).to_message()
        except Exception as error:
            answer = {"error": to_message(error)}
        answer["jax"] = "jax" in sys.modules
        send(link, answer)
