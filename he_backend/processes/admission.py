"""Who may join a run: connections to the server's socket that have yet to say the right words.

A stranger costs the run nothing: it is heard without waiting, may say no more than the words are
long, and is shown out when it says others, belongs to another user, or takes too long.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from he_backend.processes.messages import packed

__all__ = ["Admission"]

_PATIENCE_SECONDS = 10.0
_STRANGERS = 16
_CREDENTIALS = struct.Struct("3i")


@dataclass
class _Stranger:
    said: bytes
    until: float


class Admission:
    """A listening Unix socket, 0600, and the strangers at it.

    Args:
      path: of the socket.
      selector: with which sockets are registered that wait to be read.
      token: what a client must show, by name; whoever started the run tells it to the clients.
    """

    def __init__(self, path: Path, selector: selectors.BaseSelector, token: dict[str, str]):
        self.selector = selector
        self.words = packed({"type": "hello", "role": "client", **token})
        self.strangers: dict[socket.socket, _Stranger] = {}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        path.chmod(0o600)
        self.listener.listen(_STRANGERS)
        self.listener.setblocking(False)

    def sockets(self) -> tuple[socket.socket, ...]:
        """What a forked process must not keep."""
        return (self.listener, *self.strangers)

    def concerns(self, link: object) -> bool:
        return link is self.listener or link in self.strangers

    def hear(self, link: socket.socket) -> socket.socket | None:
        """Take what `link` brings: a connection or words. A client, once it has said them all."""
        if link is self.listener:
            self._accept()
            return None
        stranger = self.strangers[link]
        try:
            said = link.recv(len(self.words) - len(stranger.said), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            said = b""
        stranger.said += said
        if not said or not self.words.startswith(stranger.said):
            self._show_out(link)
        elif stranger.said == self.words:
            del self.strangers[link]
            self.selector.unregister(link)
            return link
        return None

    def seconds_left(self) -> float | None:
        """Until the first stranger has taken too long; None if there is none."""
        if not self.strangers:
            return None
        return max(0.0, min(s.until for s in self.strangers.values()) - time.monotonic())

    def show_out_the_silent(self) -> None:
        now = time.monotonic()
        for link in [link for link, s in self.strangers.items() if s.until <= now]:
            self._show_out(link)

    def close(self) -> None:
        for link in self.sockets():
            link.close()

    def _accept(self) -> None:
        try:
            link, _ = self.listener.accept()
        except OSError:
            return
        if _user_of(link) != os.geteuid():
            link.close()
            return
        if len(self.strangers) >= _STRANGERS:
            self._show_out(
                next(iter(self.strangers))
            )  # who came first has said nothing for longest
        self.strangers[link] = _Stranger(b"", time.monotonic() + _PATIENCE_SECONDS)
        self.selector.register(link, selectors.EVENT_READ)

    def _show_out(self, link: socket.socket) -> None:
        del self.strangers[link]
        self.selector.unregister(link)
        link.close()


def _user_of(link: socket.socket) -> int:
    """User number of the process at the other end, as the system knows it."""
    found = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(found)[1]
