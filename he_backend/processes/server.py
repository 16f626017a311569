"""The server's process: evaluates a Circuit with public and evaluation keys only. Imports no JAX.

It may be asked to prepare while keys are made; then it loads the evaluation keys, listens on a Unix
socket (0600) for the clients, and runs batch after batch: it forks workers that share what it
holds, hands out ready tasks until all are done, and ends the workers. One thread waits on all links
at once. A worker that dies is replaced and its task given out again; a client that refuses ends the
session.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
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
from he_backend.processes.memory import grown_bytes, peak_bytes, resident_bytes, shared_bytes
from he_backend.processes.messages import SMALL, Told, receive, send
from he_backend.processes.pending import Pending
from he_backend.processes.prepared import Prepared, Stopped
from he_backend.processes.states.checkpoints import Checkpoints
from he_backend.processes.states.left import Left, Source
from he_backend.processes.store import Journal, Store
from he_backend.processes.tasks import Task
from he_backend.processes.transit import Arena, Transit
from he_backend.processes.worker import TaskRunner, fork_worker
from hesim.circuit.plain.execute import Spent
from hesim.circuit.sizes import available

__all__ = ["SLOWER", "ServedBatch", "Server", "main"]

_TASK_ATTEMPTS = 3

_ARENA_PART = 8
_ARENA_BYTES = 1 << 31
"""Of the memory that is free, ciphertexts on their way take one part in so many, and so much, at
most; more of them lie in files.
"""

_PAUSE_SECONDS = 120.0
"""A client that stops in the middle of a message is given up."""

SLOWER = 100.0
"""A task may take another so many times the seconds that are predicted, on top of a fixed time."""


@dataclass
class _Peer:
    """A worker or a client, what it is doing, and until when it may be silent about it.

    forked: bytes that a worker shares with the server, resident when it began.
    """

    link: socket.socket
    name: str
    pid: int = 0
    task: Task | None = None
    forked: int = 0
    until: float = 0.0


class ServedBatch:
    """One batch on the server's side: what is done of it, and where its ciphertexts lie.

    Args:
      config: name and folder of the batch, digests of its operands, what the clients have of it,
        and which batch it goes on from, if from any.
      prepared, arena: of the session.
      kept: seconds from checkpoint to checkpoint; None if there are none.
      ahead: finished tasks that the caller may not have heard of.
      transit: where ciphertexts lie, of a store, the arena and their sizes.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        prepared: Prepared,
        arena: Arena,
        kept: float | None,
        ahead: int,
        transit: Callable[..., Transit] = Transit,
    ) -> None:
        folders, run = prepared.folders.of_batch(str(config["batch"])), str(config["name"])
        prepared.take(list(config["operands"]))
        self.started = time.monotonic()
        self.store = Store(folders.store, run)
        self.store.clean()
        self.source = self._source(config.get("after"), prepared)
        follows = self.source is not None
        self.schedule = prepared.scheduled(config.get("decrypt"), follows=follows)
        self.journal = Journal(folders.journal, run, self.schedule.digest)
        self.left = Left(folders.left, run)
        self.left.clean()
        self.journal.keep(len(self.schedule.tasks))
        served = config.get("served")
        missing = config.get("missing", ())
        self.pending = Pending(self.schedule, self.journal, self.store, missing, served, self.left)
        self.transit = transit(self.store, arena, prepared.size)
        parts = self.schedule, self.journal, self.transit
        self.checkpoints = Checkpoints(*parts, self.pending.done, kept)
        self.runner = TaskRunner(
            prepared.executor,
            self.store,
            last_tasks=self.schedule.last_readers,
            arena=arena,
        )
        self.deaths: Counter[int] = Counter()
        self.told = Told(ahead, len(self.schedule.tasks))
        self.last_op = -1
        self.begun = False
        """Whether the clients are ready for it."""

    def _source(self, after: Mapping[str, Any] | None, prepared: Prepared) -> Source | None:
        """Where its carried inputs are, if they are another batch's results."""
        if after is None:
            return None
        folder = prepared.folders.of_batch(str(after["batch"])).left
        return Source(Left(folder, str(after["name"])), prepared.circuit, prepared.machine)

    def do(self, task: Task) -> Spent:
        """A task of the server's own: what is carried is taken from the batch before, or kept."""
        started = time.thread_time()
        for c in task.instructions:
            if task.kind == "keep":
                self.left.write(c, self.transit.read(c))
            elif c in self.schedule.producer:
                assert self.source is not None
                self.transit.write(c, self.source.read(c))
        spent = Spent()
        spent.seconds[task.op] += time.thread_time() - started  # type: ignore[assignment]
        return spent

    def finish(self, task: Task, spent: Spent) -> None:
        """Note a task that is done, and let go of what nobody reads any more."""
        self.journal.finish(task.id, spent.to_message())
        self.checkpoints.finish(task, self.pending.finish(task))
        self.told.finished()
        self.last_op = task.op

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def spent(self) -> Spent:
        """In all attempts."""
        spent = Spent()
        for record in self.journal.records.values():
            spent.add(Spent.from_message(record))
        return spent


