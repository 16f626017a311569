"""The evaluator beside a worker of Dask, as the worker has it. Imports no JAX."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from he_backend.clusters.hostfiles import HostFile, HostFolder
from he_backend.errors import from_message
from he_backend.machines.table import find
from he_backend.processes.folders import clean_environment, module_command
from he_backend.processes.messages import receive, send

__all__ = ["Beside"]


class Beside:
    """A process that evaluates tasks, one piece of work at a time.

    Args:
      config: as of `he_backend.clusters.evaluator`, but for the folder.
      folder: of ciphertexts that the two share.
    """

    def __init__(self, config: Mapping[str, Any], folder: HostFolder):
        self._folder = folder
        row = find(str(config["machine"]))
        self._link, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            module_command("he_backend.clusters.evaluator", row.python()),
            stdin=theirs.fileno(),
            env=clean_environment(row.variables(os.cpu_count() or 1)),
            pass_fds=(folder.lock,),
            start_new_session=True,  # Ctrl-C is for whoever waits
        )
        theirs.close()
        shared = {"folder": str(folder.path), "own": folder.own, "lock": folder.lock}
        send(self._link, {**config, **shared})

    def run(
        self,
        order: Mapping[str, Any],
        needs: Mapping[int, HostFile | bytes],
        sizes: Mapping[int, int],
    ) -> tuple[dict[str, Any], dict[int, HostFile | bytes]]:
        """What is said of a piece of work, and its results.

        Args:
          order: batch, its operands, tasks and instructions; plain data.
          needs: the ciphertexts that it reads. sizes: bytes of those that it gives.

        Raises:
          BackendError: it cannot be done.
          PeerGoneError: the process has ended.
        """
        gives = {c: self._folder.new(size) for c, size in sizes.items()}
        loose = {c: held for c, held in needs.items() if isinstance(held, bytes)}
        files = [(c, f.path) for c, f in (*needs.items(), *gives.items()) if type(f) is HostFile]
        send(self._link, {**order, "files": files, "loose": list(loose)}, list(loose.values()))
        said, blobs = receive(self._link)
        if "error" in said:
            raise from_message(said["error"])
        return said, {**gives, **_by_number(said["loose"], blobs)}

    def close(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._link.close()


def _by_number(numbers: Sequence[int], blobs: Sequence[bytes]) -> dict[int, bytes]:
    return dict(zip(numbers, blobs, strict=True))
