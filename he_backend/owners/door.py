"""Who may speak to an evaluator: strangers are heard beside each other, briefly, and cost little.

Whoever is not admitted is told one word, "refused", or nothing, at times that do not depend on the
reason. The reason goes to the evaluator's own log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from he_backend.errors import ProtocolError
from he_backend.owners.addresses import Address, keep_alive, listen
from he_backend.owners.certificates import Certificates
from he_backend.owners.pump import cut
from he_backend.processes.messages import SMALL, receive, send

__all__ = ["Door", "Visitor", "refuse", "wait_to_refuse"]

_PATIENCE_SECONDS = 10.0
"""In which a stranger has to say all that it has to say."""

_STRANGERS = 16
_REFUSAL_SECONDS = 4.0
"""A refusal is sent at a multiple of this time after the stranger came."""

_CREDENTIALS = struct.Struct("3i")


@dataclass(eq=False)
class Visitor:
    """Somebody who came: the link, since when (time.monotonic), and who it is to the log.

    Attributes:
      peer: what its certificate or its user tells it by.
    """

    link: socket.socket
    since: float
    name: str
    peer: str = ""


class Door:
    """Hears all who come, until it is closed.

    Args:
      address: where to listen. certificates: of this side; None on a Unix socket.
      take: called with a visitor and its first message, in a thread of the visitor's own.
      log: where it is told who was shown out, and why.

    Raises:
      BackendError: nobody can listen there.
    """

    def __init__(
        self,
        address: Address,
        certificates: Certificates | None,
        take: Callable[[Visitor, dict[str, Any]], None],
        log: logging.Logger,
    ):
        self.log = log
        self.certificates = certificates
        self.take = take
        self.address = address
        self._listener = listen(address)
        if not address.local:
            host, port = self._listener.getsockname()[:2]
            self.address = Address(host=host, port=port)
        self._lock = threading.Lock()
        self._strangers: list[Visitor] = []
        self._wake, self._waker = socket.socketpair()

    def serve(self) -> None:
        """Let them in one after another; returns when the door is closed."""
        self._listener.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(self._seconds_left())}
                if self._wake in ready:
                    break
                began = time.monotonic() - _PATIENCE_SECONDS
                self._show_out(lambda v, began=began: v.since <= began)
                if self._listener in ready:
                    self._open()
        self._listener.close()
        if self.address.local:
            with contextlib.suppress(OSError):
                os.unlink(self.address.path)
        self._show_out(lambda _: True)

    def close(self) -> None:
        """Have `serve` return, from another thread or a signal's handler."""
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def _open(self) -> None:
        try:
            link, address = self._listener.accept()
        except OSError as error:  # it went away again, or there are no more descriptors
            self.log.warning("nobody could be let in: %s", error)
            time.sleep(0.01)
            return
        link.settimeout(_PATIENCE_SECONDS)
        name = str(address[0]) if address else "a process of this host"
        visitor = Visitor(link, time.monotonic(), name)
        with self._lock:
            self._strangers.append(visitor)
            oldest = self._strangers[0] if len(self._strangers) > _STRANGERS else None
        if oldest is not None:
            self._show_out(lambda v: v is oldest)
        threading.Thread(target=self._hear, args=(visitor,), daemon=True).start()

    def _seconds_left(self) -> float | None:
        with self._lock:
            if not self._strangers:
                return None
            return max(0.0, self._strangers[0].since + _PATIENCE_SECONDS - time.monotonic())

    def _show_out(self, which: Callable[[Visitor], bool]) -> None:
        with self._lock:
            leaving = [visitor for visitor in self._strangers if which(visitor)]
            self._strangers = [v for v in self._strangers if v not in leaving]
            for visitor in leaving:
                cut(visitor.link)

    def _known(self, visitor: Visitor) -> bool:
        """From now on it is no stranger any more; whether it had not been shown out."""
        with self._lock:
            known = visitor in self._strangers
            if known:
                self._strangers.remove(visitor)
            return known

    def _hear(self, visitor: Visitor) -> None:
        """A visitor's own thread: find out who it is, and what it says first."""
        try:
            self._identify(visitor)
            header, _ = receive(visitor.link, (), SMALL)
        except Exception as error:
            self.log.warning("%s was shown out: %s", visitor.name, error)
            self._known(visitor)
            visitor.link.close()
            return
        if not self._known(visitor):
            self.log.warning("%s was shown out: it took too long", visitor.name)
            visitor.link.close()
            return
        try:
            self.take(visitor, header)
        except Exception:
            self.log.exception("serving %s failed", visitor.name)
            visitor.link.close()

    def _identify(self, visitor: Visitor) -> None:
        link = visitor.link
        if self.certificates is None:
            found = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, user, _ = _CREDENTIALS.unpack(found)
            visitor.name = f"process {pid} of user {user}"
            if user != os.geteuid():
                raise ProtocolError("it belongs to another user")
            visitor.peer = f"user{user}"
            return
        keep_alive(link)
        wrapped = self.certificates.wrap(link, server=True)
        with self._lock:
            visitor.link = wrapped
            if visitor not in self._strangers:
                cut(wrapped)
        assert isinstance(wrapped, ssl.SSLSocket)
        visitor.peer = self.certificates.shake_hands(wrapped)


def refuse(visitor: Visitor, reason: str, log: logging.Logger) -> None:
    """Send a visitor away with the word that all are told, at a time that tells nothing."""
    log.warning("%s was refused: %s", visitor.name, reason)
    wait_to_refuse(visitor)
    with contextlib.suppress(ProtocolError):
        send(visitor.link, {"type": "refused"})
    visitor.link.close()


def wait_to_refuse(visitor: Visitor) -> None:
    """Let the time come at which whatever is wrong may be answered."""
    passed = time.monotonic() - visitor.since
    time.sleep((passed // _REFUSAL_SECONDS + 1) * _REFUSAL_SECONDS - passed)
