"""Where an evaluator listens: a Unix socket of one user, or a port of a host."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from he_backend.errors import BackendError, EvaluatorGoneError

__all__ = ["Address", "dial", "keep_alive", "listen"]

_WAITING = 64
_DIAL_SECONDS = 20.0
_LONGEST_PATH = 107

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A peer whose host has gone is noticed after a minute and a half."""


@dataclass(frozen=True)
class Address:
    """A path of a Unix socket, or a host and a port.

    Examples:
      >>> Address.parse("unix:/run/hesim/evaluator").path
      '/run/hesim/evaluator'
      >>> Address.parse("[::1]:7700")
      Address(path='', host='::1', port=7700)
    """

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Of "unix:PATH" or "HOST:PORT". Raises BackendError for any other text."""
        if text.startswith("unix:"):
            path = os.path.abspath(text.removeprefix("unix:"))
            if len(os.fsencode(path)) > _LONGEST_PATH:
                raise BackendError(f"{path} is longer than the {_LONGEST_PATH} bytes of a socket")
            return cls(path=path)
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdigit() or int(port) >= 1 << 16:
            raise BackendError(f"{text!r} is no address: take unix:PATH, or HOST:PORT")
        return cls(host=host, port=int(port))

    @property
    def local(self) -> bool:
        """Whether it is a Unix socket, which needs no certificates."""
        return bool(self.path)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen(address: Address) -> socket.socket:
    """A socket that listens; that of a path is for its user only (0600).

    Raises:
      BackendError: somebody listens there, or the system refuses.
    """
    try:
        if not address.local:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            return socket.create_server((address.host, address.port), family=family)
        _remove_left(Path(address.path))
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            found.bind(address.path)
        finally:
            os.umask(before)
        found.listen(_WAITING)
        return found
    except OSError as error:
        raise BackendError(f"nobody can listen at {address} ({error.strerror})") from error


def _remove_left(path: Path) -> None:
    """Remove a socket at which nobody listens any more. OSError if somebody does."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(17, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        raise OSError(98, "somebody listens there already")


def dial(address: Address) -> socket.socket:
    """A socket that is connected, whose time-out is that of connecting.

    Raises:
      EvaluatorGoneError: nobody answers there.
    """
    try:
        if address.local:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.settimeout(_DIAL_SECONDS)
            _connect(link, address.path)
            return link
        link = socket.create_connection((address.host, address.port), _DIAL_SECONDS)
        keep_alive(link)
        return link
    except OSError as error:
        raise EvaluatorGoneError(
            f"no evaluator answers at {address} ({error.strerror or error}): start it with `hesim "
            f"serve`, or mend the address"
        ) from error


def _connect(link: socket.socket, path: str) -> None:
    """Connect to a Unix socket, whose queue may be full for a moment: the system does not wait."""
    end = time.monotonic() + _DIAL_SECONDS
    while True:
        try:
            link.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def keep_alive(link: socket.socket) -> None:
    """Have the system find out that the host at the other end is gone; small messages at once."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
