"""What a worker of the cluster does: it has tasks of a Circuit done, by an evaluator beside it. No
JAX.

A worker finds circuit, keys and operands when its first work comes, and starts the evaluator, which
reads them. Results stay on the host where they were made, in its memory: Dask sends names to other
workers there, and bytes to the coordinator, to other hosts, and to the disk. An evaluator that dies
takes the work at hand with it, and is replaced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from distributed import Reschedule, WorkerPlugin, get_worker
from distributed.worker import Worker

from he_backend.clusters.beside import Beside
from he_backend.clusters.hostfiles import HostFile, HostFolder
from he_backend.clusters.parcels import Parcel
from he_backend.clusters.supplies import Supply
from he_backend.errors import BackendError, PeerGoneError, to_message
from he_backend.processes.memory import peak_bytes

__all__ = ["Evaluation", "TaskFailed", "Work", "evaluate", "for_others", "pick", "take_in"]

_HELD = 0.4
"""Of a worker's memory limit, the evaluator's keys, tables and encoded plaintexts take so much at
most: Dask keeps results up to 0.6 of it in memory.
"""

_AGAIN_SECONDS = 0.2
"""A task is given back after so long where files are missing, which are sent meanwhile, or where
the evaluator is gone, of which the coordinator hears meanwhile.
"""


class TaskFailed(BackendError):
    """What went wrong in a task, as `he_backend.errors.to_message` says it."""

    def __init__(self, message: dict[str, Any]):
        super().__init__(str(message.get("text")))
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskFailed, (self.message,)


@dataclass(frozen=True)
class Work:
    """What a worker does in one go, as it is told of it.

    Attributes:
      session: its unique name. batch: name of the supply that says what its operands are.
      id: unique in the batch.
      tasks: of each its number in the schedule, its instructions, ascending, the ciphertexts that
        it reads, and those that it gives; tasks after those that they wait for.
      needs: ciphertexts that come from elsewhere. parcels: those that others read, in the parts in
        which they travel. sizes: bytes of each of these, likewise.
      brought: whether a parcel is for the coordinator.
    """

    session: str
    batch: str
    id: int
    tasks: tuple[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]
    needs: tuple[int, ...]
    parcels: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    brought: tuple[bool, ...]


class Evaluation(WorkerPlugin):
    """A session on a worker.

    Args:
      session: unique name, by which tasks find it. machine: its name.
      circuit: name of the Circuit's file. keys: names of those of the keys. steps: that they rotate
        by. repeated: whether there is more than one batch to be expected.
      shared: whether the workers of a host see each other's files in its memory.
    """

    def __init__(
        self,
        session: str,
        machine: str,
        circuit: str,
        keys: Sequence[str],
        steps: Sequence[int],
        *,
        repeated: bool,
        shared: bool = False,
    ):
        self.name = self.session = session
        self.machine_name, self.circuit_name = machine, circuit
        self.key_names, self.steps, self.repeated = list(keys), list(steps), repeated
        self.shared = shared
        self._lock = threading.Lock()
        self._folder: HostFolder | None = None
        self._beside: Beside | None = None
        self._operands: dict[str, str] = {}

    def setup(self, worker: Worker) -> None:
        """Note whose files these are."""
        self._worker = worker
        self._folder = HostFolder(self.session, worker.local_directory)

    def teardown(self, worker: Worker) -> None:
        """End the evaluator, and with it what it has of keys and plaintexts."""
        del worker
        folder, self._folder = self._folder, None
        self._end()
        if folder is not None:
            folder.close()

    def run(self, work: Work, parcels: Iterable[Parcel]) -> list[Parcel]:
        """The parcels that a piece of work gives; one at a time.

        Raises:
          PeerGoneError: the evaluator has ended. BackendError: it cannot be done.
        """
        with self._lock:
            folder = self._folder
            if folder is None:
                raise _Missing(f"the session {self.session} has ended on {self._worker.address}")
            gives = list(chain(*work.parcels))
            order = {
                "batch": work.batch,
                "operands": self._operand_files(work.batch),
                "tasks": work.tasks,
                "gives": gives,
            }
            if self._beside is None:
                self._beside = Beside(self._config(), folder)
            needs: dict[int, HostFile | bytes] = {}
            for parcel in parcels:
                needs.update(parcel.of(work.needs, folder))
            sizes = dict(zip(gives, chain(*work.sizes), strict=True))
            try:
                said, found = self._beside.run(order, needs, sizes)
            except PeerGoneError:
                self._end()
                raise
            finally:
                if self._folder is None:  # the session has ended meanwhile
                    self._end()
            report = {
                "batch": work.batch,
                "work": work.id,
                "tasks": said["tasks"],
                "peak": said["peak"] + peak_bytes(),
                "jax": said["jax"],
                "worker": self._worker.address,
            }
            self._worker.log_event(self.session, report)
            return [
                Parcel({c: found[c] for c in part}, shared=self.shared and not brought)
                for part, brought in zip(work.parcels, work.brought, strict=True)
            ]

    def taken_in(self, parcel: Parcel) -> Parcel:
        """What comes from outside, where the workers of the host see it."""
        if (folder := self._folder) is None:
            return parcel
        return Parcel(parcel.of(parcel.held, folder), shared=self.shared)

    def _end(self) -> None:
        beside, self._beside = self._beside, None
        if beside is not None:
            beside.close()

    def _config(self) -> dict[str, Any]:
        """What the evaluator has to know. Raises `_Missing`, BlobError."""
        folders = {self._file(name).parent for name in self.key_names}
        if len(folders) > 1:
            raise BackendError("the keys of the session lie in several folders of the worker")
        total = self._worker.memory_manager.memory_limit
        return {
            "machine": self.machine_name,
            "circuit": str(self._file(self.circuit_name)),
            "keys": str(next(iter(folders), Path())),
            "steps": self.steps,
            "repeated": self.repeated,
            "total": total,
            "limit": None if total is None else int(_HELD * total),
        }

    def _operand_files(self, batch: str) -> list[str]:
        """Files of a batch's operands. Raises `_Missing`, BlobError."""
        supply = self._worker.plugins.get(batch)
        if not isinstance(supply, Supply):
            raise _Missing(f"the batch {batch} is not known on {self._worker.address}")
        held = self._operands
        self._operands = {n: held[n] if n in held else str(self._file(n)) for n in supply.order}
        return [self._operands[name] for name in supply.order]

    def _file(self, name: str) -> Path:
        """A file of the session's. Raises `_Missing` if this worker does not have it."""
        for supply in list(self._worker.plugins.values()):
            if isinstance(supply, Supply) and supply.session == self.session:
                path = supply.path(name) if name in supply.files else None
                if path is not None:
                    return path
        raise _Missing(f"{name} of the session {self.session} is not on {self._worker.address}")

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_folder", "_beside", "_operands", "_worker")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._folder, self._beside = threading.Lock(), None, None
        self._operands = {}


