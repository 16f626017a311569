"""Inputs of the next batch, encrypted by the client while the server works on the present one.

The caller leaves the arrays in the client's folder. A client that has nothing else to do encrypts
them, one ciphertext at a time, and puts these there for whichever client is asked for them. They
are bound to the batch and to its inputs, and each is served once: what does not fit, or is not
there yet, is encrypted when it is asked for. The server sees no difference.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import RunFolderError
from he_backend.keyholder import KeyHolder
from he_backend.machines.protocol import Machine
from he_backend.processes.folders import verify_written
from he_backend.processes.states.left import carried_inputs, without_carried
from he_backend.processes.store import ArrayFile, Store
from hesim.circuit.circuit import Circuit, Kind

__all__ = ["Ahead", "bound_to", "request", "take"]


def request(folder: Path, circuit: Circuit, batch: str, inputs: Sequence[np.ndarray]) -> dict:
    """Leave the inputs of a batch that is to come, for a client; what it is told of them.

    Args:
      folder: of the client's.
      batch: its name. inputs: encrypted leaves; if anything is carried, it goes on from a batch.

    Raises:
      StorageError: they cannot be written.
    """
    files = [ArrayFile(x) for x in without_carried(circuit, inputs)]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for k, file in enumerate(files):
        file.write(folder / f"{k}.npy")
    return {"type": "ahead", "batch": batch, "inputs": [file.digest for file in files]}


class Ahead:
    """A client's part of it.

    Args:
      circuit, machine: of the client. folder: where inputs and ciphertexts lie.
    """

    def __init__(self, circuit: Circuit, machine: Machine, folder: Path):
        self._circuit, self._machine, self._folder = circuit, machine, folder
        self._todo: list[int] = []
        self._holder: KeyHolder | None = None
        self._store: Store | None = None
        self._batch = ""

    def begin(self, header: dict[str, Any]) -> None:
        """Do what `request` says, in `advance`. Inputs that are not as they were left are none."""
        digests = [str(digest) for digest in header["inputs"]]
        paths = [self._folder / f"{k}.npy" for k in range(len(digests))]
        self.stop()
        store = Store(self._folder, bound_to(str(header["batch"]), digests))
        store.delete(store.ciphers())
        with contextlib.suppress(Exception):
            verify_written(paths, digests)
            inputs = [np.load(path, allow_pickle=False) for path in paths]
            self._holder = KeyHolder(self._circuit, self._machine, inputs)
            self._store, self._batch = store, str(header["batch"])
            own = np.flatnonzero(self._circuit.kind == Kind.INPUT).tolist()
            self._todo = sorted(set(own) - set(carried_inputs(self._circuit)), reverse=True)
        for path in paths:
            path.unlink(missing_ok=True)

    @property
    def waiting(self) -> bool:
        """Whether there is something to encrypt."""
        return bool(self._todo)

    def advance(self) -> None:
        """Encrypt one. What is wrong with it is said when it is asked for."""
        i = self._todo.pop()
        assert self._holder is not None and self._store is not None
        try:
            self._store.write(i, self._machine.to_bytes(self._holder.encrypt_input(i)))
        except Exception:
            self.stop()

    def stop(self) -> None:
        """Encrypt no more: the batch has begun, or another is the next one."""
        self._todo, self._holder = [], None

    def opened(self, batch: str, digests: Sequence[str]) -> Store | None:
        """Where ciphertexts of a batch that begins now may lie; None if nothing was left ever."""
        if batch == self._batch:
            self.stop()
        return Store(self._folder, bound_to(batch, digests)) if self._folder.exists() else None


def take(store: Store | None, i: int) -> bytes | None:
    """The bytes of an input that was encrypted ahead, which nobody is given again; None if it was
    not.
    """
    if store is None or not store.path(i).exists():
        return None
    with contextlib.suppress(RunFolderError, OSError):
        blob = store.read(i)
        store.path(i).unlink()
        return blob
    return None


def bound_to(batch: str, digests: Sequence[str]) -> str:
    """The name by which ciphertexts are bound to a batch and to its inputs' digests."""
    text = "\n".join((batch, *digests))
    return hashlib.sha256(text.encode()).hexdigest()
