"""Where a run keeps its files: the server's run folder, and the client's state folder beside it.

    run_dir/            server: circuit.npz, operands/, keys/ (public, relinearization, rotation),
                        store/, journal.jsonl, run.json, server.log
    run_dir.client/     client only, mode 0700: secret.key (0600), public.key, keys.json, run.json,
                        circuit.npz, exchange.jsonl, inputs/, values/

The secret key never enters `run_dir`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_backend.errors import BlobError, RunFolderError
from hesim.circuit.costs.table import VARIABLE

__all__ = [
    "Folders",
    "clean_environment",
    "digest_of",
    "module_command",
    "read_json",
    "read_manifest",
    "verify_files",
    "verify_written",
]


@dataclass(frozen=True)
class Folders:
    """Paths of one run.

    Args:
      server: the run folder. client: the client's state folder.
    """

    server: Path
    client: Path

    @classmethod
    def of(cls, run_dir: str | os.PathLike, client_dir: str | os.PathLike | None = None) -> Folders:
        """The folders of a run, made if absent.

        Raises:
          RunFolderError: one contains the other, or they cannot be made or written.
        """
        server = Path(run_dir).resolve()
        client = (
            Path(client_dir).resolve() if client_dir else server.with_name(server.name + ".client")
        )
        if server == client or server in client.parents or client in server.parents:
            raise RunFolderError(
                f"the client's folder {client} and the server's {server} must be apart"
            )
        folder = server
        try:
            for folder in (server, server / "operands", server / "keys", server / "store"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (client, client / "inputs", client / "values"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            client.chmod(0o700)
        except OSError as error:
            raise RunFolderError(
                f"{folder} cannot be made ({error.strerror}); choose another run_dir"
            ) from error
        for folder in (server, client):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise RunFolderError(f"{folder} cannot be written to; choose another run_dir")
        return cls(server, client)

    @property
    def circuit(self) -> Path:
        return self.server / "circuit.npz"

    @property
    def keys(self) -> Path:
        return self.server / "keys"

    @property
    def operands(self) -> Path:
        return self.server / "operands"

    @property
    def store(self) -> Path:
        return self.server / "store"

    @property
    def journal(self) -> Path:
        return self.server / "journal.jsonl"

    @property
    def identity(self) -> Path:
        return self.server / "run.json"

    @property
    def secret_key(self) -> Path:
        return self.client / "secret.key"

    @property
    def inputs(self) -> Path:
        return self.client / "inputs"

    @property
    def values(self) -> Path:
        return self.client / "values"

    @property
    def client_identity(self) -> Path:
        return self.client / "run.json"

    @property
    def client_circuit(self) -> Path:
        """The client's own copy, by which it judges what the server asks for."""
        return self.client / "circuit.npz"

    @property
    def exchange(self) -> Path:
        return self.client / "exchange.jsonl"

    @property
    def client_keys(self) -> Path:
        return self.client / "keys.json"

    @property
    def key_manifest(self) -> Path:
        return self.keys / "keys.json"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every folder in which the processes of a run write."""
        server = (self.server, self.operands, self.keys, self.store)
        return (*server, self.client, self.inputs, self.values)

    def has_work(self) -> bool:
        """Whether the server's folder holds keys or results of earlier attempts."""
        kept = (self.journal, self.key_manifest)
        return any(path.exists() for path in kept) or any(self.store.glob("c*.ct"))

    def forget(self) -> None:
        """Remove the work of earlier attempts: what was computed, and what was decrypted."""
        results = (*self.store.glob("c*.ct"), *self.values.glob("v*.f64"))
        for path in (self.journal, self.exchange, *results):
            path.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Hold key files against the sizes and digests noted when they were made.

    Raises:
      BlobError: a file is missing, truncated or altered.
    """
    for name, (size, digest) in manifest.items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size:
            raise BlobError(f"the key file {path} is missing or truncated; {_new_keys(folder)}")
        if digest_of(path) != digest:
            raise BlobError(f"the key file {path} was altered; {_new_keys(folder)}")


def verify_written(paths: Sequence[Path], digests: Sequence[str]) -> None:
    """Hold files against the SHA-256 that the caller noted when it wrote them for a run.

    Args:
      paths, digests: in the same order, as many.

    Raises:
      RunFolderError: one is missing or altered.
    """
    for path, digest in zip(paths, digests, strict=True):
        if not path.exists() or digest_of(path) != digest:
            raise RunFolderError(f"{path} was altered while the run began; run again")


def read_manifest(path: Path) -> dict[str, Any]:
    """A keys.json whose "files" give each file's size and SHA-256.

    Raises:
      RunFolderError: it is gone, damaged, or of another shape.
    """
    found = read_json(path, _new_keys(path.parent))
    files = found.get("files")
    whole = isinstance(files, dict) and all(
        isinstance(entry, list)
        and len(entry) == 2
        and type(entry[0]) is int
        and isinstance(entry[1], str)
        for entry in files.values()
    )
    if not whole:
        raise RunFolderError(
            f"{path} is damaged, its list of files is not one; {_new_keys(path.parent)}"
        )
    return found


def _new_keys(folder: Path) -> str:
    return (
        f"put the right one back, or remove {folder / 'keys.json'} to make new keys, which starts "
        f"the run afresh"
    )


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """An object from a JSON file. Raises RunFolderError, with the remedy, if it is gone or damaged.

    remedy: what the reader of the error is to do.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise RunFolderError(f"{path} is damaged, it holds no object; {remedy}")
    return found


def clean_environment() -> dict[str, str]:
    """What a child process gets to see: where programs, packages and the table of costs are, one
    thread for BLAS.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
    kept = {k: os.environ[k] for k in ("PATH", "LANG", "LC_ALL", "TMPDIR") if k in os.environ}
    if os.environ.get(VARIABLE):
        kept[VARIABLE] = str(Path(os.environ[VARIABLE]).resolve())
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def module_command(module: str, interpreter: str | None = None) -> list[str]:
    """Command line that runs one of our modules without putting the current folder on the path.

    Args:
      module: its name. interpreter: the Python that runs it; the caller's by default.
    """
    return [interpreter or sys.executable, "-P", "-m", module]
