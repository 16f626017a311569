"""An evaluator's side of one key holder's visit: its keys, a server's process, batch after batch.

The server's process is that of a run on one host, and does not know that its clients are elsewhere.
This room stands between: it lets through what a key holder may say, and of what the server says the
counts, but neither process numbers nor why something failed, which goes to the log.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_backend.clusters.cluster import Cluster
from he_backend.errors import BackendError, BlobError, ProtocolError, from_message
from he_backend.machines.table import find
from he_backend.owners import keysets, wire
from he_backend.owners.door import Visitor, wait_to_refuse
from he_backend.owners.keysets import KeySet
from he_backend.owners.pump import cut, plain, pump
from he_backend.processes.folders import clean_environment, module_command
from he_backend.processes.job import Setup
from he_backend.processes.messages import SMALL, receive, send
from he_backend.processes.store import storing
from hesim.errors import HesimError

__all__ = ["ALIVE_SECONDS", "Service", "Settings"]

_PAUSE_SECONDS = 120.0
"""A key holder that stops in the middle of a message is given up."""

ALIVE_SECONDS = 20.0
"""A key holder hears something at least so often."""

_STOP_SECONDS = 20.0
_MOST_LINKS = 8
_BATCH_HEADER = 1 << 24
_MOST_NUMBERS = 12
"""Bytes of an instruction's number in a message, and what is between two."""


@dataclass(frozen=True)
class Settings:
    """How an evaluator works.

    Attributes:
      machine: its name. workers: processes that evaluate.
      worker_deaths: how many may die in a batch before it is given up.
      task_seconds: predicted seconds that a task should take.
      idle_seconds: a key holder that has nothing to say for so long is shown out, and one that does
        not answer a request for as long.
      cluster: of Dask, whose workers evaluate instead of processes of this host.
    """

    machine: str = "pyfhel"
    workers: int = 2
    worker_deaths: int = 3
    task_seconds: float = 0.1
    idle_seconds: float = 600.0
    cluster: Cluster | None = None