class Server:
    """The server's side of a session.

    Args:
      control: link to the caller: events out; "batch", "begin", "heard" (one for every progress)
        and "stop" in.
      config: worker numbers, finished tasks that the caller may not have heard of (`ahead`), where
        to listen and for whom; plain data.
      prepared: what was read and encoded before the keys were there.
    """

    def __init__(self, control: socket.socket, config: dict[str, Any], prepared: Prepared):
        self.control = control
        self.config = config
        self.prepared = prepared
        self.circuit, self.machine = prepared.circuit, prepared.machine
        self.peak_before = peak_bytes()
        prepared.load_keys()
        kept = float(config.get("checkpoint_seconds", 0.0))
        self.kept = kept if config.get("durable", True) else None
        self.ahead = int(config["ahead"])
        whole = sum(map(prepared.size, prepared.schedule.producer))
        self.arena = Arena(min(whole, _ARENA_BYTES, available() // _ARENA_PART))
        self.workers: list[_Peer] = []
        self.clients: list[_Peer] = []
        self.batch: ServedBatch | None = None
        self.selector = selectors.DefaultSelector()
        self.admission = Admission(
            Path(config["socket"]), self.selector, dict(config.get("token", {}))
        )
        self.silence = float(config.get("silence_seconds", 600.0))

    # The loop

    def serve(self) -> None:
        """Run batches until "stop"."""
        self.selector.register(self.control, selectors.EVENT_READ)
        self.selector.register(self.admission.listener, selectors.EVENT_READ)
        ready = {"processes": self._processes(), "jax": "jax" in sys.modules}
        send(self.control, {"type": "ready", "peak": self.peak_before, **ready})
        while True:
            self._hand_out()
            busy = self._do_own() or (self.batch is not None and self.batch.checkpoints.advance())
            for key, _ in self.selector.select(0.0 if busy else self._patience()):
                self._handle(key.fileobj)
            self.admission.show_out_the_silent()
            self._end_with_the_silent()
            self._tell()
            if self.batch is not None and self.batch.begun and not self.batch.pending.waiting:
                self._end_batch()

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
            raise Stopped
        if header.get("type") == "batch":
            self._start_batch(header)
        elif self.batch is not None and header.get("type") == "begin":
            self.batch.begun = True
        elif self.batch is not None and header.get("type") == "heard":
            self.batch.told.heard()

    def _running(self) -> ServedBatch:
        if self.batch is None:
            raise ProtocolError("there is no batch to go on with")
        return self.batch

    # Batches

    def _start_batch(self, header: dict[str, Any]) -> None:
        self.batch = self._new_batch(header)
        self._start_workers()
        redone = self.batch.pending.redone
        processes = self._processes()
        send(self.control, {"type": "batch", "redone": redone, "processes": processes})

    def _new_batch(self, header: dict[str, Any]) -> ServedBatch:
        return ServedBatch(header, self.prepared, self.arena, self.kept, self.ahead)

    def _end_batch(self) -> None:
        """Report what was spent. What workers hold of the batch goes with them."""
        batch = self._running()
        own = self._workers_bytes()
        spent = batch.spent()
        spent.encoded += self.prepared.encoded
        self.prepared.encoded = 0
        finished = {
            "type": "finished",
            "spent": spent.to_message(),
            "seconds": batch.journal.seconds + batch.seconds,
            "skipped": batch.pending.skipped,
            "tasks": len(batch.schedule.tasks),
            "replaced": batch.deaths.total(),
            "jax": self._workers_have_jax(),
            "peak": peak_bytes() - shared_bytes() + self.arena.top + own,
        }
        self._end_workers()
        batch.checkpoints.clear()
        batch.journal.close()
        self.batch = None
        send(self.control, finished)

    def _finish(self, task: Task, spent: Spent) -> None:
        self._running().finish(task, spent)
        self._tell()

    def _tell(self) -> None:
        """Let the caller know of what is done, if it is time, or the batch is."""
        batch = self.batch
        if batch is None or (due := batch.told.patience) is None:
            return
        pending = batch.pending
        if due and pending.waiting:
            return
        batch.told.say()
        op = self.circuit.op_names[batch.last_op] if batch.last_op >= 0 else "input"
        send(
            self.control,
            {
                "type": "progress",
                "done": pending.seconds,
                "total": batch.schedule.seconds,
                "tasks_done": len(pending.done),
                "tasks_total": len(batch.schedule.tasks),
                "done_before": pending.seconds_before,
                "elapsed": batch.seconds,
                "op": op,
                "processes": self._processes(),
            },
        )

    def _processes(self) -> dict[str, int]:
        return {"server": os.getpid(), **{w.name: w.pid for w in self.workers}}

    def _going(self) -> ServedBatch | None:
        """The batch at hand, unless the caller is far behind and could not stop what is begun."""
        batch = self.batch
        if batch is None or not batch.begun or batch.told.behind:
            return None
        return batch

    def _do_own(self) -> bool:
        """One task of the server's own, if there is one; whether there was."""
        batch = self._going()
        task = None if batch is None else self._take(batch, "server")
        if batch is None or task is None:
            return False
        self._finish(task, batch.do(task))
        return True

    def _hand_out(self) -> None:
        """Tasks to all who are idle."""
        batch = self._going()
        if batch is None:
            return
        self._hand_to_workers(batch)
        for client in self.clients:
            if client.task is None and (task := self._take(batch, "client")):
                client.task = task
                self._ask(client, task)

    def _take(self, batch: ServedBatch, side: str) -> Task | None:
        """The next task of the clients' or of the server's own."""
        return batch.pending.take(side)

    # Workers

    def _hand_to_workers(self, batch: ServedBatch) -> None:
        for worker in list(self.workers):
            if worker.task is None and (task := batch.pending.take("worker")):
                worker.task = task
                try:
                    send(worker.link, self._order(task))
                except ProtocolError:
                    self._replace(worker)

    def _order(self, task: Task) -> dict[str, Any]:
        """What a worker is told of a task."""
        transit = self._running().transit
        for c in task.gives:
            transit.reserve(c)
        return {"task": task.id, "places": transit.places((*task.needs, *task.gives))}

    def _start_workers(self) -> None:
        for k in range(int(self.config["workers"])):
            self._start_worker(f"worker {k}")

    def _workers_bytes(self) -> int:
        """What they have grown by, at most."""
        return sum(grown_bytes(worker.pid, worker.forked) for worker in self.workers)

    def _workers_have_jax(self) -> bool:
        """Whether one has loaded it; a forked one that has ends the batch."""
        return False

    def _start_worker(self, name: str) -> None:
        links = (p.link for p in (*self.workers, *self.clients))
        mine = (self.control, *self.admission.sockets(), *links)
        batch = self._running()
        pid, link = fork_worker(batch.runner, batch.schedule.tasks, iter(mine))
        forked = resident_bytes(pid) - shared_bytes(pid)
        self.workers.append(_Peer(link, name, pid, forked=forked))
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
        assert task is not None
        self._finish(task, Spent.from_message(header))

    def _replace(self, worker: _Peer) -> None:
        """Bury a dead worker, start another, and give its task out again."""
        batch = self._running()
        self.selector.unregister(worker.link)
        worker.link.close()
        _, status = os.waitpid(worker.pid, 0)
        self.workers.remove(worker)
        task = worker.task
        batch.deaths[-1 if task is None else task.id] += 1
        if task is not None:
            batch.pending.put_back(task)
        total = batch.deaths.total()
        if total > int(self.config["worker_deaths"]) or (
            task is not None and batch.deaths[task.id] >= _TASK_ATTEMPTS
        ):
            error = WorkerDied(
                f"{total} workers died ({_last_by(status)}. Finished tasks are kept: run again "
                "with the same run_dir to resume"
            )
            if task is not None and task.op >= 0:
                error.at(self.circuit.op_names[task.op], self.circuit.op_sources[task.op])
            raise error
        self._start_worker(worker.name)

    def _end_workers(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(worker.link)
            worker.link.close()
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
        self.workers.clear()

    # Clients

    def _admit(self, link: socket.socket | None) -> None:
        if link is not None:
            link.settimeout(_PAUSE_SECONDS)
            self.clients.append(_Peer(link, f"client {len(self.clients)}"))
            self.selector.register(link, selectors.EVENT_READ)

    def _patience(self) -> float | None:
        """Seconds after which somebody has been silent for too long, or a checkpoint is due, or the
        caller is to be told something; None if all may be silent.
        """
        ends = [c.until - time.monotonic() for c in self.clients if c.task is not None]
        due = [self.admission.seconds_left()]
        if self.batch is not None:
            due += [self.batch.checkpoints.patience, self.batch.told.patience]
        ends += [left for left in due if left is not None]
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
        read = self._running().transit.read
        if task.kind == "refresh":
            blobs = [read(self._argument(i)) for i in task.instructions]
        elif task.kind == "decrypt":
            blobs = [read(c) for c in task.instructions]
        client.until = time.monotonic() + self.silence + SLOWER * task.seconds
        request = {"type": task.kind, "instructions": list(task.instructions)}
        try:
            send(client.link, request, blobs)
        except PeerGoneError as error:
            raise _gone(client) from error

    def _hear_client(self, client: _Peer) -> None:
        task, client.task = client.task, None
        makes = () if task is None or task.kind == "decrypt" else task.instructions
        sizes = [self.prepared.size(i) for i in makes]
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
        batch = self._running()
        for i, blob in zip(makes, blobs, strict=True):
            level, scale = int(self.circuit.level[i]), float(self.circuit.scale[i])
            self.machine.check_bytes(blob, level, scale, 2)
            if i in batch.schedule.producer:
                batch.transit.write(i, blob)
        spent = Spent()
        spent.seconds[task.op] += float(seconds)  # type: ignore[assignment]
        name = {"input": "inputs", "refresh": "refreshes"}.get(task.kind)
        if name:
            spent.counts[name] += len(task.instructions)
        self._finish(task, spent)

    def _argument(self, i: int) -> int:
        return self.circuit.operands(i)[0]

    # The end

    def close(self, *, keep: bool = False) -> None:
        """Stop the workers and close every link.

        keep: whether to write what a later attempt needs.
        """
        if self.batch is not None and keep:
            with contextlib.suppress(BackendError):  # of a full disk nobody hears any more
                self.batch.checkpoints.complete()
        self._end_workers()
        for client in self.clients:
            client.link.close()
        self.admission.close()
        place = Path(self.config["socket"])
        with contextlib.suppress(OSError):  # if the caller was killed, nobody else removes them
            place.unlink()
            place.parent.rmdir()
        self.selector.close()
        if self.batch is not None:
            self.batch.journal.close()


def _gone(client: _Peer) -> ClientGoneError:
    return ClientGoneError(
        f"{client.name} went away. Finished tasks are kept in a run_dir: run again with the same "
        f"one to resume"
    )


def _last_by(status: int) -> str:
    """How a worker ended, and what to do about it."""
    if not os.WIFSIGNALED(status):
        return f"the last by status {status})"
    number = os.WTERMSIG(status)
    advice = "if memory ran out, use fewer workers or a smaller batch"
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        advice = "its library broke down: if it does so again, take other parameters"
    return f"the last by signal {number}); {advice}"


class _Reported(BackendError):
    """An error that a worker has already put into message form."""

    def __init__(self, message: dict[str, Any]):
        super().__init__(str(message.get("text")))
        self.message = message


def main(kind: type[Server] = Server, preparing: type[Prepared] = Prepared) -> None:
    """Entry of the server process; its control link is standard input.

    kind, preparing: what serves, and what it does before it has keys.
    """
    os.umask(0o077)
    control = socket.socket(fileno=os.dup(0))
    server: Server | None = None
    deserted = False
    try:
        config, _ = receive(control)
        if config.get("type") == "stop":
            raise Stopped
        prepared = preparing(config)
        if config.get("type") == "prepare":
            config = prepared.encode_until(control)
        server = kind(control, config, prepared)
        server.serve()
    except _Reported as error:
        send(control, {"type": "error", "error": error.message})
    except Stopped:
        pass
    except PeerGoneError:  # a caller that is gone hears nothing, and may be back already
        deserted = True
    except Exception as error:
        with contextlib.suppress(ProtocolError):
            send(control, {"type": "error", "error": to_message(error)})
        if not isinstance(error, BackendError):
            raise
    finally:
        if server is not None:
            server.close(keep=not deserted)
    sys.stderr.flush()
    os._exit(0)  # taking a large heap to pieces takes a fifth of a second


if __name__ == "__main__":
    main()
