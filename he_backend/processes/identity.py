"""Whose run two folders hold: they carry one random name, and say what was to be computed.

A run has one Circuit, one set of keys and any number of batches, each in folders of its own that
carry a name of their own. Keys are bound to the name of the run; ciphertexts, journal and decrypted
values to that of their batch. Folders that hold another run or batch, or one whose identity is
gone, are refused: nothing of theirs is used, and nothing removed.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import RunFolderError, RunFolderWarning
from he_backend.machines.table import find
from he_backend.processes.folders import Folders, digest_of, read_json
from he_backend.processes.store import ArrayFile, storing
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.table import inherited
from hesim.files import bound_digest, sweep, write_whole

__all__ = [
    "Claimed",
    "ClaimedBatch",
    "claim",
    "claim_batch",
    "known_batch",
    "operands_in_use",
    "went_on_from",
]

_FORMAT = 6
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
    "after": "batch that it goes on from",
}


@dataclass(frozen=True)
class Claimed:
    """What a run's processes are told of its files.

    Attributes:
      name: of the run. circuit: SHA-256 of the Circuit's file.
    """

    name: str
    circuit: str


@dataclass(frozen=True)
class ClaimedBatch:
    """What they are told of a batch's files.

    Attributes:
      name: of the batch, as unique as a run's.
      operands, inputs: SHA-256 of each array's file, in order.
      after: the batch that it goes on from, as "NAME/UNIQUE NAME", "" if from none.
    """

    name: str
    operands: list[str]
    inputs: list[str]
    after: str = ""


def claim(
    folders: Folders,
    circuit: Circuit,
    task_seconds: float,
    machine: str = "pyfhel",
) -> Claimed:
    """Write a run's files, after checking that the folders hold this very run or none.

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
        "task_seconds": task_seconds,
        "costs": hashlib.sha256(inherited().text.encode()).hexdigest(),
    }
    try:
        name = _held_name(folders, identity)
    except RunFolderError:
        fresh.unlink()
        raise
    with storing(folders.client_circuit):
        write_whole(folders.client_circuit, fresh.read_bytes(), mode=0o600)
    with storing(folders.circuit):
        fresh.replace(folders.circuit)
    if not name:
        name = _begin(folders, identity)
    return Claimed(name, identity["circuit"])


def claim_batch(
    folders: Folders,
    run: str,
    operands: Sequence[np.ndarray],
    inputs: Sequence[np.ndarray],
    decrypt: Sequence[int],
    written: Mapping[str, Path] | None = None,
    after: str = "",
) -> ClaimedBatch:
    """Write a batch's files, after checking that its folders hold this very batch or none.

    Args:
      folders: of the batch. run: name of the run, whose folders are held.
      operands, inputs: public operands and encrypted leaves. decrypt: ciphertexts to decrypt.
      written: digests of operands that this process has written or checked already.
      after: the batch that it goes on from, as in ClaimedBatch.

    Raises:
      RunFolderError: the folders hold another batch, or one whose run.json is gone or damaged.
      StorageError: a file cannot be written.
    """
    folders.make_batch()
    for folder in folders.all_of_batch:
        sweep(folder)
    public, secret = [ArrayFile(x) for x in operands], [ArrayFile(x) for x in inputs]
    claimed = ClaimedBatch(
        known_batch(folders, run), [x.digest for x in public], [x.digest for x in secret], after
    )
    digests = {"operands": _digest(claimed.operands), "inputs": _digest(claimed.inputs)}
    digests["decrypt"] = _digest(map(str, decrypt))
    digests["after"] = after
    if claimed.name:
        _refuse_another_batch(folders, digests)
    for file in public:
        if file.digest not in (written or {}):
            _ensure(file, folders.operand(file.digest))
    for k, file in enumerate(secret):
        file.write(folders.inputs / f"{k}.npy")
    if claimed.name:
        return claimed
    name = _begin_batch(folders, run, digests, claimed.operands)
    return replace(claimed, name=name)


def went_on_from(folders: Folders) -> str:
    """The batch that the one in these folders goes on from, as in ClaimedBatch. RunFolderError if
    its run.json is damaged.
    """
    return str(_identity("server", folders.batch_identity).get("after", ""))


