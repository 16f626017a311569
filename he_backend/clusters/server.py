"""The coordinator of a run on a cluster: the server's process, whose workers are Dask's. No JAX.

It stands between the key holder's processes, which are on its host, and the cluster, which never
hears of them: it hands on inputs and refreshed values, and brings what is to be refreshed or
decrypted. It keeps those, so that a lost worker costs time only; with a run_dir it also brings what
a later attempt needs, at checkpoints. It loads no evaluation key itself.
"""

from __future__ import annotations

import functools
import selectors
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from he_backend.clusters.cluster import Cluster, need_distributed
from he_backend.clusters.placing import Placement
from he_backend.clusters.waves import Waves
from he_backend.errors import BackendError, ClusterError, WorkerDied
from he_backend.machines.table import find
from he_backend.processes.folders import read_manifest
from he_backend.processes.messages import receive
from he_backend.processes.prepared import Prepared, Stopped
from he_backend.processes.server import SLOWER, ServedBatch, Server, main
from he_backend.processes.store import Store
from he_backend.processes.tasks import Task
from he_backend.processes.transit import Arena, Transit
from hesim.circuit.plain.execute import Spent

if TYPE_CHECKING:
    from he_backend.clusters.crew import Crew

__all__ = ["ClusterPrepared", "ClusterServer"]

_PIECE = 1.0
"""A piece of work takes so many times the seconds of a task, about."""


class ClusterPrepared(Prepared):
    """A session on the coordinator's side: the workers of the cluster encode, and have the keys."""

    def encode_until(self, control: socket.socket) -> dict[str, Any]:
        """Nothing is encoded here; what the caller has to say. Raises Stopped."""
        header, _ = receive(control)
        if header.get("type") == "stop":
            raise Stopped
        return header

    def _encode_once(self, stop: Callable[[], bool]) -> None:
        """Nothing, likewise."""

    def load_keys(self) -> None:
        """Nothing: the coordinator sends keys, or their place, and checks ciphertexts only."""

    @property
    def piece_seconds(self) -> float:
        """Seconds that a worker should be given to do in one go."""
        return _PIECE * self._task_seconds

    @property
    def digests(self) -> list[str]:
        """Of the public operands of the batch at hand, in order."""
        return list(self._digests)


class ClusterTransit(Transit):
    """Ciphertexts here, as on one host, or on the cluster.

    Args:
      crew: has the rest. Others as of `Transit`.
    """

    def __init__(self, store: Store, arena: Arena, size: Callable[[int], int], *, crew: Crew):
        super().__init__(store, arena, size)
        self.crew = crew

    def read(self, cipher: int) -> bytes:
        """The bytes of a ciphertext, brought from the cluster if they must be."""
        if self._is_here(cipher) or not self.crew.holds(cipher):
            return super().read(cipher)
        return self.crew.fetch(cipher)

    def _is_here(self, cipher: int) -> bool:
        return super().holds(cipher) or self.store.path(cipher).exists()

    def arrived(self, cipher: int) -> bool:
        """Whether it can be read without waiting for the cluster."""
        return self._is_here(cipher) or not self.crew.holds(cipher)

    def holds(self, cipher: int) -> bool:
        """Whether it lies in memory, here or on the cluster, or will."""
        return super().holds(cipher) or self.crew.holds(cipher)

    def give_back(self, ciphers: Iterable[int]) -> None:
        """Nobody reads these from memory any more, neither here nor there."""
        given = list(ciphers)
        super().give_back(given)
        self.crew.release(given)


