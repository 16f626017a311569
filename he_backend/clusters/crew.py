"""The workers of a cluster, as the coordinator of a run sees them. Imports no JAX.

Pieces of work go to Dask as a graph, wave after wave, each with the worker that is to do it and the
urgency that its order says; Dask sees to it, on another worker if that one is gone, and moves what
one makes for another. What comes from outside, inputs and refreshed values,
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
from distributed.comm.addressing import get_address_host

from he_backend.clusters.connecting import register
from he_backend.clusters.evaluating import (
    Evaluation,
    TaskFailed,
    Work,
    evaluate,
    for_others,
    pick,
    take_in,
)
from he_backend.clusters.hostfiles import leave_mark, sees_marks
from he_backend.clusters.housekeeping import Housekeeping
from he_backend.clusters.parcels import Parcel
from he_backend.clusters.placing import Placement
from he_backend.clusters.supplies import Supply, sees
from he_backend.clusters.waves import grouped
from he_backend.errors import BackendError, ClusterError, WorkerDied, from_message
from he_backend.processes.tasks import Schedule, Task

__all__ = ["Arrived", "Crew", "Done", "Event", "Failed", "Lost", "share_hosts"]

_AT_ONCE = 1 << 23
"""Bytes of data in one graph, about: larger ones are sent in several."""

Key = tuple[Any, ...]
Files = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Done:
    """A piece of work is done. tasks: by number, what each spent, as of `Spent.to_message`."""

    tasks: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Arrived:
    """Ciphertexts that the key holder or the coordinator reads are here, as bytes."""

    blobs: dict[int, bytes]


@dataclass(frozen=True)
class Lost:
    """A worker, or its evaluator, went away unexpectedly."""

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
        self._placement: Placement
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

    def begin(self, batch: str, placement: Placement) -> None:
        """Whatever is given out from now on is of another batch. batch: name of its supply."""
        self.end()
        with self._lock:
            prefix = f"hesim-evaluate-{uuid.uuid4().hex[:8]}"
            self._batch, self._placement = _Batch(batch, prefix), placement

    def give(
        self,
        schedule: Schedule,
        tasks: Sequence[Task],
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
        pieces = self._placement.pieces(tasks, sorted(self._workers) or [""])
        reader = {task.id: piece.id for piece in pieces for task in piece.tasks}
        where: dict[Key, str] = {}

        def readers(c: int) -> frozenset[int]:
            return frozenset(reader.get(n, -1) for n in schedule.consumers.get(c, ()))

        for piece in pieces:
            needs = piece.needs(schedule)
            fresh = [c for c in needs if c not in batch.parcels]
            for part in grouped(fresh, readers, size):
                blobs = {c: read(c) for c in part}
                key = (batch.prefix, piece.id, "data", part[0])
                graph[key] = Node(key, take_in, self.session, Parcel(blobs))
                where[key] = piece.worker
                batch.hold(part, key)
                sent += sum(map(len, blobs.values()))
            parts = tuple(grouped(piece.gives(schedule), readers, size, here))
            work = Work(
                self.session,
                batch.name,
                piece.id,
                tuple((t.id, t.instructions, t.needs, t.gives) for t in piece.tasks),
                needs,
                parts,
                tuple(tuple(map(size, part)) for part in parts),
                tuple(any(map(here, part)) for part in parts),
            )
            held = dict.fromkeys(batch.parcels[c].key for c in needs)
            key = (batch.prefix, piece.id)
            graph[key] = Node(key, evaluate, work, *map(TaskRef, held))
            where[key] = piece.worker
            for k, part in enumerate(parts):
                own = key if len(parts) == 1 else (*key, k)
                if own != key:
                    graph[own] = Node(own, pick, TaskRef(key), k)
                    where[own] = piece.worker
                batch.hold(part, own)
            batch.brought[piece.id] = [batch.parcels[p[0]] for p in parts if any(map(here, p))]
            if sent > _AT_ONCE:
                self._submit(graph, where)
                graph, sent = {}, 0
        self._submit(graph, where)

    def _submit(self, graph: dict[Key, Node], where: Mapping[Key, str]) -> None:
        """Give a graph to Dask. where: addresses of workers that are to do a node, if they can."""
        if not graph:
            return
        batch, name = self._batch, uuid.uuid4().hex
        annotations: dict[str, Any] = {"priority": _urgency}
        if all(where.values()):
            annotations["workers"] = lambda key: where.get(key)
            annotations["allow_other_workers"] = True
        layer = MaterializedLayer(graph, annotations=annotations)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            whole = HighLevelGraph({name: layer}, {name: set()})
            futures = dict(zip(graph, self.client.get(whole, list(graph), sync=False)))
        for key, future in futures.items():
            if key in batch.by_key:
                batch.by_key[key].future = future
            if len(key) == 2:
                batch.pieces[key[1]] = future
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
        sent = self.client.submit(for_others, parcel.future, pure=False)
        gather = functools.partial(self.client.gather, sent, asynchronous=True)
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
        for future in [*list(batch.pieces.values()), *held]:
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
        if "evaluator" in said:
            self._emit(Lost(str(said["worker"])))
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
        """A piece is over, one way or the other; called by a thread of Dask's."""
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


def share_hosts(client: Client, session: str) -> bool:
    """Whether all workers of an address have a folder in common, the session's."""

    def mark(dask_worker: Any) -> None:
        leave_mark(session, dask_worker.local_directory, dask_worker.address)

    def sees(dask_worker: Any) -> bool:
        return sees_marks(session, dask_worker.local_directory, near[dask_worker.address])

    run: Any = client.run
    hosts: dict[str, list[str]] = {}
    for address, failed in run(mark, on_error="return").items():
        if failed is None:
            hosts.setdefault(get_address_host(address), []).append(address)
    near = {address: others for others in hosts.values() for address in others}
    found = run(sees, on_error="return", workers=list(near))
    return all(answer is True for answer in found.values())


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
        self.pieces: dict[int, Future] = {}
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
        """A worker's report of a piece; whichever of the two comes second makes it done."""
        if said["batch"] != self.name:
            return None
        piece = int(said["work"])
        if piece in self._finished:
            self._finished.discard(piece)
            return self._done(piece, said)
        self._reports[piece] = said
        return None

    def finish(self, piece: int) -> Done | None:
        """Dask says that a piece is finished."""
        if piece in self._reports:
            return self._done(piece, self._reports.pop(piece))
        self._finished.add(piece)
        return None

    def _done(self, piece: int, said: dict[str, Any]) -> Done:
        future = self.pieces.pop(piece, None)
        if future is not None and (self.prefix, piece) not in self.by_key:
            future.release()
        return Done({int(task): spent for task, spent in said["tasks"]})


def _urgency(key: Key) -> int:
    """Dask prefers larger numbers; of our tasks the first ones are the most urgent."""
    return -int(key[1])
