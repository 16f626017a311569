"""Reads what a batch left: the key holder decrypts it in a short-lived process of its own.

The caller brings the ciphertexts from the server's folder, a few at a time; the decrypted values go
to the client's folder, bound to the batch, and nowhere else.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import RunFolderError
from he_backend.keyholder import KeyHolder
from he_backend.machines.protocol import Machine
from he_backend.processes.folders import Folders
from he_backend.processes.messages import receive, send
from he_backend.processes.states.left import Left
from he_backend.processes.store import read_bound, read_values, write_bound
from he_backend.processes.tasks import CLIENT_BATCH
from hesim.circuit.circuit import Circuit

__all__ = ["Requests", "ends", "note_public", "public_of", "requests", "serve", "values_of"]


Requests = Iterator[tuple[dict[str, Any], list[bytes]]]
"""What is asked of the reading process, and the ciphertexts that it is asked about."""


def requests(circuit: Circuit, folders: Folders, name: str, ciphers: Sequence[int]) -> Requests:
    """What the reading process is asked: which ciphertexts, and their bytes.

    Args:
      folders, name: of the batch.

    Raises:
      RunFolderError: one is gone or damaged, or the batch did not leave it.
    """
    left, known = Left(folders.left, name), {c for c, _ in circuit.carried}
    parts = [ciphers[k : k + CLIENT_BATCH] for k in range(0, len(ciphers), CLIENT_BATCH)]
    lost = sorted(set(ciphers) - known)
    if lost:
        raise RunFolderError(
            f"the decrypted values of ciphertext {lost[0]} are gone from {folders.values}, or "
            f"damaged; run the batch again with the same run_dir to make them again"
        )
    return (
        ({"type": "decrypt", "ciphers": list(part)}, [left.read(c) for c in part]) for part in parts
    )


def serve(
    control: socket.socket, config: Mapping[str, Any], circuit: Circuit, machine: Machine
) -> None:
    """The reading process, once it has its keys: decrypt what comes, until the caller stops it.

    config: the client's folder, name and unique name of the batch, and ranges that its values are
      known to lie in, infinite ends as None.

    Raises:
      BackendError: a ciphertext is not what it should be, or holds values out of range.
    """
    ranges = {int(c): ends(*bounds) for c, bounds in config["ranges"].items()}
    values = Folders(Path(os.devnull), Path(config["client"])).of_batch(str(config["batch"])).values
    holder = KeyHolder(circuit, machine, [], ranges, values, str(config["name"]))
    while True:
        header, blobs = receive(control)
        if header.get("type") == "stop":
            return
        holder.answer("decrypt", [int(c) for c in header["ciphers"]], blobs)
        send(control, {"type": "done"})


def ends(low: float | None, high: float | None) -> tuple[float, float]:
    """A range as a message has it: None where it is open."""
    return (-np.inf if low is None else float(low), np.inf if high is None else float(high))


def values_of(
    circuit: Circuit, folders: Folders, name: str
) -> tuple[dict[int, np.ndarray], list[int]]:
    """Decrypted slot vectors of a batch's results, and the ciphertexts of those that are not there.

    Args:
      folders, name: of the batch.
    """
    wanted = sorted({int(c) for tap in circuit.outputs if tap is not None for c in tap.ciphers})
    found: dict[int, np.ndarray] = {}
    for c in wanted:
        vector = read_values(folders.values, name, c)
        if vector is not None and vector.shape == (circuit.slots,):
            found[c] = vector
    return found, [c for c in wanted if c not in found]


def note_public(folders: Folders, name: str, public: Mapping[int, np.ndarray]) -> None:
    """Keep the public leaves of a batch's result, by number. Raises StorageError."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {str(k): np.asarray(x) for k, x in public.items()}
    np.savez(content, **arrays)
    write_bound(folders.public, name, content.getvalue())


def public_of(folders: Folders, name: str) -> dict[int, np.ndarray]:
    """What `note_public` kept.

    Raises:
      RunFolderError: it is gone or damaged.
    """
    content = read_bound(folders.public, name)
    if content is None:
        raise RunFolderError(
            f"{folders.public} is gone or damaged: it has what is public of the results of batch "
            f"{folders.batch!r}; put it back, or forget the batch and run it again"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as data:
        return {int(k): data[k] for k in data.files}
