"""Files that appear complete or not at all, and folders that one process has to itself."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hesim.errors import FolderInUseError

__all__ = ["alone_in", "bound_digest", "replacing", "sweep", "write_whole"]

LOCK = "lock"
"""Name of the file by which a folder is held."""


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, durable: bool = True, mode: int | None = None
) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end of the context.

    It lies beside its place under a name of this process; an error leaves nothing behind.

    Args:
      path: where it ends up.
      durable: its content reaches the disk before it takes its place, so that after a loss of power
        too there is the old file or the new one. Enough without it for what is checked when read.
      mode: permissions; those that the umask gives by default.

    Raises:
      OSError: as the system does, with the file's name.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(beside, "wb", opener=_opener(mode)) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(beside), beside):
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
        raise


def write_whole(
    path: str | os.PathLike[str],
    content: bytes | memoryview,
    *,
    durable: bool = True,
    mode: int | None = None,
) -> None:
    """Write a file that appears complete or not at all; see `replacing`."""
    with replacing(path, durable=durable, mode=mode) as file:
        file.write(content)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder`, which must be held: no other may be writing."""
    for left in folder.glob(".*.[0-9]*"):
        if left.name.rpartition(".")[2].isdigit() and left.is_file():
            left.unlink(missing_ok=True)


def bound_digest(owner: str, name: str, content: bytes | memoryview) -> bytes:
    """32 bytes of SHA-256 over a file's content, its name and what it belongs to.

    A file that carries it is told from one that was altered, and from another one of the same form.
    """
    place = json.dumps([owner, name]).encode()
    total = hashlib.sha256(len(place).to_bytes(8, "little") + place)
    total.update(content)
    return total.digest()


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes, and other threads, from holding a folder that exists.

    Raises:
      FolderInUseError: one of them holds it.
      OSError: its lock file cannot be written.
    """
    with open(Path(folder) / LOCK, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(f"another process is using {folder}") from error
        yield


def _opener(mode: int | None):
    """Opens for `open`; a file of a given mode has it from the start, whatever the umask."""
    if mode is None:
        return None

    def opened(path: str, flags: int) -> int:
        descriptor = os.open(path, flags, mode)
        os.fchmod(descriptor, mode)
        return descriptor

    return opened
