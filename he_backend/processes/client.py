"""The key holder's process: answers the server's requests, alone with the secret key.

It is driven by two links: the caller's (configuration in, error details out) and the server's (one
request at a time). Whatever goes wrong on this side, the server sees the same message, "refused",
after a time that depends on its request alone, and no client of the run answers it any more. What
went wrong, with the operation and its source line, goes to the caller.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import (
    BlobError,
    PeerGoneError,
    ProtocolError,
    to_message,
)
from he_backend.keyholder import KeyHolder
from he_backend.machines.protocol import Machine
from he_backend.machines.table import find
from he_backend.processes.exchange import Exchange, requested
from he_backend.processes.folders import Folders, read_manifest, verify_files, verify_written
from he_backend.processes.memory import peak_bytes
from he_backend.processes.messages import SMALL, receive, send
from he_backend.processes.privacy import keep_private
from he_backend.processes.states import reading
from he_backend.processes.states.ahead import Ahead, take
from he_backend.processes.states.left import carried_inputs
from he_backend.processes.store import Store
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.execute import with_source
from hesim.circuit.refresher import KEY_HOLDER

__all__ = ["main"]

_SILENCE_SECONDS = 120.0
"""A server that stops in the middle of a message is given up."""

_REFUSAL_SECONDS = 0.5
_REFUSAL_FACTOR = 4.0
"""A refusal is sent at a multiple of a time that exceeds what checking the request takes."""


class _Client:
    """One client process: a KeyHolder of the batch at hand, behind two sockets.

    Attributes:
      exchange, holder: of the batch at hand; none before the first one.
      encrypted: inputs of it that were encrypted ahead. ahead: those of the next.
    """

    exchange: Exchange
    holder: KeyHolder
    encrypted: Store | None

    def __init__(self, control: socket.socket, config: dict[str, Any]):
        self.control = control
        self.open = self.ended = False
        self.folders = Folders(Path(os.devnull), Path(config["client"]))
        self.circuit = circuit = _circuit(config)
        taps = (tap for tap in (*circuit.outputs, *circuit.taps) if tap is not None)
        known = config.get("decrypt", [int(c) for tap in taps for c in tap.ciphers])
        self.decrypt = frozenset(int(c) for c in known)
        self.machine = _machine(circuit, config, self.folders)
        self.ahead = Ahead(circuit, self.machine, self.folders.ahead)
        if config.get("wait"):  # until the server listens
            header, _ = receive(control)
            if header.get("type") != "connect":
                raise ProtocolError("the run ended before it began")
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.settimeout(_SILENCE_SECONDS)
        try:
            self.server.connect(config["socket"])
        except OSError as error:
            raise ProtocolError(f"the server is gone: {error}") from error
        send(self.server, {"type": "hello", "role": "client", **config.get("token", {})})
        send(control, {"type": "ready", "pid": os.getpid()})

    def _open(self, config: dict[str, Any]) -> None:
        """Serve another batch from now on, by its own record of what was asked."""
        folders, run = self.folders.of_batch(str(config["batch"])), str(config["name"])
        self.holder = KeyHolder(
            self.circuit,
            self.machine,
            _inputs(folders, config["inputs"]),
            {int(c): reading.ends(*bounds) for c, bounds in config["ranges"].items()},
            folders.values,
            run,
        )
        carried = carried_inputs(self.circuit) if config.get("follows") else ()
        self.exchange = Exchange(folders.exchange, run, self.circuit, carried)
        self.decrypt = frozenset(int(c) for c in config.get("decrypt", self.decrypt))
        self.encrypted = self.ahead.opened(str(config["batch"]), config["inputs"])
        self.open = True
        send(self.control, {"type": "batch"})

    def serve(self) -> None:
        """Answer the server until it, or the caller, closes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ)
            selector.register(self.server, selectors.EVENT_READ)
            while True:
                waiting = self.ahead.waiting
                ready = {key.fileobj for key, _ in selector.select(0.0 if waiting else None)}
                if waiting and not ready:
                    self.ahead.advance()
                elif self.control in ready:
                    header, _ = receive(self.control)
                    if header["type"] == "stop":
                        send(self.control, {"type": "stopped", "peak": peak_bytes()})
                        return
                    if header["type"] == "batch":
                        self._open(header)
                    elif header["type"] == "ahead":
                        self.ahead.begin(header)
                    elif header["type"] == "peak":
                        send(self.control, {"type": "peak", "peak": peak_bytes()})
                elif self.ended:
                    if not _discard(self.server):
                        selector.unregister(self.server)
                else:
                    self._hear()

    def _hear(self) -> None:
        """Serve the next request, or refuse it, which is the last word to the server."""
        if not _says_more(self.server):
            raise PeerGoneError("the server closed the connection")
        began, started = time.monotonic(), time.thread_time()
        numbers: list[int] = []
        try:
            replies = self._serve(numbers)
        except PeerGoneError:  # it knows why, or the caller does
            raise
        except Exception as error:
            self._refuse(error, began, numbers)
            return
        with self.exchange.held():
            self.ended = self.exchange.ended
            if not self.ended:
                seconds = time.thread_time() - started
                send(self.server, {"type": "done", "seconds": seconds}, replies)
        if self.ended:
            self.server.shutdown(socket.SHUT_WR)

    def _serve(self, numbers: list[int]) -> list[bytes]:
        """The answer to the next request, whose instructions are noted in `numbers`."""
        if not self.open:
            raise ProtocolError("the server asks for something before there is a batch")

        def sizes(header: dict[str, Any]) -> Sequence[int]:
            numbers.extend(requested(self.circuit, self.decrypt, header))
            return self.holder.sizes(header["type"], numbers)

        try:
            header, blobs = receive(self.server, sizes, SMALL)
        except BlobError as error:
            raise with_source(error, self.circuit, numbers[0]) from error
        self.exchange.claim(header["type"], numbers)
        if header["type"] == "input":
            return [take(self.encrypted, i) or self._encrypted(i) for i in numbers]
        return self.holder.answer(header["type"], numbers, blobs)

    def _encrypted(self, i: int) -> bytes:
        return self.holder.answer("input", [i], [])[0]

    def _refuse(self, error: Exception, began: float, numbers: Sequence[int]) -> None:
        """Tell the caller what is wrong, and the server nothing but that this is the end."""
        self.ended = True
        step = max(_REFUSAL_SECONDS, _REFUSAL_FACTOR * self._seconds(numbers))
        passed = time.monotonic() - began
        time.sleep((passed // step + 1) * step - passed)
        with contextlib.suppress(ProtocolError):
            send(self.control, {"type": "error", "error": to_message(error)})
        record = self.exchange.held() if self.open else contextlib.nullcontext()
        with record, contextlib.suppress(ProtocolError, OSError):
            if not self.open or not self.exchange.ended:
                if self.open:
                    self.exchange.end()
                send(self.server, {"type": "refused"})
            self.server.shutdown(socket.SHUT_WR)

    def _seconds(self, numbers: Sequence[int]) -> float:
        """Predicted seconds of a request; what it asks for is known to the server."""
        circuit, total = self.circuit, 0.0
        for i in numbers:
            refreshed = circuit.kind[i] == Kind.REFRESH
            below = int(circuit.level[circuit.operands(i)[0] if refreshed else i])
            total += KEY_HOLDER.seconds(below, int(circuit.level[i]), circuit.params.log_n)
        return total


def _says_more(link: socket.socket) -> bool:
    """Whether a peer has something to say, when it has or is gone."""
    try:
        return bool(link.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def _discard(link: socket.socket) -> bool:
    """Throw away what a peer still says; whether it may say more."""
    try:
        return bool(link.recv(1 << 16))
    except OSError:
        return False


def _circuit(config: dict[str, Any]) -> Circuit:
    """What may be asked for: the Circuit of the caller, whatever the server may have of it."""
    path = Path(config["circuit"])
    verify_written([path], [config["circuit_digest"]])
    return Circuit.load(path)


def _machine(circuit: Circuit, config: dict[str, Any], folders: Folders) -> Machine:
    """The machine with the keys of this run. Raises BlobError if a key file was altered."""
    from he_backend.processes.keys import params_of

    verify_files(folders.client, read_manifest(folders.client_keys)["files"])
    kind = find(config.get("machine", "pyfhel")).load()
    own = {} if circuit.bootstrap is None else {"bootstrap": circuit.bootstrap}
    return kind.key_holder(params_of(config["params"]), circuit.slots, folders.client, **own)


def _inputs(folders: Folders, digests: Sequence[str]) -> list[np.ndarray]:
    """The clear inputs. Raises RunFolderError if one is not the file that the caller wrote."""
    paths = [folders.inputs / f"{k}.npy" for k in range(len(digests))]
    verify_written(paths, digests)
    return [np.load(path, allow_pickle=False) for path in paths]


def main() -> None:
    """Entry of the client process; its control link is standard input."""
    keep_private()
    control = socket.socket(fileno=os.dup(0))
    try:
        config, _ = receive(control)
        if config.get("type") == "stop":  # before there was anything to do
            return
        if config.get("type") == "read":
            folders, circuit = Folders(Path(os.devnull), Path(config["client"])), _circuit(config)
            reading.serve(control, config, circuit, _machine(circuit, config, folders))
            return
        client = _Client(control, config)
    except ProtocolError as error:  # the server, or the caller, knows why
        raise SystemExit(1) from error
    except Exception as error:
        with contextlib.suppress(ProtocolError):
            send(control, {"type": "error", "error": to_message(error)})
        raise
    try:
        client.serve()
    except ProtocolError:
        raise SystemExit(0) from None
    except Exception as error:  # of a batch that cannot be opened
        with contextlib.suppress(ProtocolError):
            send(control, {"type": "error", "error": to_message(error)})
        raise


if __name__ == "__main__":
    main()
