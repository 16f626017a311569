"""What is to be run encrypted, as the caller's side hands it from one room to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from he_backend.errors import BackendError
from he_backend.processes.folders import Folders
from he_backend.processes.messages import Progress
from hesim.circuit.circuit import Circuit

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """What to run encrypted.

    Attributes:
      circuit: the instructions. decrypt: ciphertexts to decrypt.
      inputs: encrypted leaves. operands: public operands, both float64.
      folders: of the server and of the client.
      ranges: calibrated ranges of slot values, by ciphertext.
      workers, clients: processes. worker_deaths: how many may die before the run gives up.
      progress: called on every finished task; what it raises ends the run.
      ahead: finished tasks that it may not have been told of yet; the run waits at so many.
      task_seconds: predicted seconds that a task should take.
      durable: whether finished tasks are kept for a later attempt.
      machine: its name in `he_backend.machines.table`.
      silence_seconds: a client that does not answer for so long, and 100 times what its task should
        take, ends the run.
    """

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

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("clients", 1), ("worker_deaths", 0), ("ahead", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise BackendError(f"{name}={value!r} must be a whole number, at least {least}")
