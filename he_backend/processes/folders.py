"""Where a run keeps its files: the server's run folder, and the client's state folder beside it.

    run_dir/            server: circuit.npz, operands/, keys/ (public, relinearization, rotation),
                        run.json, server.log
      batches/NAME/     of a batch: store/, journal.jsonl, run.json; carried/ for a next one
    run_dir.client/     client only, mode 0700: secret.key (0600), public.key, keys.json, run.json,
                        circuit.npz
      batches/NAME/     of a batch: exchange.jsonl, inputs/, values/, run.json, public.npz

Operands lie under the name of their digest, so that batches share those that they have in common.
The secret key never enters `run_dir`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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


_BATCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Folders:
    """Paths of one batch of a run.

    Args:
      server: the run folder. client: the client's state folder.
      batch: name of the batch.
    """

    server: Path
    client: Path
    batch: str = "0"

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
        folders = cls(server, client)
        _make(server, folders.operands, folders.keys, client)
        client.chmod(0o700)
        for folder in (server, client):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise RunFolderError(f"{folder} cannot be written to; choose another run_dir")
        return folders

    def of_batch(self, name: str) -> Folders:
        """The same run's paths for a batch; nothing is made.

        Raises:
          RunFolderError: the name is none that a folder can have.
        """
        if not _BATCH.fullmatch(name):
            raise RunFolderError(
                f"{name!r} cannot name a batch: take up to 64 letters, digits, '_', '-' and '.', "
                f"the first one no '-' or '.'"
            )
        return replace(self, batch=name)

    def make_batch(self) -> None:
        """Make the folders of this batch. Raises RunFolderError if the system refuses."""
        above = (self.work.parent, self.own.parent)
        _make(*above, *self.all_of_batch)

    @property
    def batches(self) -> list[str]:
        """Names of the batches that there is anything of, on either side."""
        found = {path.name for side in (self.server, self.client) for path in _inside(side)}
        return sorted(found)

    @property
    def work(self) -> Path:
        """What the server has of this batch."""
        return self.server / _BATCHES / self.batch

    @property
    def own(self) -> Path:
        """What the client has of this batch."""
        return self.client / _BATCHES / self.batch

    @property
    def circuit(self) -> Path:
        return self.server / "circuit.npz"

    @property
    def keys(self) -> Path:
        return self.server / "keys"

    @property
    def operands(self) -> Path:
        return self.server / "operands"

    def operand(self, digest: str) -> Path:
        """File of a public operand."""
        return self.operands / f"{digest}.npy"

    @property
    def store(self) -> Path:
        return self.work / "store"

    @property
    def left(self) -> Path:
        """What the batch leaves to those that go on from it."""
        return self.work / "carried"

    @property
    def journal(self) -> Path:
        return self.work / "journal.jsonl"

    @property
    def identity(self) -> Path:
        return self.server / "run.json"

    @property
    def secret_key(self) -> Path:
        return self.client / "secret.key"

    @property
    def inputs(self) -> Path:
        return self.own / "inputs"

    @property
    def values(self) -> Path:
        return self.own / "values"

    @property
    def public(self) -> Path:
        """What is public of the batch's results, as the caller computed it."""
        return self.own / "public.npz"

    @property
    def client_identity(self) -> Path:
        return self.client / "run.json"

    @property
    def ahead(self) -> Path:
        """Inputs of the next batch, and what a client has encrypted of them."""
        return self.client / "ahead"

    @property
    def client_circuit(self) -> Path:
        """The client's own copy, by which it judges what the server asks for."""
        return self.client / "circuit.npz"

    @property
    def exchange(self) -> Path:
        return self.own / "exchange.jsonl"

    @property
    def client_keys(self) -> Path:
        return self.client / "keys.json"

    @property
    def batch_identity(self) -> Path:
        return self.work / "run.json"

    @property
    def own_identity(self) -> Path:
        """The client's counterpart of `batch_identity`."""
        return self.own / "run.json"

    @property
    def key_manifest(self) -> Path:
        return self.keys / "keys.json"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every folder in which the processes of a run write, whatever the batch."""
        return (self.server, self.operands, self.keys, self.client)

    @property
    def all_of_batch(self) -> tuple[Path, ...]:
        """Every folder in which they write for this batch."""
        return (self.work, self.store, self.own, self.inputs, self.values)

    def has_work(self) -> bool:
        """Whether the server's folder holds keys or batches of earlier attempts."""
        return self.key_manifest.exists() or any(_inside(self.server))

    def forget(self) -> None:
        """Remove the work of earlier attempts at this batch: what was computed, and decrypted."""
        results = (*self.store.glob("c*.ct"), *self.values.glob("v*.f64"))
        for path in (self.journal, self.exchange, *results):
            path.unlink(missing_ok=True)
        self.forget_left()

    def forget_left(self) -> None:
        """Remove what this batch left to others."""
        shutil.rmtree(self.left, ignore_errors=True)

    def forget_all(self) -> None:
        """Remove all batches, on either side."""
        for folder in (*_inside(self.server), *_inside(self.client)):
            shutil.rmtree(folder, ignore_errors=True)


_BATCHES = "batches"


def _inside(side: Path) -> list[Path]:
    """Folders of batches on one side."""
    found = side / _BATCHES
    return [path for path in found.iterdir() if path.is_dir()] if found.is_dir() else []


def _make(*folders: Path) -> None:
    """Make folders for their owner only. Raises RunFolderError that names the one that fails."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise RunFolderError(
                f"{folder} cannot be made ({error.strerror}); choose another run_dir"
            ) from error


_BLOCK = 1 << 20


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


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


def clean_environment(own: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """What a child process gets to see: where programs, packages and the table of costs are, one
    thread for BLAS.

    own: variables besides, with their values.
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
        **dict(own),
    }


def module_command(module: str, interpreter: str | None = None) -> list[str]:
    """Command line that runs one of our modules without putting the current folder on the path.

    Args:
      module: its name. interpreter: the Python that runs it, 3.10 or later; the caller's by
        default. Another one's own packages come before those that are installed beside ours.
    """
    if interpreter is None:
        return [sys.executable, "-P", "-m", module]
    return [interpreter, "-c", _AS_MODULE, module]


_AS_MODULE = """
import os, sys
given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
last = [p for p in given if os.path.basename(p) in ("site-packages", "dist-packages")]
sys.path[:] = [p for p in sys.path[1:] if p not in last] + last
import runpy
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
