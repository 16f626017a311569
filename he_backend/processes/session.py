"""Encrypted batches from the caller's side: folders claimed, keys made, processes heard out.

The calling process plays data owner and model owner. It hands public operands to the server and
clear inputs to the client through their folders, and never holds the secret key. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BackendError, RunFolderError
from he_backend.processes.children import Processes, missing_values, well_formed
from he_backend.processes.folders import Folders
from he_backend.processes.identity import (
    Claimed,
    ClaimedBatch,
    claim,
    claim_batch,
    known_batch,
    operands_in_use,
    went_on_from,
)
from he_backend.processes.job import Batch, Job, Setup
from he_backend.processes.keys import MadeKeys, ensure_keys
from he_backend.processes.memory import need_memory
from he_backend.processes.messages import Progress
from he_backend.processes.states import reading
from he_backend.processes.states.ahead import request
from he_backend.processes.states.left import first_damaged, left_by, without_carried
from he_backend.processes.store import note_finished, read_finished, read_values
from he_backend.processes.temporary import temporary_folders
from hesim.circuit.plain.execute import Spent
from hesim.errors import FolderInUseError
from hesim.files import alone_in

__all__ = ["Batch", "Job", "Result", "Session", "Setup", "execute", "temporary_folders"]


@dataclass(frozen=True)
class Result:
    """What came out of a batch.

    Attributes:
      spent: counts and seconds by operation, earlier attempts included.
      seconds: wall-clock of all attempts, from ready processes to the last output.
      start_seconds: wall-clock until the processes were ready, where this batch started them:
        keys, plaintexts that are encoded beforehand.
      key_seconds: making keys, this time.
      peak_bytes: server, workers (beyond what they share with it) and clients, at their peaks in
        this session so far; or of the process that made keys, with what ran beside it.
      tasks: in all. skipped: done by earlier attempts. replaced: workers that died.
      imported_jax: whether any process other than the caller had JAX loaded.
      values: folder of the decrypted slot vectors. run: the batch's name, to which they are bound.
    """

    spent: Spent
    seconds: float
    start_seconds: float
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


class Session:
    """Runs batch after batch of one Circuit under one set of keys; a context manager.

    Processes start with the first batch that has something to do, and stay until the end, or until
    a batch fails: the next one starts them anew, with the same keys. Public operands that are the
    same as in the batch before stay encoded.

    Args:
      setup: what is the same for all batches.

    Raises:
      RunFolderError: the folders belong to another computation, are damaged, in use, or cannot be
        written.
    """

    def __init__(self, setup: Setup):
        self.setup = setup
        self._held = contextlib.ExitStack()
        self._processes: Processes | None = None
        self._claimed: Claimed | None = None
        self._written: dict[str, Path] = {}
        self._last: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._listening = False
        self._next: dict[str, Any] | None = None

    def __enter__(self) -> Session:
        setup = self.setup
        with contextlib.ExitStack() as held:
            held.enter_context(_alone(setup.folders))
            self._claimed = claim(setup.folders, setup.circuit, setup.task_seconds, setup.machine)
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._held:
            self._stop()
            self._claimed = None
            shutil.rmtree(self.setup.folders.ahead, ignore_errors=True)

    def done(self, name: str) -> bool:
        """Whether the batch of this name is finished, its outputs decrypted and whole.

        Raises:
          RunFolderError: no batch can have this name.
        """
        folders = self.setup.folders.of_batch(name)
        with contextlib.suppress(RunFolderError):
            batch = known_batch(folders, self._entered().name)
            return bool(batch) and self._finished(folders, batch) is not None
        return False

    def run(self, batch: Batch) -> Result:
        """Run a batch, going on from what its folders hold of it; a finished one is read back.

        Raises:
          RunFolderError: its folders hold another batch, are damaged, or cannot be written; or what
            it goes on from is gone, damaged, not finished, or another batch than it was.
          BackendError: whatever the client, the server or a worker reports, with operation and
            source.
        """
        folders = self.setup.folders.of_batch(batch.name)
        claimed = self._claim(batch, folders)
        self._last = frozenset(claimed.operands)
        finished = self._finished(folders, claimed.name)
        if finished is not None:
            return _result(finished, folders, claimed, skipped=int(finished["tasks"]))
        try:
            started = time.monotonic()
            made = self._start(claimed)
            start_seconds = time.monotonic() - started
            finished = self._evaluate(batch, claimed, made)
        except BaseException:
            self._stop()
            if not self.setup.durable:
                self.forget(batch.name)
            raise
        note_finished(folders.journal, claimed.name, finished)
        taken = {"start_seconds": start_seconds, "key_seconds": made.seconds}
        return _result({**finished, **taken}, folders, claimed, skipped=int(finished["skipped"]))

    def read(
        self, name: str, ranges: Mapping[int, tuple[float, float]]
    ) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """Slot vectors of the results of a finished batch by ciphertext, with what it left, which
        the key holder decrypts; and the public leaves of its result by number.

        ranges: as of a Batch.

        Raises:
          RunFolderError: there is no such batch, it is not finished, or what it left is lost.
          BackendError: what the key holder reports.
        """
        circuit, setup = self.setup.circuit, self.setup
        entered = self._entered()
        folders = setup.folders.of_batch(name)
        _, _, unique = left_by(folders, entered.name, name).partition("/")
        found, missing = reading.values_of(circuit, folders, unique)
        if missing:
            asked = self._requests(folders, unique, missing)
            with Processes(setup, entered) as processes:
                processes.read(folders, unique, ranges, asked)
            found, missing = reading.values_of(circuit, folders, unique)
        if missing:
            raise RunFolderError(
                f"decrypted values are gone from {folders.values}, or damaged; read it again"
            )
        return found, reading.public_of(folders, unique)

    def _requests(self, folders: Folders, name: str, ciphers: Sequence[int]) -> reading.Requests:
        """What the reading process is asked to decrypt, from where a batch left it."""
        return reading.requests(self.setup.circuit, folders, name, ciphers)

    def damaged(self, name: str) -> str | None:
        """What a finished batch left that is gone or damaged, as text; None if all is whole."""
        folders = self.setup.folders.of_batch(name)
        try:
            unique = known_batch(folders, self._entered().name)
            reading.public_of(folders, unique)
        except RunFolderError as error:
            return str(error)
        lost = first_damaged(self.setup.circuit, folders, unique)
        return None if lost is None else f"{lost} is gone or damaged"

    def public(self, name: str) -> dict[int, np.ndarray] | None:
        """Public leaves of a batch's result by number; None if they are not known."""
        folders = self.setup.folders.of_batch(name)
        with contextlib.suppress(RunFolderError):
            return reading.public_of(folders, known_batch(folders, self._entered().name))
        return None

    def encrypt_ahead(self, name: str, inputs: Sequence[np.ndarray]) -> None:
        """Have the inputs of a batch that is to be run next, going on from one before if anything
        is carried, encrypted while another is run. It may be called by another thread; what goes
        wrong shows when the batch is run.

        inputs: encrypted leaves, as of a Batch.
        """
        folders = self.setup.folders
        with contextlib.suppress(BackendError), self._lock:
            self._next = request(folders.ahead, self.setup.circuit, name, inputs)
            self._tell_ahead()

    def _tell_ahead(self) -> None:
        """Pass on what is to be encrypted next, if a batch is being run."""
        if self._listening and self._next is not None and self._processes is not None:
            self._processes.encrypt_ahead(self._next)
            self._next = None

    def _claim(self, batch: Batch, folders: Folders) -> ClaimedBatch:
        """Write a batch's files; those of one that is finished need no batch before it any more."""
        run, after, inputs = self._entered().name, "", batch.inputs
        if batch.after is not None:
            if not self.setup.circuit.carried:
                raise BackendError(
                    f"the batch {batch.name!r} is to go on from {batch.after!r}, but the circuit "
                    f"carries nothing: hesim.compile(program, params, carried={{argument: result}})"
                )
            inputs = without_carried(self.setup.circuit, inputs)
            after = self._forgotten(batch, folders) or left_by(folders, run, batch.after)
        given = batch.operands, inputs, batch.decrypted(self.setup)
        claimed = claim_batch(folders, run, *given, self._written, after)
        if self.setup.circuit.carried:
            reading.note_public(folders, claimed.name, batch.public)
        self._written.update((digest, folders.operand(digest)) for digest in claimed.operands)
        return claimed

    def _forgotten(self, batch: Batch, folders: Folders) -> str:
        """What a finished batch went on from, if nothing is left of that one."""
        if batch.after in self.setup.folders.batches or not self.done(batch.name):
            return ""
        found = went_on_from(folders)
        return found if found.startswith(f"{batch.after}/") else ""

    def forget(self, name: str) -> None:
        """Remove what there is of a batch on either side: inputs, outputs, work in progress; and
        public operands that neither the last batch nor another one in the folders has.
        """
        folders = self.setup.folders.of_batch(name)
        for folder in (folders.work, folders.own):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(RunFolderError):  # of a batch that nobody knows, all may be
            kept = self._last | operands_in_use(folders)
            for path in [p for p in folders.operands.glob("*.npy") if p.stem not in kept]:
                path.unlink(missing_ok=True)
                self._written.pop(path.stem, None)

    def _entered(self) -> Claimed:
        if self._claimed is None:
            raise BackendError("the session is not open; enter it: with session as s: s.run(...)")
        return self._claimed

    def _finished(self, folders: Folders, name: str) -> dict[str, Any] | None:
        """What was noted of a finished batch, if its outputs are there."""
        found = read_finished(folders.journal, name)
        slots = self.setup.circuit.slots
        if found is None or missing_values(folders, name, slots, found["decrypt"]):
            return None
        return found

    def _start(self, claimed: ClaimedBatch) -> MadeKeys:
        """Have the processes run. What making keys took is returned."""
        if self._processes is not None and not self._processes.alive:
            self._stop()
        if self._processes is not None:
            return MadeKeys()
        setup, circuit = self.setup, self.setup.circuit
        if setup.cluster is not None:  # making keys may take minutes
            setup.cluster.need_answer()
        _announce(setup)
        self._processes = processes = self._new_processes().__enter__()
        if setup.several or setup.workers > 1:  # who asks for one worker wants one core to work
            processes.prepare(claimed.operands)
        if setup.cluster is None:
            need_memory(circuit)
        made = ensure_keys(
            setup.folders,
            circuit.params,
            circuit.rotation_steps,
            self._entered().name,
            setup.machine,
            circuit.bootstrap,
        )
        processes.start(claimed.operands)
        return made

    def _new_processes(self) -> Processes:
        """Those of this session, not yet started."""
        return Processes(self.setup, self._entered())

    def _evaluate(self, batch: Batch, claimed: ClaimedBatch, made: MadeKeys) -> dict[str, Any]:
        processes = self._processes
        assert processes is not None
        processes.begin(batch, claimed)
        with self._lock:
            self._listening = True
            self._tell_ahead()
        try:
            finished = processes.listen()
        finally:
            with self._lock:
                self._listening, self._next = False, None
        with well_formed("server"):
            spent = Spent.from_message(finished["spent"])
            peak = int(finished["peak"]) + processes.client_peaks()
            beside = made.peak_bytes + processes.peak_before if made.peak_bytes else 0
            return {
                "spent": spent.to_message(),
                "seconds": float(finished["seconds"]),
                "peak": max(peak, beside),
                "tasks": int(finished["tasks"]),
                "decrypt": batch.decrypted(self.setup),
                "skipped": int(finished["skipped"]),
                "replaced": int(finished["replaced"]),
                "jax": processes.jax_loaded or bool(finished.get("jax")),
            }

    def _stop(self) -> None:
        if self._processes is not None:
            processes, self._processes = self._processes, None
            processes.__exit__(None, None, None)


