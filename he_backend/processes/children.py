"""The processes of a session, seen from the caller: started, told what to do, heard, and ended."""

from __future__ import annotations

import contextlib
import math
import secrets
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_backend.errors import (
    BackendError,
    ClientGoneError,
    ClientRefusedError,
    ProtocolError,
    RunFolderWarning,
    from_message,
)
from he_backend.machines.table import find
from he_backend.processes.exchange import begin_attempt
from he_backend.processes.folders import Folders, clean_environment, module_command
from he_backend.processes.identity import Claimed, ClaimedBatch
from he_backend.processes.job import Batch, Setup
from he_backend.processes.messages import Progress, receive, send
from he_backend.processes.store import read_values, storing

__all__ = ["Child", "Processes", "missing_values", "well_formed"]

_STOP_SECONDS = 20.0
_LAST_WORDS_SECONDS = 2.0
_SOCKET_PATH = 80
"""Characters of a folder's name below which a socket in it can be bound; the system takes 107."""


@dataclass(frozen=True)
class Child:
    """A process that we started, the link to it, and where its words begin in its log."""

    name: str
    process: subprocess.Popen
    link: socket.socket
    log_start: int


class Processes:
    """Server and clients of a session, ended when the context is left."""

    def __init__(self, setup: Setup, claimed: Claimed):
        self.setup = setup
        self.claimed = claimed
        self.token = {"token": secrets.token_hex(16)}
        self.children: list[Child] = []
        self.pids: dict[str, int] = {}
        self.jax_loaded = False
        self.peak_before = 0

    def __enter__(self) -> Processes:
        place = tempfile.gettempdir()
        place = place if len(place) < _SOCKET_PATH else "/tmp"
        with storing(Path(place, "he-")):
            self.sockets = Path(tempfile.mkdtemp(prefix="he-", dir=place))
        return self

    @property
    def alive(self) -> bool:
        """Whether none has ended."""
        return all(child.process.poll() is None for child in self.children)

    def prepare(self, operands: Sequence[str]) -> None:
        """Start the processes and let them do what needs no keys, while these are made.

        operands: digests of the first batch's.
        """
        self._spawn_all()
        self._tell(self.children[0].link, {"type": "prepare", **self._work(operands)})

    def _spawn_all(self) -> None:
        folders = self.setup.folders
        room = "processes" if self.setup.cluster is None else "clusters"
        self._spawn("server", f"he_backend.{room}.server", folders.server)
        for k in range(self.setup.clients):
            self._spawn(f"client {k}", "he_backend.processes.client", folders.client)

    def _work(self, operands: Sequence[str]) -> dict[str, Any]:
        """What the server has to know of the Circuit."""
        setup = self.setup
        return {
            "machine": setup.machine,
            "run": str(setup.folders.server),
            "circuit_digest": self.claimed.circuit,
            "operands": list(operands),
            "decrypt": [int(c) for c in setup.decrypt],
            "workers": setup.workers,
            "task_seconds": setup.task_seconds,
            "several": setup.several,
        }

    def start(self, operands: Sequence[str]) -> None:
        """Let them take their keys, which are there, and find each other."""
        if not self.children:
            self._spawn_all()
        server, clients = self.children[0], self.children[1:]
        address = str(self.sockets / "s")
        self._tell(server.link, self._for_server(address, operands))
        config = self._for_client(address)
        for child in clients:
            self._tell(child.link, config)
        ready = self._first(server.link, "server")
        with well_formed("server"):
            self._note_processes(ready)
            self.jax_loaded = bool(ready["jax"])
            self.peak_before = int(ready["peak"])
        for child in clients:
            self._tell(child.link, {"type": "connect"})
        for child in clients:
            with well_formed(child.name):
                self.pids[child.name] = int(self._first(child.link, child.name)["pid"])

    def begin(self, batch: Batch, claimed: ClaimedBatch) -> None:
        """Let them run a batch."""
        server, clients = self.children[0], self.children[1:]
        folders = self.setup.folders.of_batch(batch.name)
        known: dict[str, Any] = {"type": "batch", "batch": batch.name, "name": claimed.name}
        served = begin_attempt(folders.exchange, claimed.name, self.setup.circuit)
        known["decrypt"] = decrypt = batch.decrypted(self.setup)
        missing = missing_values(folders, claimed.name, self.setup.circuit.slots, decrypt)
        held: dict[str, Any] = {"operands": claimed.operands, "missing": missing, "served": served}
        known["follows"] = batch.after is not None
        if batch.after is not None:
            before, _, name = claimed.after.partition("/")
            held["after"] = {"batch": before, "name": name}
        self._tell(server.link, {**known, **held})
        ranges = _plain(batch.ranges)
        for child in clients:
            self._tell(child.link, {**known, "inputs": claimed.inputs, "ranges": ranges})
        begun = self._first(server.link, "server")
        with well_formed("server"):
            self._note_processes(begun)
            redone = int(begun["redone"])
        if redone:
            warnings.warn(
                f"{redone} tasks that were finished run again, since what they left in "
                f"{folders.server} or {folders.client} is lost or damaged",
                RunFolderWarning,
                stacklevel=2,
            )
        for child in clients:
            self._first(child.link, child.name)
        self._tell(server.link, {"type": "begin"})

    def read(
        self,
        folders: Folders,
        name: str,
        ranges: Mapping[int, tuple[float, float]],
        asked: Iterable[tuple[dict[str, Any], list[bytes]]],
    ) -> None:
        """Have a process of the key holder's decrypt what a batch left; no other is started.

        Args:
          folders, name: of the batch. ranges: as of a Batch. asked: `states.reading.requests`.
        """
        self._spawn("reader", "he_backend.processes.client", folders.client)
        link = self.children[0].link
        config = {**self._for_client(""), "type": "read", "batch": folders.batch, "name": name}
        self._tell(link, {**config, "ranges": _plain(ranges)})
        for header, blobs in asked:
            with contextlib.suppress(ProtocolError):
                send(link, header, blobs)
            self._first(link, "reader")

    def encrypt_ahead(self, header: dict[str, Any]) -> None:
        """Have a client do what `states.ahead.request` says, when it has nothing else to do."""
        client = next((child for child in self.children if child.name == "client 0"), None)
        if client is not None:
            self._tell(client.link, header)

    def _note_processes(self, header: dict[str, Any]) -> None:
        self.pids.update((str(name), int(pid)) for name, pid in header["processes"].items())

    def _for_server(self, address: str, operands: Sequence[str]) -> dict[str, Any]:
        setup = self.setup
        cluster = {} if setup.cluster is None else {"cluster": setup.cluster.plain}
        return {
            **self._work(operands),
            **cluster,
            "type": "start",
            "socket": address,
            "token": self.token,
            "worker_deaths": setup.worker_deaths,
            "silence_seconds": setup.silence_seconds,
            "ahead": setup.ahead,
            "durable": setup.durable,
            "checkpoint_seconds": setup.checkpoint_seconds,
        }

    def _for_client(self, address: str) -> dict[str, Any]:
        setup = self.setup
        return {
            "machine": setup.machine,
            "circuit": str(setup.folders.client_circuit),
            "circuit_digest": self.claimed.circuit,
            "client": str(setup.folders.client),
            "socket": address,
            "wait": True,
            "token": self.token,
            "decrypt": [int(c) for c in setup.decrypt],
            "params": setup.circuit.params.fields,
        }

    def _spawn(self, name: str, module: str, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        path, row = folder / f"{name.replace(' ', '')}.log", find(self.setup.machine)
        with storing(path), open(path, "ab") as log:
            start = log.tell()
            child = subprocess.Popen(
                module_command(module, row.python()),
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=clean_environment(row.variables(self.setup.workers)),
                cwd=folder,
            )
        theirs.close()
        self.children.append(Child(name, child, ours, start))

    def _tell(self, link: socket.socket, header: dict[str, Any]) -> None:
        """Send to a process; if it has died already, hearing from it tells how."""
        with contextlib.suppress(ProtocolError):
            send(link, header)

    def _first(self, link: socket.socket, name: str) -> dict[str, Any]:
        header = self._receive(link, name)
        if header.get("type") == "error":
            raise self._explained(name, header)
        return header

    def _receive(self, link: socket.socket, name: str) -> dict[str, Any]:
        try:
            return receive(link, ())[0]
        except ProtocolError as error:
            reported = self._pending_error(name)
            if reported is not None and not isinstance(reported, ClientGoneError):
                raise reported from error
            raise self._ended(name) from error

    def _ended(self, name: str) -> BackendError:
        """That a process ended unexpectedly: the one that was killed or failed, not one that left
        because of it, such as `name`, whose link is closed.
        """
        named = next((child for child in self.children if child.name == name), None)
        if named is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                named.process.wait(_LAST_WORDS_SECONDS)
        killed = (c for c in self.children if (c.process.poll() or 0) < 0)  # the server comes first
        failed = (c for c in self.children if c.process.poll())
        blamed = next(killed, None) or next(failed, named)
        name = blamed.name if blamed is not None else name
        folders = self.setup.folders
        folder = folders.server if name == "server" else folders.client
        log = folder / f"{name.replace(' ', '')}.log"
        return BackendError(
            f"the {name} process ended unexpectedly{_last_words(blamed, log)}; see {log}. "
            f"Finished tasks are kept in a run_dir: run again with the same one to resume"
        )

    def _pending_error(self, besides: str) -> BackendError | None:
        """What another process has to say about a failure: clients first, who know most."""
        for child in sorted(self.children, key=lambda child: child.name):
            if child.name == besides:
                continue
            child.link.settimeout(2.0)
            with contextlib.suppress(OSError, ProtocolError):
                header = receive(child.link, ())[0]
                while header.get("type") != "error":
                    header = receive(child.link, ())[0]
                with well_formed(child.name):
                    return from_message(header["error"])
        return None

    def listen(self) -> dict[str, Any]:
        """Hear events until the server has finished the batch. Raises what a process reports."""
        with selectors.DefaultSelector() as selector:
            for child in self.children:
                selector.register(child.link, selectors.EVENT_READ, child)
            while True:
                for key, _ in selector.select():
                    child: Child = key.data
                    header = self._receive(child.link, child.name)
                    if header.get("type") == "error":
                        raise self._explained(child.name, header)
                    if child.name != "server":
                        continue
                    if header.get("type") == "progress":
                        self._progress(header)
                        self._tell(child.link, {"type": "heard"})
                    elif header.get("type") == "finished":
                        return header

    def _explained(self, name: str, header: dict[str, Any]) -> BackendError:
        """What became of a client, if it is one that the server complains of."""
        with well_formed(name):
            error = from_message(header["error"])
        if name != "server" or not isinstance(error, ClientRefusedError):
            return error
        told = self._pending_error(name)
        if told is None and isinstance(error, ClientGoneError):
            return self._ended(next(iter(self._gone()), name))
        return told or error

    def _gone(self) -> list[str]:
        """Clients that have ended, after a moment in which they may."""
        end = time.monotonic() + _LAST_WORDS_SECONDS
        clients = [child for child in self.children if child.name != "server"]
        while time.monotonic() < end and all(c.process.poll() is None for c in clients):
            time.sleep(0.01)
        return [c.name for c in clients if c.process.poll() is not None]

    def _progress(self, header: dict[str, Any]) -> None:
        if self.setup.progress is not None:
            with well_formed("server"):
                progress = self._told(header)
            self.setup.progress(progress)

    def _told(self, header: dict[str, Any]) -> Progress:
        done, total = float(header["done"]), float(header["total"])
        elapsed = float(header["elapsed"])
        earlier = float(header["done_before"])
        fresh = done - earlier
        eta = elapsed * (total - done) / fresh if fresh > 0 else float("nan")
        self._note_processes(header)
        return Progress(
            done=done,
            total=total,
            tasks_done=int(header["tasks_done"]),
            tasks_total=int(header["tasks_total"]),
            elapsed=elapsed,
            eta=eta,
            op=str(header["op"]),
            processes=dict(self.pids),
        )

    def client_peaks(self) -> int:
        """Of the clients that say so, the sum of their peak sizes so far, in bytes."""
        peak = 0
        for child in self.children[1:]:
            child.link.settimeout(_STOP_SECONDS)
            with contextlib.suppress(ProtocolError), well_formed(child.name):
                send(child.link, {"type": "peak"})
                header = receive(child.link, ())[0]
                while header["type"] != "peak":
                    header = receive(child.link, ())[0]
                peak += int(header["peak"])
            child.link.settimeout(None)
        return peak

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            with contextlib.suppress(ProtocolError):
                send(child.link, {"type": "stop"})
        for child in self.children:
            try:
                child.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.link.close()  # not before: what it still tells must not fail, or it deserts
        shutil.rmtree(self.sockets, ignore_errors=True)


def missing_values(folders: Folders, name: str, slots: int, decrypt: Sequence[int]) -> list[int]:
    """Those of the ciphertexts to decrypt whose decrypted values are not there, or damaged.

    Args:
      folders, name: of the batch.
    """
    read = ((int(c), read_values(folders.values, name, int(c))) for c in decrypt)
    return [c for c, vector in read if vector is None or vector.shape != (slots,)]


def _last_words(child: Child | None, log: Path) -> str:
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


@contextlib.contextmanager
def well_formed(name: str) -> Iterator[None]:
    """ProtocolError, instead of what Python says, for a process whose message has another form."""
    try:
        yield
    except BackendError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ProtocolError(
            f"the {name} process sent a message that is none of its own ({error!r})"
        ) from error


def _plain(ranges: Mapping[int, tuple[float, float]]) -> dict[str, list[float | None]]:
    """Ranges as JSON has them."""
    return {str(c): [_finite(low), _finite(high)] for c, (low, high) in ranges.items()}


def _finite(bound: float) -> float | None:
    """A bound as JSON has it; none for an infinite one."""
    return float(bound) if math.isfinite(bound) else None
