"""Makes the keys of a run in a short-lived process of the client's, and writes them to files.

The secret key goes to the client's folder (0600 in 0700), the public, relinearization and rotation
keys to the server's, each with its size and SHA-256 in `keys.json`. The process is no ancestor of
the server's, so no process that evaluates ever held the secret key.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_backend.errors import (
    BackendError,
    BlobError,
    RunFolderError,
    RunFolderWarning,
    from_message,
    to_message,
)
from he_backend.machines.table import MachineRow, find
from he_backend.processes.folders import (
    Folders,
    clean_environment,
    digest_of,
    module_command,
    read_manifest,
    verify_files,
)
from he_backend.processes.identity import known_batch
from he_backend.processes.memory import peak_bytes
from he_backend.processes.privacy import keep_private
from he_backend.processes.store import read_finished, storing
from hesim.circuit.refresher import Refresher
from hesim.files import write_whole
from hesim.params import CKKSParams

__all__ = ["MadeKeys", "ensure_keys", "params_of"]

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class MadeKeys:
    """What making keys took: seconds, and bytes at the peak; nothing if they were there."""

    seconds: float = 0.0
    peak_bytes: int = 0


def ensure_keys(
    folders: Folders,
    params: CKKSParams,
    steps: Iterable[int],
    run: str = "",
    machine: str = "pyfhel",
    bootstrap: Refresher | None = None,
) -> MadeKeys:
    """Make the keys of a run unless they are there already.

    Args:
      folders: where to.
      params: ring and primes.
      steps: rotation steps, in slots to the left.
      run: name of the run, to which the keys are bound.
      machine: whose keys they are.
      bootstrap: what the server refreshes by, if it does.

    Returns:
      What it took.

    New keys are made only where a keys.json is gone. They cannot read what was computed under
    others, so the work at batches that are not finished is removed then, with a RunFolderWarning,
    and what finished ones left to go on from.

    Raises:
      BlobError: a key file is missing, truncated, altered, or of another pair.
      RunFolderError: a keys.json is damaged, or of other keys than the run's.
      StorageError: the files cannot be written.
      BackendError: the key process failed.
    """
    wanted = {"params": params.fields, "steps": sorted({int(s) for s in steps} - {0})}
    wanted |= {"run": run, "machine": machine}
    if bootstrap is not None:
        wanted["bootstrap"] = dataclasses.asdict(bootstrap)
    if folders.key_manifest.exists() and folders.client_keys.exists():
        _verify(folders, wanted)
        return MadeKeys()
    batches = list(map(folders.of_batch, folders.batches))
    begun = [batch for batch in batches if not _done(batch, run)]
    _warn_of_lost_work(folders, begun, [batch for batch in batches if batch.left.is_dir()])
    folders.key_manifest.unlink(missing_ok=True)
    folders.client_keys.unlink(missing_ok=True)
    for batch in begun:
        batch.forget()
    for batch in batches:
        batch.forget_left()
    job = {
        **wanted,
        "keys": str(folders.keys),
        "client": str(folders.client),
        "parent": os.getpid(),
    }
    row = find(machine)
    done = subprocess.run(
        module_command("he_backend.processes.keys", row.python()),
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=clean_environment(row.variables()),
        cwd=folders.client,
        check=False,
    )
    if done.returncode:
        raise _failure(done)
    made = read_manifest(folders.key_manifest)
    return MadeKeys(float(made["seconds"]), int(made["peak"]))


def _done(folders: Folders, run: str) -> bool:
    """Whether a batch is finished, so that it needs no keys any more."""
    with contextlib.suppress(RunFolderError):
        name = known_batch(folders, run)
        return bool(name) and read_finished(folders.journal, name) is not None
    return False


def _verify(folders: Folders, wanted: dict[str, Any]) -> None:
    """Hold the keys that are there against what the run needs, the client's against the server's.

    Raises:
      BlobError, RunFolderError: as `ensure_keys`.
    """
    found, held = read_manifest(folders.key_manifest), read_manifest(folders.client_keys)
    again = f"remove {folders.key_manifest} to make new keys, which starts the run afresh"
    row = find(wanted["machine"])
    needed = ((_server_files(row, wanted), found), (row.client_keys, held))
    if any(not set(names) <= set(manifest["files"]) for names, manifest in needed):
        raise RunFolderError(f"a keys.json lists too few files; {again}")
    differ = [name for name in wanted if found.get(name) != wanted[name]]
    if differ:
        raise RunFolderError(
            f"{folders.key_manifest} is of other keys than this run's (another: "
            f"{', '.join(differ)}), so it was altered or exchanged; put the right one back, or "
            f"{again}"
        )
    verify_files(folders.keys, found["files"])
    verify_files(folders.client, {name: held["files"][name] for name in row.client_keys})
    if held.get("run") != wanted["run"] or held.get("pair") != found["files"]:
        raise BlobError(
            f"the keys in {folders.client} and those in {folders.keys} are of different pairs; put "
            f"back those that belong together, or {again}"
        )


def _warn_of_lost_work(folders: Folders, begun: Iterable[Folders], left: Sequence[Folders]) -> None:
    """Say what new keys cost, if anything was computed under those whose keys.json is gone.

    begun: batches that are not finished. left: those that left something to go on from.
    """
    tasks = sum(
        max(_count(batch.journal, b'{"task":'), _count(batch.exchange, b'{"kind":'))
        for batch in begun
    )
    if tasks or left:
        gone = [p for p in (folders.key_manifest, folders.client_keys) if not p.exists()]
        warnings.warn(
            f"{' and '.join(map(str, gone))} is gone, and with it the use of the keys: new ones "
            f"are made, and the {tasks} tasks that were finished under the old ones run again"
            + (f"; what {len(left)} batches left to go on from is lost" if left else ""),
            RunFolderWarning,
            stacklevel=2,
        )


def _count(path: Path, beginning: bytes) -> int:
    """Lines of a file that begin so; 0 if it is not there."""
    with contextlib.suppress(OSError):
        return path.read_bytes().count(beginning)
    return 0


def _failure(done: subprocess.CompletedProcess[str]) -> BackendError:
    """What the key process said on its way out."""
    with contextlib.suppress(ValueError, AttributeError):
        return from_message(json.loads(done.stdout))
    if done.returncode < 0:
        return BackendError(
            f"the process that makes keys was ended by signal {-done.returncode}; if memory ran "
            "out, take a smaller ring, fewer levels, or fewer rotation keys by memory= of "
            "hesim.compile"
        )
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return BackendError(f"making keys failed (exit {done.returncode}): {last[0]}")


def params_of(plain: dict) -> CKKSParams:
    """CKKSParams from its fields, without repeating the warning of an insecure choice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(**plain)


