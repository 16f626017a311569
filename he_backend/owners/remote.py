"""A session whose server's process is another owner's evaluator: this host has the clients only."""

from __future__ import annotations

import contextlib
import hmac
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import (
    BackendError,
    EvaluatorGoneError,
    EvaluatorRefusedError,
    PeerGoneError,
    ProtocolError,
)
from he_backend.machines.table import find
from he_backend.owners import wire
from he_backend.owners.addresses import Address, dial
from he_backend.owners.certificates import Certificates
from he_backend.owners.pump import cut, plain, pump
from he_backend.owners.service import ALIVE_SECONDS
from he_backend.processes.children import Child, Processes
from he_backend.processes.folders import Folders, read_manifest
from he_backend.processes.identity import Claimed, ClaimedBatch
from he_backend.processes.job import Setup
from he_backend.processes.messages import SMALL, Progress, packed, receive, send
from he_backend.processes.session import Session
from he_backend.processes.states.reading import Requests
from he_backend.processes.tasks import CLIENT_BATCH

__all__ = ["Contact", "RemoteSession"]

_WELCOME_SECONDS = 60.0
_PAUSE_SECONDS = 120.0
_LEAVE_SECONDS = 5.0
_SILENCES = 6
"""An evaluator that says nothing so many times in a row, when it should, is given up."""

_EVENT_BYTES = 1 << 24
"""Of a message from the evaluator, at most; the largest says what each operation spent."""

_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class Contact:
    """Where the evaluator is, and of what.

    Attributes:
      address, certificates: where, and by whom it is known.
      bundle: digest of what it evaluates.
    """

    address: Address
    certificates: Certificates | None
    bundle: str

    def call(self) -> socket.socket:
        """A link to it, on which nothing was said yet.

        Raises:
          EvaluatorGoneError: nobody answers. EvaluatorRefusedError: it is not the one known.
        """
        link = dial(self.address)
        if self.certificates is None:
            return link
        wrapped = self.certificates.wrap(link, server=False)
        try:
            self.certificates.shake_hands(wrapped)
        except ProtocolError as error:
            wrapped.close()
            raise EvaluatorRefusedError(
                f"what answers at {self.address} is not the evaluator whose certificate is known, "
                f"or does not accept this one ({error}): exchange own.crt anew"
            ) from error
        return wrapped

    def refused(self) -> EvaluatorRefusedError:
        return EvaluatorRefusedError(
            f"the evaluator at {self.address} refuses, and does not say why: it serves another "
            f"key holder now, has another bundle, machine or version, or does not accept the "
            f"certificate or the keys; its owner finds the reason in evaluator.log"
        )

    def gone(self) -> EvaluatorGoneError:
        return EvaluatorGoneError(
            f"the evaluator at {self.address} went away or ended the exchange; its owner finds "
            f"the reason in evaluator.log. Run the same command again: it goes on from the tasks "
            f"that were finished"
        )


class _Evaluator:
    """In the place of a server's process: it lives as long as its link."""

    pid = 0

    def __init__(self, link: socket.socket):
        self.link = link

    def poll(self) -> int | None:
        """None while the link is open and nothing is said but that it is, which between batches is
        all that may be said.
        """
        if self.link.fileno() < 0:
            return 0
        with contextlib.suppress(ProtocolError):
            while select.select([self.link], [], [], 0)[0]:
                if receive(self.link, (), _EVENT_BYTES)[0].get("type") != "alive":
                    return 0
            return None
        return 0

    def wait(self, timeout: float | None = None) -> int:
        del timeout
        return 0

    def kill(self) -> None:
        self.link.close()


