"""Carries bytes both ways between two connected sockets, either of which may be a TLS one."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time

__all__ = ["cut", "plain", "pump"]

_CHUNK = 1 << 18
_MOST = 1 << 20
"""Bytes on their way in one direction, at most."""

_FLUSH_SECONDS = 20.0
"""What one side said last is still brought to the other for so long."""


class _End:
    """One of the two sockets, and what is still to be written to it."""

    def __init__(self, link: socket.socket):
        self.link = link
        self.out = bytearray()
        self.closed = False
        self.heard = time.monotonic()
        self.reads_want_write = self.writes_want_read = False

    def read_into(self, other: _End) -> None:
        """Take what there is, up to what the other end has room for."""
        self.reads_want_write = False
        while not self.closed and len(other.out) < _MOST:
            try:
                data = self.link.recv(_CHUNK)
            except ssl.SSLWantWriteError:
                self.reads_want_write = True
                return
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
                return
            except OSError:
                data = b""
            other.out += data
            self.closed = not data
            self.heard = time.monotonic()

    def write(self) -> None:
        """Give what the other end brought, as far as it is taken. Raises OSError if it is gone."""
        self.writes_want_read = False
        while self.out:
            try:
                count = self.link.send(memoryview(self.out)[:_CHUNK])
            except ssl.SSLWantReadError:
                self.writes_want_read = True
                return
            except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
                return
            del self.out[:count]

    def pending(self) -> bool:
        """Whether there is something to read of which the system does not know."""
        return isinstance(self.link, ssl.SSLSocket) and self.link.pending() > 0

    def events(self, room: bool) -> int:
        """What to wait for."""
        reads, writes = room and not self.closed, bool(self.out)
        read = (reads and not self.reads_want_write) or (writes and self.writes_want_read)
        write = (writes and not self.writes_want_read) or (reads and self.reads_want_write)
        return (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)


def pump(one: socket.socket, other: socket.socket, patience: float | None = None) -> None:
    """Carry bytes until either side closes or goes away, then close both.

    patience: seconds in which `other` has to say something, again and again; None for any time.
    """
    ends = _End(one), _End(other)
    with (
        contextlib.closing(one),
        contextlib.closing(other),
        contextlib.suppress(OSError, ValueError),
    ):
        one.setblocking(False)
        other.setblocking(False)
        until: float | None = None
        while True:
            for end, opposite in (ends, ends[::-1]):
                end.read_into(opposite)
                opposite.write()
            if any(end.closed for end in ends):
                until = until or time.monotonic() + _FLUSH_SECONDS
                left = any(end.out and not end.closed for end in ends)
                if not left or time.monotonic() > until:
                    return
            silent = None if patience is None else ends[1].heard + patience
            left = min((t - time.monotonic() for t in (until, silent) if t), default=None)
            if left is not None and left <= 0 and until is None:
                return
            _wait(ends, None if left is None else max(0.0, left))


def _wait(ends: tuple[_End, _End], seconds: float | None) -> None:
    with selectors.DefaultSelector() as selector:
        for end, opposite in (ends, ends[::-1]):
            room = len(opposite.out) < _MOST
            if room and end.pending():
                return
            events = end.events(room)
            if events:
                selector.register(end.link, events)
        selector.select(seconds)


def plain(link: socket.socket, patience: float | None = None) -> socket.socket:
    """A socket without TLS that is the same link, whose bytes a thread carries.

    patience: as of `pump`, for what is at the far end.
    """
    if not isinstance(link, ssl.SSLSocket) and patience is None:
        return link
    ours, theirs = socket.socketpair()
    threading.Thread(target=pump, args=(theirs, link, patience), daemon=True).start()
    return ours


def cut(link: socket.socket) -> None:
    """End a link at once, whoever is reading from it or writing to it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(link, socket.SHUT_RDWR)