def execute(job: Job) -> Result:
    """Run one batch, resuming what its folders hold of the same computation.

    Raises:
      RunFolderError: the folders belong to another computation, are damaged, or cannot be written.
      BackendError: whatever the client, the server or a worker reports, with operation and source.
    """
    with Session(job.setup) as session:
        return session.run(job.batch)


def _result(
    finished: dict[str, Any], folders: Folders, claimed: ClaimedBatch, skipped: int
) -> Result:
    return Result(
        spent=Spent.from_message(finished["spent"]),
        seconds=float(finished["seconds"]),
        start_seconds=float(finished.get("start_seconds", 0.0)),
        key_seconds=float(finished.get("key_seconds", 0.0)),
        peak_bytes=int(finished["peak"]),
        tasks=int(finished["tasks"]),
        skipped=skipped,
        replaced=int(finished["replaced"]),
        imported_jax=bool(finished["jax"]),
        values=folders.values,
        run=claimed.name,
    )


def _announce(setup: Setup) -> None:
    """Say what is made before anything is evaluated, and how large it is."""
    if setup.progress is None:
        return
    ledger, said = setup.circuit.ledger, []
    if not setup.folders.client_keys.exists():
        size = f"{ledger.key_bytes / 1e6:,.0f} MB"
        boots = ", those of bootstraps" if setup.circuit.bootstrap is not None else ""
        said.append(
            f"making {ledger.rotation_keys} rotation keys and the relinearization key{boots}, "
            f"{size}"
        )
    if setup.several:
        said.append(
            f"encoding plaintexts once for all batches, {ledger.plaintext_bytes / 1e6:.0f} MB"
        )
    if said:
        setup.progress(Progress(0.0, 1.0, 0, 0, 0.0, float("nan"), "; ".join(said)))


@contextlib.contextmanager
def _alone(folders: Folders) -> Iterator[None]:
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