class ClusterServer(Server):
    """The server's side of a session on a cluster; arguments as of `Server`."""

    def __init__(self, control: socket.socket, config: dict[str, Any], prepared: ClusterPrepared):
        self.supplied: dict[str, frozenset[str]] = {}
        self.outside: set[int] = set()
        self.out: dict[int, float] = {}
        self.heard = time.monotonic()
        self.waves: Waves | None = None
        self.placement: Placement
        self.parked: deque[Task] = deque()
        self.crew = _crew(config, prepared)
        super().__init__(control, config, prepared)

    def serve(self) -> None:
        """Run batches until "stop"."""
        self.selector.register(self.crew.link, selectors.EVENT_READ)
        super().serve()

    def _handle(self, link: Any) -> None:
        if link is self.crew.link:
            self._hear_cluster()
        else:
            super()._handle(link)

    # Batches

    def _new_batch(self, header: dict[str, Any]) -> ServedBatch:
        transit = functools.partial(ClusterTransit, crew=self.crew)
        self.crew.end()
        batch = ServedBatch(header, self.prepared, self.arena, self.kept, self.ahead, transit)
        name = f"{self.crew.session}-{uuid.uuid4().hex[:8]}"
        self._supply_operands(name)
        assert isinstance(self.prepared, ClusterPrepared)
        longest = self.prepared.piece_seconds
        self.placement = Placement(batch.schedule, self.prepared.size, longest)
        self.crew.begin(name, self.placement)
        self.waves = Waves(batch.pending)
        self.parked.clear()
        self.out.clear()
        others = (t for t in batch.schedule.tasks if t.side != "worker")
        self.outside = {c for task in others for c in task.needs}
        return batch

    def _supply_operands(self, name: str) -> None:
        """Have the operands of the batch at hand where the workers are, and no others."""
        prepared = self.prepared
        assert isinstance(prepared, ClusterPrepared)
        order = [f"{digest}.npy" for digest in prepared.digests]
        known = frozenset[str]().union(*self.supplied.values())
        fresh = sorted(set(order) - known)
        folder = prepared.folders.operands
        files = {
            f: ((folder / f).stat().st_size, digest)
            for f, digest in zip(order, prepared.digests)
            if f in fresh
        }
        self.crew.supply(name, folder, files, order)
        for before in [n for n, held in self.supplied.items() if held.isdisjoint(order)]:
            self.crew.drop(before)
            del self.supplied[before]
        self.supplied[name] = frozenset(fresh)

    def _start_workers(self) -> None:
        """They are there."""

    def _end_workers(self) -> None:
        """They stay; what they hold of the batch they let go of."""
        self.crew.end()

    def _workers_bytes(self) -> int:
        return sum(self.crew.peaks.values())

    def _workers_have_jax(self) -> bool:
        return self.crew.jax

    def _hand_to_workers(self, batch: ServedBatch) -> None:
        assert self.waves is not None
        tasks = self.waves.take()
        if tasks:
            if not self.out:
                self.heard = time.monotonic()
            self.out.update((task.id, task.seconds) for task in tasks)
            how = batch.transit.read, self.prepared.size, self.outside.__contains__
            self.crew.give(batch.schedule, tasks, *how)

    def _finish(self, task: Task, spent: Spent) -> None:
        super()._finish(task, spent)
        self.out.pop(task.id, None)
        assert self.waves is not None
        self.waves.finish(task)
        self.placement.finish(task)

    # Ciphertexts that are on their way here

    def _take(self, batch: ServedBatch, side: str) -> Task | None:
        """The next task whose ciphertexts are here; others wait until they are."""
        for _ in range(len(self.parked)):
            task = self.parked.popleft()
            if task.side == side and self._arrived(batch, task):
                return task
            self.parked.append(task)
        while task := super()._take(batch, side):
            if self._arrived(batch, task):
                return task
            self.parked.append(task)
        return None

    def _arrived(self, batch: ServedBatch, task: Task) -> bool:
        transit = batch.transit
        assert isinstance(transit, ClusterTransit)
        return all(map(transit.arrived, task.needs))

    # What the cluster says

    def _patience(self) -> float | None:
        ends = [super()._patience(), self._cluster_left()]
        known = [end for end in ends if end is not None]
        return min(known) if known else None

    def _cluster_left(self) -> float | None:
        """Seconds until the cluster has been silent for too long; None if it has nothing to do."""
        if self.batch is None or not self.out:
            return None
        longest = SLOWER * max(self.out.values())
        return max(0.0, self.heard + self.silence + longest - time.monotonic())

    def _end_with_the_silent(self) -> None:
        super()._end_with_the_silent()
        if self._cluster_left() == 0.0:
            raise ClusterError(
                f"no worker of the cluster has finished a task for {self.silence:.0f} seconds: its "
                "workers may be waiting for memory, which their logs say; give them more. Finished "
                "tasks are kept in a run_dir: run again with the same one to resume"
            )

    def _hear_cluster(self) -> None:
        from he_backend.clusters.crew import Arrived, Done, Failed

        self.heard = time.monotonic()
        events = self.crew.events()
        batch = self.batch
        if batch is None:
            return
        for event in events:
            if isinstance(event, Done):
                for number, spent in event.tasks.items():
                    self._done(batch, number, spent)
            elif isinstance(event, Arrived):
                for c, blob in event.blobs.items():
                    if c in self.outside and not self._read_by_all(batch, c):
                        batch.transit.write(c, blob)
            elif isinstance(event, Failed):
                raise self._located(event.task, event.error)
            else:
                self._count_lost(batch)

    def _read_by_all(self, batch: ServedBatch, c: int) -> bool:
        return batch.pending.done.issuperset(batch.schedule.consumers.get(c, ()))

    def _done(self, batch: ServedBatch, number: int, spent: dict[str, Any]) -> None:
        if number not in batch.pending.done:  # else done again for a worker that was lost
            self._finish(batch.schedule.tasks[number], Spent.from_message(spent))

    def _count_lost(self, batch: ServedBatch) -> None:
        batch.deaths[-1] += 1
        if batch.deaths.total() > int(self.config["worker_deaths"]):
            raise WorkerDied(
                f"{batch.deaths.total()} workers of the cluster were lost; if memory ran out, give "
                "them more (`dask worker --memory-limit`) or use a smaller batch. Finished tasks "
                "are kept: run again with the same run_dir to resume"
            )

    def _located(self, number: int, error: BackendError) -> BackendError:
        """A worker's death is told with the operation that it died of."""
        batch = self._running()
        if number >= 0 and isinstance(error, WorkerDied):
            op = batch.schedule.tasks[number].op
            if op >= 0:
                return error.at(self.circuit.op_names[op], self.circuit.op_sources[op])
        return error

    def close(self, *, keep: bool = False) -> None:
        """As of a Server; the workers let go of the session."""
        super().close(keep=keep)
        self.crew.close()


