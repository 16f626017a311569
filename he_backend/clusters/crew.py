"""The workers of a cluster, as the coordinator of a run sees them. Imports no JAX.

Dask schedules: tasks go to it as a graph, wave after wave, with the urgency that their order says,
and what one makes for another stays there. What comes from outside, inputs and refreshed values,
is part of the graph as data, so whatever a lost worker had is computed again from what the
scheduler holds. What happens is told by events, which other threads bring and one thread reads.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask._task_spec import Task as Node
from dask._task_spec import TaskRef
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from distributed import Client, Future, KilledWorker

from he_backend.clusters.connecting import register
from he_backend.clusters.evaluating import Evaluation, Parcel, TaskFailed, Work, evaluate, pick
from he_backend.clusters.housekeeping import Housekeeping
from he_backend.clusters.supplies import Supply, sees
from he_backend.clusters.waves import grouped
from he_backend.errors import BackendError, ClusterError, WorkerDied, from_message
from he_backend.processes.tasks import Schedule, Task

__all__ = ["Arrived", "Crew", "Done", "Event", "Failed", "Lost"]

_AT_ONCE = 1 << 23
"""Bytes of data in one graph, about: larger ones are sent in several."""

Key = tuple[Any, ...]
Files = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Done:
    """A task is done. report: what its worker said of it, see `Evaluation.run`."""

    task: int
    report: dict[str, Any]


@dataclass(frozen=True)
class Arrived:
    """Ciphertexts that the key holder or the coordinator reads are here, as bytes."""

    blobs: dict[int, bytes]


@dataclass(frozen=True)
class Lost:
    """A worker went away unexpectedly."""

    worker: str


@dataclass(frozen=True)
class Failed:
    """The batch cannot go on. task: which was to blame, -1 if none."""

    task: int
    error: BackendError


Event = Done | Arrived | Lost | Failed


class Crew:
    """Workers of one session.

    Args:
      client: connected. evaluation: what a session is, on a worker.
      patience: seconds without any worker after which a batch is given up.

    Attributes:
      link: has something to read when there are events.
      peaks: largest resident bytes by worker.
    """

    def __init__(self, client: Client, evaluation: Evaluation, patience: float = 600.0):
        self.client: Any = client  # its methods wait or not, which types do not tell
        self.session = evaluation.session
        self.peaks: dict[str, int] = {}
        self.jax = False
        self.link, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._patience = patience
        self._supplies: dict[str, Supply] = {}
        self._sent = False
        self._lock = threading.Lock()
        self._batch = _Batch("", "")
        self._workers = set(client.scheduler_info(n_workers=-1)["workers"])
        client.subscribe_topic(self.session, self._told)
        client.subscribe_topic("all", self._news)
        housekeeping = Housekeeping(self.session, client.id)
        register(client, housekeeping, housekeeping.name)
        register(client, evaluation, self.session)

    # Files

    def supply(self, name: str, folder: Path, files: Files, order: Sequence[str] = ()) -> None:
        """Have every worker, now and later, read these files; they are sent if one does not see
        them.

        Args:
          name: of the supply, unique. folder, files, order: as of a `Supply`.
        """
        supply = Supply(self.session, name, str(folder), files, order=order)
        seen = not files or self._seen(folder, files)
        self._supplies[name] = supply
        self._register(supply, sent=self._sent or not seen)

    def _seen(self, folder: Path, files: Files) -> bool:
        """Whether all workers see the files; one that is lost meanwhile counts as one that does
        not.
        """
        found = self.client.run(sees, str(folder), dict(files), on_error="return")
        return all(answer is True for answer in found.values())

    def drop(self, name: str) -> None:
        """No task reads the files of a supply any more."""
        if self._supplies.pop(name, None) is not None:
            self.client.unregister_worker_plugin(name)

    def _register(self, supply: Supply, *, sent: bool) -> None:
        if sent:
            folder = Path(supply.folder)
            contents = {name: (folder / name).read_bytes() for name in supply.files}
            supply = Supply(
                supply.session, supply.name, supply.folder, supply.files, contents, supply.order
            )
        register(self.client, supply, supply.name)

    def _send_all(self) -> None:
        """Send the files to all, since somebody joined who does not see them. What goes wrong ends
        the batch, whose tasks would be given back for good.
        """
        try:
            for supply in list(self._supplies.values()):
                self._register(supply, sent=True)
        except Exception as error:
            self._emit(Failed(-1, self._explained(error)))

    # A batch

    def begin(self, batch: str) -> None:
        """Whatever is given out from now on is of another batch. batch: name of its supply."""
        self.end()
        with self._lock:
            self._batch = _Batch(batch, f"hesim-evaluate-{uuid.uuid4().hex[:8]}")

    def give(
        self,
        schedule: Schedule,
        tasks: Iterable[Task],
        read: Callable[[int], bytes],
        size: Callable[[int], int],
        here: Callable[[int], bool],
    ) -> None:
        """Have these tasks done.

        Args:
          schedule: which they are of. tasks: each after those that it waits for.
          read: bytes of a ciphertext that no task of the cluster makes. size: how many, of any.
          here: whether somebody outside of the cluster reads a ciphertext.
        """
        batch, graph, sent = self._batch, dict[Key, Node](), 0
        for task in tasks:
            fresh = [c for c in task.needs if c not in batch.parcels]
            for part in grouped(schedule, fresh, size):
                blobs = {c: read(c) for c in part}
                key = (batch.prefix, task.id, "data", part[0])
                graph[key] = Node(key, Parcel.of_bytes, blobs)
                batch.hold(part, key)
                sent += sum(map(len, blobs.values()))
            parts = tuple(grouped(schedule, task.gives, size, here))
            own_work = task.instructions, task.needs, parts
            work = Work(self.session, batch.name, task.id, *own_work)
            needs = dict.fromkeys(batch.parcels[c].key for c in task.needs)
            key = (batch.prefix, task.id)
            graph[key] = Node(key, evaluate, work, *map(TaskRef, needs))
            for k, part in enumerate(parts):
                own = key if len(parts) == 1 else (*key, k)
                if own != key:
                    graph[own] = Node(own, pick, TaskRef(key), k)
                batch.hold(part, own)
            batch.brought[task.id] = [batch.parcels[p[0]] for p in parts if any(map(here, p))]
            if sent > _AT_ONCE:
                self._submit(graph)
                graph, sent = {}, 0
        self._submit(graph)

    def _submit(self, graph: dict[Key, Node]) -> None:
        if not graph:
            return
        batch, name = self._batch, uuid.uuid4().hex
        layer = MaterializedLayer(graph, annotations={"priority": _urgency})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            whole = HighLevelGraph({name: layer}, {name: set()})
            futures = dict(zip(graph, self.client.get(whole, list(graph), sync=False)))
        for key, future in futures.items():
            if key in batch.by_key:
                batch.by_key[key].future = future
            if len(key) == 2:
                batch.tasks[key[1]] = future
                future.add_done_callback(lambda f, k=key[1], b=batch: self._ended(b, k, f))

    def holds(self, cipher: int) -> bool:
        """Whether a ciphertext of the batch is on the cluster, or will be."""
        return cipher in self._batch.parcels

    def fetch(self, cipher: int) -> bytes:
        """The bytes of a ciphertext that is on the cluster.

        Raises:
          BackendError: it could not be made, or the scheduler is gone.
        """
        parcel = self._batch.parcels[cipher]
        assert parcel.future is not None
        gather = functools.partial(self.client.gather, parcel.future, asynchronous=True)
        try:
            found = self.client.sync(gather, callback_timeout=self._patience)
            return found.blobs()[cipher]
        except Exception as error:
            raise self._explained(error) from error

    def release(self, ciphers: Iterable[int]) -> None:
        """Nobody reads these ciphertexts any more."""
        for c in ciphers:
            self._batch.release(c)

    def end(self) -> None:
        """Nothing of the batch is needed any more."""
        with self._lock:
            batch, self._batch = self._batch, _Batch("", "")
        held = [parcel.future for parcel in list(batch.by_key.values())]
        for future in [*list(batch.tasks.values()), *held]:
            if future is not None:
                future.release()

    def close(self) -> None:
        """Leave the cluster, whose workers let go of the session: see Housekeeping."""
        self.end()
        with contextlib.suppress(Exception):  # of a scheduler that is gone
            self.client.unsubscribe_topic("all")
            self.client.unsubscribe_topic(self.session)
        with contextlib.suppress(Exception):
            self.client.close(timeout=5)
        self.link.close()
        self._bell.close()

    # What happens

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        with contextlib.suppress(BlockingIOError):
            while self.link.recv(1 << 12, socket.MSG_DONTWAIT):
                continue
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def _emit(self, event: Event) -> None:
        self._events.put(event)
        with contextlib.suppress(OSError):  # a full bell rings already
            self._bell.send(b"!")

    def _told(self, event: tuple[float, dict[str, Any]]) -> None:
        """What a worker says on the session's topic."""
        _, said = event
        if "missing" in said:
            self._lacks(said)
            return
        worker, peak = str(said["worker"]), int(said["peak"])
        self.peaks[worker] = max(peak, self.peaks.get(worker, 0))
        self.jax = self.jax or bool(said["jax"])
        with self._lock:
            done = self._batch.report(said)
        if done is not None:
            self._emit(done)

    def _lacks(self, said: Mapping[str, Any]) -> None:
        if self._sent:
            return
        self._sent = True
        threading.Thread(target=self._send_all, daemon=True).start()

    def _news(self, event: tuple[float, dict[str, Any]]) -> None:
        """What the scheduler says of its workers."""
        _, said = event
        action, worker = said.get("action"), str(said.get("worker"))
        if action == "add-worker":
            self._workers.add(worker)
        elif action == "remove-worker" and worker in self._workers:
            self._workers.remove(worker)
            if not said.get("expected"):
                self._emit(Lost(worker))
            if not self._workers:
                self.client.loop.call_later(self._patience, self._give_up)

    def _give_up(self) -> None:
        if not self._workers:
            error = ClusterError(
                f"the cluster has had no worker for {self._patience:.0f} seconds; start some. "
                "Finished tasks are kept in a run_dir: run again with the same one to resume"
            )
            self._emit(Failed(-1, error))

    def _ended(self, batch: _Batch, task: int, future: Any) -> None:
        """A task is over, one way or the other; called by a thread of Dask's."""
        if batch is not self._batch:
            return
        status = future.status  # "pending" or "lost", too, if its worker has gone since it was done
        if status in ("error", "cancelled"):
            error = future.exception() if status == "error" else None
            self._emit(Failed(task, self._explained(error)))
            return
        brought = batch.brought.pop(task, [])
        if brought:
            self.client.loop.add_callback(self._bring, batch, task, brought)
        with self._lock:
            done = batch.finish(task)
        if done is not None:
            self._emit(done)

    async def _bring(self, batch: _Batch, task: int, parcels: list[_Held]) -> None:
        try:
            futures = [parcel.future for parcel in parcels]
            found = await self.client.gather(futures, asynchronous=True)
        except Exception as error:
            if batch is self._batch:
                self._emit(Failed(task, self._explained(error)))
            return
        if batch is self._batch:
            self._emit(Arrived({c: b for parcel in found for c, b in parcel.blobs().items()}))

    def _explained(self, error: BaseException | None) -> BackendError:
        if isinstance(error, TaskFailed):
            return from_message(error.message)
        if isinstance(error, KilledWorker):
            return WorkerDied(
                f"{error.allowed_failures + 1} workers died of one task; if memory ran out, give "
                "them more (`dask worker --memory-limit`) or use a smaller batch. Finished tasks "
                "are kept: run again with the same run_dir to resume"
            )
        if isinstance(error, BackendError):
            return error
        said = "its scheduler is gone" if error is None else f"{type(error).__name__}: {error}"
        return ClusterError(
            f"the cluster gave up ({said}). Finished tasks are kept in a run_dir: run again with "
            "the same one to resume"
        )


