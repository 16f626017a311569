"""Key files of OpenFHE: those of evaluation are streamed, since they are gigabytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from he_backend.errors import BackendError, BlobError
from he_backend.machines.openfhe.library import openfhe
from hesim.params import CKKSParams

__all__ = [
    "forget",
    "read_public",
    "read_relinearization",
    "read_rotations",
    "read_secret",
    "write_public",
    "write_relinearization",
    "write_rotations",
    "write_secret",
]


def write_public(path: Path, key: Any) -> None:
    """Write a public key. All of these raise OSError where a file cannot be written."""
    path.write_bytes(openfhe.Serialize(key, openfhe.BINARY))


write_secret = write_public


def write_relinearization(path: Path, tag: str, params: CKKSParams) -> None:
    """Write the relinearization key of the secret with this tag.

    Raises:
      BackendError: it has not the special primes of the parameters, whose security and noise would
        be others then.
    """
    _streamed(path, openfhe.CryptoContext.SerializeEvalMultKey, tag)
    one = params.key_bytes() / len(params.moduli)
    found = round(path.stat().st_size / one)
    if found != len(params.moduli):
        raise BackendError(
            f"OpenFHE's keys have {found} primes where the parameters have {len(params.moduli)}: "
            "is it the version that `make setup-openfhe` installs?"
        )


def write_rotations(path: Path, tag: str) -> None:
    """Write all rotation keys of the secret with this tag."""
    _streamed(path, openfhe.CryptoContext.SerializeEvalAutomorphismKey, tag)


def read_public(path: Path) -> Any:
    """The public key in a file. All of these raise BlobError where OpenFHE finds it malformed."""
    return _read(
        path, lambda: openfhe.DeserializePublicKeyString(path.read_bytes(), openfhe.BINARY)
    )


def read_secret(path: Path) -> Any:
    """The secret key in a file."""
    return _read(
        path, lambda: openfhe.DeserializePrivateKeyString(path.read_bytes(), openfhe.BINARY)
    )


def read_relinearization(path: Path) -> None:
    """Load a relinearization key into OpenFHE's map of them."""
    _load(path, openfhe.CryptoContext.DeserializeEvalMultKey)


def read_rotations(path: Path) -> None:
    """Load rotation keys into OpenFHE's map of them."""
    _load(path, openfhe.CryptoContext.DeserializeEvalAutomorphismKey)


def forget() -> None:
    """Let go of all evaluation keys of this process."""
    openfhe.ClearEvalMultKeys()
    openfhe.CryptoContext.ClearEvalAutomorphismKeys()


def _streamed(path: Path, write: Callable[..., bool], tag: str) -> None:
    if not write(str(path), openfhe.BINARY, tag) or not path.stat().st_size:
        raise OSError(f"OpenFHE could not write {path}: is the disk full?")


def _load(path: Path, read: Callable[..., bool]) -> None:
    if not path.is_file():
        raise BlobError(f"the key file {path.name} is missing")
    if not _read(path, lambda: read(str(path), openfhe.BINARY)):
        raise BlobError(f"the key file {path.name} is malformed: OpenFHE does not read it")


def _read(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (RuntimeError, ValueError) as error:
        raise BlobError(f"the key file {path.name} is malformed: {error}") from error
