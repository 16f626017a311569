"""What a batch leaves to those that go on from it: the ciphertexts of its carried results.

They lie in a folder of their own, each bound to the batch by a digest, and are whole before the
batch is noted as finished. The server copies them to where a later batch reads its inputs; nobody
decrypts or encrypts them on the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from he_backend.errors import RunFolderError
from he_backend.processes.folders import Folders
from he_backend.processes.identity import known_batch
from he_backend.processes.store import Store, read_finished
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.machine import Evaluator
from hesim.files import sweep

__all__ = [
    "Left",
    "Source",
    "carried_inputs",
    "carried_leaves",
    "first_damaged",
    "left_by",
    "without_carried",
]


class Left(Store):
    """The ciphertexts that a batch leaves, by number.

    Args:
      folder: made with the first of them. run: unique name of the batch.
    """

    def __init__(self, folder: Path, run: str):
        self.folder = folder
        self.run = run

    def write(self, cipher: int, blob: bytes) -> None:
        """Keep the bytes of a ciphertext, on the disk when this returns. Raises StorageError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write(cipher, blob, durable=True)

    def read(self, cipher: int) -> bytes:
        """The bytes of a ciphertext. Raises RunFolderError if the file is gone or damaged."""
        with contextlib.suppress(RunFolderError):
            return super().read(cipher)
        raise RunFolderError(
            f"{self.path(cipher)}, which the batch left to go on from, is gone or damaged: put it "
            f"back, go on from an earlier batch, or forget this one and run it again"
        )

    def clean(self) -> None:
        """Remove what killed writers left behind."""
        if self.folder.is_dir():
            sweep(self.folder)


class Source:
    """What the server takes carried inputs from.

    Args:
      left: of the batch before. circuit: says which ciphertext is which input.
      machine: checks them.
    """

    def __init__(self, left: Left, circuit: Circuit, machine: Evaluator):
        self.left = left
        self.circuit, self.machine = circuit, machine
        self._ciphers = {i: c for c, i in circuit.carried}

    def read(self, i: int) -> bytes:
        """The ciphertext of a carried input instruction.

        Raises:
          RunFolderError: its file is gone or damaged. BlobError: it is no such ciphertext.
        """
        blob = self.left.read(self._ciphers[i])
        level, scale = int(self.circuit.level[i]), float(self.circuit.scale[i])
        self.machine.check_bytes(blob, level, scale, 2)
        return blob


def carried_inputs(circuit: Circuit) -> frozenset[int]:
    """Input instructions whose ciphertexts a batch takes from the one that it goes on from."""
    return frozenset(i for _, i in circuit.carried)


def carried_leaves(circuit: Circuit) -> frozenset[int]:
    """Encrypted leaves of which every ciphertext is carried."""
    carried = carried_inputs(circuit)
    found: dict[int, bool] = {}
    for i in np.flatnonzero(circuit.kind == Kind.INPUT).tolist():
        number, _ = circuit.input_rows[int(circuit.param[i])]
        leaf = circuit.inputs[number].operand
        found[leaf] = found.get(leaf, True) and i in carried
    return frozenset(leaf for leaf, whole in found.items() if whole)


def without_carried(circuit: Circuit, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Encrypted leaves as a batch is given them that goes on from another: carried ones empty."""
    carried = carried_leaves(circuit)
    return [np.zeros(0) if leaf in carried else x for leaf, x in enumerate(inputs)]


def left_by(folders: Folders, run: str, batch: str, *, finished: bool = True) -> str:
    """A batch to go on from, as "NAME/UNIQUE NAME".

    Args:
      folders: of any batch of the run. run: its name. batch: the other batch's.
      finished: whether it must be finished by now.

    Raises:
      RunFolderError: there is no such batch of this run, or it is not finished.
    """
    held = folders.of_batch(batch)
    name = known_batch(held, run)
    if not name:
        raise RunFolderError(
            f"there is no batch {batch!r} in {folders.server} to go on from; run it first, or name "
            f"one that there is: {', '.join(folders.batches) or 'none yet'}"
        )
    if finished and read_finished(held.journal, name) is None:
        raise RunFolderError(
            f"the batch {batch!r} in {folders.server} is not finished, so it left nothing to go on "
            f"from; run it to its end first"
        )
    return f"{batch}/{name}"


def first_damaged(circuit: Circuit, folders: Folders, name: str) -> Path | None:
    """The first file of what a batch left that is gone or damaged; None if all are whole.

    Args:
      folders, name: of the batch.
    """
    left = Left(folders.left, name)
    return next((left.path(c) for c, _ in circuit.carried if not left.holds(c)), None)
