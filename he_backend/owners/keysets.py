"""What an evaluator keeps: a folder for each key set, with its keys and the batches under them.

    folder/             0700: owner.json (of which bundle), evaluator.log
      PEER-KEYS/        of a key set of a peer, as a run's server folder: circuit.npz, operands/,
                        keys/, server.log, and batches/NAME/ with store/ and journal.jsonl

Keys are received into a folder of their own, and become the key set's once they were checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BackendError, BlobError, ProtocolError, RunFolderError
from he_backend.machines.table import find
from he_backend.owners import wire
from he_backend.owners.wire import digest_of_keys, parts
from he_backend.processes.folders import Folders, digest_of, read_manifest
from he_backend.processes.messages import SMALL, receive
from he_backend.processes.states.left import Left
from he_backend.processes.store import ArrayFile, storing
from hesim.bundles.bundle import Bundle
from hesim.files import write_whole

__all__ = ["KeySet", "open_sizes", "opened"]

_MOST_KEY_SETS = 4
_MOST_BATCHES = 4
"""Of a key set that are kept: the latest ones."""


class KeySet:
    """The folder of a peer's key set.

    Args:
      home: of the evaluator. peer: what the peer is known by. keys: digest of the key set.
      bundle: what is evaluated. machine: its name.
    """

    def __init__(self, home: Path, peer: str, keys: str, bundle: Bundle, machine: str):
        name = hashlib.sha256(f"{peer} {keys}".encode()).hexdigest()[:32]
        self.keys = keys
        self.bundle = bundle
        self.circuit = bundle.circuit
        self.machine = machine
        self.row = find(machine)
        self.home = home
        self.folders = Folders(home / name, Path(os.devnull))
        self._operands: list[ArrayFile | None] = []

    @property
    def known(self) -> bool:
        """Whether its keys are there."""
        path = self.folders.key_manifest
        with contextlib.suppress(RunFolderError):
            return path.exists() and digest_of_keys(read_manifest(path)["files"]) == self.keys
        return False

    def receive(self, link: socket.socket) -> None:
        """Take the keys from a link, check them, and keep them.

        Raises:
          ProtocolError: they come in another form, or are others than those announced.
          BlobError: one is no key of this Circuit. StorageError: they cannot be written.
        """
        steps = [int(s) for s in self.circuit.rotation_steps if s]
        kind = self.row.load()
        sizes = kind.key_sizes(self.circuit.params, steps)
        header, _ = receive(link, (), SMALL)
        files = header.get("files")
        if header.get("type") != "keys" or not isinstance(files, dict):
            raise ProtocolError("it sends something else than its keys")
        if not wire.lists_keys(files, sizes):
            raise BlobError("its key files are not those of this Circuit")
        if digest_of_keys(files) != self.keys:
            raise ProtocolError("its key files are others than it announced")
        self._make_room()
        place = self.home / "receiving"
        shutil.rmtree(place, ignore_errors=True)
        try:
            with storing(place):
                place.mkdir(mode=0o700)
            for name in sorted(files):
                self._receive_file(link, place / name, files[name])
            kind.check_keys(self.circuit.params, steps, place)
            self._keep(place, files, steps)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _receive_file(self, link: socket.socket, path: Path, entry: Sequence[Any]) -> None:
        size, digest = entry
        total = hashlib.sha256()
        with storing(path), open(path, "wb") as file:
            for at, length in parts(size):
                header, blobs = receive(link, [length], SMALL)
                if header != {"type": "part", "name": path.name, "at": at} or not blobs:
                    raise ProtocolError("it sends something else than the next part of a key")
                file.write(blobs[0])
                total.update(blobs[0])
        if total.hexdigest() != digest:
            raise BlobError(f"the key file {path.name} was altered on its way")

    def _keep(self, place: Path, files: Mapping[str, Any], steps: Sequence[int]) -> None:
        folders = self.folders
        with storing(folders.keys):
            folders.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
            folders.key_manifest.unlink(missing_ok=True)
            for name in files:
                os.replace(place / name, folders.keys / name)
            manifest = {"machine": self.machine, "steps": list(steps), "files": dict(files)}
            write_whole(folders.key_manifest, json.dumps(manifest, indent=1).encode())

    def _make_room(self) -> None:
        """Forget the key sets that were used longest ago."""
        sets = [path for path in self.home.iterdir() if (path / "keys").is_dir()]
        sets = [path for path in sets if path != self.folders.server]
        sets.sort(key=lambda path: path.stat().st_mtime)
        for path in sets[: max(0, len(sets) + 1 - _MOST_KEY_SETS)]:
            shutil.rmtree(path, ignore_errors=True)

    def forget_keys(self) -> None:
        """Have them sent again."""
        self.folders.key_manifest.unlink(missing_ok=True)

    # Before and for a batch

    def prepare(self) -> tuple[str, list[str]]:
        """Write what a server's process reads. Digests of the Circuit's file, and of operands of
        which the open ones are stand-ins.

        Raises:
          StorageError: it cannot be written.
        """
        folders = self.folders
        with storing(folders.server):
            for folder in (folders.server, folders.operands, folders.keys):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.utime(folders.server)
            fresh = folders.server / "circuit.new"
            self.circuit.save(fresh)
            fresh.replace(folders.circuit)
        self._operands = [None if x is None else ArrayFile(x) for x in self.bundle.operands or ()]
        leaves = {
            k: np.ones(leaf.shape, leaf.dtype)
            for k, leaf in enumerate(self.bundle.leaves)
            if not leaf.encrypted
        }
        return digest_of(folders.circuit), self.operands(leaves)

    def operands(self, leaves: Mapping[int, np.ndarray]) -> list[str]:
        """Write the operands of a batch; their digests.

        Args:
          leaves: the open arguments by their numbers.

        Raises:
          BundleError: one is not finite. StorageError: they cannot be written.
        """
        filled = self.bundle.filled(leaves)
        files = [known or ArrayFile(x) for known, x in zip(self._operands, filled, strict=True)]
        digests = [file.digest for file in files]
        for path in self.folders.operands.glob("*.npy"):
            if path.stem not in digests:
                path.unlink(missing_ok=True)
        for file in files:
            path = self.folders.operand(file.digest)
            if not path.exists() or digest_of(path) != file.digest:
                file.write(path)
        return digests

    def left(self, name: str) -> Left:
        """What a batch left, which is kept from now on as if it were the latest.

        Raises:
          RunFolderError: there is no such batch any more.
        """
        folders = self.folders.of_batch(name)
        if not folders.left.is_dir():
            raise RunFolderError(
                f"the batch {name} that is gone on from, or read, is not kept any more: of a key "
                f"set's batches the last {_MOST_BATCHES} are"
            )
        with storing(folders.work):
            os.utime(folders.work)
        return Left(folders.left, name)

    def begin(self, name: str) -> None:
        """Make the folders of a batch, and forget all but the latest ones."""
        folders = self.folders.of_batch(name)
        with storing(folders.work):
            folders.store.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.utime(folders.work)
            others = [path for path in folders.work.parent.iterdir() if path != folders.work]
        others.sort(key=lambda path: path.stat().st_mtime)
        for path in others[: max(0, len(others) + 1 - _MOST_BATCHES)]:
            shutil.rmtree(path, ignore_errors=True)


def opened(bundle: Bundle, blobs: Sequence[bytes]) -> dict[int, np.ndarray]:
    """The open arguments of a batch, float64 on their way, as the function was traced with them.

    Raises:
      BackendError: their values are none of their dtype.
    """
    leaves = [(k, leaf) for k, leaf in enumerate(bundle.leaves) if not leaf.encrypted]
    found = {}
    for (k, leaf), blob in zip(leaves, blobs, strict=True):
        sent = np.frombuffer(blob, np.float64).reshape(leaf.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            found[k] = sent.astype(leaf.dtype)
            back = found[k].astype(np.float64)
        if not np.array_equal(back, sent):
            raise BackendError(
                f"the open argument {leaf.label} has values that are no {leaf.dtype}"
            )
    return found


def open_sizes(bundle: Bundle) -> list[int]:
    """Bytes of each open argument on its way."""
    leaves = (leaf for leaf in bundle.leaves if not leaf.encrypted)
    return [8 * int(np.prod(leaf.shape, dtype=np.int64)) for leaf in leaves]
