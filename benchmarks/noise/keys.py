"""What decides a machine's noise: embeddings of its secret and of its key-switching errors.

Read from the bytes in which SEAL saves keys (4.1, uncompressed;
`he_backend.machines.pyfhel.seal_bytes` knows the headers). A switching key is one ciphertext
(c0, c1) a data prime over all primes, and
c0 + c1·s is its error but for P·s' at its own prime. So the error of the first digit's key is read
modulo another prime, here q_1, and transformed back by SEAL's own decoder over q_1 alone.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from Pyfhel import Pyfhel, PyPtxt

from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.machines.pyfhel.seal_bytes import SealBytes
from hesim.certify import RELINEARIZATION
from hesim.params import CKKSParams

__all__ = ["KeyReader"]

_HEADER, _IDENTITY = 16, 32
_BEFORE_RESIDUES = _HEADER + 33 + 40 + _HEADER + 8
"""Bytes of a saved ciphertext before its residues."""


class KeyReader:
    """Reads the keys of machines of one parameter set. Needs at least one level."""

    def __init__(self, params: CKKSParams) -> None:
        self.params = params
        self.prime = params.primes[1]
        self._he = Pyfhel()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._he.contextGen(
                scheme="ckks", n=params.n, scale=1.0, qi=[self.prime, params.special], sec=0
            )
        blob = self._he.encodeFrac(np.ones(1), scale=2.0**20).to_bytes()
        identity, version = SealBytes.plain_identity(blob)
        self._bytes = SealBytes(params, [identity], version)

    def read(self, machine: PyfhelMachine) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Embeddings, complex (params.slots,): of the secret; of first-digit errors by step.

        Args:
          machine: with all its keys.
        """
        n, moduli = self.params.n, len(self.params.moduli)
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("public", "relin", "rotation", "secret")]
            machine.save_keys(paths[0], paths[1], paths[2], paths[3])
            blob = paths[3].read_bytes()
            secret = np.frombuffer(blob[-8 * n * moduli :], np.uint64).reshape(moduli, n)[1]
            errors = {RELINEARIZATION: next(iter(self._errors(paths[1], secret).values()))}
            if machine.rotation_steps:
                by_element = self._errors(paths[2], secret)
                for step in machine.rotation_steps:
                    element = pow(3, step, 2 * n)
                    errors[step] = by_element[(element - 1) // 2]
        return self._embedded(secret), {s: self._embedded(e) for s, e in errors.items()}

    def _errors(self, path: Path, secret: np.ndarray) -> dict[int, np.ndarray]:
        """NTT residues modulo q_1 of the first digit's error, by the index of the key."""
        n, moduli = self.params.n, len(self.params.moduli)
        size = _BEFORE_RESIDUES + 16 * n * moduli
        data = np.memmap(path, np.uint8, "r")
        offset = _HEADER + _IDENTITY
        found = {}
        count, offset = _number(data, offset)
        for index in range(count):
            digits, offset = _number(data, offset)
            if digits:
                start = offset + _BEFORE_RESIDUES
                residues = np.frombuffer(data[start : offset + size].tobytes(), np.uint64)
                c0, c1 = residues.reshape(2, moduli, n)[:, 1].astype(object)
                found[index] = ((c0 + c1 * secret.astype(object)) % self.prime).astype(np.uint64)
                offset += digits * size
        return found

    def _embedded(self, residues: np.ndarray) -> np.ndarray:
        """Slots of a small polynomial given by its NTT residues modulo q_1."""
        handle: Any = PyPtxt(pyfhel=self._he)
        handle.from_bytes(self._bytes.plain(residues[None, :], 0, 1.0), scheme="ckks")
        return np.asarray(self._he.decodeComplex(handle))[: self.params.slots]


def _number(data: np.ndarray, offset: int) -> tuple[int, int]:
    return int(np.frombuffer(data[offset : offset + 8].tobytes(), np.uint64)[0]), offset + 8