class _RemoteProcesses(Processes):
    """The clients of a session, and in the server's place the link to the evaluator."""

    def __init__(self, setup: Setup, claimed: Claimed, contact: Contact):
        super().__init__(setup, claimed)
        self.contact = contact
        self._ops = {*setup.circuit.op_names, "input"}
        self._links: list[socket.socket] = []

    def prepare(self, operands: Sequence[str]) -> None:
        """Nothing: the evaluator is called when there are keys."""

    def start(self, operands: Sequence[str]) -> None:
        """Call the evaluator, bring the keys if it has them not, and connect the clients."""
        link, token = self._called()
        self.children.append(Child("server", _Evaluator(link), link, 0))  # type: ignore[arg-type]
        ready = self._first(link, "server")
        self.jax_loaded = bool(ready.get("jax"))
        address = self.sockets / "s"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            before = os.umask(0o177)
            try:
                listener.bind(str(address))
            finally:
                os.umask(before)
            listener.listen(self.setup.clients)
            listener.settimeout(_WELCOME_SECONDS)
            config = self._for_client(str(address))
            for k in range(self.setup.clients):
                self._spawn(f"client {k}", "he_backend.processes.client", self.setup.folders.client)
            clients = self.children[1:]
            for child in clients:
                self._tell(child.link, config)
            for child in clients:
                self._tell(child.link, {"type": "connect"})
                self._connect(listener, token)
            for child in clients:
                self.pids[child.name] = int(self._first(child.link, child.name)["pid"])

    def _called(self) -> tuple[socket.socket, str]:
        """The control link, past the keys, and the token of its client links."""
        files = self._key_files()
        link = self.contact.call()
        link.settimeout(_WELCOME_SECONDS)
        try:
            about = wire.hello(self.contact.bundle, self.setup.machine, wire.digest_of_keys(files))
            send(link, about)
            header, _ = receive(link, (), SMALL)
            token = header.get("token")
            if header.get("type") != "welcome" or not isinstance(token, str):
                raise self.contact.refused()
        except PeerGoneError as error:  # a certificate that is not accepted shows here first
            link.close()
            raise self.contact.refused() from error
        except ProtocolError as error:
            link.close()
            raise self.contact.gone() from error
        except BaseException:
            link.close()
            raise
        try:
            if header.get("keys") == "wanted":
                self._bring(link, files)
        except ProtocolError as error:
            raise self.contact.gone() from error
        found = plain(link, _SILENCES * ALIVE_SECONDS)
        found.settimeout(None)
        return found, token

    def _key_files(self) -> dict[str, list]:
        folders, row = self.setup.folders, find(self.setup.machine)
        manifest = read_manifest(folders.key_manifest)
        steps = [s for s in self.setup.circuit.rotation_steps if s]
        names = (*row.server_keys, *(row.rotation_keys if steps else ()))
        return wire.key_files(folders, names, manifest)

    def _bring(self, link: socket.socket, files: dict[str, list]) -> None:
        link.settimeout(_PAUSE_SECONDS)
        if self.setup.progress is not None:
            op = f"bringing the keys, {sum(size for size, _ in files.values()) / 1e6:.0f} MB"
            self.setup.progress(Progress(0.0, 1.0, 0, 0, 0.0, float("nan"), op))
        send(link, {"type": "keys", "files": files})
        for name in sorted(files):
            with open(self.setup.folders.keys / name, "rb") as file:
                for at, length in wire.parts(files[name][0]):
                    send(link, {"type": "part", "name": name, "at": at}, [file.read(length)])

    def _connect(self, listener: socket.socket, token: str) -> None:
        """Let a client in that shows the token it was given, and give it a link of its own."""
        words = packed({"type": "hello", "role": "client", **self.token})
        try:
            client, _ = listener.accept()
            client.settimeout(_WELCOME_SECONDS)
            found = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            said = b""
            while len(said) < len(words) and (more := client.recv(len(words) - len(said))):
                said += more
        except OSError as error:
            raise ProtocolError(f"a client does not connect ({error})") from error
        if not hmac.compare_digest(said, words) or _CREDENTIALS.unpack(found)[1] != os.geteuid():
            raise ProtocolError("somebody else connects in a client's place")
        link = self.contact.call()
        send(link, wire.link_hello(token))
        self._links += [client, link]
        threading.Thread(target=pump, args=(client, link), daemon=True).start()

    def _tell(self, link: socket.socket, header: dict[str, Any]) -> None:
        """A batch is announced to the evaluator with its open arguments, which it fills in."""
        blobs: list[bytes] = []
        if self.children and link is self.children[0].link and header.get("type") == "batch":
            folders = self.setup.folders
            paths = [folders.operand(digest) for digest in header["operands"]]
            blobs = [_content(path) for path in paths]
            after = header["after"]["name"] if "after" in header else None
            header = {key: header[key] for key in ("type", "name", "missing", "served")}
            header["after"] = after
        with contextlib.suppress(ProtocolError):
            send(link, header, blobs)

    def left(self, name: str, ciphers: Sequence[int]) -> list[bytes]:
        """Bytes of ciphertexts that a batch left at the evaluator's."""
        link, circuit = self.children[0].link, self.setup.circuit
        most = 2 * 8 * (circuit.params.levels + 1) * 2**circuit.params.log_n + SMALL

        def sizes(header: dict[str, Any]) -> list[int]:
            told = header.get("sizes", []) if header.get("type") == "left" else []
            fits = isinstance(told, list) and all(type(n) is int and 0 < n <= most for n in told)
            return told if fits and len(told) == len(ciphers) else []

        self._tell(link, {"type": "left", "name": name, "ciphers": list(ciphers)})
        try:
            header, blobs = receive(link, sizes, SMALL)
            while header.get("type") == "alive":
                header, blobs = receive(link, sizes, SMALL)
        except ProtocolError as error:
            raise self.contact.gone() from error
        if len(blobs) != len(ciphers):
            raise self.contact.gone()
        return blobs

    def _first(self, link: socket.socket, name: str) -> dict[str, Any]:
        header: dict[str, Any] = {"type": "alive"}
        while header.get("type") == "alive":
            header = super()._first(link, name)
        return header

    def _receive(self, link: socket.socket, name: str) -> dict[str, Any]:
        if name != "server":
            return super()._receive(link, name)
        try:
            header, _ = receive(link, (), _EVENT_BYTES)
        except ProtocolError as error:
            raise self._ended(name) from error
        if header.get("type") == "refused":
            raise self.contact.refused()
        if header.get("type") in ("ended", "error"):
            raise self._ended(name)
        if header.get("type") == "progress" and header.get("op") not in self._ops:
            raise ProtocolError("the evaluator tells of an operation that the Circuit has not")
        return header

    def _ended(self, name: str) -> BackendError:
        """A client knows more than the evaluator says."""
        if name != "server":
            return super()._ended(name)
        return self._pending_error(name) or self.contact.gone()

    def __exit__(self, *error: object) -> None:
        if self.children:  # the evaluator is to know that this is the end before links close
            link = self.children[0].link
            link.settimeout(_LEAVE_SECONDS)
            with contextlib.suppress(ProtocolError, OSError):
                send(link, {"type": "stop"})
                while link.recv(1 << 16):
                    continue
        super().__exit__(*error)
        for link in self._links:
            cut(link)