def bootstrap_of(plain: Mapping[str, Any] | None) -> dict[str, Refresher]:
    """What a machine that bootstraps is told besides, from the fields of its Refresher; nothing
    where there is none.
    """
    return {} if plain is None else {"bootstrap": Refresher(**plain)}


def main() -> None:
    """Entry of the key process: one JSON job on standard input, an error on standard output."""
    keep_private()
    job = json.load(sys.stdin)
    _end_with(int(job["parent"]))
    try:
        _make(job)
    except BackendError as error:
        sys.stdout.write(json.dumps(to_message(error)))
        raise


def _make(job: dict[str, Any]) -> None:
    started = time.monotonic()
    row = find(job["machine"])
    keys, client = Path(job["keys"]), Path(job["client"])
    names = *row.server_keys, *row.rotation_keys, *row.bootstrap_keys
    written = [keys / name for name in names]
    written += [client / name for name in row.client_keys]
    for path in written:
        path.unlink(missing_ok=True)  # an existing file would keep its mode
    try:
        with storing(keys):
            given = params_of(job["params"]), job["steps"], keys, client
            row.load().make_keys(*given, **bootstrap_of(job.get("bootstrap")))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    files = _manifest(keys, _server_files(row, job))
    held = {"run": job["run"], "files": _manifest(client, row.client_keys), "pair": files}
    bound = ("run", "machine", "params", "steps", "bootstrap")
    found = {name: job[name] for name in bound if name in job}
    found |= {"files": files, "seconds": time.monotonic() - started, "peak": peak_bytes()}
    for path, manifest in ((client / "keys.json", held), (keys / "keys.json", found)):
        with storing(path):
            write_whole(path, json.dumps(manifest, indent=1).encode())


def _server_files(row: MachineRow, wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the key files that the server is given."""
    rotations = row.rotation_keys if wanted["steps"] else ()
    return (*row.server_keys, *rotations, *(row.bootstrap_keys if wanted.get("bootstrap") else ()))


def _manifest(folder: Path, names: Iterable[str]) -> dict[str, list]:
    """Size and SHA-256 of each file."""
    return {name: [(folder / name).stat().st_size, digest_of(folder / name)] for name in names}


def _end_with(parent: int) -> None:
    """End this process when its parent ends, so that it never writes keys into a later run."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the run that asked for keys has ended")


if __name__ == "__main__":
    main()
