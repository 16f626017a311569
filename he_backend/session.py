"""The caller's side of an encrypted run: starts key maker, server and clients, and hears them out.

The calling process plays data owner and model owner. It evaluates public operands, hands clear
inputs to the client through the client's folder, and never holds the secret key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BackendError, ProtocolError, RunFolderError, from_message
from he_backend.execute import Spent
from he_backend.folders import Folders, clean_environment, digest_of, module_command, read_json
from he_backend.keys import ensure_keys
from he_backend.protocol import Progress, receive, send
from he_backend.store import read_values
from hesim.circuit.circuit import Circuit
from hesim.errors import FolderInUseError
from hesim.files import alone_in, write_whole

__all__ = ["Job", "Result", "execute", "temporary_folders"]

_STOP_SECONDS = 20.0
_LAST_WORDS_SECONDS = 2.0
_SOCKET_PATH = 80
"""Characters of a folder's name below which a socket in it can be bound; the system takes 107."""


@dataclass(frozen=True)
class Job:
    """What to run encrypted.

    Attributes:
      circuit: the instructions. deliver: ciphertexts to decrypt.
      inputs: encrypted leaves. operands: public operands, both float64.
      folders: of the server and of the client.
      ranges: calibrated ranges of slot values, by ciphertext.
      workers, clients: processes. worker_deaths: how many may die before the run gives up.
      progress: called on every finished task; what it raises ends the run.
      ahead: finished tasks that it may not have been told of yet; the run waits at so many.
      task_seconds: predicted seconds that a task should take.
    """

    circuit: Circuit
    deliver: Sequence[int]
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

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("clients", 1), ("worker_deaths", 0), ("ahead", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise BackendError(f"{name}={value!r} must be a whole number, at least {least}")


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
      spent: counts and seconds by operation, earlier attempts included.
      seconds: wall-clock of all attempts, keys excluded. key_seconds: making keys, this time.
      peak_bytes: server, workers (beyond what they share with it) and clients, at their peaks.
      tasks: in all. skipped: done by earlier attempts. replaced: workers that died.
      imported_jax: whether any process other than the caller had JAX loaded.
      values: folder of the decrypted slot vectors.
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

    def vector(self, c: int, slots: int) -> np.ndarray:
        """float64[slots]: decrypted slot values of ciphertext c."""
        values = read_values(self.values, c)
        if values is None or values.shape != (slots,):
            raise RunFolderError(
                f"the decrypted values of ciphertext {c} are gone from {self.values}, or damaged; "
                f"run again with the same run_dir to make them again"
            )
        return values


def execute(job: Job) -> Result:
    """Run `job`, resuming what its folders hold of the same computation.

    Raises:
      RunFolderError: the folders belong to another computation.
      BackendError: whatever the client, the server or a worker reports, with operation and source.
    """
    with _held(job.folders):
        _claim(job)
        _announce_keys(job)
        key_seconds = ensure_keys(job.folders, job.circuit.params, job.circuit.rotation_steps)
        with _Processes(job) as processes:
            finished, jax_loaded = processes.listen()
            peak = int(finished["peak"]) + processes.stop_clients()
    return Result(
        spent=Spent.from_message(finished["spent"]),
        seconds=float(finished["seconds"]),
        key_seconds=key_seconds,
        peak_bytes=peak,
        tasks=int(finished["tasks"]),
        skipped=int(finished["skipped"]),
        replaced=int(finished["replaced"]),
        imported_jax=jax_loaded,
        values=job.folders.values,
    )


def _last_words(child: _Child | None, log: Path) -> str:
    """How a process ended, in brackets: the signal, or the exception that its log ends with."""
    if child is None:
        return ""
    try:
        status = child.process.wait(_LAST_WORDS_SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    if status < 0:
        return f" (signal {-status})"
    with open(log, "rb") as file:
        file.seek(child.log_start)
        text = file.read().decode(errors="replace")
    _, traceback, words = text.rpartition("Traceback (most recent call last)")
    return f" ({words.strip().splitlines()[-1]})" if traceback and words.strip() else ""


def _announce_keys(job: Job) -> None:
    """Say how many keys will be made, and how large they are, before making them."""
    if job.progress is not None and not job.folders.secret_key.exists():
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
        yield


def _claim(job: Job) -> None:
    """Write the job's files, after checking that the folders hold this very job or none.

    The two folders of a run carry one random name, so that the keys and values of one run are never
    taken for those of another. What was damaged since is written anew.
    """
    folders = job.folders
    fresh = folders.server / "circuit.new"
    job.circuit.save(fresh)
    identity = {
        "circuit": digest_of(fresh),
        "operands": _digest(job.operands),
        "task_seconds": job.task_seconds,
        "deliver": hashlib.sha256(np.asarray(job.deliver, np.int64).tobytes()).hexdigest(),
    }
    secret = {"inputs": _digest(job.inputs), "server": str(folders.server)}
    names = _names(folders, identity, secret)
    if names is None:
        fresh.unlink()
        raise RunFolderError(
            f"{folders.server} holds a run of another program, parameters or arguments, or with "
            f"another client folder; choose another run_dir, or remove it and {folders.client}"
        )
    os.replace(fresh, folders.circuit)
    for k, operand in enumerate(job.operands):
        np.save(folders.operands / f"{k}.npy", np.asarray(operand, np.float64))
    for k, values in enumerate(job.inputs):
        np.save(folders.inputs / f"{k}.npy", np.asarray(values, np.float64))
    if names:
        return
    folders.forget()
    (folders.keys / "keys.json").unlink(missing_ok=True)
    name = {"name": uuid.uuid4().hex}
    write_whole(folders.client_identity, json.dumps({**secret, **name}).encode())
    write_whole(folders.identity, json.dumps({**identity, **name}).encode())


def _names(folders: Folders, identity: dict[str, Any], secret: dict[str, Any]) -> str | None:
    """The name of the run that the folders hold, "" if they hold none, None if another one.

    Raises:
      RunFolderError: the client's folder belongs to a run folder that is still there.
    """
    held = read_json(folders.client_identity) if folders.client_identity.exists() else {}
    found = read_json(folders.identity) if folders.identity.exists() else {}
    name = found.pop("name", None)
    if found and name is not None and held.get("name") == name:
        return name if found == identity and held.get("inputs") == secret["inputs"] else None
    home = Path(held.get("server", folders.server))
    if home != folders.server and (home / folders.identity.name).exists():
        raise RunFolderError(
            f"{folders.client} holds the keys of the run in {home}; choose another client_dir"
        )
    return None if found else ""


def _digest(arrays: Sequence[np.ndarray]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array, dtype=np.float64)
        total.update(repr(plain.shape).encode())
        total.update(plain.tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class _Child:
    """A process that we started, the link to it, and where its words begin in its log."""

    name: str
    process: subprocess.Popen
    link: socket.socket
    log_start: int


class _Processes:
    """Server and clients of one run, ended when the context is left."""

    def __init__(self, job: Job):
        self.job = job
        self.started = time.monotonic()
        self.children: list[_Child] = []

    def __enter__(self) -> _Processes:
        place = tempfile.gettempdir()
        self.sockets = Path(
            tempfile.mkdtemp(prefix="he-", dir=place if len(place) < _SOCKET_PATH else "/tmp")
        )
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        job, folders = self.job, self.job.folders
        link = self._spawn("server", "he_backend.server", folders.server)
        address = str(self.sockets / "s")
        self._tell(
            link,
            {
                "run": str(folders.server),
                "socket": address,
                "workers": job.workers,
                "worker_deaths": job.worker_deaths,
                "deliver": [int(c) for c in job.deliver],
                "missing": self._missing(),
                "task_seconds": job.task_seconds,
                "ahead": job.ahead,
            },
        )
        self.ready = self._first(link, "server")
        config = {
            "circuit": str(folders.circuit),
            "client": str(folders.client),
            "socket": address,
            "params": dataclasses.asdict(job.circuit.params),
            "inputs": len(job.inputs),
            "ranges": {str(c): [float(lo), float(hi)] for c, (lo, hi) in job.ranges.items()},
        }
        self.pids = dict(self.ready["processes"])
        for k in range(job.clients):
            link = self._spawn(f"client {k}", "he_backend.client", folders.client)
            self._tell(link, config)
        for child in self.children[1:]:
            self.pids[child.name] = int(self._first(child.link, child.name)["pid"])

    def _missing(self) -> list[int]:
        """Ciphertexts to deliver whose decrypted values are not there, or damaged."""
        values, slots = self.job.folders.values, self.job.circuit.slots
        read = ((int(c), read_values(values, int(c))) for c in self.job.deliver)
        return [c for c, vector in read if vector is None or vector.shape != (slots,)]

    def _spawn(self, name: str, module: str, folder: Path) -> socket.socket:
        ours, theirs = socket.socketpair()
        with open(folder / f"{name.replace(' ', '')}.log", "ab") as log:
            start = log.tell()
            child = subprocess.Popen(
                module_command(module),
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=clean_environment(),
                cwd=folder,
            )
        theirs.close()
        self.children.append(_Child(name, child, ours, start))
        return ours

    def _tell(self, link: socket.socket, header: dict[str, Any]) -> None:
        """Send to a process; if it has died already, hearing from it tells how."""
        with contextlib.suppress(ProtocolError):
            send(link, header)

    def _first(self, link: socket.socket, name: str) -> dict[str, Any]:
        header = self._receive(link, name)
        if header["type"] == "error":
            raise from_message(header["error"])
        return header

    def _receive(self, link: socket.socket, name: str) -> dict[str, Any]:
        try:
            return receive(link)[0]
        except ProtocolError as error:
            reported = self._pending_error(name)
            if reported is not None:
                raise reported from error
            folder = self.job.folders.server if name == "server" else self.job.folders.client
            log = folder / f"{name.replace(' ', '')}.log"
            child = next((child for child in self.children if child.name == name), None)
            raise BackendError(
                f"the {name} process ended unexpectedly{_last_words(child, log)}; see {log}. "
                f"Finished tasks are kept in a run_dir: run again with the same one to resume"
            ) from error

    def _pending_error(self, besides: str) -> BackendError | None:
        """What another process has to say about a failure: clients first, who know most."""
        for child in sorted(self.children, key=lambda child: child.name):
            if child.name == besides:
                continue
            child.link.settimeout(2.0)
            with contextlib.suppress(OSError, ProtocolError):
                header = receive(child.link)[0]
                while header["type"] != "error":
                    header = receive(child.link)[0]
                return from_message(header["error"])
        return None

    def listen(self) -> tuple[dict[str, Any], bool]:
        """Hear events until the server is finished. Raises what a process reports."""
        with selectors.DefaultSelector() as selector:
            for child in self.children:
                selector.register(child.link, selectors.EVENT_READ, child)
            while True:
                for key, _ in selector.select():
                    child: _Child = key.data
                    header = self._receive(child.link, child.name)
                    if header["type"] == "error":
                        raise self._explained(child.name, header["error"])
                    if header["type"] == "progress":
                        self._progress(header)
                        self._tell(child.link, {"type": "heard"})
                    elif header["type"] == "finished":
                        return header, bool(self.ready["jax"])

    def _explained(self, name: str, message: dict[str, Any]) -> BackendError:
        """The client's own account of a refusal, if a refusal is what the server reports."""
        refused = name == "server" and message["kind"] == "ClientRefusedError"
        return (self._pending_error(name) if refused else None) or from_message(message)

    def _progress(self, header: dict[str, Any]) -> None:
        if self.job.progress is None:
            return
        done, total = float(header["done"]), float(header["total"])
        elapsed = float(header["elapsed"])
        earlier = float(header["done_before"])
        fresh = done - earlier
        eta = elapsed * (total - done) / fresh if fresh > 0 else float("nan")
        self.pids.update(header["processes"])
        self.job.progress(
            Progress(
                done=done,
                total=total,
                tasks_done=int(header["tasks_done"]),
                tasks_total=int(header["tasks_total"]),
                elapsed=elapsed,
                eta=eta,
                op=str(header["op"]),
                processes=dict(self.pids),
            )
        )

    def stop_clients(self) -> int:
        """Ask the clients to end; the sum of their peak sizes in bytes."""
        peak = 0
        for child in self.children:
            if child.name.startswith("client"):
                send(child.link, {"type": "stop"})
                child.link.settimeout(_STOP_SECONDS)
                with contextlib.suppress(ProtocolError):
                    header = receive(child.link)[0]
                    while header["type"] != "stopped":
                        header = receive(child.link)[0]
                    peak += int(header["peak"])
        return peak

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            with contextlib.suppress(ProtocolError):
                send(child.link, {"type": "stop"})
            child.link.close()
        for child in self.children:
            try:
                child.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)


@contextlib.contextmanager
def temporary_folders(run_dir: str | os.PathLike | None, client_dir: Any) -> Iterator[Folders]:
    """The folders asked for, or temporary ones that are removed at the end."""
    if run_dir is not None:
        yield Folders.of(run_dir, client_dir)
        return
    with tempfile.TemporaryDirectory(prefix="he-run-") as top:
        yield Folders.of(Path(top) / "run", client_dir)
