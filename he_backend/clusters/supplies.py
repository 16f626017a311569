"""Files that every worker of a cluster needs: circuit, evaluation keys, public operands. No JAX.

A worker takes them once. Where it sees the coordinator's folder, on the same host or a shared disk,
it reads them there, and nothing is sent; otherwise they come with a plugin, which Dask also gives
to workers that join later, and are kept in the worker's own folder. Whoever uses a file holds it
against its digest first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin
from distributed.worker import Worker

from he_backend.errors import BlobError
from he_backend.processes.folders import digest_of

__all__ = ["Supply", "sees"]

_PLACE = "hesim"


class Supply(WorkerPlugin):
    """Some files of a session, on every worker that there is or will be.

    Args:
      session: unique name of the session. name: of this supply, among all of the cluster.
      folder: where the coordinator has them.
      files: size in bytes and SHA-256 of each, by its path in the folder.
      contents: the bytes of each, for workers that do not see the folder; nothing if all do.
      order: of a batch, names of its public operands in the Circuit's order, some of them in
        supplies of batches before.
    """

    def __init__(
        self,
        session: str,
        name: str,
        folder: str,
        files: Mapping[str, tuple[int, str]],
        contents: Mapping[str, bytes] | None = None,
        order: Sequence[str] = (),
    ):
        self.session, self.name = session, name
        self.order = list(order)
        self.folder, self.files = folder, dict(files)
        self.contents = dict(contents or {})
        self.received = 0
        """Bytes that came with the plugin to this worker."""
        self._place: Path | None = None

    def setup(self, worker: Worker) -> None:
        """Write what came, for this user only, and free its memory."""
        if not self.contents:
            return
        self.received = sum(map(len, self.contents.values()))
        if not sees(self.folder, self.files):
            self._place = Path(worker.local_directory, _PLACE, self.name)
            shutil.rmtree(self._place, ignore_errors=True)
            for path, content in self.contents.items():
                place = self._place / path
                place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                    f.write(content)
        self.contents.clear()

    def teardown(self, worker: Worker) -> None:
        """Remove what was written."""
        del worker
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)

    def path(self, name: str) -> Path | None:
        """A file that is what it should be; None if this worker does not have it.

        Raises:
          BlobError: it was altered.
        """
        size, digest = self.files[name]
        path = Path(self._place or self.folder, name)
        if not _has(path, size):
            return None
        if digest_of(path) != digest:
            raise BlobError(f"{path} on a worker of the cluster is not what the coordinator has")
        return path

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_place": None, "received": 0}


def sees(folder: str, files: Mapping[str, tuple[int, str]]) -> bool:
    """Whether this process can read files of these sizes there."""
    return all(_has(Path(folder, name), size) for name, (size, _) in files.items())


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size and os.access(path, os.R_OK)
    except OSError:
        return False