def _crew(config: dict[str, Any], prepared: Prepared) -> Crew:
    """The cluster's workers, which have what they need from now on.

    Raises:
      ClusterError: the cluster cannot be used.
    """
    need_distributed()
    from he_backend.clusters import connecting, crew, evaluating

    machine = str(config.get("machine", "pyfhel"))
    cluster = Cluster.from_plain(config["cluster"])
    folders, manifest = prepared.folders, read_manifest(prepared.folders.key_manifest)
    client = connecting.connect(cluster, machine if find(machine).encrypts else None)
    session = f"hesim-{uuid.uuid4().hex[:8]}"
    shared = crew.share_hosts(client, session)
    keys = {name: (int(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
    circuit = {
        folders.circuit.name: (folders.circuit.stat().st_size, str(config["circuit_digest"]))
    }
    evaluation = evaluating.Evaluation(
        session,
        machine,
        folders.circuit.name,
        list(keys),
        manifest["steps"],
        repeated=bool(config.get("several", False)),
        shared=shared,
    )
    found = crew.Crew(client, evaluation, float(config.get("silence_seconds", 600.0)))
    found.supply(f"{session}-keys", folders.keys, keys)
    found.supply(f"{session}-circuit", folders.server, circuit)
    return found


if __name__ == "__main__":
    main(ClusterServer, ClusterPrepared)
