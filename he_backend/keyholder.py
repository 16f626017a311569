"""What the client does with the secret key: encrypts inputs, refreshes, decrypts what it may.

Nothing here knows of sockets: the client's process calls it, and so does a run in one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BackendError, BlobError, ValueRangeError
from he_backend.machines.protocol import Machine
from he_backend.processes.store import write_values
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.checks import check_range
from hesim.circuit.plain.execute import rows_of, with_source

__all__ = ["KeyHolder"]


class KeyHolder:
    """The key holder of one Circuit.

    Args:
      circuit: public; says level and scale of everything that is exchanged.
      machine: holds the secret and the public key.
      inputs: the secret inputs, one array for each encrypted leaf.
      ranges: calibrated range (low, high) of the slot values of a ciphertext, by number. Where none
        is known, what the ciphertext's level can carry bounds its values.
      values: folder for decrypted vectors, or None to keep them in `decrypted`.
      run: name of the run, to which files are bound.
    """

    def __init__(
        self,
        circuit: Circuit,
        machine: Machine,
        inputs: list[np.ndarray],
        ranges: Mapping[int, tuple[float, float]] | None = None,
        values: Path | None = None,
        run: str = "",
    ):
        self.circuit = circuit
        self.machine = machine
        self.inputs = inputs
        self.ranges = ranges or {}
        self.values = values
        self.run = run
        self.components = circuit.components
        self.decrypted: dict[int, np.ndarray] = {}

    # One at a time

    def encrypt_input(self, i: int) -> Any:
        """The ciphertext of input instruction i."""
        circuit = self.circuit
        number, row = circuit.input_rows[int(circuit.param[i])]
        try:
            vector = circuit.inputs[number].vector(row, self.inputs)
            return self.machine.encrypt(vector, int(circuit.level[i]), float(circuit.scale[i]))
        except BackendError as error:
            leaf = circuit.inputs[number].operand
            label = circuit.input_labels[leaf] if leaf < len(circuit.input_labels) else "input"
            error.rows = rows_of(circuit, error.slots) if error.slots else ()
            raise error.at(f"input {label}", "") from error

    def refresh(self, i: int, cipher: Any) -> Any:
        """A fresh ciphertext, at the level of refresh instruction i, of what `cipher` holds."""
        try:
            vector = self._checked(self._argument(i), cipher)
            return self._encrypt_anew(i, vector)
        except BackendError as error:
            raise with_source(error, self.circuit, i) from error

    def decrypt(self, c: int, cipher: Any) -> np.ndarray:
        """Decrypt ciphertext c, keep its slot values, and return them."""
        try:
            vector = self._checked(c, cipher)
        except BackendError as error:
            raise with_source(error, self.circuit, c) from error
        self._keep(c, vector)
        return vector

    # A request of the server's at a time

    def sizes(self, kind: str, numbers: Sequence[int]) -> list[int]:
        """Bytes of each ciphertext that comes with a request, see `answer`."""
        if kind == "input":
            return []
        return [
            self.machine.cipher_size(int(self.components[c]), int(self.circuit.level[c]))
            for c in self._read(kind, numbers)
        ]

    def answer(self, kind: str, numbers: Sequence[int], blobs: Sequence[bytes]) -> list[bytes]:
        """The ciphertexts that a request asks for.

        All that came with it is decrypted and checked before anything is said or kept, wherever the
        first fault lies, so that the time to a refusal does not tell where.

        Args:
          kind: "input", "refresh" or "decrypt", whose answer is empty.
          numbers: instructions; for "decrypt", ciphertexts. blobs: what to refresh or to decrypt.

        Raises:
          BackendError: the first fault.
        """
        if kind == "input":
            return [self.machine.to_bytes(self.encrypt_input(i)) for i in numbers]
        read = self._read(kind, numbers)
        if len(blobs) != len(read):
            raise BlobError(f"the server sent {len(blobs)} ciphertexts for {len(read)} requests")
        opened = [self._opened(*each) for each in zip(numbers, read, blobs, strict=True)]
        faults = [found for found in opened if isinstance(found, BackendError)]
        if faults:
            raise faults[0]
        vectors = [found for found in opened if not isinstance(found, BackendError)]
        if kind == "refresh":
            fresh = [self._encrypt_anew(i, v) for i, v in zip(numbers, vectors, strict=True)]
            return [self.machine.to_bytes(cipher) for cipher in fresh]
        for c, vector in zip(numbers, vectors, strict=True):
            self._keep(c, vector)
        return []

    def _opened(self, i: int, c: int, blob: bytes) -> np.ndarray | BackendError:
        """The checked slot values of ciphertext c in `blob`, or what is wrong; i is blamed."""
        level, scale = int(self.circuit.level[c]), float(self.circuit.scale[c])
        try:
            cipher = self.machine.from_bytes(blob, level, scale, int(self.components[c]))
            return self._checked(c, cipher)
        except BackendError as error:
            return with_source(error, self.circuit, i)
        except Exception as error:  # whatever it is, the server must see the same word
            return with_source(BackendError(f"{type(error).__name__}: {error}"), self.circuit, i)

    # Parts

    def _argument(self, i: int) -> int:
        return self.circuit.operands(i)[0]

    def _read(self, kind: str, numbers: Sequence[int]) -> list[int]:
        """The ciphertexts that come with a request."""
        return [self._argument(i) for i in numbers] if kind == "refresh" else list(numbers)

    def _checked(self, c: int, cipher: Any) -> np.ndarray:
        vector = self.machine.decrypt(cipher)
        check_range(self.circuit.params, vector, cipher.level, cipher.scale)
        low, high = self.ranges.get(c, (-np.inf, np.inf))
        if float(vector.min()) < low or float(vector.max()) > high:
            error = ValueRangeError(
                f"decrypted values from {vector.min():.4g} to {vector.max():.4g} leave the "
                f"calibrated range [{low:.4g}, {high:.4g}]: an operation before overflowed, or the "
                f"data is unlike that of the calibration: calibrate on more of it, or give "
                f"hesim.bundle more examples, or a larger margin"
            )
            error.slots = tuple(np.flatnonzero((vector < low) | (vector > high)).tolist())
            raise error
        return vector

    def _encrypt_anew(self, i: int, vector: np.ndarray) -> Any:
        return self.machine.encrypt(
            vector, int(self.circuit.level[i]), float(self.circuit.scale[i])
        )

    def _keep(self, c: int, vector: np.ndarray) -> None:
        if self.values is None:
            self.decrypted[c] = vector
        else:
            write_values(self.values, self.run, c, vector)