def known_batch(folders: Folders, run: str) -> str:
    """The name of the batch that its folders hold, "" if they hold none of this run.

    Raises:
      RunFolderError: nobody knows which batch they hold, or of which run.
    """
    found = _identity("server", folders.batch_identity)
    held = _identity("client", folders.own_identity)
    both = f"or remove {folders.work} and {folders.own} to run the batch anew"
    for path, one, other in (
        (folders.own_identity, held, found),
        (folders.batch_identity, found, folders.journal.exists()),
    ):
        if other and not one:
            raise RunFolderError(
                f"{path} is gone, so nobody knows of which batch the work beside it is; put it "
                f"back, {both}"
            )
    if not found:
        return ""
    if found["name"] != held["name"] or {found["run"], held["run"]} != {run}:
        raise RunFolderError(
            f"{folders.work} and {folders.own} hold batches of different runs; put back those that "
            f"belong together, {both}"
        )
    return found["name"]


def operands_in_use(folders: Folders) -> set[str]:
    """Digests of the operands that the batches in these folders have.

    Raises:
      RunFolderError: a batch's run.json is damaged.
    """
    each = (folders.of_batch(name).batch_identity for name in folders.batches)
    return {digest for path in each for digest in _identity("server", path).get("files", ())}


def _refuse_another_batch(folders: Folders, digests: Mapping[str, str]) -> None:
    found = _identity("server", folders.batch_identity)
    found |= {"inputs": _identity("client", folders.own_identity).get("inputs")}
    differ = [_DIFFERENCES[k] for k, v in digests.items() if found.get(k) != v]
    if differ:
        raise RunFolderError(
            f"{folders.work} holds a batch of another program, parameters or arguments (another: "
            f"{', '.join(differ)}); give this batch another name, choose another run_dir, or "
            f"remove {folders.work} and {folders.own}"
        )


def _ensure(file: ArrayFile, path: Path) -> None:
    """Write a file unless it is there and whole."""
    if not path.exists() or digest_of(path) != file.digest:
        file.write(path)


def _begin(folders: Folders, identity: dict[str, Any]) -> str:
    """Give the folders to a new run, whose name is returned; what was in them is removed."""
    folders.forget_all()
    for path in (folders.key_manifest, folders.client_keys):
        path.unlink(missing_ok=True)
    name = uuid.uuid4().hex
    _write("client", folders.client_identity, {"server": str(folders.server), "name": name})
    _write("server", folders.identity, {**identity, "name": name})
    return name


def _begin_batch(
    folders: Folders, run: str, digests: Mapping[str, str], operands: Sequence[str]
) -> str:
    """Give the folders to a new batch, whose name is returned; what was in them is removed."""
    folders.forget()
    name = uuid.uuid4().hex
    known = {"run": run, "name": name}
    _write("client", folders.own_identity, {**known, "inputs": digests["inputs"]})
    public: dict[str, Any] = {k: digest for k, digest in digests.items() if k != "inputs"}
    public["files"] = sorted(set(operands))
    _write("server", folders.batch_identity, {**known, **public})
    return name


def _write(side: str, path: Path, found: dict[str, Any]) -> None:
    text = json.dumps({**found, "digest": _own_digest(side, found)}, indent=1)
    with storing(path):
        write_whole(path, text.encode(), mode=0o600)


def _held_name(folders: Folders, identity: dict[str, Any]) -> str:
    """The name of the run that the folders hold, "" if they hold none.

    Raises:
      RunFolderError: they hold another one, or nobody knows which.
    """
    held = _identity("client", folders.client_identity)
    found = _identity("server", folders.identity)
    both = f"choose another run_dir, or remove {folders.server} and {folders.client}"
    if found and held and found["name"] == held["name"]:
        differ = [_DIFFERENCES[k] for k, v in identity.items() if found.get(k) != v]
        if differ:
            raise RunFolderError(
                f"{folders.server} holds a run of another program, parameters or arguments "
                f"(another: {', '.join(differ)}); {both}"
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


def _digest(digests: Iterable[str]) -> str:
    """One digest of several texts, such as those of arrays' files."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
