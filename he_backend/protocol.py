"""Messages between the processes of a run: a JSON header and blobs, length-prefixed."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from he_backend.errors import BlobError, ProtocolError

__all__ = ["Progress", "receive", "send"]

_PREFIX = struct.Struct("<4sII")
_LENGTH = struct.Struct("<Q")
_MAGIC = b"heM1"
_HEADER_LIMIT = 1 << 26
_BLOB_LIMIT = 1 << 31
_BLOBS_LIMIT = 1 << 12


@dataclass(frozen=True)
class Progress:
    """How far an encrypted run is.

    Attributes:
      done, total: predicted seconds of the tasks that are done, and of all.
      tasks_done, tasks_total: their numbers, tasks of earlier attempts included.
      elapsed: seconds of this attempt. eta: estimated seconds left.
      op: name of the Program operation that finished last; before any has, what is being done.
      processes: process numbers by name: "server", "worker 0", ..., "client 0", ...
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


def send(link: socket.socket, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Send one message.

    Raises:
      ProtocolError: the peer is gone.
    """
    text = json.dumps(header).encode()
    parts = [_PREFIX.pack(_MAGIC, len(text), len(blobs)), text]
    parts += [_LENGTH.pack(len(blob)) for blob in blobs]
    try:
        link.sendall(b"".join(parts))
        for blob in blobs:
            link.sendall(blob)
    except OSError as error:
        raise ProtocolError(f"the other process is gone: {error}") from error


def receive(
    link: socket.socket, sizes: Sequence[int] | None = None
) -> tuple[dict[str, Any], list[bytes]]:
    """The next message.

    Args:
      link: a blocking socket.
      sizes: lengths that the blobs must have, where the receiver knows them.

    Raises:
      ProtocolError: the peer closed the connection, or the bytes are no message.
      BlobError: blobs of another number or length than `sizes`.
    """
    magic, length, count = _PREFIX.unpack(_read(link, _PREFIX.size))
    if magic != _MAGIC or length > _HEADER_LIMIT or count > _BLOBS_LIMIT:
        raise ProtocolError("the bytes are not a message of this protocol")
    try:
        header = json.loads(_read(link, length))
    except ValueError as error:
        raise ProtocolError(f"the message's header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProtocolError("the message's header is not an object")
    lengths = [_LENGTH.unpack(_read(link, _LENGTH.size))[0] for _ in range(count)]
    if sizes is not None and count and lengths != list(sizes):
        raise BlobError(f"a message brings blobs of {lengths} bytes instead of {list(sizes)}")
    if any(n > _BLOB_LIMIT for n in lengths):
        raise ProtocolError("a blob is larger than the protocol allows")
    return header, [_read(link, n) for n in lengths]


def _read(link: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    view = memoryview(buffer)
    got = 0
    while got < length:
        try:
            count = link.recv_into(view[got:])
        except OSError as error:
            raise ProtocolError(f"the other process is gone: {error}") from error
        if count == 0:
            raise ProtocolError("the other process closed the connection")
        got += count
    return bytes(buffer)