class RemoteSession(Session):
    """A session at an evaluator's.

    Args:
      setup: its folders are the client's, and a server's one in which there are keys to bring, and
        the records of batches.
      contact: the evaluator.
    """

    def __init__(self, setup: Setup, contact: Contact):
        super().__init__(setup)
        self.contact = contact

    def _new_processes(self) -> Processes:
        return _RemoteProcesses(self.setup, self._entered(), self.contact)

    def _requests(self, folders: Folders, name: str, ciphers: Sequence[int]) -> Requests:
        """What the reading process is asked to decrypt, a few at a time, from the evaluator."""
        carried = {c for c, _ in self.setup.circuit.carried}
        lost = [c for c in ciphers if c not in carried]
        if lost:  # says what to do about it
            yield from super()._requests(folders, name, lost)
        try:
            self._start(ClaimedBatch(name, [], []))
            assert isinstance(self._processes, _RemoteProcesses)
            for k in range(0, len(ciphers), CLIENT_BATCH):
                part = list(ciphers[k : k + CLIENT_BATCH])
                blobs = self._processes.left(name, part)
                yield {"type": "decrypt", "ciphers": part}, blobs
        except BaseException:
            self._stop()
            raise


def _content(path: Path) -> bytes:
    """The numbers in an .npy file of float64."""
    return np.load(path, allow_pickle=False).tobytes()