@dataclass
class _Held:
    """A parcel on the cluster, and which of its ciphertexts are still to be read."""

    key: Key
    left: set[int]
    future: Future | None = None


class _Batch:
    """What a batch has on the cluster.

    name: of its supply. prefix: of its keys.
    """

    def __init__(self, name: str, prefix: str):
        self.name, self.prefix = name, prefix
        self.parcels: dict[int, _Held] = {}
        self.by_key: dict[Key, _Held] = {}
        self.tasks: dict[int, Future] = {}
        self.brought: dict[int, list[_Held]] = {}
        self._reports: dict[int, dict[str, Any]] = {}
        self._finished: set[int] = set()

    def hold(self, part: Sequence[int], key: Key) -> None:
        held = self.by_key[key] = _Held(key, set(part))
        for c in part:
            self.parcels[c] = held

    def release(self, cipher: int) -> None:
        held = self.parcels.pop(cipher, None)
        if held is None:
            return
        held.left.discard(cipher)
        if not held.left:
            self.by_key.pop(held.key, None)
            if held.future is not None:
                held.future.release()

    def report(self, said: dict[str, Any]) -> Done | None:
        """A worker's report of a task; whichever of the two comes second makes it done."""
        if said["batch"] != self.name:
            return None
        task = int(said["task"])
        if task in self._finished:
            self._finished.discard(task)
            return self._done(task, said)
        self._reports[task] = said
        return None

    def finish(self, task: int) -> Done | None:
        """Dask says that a task is finished."""
        if task in self._reports:
            return self._done(task, self._reports.pop(task))
        self._finished.add(task)
        return None

    def _done(self, task: int, said: dict[str, Any]) -> Done:
        future = self.tasks.pop(task, None)
        if future is not None and (self.prefix, task) not in self.by_key:
            future.release()
        return Done(task, said)


def _urgency(key: Key) -> int:
    """Dask prefers larger numbers; of our tasks the first ones are the most urgent."""
    return -int(key[1])
