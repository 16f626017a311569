"""Whose run two folders hold: they carry one random name, and say what was to be computed.

Keys, ciphertexts, journal and decrypted values are bound to that name. Folders that hold another
run, or a run whose identity is gone, are refused: nothing of theirs is used, and nothing removed.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import RunFolderError, RunFolderWarning
from he_backend.machines.table import find
from he_backend.processes.folders import Folders, digest_of, read_json
from he_backend.processes.store import storing, write_array
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.table import inherited
from hesim.files import bound_digest, sweep, write_whole

__all__ = ["Claimed", "claim"]

_FORMAT = 4
"""Raised when files of a run folder change their form, or tasks their cut: older ones are refused,
not misread.
"""

_DIFFERENCES = {
    "format": "the version of this package that wrote it",
    "machine": "backend",
    "circuit": "program or parameters",
    "operands": "public arguments",
    "inputs": "encrypted arguments",
    "task_seconds": "task_seconds",
    "costs": "the table of costs (HESIM_COSTS), by which tasks are cut",
    "decrypt": "which values are decrypted (compare, sampled)",
}


@dataclass(frozen=True)
class Claimed:
    """What a job's processes are told of its files.

    Attributes:
      name: of the run. circuit: SHA-256 of the Circuit's file.
      operands, inputs: SHA-256 of each array's file, in order.
    """

    name: str
    circuit: str
    operands: list[str]
    inputs: list[str]


def claim(
    folders: Folders,
    circuit: Circuit,
    operands: Sequence[np.ndarray],
    inputs: Sequence[np.ndarray],
    decrypt: Sequence[int],
    task_seconds: float,
    machine: str = "pyfhel",
) -> Claimed:
    """Write a job's files, after checking that the folders hold this very job or none.

    The folders must be held. What was damaged since is written anew; what killed writers left is
    removed.

    Raises:
      RunFolderError: the folders hold another run, or one whose run.json is gone or damaged.
      StorageError: a file cannot be written.
    """
    for folder in folders.all:
        sweep(folder)
    fresh = folders.server / "circuit.new"
    with storing(fresh):
        circuit.save(fresh)
    identity = {
        "format": _FORMAT,
        "machine": machine,
        "circuit": digest_of(fresh),
        "operands": _digest(operands),
        "task_seconds": task_seconds,
        "costs": hashlib.sha256(inherited().text.encode()).hexdigest(),
        "decrypt": hashlib.sha256(np.asarray(decrypt, np.int64).tobytes()).hexdigest(),
    }
    secret = {"inputs": _digest(inputs), "server": str(folders.server)}
    try:
        name = _held_name(folders, identity, secret)
    except RunFolderError:
        fresh.unlink()
        raise
    with storing(folders.client_circuit):
        write_whole(folders.client_circuit, fresh.read_bytes(), mode=0o600)
    with storing(folders.circuit):
        fresh.replace(folders.circuit)
    files = [folders.operands / f"{k}.npy" for k in range(len(operands))]
    files += [folders.inputs / f"{k}.npy" for k in range(len(inputs))]
    for path, array in zip(files, (*operands, *inputs), strict=True):
        write_array(path, array)
    if not name:
        name = _begin(folders, identity, secret)
    digests = [digest_of(path) for path in files]
    return Claimed(name, identity["circuit"], digests[: len(operands)], digests[len(operands) :])


def _begin(folders: Folders, identity: dict[str, Any], secret: dict[str, Any]) -> str:
    """Give the folders to a new run, whose name is returned; what was in them is removed."""
    folders.forget()
    for path in (folders.key_manifest, folders.client_keys):
        path.unlink(missing_ok=True)
    name = uuid.uuid4().hex
    for side, found in (("client", secret), ("server", identity)):
        path = getattr(folders, side) / folders.identity.name
        with storing(path):
            whole = {**found, "name": name}
            text = json.dumps({**whole, "digest": _own_digest(side, whole)}, indent=1)
            write_whole(path, text.encode(), mode=0o600)
    return name


def _held_name(folders: Folders, identity: dict[str, Any], secret: dict[str, Any]) -> str:
    """The name of the run that the folders hold, "" if they hold none.

    Raises:
      RunFolderError: they hold another one, or nobody knows which.
    """
    held = _identity("client", folders.client_identity)
    found = _identity("server", folders.identity)
    both = f"choose another run_dir, or remove {folders.server} and {folders.client}"
    if found and held and found["name"] == held["name"]:
        differ = [k for k, v in identity.items() if found.get(k) != v]
        differ += ["inputs"] if held.get("inputs") != secret["inputs"] else []
        if differ:
            listed = ", ".join(_DIFFERENCES[k] for k in differ)
            raise RunFolderError(
                f"{folders.server} holds a run of another program, parameters or arguments "
                f"(another: {listed}); {both}"
            )
        return found["name"]
    if found and held:
        raise RunFolderError(
            f"{folders.server} holds a run with another client folder than {folders.client}, which "
            f"holds the keys of the run in {held.get('server')}; choose this run's client_dir, or "
            f"another run_dir"
        )
    if found:
        raise RunFolderError(
            f"{folders.client_identity} is gone, so nobody knows whether the keys beside it belong "
            f"to the run in {folders.server}; put it back, or {both}"
        )
    if folders.has_work():
        raise RunFolderError(
            f"{folders.identity} is gone, so nobody knows of which computation the work beside it "
            f"is; put it back, or {both}"
        )
    _warn_of_lost_run(folders, held, find(identity["machine"]).client_keys)
    return ""


def _identity(side: str, path: Path) -> dict[str, Any]:
    """A side's run.json, empty if there is none. Raises RunFolderError if it is damaged."""
    if not path.exists():
        return {}
    remedy = f"put it back, or remove the whole folder {path.parent} and its counterpart"
    found = read_json(path, remedy)
    if found.pop("digest", None) != _own_digest(side, found):
        raise RunFolderError(f"{path} was altered, or is of an earlier version; {remedy}")
    return found


def _own_digest(side: str, found: dict[str, Any]) -> str:
    """What a side's run.json says of itself, so that damage is told from another run's."""
    text = json.dumps(found, sort_keys=True).encode()
    return bound_digest(str(found.get("name")), f"run.json of the {side}", text).hex()


def _warn_of_lost_run(folders: Folders, held: dict[str, Any], keys: Sequence[str]) -> None:
    """A client's folder whose server's folder is empty or gone. RunFolderError if it is not."""
    home = Path(str(held.get("server", folders.server)))
    if home != folders.server and (home / folders.identity.name).exists():
        raise RunFolderError(
            f"{folders.client} holds the keys of the run in {home}; choose another client_dir"
        )
    if not any((folders.client / name).exists() for name in keys):
        return
    warnings.warn(
        f"{folders.client} holds the keys of a run that is no longer in {home}: new keys replace "
        f"them, and what was encrypted under them can no longer be read",
        RunFolderWarning,
        stacklevel=2,
    )


def _digest(arrays: Sequence[np.ndarray]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array, dtype=np.float64)
        total.update(repr(plain.shape).encode())
        total.update(plain.tobytes())
    return total.hexdigest()
