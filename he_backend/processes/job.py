"""What is to be run encrypted, as the caller's side hands it from one room to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from he_backend.clusters.cluster import Cluster
from he_backend.errors import need_count
from he_backend.processes.folders import Folders
from he_backend.processes.messages import Progress
from hesim.circuit.circuit import Circuit

__all__ = ["Batch", "Job", "Setup"]


@dataclass(frozen=True)
class Setup:
    """What is the same for all batches of a session.

    Attributes:
      circuit: the instructions. decrypt: ciphertexts to decrypt, where a batch names no others.
      folders: of the server and of the client.
      workers, clients: processes. worker_deaths: how many may die in a batch before it gives up.
      progress: called on every finished task; where they are hundreds, some ten times a second and
        after the last one. What it raises ends the batch.
      ahead: finished tasks that it may not have heard of yet; the run waits at so many.
      task_seconds: predicted seconds that a task should take.
      durable: whether finished tasks are kept for a later attempt.
      checkpoint_seconds: so often, at most, what is done by then is written to the disk; 0: after
        every task. A batch that ends early, by an error or since it is told to, is written, too.
      machine: its name in `he_backend.machines.table`.
      silence_seconds: a client that does not answer for so long, and 100 times what its task should
        take, ends the batch.
      several: whether more batches than one are to be expected: then plaintexts that have room are
        encoded once, by the server, before the first one, and stay.
      cluster: of Dask, whose workers evaluate instead of `workers` processes of this host.
    """

    circuit: Circuit
    decrypt: Sequence[int]
    folders: Folders
    workers: int = 2
    clients: int = 2
    worker_deaths: int = 3
    progress: Callable[[Progress], None] | None = None
    ahead: int = 32
    task_seconds: float = 0.1
    silence_seconds: float = 600.0
    machine: str = "pyfhel"
    durable: bool = True
    checkpoint_seconds: float = 30.0
    several: bool = False
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("clients", 1), ("worker_deaths", 0), ("ahead", 1)):
            need_count(name, getattr(self, name), least)


@dataclass(frozen=True)
class Batch:
    """What one batch is run on.

    Attributes:
      inputs: encrypted leaves. operands: public operands, both float64.
      ranges: calibrated ranges (low, high) of slot values, by ciphertext.
      name: of its folders.
      decrypt: ciphertexts to decrypt; those of the Setup by default.
      after: name of a batch whose carried results take the place of carried inputs, which are
        neither looked at nor encrypted then.
      public: public leaves of the result, by number, kept for whoever reads what the batch leaves.
    """

    inputs: Sequence[np.ndarray]
    operands: Sequence[np.ndarray]
    ranges: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    name: str = "0"
    decrypt: Sequence[int] | None = None
    after: str | None = None
    public: Mapping[int, np.ndarray] = field(default_factory=dict)

    def decrypted(self, setup: Setup) -> list[int]:
        """Ciphertexts to decrypt."""
        return [int(c) for c in (setup.decrypt if self.decrypt is None else self.decrypt)]


@dataclass(frozen=True)
class Job:
    """One batch with all that it takes: the attributes of a Setup and of a Batch."""

    circuit: Circuit
    decrypt: Sequence[int]
    inputs: Sequence[np.ndarray]
    operands: Sequence[np.ndarray]
    folders: Folders
    ranges: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    workers: int = 2
    clients: int = 2
    worker_deaths: int = 3
    progress: Callable[[Progress], None] | None = None
    ahead: int = 32
    task_seconds: float = 0.1
    silence_seconds: float = 600.0
    machine: str = "pyfhel"
    durable: bool = True
    checkpoint_seconds: float = 30.0
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        assert self.setup  # which refuses what no process can be told

    @property
    def setup(self) -> Setup:
        names = [field.name for field in dataclasses.fields(Setup) if field.name != "several"]
        return Setup(**{name: getattr(self, name) for name in names})

    @property
    def batch(self) -> Batch:
        return Batch(self.inputs, self.operands, self.ranges, self.folders.batch)
