"""Ciphertexts in files that lie in a host's memory, which its workers and their evaluators share.

What moves between them is a name: whoever hears one makes a link of its own, and a file's memory is
free when the last name of it is gone. A session has one folder a host, for this user only. Each
process that may use it holds a lock that is shared; the last one removes the folder. The files of a
worker that was killed are removed by its evaluator, run as this module; what a host was left with
by processes that were all killed is removed by the next session. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import stat
import sys
import time
import uuid
import weakref
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from he_backend.errors import ClusterError

__all__ = [
    "HostFile",
    "HostFolder",
    "leave_mark",
    "read",
    "remove_in_a_moment",
    "sees_marks",
    "written",
]

_MEMORY = Path("/dev/shm")
_NAME = "hesim-ciphertexts-"
_LOCK = "lock"

_GRACE_SECONDS = 60.0
"""Whoever was told of a file of somebody who was killed has made a link of its own by then."""

_own = f"{os.getpid()}-{uuid.uuid4().hex[:8]}-"
"""What the names begin with that this process gives."""

_numbers = itertools.count()


class HostFile:
    """A file's name, which is removed when nobody refers to this.

    Args:
      path: of the file, which may be written later. size: bytes of the ciphertext in it.
    """

    def __init__(self, path: str, size: int):
        self.path, self.size = path, size
        weakref.finalize(self, _remove, path).atexit = False

    @classmethod
    def linked(cls, path: str, size: int) -> HostFile:
        """Another name of a file that may lose its own. If it has, whoever reads is told."""
        own = os.path.join(os.path.dirname(path), f"{_own}{next(_numbers)}")
        with contextlib.suppress(OSError):
            os.link(path, own)
        return cls(own, size)

    def read(self) -> bytes:
        """The ciphertext. Raises ClusterError if it is gone."""
        return read(self.path)


class HostFolder:
    """The folder of a session, on this host.

    Args:
      session: its unique name. elsewhere: where it lies on hosts whose memory is no folder.

    Attributes:
      path: of it. lock: descriptor, which an evaluator holds, too.

    Raises:
      OSError: it cannot be made, or is another user's.
    """

    def __init__(self, session: str, elsewhere: str):
        self.path = _place(session, elsewhere)
        for other in self.path.parent.glob(f"{_NAME}*"):
            _remove_unused(other)
        self.path.mkdir(mode=0o700, exist_ok=True)
        found = self.path.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(f"{self.path} is not this user's alone")
        self.lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_SH)

    def new(self, size: int) -> HostFile:
        """A name for a file that somebody will write."""
        return HostFile(str(self.path / f"{_own}{next(_numbers)}"), size)

    @property
    def own(self) -> str:
        """What the names begin with that this process gives."""
        return _own

    def close(self) -> None:
        """Remove the folder, if nobody else has it."""
        os.close(self.lock)
        _remove_unused(self.path)


def leave_mark(session: str, elsewhere: str, name: str) -> None:
    """Let others see that whoever has this name has the session's folder."""
    path = _place(session, elsewhere)
    path.mkdir(mode=0o700, exist_ok=True)
    (path / _mark(name)).touch(mode=0o600)


def sees_marks(session: str, elsewhere: str, names: Iterable[str]) -> bool:
    """Whether all of these have the folder that this process has."""
    return all((_place(session, elsewhere) / _mark(name)).exists() for name in names)


def _mark(name: str) -> str:
    return f"mark-{quote(name, safe='')}"


def _place(session: str, elsewhere: str) -> Path:
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(elsewhere)
    return parent / f"{_NAME}{session}"


def read(path: str) -> bytes:
    """The ciphertext in a file. Raises ClusterError if it is gone."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ClusterError(
            f"a worker of the cluster was given {path}, where it finds nothing ({error.strerror}): "
            "have all workers of one address see the same files there, or run again with the same "
            "run_dir to resume"
        ) from error


def written(path: str, blob: bytes | memoryview) -> bool:
    """Write a file; whether there was room."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", 0) as file:
            if file.write(blob) == len(blob):
                return True
    except OSError:
        pass
    _remove(path)
    return False


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _remove_unused(path: Path) -> None:
    """Remove the folder of a session that nobody has."""
    with contextlib.suppress(OSError), open(path / _LOCK, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)


def remove_in_a_moment(folder: str, own: str, lock: int) -> None:
    """Become a small process that removes the files of one that was killed.

    own: what their names begin with. lock: descriptor, which is held until then.
    """
    command = [sys.executable, "-P", "-m", "he_backend.clusters.hostfiles"]
    os.execv(sys.executable, [*command, folder, own, str(lock)])


def main() -> None:
    """Entry of the process that `remove_in_a_moment` becomes."""
    folder, own, lock = sys.argv[1:]
    time.sleep(_GRACE_SECONDS)
    for path in Path(folder).glob(f"{own}*"):
        _remove(str(path))
    os.close(int(lock))
    _remove_unused(Path(folder))


if __name__ == "__main__":
    main()