class Service:
    """One visit.

    Args:
      visitor: who was let in. keys: its key set. settings, log: of the evaluator.

    Attributes:
      token: what its client links must show.
    """

    def __init__(self, visitor: Visitor, keys: KeySet, settings: Settings, log: logging.Logger):
        self.log = log
        self.visitor = visitor
        self.keys = keys
        self.settings = settings
        self.token = secrets.token_hex(16)
        self._bundle = keys.bundle
        self._links: list[socket.socket] = []
        self._ready = self._running = False
        self._unheard = 0

    def run(self) -> None:
        """Until the key holder leaves, or something goes wrong, of which it is told one word."""
        link = plain(self.visitor.link)
        link.settimeout(_PAUSE_SECONDS)
        with contextlib.ExitStack() as held:
            held.callback(self._leave, link)
            try:
                self._take_keys(link)
                self._serve(link, held)
                self.log.info("%s left", self.visitor.name)
            except Exception as error:
                known = isinstance(error, HesimError | OSError)
                self.log.log(
                    logging.WARNING if known else logging.ERROR,
                    "the visit of %s ended: %s",
                    self.visitor.name,
                    error,
                    exc_info=None if known else error,
                )
                if not self._ready:  # of keys that are not accepted, too, it is told no more
                    wait_to_refuse(self.visitor)
                with contextlib.suppress(ProtocolError):
                    send(link, {"type": "ended" if self._ready else "refused"})

    def join(self, visitor: Visitor) -> None:
        """Connect a client's link with the server, until either closes."""
        if len(self._links) >= _MOST_LINKS:
            raise ProtocolError("there are too many client links")
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.connect(str(self._place / "s"))
        send(server, {"type": "hello", "role": "client", "token": self._inner})
        self._links.append(visitor.link)
        pump(visitor.link, server)

    def end(self) -> None:
        """End the visit from another thread."""
        cut(self.visitor.link)

    def _leave(self, link: socket.socket) -> None:
        link.close()
        for each in self._links:
            cut(each)

    # Before the first batch

    def _take_keys(self, link: socket.socket) -> None:
        known = self.keys.known
        welcome = {"type": "welcome", "keys": "known" if known else "wanted", "token": self.token}
        send(link, welcome)
        if not known:
            self.keys.receive(link)
            self.log.info("%s brought the keys %s", self.visitor.name, self.keys.keys[:16])

    def _serve(self, link: socket.socket, held: contextlib.ExitStack) -> None:
        place = Path(tempfile.mkdtemp(prefix="he-"))
        held.callback(shutil.rmtree, place, ignore_errors=True)
        self._place, self._inner = place, secrets.token_hex(16)
        circuit_digest, operands = self.keys.prepare()
        control = held.enter_context(self._server())
        settings, bundle = self.settings, self._bundle
        work = {
            "machine": settings.machine,
            "run": str(self.keys.folders.server),
            "circuit_digest": circuit_digest,
            "operands": operands,
            "decrypt": [int(c) for c in bundle.returned],
            "workers": settings.workers,
            "task_seconds": settings.task_seconds,
            "several": True,
        }
        start = {
            "socket": str(place / "s"),
            "token": {"token": self._inner},
            "worker_deaths": settings.worker_deaths,
            "silence_seconds": settings.idle_seconds,
            "ahead": 32,
            "durable": True,
            "checkpoint_seconds": Setup.checkpoint_seconds,
        }
        if settings.cluster is not None:
            start["cluster"] = settings.cluster.plain
        send(control, {"type": "prepare", **work})  # it encodes what stays for all batches
        send(control, {"type": "start", **work, **start})
        with selectors.DefaultSelector() as selector:
            selector.register(link, selectors.EVENT_READ)
            selector.register(control, selectors.EVENT_READ)
            self._hear_both(link, control, selector)

    @contextlib.contextmanager
    def _server(self):
        """A server's process; the link to it."""
        ours, theirs = socket.socketpair()
        folder = self.keys.folders.server
        room = "processes" if self.settings.cluster is None else "clusters"
        module = f"he_backend.{room}.server"
        path, row = folder / "server.log", find(self.settings.machine)
        with storing(path), open(path, "ab") as log:
            process = subprocess.Popen(
                module_command(module, row.python()),
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=clean_environment(row.environment),
                cwd=folder,
            )
        theirs.close()
        try:
            yield ours
        finally:
            with contextlib.suppress(ProtocolError):
                send(ours, {"type": "stop"})
            ours.close()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # Batches

    def _hear_both(
        self, link: socket.socket, control: socket.socket, selector: selectors.BaseSelector
    ) -> None:
        until = time.monotonic() + self.settings.idle_seconds
        while True:
            owed = not self._running or self._unheard > 0
            left = until - time.monotonic() if owed else self.settings.idle_seconds
            ready = [k.fileobj for k, _ in selector.select(max(0.0, min(left, ALIVE_SECONDS)))]
            if not ready:
                send(link, {"type": "alive"})
            if control in ready:
                if self._unheard == 0:
                    until = time.monotonic() + self.settings.idle_seconds
                self._hear_server(control, link)
            if link in ready:
                until = time.monotonic() + self.settings.idle_seconds
                if not self._hear_holder(link, control):
                    return
            if not ready and owed and until <= time.monotonic():
                raise ProtocolError(f"it said nothing for {self.settings.idle_seconds:.0f} seconds")

    def _hear_holder(self, link: socket.socket, control: socket.socket) -> bool:
        """Pass on what the key holder may say; whether it stays."""

        def sizes(header: dict[str, Any]) -> Sequence[int]:
            return keysets.open_sizes(self._bundle) if header.get("type") == "batch" else ()

        most = SMALL if self._running else SMALL + _MOST_NUMBERS * 2 * len(self._bundle.circuit)
        header, blobs = receive(link, sizes, min(most, _BATCH_HEADER))
        kind = header.get("type")
        if kind == "stop":
            return False
        if kind == "batch" and not self._running:
            self._begin(header, blobs, control)
        elif kind == "left" and not self._running:
            self._bring(header, link)
        elif kind == "begin" and self._running:
            send(control, {"type": "begin"})
        elif kind == "heard" and self._unheard > 0:
            self._unheard -= 1
            if self._running:  # of the last tasks it hears when the batch is finished
                send(control, {"type": "heard"})
        else:
            raise ProtocolError(f"it says {str(kind)[:20]!r}, for which it is not the time")
        return True

    def _begin(
        self, header: dict[str, Any], blobs: Sequence[bytes], control: socket.socket
    ) -> None:
        wire.check_batch(header, len(self._bundle.circuit))
        if len(blobs) != len(keysets.open_sizes(self._bundle)):
            raise ProtocolError("a batch is announced without its open arguments")
        name, after = header["name"], header.get("after")
        operands = self.keys.operands(keysets.opened(self._bundle, blobs))
        if after is not None:
            self.keys.left(after)
        self.keys.begin(name)
        self._running, self._unheard = True, 0
        known = {"missing": header["missing"], "served": header["served"]}
        batch = {"type": "batch", "batch": name, "name": name, "operands": operands}
        if after is not None:
            known["after"] = {"batch": after, "name": after}
        send(control, {**batch, **known})
        self.log.info("%s begins the batch %s", self.visitor.name, name)

    def _bring(self, header: dict[str, Any], link: socket.socket) -> None:
        """Give back ciphertexts that a batch left."""
        carried = {c for c, _ in self._bundle.circuit.carried}
        ciphers = wire.check_read(header, carried)
        left = self.keys.left(header["name"])
        blobs = [left.read(c) for c in ciphers]
        send(link, {"type": "left", "sizes": [len(blob) for blob in blobs]}, blobs)

    def _hear_server(self, control: socket.socket, link: socket.socket) -> None:
        """Pass on what the server says to its caller, without what concerns this host only."""
        header, _ = receive(control, ())
        kind = header.get("type")
        if kind == "error":
            raise self._explained(header)
        if kind == "ready":
            self._ready = True
        elif kind == "progress":
            self._unheard += 1
        elif kind == "finished":
            self._running = False
            self.log.info("a batch of %s is finished", self.visitor.name)
        passed = {**header, "processes": {}} if "processes" in header else header
        send(link, passed)

    def _explained(self, header: dict[str, Any]) -> BackendError:
        error = from_message(header["error"])
        if isinstance(error, BlobError) and not self._ready:
            self.keys.forget_keys()  # they were damaged here since they came
        return error
