"""What a worker of the cluster does: it runs tasks of a Circuit with evaluation keys. No JAX.

A worker reads circuit, keys and operands when its first task comes, and keeps what it has encoded
in memory that is bounded. Results stay where they were made: a parcel holds ciphertexts, which
become bytes only if Dask moves them to another worker, to the coordinator, or to the disk.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Reschedule, WorkerPlugin, get_worker
from distributed.worker import Worker

from he_backend.clusters.supplies import Supply
from he_backend.errors import BackendError, to_message
from he_backend.processes.memory import peak_bytes, resident_bytes
from he_backend.processes.prepared import PLAIN_PART, evaluator_of
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.execute import Executor
from hesim.circuit.sizes import available

__all__ = ["Evaluation", "Parcel", "TaskFailed", "Work", "evaluate", "pick"]

_HELD = 0.6
"""Of a worker's memory limit, keys, tables and encoded plaintexts take so much at most: Dask spills
results from 0.7 on, and lets a worker wait from 0.8 on.
"""


_AGAIN_SECONDS = 0.2
"""A task is given back after so long where files are missing, which are sent meanwhile."""


class TaskFailed(BackendError):
    """What went wrong in a task, as `he_backend.errors.to_message` says it."""

    def __init__(self, message: dict[str, Any]):
        super().__init__(str(message.get("text")))
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskFailed, (self.message,)


@dataclass(frozen=True)
class Work:
    """A task as a worker is told of it.

    Attributes:
      session: its unique name. batch: name of the supply that says what its operands are.
      task: number in the schedule.
      instructions: ascending. needs: ciphertexts that it reads. parcels: those that it gives, in
        the parts in which they travel.
    """

    session: str
    batch: str
    task: int
    instructions: tuple[int, ...]
    needs: tuple[int, ...]
    parcels: tuple[tuple[int, ...], ...]


class Parcel:
    """Ciphertexts on their way from the task that made them to those that read them.

    Args:
      ciphers: by number, as bytes or opened. sizes: bytes of each.
      machine: made those that are opened.
    """

    def __init__(self, ciphers: Mapping[int, Any], sizes: Mapping[int, int], machine: Any = None):
        self._ciphers, self._sizes, self._machine = dict(ciphers), dict(sizes), machine

    @classmethod
    def of_bytes(cls, blobs: Mapping[int, bytes]) -> Parcel:
        """Of what a client, a store or another worker has."""
        return cls(blobs, {c: len(blob) for c, blob in blobs.items()})

    def blobs(self) -> dict[int, bytes]:
        """The bytes of each ciphertext, by number."""
        return {
            c: held if isinstance(held, bytes) else self._machine.to_bytes(held)
            for c, held in list(self._ciphers.items())
        }

    def open(self, wanted: Iterable[int], circuit: Circuit, machine: Any) -> dict[int, Any]:
        """Those of them that are wanted, opened, and kept so. Raises BlobError for what is no
        ciphertext.
        """
        self._machine = machine
        for c in self._ciphers.keys() & wanted:
            if isinstance(held := self._ciphers[c], bytes):
                level, parts = int(circuit.level[c]), int(circuit.components[c])
                self._ciphers[c] = machine.from_bytes(held, level, float(circuit.scale[c]), parts)
        return {c: self._ciphers[c] for c in self._ciphers.keys() & wanted}

    def __sizeof__(self) -> int:
        return sum(self._sizes.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel.of_bytes, (self.blobs(),)


class Evaluation(WorkerPlugin):
    """A session on a worker.

    Args:
      session: unique name, by which tasks find it. machine: its name.
      circuit: name of the Circuit's file. keys: names of those of the keys. steps: that they rotate
        by. repeated: whether there is more than one batch to be expected.
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
    ):
        self.name = self.session = session
        self.machine_name, self.circuit_name = machine, circuit
        self.key_names, self.steps, self.repeated = list(keys), list(steps), repeated
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        self._operands: tuple[str, ...] = ()

    def setup(self, worker: Worker) -> None:
        """Note whose files these are."""
        self._worker = worker

    def teardown(self, worker: Worker) -> None:
        """Let go of keys and plaintexts."""
        del worker
        self._executor = None

    def run(self, work: Work, parcels: Iterable[Parcel]) -> list[Parcel]:
        """The parcels that a task gives; one task of a process at a time."""
        with self._lock:
            executor = self._ready(work.batch)
            circuit, machine = executor.circuit, executor.machine
            ciphers: dict[int, Any] = {}
            for parcel in parcels:
                ciphers.update(parcel.open(work.needs, circuit, machine))
            gives = {c for parcel in work.parcels for c in parcel}
            spent = executor.run(work.instructions, ciphers, gives.__contains__)
            report = {
                "batch": work.batch,
                "task": work.task,
                "spent": spent.to_message(),
                "peak": peak_bytes(),
                "jax": "jax" in sys.modules,
                "worker": self._worker.address,
            }
            self._worker.log_event(self.session, report)
            return [self._parcel(executor, part, ciphers) for part in work.parcels]

    def _parcel(self, executor: Executor, part: Sequence[int], ciphers: dict[int, Any]) -> Parcel:
        circuit, machine = executor.circuit, executor.machine
        size = machine.cipher_size
        sizes = {c: size(int(circuit.components[c]), int(circuit.level[c])) for c in part}
        return Parcel({c: ciphers[c] for c in part}, sizes, machine)

    def _ready(self, batch: str) -> Executor:
        """The executor with a batch's operands. Raises `_Missing`, BlobError."""
        wanted = tuple(self._order(batch))
        if self._executor is None:
            circuit = Circuit.load(self._file(self.circuit_name))
            machine = self._machine(circuit)
            self._executor = Executor(
                circuit,
                machine,
                [self._operand(name) for name in wanted],
                plain_bytes=self._room(),
                repeated=self.repeated,
            )
        elif wanted != self._operands:
            held = dict(zip(self._operands, self._executor.operands, strict=True))
            fresh = [held[name] if name in held else self._operand(name) for name in wanted]
            self._executor.replace_operands(fresh)
        self._operands = wanted
        return self._executor

    def _machine(self, circuit: Circuit) -> Any:
        machine = evaluator_of(circuit, self.machine_name)
        folders = {self._file(name).parent for name in self.key_names}
        if len(folders) > 1:
            raise BackendError("the keys of the session lie in several folders of the worker")
        machine.load_keys(next(iter(folders), Path()), self.steps)
        return machine

    def _room(self) -> int:
        """Bytes for encoded plaintexts, now that the keys are there.

        Raises:
          BackendError: what is there is too much already.
        """
        limit, free = self._worker.memory_manager.memory_limit, available()
        if limit is None:
            return free // PLAIN_PART
        held = resident_bytes()
        if held > _HELD * limit:
            raise BackendError(
                f"keys and tables leave a worker no room: {held / 1e9:.2f} GB are held, and its "
                f"limit is {limit / 1e9:.2f} GB. Give workers at least "
                f"{held / _HELD / 1e9 + 0.1:.1f} GB each: dask worker --memory-limit, or "
                "LocalCluster(memory_limit=...)"
            )
        return min(int(_HELD * limit) - held, free // PLAIN_PART)

    def _operand(self, name: str) -> np.ndarray:
        return np.load(self._file(name), allow_pickle=False)

    def _order(self, batch: str) -> list[str]:
        """Names of a batch's operands. Raises `_Missing`."""
        supply = self._worker.plugins.get(batch)
        if not isinstance(supply, Supply):
            raise _Missing(f"the batch {batch} is not known on {self._worker.address}")
        return supply.order

    def _file(self, name: str) -> Path:
        """A file of the session's. Raises `_Missing` if this worker does not have it."""
        for supply in list(self._worker.plugins.values()):
            if isinstance(supply, Supply) and supply.session == self.session:
                path = supply.path(name) if name in supply.files else None
                if path is not None:
                    return path
        raise _Missing(f"{name} of the session {self.session} is not on {self._worker.address}")

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_executor", "_operands", "_worker")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._executor, self._operands = threading.Lock(), None, ()


class _Missing(BackendError):
    """A worker lacks a file of the session's."""


def evaluate(work: Work, *parcels: Parcel) -> Parcel | list[Parcel]:
    """A task, on whatever worker this is: its parcel, or parcels if there are several.

    Raises:
      TaskFailed: with what went wrong.
    """
    worker, failed = get_worker(), None
    try:
        session = worker.plugins.get(work.session)
        if not isinstance(session, Evaluation):
            raise _Missing(f"the session {work.session} is not known on {worker.address}")
        found = session.run(work, parcels)
        return found if len(found) > 1 else found[0]
    except _Missing as error:
        worker.log_event(work.session, {"missing": str(error), "worker": worker.address})
    except Exception as error:
        failed = TaskFailed(to_message(error))
    if failed is not None:  # raised here, it does not take what it came from along
        raise failed
    time.sleep(_AGAIN_SECONDS)
    raise Reschedule


def pick(parcels: Sequence[Parcel], k: int) -> Parcel:
    """One of several parcels of a task."""
    return parcels[k]
