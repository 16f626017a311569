"""An encrypted run from the caller's side: folders claimed, keys made, processes heard out.

The calling process plays data owner and model owner. It evaluates public operands, hands clear
inputs to the client through the client's folder, and never holds the secret key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from he_backend.errors import RunFolderError
from he_backend.processes.children import Processes, well_formed
from he_backend.processes.folders import Folders
from he_backend.processes.identity import claim
from he_backend.processes.job import Job
from he_backend.processes.keys import ensure_keys
from he_backend.processes.messages import Progress
from he_backend.processes.store import read_values
from he_backend.processes.temporary import temporary_folders
from hesim.circuit.plain.execute import Spent
from hesim.errors import FolderInUseError
from hesim.files import alone_in

__all__ = ["Job", "Result", "execute", "temporary_folders"]


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
      spent: counts and seconds by operation, earlier attempts included.
      seconds: wall-clock of all attempts, keys excluded. key_seconds: making keys, this time.
      peak_bytes: server, workers (beyond what they share with it) and clients, at their peaks.
      tasks: in all. skipped: done by earlier attempts. replaced: workers that died.
      imported_jax: whether any process other than the caller had JAX loaded.
      values: folder of the decrypted slot vectors. run: the run's name, to which they are bound.
    """

    spent: Spent
    seconds: float
    key_seconds: float
    peak_bytes: int
    tasks: int
    skipped: int
    replaced: int
    imported_jax: bool
    values: Path
    run: str

    def vector(self, c: int, slots: int) -> np.ndarray:
        """float64[slots]: decrypted slot values of ciphertext c."""
        values = read_values(self.values, self.run, c)
        if values is None or values.shape != (slots,):
            raise RunFolderError(
                f"the decrypted values of ciphertext {c} are gone from {self.values}, or damaged; "
                f"run again with the same run_dir to make them again"
            )
        return values


def execute(job: Job) -> Result:
    """Run `job`, resuming what its folders hold of the same computation.

    Raises:
      RunFolderError: the folders belong to another computation, are damaged, or cannot be written.
      BackendError: whatever the client, the server or a worker reports, with operation and source.
    """
    with _held(job.folders):
        claimed = claim(
            job.folders,
            job.circuit,
            job.operands,
            job.inputs,
            job.decrypt,
            job.task_seconds,
            job.machine,
        )
        _announce_keys(job)
        with Processes(job, claimed) as processes:
            if job.workers > 1:  # who asks for one wants one core to work
                processes.prepare()
            key_seconds = ensure_keys(
                job.folders,
                job.circuit.params,
                job.circuit.rotation_steps,
                claimed.name,
                job.machine,
            )
            processes.start()
            finished, jax_loaded = processes.listen()
            peak = processes.stop_clients()
    with well_formed("server"):
        return Result(
            spent=Spent.from_message(finished["spent"]),
            seconds=float(finished["seconds"]),
            key_seconds=key_seconds,
            peak_bytes=peak + int(finished["peak"]),
            tasks=int(finished["tasks"]),
            skipped=int(finished["skipped"]),
            replaced=int(finished["replaced"]),
            imported_jax=jax_loaded,
            values=job.folders.values,
            run=claimed.name,
        )


def _announce_keys(job: Job) -> None:
    """Say how many keys will be made, and how large they are, before making them."""
    if job.progress is not None and not job.folders.client_keys.exists():
        ledger = job.circuit.ledger
        size = f"{ledger.key_bytes / 1e6:.0f} MB"
        op = f"making {ledger.rotation_keys} rotation keys and the relinearization key, {size}"
        job.progress(Progress(0.0, 1.0, 0, 0, 0.0, float("nan"), op))


@contextlib.contextmanager
def _held(folders: Folders) -> Iterator[None]:
    """Hold both folders, so that two runs never share one."""
    with contextlib.ExitStack() as held:
        for folder in (folders.server, folders.client):
            try:
                held.enter_context(alone_in(folder))
            except FolderInUseError as error:
                raise RunFolderError(
                    f"another run is using {folder}; choose another run_dir"
                ) from error
            except OSError as error:
                raise RunFolderError(
                    f"{folder} cannot be written to ({error.strerror}); choose another run_dir"
                ) from error
        yield
