"""Messages between the processes of a run: a JSON header and blobs, length-prefixed."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from he_backend.errors import BlobError, PeerGoneError, ProtocolError

__all__ = ["SMALL", "Progress", "Told", "packed", "receive", "send"]

_PREFIX = struct.Struct("<4sII")
_LENGTH = struct.Struct("<Q")
_MAGIC = b"heM1"
_HEADER_LIMIT = 1 << 26
_BLOB_LIMIT = 1 << 31
_BLOBS_LIMIT = 1 << 12

_TELLINGS = 100
_TELLING_SECONDS = 0.1
"""A caller is told of finished tasks when they are one in so many of all, or after so long."""

SMALL = 1 << 14
"""Bytes that suffice for any header between client and server."""


@dataclass(frozen=True)
class Progress:
    """How far an encrypted run is.

    Attributes:
      done, total: predicted seconds of the tasks that are done, and of all.
      tasks_done, tasks_total: their numbers, tasks of earlier attempts included.
      elapsed: seconds of this attempt.
      eta: estimated seconds left.
      op: name of the Program operation that finished last; before any has, what is being done.
      processes: process numbers by name: "server", "worker 0", ..., "client 0", ...

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program, seen = hesim.trace(lambda x: x * x, np.ones(2)), []
      >>> _ = he_backend.run(
      ...     program, np.ones(2), params=params, backend="slots", progress=seen.append)
      >>> seen[-1].fraction, seen[-1].tasks_done == seen[-1].tasks_total
      (1.0, True)
    """

    done: float
    total: float
    tasks_done: int
    tasks_total: int
    elapsed: float
    eta: float
    op: str = ""
    processes: dict[str, int] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        return self.done / self.total if self.total else 1.0


class Told:
    """What a caller knows of a batch: it is told of finished tasks, and says that it has heard. Of
    many it is told some times a second: a message for each would cost as much as handing it out.

    Args:
      ahead: finished tasks that it may not have heard of before no more are begun.
      tasks: in all; of few it is told one by one.
    """

    def __init__(self, ahead: int, tasks: int):
        self._ahead, self._most = ahead, max(1, min(ahead // 2, tasks // _TELLINGS))
        self._new = self._unheard = 0
        self._said: deque[int] = deque()
        self._due = time.monotonic()

    def finished(self) -> None:
        """A task is done."""
        self._new += 1

    @property
    def patience(self) -> float | None:
        """Seconds until it is to be told; None if there is nothing to tell."""
        if self._new == 0:
            return None
        return max(0.0, self._due - time.monotonic()) if self._new < self._most else 0.0

    def say(self) -> None:
        """It is told of all that is done."""
        self._said.append(self._new)
        self._unheard += self._new
        self._new = 0
        self._due = time.monotonic() + _TELLING_SECONDS

    def heard(self) -> None:
        """It has heard what it was told first of what it had not heard."""
        self._unheard -= self._said.popleft() if self._said else 0

    @property
    def behind(self) -> bool:
        """Whether it could not stop any more what would be begun now."""
        return self._unheard + self._new >= self._ahead


def packed(header: dict[str, Any], sizes: Sequence[int] = ()) -> bytes:
    """The bytes of a message up to its blobs, which have these sizes."""
    text = json.dumps(header).encode()
    lengths = [_LENGTH.pack(size) for size in sizes]
    return b"".join((_PREFIX.pack(_MAGIC, len(text), len(sizes)), text, *lengths))


def send(link: socket.socket, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Send one message.

    Raises:
      ProtocolError: the peer takes nothing for longer than the link's time-out.
      PeerGoneError: it is gone.
    """
    try:
        link.sendall(packed(header, [len(blob) for blob in blobs]))
        for blob in blobs:
            link.sendall(blob)
    except TimeoutError as error:
        raise ProtocolError("the other process does not take what it is sent") from error
    except OSError as error:
        raise PeerGoneError(f"the other process is gone: {error}") from error


def receive(
    link: socket.socket,
    sizes: Sequence[int] | Callable[[dict[str, Any]], Sequence[int]] | None = None,
    header_limit: int = _HEADER_LIMIT,
) -> tuple[dict[str, Any], list[bytes]]:
    """The next message.

    No memory is taken for what is not as large as it should be.

    Args:
      link: a blocking socket.
      sizes: lengths in bytes that the blobs must have, if there are any; or a function that tells
        them from the header, and may refuse it. None takes what the protocol allows.
      header_limit: bytes that the header may have.

    Raises:
      ProtocolError: the bytes are no message, or the peer falls silent in the middle of one for
        longer than the link's time-out.
      PeerGoneError: the peer closed the connection.
      BlobError: blobs of another number or length than `sizes`.
    """
    magic, length, count = _PREFIX.unpack(_read(link, _PREFIX.size))
    if magic != _MAGIC or length > header_limit or count > _BLOBS_LIMIT:
        raise ProtocolError("the bytes are not a message of this protocol")
    header = _header(_read(link, length))
    expected = sizes(header) if callable(sizes) else sizes
    if expected is not None and count and count != len(expected):
        raise BlobError(f"a message brings {count} blobs instead of {len(expected)}")
    lengths = [_LENGTH.unpack(_read(link, _LENGTH.size))[0] for _ in range(count)]
    if expected is not None and count and lengths != list(expected):
        raise BlobError(f"a message brings blobs of {lengths} bytes instead of {list(expected)}")
    if sum(lengths) > _BLOB_LIMIT:
        raise ProtocolError("the blobs of a message are larger than the protocol allows")
    return header, [_read(link, n) for n in lengths]


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the message's header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProtocolError("the message's header is not an object")
    return header


def _no_constant(name: str) -> None:
    raise ProtocolError(f"the message's header is not JSON: {name} is no number")


def _read(link: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    view = memoryview(buffer)
    got = 0
    while got < length:
        try:
            count = link.recv_into(view[got:])
        except TimeoutError as error:
            raise ProtocolError(
                "the other process fell silent in the middle of a message"
            ) from error
        except OSError as error:
            raise PeerGoneError(f"the other process is gone: {error}") from error
        if count == 0:
            raise PeerGoneError("the other process closed the connection")
        got += count
    view.release()
    return bytes(buffer)
