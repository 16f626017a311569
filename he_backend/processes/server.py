"""The server's process: evaluates a Circuit with public and evaluation keys only. Imports no JAX.

It may be asked to prepare while keys are made; then it loads the evaluation keys, forks workers
that share them, listens on a Unix socket (0600) for the client, and hands out ready tasks until
all are done. One thread waits on all links at once. A worker that dies is replaced and its task
given out again; a client that refuses ends the run.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_backend.errors import (
    BackendError,
    ClientGoneError,
    ClientRefusedError,
    PeerGoneError,
    ProtocolError,
    WorkerDied,
    to_message,
)
from he_backend.processes.admission import Admission
from he_backend.processes.arena import Arena
from he_backend.processes.memory import peak_bytes, private_bytes, shared_bytes
from he_backend.processes.messages import SMALL, receive, send
from he_backend.processes.prepared import Prepared
from he_backend.processes.store import Journal, Store
from he_backend.processes.tasks import Schedule, Task
from he_backend.processes.transit import Transit
from he_backend.processes.worker import TaskRunner, fork_worker
from hesim.circuit.plain.execute import Spent
from hesim.circuit.sizes import available

__all__ = ["Server", "main", "unfinished", "unserved"]

_TASK_ATTEMPTS = 3

_ARENA_PART = 8
_ARENA_BYTES = 1 << 31
"""Of the memory that is free, ciphertexts on their way take one part in so many, and so much, at
most; more of them lie in files.
"""

_PAUSE_SECONDS = 120.0
"""A client that stops in the middle of a message is given up."""

_SLOWER = 100.0
"""A client's task may take so many times the seconds that are predicted, on top of a fixed time."""


@dataclass
class _Peer:
    """A worker or a client, what it is doing, and until when it may be silent about it."""

    link: socket.socket
    name: str
    pid: int = 0
    task: Task | None = None
    grown: int = 0
    until: float = 0.0


