"""Makes the keys of a run in a short-lived process of the client's, and writes them to files.

The secret key goes to the client's folder (0600 in 0700), the public, relinearization and rotation
keys to the server's, each with its size and SHA-256 in `keys.json`. The process ends before the
server starts, so no process that evaluates ever held the secret key.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from he_backend.errors import BackendError
from he_backend.folders import (
    Folders,
    clean_environment,
    digest_of,
    module_command,
    read_json,
    verify_files,
)
from hesim.files import write_whole
from hesim.params import CKKSParams

__all__ = ["ensure_keys", "params_of"]

_SERVER_FILES = ("public.key", "relin.key", "rotation.key")
_CLIENT_FILES = ("public.key", "secret.key")
_PR_SET_PDEATHSIG = 1


def ensure_keys(folders: Folders, params: CKKSParams, steps: Iterable[int]) -> float:
    """Make the keys of a run unless they are there already.

    Args:
      folders: where to.
      params: ring and primes.
      steps: rotation steps, in slots to the left.

    Returns:
      Seconds it took, 0 if the keys were there.

    New keys cannot read what was computed under others: the work of earlier attempts is removed.

    Raises:
      BlobError: a key file is missing, truncated, altered, or the client's is of another pair.
      BackendError: the key process failed.
    """
    wanted = {"params": dataclasses.asdict(params), "steps": sorted({int(s) for s in steps} - {0})}
    manifest = folders.keys / "keys.json"
    if manifest.exists() and folders.client_keys.exists():
        found, held = read_json(manifest), read_json(folders.client_keys)
        if {name: found.get(name) for name in wanted} == wanted:
            verify_files(folders.keys, found["files"])
            verify_files(folders.client, held["files"])
            if held["files"]["public.key"] == found["files"]["public.key"]:
                return 0.0
    manifest.unlink(missing_ok=True)
    folders.client_keys.unlink(missing_ok=True)
    folders.forget()
    job = {
        **wanted,
        "keys": str(folders.keys),
        "client": str(folders.client),
        "parent": os.getpid(),
    }
    done = subprocess.run(
        module_command("he_backend.keys"),
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=folders.client,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BackendError(f"making keys failed (exit {done.returncode}): {last[0]}")
    return float(read_json(manifest)["seconds"])


def params_of(plain: dict) -> CKKSParams:
    """CKKSParams from its fields, without repeating the warning of an insecure choice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(**plain)


def main() -> None:
    """Entry of the key process: one JSON job on standard input."""
    import time

    from he_backend.machines.pyfhel import PyfhelMachine

    os.umask(0o077)
    job = json.load(sys.stdin)
    _end_with(int(job["parent"]))
    started = time.monotonic()
    keys, client = Path(job["keys"]), Path(job["client"])
    machine = PyfhelMachine.generate(params_of(job["params"]), job["steps"])
    for path in (*(keys / name for name in _SERVER_FILES), client / "secret.key"):
        path.unlink(missing_ok=True)  # an existing file would keep its mode
    machine.save_keys(
        keys / "public.key", keys / "relin.key", keys / "rotation.key", client / "secret.key"
    )
    (client / "public.key").write_bytes((keys / "public.key").read_bytes())
    names = [name for name in _SERVER_FILES if (keys / name).exists()]
    held = {"files": _manifest(client, _CLIENT_FILES)}
    write_whole(client / "keys.json", json.dumps(held, indent=1).encode())
    manifest = {
        "params": job["params"],
        "steps": job["steps"],
        "files": _manifest(keys, names),
        "seconds": time.monotonic() - started,
    }
    write_whole(keys / "keys.json", json.dumps(manifest, indent=1).encode())


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