class _Missing(BackendError):
    """A worker lacks a file of the session's."""


def evaluate(work: Work, *parcels: Parcel) -> Parcel | list[Parcel]:
    """A piece of work, on whatever worker this is: its parcel, or parcels if there are several.

    Raises:
      TaskFailed: with what went wrong.
    """
    worker, failed = get_worker(), None
    try:
        session = worker.plugins.get(work.session)
        if not isinstance(session, Evaluation):
            raise _Missing(f"the session {work.session} is not known on {worker.address}")
        found = session.run(work, parcels)
        return found if len(found) != 1 else found[0]
    except _Missing as error:
        worker.log_event(work.session, {"missing": str(error), "worker": worker.address})
    except PeerGoneError:
        worker.log_event(work.session, {"evaluator": work.id, "worker": worker.address})
    except Exception as error:
        failed = TaskFailed(to_message(error))
    if failed is not None:  # raised here, it does not take what it came from along
        raise failed
    time.sleep(_AGAIN_SECONDS)
    raise Reschedule


def take_in(session: str, parcel: Parcel) -> Parcel:
    """What comes from outside of the cluster."""
    found = get_worker().plugins.get(session)
    return found.taken_in(parcel) if isinstance(found, Evaluation) else parcel


def for_others(parcel: Parcel) -> Parcel:
    """A parcel for the coordinator, which may be on another host than its scheduler."""
    return parcel.for_others()


def pick(parcels: Sequence[Parcel], k: int) -> Parcel:
    """One of several parcels of a piece of work."""
    return parcels[k]