class Server:
    """One run on the server's side.

    Args:
      control: link to the caller: events out, "heard" (one for every progress) and "stop" in.
      config: folders, the run's name, worker numbers, ciphertexts to decrypt, finished tasks that
        the caller may not have heard of (`ahead`), what the clients served before; plain data.
      prepared: what was read and encoded before the keys were there.
    """

    def __init__(self, control: socket.socket, config: dict[str, Any], prepared: Prepared):
        self.control = control
        self.config = config
        run, folders = str(config.get("name", "")), prepared.folders
        self.circuit, self.machine = prepared.circuit, prepared.machine
        self.schedule = prepared.schedule
        prepared.load_keys()
        self.store = Store(folders.store, run)
        self.store.clean()
        self.journal = Journal(folders.journal, run)
        self.journal.keep(len(self.schedule.tasks))
        self.components = self.circuit.components
        durable = bool(config.get("durable", True))
        whole = sum(map(self._size, self.schedule.producer))
        arena = Arena(min(whole, _ARENA_BYTES, available() // _ARENA_PART))
        self.transit = Transit(self.store, arena, self._size, durable)
        self.runner = TaskRunner(
            prepared.executor,
            self.store,
            last_tasks=self.schedule.last_readers,
            arena=arena,
            durable=durable,
        )
        self.workers: list[_Peer] = []
        self.clients: list[_Peer] = []
        self.deaths: Counter[int] = Counter()
        self.unheard = 0
        self.selector = selectors.DefaultSelector()
        self.admission = Admission(
            Path(config["socket"]), self.selector, dict(config.get("token", {}))
        )
        self.silence = float(config.get("silence_seconds", 600.0))
        self.started = time.monotonic()
        self._resume()

    # Bookkeeping of tasks

    def _resume(self) -> None:
        served = self.config.get("served")
        self.served = None if served is None else frozenset(served)
        done = {n for n in self.journal.records if self._kept(self.schedule.tasks[n])}
        done -= unfinished(self.schedule, done, self.store)
        self.skipped = len(done)
        self.redone = len(self.journal.records) - len(done) + self.journal.damaged
        if not self.journal.attempts and served:  # it is gone, what the client knows is not
            known = (t for t in self.schedule.tasks if t.kind in ("input", "refresh"))
            self.redone += sum(map(self._kept, known))
        self.done = done
        self.done_before = sum(self.schedule.tasks[number].seconds for number in done)
        self.done_seconds = self.done_before
        pending = unserved(self.schedule, done)
        self.waiting = {n: before for n, before in pending.items() if n not in done}
        self.followers: dict[int, list[int]] = {}
        for number, before in self.waiting.items():
            for t in before:
                self.followers.setdefault(t, []).append(number)
        self.ready: dict[bool, list[int]] = {False: [], True: []}
        for number, before in self.waiting.items():
            if not before:
                self._make_ready(number)

    def _kept(self, task: Task) -> bool:
        """Whether the client still has what it decrypted, and knows what it encrypted."""
        if task.kind == "decrypt":
            return set(self.config.get("missing", ())).isdisjoint(task.instructions)
        if task.kind == "evaluate" or self.served is None:
            return True
        return self.served.issuperset(task.instructions)

    def _make_ready(self, number: int) -> None:
        heapq.heappush(self.ready[self.schedule.tasks[number].client], number)

    def _finish(self, task: Task, spent: Spent) -> None:
        self.journal.finish(task.id, spent.to_message())
        self.done.add(task.id)
        self.done_seconds += task.seconds
        self.waiting.pop(task.id)
        for number in self.followers.get(task.id, ()):
            self.waiting[number].discard(task.id)
            if not self.waiting[number]:
                self._make_ready(number)
        consumers = self.schedule.consumers
        self.transit.delete(c for c in task.needs if self.done.issuperset(consumers[c]))
        self._report_progress(task)

    def _report_progress(self, task: Task) -> None:
        self.unheard += 1
        op = self.circuit.op_names[task.op] if task.op >= 0 else "input"
        send(
            self.control,
            {
                "type": "progress",
                "done": self.done_seconds,
                "total": self.schedule.seconds,
                "tasks_done": len(self.done),
                "tasks_total": len(self.schedule.tasks),
                "done_before": self.done_before,
                "elapsed": time.monotonic() - self.started,
                "op": op,
                "processes": self._processes(),
            },
        )

    def _processes(self) -> dict[str, int]:
        return {"server": os.getpid(), **{w.name: w.pid for w in self.workers}}

    # The loop

    def serve(self) -> None:
        """Run all tasks, then report what was spent and wait for "stop"."""
        self.selector.register(self.control, selectors.EVENT_READ)
        self.selector.register(self.admission.listener, selectors.EVENT_READ)
        for k in range(int(self.config["workers"])):
            self._start_worker(f"worker {k}")
        send(
            self.control,
            {
                "type": "ready",
                "processes": self._processes(),
                "jax": "jax" in sys.modules,
                "redone": self.redone,
            },
        )
        while self.waiting:
            self._hand_out()
            for key, _ in self.selector.select(self._patience()):
                self._handle(key.fileobj)
            self.admission.show_out_the_silent()
            self._end_with_the_silent()
        self._send_finished()
        while True:
            self._control()

    def _handle(self, link: Any) -> None:
        if link is self.control:
            self._control()
        elif self.admission.concerns(link):
            self._admit(self.admission.hear(link))
        else:
            worker = next((w for w in self.workers if w.link is link), None)
            if worker is not None:
                self._hear_worker(worker)
            else:
                self._hear_client(next(c for c in self.clients if c.link is link))

    def _control(self) -> None:
        header, _ = receive(self.control)
        if header.get("type") == "stop":
            raise _Stopped
        if header.get("type") == "heard":
            self.unheard -= 1

    def _hand_out(self) -> None:
        """Tasks to all who are idle, unless the caller is far behind and could not stop them."""
        if self.unheard >= int(self.config["ahead"]):
            return
        for worker in self.workers:
            if worker.task is None and self.ready[False]:
                worker.task = self.schedule.tasks[heapq.heappop(self.ready[False])]
                try:
                    send(worker.link, self._order(worker.task))
                except ProtocolError:
                    self._replace(worker)
        for client in self.clients:
            if client.task is None and self.ready[True]:
                client.task = self.schedule.tasks[heapq.heappop(self.ready[True])]
                self._ask(client, client.task)

    def _order(self, task: Task) -> dict[str, Any]:
        """What a worker is told of a task."""
        for c in task.gives:
            self.transit.reserve(c)
        return {"task": task.id, "places": self.transit.places((*task.needs, *task.gives))}

    # Workers

    def _start_worker(self, name: str) -> None:
        links = (p.link for p in (*self.workers, *self.clients))
        mine = (self.control, *self.admission.sockets(), *links)
        pid, link = fork_worker(self.runner, self.schedule.tasks, iter(mine))
        self.workers.append(_Peer(link, name, pid))
        self.selector.register(link, selectors.EVENT_READ)

    def _hear_worker(self, worker: _Peer) -> None:
        try:
            header, _ = receive(worker.link)
        except ProtocolError:
            self._replace(worker)
            return
        task, worker.task = worker.task, None
        if "error" in header:
            raise _Reported(header["error"])
        if header["jax"]:
            raise BackendError("a worker has imported JAX, which it must not")
        worker.grown = max(worker.grown, int(header["grown"]))
        assert task is not None
        self._finish(task, Spent.from_message(header))

    def _replace(self, worker: _Peer) -> None:
        """Bury a dead worker, start another, and give its task out again."""
        self.selector.unregister(worker.link)
        worker.link.close()
        _, status = os.waitpid(worker.pid, 0)
        self.workers.remove(worker)
        task = worker.task
        self.deaths[-1 if task is None else task.id] += 1
        if task is not None:
            heapq.heappush(self.ready[False], task.id)
        total = self.deaths.total()
        if total > int(self.config["worker_deaths"]) or (
            task is not None and self.deaths[task.id] >= _TASK_ATTEMPTS
        ):
            how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
            error = WorkerDied(
                f"{total} workers died (the last by {how}); if memory ran out, use fewer workers "
                f"or a smaller batch. Finished tasks are kept: run again with the same run_dir to "
                f"resume"
            )
            if task is not None and task.op >= 0:
                error.at(self.circuit.op_names[task.op], self.circuit.op_sources[task.op])
            raise error
        self._start_worker(worker.name)

    # Clients

    def _admit(self, link: socket.socket | None) -> None:
        if link is not None:
            link.settimeout(_PAUSE_SECONDS)
            self.clients.append(_Peer(link, f"client {len(self.clients)}"))
            self.selector.register(link, selectors.EVENT_READ)

    def _patience(self) -> float | None:
        """Seconds after which somebody has been silent for too long; None if all may be."""
        ends = [c.until - time.monotonic() for c in self.clients if c.task is not None]
        left = self.admission.seconds_left()
        ends += [] if left is None else [left]
        return max(0.0, min(ends)) if ends else None

    def _end_with_the_silent(self) -> None:
        for client in self.clients:
            if client.task is not None and client.until <= time.monotonic():
                raise ProtocolError(
                    f"{client.name} has not answered for {self.silence:.0f} seconds. Finished "
                    f"tasks are kept in a run_dir: run again with the same one to resume"
                )

    def _ask(self, client: _Peer, task: Task) -> None:
        blobs: list[bytes] = []
        if task.kind == "refresh":
            blobs = [self.transit.read(self._argument(i)) for i in task.instructions]
        elif task.kind == "decrypt":
            blobs = [self.transit.read(c) for c in task.instructions]
        client.until = time.monotonic() + self.silence + _SLOWER * task.seconds
        request = {"type": task.kind, "instructions": list(task.instructions)}
        try:
            send(client.link, request, blobs)
        except PeerGoneError as error:
            raise _gone(client) from error

    def _hear_client(self, client: _Peer) -> None:
        task, client.task = client.task, None
        makes = () if task is None or task.kind == "decrypt" else task.instructions
        sizes = [self._size(i) for i in makes]
        try:
            header, blobs = receive(client.link, sizes, SMALL)
        except PeerGoneError as error:
            raise _gone(client) from error
        except ProtocolError as error:
            raise ClientRefusedError(f"{client.name}: {error}") from error
        if header.get("type") != "done" or task is None:
            raise ClientRefusedError(f"{client.name} ended the exchange")
        seconds = header.get("seconds")
        if len(blobs) != len(makes) or not isinstance(seconds, int | float):
            raise ClientRefusedError(
                f"{client.name} answered with something else than it was asked"
            )
        for i, blob in zip(makes, blobs, strict=True):
            level, scale = int(self.circuit.level[i]), float(self.circuit.scale[i])
            self.machine.from_bytes(blob, level, scale, 2)
            if i in self.schedule.producer:
                self.transit.write(i, blob)
        spent = Spent()
        spent.seconds[task.op] += float(seconds)  # type: ignore[assignment]
        name = {"input": "inputs", "refresh": "refreshes"}.get(task.kind)
        if name:
            spent.counts[name] += len(task.instructions)
        self._finish(task, spent)

    def _argument(self, i: int) -> int:
        return self.circuit.operands(i)[0]

    def _size(self, i: int) -> int:
        return self.machine.cipher_size(int(self.components[i]), int(self.circuit.level[i]))

    # The end

    def _send_finished(self) -> None:
        # What a worker was forked with, and wrote to, is its own by now but makes it no larger.
        own = sum(max(w.grown, private_bytes(w.pid)) for w in self.workers)
        spent = Spent()
        for record in self.journal.records.values():
            spent.add(Spent.from_message(record))
        send(
            self.control,
            {
                "type": "finished",
                "spent": spent.to_message(),
                "seconds": self.journal.seconds + time.monotonic() - self.started,
                "skipped": self.skipped,
                "tasks": len(self.schedule.tasks),
                "replaced": self.deaths.total(),
                "peak": peak_bytes() - shared_bytes() + self.transit.arena.top + own,
            },
        )

    def close(self) -> None:
        """Stop the workers and close every link."""
        for worker in self.workers:
            worker.link.close()
            try:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
        for client in self.clients:
            client.link.close()
        self.admission.close()
        place = Path(self.config["socket"])
        with contextlib.suppress(OSError):  # if the caller was killed, nobody else removes them
            place.unlink()
            place.parent.rmdir()
        self.selector.close()
        self.journal.close()


class _Stopped(Exception):
    """The caller asked to stop."""


def _gone(client: _Peer) -> ClientGoneError:
    return ClientGoneError(
        f"{client.name} went away. Finished tasks are kept in a run_dir: run again with the same "
        f"one to resume"
    )


class _Reported(BackendError):
    """An error that a worker has already put into message form."""

    def __init__(self, message: dict[str, Any]):
        super().__init__(str(message.get("text")))
        self.message = message


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


def main() -> None:
    """Entry of the server process; its control link is standard input."""
    os.umask(0o077)
    control = socket.socket(fileno=os.dup(0))
    server: Server | None = None
    try:
        config, _ = receive(control)
        prepared = Prepared(config)
        if config.get("type") == "prepare":
            prepared.encode_until(control)
            config, _ = receive(control)
            if config.get("type") == "stop":
                raise _Stopped
        server = Server(control, config, prepared)
        server.serve()
    except _Reported as error:
        send(control, {"type": "error", "error": error.message})
    except (_Stopped, PeerGoneError):  # a caller that is gone hears nothing
        pass
    except Exception as error:
        with contextlib.suppress(ProtocolError):
            send(control, {"type": "error", "error": to_message(error)})
        if not isinstance(error, BackendError):
            raise
    finally:
        if server is not None:
            server.close()
    sys.stderr.flush()
    os._exit(0)  # taking a large heap to pieces takes a fifth of a second


if __name__ == "__main__":
    main()
